//! The state directory of a view: what a successor of a dead monitor finds.
//!
//! ```text
//! lock      held (flock) by the monitor that runs the view
//! state     JSON, see [`State`]; replaced as a whole
//! journal   the directory of the node journal, see [`crate::view::journal`]
//! server    held (flock) by the server that reads the device
//! control   the socket for `reload`
//! ```
//!
//! A server has a descriptor of the journal's directory and one of its lock, which it cannot write, and nothing else of it: what it
//! writes is a successor's node ids, and no successor's monitor takes anything from there. The monitor makes the two files of the
//! journal, and removes whatever is in its directory.
//!
//! The directory is open to its owner only and goes with the view. Without a state nobody can take over: such a
//! directory goes with the process that made it. One that is not the owner's own is refused: see [`private`].

mod private;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::protocol::handshake::Agreement;
use crate::sys::lock;
use crate::values::{StorePath, View, lossless};
use crate::view::journal::{self, Home};

/// Version of [`State`]'s layout.
pub const VERSION: u32 = 1;

/// Everything that the mount depends on and a descriptor does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Layout, [`VERSION`].
    pub version: u32,
    /// Where the view is mounted.
    #[serde(with = "lossless")]
    pub mountpoint: PathBuf,
    /// Whether the mount point was made for it: what earlier versions know of `made`.
    pub created: bool,
    /// Directories that were made for it, outermost first. Absent in what earlier versions wrote.
    #[serde(default, with = "lossless::many")]
    pub made: Vec<PathBuf>,
    /// Its number in the mount table. Absent in what earlier versions wrote, and unknown of other mount namespaces.
    #[serde(default)]
    pub mount_id: Option<u64>,
    /// The number of its connection. Absent in what earlier versions wrote.
    #[serde(default)]
    pub connection: Option<u32>,
    /// What was agreed on with the kernel.
    pub agreement: Agreement,
    /// Which ledger is this mount's ([`crate::fuse::ledger::token`]). Absent in what earlier versions wrote.
    #[serde(default)]
    pub ledger: Option<u64>,
    /// In which memory it is counted what is asked of this mount ([`crate::view::usage::token`]). Absent in what earlier versions wrote.
    #[serde(default)]
    pub usage: Option<u64>,
    /// What is served.
    pub view: View,
    /// The roots whose closures that is. Absent in what earlier versions wrote.
    #[serde(default)]
    pub roots: BTreeSet<StorePath>,
    /// Directories in which links of this view may be. Absent in what earlier versions wrote.
    #[serde(default, with = "lossless::many")]
    pub link_dirs: BTreeSet<PathBuf>,
    /// Number of the switch that made it so.
    pub epoch: u32,
    /// Names that an unfinished switch changed, and that the kernel may remember as they were.
    pub unsettled: Vec<StorePath>,
    /// Where the store lies.
    #[serde(with = "lossless")]
    pub store: PathBuf,
    /// The directory that its paths begin with, if that was known.
    #[serde(default, with = "lossless::optional")]
    pub store_dir: Option<PathBuf>,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made or opened.
    #[error("cannot {doing} the state directory '{}'", path.display())]
    Directory {
        /// What was tried.
        doing: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else may have put there what is there, or may change it.
    #[error(
        "'{}' {problem}: the state of a view must be its user's own and private. Correct its owner and mode if it is yours; an ordinary user can set XDG_RUNTIME_DIR to another directory",
        path.display()
    )]
    NotOwn {
        /// A part of the state directory, or a file in it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another monitor runs a view of this name.
    #[error("a view called '{name}' is already being served; stop it, or choose another name with --name")]
    Taken {
        /// The view.
        name: String,
    },
    /// The state cannot be written or read.
    #[error("cannot {doing} '{}'", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state was written by a program with another layout.
    #[error("'{}' has version {found}, this program knows version {VERSION}; start the version that wrote it, or unmount the view and start it again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl StateError {
    /// Whether there was no descriptor left, which passes.
    #[must_use]
    pub fn lacks_descriptors(&self) -> bool {
        let (Self::Directory { source, .. } | Self::File { source, .. }) = self else { return false };
        matches!(Errno::from_io_error(source), Some(Errno::MFILE | Errno::NFILE))
    }
}

