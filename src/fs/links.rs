//! One node for all names of a file: which node a hard-linked file has been given.
//!
//! Nix's optimiser, and some builders, make identical files names of one inode. If each name had a node of its own,
//! the kernel would read and cache the same bytes once for each.
//!
//! Invariants:
//! - Names share a node only within one member: what withdraws or removes one of them takes all of them.
//! - What is found here is a hint. The node may be gone, or its path may lead to another file by now: a repair or the
//!   optimiser puts another file there, and inode numbers are used again. Whoever finds it asks the trie and the store.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::Mutex;

use crate::backing::FileId;
use crate::trie::{NodeId, PathTrie};

/// Fewer are not worth looking through for those that are gone.
const SWEEP_MIN: usize = 1024;

/// The nodes of hard-linked files, by member and file below.
#[derive(Debug, Default)]
pub(super) struct Links {
    table: Mutex<Table>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug, Default)]
struct Table {
    /// By the hash of member and file, 16 bytes an entry: a hint may be wrong, so two files of one hash are no harm.
    nodes: HashMap<u64, NodeId>,
    /// How many there may be before those that are gone are looked for.
    sweep_at: usize,
    /// Nodes forgotten since they were looked for.
    forgotten: usize,
}

impl Links {
    /// The node that the file `file` of `member` may have been given.
    pub(super) fn find(&self, member: NodeId, file: FileId) -> Option<NodeId> {
        let key = self.hasher.hash_one((member.0, file));
        self.table.lock().nodes.get(&key).copied()
    }

    /// The file `file` of `member` has the node `id` from now on.
    pub(super) fn insert(&self, member: NodeId, file: FileId, id: NodeId, trie: &PathTrie) {
        let key = self.hasher.hash_one((member.0, file));
        let mut table = self.table.lock();
        table.nodes.insert(key, id);
        if table.nodes.len() > table.sweep_at.max(SWEEP_MIN) {
            table.sweep(trie);
        }
    }

    /// The kernel has forgotten `count` more nodes: once that is a part of all, those that are gone are let go.
    pub(super) fn forgot(&self, count: usize, trie: &PathTrie) {
        let mut table = self.table.lock();
        table.forgotten += count;
        if table.forgotten > table.nodes.len() / 2 {
            table.sweep(trie);
        }
    }
}

impl Table {
    fn sweep(&mut self, trie: &PathTrie) {
        self.nodes.retain(|_, id| trie.parent(*id).is_some());
        self.nodes.shrink_to(SWEEP_MIN);
        self.sweep_at = self.nodes.len() * 2;
        self.forgotten = 0;
    }
}
