//! Backing files that the kernel reads by itself: one registration a node, counted, kept a while.
//!
//! Invariants:
//! - Only descriptors open for reading are registered, and never for an open that is not for reading only: the
//!   kernel opens the file below with the caller's flags under the server's credentials.
//! - All opens of a node use one backing id while any is open; a second one is an error in the kernel
//!   (`fuse_inode_uncached_io_start`).
//! - A registration is in the journal before the kernel learns that a node uses it, and its end is in the journal
//!   before it ends: a successor never names an id that is gone.
//!
//! Hard points:
//! 1. Registering is what an open costs (an ioctl), so a registration outlives the last close, up to
//!    [`IDLE_MAX`] of them.
//! 2. A successor does not know how many opens use what it takes over: such an id is kept to the end. An id that
//!    ended while a file is open would make every further open of that file an error. Each holds one open file of
//!    the store in the kernel; an open of the node uses it again, so there is never more than one of a node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use parking_lot::Mutex;

use crate::sys;
use crate::trie::NodeId;

/// Registrations kept though nothing is open: each holds one open file in the kernel.
const IDLE_MAX: usize = 1024;

/// The registrations of a mount.
#[derive(Debug, Default)]
pub struct Registrations {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<NodeId, Registration>,
    idle: usize,
    clock: u64,
}

#[derive(Debug)]
struct Registration {
    file: File,
    opens: u64,
    /// When it was last let go, to find the one idle for longest.
    idle_since: u64,
    /// Whether the journal is known to hold it.
    recorded: bool,
}

/// A registration to answer an open with.
#[derive(Debug)]
pub(super) struct Counted {
    /// What is registered.
    pub(super) file: File,
    /// Whether the journal may not hold it yet: whoever is told so writes it down before answering. Two may be
    /// told, and write the same.
    pub(super) unrecorded: bool,
}

/// A registration as this server has it.
#[derive(Debug, Clone)]
pub(super) enum File {
    /// Made by this server: ends when the last of these is dropped.
    Own(Arc<Owned>),
    /// Taken over from an earlier one, by its number.
    Inherited(u32),
}

/// A registration of this server, with its number.
#[derive(Debug)]
pub(super) struct Owned {
    id: BackingId,
    number: u32,
}

impl File {
    /// Registers `file` with the kernel that waits for `reply`.
    pub(super) fn register(reply: &ReplyOpen, file: impl AsFd) -> io::Result<Self> {
        let number = reply.open_backing(file)?.into_raw();
        Ok(Self::Own(Arc::new(Owned { id: sys::wrap_backing(reply, number), number })))
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Own(owned) => owned.number,
            Self::Inherited(number) => *number,
        }
    }

    /// Answers an open: the kernel reads the file by itself.
    pub(super) fn answer(&self, reply: ReplyOpen) {
        match self {
            Self::Own(owned) => reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &owned.id),
            Self::Inherited(number) => {
                let id = sys::wrap_backing(&reply, *number);
                reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &id);
                // It is not this server's to end.
                id.into_raw();
            }
        }
    }
}

impl Registrations {
    /// Takes over the registration `number` of `node` from an earlier server.
    pub(crate) fn restore(&self, node: NodeId, number: u32) {
        let registration =
            Registration { file: File::Inherited(number), opens: 1, idle_since: 0, recorded: true };
        self.table.lock().nodes.insert(node, registration);
    }

    /// An earlier server ended the registration `number` of `node`.
    pub(crate) fn restore_end(&self, node: NodeId, number: u32) {
        let mut table = self.table.lock();
        if table.nodes.get(&node).is_some_and(|found| found.file.number() == number) {
            table.nodes.remove(&node);
        }
    }

    /// What is registered for `node`, counted as open once more.
    pub(super) fn open(&self, node: NodeId) -> Option<Counted> {
        let mut table = self.table.lock();
        let found = table.nodes.get_mut(&node)?;
        let was_idle = found.opens == 0;
        found.opens += 1;
        let counted = Counted { file: found.file.clone(), unrecorded: !found.recorded };
        table.idle -= usize::from(was_idle);
        Some(counted)
    }