/// How long a monitor that ends, and what it was just starting, may hold the name: see [`lock`].
const LAST_BREATH: Duration = Duration::from_millis(500);

/// An open state directory; dropping it frees its lock. Nobody else can change what its path means, so no descriptor of it
/// is kept: a monitor has to do with few.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// The files of a state directory. The lock is removed first: whoever opens the directory from then on makes a new one.
const FILES: [(&str, FileType); 5] = [
    ("lock", FileType::RegularFile),
    ("state", FileType::RegularFile),
    ("state.new", FileType::RegularFile),
    ("control", FileType::Socket),
    ("server", FileType::RegularFile),
];

/// The directory of the node journal, and what may be in it.
const JOURNAL: &str = "journal";
const NODES: &str = "nodes";
const JOURNAL_FILES: [&str; 2] = [NODES, "nodes.2"];

impl StateDir {
    /// Opens the state directory at `path` of the view called `name`, making it if needed.
    ///
    /// # Errors
    /// [`StateError::Directory`], [`StateError::NotOwn`], [`StateError::Taken`].
    pub fn open(path: &Path, name: &str) -> Result<Self, StateError> {
        let fail = |doing| move |source| StateError::Directory { doing, path: path.to_owned(), source };
        let absent = || fail("open")(io::ErrorKind::NotFound.into());
        let dir = private::open(path, true)?.ok_or_else(absent)?;
        for (file, kind) in FILES {
            private::examine_file(dir.as_fd(), path, file, kind)?;
        }
        let journal = private::open_below(dir.as_fd(), path, JOURNAL)?;
        for file in JOURNAL_FILES {
            private::examine_file(journal.as_fd(), &path.join(JOURNAL), file, FileType::RegularFile)?;
        }
        let lock = open_file(dir.as_fd(), Path::new("lock"), OFlags::CREATE | OFlags::WRONLY)
            .map_err(fail("lock"))?;
        if lock::take_within(&lock, LAST_BREATH).map_err(fail("lock"))? {
            Ok(Self { path: path.to_owned(), _lock: lock })
        } else {
            Err(StateError::Taken { name: name.to_owned() })
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the node journal is.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL).join(NODES)
    }

    /// Opens the directory of the node journal, for a server.
    ///
    /// # Errors
    /// [`StateError::Directory`].
    pub fn open_journal_dir(&self) -> Result<OwnedFd, StateError> {
        let path = self.path.join(JOURNAL);
        let fail = |source| StateError::Directory { doing: "open", path: path.clone(), source };
        let dir = journal::open_directory(&path).map_err(fail)?;
        let home = Home::new(dir.try_clone().map_err(fail)?, &self.journal());
        if let Err(error) = home.complete() {
            tracing::warn!(%error, "the node journal is not made smaller, however much of it is outdated");
        }
        Ok(dir)
    }

