//! What a view is made from, as plain values.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::mount::Number;
use crate::closure::source::Source;
use crate::log::LogSettings;
use crate::protocol::handshake::Io;
use crate::protocol::task::Prefetch;
use crate::protocol::wire::Outlasts;
use crate::sandbox::Sandbox;
use crate::server::idle::IdlePolling;
use crate::startup::Stored;
use crate::store::Place;

/// How a monitor comes to a view.
#[derive(Debug)]
pub enum Origin {
    /// It mounts one, or takes over one that is mounted, of which the service manager has kept this.
    Own(Stored),
    /// It is mounted by another process, in a mount namespace that this one cannot see. It ends with those who are in there.
    Given(Awaited),
}

/// A view that others are about to mount. Nix is asked meanwhile.
pub struct Awaited(Box<dyn FnOnce() -> Option<(Given, OwnedFd)>>);

impl Awaited {
    /// `wait` returns when they have mounted it, with a pidfd of who has (pidfd_open(2)). None: they have ended, and nobody wants it.
    pub fn new(wait: impl FnOnce() -> Option<(Given, OwnedFd)> + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits for it.
    pub(super) fn wait(self) -> Option<(Given, OwnedFd)> {
        (self.0)()
    }
}

impl fmt::Debug for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awaited").finish_non_exhaustive()
    }
}

/// A view that others have mounted.
#[derive(Debug)]
pub struct Given {
    /// The device, from which nothing was read.
    pub device: OwnedFd,
    /// The number of its connection.
    pub connection: Number,
    /// The state directory, which takes the place of that of [`Settings`].
    pub state: PathBuf,
}

/// Where profiles of use are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profiles {
    /// In this directory, as somebody has said.
    Asked(PathBuf),
    /// In this directory, if that can be.
    Default(PathBuf),
}

/// Everything that a view is made from.
#[derive(Debug)]
pub struct Settings {
    /// What the view is called.
    pub name: String,
    /// Where it is mounted; for one that was [given](Origin::Given), where those see it who use it.
    pub mountpoint: PathBuf,
    /// What it shows.
    pub source: Source,
    /// The store's address; without one, the store that Nix's commands open, or that of a saved closure.
    pub store: Option<String>,
    /// What is hidden of the store from who uses the view, by whoever has mounted it; none: nothing is.
    pub hidden: Option<Place>,
    /// Threads that answer requests.
    pub threads: usize,
    /// How files are read.
    pub io: Io,
    /// Whether processors are kept awake while requests flow.
    pub idle_polling: IdlePolling,
    /// Whether changed links are followed without being asked to.
    pub watch: bool,
    /// Whether what is no longer reachable goes.
    pub prune: bool,
    /// Whether the log tells what was asked for, and is on the host alone.
    pub report: bool,
    /// What is asked for ahead of who uses it.
    pub prefetch: Prefetch,
    /// Where profiles of use are; none: nowhere.
    pub profiles: Option<Profiles>,
    /// Where links that hold the roots beyond this process are made.
    pub gc_root: Option<PathBuf>,
    /// The state directory; of a view that is [given](Origin::Given), it comes with it.
    pub state: PathBuf,
    /// Whether servers give up their rights.
    pub sandbox: Sandbox,
    /// Whose signals end servers.
    pub outlasts: Outlasts,
    /// How to log.
    pub log: LogSettings,
}
