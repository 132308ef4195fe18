//! What the kernel is to forget: names at the root that were told for ever, members that were replaced, pages that it may not keep.
//!
//! To forget a name or a page the kernel takes the lock of its directory, or of the page, and waits for whoever has it. A process
//! that lists a directory has both for as long as it likes: it lists into memory whose page fault it never ends. So nothing that
//! others wait for is forgotten that way, but what was promised to the kernel for ever: what changes at a reload expires by itself
//! ([`super::root_names`]).
//!
//! Invariants:
//! - Each kind has a thread of its own: a repair does not hold up a reload.
//! - The lock of the root is taken for names only that were told for ever, by an earlier version or before `--prune`. A member that
//!   is replaced keeps its name and its node; absences in its top directory expire by themselves.
//! - The threads that notify the kernel answer no request, and hold no descriptor but the device: the kernel may keep them for
//!   as long as a reader looks at a directory, and a server that is killed meanwhile ends all the same for whoever waits for its
//!   lock and its socket.
//! - Pages that are promised to be dropped are counted in the ledger until that is done, so that the next server does it if this one
//!   is killed.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::stops::{self, Stop};
use super::{ServeError, spawn};
use crate::fuse::{Device, Ledger};
use crate::protocol::handshake::{Lifetime, Promised};
use crate::sys;
use crate::values::StorePath;
use crate::view::trie::{Kept, NodeId, NodeRecord, PathTrie, ROOT};
use crate::view::{ServedView, Stale};

/// After this it is logged that something is still invalidated.
const SLOW: Duration = Duration::from_secs(10);
/// Nodes of which an earlier server's promises are kept between two looks at new ones.
const OWED_AT_ONCE: usize = 64;

/// Begins to have the kernel at the other end of `device` forget what is `owed`, what turns out to be `stale`, and what the returned
/// [`Invalidator`] is told.
///
/// # Errors
/// When a thread cannot be made.
pub(super) fn start(
    device: Arc<Device>,
    ledger: Ledger,
    owed: Owed,
    view: Arc<ServedView>,
    stale: mpsc::Receiver<Stale>,
    promised: Promised,
) -> Result<Invalidator, ServeError> {
    let number = device.as_fd().as_raw_fd();
    let (dirtied, dirtied_nodes) = mpsc::channel();
    spawn_notifier("drop-pages", number, {
        let device = device.clone();
        move || drop_pages(&device, &ledger, &owed, &dirtied_nodes)
    })?;
    let notifier = |name| {
        let (jobs, outdated) = mpsc::channel::<Job>();
        let device = device.clone();
        let work = move || outdated.iter().for_each(|job| invalidate(&device, &job));
        spawn_notifier(name, number, work).map(|()| jobs)
    };
    let (names, members) = (notifier("invalidate")?, notifier("repair")?);
    let invalidator = Invalidator { names, members, promised };
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
    /// Names, with the directories that they are in.
    names: Vec<(NodeId, Box<[u8]>)>,
    /// After that, attributes, pages and listings.
    nodes: Vec<NodeId>,
    /// Dropped when it is done.
    _done: mpsc::Sender<()>,
}

/// The threads that have the kernel forget names, one for the root's and one for those in members.
#[derive(Clone)]
pub(super) struct Invalidator {
    names: mpsc::Sender<Job>,
    members: mpsc::Sender<Job>,
    /// What the kernel may have cached.
    promised: Promised,
}

impl Invalidator {
    /// Has the kernel forget those of the `added` and `removed` names at the root that do not expire by themselves.
    pub(super) fn changed<'a>(
        &self,
        added: impl Iterator<Item = &'a StorePath>,
        removed: impl Iterator<Item = &'a StorePath>,
    ) -> mpsc::Receiver<()> {
        let endless = |lifetime| lifetime == Lifetime::Endless;
        let added = added.filter(|_| endless(self.promised.absences));
        let removed = removed.filter(|_| endless(self.promised.names));
        self.names(added.chain(removed), false)
    }

    /// Has the kernel forget `names` at the root, and with `listing` what an earlier version let it cache of the root's listing.
    pub(super) fn names<'a>(
        &self,
        names: impl Iterator<Item = &'a StorePath>,
        listing: bool,
    ) -> mpsc::Receiver<()> {
        // Otherwise of a name that nobody knows: the kernel waits for the directory, and forgets nothing.
        let told = |name| if stops::forgets() { name } else { &b"forgotten-by-nobody"[..] };
        let names = names.map(|name| (ROOT, told(name.as_str().as_bytes()).into())).collect();
        begin(&self.names, names, if listing { vec![ROOT] } else { Vec::new() })
    }

    /// Has the kernel forget what it has cached of a member that had these nodes.
    fn member(&self, nodes: &[NodeRecord]) -> mpsc::Receiver<()> {
        let forgets = |node: &&NodeRecord| node.parent != ROOT || self.promised.absences == Lifetime::Endless;
        let names = nodes.iter().filter(forgets).map(|node| (node.parent, node.name.clone())).collect();
        begin(&self.members, names, nodes.iter().map(|node| node.id).collect())
    }
}

/// Nothing can be received from what this returns, but it is closed when all is forgotten.
fn begin(
    thread: &mpsc::Sender<Job>,
    names: Vec<(NodeId, Box<[u8]>)>,
    nodes: Vec<NodeId>,
) -> mpsc::Receiver<()> {
    let (done, is_done) = mpsc::channel();
    if !(names.is_empty() && nodes.is_empty()) {
        // The thread ends with the process only.
        let _ = thread.send(Job { names, nodes, _done: done });
    }
    is_done
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
                let (view, is_done) = (view.clone(), invalidator.member(&view.forget_replaced(member)));
                // Rare, and the kernel may wait for a reader meanwhile.
                let recorded = spawn("replaced", move || {
                    if is_done.recv_timeout(SLOW) == Err(mpsc::RecvTimeoutError::Timeout) {
                        tracing::warn!(
                            "still invalidating what is cached of a store path that was replaced: a process lists one of its directories and does not end. End that process, or stop the container that it is in"
                        );
                    }
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

/// Has the kernel ask again for names, then for what it has cached of nodes.
fn invalidate(device: &Device, job: &Job) {
    let names = job.names.iter().map(|(parent, name)| device.forget_name(parent.0, name));
    let nodes = job.nodes.iter().map(|node| device.forget_pages(node.0));
    for answer in names.chain(nodes) {
        if let Err(error) = answer {
            tracing::warn!(%error, "the kernel may show the old view for a name");
        }
    }
}