    /// Opens the server's lock, which nobody holds by that, and which cannot be written through what this returns.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn open_server_lock(&self) -> Result<OwnedFd, StateError> {
        let path = self.server_lock();
        match open_file(CWD, &path, OFlags::CREATE | OFlags::RDONLY) {
            Ok(lock) => Ok(lock.into()),
            Err(source) => Err(StateError::File { doing: "open", path, source }),
        }
    }

    /// Writes down which process has the server's lock, or waits for it: for whoever finds it taken. On a full disk that remains
    /// unsaid.
    pub fn name_server(&self, process: u32) {
        let named = open_file(CWD, &self.server_lock(), OFlags::TRUNC | OFlags::WRONLY)
            .and_then(|mut lock| lock.write_all(format!("{process}\n").as_bytes()));
        if let Err(error) = named {
            tracing::debug!(%error, "cannot write the server's process id into its lock");
        }
    }

    /// Whether a state is there for a successor.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.path.join("state").exists() && self.journal().exists()
    }

    /// Where the server's lock is.
    #[must_use]
    pub fn server_lock(&self) -> PathBuf {
        server_lock(&self.path)
    }

    /// Where the control socket is.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        control(&self.path)
    }

    /// Writes `state`, as a whole or not at all.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn write(&self, state: &State) -> Result<(), StateError> {
        let path = self.path.join("state");
        let fail = |doing| {
            let path = path.clone();
            move |source: io::Error| StateError::File { doing, path, source }
        };
        let text = serde_json::to_vec(state).map_err(|error| fail("encode")(error.into()))?;
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY;
        open_file(CWD, &self.path.join("state.new"), flags)
            .and_then(|mut next| next.write_all(&text))
            .map_err(fail("write"))?;
        std::fs::rename(self.path.join("state.new"), &path).map_err(fail("replace"))
    }

    /// Removes what an earlier monitor wrote: it is of another mount, and the next state may not find a place.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(self.path.join("state"));
    }

    /// Reads what an earlier monitor wrote. `None`: nothing.
    ///
    /// # Errors
    /// [`StateError::File`], [`StateError::Version`].
    pub fn read(&self) -> Result<Option<State>, StateError> {
        read(&self.path)
    }

    /// Removes the directory and what belongs to it: the view has ended.
    pub fn remove(self) {
        // A server that is ending makes no difference any more.
        self.remove_files();
    }

    fn remove_files(&self) {
        for (file, _) in FILES {
            let _ = std::fs::remove_file(self.path.join(file));
        }
        let journal = self.path.join(JOURNAL);
        // Whatever servers have left there. A link is removed itself.
        for file in std::fs::read_dir(&journal).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(file.path());
        }
        let _ = std::fs::remove_dir(journal);
    }

    /// Whether a server holds its lock.
    fn is_served(&self) -> bool {
        let lock = open_file(CWD, &self.server_lock(), OFlags::RDONLY);
        lock.is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // A state, or a server that reads a device, is for a successor.
        if self.path.join("state").symlink_metadata().is_ok() || self.is_served() {
            return;
        }
        self.remove_files();
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Opens a file of a state directory, never through a link.
fn open_file(dir: BorrowedFd<'_>, name: &Path, flags: OFlags) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o600);
    Ok(rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?.into())
}

/// Refuses a state directory that is not this user's own; an absent one is none.
///
/// # Errors
/// [`StateError::NotOwn`], [`StateError::Directory`].
pub fn examine(path: &Path) -> Result<(), StateError> {
    private::open(path, false).map(drop)
}

/// What an earlier monitor wrote. `None`: nothing.
fn read(dir: &Path) -> Result<Option<State>, StateError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let path = dir.join("state");
    let fail = |source: io::Error| StateError::File { doing: "read", path: path.clone(), source };
    let mut text = Vec::new();
    match open_file(CWD, &path, OFlags::RDONLY).and_then(|mut file| file.read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    }
    let Versioned { version: found } = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
    if found != VERSION {
        return Err(StateError::Version { path, found });
    }
    let mut state: State = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
    if state.created && state.made.is_empty() {
        state.made.push(state.mountpoint.clone());
    }
    Ok(Some(state))
}

/// Where the lock of the server of the view with this state directory is.
#[must_use]
pub fn server_lock(state: &Path) -> PathBuf {
    state.join("server")
}

/// What an earlier monitor with this state directory wrote of its view, if it can be read.
#[must_use]
pub fn earlier(state: &Path) -> Option<State> {
    private::open(state, false).ok().flatten()?;
    read(state).ok().flatten()
}

