//! The state directory of a view: what a successor of a dead monitor finds.
//!
//! ```text
//! lock      held (flock) by the monitor that runs the view
//! state     JSON, see [`State`]; replaced as a whole
//! nodes     the node journal, see [`crate::view::journal`]
//! server    held (flock) by the server that reads the device
//! control   the socket for `--reload`
//! ```
//!
//! The directory is open to its owner only and goes with the view. Without a state nobody can take over: such a
//! directory goes with the process that made it.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::protocol::handshake::Agreement;
use crate::values::{StorePath, View};

/// Version of [`State`]'s layout.
pub const VERSION: u32 = 1;

/// Everything that the mount depends on and a descriptor does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Layout, [`VERSION`].
    pub version: u32,
    /// Where the view is mounted.
    pub mountpoint: PathBuf,
    /// Whether the mount point was made for it: what earlier versions know of `made`.
    pub created: bool,
    /// Directories that were made for it, outermost first. Absent in what earlier versions wrote.
    #[serde(default)]
    pub made: Vec<PathBuf>,
    /// What was agreed on with the kernel.
    pub agreement: Agreement,
    /// What is served.
    pub view: View,
    /// The roots whose closures that is. Absent in what earlier versions wrote.
    #[serde(default)]
    pub roots: BTreeSet<StorePath>,
    /// Directories in which links of this view may be. Absent in what earlier versions wrote.
    #[serde(default)]
    pub link_dirs: BTreeSet<PathBuf>,
    /// Number of the switch that made it so.
    pub epoch: u32,
    /// Names that an unfinished switch changed, and that the kernel may remember as they were.
    pub unsettled: Vec<StorePath>,
    /// Where the store lies.
    pub store: PathBuf,
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
    #[error("'{}' has version {found}, this program knows version {VERSION}; go on with the version that wrote it, or unmount the view and start it anew", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// An open state directory; dropping it frees its lock.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens the state directory at `path` of the view called `name`, making it if needed.
    ///
    /// # Errors
    /// [`StateError::Directory`], [`StateError::Taken`].
    pub fn open(path: &Path, name: &str) -> Result<Self, StateError> {
        let fail = |doing| move |source| StateError::Directory { doing, path: path.to_owned(), source };
        // Views are mounted beside the directory that holds the states: only from there on it is private.
        if let Some(shared) = path.parent().and_then(Path::parent) {
            DirBuilder::new().recursive(true).mode(0o755).create(shared).map_err(fail("create"))?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail("create"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(fail("lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Taken { name: name.to_owned() }),
            Err(error) => Err(fail("lock")(error.into())),
        }
    }

    /// Where the node journal is.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("nodes")
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
        let (next, path) = (self.path.join("state.new"), self.path.join("state"));
        let fail = |doing| {
            let path = path.clone();
            move |source: io::Error| StateError::File { doing, path, source }
        };
        let text = serde_json::to_vec(state).map_err(|error| fail("encode")(error.into()))?;
        std::fs::write(&next, text).map_err(fail("write"))?;
        std::fs::rename(&next, &path).map_err(fail("replace"))
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
        let _ = std::fs::remove_file(self.path.join("state"));
        // A server that is ending makes no difference any more.
        let _ = std::fs::remove_file(self.server_lock());
    }

    /// Whether a server holds its lock.
    fn is_served(&self) -> bool {
        let lock = File::open(self.server_lock());
        lock.is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // A state, or a server that reads a device, is for a successor.
        if self.path.join("state").exists() || self.is_served() {
            return;
        }
        // The lock goes first: whoever opens the directory from now on makes it anew.
        for file in ["lock", "state.new", "nodes", "nodes.new", "control", "server"] {
            let _ = std::fs::remove_file(self.path.join(file));
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// What an earlier monitor wrote. `None`: nothing.
fn read(dir: &Path) -> Result<Option<State>, StateError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let path = dir.join("state");
    let fail = |source: io::Error| StateError::File { doing: "read", path: path.clone(), source };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
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

/// Directories that were made for the view of an earlier monitor with this state directory.
#[must_use]
pub fn made_before(state: &Path) -> Vec<PathBuf> {
    read(state).ok().flatten().map_or_else(Vec::new, |state| state.made)
}

/// Where the control socket of the view with this state directory is.
#[must_use]
pub fn control(state: &Path) -> PathBuf {
    state.join("control")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::handshake::Io;

    fn state() -> State {
        State {
            version: VERSION,
            mountpoint: "/a/b".into(),
            created: true,
            made: vec!["/a".into(), "/a/b".into()],
            agreement: Agreement { request: vec![1, 2], io: Io::Cached, idmap: true },
            view: View::default(),
            roots: BTreeSet::new(),
            link_dirs: BTreeSet::new(),
            epoch: 3,
            unsettled: Vec::new(),
            store: "/nix/store".into(),
        }
    }

    #[test]
    fn state_comes_back_and_a_name_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let open = StateDir::open(&path, "b").unwrap();
        assert_eq!(open.read().unwrap(), None);
        open.write(&state()).unwrap();
        assert!(matches!(StateDir::open(&path, "b"), Err(StateError::Taken { name }) if name == "b"));
        drop(open);
        let again = StateDir::open(&path, "b").unwrap();
        assert_eq!(again.read().unwrap(), Some(state()));
        again.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_state_of_an_earlier_version_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let open = StateDir::open(dir.path(), "b").unwrap();
        let mut value = serde_json::to_value(state()).unwrap();
        for added_later in ["roots", "link_dirs", "made"] {
            value.as_object_mut().unwrap().remove(added_later).unwrap();
        }
        std::fs::write(dir.path().join("state"), value.to_string()).unwrap();
        let made = vec!["/a/b".into()];
        assert_eq!(open.read().unwrap(), Some(State { made, ..state() }));
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

    #[test]
    fn another_version_is_refused_whatever_else_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let open = StateDir::open(dir.path(), "b").unwrap();
        std::fs::write(dir.path().join("state"), r#"{"version":2,"new":"things"}"#).unwrap();
        assert!(matches!(open.read(), Err(StateError::Version { found: 2, .. })));
        std::fs::write(dir.path().join("state"), "{torn").unwrap();
        assert!(matches!(open.read(), Err(StateError::File { doing: "read", .. })));
    }
}
