//! Why a view cannot be served.

use std::io;
use std::path::PathBuf;

use super::mount::MountError;
use super::state::StateError;
use crate::closure::resolve::ResolveError;
use crate::protocol::handshake::HandshakeError;
use crate::sandbox::Missing;

/// Why a view could not be served, or can be no longer.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The roots do not give a closure.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Whoever has mounted the view has hidden another store, or not all of this one.
    #[error("the store is '{0}', and would be seen beside its view; give --store with this address")]
    NotHidden(String),
    /// The mount point, or FUSE, cannot be used.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel did not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The monitor cannot give up its rights.
    #[error(transparent)]
    Sandbox(#[from] Missing),
    /// The store directory cannot be opened.
    #[error("cannot open the store directory '{}'", path.display())]
    Store {
        /// The physical directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The program of the server is not there.
    #[error("cannot open the server's program '{}'; it belongs beside the program itself: install both", path.display())]
    Program {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be opened.
        #[source]
        source: io::Error,
    },
    /// No server could begin, for reasons that may pass.
    #[error("the server failed to start: {0}")]
    Server(String),
    /// What an earlier server left cannot be read. The mount is left as it is.
    #[error("the server failed to start: {0}")]
    Leftovers(String),
    /// The kernel does not offer what a server needs.
    #[error("the server failed to start: {0}")]
    Unsupported(String),
    /// A server died, and what it left cannot be read, or the system does not allow another one.
    #[error("no other server can serve the view ({0}), so it was unmounted; start it again")]
    Damaged(String),
    /// A server died and left nothing to resume from.
    #[error(
        "the server exited ({0}); it had no node journal to resume from, so the view was unmounted. If the disk of the state directory is full, free space there, then start again"
    )]
    Lost(String),
    /// Its connection to the kernel was ended, though it was mounted.
    #[error(
        "the FUSE connection was aborted (by umount -f, or through /sys/fs/fuse/connections), so the view was unmounted; start it again"
    )]
    Aborted,
    /// Whoever was about to mount it has ended.
    #[error("whoever wanted the view has ended before it was mounted")]
    Unwanted,
    /// The operating system refused something that always works.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

pub(super) fn system<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> MonitorError {
    move |error| MonitorError::System { doing, source: error.into() }
}
