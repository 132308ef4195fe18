//! What a resolution depended on: paths, and what was at each of them when it was examined.
//!
//! Invariant: what was seen is recorded before it is used, and target, owner and mode are those of one file, which is held
//! open meanwhile. So if every dependency
//! [still holds](Dependency::holds) after watches were added for it, a second resolution would give the same result,
//! and every later change is an event.
//!
//! Hard points:
//! 1. Which directory it was does not matter: what is in it was examined as well, and watches are added by name. Inode
//!    numbers would only get in the way, as some file systems do not keep them.
//! 2. A file whose contents matter is compared by its length and times, because it may be a pipe, which can be read only
//!    once. A change that keeps the length, within one tick of the file system's clock, looks the same; from Linux 6.13
//!    a file that was examined gets another time at its next change.
//! 3. Who can change what is there belongs to what was seen ([`trust`](super::trust)): owner, mode, whether there is an
//!    access control list, and who may have made these up ([`mounter`](super::mounter)). What a list says in detail shows in the mode, or was refused.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::mounter::Mounter;
use super::trust::{GROUP_WRITE, Identity, Rights};

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
    fn file(stat: &Stat) -> Self {
        Self::File {
            size: stat.st_size.cast_unsigned(),
            modified: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            changed: (stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
        }
    }
}

/// Which file was at a path, and who can change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Which one. It may be another one and mean the same: see hard point 1.
    pub identity: Identity,
    /// Who can change it.
    pub rights: Rights,
}

impl Found {
    /// What `file`, which is open and was at `path`, is, of which `stat` was returned.
    pub(super) fn new(path: &Path, file: impl AsFd, stat: &Stat) -> Self {
        let group_writes =
            stat.st_mode & GROUP_WRITE != 0 && !FileType::from_raw_mode(stat.st_mode).is_symlink();
        let rights = Rights {
            owner: stat.st_uid,
            group: stat.st_gid,
            mode: stat.st_mode,
            // By name, since a descriptor that only means a path cannot be asked. Only whom the rule trusts could have put
            // something else there in between.
            acl: group_writes && has_acl(path),
            mounter: Mounter::of(file),
        };
        Self { identity: Identity { device: stat.st_dev, inode: stat.st_ino }, rights }
    }
}

/// A path, and what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    path: PathBuf,
    seen: Seen,
    found: Option<Found>,
}

impl Dependency {
    /// Examines `path`; also returns the error of one that cannot be examined.
    #[must_use]
    pub fn examine(path: &Path) -> (Self, Option<io::Error>) {
        Self::new(path, examine(path, false))
    }

    /// What an open file, which was at `path`, is, for one whose contents matter. To be called before it is read.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of_file(path: &Path, file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        let found = Some(Found::new(path, file, &stat));
        Ok(Self { path: path.to_owned(), seen: Seen::file(&stat), found })
    }

    fn new(path: &Path, examined: io::Result<(Seen, Found)>) -> (Self, Option<io::Error>) {
        let (seen, found, error) = match examined {
            Ok((seen, found)) => (seen, Some(found), None),
            Err(error) if is_absence(&error) => (Seen::Absent, None, None),
            Err(error) => (Seen::Unknown(error.raw_os_error()), None, Some(error)),
        };
        (Self { path: path.to_owned(), seen, found }, error)
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

    /// Which file was there, if one was and could be examined.
    #[must_use]
    pub fn found(&self) -> Option<Found> {
        self.found
    }

    /// Whether the same is still there, and the same can change it.
    #[must_use]
    pub fn holds(&self) -> bool {
        let now = Self::new(&self.path, examine(&self.path, matches!(self.seen, Seen::File { .. }))).0;
        let rights = |one: &Self| one.found.map(|found| found.rights);
        now.seen == self.seen && rights(&now) == rights(self)
    }
}

/// What is at `path`; with `contents`, whatever is there is examined as a file whose contents matter.
fn examine(path: &Path, contents: bool) -> io::Result<(Seen, Found)> {
    // What is there later, after a rename for example, is not mixed up with it.
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let seen = match FileType::from_raw_mode(stat.st_mode) {
        _ if contents => Seen::file(&stat),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&file, c"", Vec::new())?;
            Seen::Link(OsString::from_vec(target.into_bytes()).into())
        }
        FileType::Directory => Seen::Directory,
        _ => Seen::Other,
    };
    Ok((seen, Found::new(path, file, &stat)))
}

/// Whether an access control list is behind the mode of a file. One that does not say counts as one that has.
fn has_acl(path: &Path) -> bool {
    match rustix::fs::lgetxattr(path, c"system.posix_acl_access", &mut [0_u8; 4]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOENT | Errno::NOTDIR) => false,
        Ok(_) | Err(_) => true,
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

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
                Dependency::of_file(&at("roots"), std::fs::File::open(at("roots")).unwrap()).unwrap(),
            ]
        };
        let mode = |name: &str, mode| {
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 9] = [
            ("directory", &|| mode("directory", 0o1777)),
            ("roots", &|| mode("roots", 0o604)),
            // The same target, and somebody else's: as an ordinary user, another group would do.
            ("link", &|| {
                let nobody = std::os::unix::fs::lchown(at("link"), Some(65534), Some(65534));
                nobody.or_else(|_| std::fs::remove_file(at("link"))).unwrap();
            }),
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
