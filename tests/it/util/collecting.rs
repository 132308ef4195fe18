//! A store at which Nix's collector works: nobody gets a root meanwhile.
//!
//! The collector holds a lock, and listens on a socket for roots that are to be added; who adds one connects there and waits
//! for its answer.

use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::FlockOperation;

use super::store::NixStore;
use super::{DEADLINE, wait_readable};

/// A store that is locked. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Collecting {
    _lock: File,
    socket: UnixListener,
    at: PathBuf,
}

impl Collecting {
    pub(crate) fn begin(store: &NixStore) -> Self {
        let state = store.root().join("nix/var/nix");
        let lock =
            File::options().create(true).truncate(false).write(true).open(state.join("gc.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        fs::create_dir_all(state.join("gc-socket")).unwrap();
        let at = state.join("gc-socket/socket");
        let _stale = fs::remove_file(&at);
        Self { _lock: lock, socket: UnixListener::bind(&at).unwrap(), at }
    }

    /// Waits until somebody asks for a root. Who does waits as long as the connection is kept.
    pub(crate) fn wait_for_root(&self) -> UnixStream {
        assert_eq!(
            wait_readable([&self.socket], Instant::now() + DEADLINE),
            [true],
            "nobody asks for a root"
        );
        self.socket.accept().unwrap().0
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.at);
    }
}
