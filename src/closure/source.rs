//! Where the closure that is served comes from: the store's answer for roots, or a file that it was saved to.
//!
//! Responsibility: reads a file of `--from` where nobody else decides what it says, and finds out where the files of its store
//! are. The store is not opened.
//!
//! Invariants:
//! - Whom to trust does not depend on what the file says, the owner of the store directory that it names least of all.
//! - What the file is and where it was found is known to whoever watches it, whether it can be used or not.
//!
//! Hard point: a file that is written while it is read may look whole, a list in particular. So it must be the same
//! afterwards; a pipe cannot be compared.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::closure::dependency::{Dependency, Seen};
use crate::closure::profile::{self, StoreDirs};
use crate::closure::resolve::{Followed, ResolveError, Roots};
use crate::closure::saved::{LIMIT, Problem, Saved, SavedError};
use crate::closure::trust::Trust;
use crate::store::Place;

/// What is served, and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The store answers for the closure of roots.
    Roots(Roots),
    /// A file has the closure.
    Saved(SavedFile),
}

impl Source {
    /// Directories in which nothing decides what is served.
    #[must_use]
    pub fn untrusted(&self) -> &[PathBuf] {
        match self {
            Self::Roots(roots) => &roots.untrusted,
            Self::Saved(file) => &file.untrusted,
        }
    }
}

/// A file with a closure, read each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFile {
    /// The file.
    pub path: PathBuf,
    /// Directories through which it may not be reached.
    pub untrusted: Vec<PathBuf>,
}

/// A closure from a file, and where the store's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The closure.
    pub saved: Saved,
    /// The physical store directory.
    pub real_dir: PathBuf,
}

impl SavedFile {
    /// Whom to trust with it, as things are now, where the store is at `place`.
    #[must_use]
    pub fn trust(&self, place: &Place) -> Trust {
        Trust::of_process(Some(&place.real_dir(&place.usual_dir()))).with_untrusted(&self.untrusted)
    }

    /// Reads the file: what is in it is not understood yet.
    #[must_use]
    pub fn read(&self, place: &Place, trust: &Trust) -> Followed<Vec<u8>> {
        let dir = place.usual_dir();
        let dirs = StoreDirs { logical: &dir, real: &place.real_dir(&dir) };
        let read = profile::read_file(&self.path, dirs, trust, LIMIT);
        let result = match read.result {
            Err(refused) => Err(refused.into()),
            Ok(Ok(_)) if read.depends_on.iter().any(has_changed) => {
                Err(self.unusable(Problem::Read(changed())))
            }
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(self.unusable(Problem::TooLong(LIMIT)))
            }
            Ok(Err(error)) => Err(self.unusable(Problem::Read(error))),
        };
        Followed { result, depends_on: read.depends_on }
    }

    /// The closure that the file with these contents has, and where its files are in the store at `place`.
    ///
    /// # Errors
    /// [`ResolveError::Saved`], [`ResolveError::OtherStore`].
    pub fn locate(&self, bytes: &[u8], place: &Place) -> Result<Located, ResolveError> {
        let saved = Saved::parse(bytes).map_err(|problem| self.unusable(problem))?;
        match place.dir() {
            Some(dir) if dir != saved.store_dir() => Err(ResolveError::OtherStore {
                file: self.path.clone(),
                saved: saved.store_dir().to_owned(),
                dir,
            }),
            _ => Ok(Located { real_dir: place.real_dir(saved.store_dir()), saved }),
        }
    }

    /// Both steps, for one who serves nothing: where somebody else decides what the file says, a warning says that a view of it
    /// would be refused.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn load(&self, place: &Place) -> Result<Located, ResolveError> {
        self.locate(&self.read(place, &self.trust(place).warning_only()).result?, place)
    }

    fn unusable(&self, problem: Problem) -> ResolveError {
        SavedError { file: self.path.clone(), problem }.into()
    }
}

/// Whether `path` leads to a file or a pipe that is not in the store at `place`: such a one can have a closure, and cannot be a root.
#[must_use]
pub fn is_file(path: &Path, place: &Place) -> bool {
    let Ok(stat) = rustix::fs::stat(path) else { return false };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        FileType::RegularFile => {
            let dir = place.usual_dir();
            let is_stored = |at: PathBuf| at.starts_with(place.real_dir(&dir)) || at.starts_with(&dir);
            !path.canonicalize().is_ok_and(is_stored)
        }
        _ => false,
    }
}

fn has_changed(one: &Dependency) -> bool {
    let is_regular = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
    matches!(one.seen(), Seen::File { .. })
        && one.found().is_some_and(|found| is_regular(found.rights.mode))
        && !one.holds()
}

fn changed() -> io::Error {
    let why = "it was written while it was read: write it under another name, and rename it";
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: PathBuf) -> SavedFile {
        SavedFile { path, untrusted: Vec::new() }
    }

    #[test]
    fn the_address_says_where_the_files_are_and_the_file_what_they_are_called() {
        let list = format!("/gnu/store/{}-a\n", "0".repeat(32));
        let locate = |uri: Option<&str>| {
            let located = file("/list".into()).locate(list.as_bytes(), &Place::of(uri).unwrap());
            located.map(|located| located.real_dir).map_err(|error| error.to_string())
        };
        assert_eq!(locate(None), Ok("/gnu/store".into()));
        assert_eq!(locate(Some("unix:///nonexistent")), Ok("/gnu/store".into()));
        assert_eq!(locate(Some("local?real=/r&store=/gnu/store")), Ok("/r".into()));
        let other = locate(Some("local?store=/nix/store")).unwrap_err();
        assert!(other.contains("'/gnu/store'") && other.contains("'/nix/store'"), "{other}");
    }

    #[test]
    fn a_file_that_changed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::fs::write(&path, "one").unwrap();
        let one = Dependency::of_file(&path, std::fs::File::open(&path).unwrap()).unwrap();
        assert!(!has_changed(&one));
        std::fs::write(&path, "another").unwrap();
        assert!(has_changed(&one));
        std::fs::remove_file(&path).unwrap();
        assert!(has_changed(&one));
    }

    #[test]
    fn a_file_is_told_from_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("nix/store")).unwrap();
        let place = Place::of(dir.path().to_str()).unwrap();
        for name in ["file", "nix/store/settings"] {
            std::fs::write(at(name), "").unwrap();
        }
        for (link, target) in [("to-file", "file"), ("result", "nix/store/settings"), ("dangling", "absent")]
        {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        let found = |name: &str| is_file(&at(name), &place);
        assert!(found("file") && found("to-file"));
        for root in ["nix/store/settings", "result", "dangling", "absent", "nix"] {
            assert!(!found(root), "{root}");
        }
        let (reader, _writer) = io::pipe().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
        assert!(is_file(Path::new(&format!("/dev/fd/{fd}")), &place));
    }
}
