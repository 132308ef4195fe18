//! A closure as others read it: what would be served, without serving it.

mod json;
mod text;

use std::io;

use crate::closure::Closure;
use std::path::Path;

/// The forms of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One store path a line, sorted: the lines of `nix-store --query --requisites`, sorted.
    #[default]
    Text,
    /// The facts of `nix path-info --json`, with roots and totals.
    Json,
}

/// Writes `closure` of the store at `store_dir` to `out`.
///
/// # Errors
/// Those of `out`.
pub fn write(closure: &Closure, store_dir: &Path, format: Format, out: &mut dyn io::Write) -> io::Result<()> {
    match format {
        Format::Text => text::write(closure, store_dir, out),
        Format::Json => json::write(closure, store_dir, out),
    }
}
