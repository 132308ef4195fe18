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

use crate::view::backing::FileId;
use crate::view::trie::{NodeId, PathTrie};

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

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.table.lock().nodes.len()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::StorePath;
    use crate::view::trie::ROOT;

    /// A trie with two members, and a way to make nodes in the first one.
    fn trie() -> (PathTrie, [NodeId; 2]) {
        let trie = PathTrie::new();
        let names = ["a", "b"].map(|name| StorePath::new(&format!("{:032}-{name}", 0)).unwrap());
        trie.switch(&names.iter().map(|name| (name.clone(), 1)).collect(), 0);
        let members = names.map(|name| trie.find(ROOT, name.as_str().as_bytes()).unwrap());
        (trie, members)
    }

    fn enter(trie: &PathTrie, member: NodeId, number: u64) -> NodeId {
        trie.enter(member, &number.to_le_bytes()).unwrap().id
    }

    #[test]
    fn a_file_is_found_in_its_member_only() {
        let (trie, [member, other]) = trie();
        let links = Links::default();
        let id = enter(&trie, member, 1);
        links.insert(member, FileId::with_inode(7), id, &trie);
        assert_eq!(links.find(member, FileId::with_inode(7)), Some(id));
        assert_eq!(links.find(member, FileId::with_inode(8)), None);
        assert_eq!(links.find(other, FileId::with_inode(7)), None);
        let next = enter(&trie, member, 2);
        links.insert(member, FileId::with_inode(7), next, &trie);
        assert_eq!(links.find(member, FileId::with_inode(7)), Some(next));
    }

    /// However many files come and go, those that are gone do not fill the table; those that live are not looked
    /// through each time.
    #[test]
    fn what_is_gone_is_swept_away_as_others_come() {
        let (trie, [member, _]) = trie();
        let links = Links::default();
        let mut most = 0;
        for number in 0..10_000 {
            let id = enter(&trie, member, number);
            links.insert(member, FileId::with_inode(number), id, &trie);
            trie.forget(id, 1);
            most = most.max(links.count());
        }
        assert_eq!(most, SWEEP_MIN);
        let links = Links::default();
        for number in 0..=SWEEP_MIN as u64 {
            links.insert(member, FileId::with_inode(number), enter(&trie, member, number), &trie);
        }
        assert_eq!((links.count(), links.table.lock().sweep_at), (SWEEP_MIN + 1, 2 * (SWEEP_MIN + 1)));
    }

    /// As soon as more than half as many nodes were forgotten as there are in the table, it is looked through.
    #[test]
    fn what_is_gone_is_swept_away_as_nodes_are_forgotten() {
        let (trie, [member, _]) = trie();
        let links = Links::default();
        for number in 0..100 {
            links.insert(member, FileId::with_inode(number), enter(&trie, member, number), &trie);
        }
        (0..60).for_each(|number| drop(trie.forget(enter(&trie, member, number), 2)));
        links.forgot(20, &trie);
        links.forgot(30, &trie);
        assert_eq!(links.count(), 100);
        links.forgot(1, &trie);
        assert_eq!((links.count(), links.table.lock().forgotten), (40, 0));
        assert!((0..100).all(|n| links.find(member, FileId::with_inode(n)).is_some() == (n >= 60)));
    }
}
