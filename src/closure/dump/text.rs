//! One store path a line.

use std::io;
use std::path::Path;

use crate::closure::Closure;

pub(super) fn write(closure: &Closure, store_dir: &Path, out: &mut dyn io::Write) -> io::Result<()> {
    closure.members().try_for_each(|info| writeln!(out, "{}", store_dir.join(info.path.as_str()).display()))
}
