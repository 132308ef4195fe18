//! `--dump-closure`: what would be served, printed.

use super::args::RootArgs;
use super::closures::Resolved;
use super::exit::{Exit, Failure};
use super::output::{Color, print};
use crate::closure::dump::{self, Format};

pub(super) fn run(roots: RootArgs, format: Format) -> Result<Exit, Failure> {
    let Resolved { closure, dir, .. } = Resolved::of(roots)?;
    let text = dump::render(&closure, &dir, format)?;
    print(Color::NONE, |out| out.write_all(&text))?;
    Ok(Exit::Success)
}