    /// The journal holds what is registered for `node`.
    pub(super) fn recorded(&self, node: NodeId) {
        if let Some(found) = self.table.lock().nodes.get_mut(&node) {
            found.recorded = true;
        }
    }

    /// Notes what was registered for `node`, open once. Somebody else may have been first: then theirs counts.
    pub(super) fn insert(&self, node: NodeId, file: File) -> Counted {
        let mut table = self.table.lock();
        let table = &mut *table;
        match table.nodes.entry(node) {
            Entry::Occupied(mut theirs) => {
                let theirs = theirs.get_mut();
                table.idle -= usize::from(theirs.opens == 0);
                theirs.opens += 1;
                Counted { file: theirs.file.clone(), unrecorded: !theirs.recorded }
            }
            Entry::Vacant(place) => {
                place.insert(Registration { file: file.clone(), opens: 1, idle_since: 0, recorded: false });
                Counted { file, unrecorded: true }
            }
        }
    }

    /// One open of `node` has ended. Returns the registrations to end now: the caller writes that down, then
    /// drops them.
    pub(super) fn close(&self, node: NodeId) -> Vec<(NodeId, File)> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let Some(found) = table.nodes.get_mut(&node) else { return Vec::new() };
        if matches!(found.file, File::Inherited(_)) || found.opens == 0 {
            return Vec::new();
        }
        found.opens -= 1;
        if found.opens > 0 {
            return Vec::new();
        }
        table.clock += 1;
        found.idle_since = table.clock;
        table.idle += 1;
        if table.idle <= IDLE_MAX {
            return Vec::new();
        }
        // A quarter at once, so that looking for the oldest is rare.
        let mut idle: Vec<_> =
            table.nodes.iter().filter(|(_, r)| r.opens == 0).map(|(node, r)| (r.idle_since, *node)).collect();
        idle.sort_unstable();
        idle.truncate(IDLE_MAX / 4);
        table.idle -= idle.len();
        let ended = idle.into_iter().filter_map(|(_, node)| Some((node, table.nodes.remove(&node)?.file)));
        ended.collect()
    }

    /// Every registration, for a journal that is written anew.
    pub(super) fn for_each(&self, mut each: impl FnMut(NodeId, u32)) {
        for (node, registration) in &self.table.lock().nodes {
            each(*node, registration.file.number());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(number: u32) -> File {
        File::Inherited(number)
    }

    #[test]
    fn a_registration_is_used_by_every_open_and_kept_when_it_is_inherited() {
        let table = Registrations::default();
        let node = NodeId(7);
        assert!(table.open(node).is_none());
        table.restore(node, 3);
        assert_eq!(table.open(node).unwrap().file.number(), 3);
        assert_eq!(table.insert(node, inherited(9)).file.number(), 3, "the first one counts");
        for _ in 0..5 {
            assert!(table.close(node).is_empty());
        }
        assert_eq!(table.open(node).unwrap().file.number(), 3);
        table.restore_end(node, 4);
        assert!(table.open(node).is_some(), "another one ended");
        table.restore_end(node, 3);
        assert!(table.open(node).is_none());
    }

    #[test]
    fn whoever_opens_before_the_journal_holds_it_is_told_so() {
        let table = Registrations::default();
        let node = NodeId(7);
        assert!(table.insert(node, inherited(3)).unrecorded);
        assert!(table.open(node).unwrap().unrecorded);
        table.recorded(node);
        assert!(!table.open(node).unwrap().unrecorded);
        assert!(!table.insert(node, inherited(4)).unrecorded);
    }

    #[test]
    fn what_is_unknown_is_closed_without_harm() {
        assert!(Registrations::default().close(NodeId(1)).is_empty());
    }
}
