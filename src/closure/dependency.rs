//! What a resolution depended on: paths, and what was at each of them when it was examined.
//!
//! Invariant: what was seen is recorded before it is used, and from the same system call. So if every dependency
//! [still holds](Dependency::holds) after watches were added for it, a second resolution would give the same result,
//! and every later change is an event.
//!
//! Hard points:
//! 1. Which directory it was does not matter: what is in it was examined as well, and watches are added by name. Inode
//!    numbers would only get in the way, as some file systems do not keep them.
//! 2. A file whose contents matter is compared by its length and times, because it may be a pipe, which can be read only
//!    once. A change that keeps the length, within one tick of the file system's clock, looks the same; from Linux 6.13
//!    a file that was examined gets another time at its next change.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// A symbolic link with this target.
    Link(PathBuf),
    /// A directory.
    Directory,
    /// Anything else, if its contents do not matter.
    Other,
    /// A file whose contents matter.
    File {
        /// Length in bytes.
        size: u64,
        /// When its contents changed, in seconds and nanoseconds.
        modified: (i64, i64),
        /// When its contents or its attributes changed, or it was renamed.
        changed: (i64, i64),
    },
    /// It could not be examined, for the reason of this number (errno(3)).
    Unknown(Option<i32>),
}

impl Seen {
    fn file(meta: &Metadata) -> Self {
        Self::File {
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A path, and what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    path: PathBuf,
    seen: Seen,
}

impl Dependency {
    /// Examines `path`; also returns the error of one that cannot be examined.
    #[must_use]
    pub fn examine(path: &Path) -> (Self, Option<io::Error>) {
        Self::new(path, examine(path))
    }

    /// Examines a file whose contents matter. It has to be examined before it is read.
    #[must_use]
    pub fn examine_file(path: &Path) -> Self {
        Self::new(path, examine_file(path)).0
    }

    fn new(path: &Path, seen: io::Result<Seen>) -> (Self, Option<io::Error>) {
        let (seen, error) = match seen {
            Ok(seen) => (seen, None),
            Err(error) => (Seen::Unknown(error.raw_os_error()), Some(error)),
        };
        (Self { path: path.to_owned(), seen }, error)
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was there.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Whether the same is still there.
    #[must_use]
    pub fn holds(&self) -> bool {
        let now = match self.seen {
            Seen::File { .. } => Self::examine_file(&self.path),
            _ => Self::examine(&self.path).0,
        };
        now.seen == self.seen
    }
}

fn examine(path: &Path) -> io::Result<Seen> {
    loop {
        match std::fs::read_link(path) {
            Ok(target) => return Ok(Seen::Link(target)),
            // Not a link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return absent_or(error),
        }
        match path.symlink_metadata() {
            // It became a link in between.
            Ok(meta) if meta.is_symlink() => {}
            Ok(meta) => return Ok(if meta.is_dir() { Seen::Directory } else { Seen::Other }),
            Err(error) => return absent_or(error),
        }
    }
}

fn examine_file(path: &Path) -> io::Result<Seen> {
    path.symlink_metadata().map_or_else(absent_or, |meta| Ok(Seen::file(&meta)))
}

fn absent_or(error: io::Error) -> io::Result<Seen> {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Seen::Absent),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_at_a_path_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("directory")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        symlink("../anywhere", at("link")).unwrap();
        let seen = |path: &Path| Dependency::examine(path).0.seen().clone();
        assert_eq!(seen(&at("directory")), Seen::Directory);
        assert_eq!(seen(&at("file")), Seen::Other);
        assert_eq!(seen(&at("link")), Seen::Link("../anywhere".into()));
        assert_eq!(seen(&at("nothing")), Seen::Absent);
        assert_eq!(seen(&at("file/below")), Seen::Absent);
        let (long, error) = Dependency::examine(&at(&"x".repeat(300)));
        assert_eq!(long.seen(), &Seen::Unknown(error.unwrap().raw_os_error()));
        assert!(long.holds());
    }

    /// Each change of one path makes exactly its own dependency outdated.
    #[test]
    fn a_dependency_holds_until_its_path_changes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let names = ["directory", "link", "nothing", "roots"];
        let prepare = || {
            for name in names {
                let _ = std::fs::remove_file(at(name)).or_else(|_| std::fs::remove_dir(at(name)));
            }
            std::fs::create_dir(at("directory")).unwrap();
            symlink("a", at("link")).unwrap();
            std::fs::write(at("roots"), "one\n").unwrap();
            let examine = |name| Dependency::examine(&at(name)).0;
            [
                examine("directory"),
                examine("link"),
                examine("nothing"),
                Dependency::examine_file(&at("roots")),
            ]
        };
        let changes: [(&str, &dyn Fn()); 6] = [
            ("directory", &|| std::fs::remove_dir(at("directory")).unwrap()),
            ("link", &|| {
                std::fs::remove_file(at("link")).unwrap();
                symlink("b", at("link")).unwrap();
            }),
            ("link", &|| std::fs::remove_file(at("link")).unwrap()),
            ("nothing", &|| std::fs::create_dir(at("nothing")).unwrap()),
            ("roots", &|| std::fs::write(at("roots"), "other\n").unwrap()),
            ("roots", &|| std::fs::remove_file(at("roots")).unwrap()),
        ];
        for (changed, change) in changes {
            let dependencies = prepare();
            assert!(dependencies.iter().all(Dependency::holds));
            change();
            let outdated: Vec<&Path> =
                dependencies.iter().filter(|one| !one.holds()).map(Dependency::path).collect();
            assert_eq!(outdated, [at(changed)]);
        }
    }
}