/// Where the control socket of the view with this state directory is.
#[must_use]
pub fn control(state: &Path) -> PathBuf {
    state.join("control")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::protocol::handshake::{Io, Promised};

    fn state() -> State {
        State {
            version: VERSION,
            mountpoint: "/a/b".into(),
            created: true,
            made: vec!["/a".into(), "/a/b".into()],
            mount_id: Some(36),
            connection: Some(42),
            agreement: Agreement { io: Io::Cached, idmap: true, promised: Promised::new(true) },
            ledger: Some(u64::MAX),
            usage: Some(u64::MAX),
            view: View::default(),
            roots: BTreeSet::new(),
            link_dirs: BTreeSet::new(),
            epoch: 3,
            unsettled: Vec::new(),
            store: "/a/nix/store".into(),
            store_dir: Some("/nix/store".into()),
        }
    }

    #[test]
    fn state_comes_back_and_a_name_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        assert_eq!(open.read().unwrap(), None);
        let odd = || PathBuf::from(std::ffi::OsStr::from_bytes(b"/\xff"));
        let state = State {
            mountpoint: odd(),
            made: vec![odd()],
            link_dirs: [odd()].into(),
            store: odd(),
            ..state()
        };
        open.write(&state).unwrap();
        assert!(matches!(StateDir::open(&path, "b"), Err(StateError::Taken { name }) if name == "b"));
        drop(open);
        let again = StateDir::open(&path, "b").unwrap();
        assert_eq!(again.read().unwrap(), Some(state));
        again.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_state_of_an_earlier_version_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        let mut value = serde_json::to_value(state()).unwrap();
        for added_later in ["roots", "link_dirs", "made", "usage"] {
            value.as_object_mut().unwrap().remove(added_later).unwrap();
        }
        std::fs::write(path.join("state"), value.to_string()).unwrap();
        let made = vec!["/a/b".into()];
        assert_eq!(open.read().unwrap(), Some(State { made, usage: None, ..state() }));
    }

    #[test]
    fn a_directory_without_a_state_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        std::fs::write(open.journal(), "").unwrap();
        drop(open);
        assert!(!path.exists());
    }

    /// A server that was taken over may have put there what it liked.
    #[test]
    fn a_directory_goes_whatever_a_server_has_left_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        drop(open.open_journal_dir().unwrap());
        assert!(path.join("journal/nodes.2").exists());
        for number in 0..10 {
            std::fs::write(path.join(format!("journal/{number}")), "left over").unwrap();
        }
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, path.join("journal/link")).unwrap();
        open.remove();
        assert!(!path.exists());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_directory_with_a_server_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        let server = File::create(open.server_lock()).unwrap();
        rustix::fs::flock(&server, FlockOperation::LockExclusive).unwrap();
        drop(open);
        assert!(path.join("lock").exists() && path.join("server").exists());
        drop(server);
        drop(StateDir::open(&path, "b").unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_refused_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        for (file, _) in FILES {
            let open = StateDir::open(&path, "b").unwrap();
            let victim = dir.path().join("victim");
            std::fs::write(&victim, "precious").unwrap();
            let _ = std::fs::remove_file(path.join(file));
            std::os::unix::fs::symlink(&victim, path.join(file)).unwrap();
            // Planted while it is open: nothing is written through it either.
            assert_eq!(open.write(&state()).is_err(), file == "state.new", "{file}");
            drop(open);
            private::open(&path, true).unwrap();
            let _ = std::fs::remove_file(path.join(file));
            std::os::unix::fs::symlink(&victim, path.join(file)).unwrap();
            let refused = StateDir::open(&path, "b");
            assert!(
                matches!(&refused, Err(StateError::NotOwn { path: p, .. }) if *p == path.join(file)),
                "{file}: {refused:?}"
            );
            assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{file}");
            std::fs::remove_dir_all(&path).unwrap();
        }
    }

    #[test]
    fn another_version_is_refused_whatever_else_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        std::fs::write(path.join("state"), r#"{"version":2,"new":"things"}"#).unwrap();
        assert!(matches!(open.read(), Err(StateError::Version { found: 2, .. })));
        std::fs::write(path.join("state"), "{torn").unwrap();
        assert!(matches!(open.read(), Err(StateError::File { doing: "read", .. })));
    }
}
