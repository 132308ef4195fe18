//! One node for all names of a file: which node a hard-linked file has been given.
//!
//! Nix's optimiser, and some builders, make identical files names of one inode. If each name had a node of its own,
//! the kernel would read and cache the same bytes once for each.
//!
//! Invariants:
//! - Names share a node only within one member: what withdraws or removes one of them takes all of them.
//! - A node found here may be gone by now: whoever finds it counts it in the trie, which says so.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::trie::{NodeId, PathTrie};

/// Fewer are not worth looking through for those that are gone.
const SWEEP_MIN: usize = 1024;

/// The nodes of hard-linked files, by member and inode number below.
#[derive(Debug, Default)]
pub(super) struct Links {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<(NodeId, u64), NodeId>,
    /// How many there may be before those that are gone are looked for.
    sweep_at: usize,
}

impl Links {
    /// The node that the file `inode` of `member` was given.
    pub(super) fn find(&self, member: NodeId, inode: u64) -> Option<NodeId> {
        self.table.lock().nodes.get(&(member, inode)).copied()
    }

    /// The file `inode` of `member` has the node `id` from now on.
    pub(super) fn insert(&self, member: NodeId, inode: u64, id: NodeId, trie: &PathTrie) {
        let mut table = self.table.lock();
        table.nodes.insert((member, inode), id);
        if table.nodes.len() > table.sweep_at.max(SWEEP_MIN) {
            table.sweep(trie);
        }
    }

    /// Lets go of the nodes that the kernel has forgotten.
    pub(super) fn sweep(&self, trie: &PathTrie) {
        self.table.lock().sweep(trie);
    }
}

impl Table {
    fn sweep(&mut self, trie: &PathTrie) {
        self.nodes.retain(|_, id| trie.parent(*id).is_some());
        self.nodes.shrink_to(SWEEP_MIN);
        self.sweep_at = self.nodes.len() * 2;
    }
}
