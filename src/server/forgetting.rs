//! What the kernel is to forget: names that a switch changed, members that were replaced, pages that it may not keep.
//!
//! Invariants:
//! - The threads that notify the kernel answer no request, and hold no descriptor but the device: the kernel may keep them for
//!   as long as a reader looks at a directory, and a server that is killed meanwhile ends all the same for whoever waits for its
//!   lock and its socket.
//! - Pages that are promised to be dropped are counted in the ledger until that is done, so that the next server does it if this one
//!   is killed.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, mpsc};

use super::stops::{self, Stop};
use super::{ServeError, spawn};
use crate::fuse::{Device, Ledger};
use crate::sys;
use crate::values::StorePath;
use crate::view::trie::{Kept, NodeId, NodeRecord, PathTrie, ROOT};
use crate::view::{ServedView, Stale};

/// Nodes of which an earlier server's promises are kept between two looks at new ones.
const OWED_AT_ONCE: usize = 64;

/// Begins to have the kernel at the other end of `device` forget what is `owed`, what turns out to be `stale`, and what the returned
/// [`Invalidator`] is told.
///
/// # Errors
/// When a thread cannot be made.
pub(super) fn begin(
    device: Arc<Device>,
    ledger: Ledger,
    owed: Owed,
    view: Arc<ServedView>,
    stale: mpsc::Receiver<Stale>,
) -> Result<Invalidator, ServeError> {
    let number = device.as_fd().as_raw_fd();
    let (dirtied, dirtied_nodes) = mpsc::channel();
    spawn_notifier("drop-pages", number, {
        let device = device.clone();
        move || drop_pages(&device, &ledger, &owed, &dirtied_nodes)
    })?;
    let (jobs, outdated) = mpsc::channel::<Job>();
    let invalidator = Invalidator(jobs);
    spawn_notifier("invalidate", number, move || outdated.iter().for_each(|job| invalidate(&device, &job)))?;
    spawn("stale", {
        let invalidator = invalidator.clone();
        move || follow_stale(&view, &stale, &dirtied, &invalidator)
    })?;
    Ok(invalidator)
}

/// A thread that notifies the kernel through `device`. It holds no other descriptor of the process.
fn spawn_notifier(name: &str, device: RawFd, work: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    spawn(name, move || {
        if let Err(error) = sys::keep_descriptor(device) {
            tracing::debug!(%error, "if this server is killed at a reload, the next one may have to wait for its end");
        }
        work();
    })
}

/// What the kernel is to forget.
struct Job {
    /// Names at the root; its listing goes as well.
    names: Vec<Box<[u8]>>,
    /// Nodes by their names, then their attributes, pages and listings.
    nodes: Vec<NodeRecord>,
    /// Dropped when it is done.
    _done: mpsc::Sender<()>,
}

/// The thread that has the kernel forget names.
#[derive(Clone)]
pub(super) struct Invalidator(mpsc::Sender<Job>);

impl Invalidator {
    /// Returns when the kernel has forgotten `names` at the root.
    pub(super) fn names(&self, names: Vec<StorePath>) {
        if names.is_empty() {
            return;
        }
        // One that nobody asks for: the kernel waits for the directory, and forgets nothing.
        let told = |name| if stops::forgets() { name } else { &b"forgotten-by-nobody"[..] };
        let names = names.iter().map(|name| told(name.as_str().as_bytes()).into()).collect();
        let _ = self.begin(names, Vec::new()).recv();
    }

    /// Has the kernel forget `names` at the root, and then what it has cached of `nodes`. Nothing can be received from
    /// what this returns, but it is closed when that is done.
    fn begin(&self, names: Vec<Box<[u8]>>, nodes: Vec<NodeRecord>) -> mpsc::Receiver<()> {
        let (done, is_done) = mpsc::channel();
        // The thread ends with the process only.
        let _ = self.0.send(Job { names, nodes, _done: done });
        is_done
    }
}

/// Passes on what the kernel is not to have cached. The threads that notify it do nothing with the view themselves: see
/// [`spawn_notifier`].
fn follow_stale(
    view: &Arc<ServedView>,
    stale: &mpsc::Receiver<Stale>,
    dirtied: &mpsc::Sender<NodeId>,
    invalidator: &Invalidator,
) {
    for stale in stale {
        match stale {
            Stale::Pages(node) => {
                let _ = dirtied.send(node);
            }
            Stale::Member(member) => {
                let (view, is_done) =
                    (view.clone(), invalidator.begin(Vec::new(), view.forget_replaced(member)));
                // Rare, and the kernel may wait for a reader meanwhile.
                let recorded = spawn("replaced", move || {
                    let _ = is_done.recv();
                    view.invalidated(member);
                });
                if let Err(error) = recorded {
                    tracing::debug!(%error, "the next server will invalidate this store path again");
                }
            }
        }
    }
}

/// What an earlier server was to have the kernel drop. Which nodes it was about is not known, so it is all of them: rare, as few
/// objects are read while they are being made.
pub(super) struct Owed {
    promises: u64,
    nodes: Vec<NodeId>,
}

impl Owed {
    /// Before requests are answered. `unknown`: an earlier server may have promised something elsewhere.
    pub(super) fn find(ledger: &Ledger, trie: &PathTrie, unknown: bool) -> Self {
        let promises = ledger.owed();
        let mut nodes = Vec::new();
        if promises > 0 || unknown {
            trie.for_each(|kept| match kept {
                Kept::Node { id, .. } => nodes.push(id),
                Kept::Replaced(_) => {}
            });
            tracing::debug!(
                promises,
                nodes = nodes.len(),
                "an earlier server had pages to drop; dropping those of all nodes"
            );
        }
        Self { promises, nodes }
    }
}

/// Drops the pages and listings that the kernel has cached of nodes: see [`super::fuse`].
fn drop_pages(device: &Device, ledger: &Ledger, owed: &Owed, nodes: &mpsc::Receiver<NodeId>) {
    let drop_those = |node: NodeId| {
        if let Err(error) = device.forget_pages(node.0) {
            tracing::warn!(%error, node = node.0, "cannot drop the kernel's cached pages of a file");
        }
    };
    let drop_new = |node| {
        stops::at(Stop::Owed);
        drop_those(node);
        ledger.keep(1);
    };
    for old in owed.nodes.chunks(OWED_AT_ONCE) {
        // Nobody waits for what may be many.
        nodes.try_iter().for_each(drop_new);
        old.iter().copied().for_each(drop_those);
    }
    ledger.keep(owed.promises);
    nodes.iter().for_each(drop_new);
}

/// Makes the kernel ask again for names at the root and for the root's listing, then for what it has cached of nodes.
fn invalidate(device: &Device, job: &Job) {
    let at_root = job.names.iter().map(|name| (ROOT, name));
    let entries = at_root.chain(job.nodes.iter().map(|node| (node.parent, &node.name)));
    let entries = entries.map(|(parent, name)| device.forget_name(parent.0, name));
    let nodes = [ROOT].into_iter().chain(job.nodes.iter().map(|node| node.id));
    let nodes = nodes.map(|node| device.forget_pages(node.0));
    for answer in entries.chain(nodes) {
        if let Err(error) = answer {
            tracing::warn!(%error, "the kernel may show the old view for a name");
        }
    }
}
