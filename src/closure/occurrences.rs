//! Where in a store path another one is named: files and links that hold its hash, by scanning all of them.
//!
//! A reference is nothing but the hash part of a path somewhere in what another one holds (Nix manual, "Store Object", references), so this is how
//! Nix found it.
//!
//! Invariants: nothing is followed out of the store path; memory does not depend on the length of a file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use memchr::memmem::Finder;

use crate::values::StorePath;

/// Bytes that are read at once.
const PIECE: usize = 1 << 18;
/// Bytes shown before and after a hash, at most.
const BEFORE: usize = 24;
const AFTER: usize = 48;

/// One place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// The file or link, below the store path; empty: the store path itself is one.
    pub file: PathBuf,
    /// What of it.
    pub place: Place,
    /// What stands there: printable text around the hash, as bytes of ASCII.
    pub excerpt: String,
}

/// What of a file holds a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its contents, from this byte on.
    Byte(u64),
    /// The target of the link.
    Target,
}

/// What cannot be scanned.
#[derive(Debug, thiserror::Error)]
#[error("cannot search '{}' for references", path.display())]
pub struct SearchError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// The first occurrence of the hash of `target` in each file and link at or below `top`, in the order of their names.
///
/// # Errors
/// [`SearchError`] names the first file that cannot be read.
pub fn search(top: &Path, target: &StorePath) -> Result<Vec<Occurrence>, SearchError> {
    let finder = Finder::new(target.hash_part().as_bytes());
    let mut found = Vec::new();
    let mut next = vec![top.to_owned()];
    while let Some(path) = next.pop() {
        let occurrence = examine(&path, &finder, &mut next);
        let occurrence = occurrence.map_err(|source| SearchError { path: path.clone(), source })?;
        found.extend(occurrence.map(|(place, excerpt)| {
            let file = path.strip_prefix(top).unwrap_or(&path).to_owned();
            Occurrence { file, place, excerpt }
        }));
    }
    Ok(found)
}

/// Looks into one file or link; what a directory holds is for later.
fn examine(
    path: &Path,
    finder: &Finder<'_>,
    later: &mut Vec<PathBuf>,
) -> io::Result<Option<(Place, String)>> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        let mut below = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        // The last one is the next.
        below.sort_unstable_by(|a, b| b.cmp(a));
        later.extend(below);
        Ok(None)
    } else if kind.is_symlink() {
        let target = fs::read_link(path)?;
        let bytes = target.as_os_str().as_bytes();
        Ok(finder.find(bytes).map(|at| (Place::Target, excerpt(bytes, at))))
    } else if kind.is_file() {
        Ok(first_in(File::open(path)?, finder)?.map(|(at, excerpt)| (Place::Byte(at), excerpt)))
    } else {
        // A store holds nothing else.
        Ok(None)
    }
}

/// The place of the first occurrence, and what stands around it.
fn first_in(mut file: impl Read, finder: &Finder<'_>) -> io::Result<Option<(u64, String)>> {
    // Kept of what was read before: an occurrence may begin there, and has something in front of it.
    let keep = BEFORE + finder.needle().len();
    let mut buffer: Vec<u8> = Vec::with_capacity(keep + PIECE + AFTER);
    let mut start: u64 = 0;
    loop {
        let read = file.by_ref().take(PIECE as u64).read_to_end(&mut buffer)?;
        if let Some(at) = finder.find(&buffer) {
            file.by_ref().take(AFTER as u64).read_to_end(&mut buffer)?;
            return Ok(Some((start.saturating_add(at as u64), excerpt(&buffer, at))));
        }
        if read == 0 {
            return Ok(None);
        }
        let outdated = buffer.len().saturating_sub(keep);
        buffer.drain(..outdated);
        start = start.saturating_add(outdated as u64);
    }
}

/// The printable text that the hash at `at` is part of.
fn excerpt(bytes: &[u8], at: usize) -> String {
    let is_text = |byte: &&u8| byte.is_ascii_graphic() || **byte == b' ';
    let (before, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
    let before: Vec<u8> = before.iter().rev().take(BEFORE).take_while(is_text).copied().collect();
    let text = before.iter().rev().chain(rest.iter().take(AFTER).take_while(is_text));
    text.map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "0123456789abcdfghijklmnpqrsvwxyz-target";

    fn target() -> StorePath {
        StorePath::new(NAME).unwrap()
    }

    #[test]
    fn files_and_links_are_searched_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("bin")).unwrap();
        fs::write(top.join("bin/run"), format!("#!/nix/store/{NAME}/bin/sh\n\u{1b}[31m")).unwrap();
        fs::write(top.join("bin/other"), "nothing here").unwrap();
        symlink(format!("/nix/store/{NAME}/lib"), top.join("lib")).unwrap();
        symlink("..", top.join("up")).unwrap();
        fs::write(dir.path().join("outside"), NAME).unwrap();
        let found = search(&top, &target()).unwrap();
        let byte = |file: &str, at, excerpt: &str| Occurrence {
            file: file.into(),
            place: Place::Byte(at),
            excerpt: excerpt.to_owned(),
        };
        let excerpt = format!("/nix/store/{NAME}/lib");
        let link = Occurrence { file: "lib".into(), place: Place::Target, excerpt };
        // Without the end of the line and what follows it.
        assert_eq!(found, [byte("bin/run", 13, &format!("#!/nix/store/{NAME}/bin/sh")), link]);
        // A store path may be a file itself.
        assert_eq!(search(&dir.path().join("outside"), &target()).unwrap(), [byte("", 0, NAME)]);
        let error = search(&dir.path().join("absent"), &target()).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    /// As `read(2)` may give it: in pieces of any length.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(buffer.len());
            self.0.read(buffer.get_mut(..length).unwrap_or_default())
        }
    }

    proptest! {
        /// Wherever it stands: across the pieces as well.
        #[test]
        fn an_occurrence_is_found_wherever_it_stands(
            around in -80isize..80, pieces in 0usize..3, fill in any::<u8>(), step in 1usize..100_000, after in 0usize..100
        ) {
            let at = (pieces * PIECE).saturating_add_signed(around);
            let mut bytes = vec![fill; at];
            bytes.extend(NAME.as_bytes());
            bytes.extend(vec![fill; after]);
            // The filling may be a part of the name.
            let needle = target();
            let finder = Finder::new(needle.hash_part().as_bytes());
            let expected = finder.find(&bytes).map(|at| at as u64);
            let found = first_in(Pieces(&bytes, step), &finder).unwrap();
            prop_assert_eq!(found.as_ref().map(|(at, _)| *at), expected);
            let (_, excerpt) = found.unwrap();
            prop_assert!(excerpt.contains(needle.hash_part()) && excerpt.len() <= BEFORE + AFTER);
            prop_assert_eq!(first_in(Pieces(&bytes[..at + 31], step), &finder).unwrap(), None);
        }
    }
}
