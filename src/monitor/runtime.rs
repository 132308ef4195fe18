//! What a monitor holds: descriptors, processes and threads. [`events`](super::events), [`actions`](super::actions) and
//! [`ending`](super::ending) work on it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signalfd::SignalFd;

use super::child::{Program, Server};
use super::clients::Clients;
use super::history::History;
use super::listers::Search;
use super::missed::Inquiry;
use super::mount::Mounted;
use super::mounting::MountThread;
use super::opening::Opening;
use super::prefetching::Prefetching;
use super::probe::Probe;
use super::registrar::Registrar;
use super::settings::{Given, Settings};
use super::state::StateDir;
use super::store_thread::StoreThread;
use super::user::User;
use super::watch::Changes;
use crate::background::Caller;
use crate::protocol::handshake::Agreement;

/// Where the view is.
#[derive(Debug)]
pub(super) enum Place {
    /// At the mount point, in this mount namespace.
    Path,
    /// With those who have mounted it, and who end it. None once it is looked after as mounted.
    Given(Option<Given>, User),
}

/// What the monitor has in its hands. The [`supervisor`](super::supervisor) decides what becomes of it.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) settings: Settings,
    pub(super) signals: SignalFd,
    pub(super) program: Program,
    pub(super) store_thread: StoreThread,
    pub(super) state: Option<StateDir>,
    /// Whether what a successor would find is what is shown.
    pub(super) written: bool,
    pub(super) clients: Clients,
    /// What has happened to the view.
    pub(super) history: History,
    pub(super) watch: Option<Changes>,
    pub(super) place: Place,
    /// Who waits for the view to answer, if somebody does.
    pub(super) caller: Option<Arc<Caller>>,
    pub(super) mounting: Option<MountThread>,
    pub(super) mounted: Option<Mounted>,
    pub(super) device: Option<OwnedFd>,
    /// What servers have taken and not answered ([`crate::fuse::ledger`]).
    pub(super) ledger: Option<OwnedFd>,
    /// What was asked of the view ([`crate::view::usage`]). None: the memory for it cannot be had, and nothing is known.
    pub(super) usage: Option<OwnedFd>,
    /// Whether the ledger was seen to hold all of it.
    pub(super) whole: Cell<bool>,
    pub(super) agreement: Option<Agreement>,
    /// The physical store directory.
    pub(super) store_path: PathBuf,
    /// The directory that store paths begin with. None: the store has not been asked yet.
    pub(super) store_dir: Option<PathBuf>,
    /// The same, opened.
    pub(super) store: Option<Arc<OwnedFd>>,
    /// The same, while it is not open.
    pub(super) opening: Option<Opening>,
    /// Directories in which links of this view may be.
    pub(super) link_dirs: BTreeSet<PathBuf>,
    pub(super) server: Option<Server>,
    /// Whether the last server ended by a fault of its own, and was not killed.
    pub(super) crashed: bool,
    /// With `--report`.
    pub(super) inquiry: Option<Inquiry>,
    /// What is learnt of its use and asked for ahead.
    pub(super) prefetching: Prefetching,
    /// Whether what that has begun may have ended.
    pub(super) asked_ahead: bool,
    /// Files that the kernel reads by itself.
    pub(super) registrar: Registrar,
    /// Started while the roots are being resolved: loading the program takes longer than that.
    pub(super) spare: Option<Server>,
    pub(super) probe: Option<Probe>,
    /// Asks so that a server that knows nothing of earlier ones has a request to read: see [`crate::server`]. Its answer says nothing.
    pub(super) knock: Option<Probe>,
    /// Looks for processes that keep a switch from its end.
    pub(super) search: Option<Search>,
}

impl Runtime {
    /// Kills the server, if there is one. Its end is an event.
    pub(super) fn kill_server(&mut self) {
        if let Some(server) = &mut self.server
            && let Err(error) = server.kill()
        {
            tracing::warn!(%error, "cannot kill the server");
        }
    }

    /// The store's directory, also of a view that was taken over, if it can be opened soon.
    pub(super) fn store(&mut self) -> Option<Arc<OwnedFd>> {
        if self.store.is_none() {
            let opening = self.opening.take().map_or_else(|| Opening::start(self.store_path.clone()), Ok);
            match opening.map(Opening::result) {
                Ok(Ok(Ok(store))) => self.store = Some(store),
                Ok(Err(opening)) => {
                    let store = self.store_path.display();
                    tracing::warn!(%store, "the store directory does not answer; readers wait");
                    self.opening = Some(opening);
                }
                Ok(Ok(Err(error))) | Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "readers wait");
                }
            }
        }
        self.store.clone()
    }
}
