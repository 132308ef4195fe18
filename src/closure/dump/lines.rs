//! Formats of lines: store paths alone, and what `nix-store --load-db` reads.
//!
//! Invariant: a line break ends a line and is in none. A [`StorePath`] has none, so only the store directory is examined.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::DumpError;
use crate::closure::Closure;
use crate::values::{Algorithm, Hash, PathInfo, StorePath};

/// Paths as lines of a text.
struct Lines {
    /// The store directory and a slash.
    prefix: Vec<u8>,
    text: Vec<u8>,
}

impl Lines {
    fn new(store_dir: &Path) -> Result<Self, DumpError> {
        let mut prefix = store_dir.as_os_str().as_bytes().to_vec();
        if prefix.contains(&b'\n') {
            return Err(DumpError::StoreDir(store_dir.to_owned()));
        }
        prefix.push(b'/');
        Ok(Self { prefix, text: Vec::new() })
    }

    fn line(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(b'\n');
    }

    fn path(&mut self, path: &StorePath) {
        self.text.extend_from_slice(&self.prefix);
        self.line(path.as_str());
    }
}

/// Sorted by base name: the order of the file `store-paths` of nixpkgs' `closureInfo`, which has that of a set of Nix's.
///
/// # Errors
/// [`DumpError::StoreDir`].
pub fn paths<'a>(
    paths: impl IntoIterator<Item = &'a StorePath>,
    store_dir: &Path,
) -> Result<Vec<u8>, DumpError> {
    let mut lines = Lines::new(store_dir)?;
    paths.into_iter().for_each(|path| lines.path(path));
    Ok(lines.text)
}

/// For each path: the path, hash and size of its NAR, its deriver or an empty line, the number of its references, and each of them.
///
/// `nix-store --dump-db` prints the hash in base 16 and without its algorithm. `--load-db` reads other forms as well, but
/// takes a hash without an algorithm for SHA-256.
pub(super) fn registration(closure: &Closure, store_dir: &Path) -> Result<Vec<u8>, DumpError> {
    let mut lines = Lines::new(store_dir)?;
    for info in closure.members() {
        lines.path(&info.path);
        lines.line(&nar_hash(info)?.base16());
        lines.line(&info.nar_size.to_string());
        match &info.deriver {
            Some(deriver) => lines.path(deriver),
            None => lines.line(""),
        }
        lines.line(&info.references.len().to_string());
        info.references.iter().for_each(|reference| lines.path(reference));
    }
    Ok(lines.text)
}

fn nar_hash(info: &PathInfo) -> Result<Hash, DumpError> {
    Hash::parse_sri(&info.nar_hash)
        .filter(|hash| hash.algorithm() == Algorithm::Sha256)
        .ok_or_else(|| DumpError::NarHash { path: info.path.clone(), hash: info.nar_hash.clone() })
}
