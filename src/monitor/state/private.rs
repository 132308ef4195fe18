//! Directories that nobody else can have put there or can change: `/tmp` is everybody's, and the names below it can be
//! guessed.
//!
//! A directory is opened below the one before it, never through a link, and examined once it is open. In one that is
//! private nobody else can make a link afterwards, unless somebody else makes up who it belongs to ([`Mounter`]).

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::StateError;
use crate::closure::mounter::Mounter;

/// What is never followed, and not read itself: the permission to search a directory is enough.
const FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Views are mounted next to the directory that holds the states: others may enter, and change nothing.
const SHARED: u32 = 0o755;
/// States are nobody else's business.
const PRIVATE: u32 = 0o700;

/// Opens the state directory `path`, `BASE/.state/NAME`, and with `make` makes what is absent of it. `None`: something is.
///
/// # Errors
/// [`StateError::NotOwn`], [`StateError::Directory`].
pub(super) fn open(path: &Path, make: bool) -> Result<Option<OwnedFd>, StateError> {
    let fail = |source| StateError::Directory { doing: "create", path: path.to_owned(), source };
    let states = path.parent().unwrap_or(path);
    let base = states.parent().unwrap_or(states);
    if let Some(above) = base.parent().filter(|_| make) {
        DirBuilder::new().recursive(true).mode(SHARED).create(above).map_err(fail)?;
    }
    let mut dir: Option<OwnedFd> = None;
    for (level, mode) in [(base, SHARED), (states, PRIVATE), (path, PRIVATE)] {
        let (above, name) = match &dir {
            None => (CWD, level.as_os_str()),
            Some(dir) => (dir.as_fd(), level.file_name().unwrap_or_default()),
        };
        match open_level(above, name, level, mode, make)? {
            Some(open) => dir = Some(open),
            None => return Ok(None),
        }
    }
    Ok(dir)
}

/// Opens the private directory `name` in the state directory `dir`, and makes it if it is absent.
///
/// # Errors
/// [`StateError::NotOwn`], [`StateError::Directory`].
pub(super) fn open_below(dir: BorrowedFd<'_>, path: &Path, name: &str) -> Result<OwnedFd, StateError> {
    let level = path.join(name);
    open_level(dir, name.as_ref(), &level, PRIVATE, true)?.ok_or_else(|| StateError::Directory {
        doing: "open",
        path: level,
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Opens `name` in `above`, which is the directory `level`, and with `make` makes it if it is absent. `None`: it is.
fn open_level(
    above: BorrowedFd<'_>,
    name: &OsStr,
    level: &Path,
    mode: u32,
    make: bool,
) -> Result<Option<OwnedFd>, StateError> {
    let fail = |doing| move |source| StateError::Directory { doing, path: level.to_owned(), source };
    if make {
        match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(fail("create")(error.into())),
        }
    }
    let open = match rustix::fs::openat(above, name, FLAGS, Mode::empty()) {
        Ok(open) => open,
        Err(Errno::NOENT) if !make => return Ok(None),
        Err(error) => return Err(fail("open")(error.into())),
    };
    let found = rustix::fs::fstat(&open).map_err(|error| fail("examine")(error.into()))?;
    match made_up(Mounter::of(&open)).or_else(|| problem(&found, FileType::Directory, !mode)) {
        Some(problem) => Err(StateError::NotOwn { path: level.to_owned(), problem }),
        None => Ok(Some(open)),
    }
}

/// Refuses what is in the place of a file of a state directory and is none of its owner's.
///
/// # Errors
/// [`StateError::NotOwn`], [`StateError::File`].
pub(super) fn examine_file(
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &str,
    kind: FileType,
) -> Result<(), StateError> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => match problem(&found, kind, 0) {
            None => Ok(()),
            Some(problem) => Err(StateError::NotOwn { path: path.join(name), problem }),
        },
        Err(Errno::NOENT) => Ok(()),
        Err(error) => {
            let source: io::Error = error.into();
            Err(StateError::File { doing: "examine", path: path.join(name), source })
        }
    }
}

/// Why owner and mode of something cannot be trusted: somebody else has mounted what makes them up.
fn made_up(mounter: Mounter) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let trusted = match mounter {
        Mounter::Privileged => true,
        Mounter::User(user) => user == 0 || user == own,
        Mounter::Unknown => false,
    };
    (!trusted).then(|| format!("is on a FUSE file system that {mounter} has mounted"))
}

/// Why something cannot be trusted: it is not of this kind, not this user's, or has one of the permissions `denied`.
fn problem(found: &Stat, kind: FileType, denied: u32) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let mode = found.st_mode & 0o7777;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => Some("is a symbolic link".to_owned()),
        found if found != kind => Some(format!("is not a {}", describe(kind))),
        _ if found.st_uid != own => Some(format!("belongs to user {}, not to user {own}", found.st_uid)),
        _ if mode & denied & 0o077 != 0 => Some(format!("is open to others (mode {mode:04o})")),
        _ => None,
    }
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Socket => "socket",
        _ => "regular file",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_absent_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base/.state/name");
        assert!(open(&path, false).unwrap().is_none());
        assert!(open(&path, true).unwrap().is_some());
        assert!(open(&path, false).unwrap().is_some());
        let modes = [path.parent().unwrap(), &path]
            .map(|path| path.metadata().unwrap().permissions().mode() & 0o7777);
        assert_eq!(modes, [0o700, 0o700]);
    }

    #[test]
    fn what_is_not_own_and_private_is_refused() {
        type Break = fn(&Path);
        let replace: Break = |path| {
            fs::rename(path, path.with_extension("real")).unwrap();
            symlink(path.with_extension("real"), path).unwrap();
        };
        let breaks: [(&str, Break, &str); 8] = [
            ("base", replace, "is a symbolic link"),
            ("base", |path| mode(path, 0o775), "is open to others (mode 0775)"),
            ("base", |path| mode(path, 0o1757), "is open to others (mode 1757)"),
            ("base/.state", replace, "is a symbolic link"),
            ("base/.state", |path| mode(path, 0o710), "is open to others (mode 0710)"),
            ("base/.state/name", replace, "is a symbolic link"),
            ("base/.state/name", |path| mode(path, 0o701), "is open to others (mode 0701)"),
            (
                "base/.state/name",
                |path| {
                    fs::remove_dir(path).unwrap();
                    fs::write(path, "").unwrap();
                },
                "is not a directory",
            ),
        ];
        for (what, breaks, expected) in breaks {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("base/.state/name");
            open(&path, true).unwrap();
            breaks(&dir.path().join(what));
            for make in [true, false] {
                let refused = open(&path, make).unwrap_err();
                assert!(
                    matches!(&refused, StateError::NotOwn { path, problem } if *path == dir.path().join(what) && problem == expected),
                    "{what}: {refused}"
                );
            }
        }
    }
}
