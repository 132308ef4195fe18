//! A closure as others read it: what would be served, without serving it.
//!
//! Each format is rendered as a whole before any of it is printed: what cannot be said in a format is an error, and no
//! half of a file.

mod dot;
mod html;
pub(super) mod json;
mod lines;
mod tree;

#[cfg(test)]
#[path = "dump_tests.rs"]
mod tests;

pub use json::plain;

pub use lines::paths;

use std::io;
use std::path::{Path, PathBuf};

use crate::closure::Closure;
use crate::values::StorePath;

/// The forms of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One store path a line, sorted: the lines of `nix-store --query --requisites`, sorted.
    #[default]
    Text,
    /// What `nix path-info --json --json-format 2` prints of each path, with roots and totals.
    Json,
    /// The file `store-paths` of nixpkgs' `closureInfo`: one store path a line, sorted.
    StorePaths,
    /// What `nix-store --load-db` reads, to register exactly this closure in another database.
    Registration,
    /// A graph for Graphviz: `dot -Tsvg`.
    Dot,
    /// For people: references as a tree from the roots, with sizes and what each reference alone brings in.
    Tree,
    /// For people: one page for a browser, with a map by size, search, and what refers to what. It needs no network.
    Html,
}

/// Why a closure cannot be printed in a format.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The store directory's name breaks the format: a line break in lines, or what is not UTF-8 in JSON.
    #[error(
        "this format cannot hold the name of the store directory {0:?}; use --dump-closure=dot, which has no directories"
    )]
    StoreDir(PathBuf),
    /// A hash that no registration can hold.
    #[error(
        "the store's hash of '{path}' is not a SHA-256 hash: {hash:?}; examine it with nix-store --verify-path"
    )]
    NarHash {
        /// Whose it is.
        path: StorePath,
        /// What the store answered.
        hash: String,
    },
    /// A content address of no known method or algorithm.
    #[error(
        "the content address of '{path}' has no known form: {ca:?}; this version of nix-store-fs may be too old for this Nix"
    )]
    ContentAddress {
        /// Whose it is.
        path: StorePath,
        /// What the store answered.
        ca: String,
    },
    /// A defect of the program: nothing here is without a form in JSON.
    #[error("the closure cannot be written as JSON; please report this bug")]
    Json(#[source] serde_json::Error),
}

/// `closure`, of the store at `store_dir`, in `format`.
///
/// # Errors
/// [`DumpError`] if the format cannot hold it. [`Format::Dot`] holds every closure.
///
/// [`Format::Tree`] has colours (escape sequences "SGR"), which whoever prints it takes out where they are not wanted. No other format
/// has.
pub fn render(closure: &Closure, store_dir: &Path, format: Format) -> Result<Vec<u8>, DumpError> {
    match format {
        // The same lines today; `closureInfo` decides over the second.
        Format::Text | Format::StorePaths => {
            lines::paths(closure.members().map(|info| &info.path), store_dir)
        }
        Format::Json => json::render(closure, store_dir),
        Format::Registration => lines::registration(closure, store_dir),
        Format::Dot => Ok(dot::render(closure)),
        Format::Tree => Ok(written(|out| tree::write(closure, out))),
        Format::Html => Ok(written(|out| html::write(closure, store_dir, out))),
    }
}

/// What `write` writes.
fn written(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Vec<u8> {
    let mut text = Vec::new();
    // Into memory it does not fail.
    let _ = write(&mut text);
    text
}
