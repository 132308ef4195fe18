//! A directory that nobody else can put another one in the place of, opened for work by its descriptor.
//!
//! Invariant: it was opened level by level, each below the one before, and each level and each link on the way was judged
//! ([`trust`](super::trust)) while it was open. So whoever is not trusted could not choose which directory it is; and what
//! is done through the descriptor happens there, whatever its path leads to later.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::dependency::Found;
use super::profile::parts;
use super::trust::{Part, Reason, Rights, Trust};

/// How something is opened that is looked at before it is used: it need not be readable.
const ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The same for a directory. This also mounts what is to be mounted when it is used.
const LEVEL: OFlags = ENTRY.union(OFlags::DIRECTORY);
/// The kernel's own limit (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Why a directory is not opened.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// There is none.
    Absent,
    /// This is something else.
    NotADirectory(PathBuf),
    /// Somebody else could put another one in its place.
    Untrusted {
        /// The link or directory.
        entry: PathBuf,
        /// Who, and what to do.
        why: Reason,
    },
    /// The operating system refused.
    Io(io::Error),
}

impl From<Errno> for NotOpened {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT => Self::Absent,
            error => Self::Io(error.into()),
        }
    }
}

struct Level {
    open: OwnedFd,
    path: PathBuf,
    rights: Rights,
}

enum Entry {
    Directory(OwnedFd, Found),
    Link(PathBuf, Found),
}

/// Opens the directory at the absolute `path` for work in it (`O_PATH`), and with `make` makes what is absent of it.
pub(super) fn open(path: &Path, trust: &Trust, make: bool) -> Result<OwnedFd, NotOpened> {
    let judge = |path: &Path, found: Found, dir: Option<Rights>| {
        trust.judge(path, found.identity, found.rights, dir, Part::Way).map_err(|why| {
            let entry = path.to_owned();
            NotOpened::Untrusted { entry, why }
        })
    };
    let slash = Path::new("/");
    let top = rustix::fs::openat(CWD, slash, LEVEL, Mode::empty())?;
    let found = Found::new(slash, &top, &rustix::fs::fstat(&top)?);
    judge(slash, found, None)?;
    let top = Level { open: top, path: slash.to_owned(), rights: found.rights };
    let mut below: Vec<Level> = Vec::new();
    let mut todo: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            below.pop();
            continue;
        }
        let above = below.last().unwrap_or(&top);
        let path = above.path.join(&part);
        match entry(above, &part, &path, make)? {
            Entry::Directory(open, found) => {
                judge(&path, found, Some(above.rights))?;
                below.push(Level { open, path, rights: found.rights });
            }
            Entry::Link(target, found) => {
                judge(&path, found, Some(above.rights))?;
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if target.is_absolute() {
                    below.clear();
                }
                todo = parts(&target).chain(todo).collect();
            }
        }
    }
    Ok(below.pop().unwrap_or(top).open)
}

/// What `name` is in `above`, where its path is `path`.
fn entry(above: &Level, name: &OsStr, path: &Path, make: bool) -> Result<Entry, NotOpened> {
    let open = |flags| rustix::fs::openat(&above.open, name, flags, Mode::empty());
    let opened = match open(LEVEL) {
        Err(Errno::NOENT) if make => {
            match rustix::fs::mkdirat(&above.open, name, Mode::from_raw_mode(0o755)) {
                // Whoever was faster is judged. A link that leads nowhere is followed.
                Ok(()) | Err(Errno::EXIST) => open(LEVEL),
                Err(error) => return Err(NotOpened::Io(error.into())),
            }
        }
        opened => opened,
    };
    match opened {
        Ok(open) => {
            let found = Found::new(path, &open, &rustix::fs::fstat(&open)?);
            Ok(Entry::Directory(open, found))
        }
        // A link, too: it is not followed (open(2)).
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let open = open(ENTRY)?;
            let stat = rustix::fs::fstat(&open)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                return Err(NotOpened::NotADirectory(path.to_owned()));
            }
            let target = rustix::fs::readlinkat(&open, c"", Vec::new())?;
            let found = Found::new(path, &open, &stat);
            Ok(Entry::Link(OsString::from_vec(target.into_bytes()).into(), found))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    /// It is the directory that the kernel finds at the path, and what is absent is made there.
    #[test]
    fn it_is_the_directory_of_that_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let trust = Trust::of_process(None);
        std::fs::create_dir_all(at("a/b")).unwrap();
        symlink("a/../a", at("relative")).unwrap();
        symlink(at("relative/b"), at("absolute")).unwrap();
        symlink("later", at("dangling")).unwrap();
        symlink("round", at("round")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        for path in ["a/b", "relative/b", "absolute", "absolute/../b", "a/./b/"] {
            let open = open(&at(path), &trust, false).unwrap();
            assert_eq!(rustix::fs::fstat(open).unwrap().st_ino, inode(&at("a/b")), "{path}");
        }
        for path in ["absent", "a/absent/too", "dangling"] {
            assert!(matches!(open(&at(path), &trust, false), Err(NotOpened::Absent)), "{path}");
            let open = open(&at(path), &trust, true).unwrap();
            assert_eq!(rustix::fs::fstat(open).unwrap().st_ino, inode(&at(path)), "{path}");
        }
        for path in ["file", "file/below"] {
            let refused = open(&at(path), &trust, true).unwrap_err();
            assert!(matches!(refused, NotOpened::NotADirectory(path) if path == at("file")), "{path}");
        }
        let error = Errno::LOOP.raw_os_error();
        let refused = open(&at("round"), &trust, true).unwrap_err();
        assert!(matches!(refused, NotOpened::Io(e) if e.raw_os_error() == Some(error)));
    }

    #[test]
    fn what_others_can_change_is_not_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let trust = Trust::of_process(None);
        std::fs::create_dir_all(at("open/a")).unwrap();
        symlink("a", at("open/link")).unwrap();
        symlink("open/a", at("link")).unwrap();
        let mode = |mode| {
            std::fs::set_permissions(at("open"), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let refuses = |path: &str, trust: &Trust| match open(&at(path), trust, true) {
            Ok(_) => None,
            Err(NotOpened::Untrusted { entry, .. }) => {
                Some(entry.strip_prefix(dir.path()).unwrap().to_owned())
            }
            Err(error) => panic!("{path}: {error:?}"),
        };
        mode(0o777);
        for path in ["open", "open/a", "open/link", "link", "open/absent"] {
            assert_eq!(refuses(path, &trust), Some("open".into()), "{path}");
        }
        assert!(!at("open/absent").exists());
        mode(0o1777);
        assert_eq!(refuses("open/link", &trust), Some("open/link".into()));
        for path in ["open", "open/a", "link", "open/absent"] {
            assert_eq!(refuses(path, &trust), None, "{path}");
        }
        let untrusted = trust.with_untrusted(&[at("open")]);
        assert_eq!(refuses("link", &untrusted), Some("open".into()));
        mode(0o755);
        assert_eq!(refuses("open/link", &Trust::of_process(None)), None);
    }
}
