//! The path trie: which node id stands for which path below the store directory.
//!
//! Responsibility: hand out node ids for names and give back the path of an id. It decides what is reachable:
//! its first level is the closure, so a name outside has no node and no request can name it.
//!
//! Invariants:
//! - Id 1 is the root. Ids grow and are never given twice during the life of a mount, so an id that the kernel
//!   still holds always means the same path.
//! - A node's parent was handed out before the node itself and has a lower id, also where both are restored. Its slot
//!   lives as long as the node's does: a slot goes when the kernel holds neither the node nor anything whose path leads
//!   through it. So the path of every node that the kernel holds can be given, in whatever order it forgets.
//! - A name has one node at a time; it gets another one when its member is replaced on disk ([`PathTrie::detach`]), or when a
//!   server does not know enough of the one that it had ([`PathTrie::detach_all`]).
//! - A first-level node stays until the mount ends, also when its name is withdrawn: files open below it
//!   stay readable, and nothing new can be looked up through it.
//!
//! Hard points:
//! 1. Memory. One entry costs a slot of 24 bytes, its name and one index entry of 9 bytes. Slots and names lie in
//!    chunks, which go as a whole once no slot in them lives any more: many small pieces of memory that are freed one
//!    by one never all come together again, and the kernel would not get them back. Ids that a journal names far apart cost more, and a
//!    few hundred bytes each at most ([`chunk`]): a hostile server may have written it.
//! 2. Locks. The one lock is held for map operations only, never over a system call. Counting a look-up of a
//!    known name needs a shared lock only.
//! 3. A server that succeeds another does not know how often the kernel was told of an id, and so when it is
//!    forgotten: restored nodes are kept ([`PINNED`]). No FORGET proves that the kernel has let go of one. A count
//!    of one is sent for a look-up that failed as well (`fuse_lookup_name`, `fuse_direntplus_link`); a larger one
//!    comes from an inode that went (`fuse_evict_inode`), but an answer that the last server gave may be taken in
//!    after that, and makes the inode anew under the same id. To let a node go too early is an error for whoever
//!    has it open; to keep it costs what hard point 1 says, once for each path: a name that is looked up again
//!    gets its old node.
//! 4. The kernel may forget a directory before a file below it: names of one file share a node
//!    ([`crate::view::ServedView`]), and a process holds the file by a name in another directory, or by its handle. The
//!    slot of the directory then stays as a *bridge*, with look-ups 0 and children above 0, until the file goes.

mod chunk;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::{DefaultHashBuilder, HashMap, HashSet, HashTable};
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::panics::{self, Changing};
use crate::values::{StorePath, View};
use chunk::{CHUNK, Chunk, Known, Slot};

/// The FUSE inode number of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// The store directory itself (`FUSE_ROOT_ID`).
pub const ROOT: NodeId = NodeId(1);

/// Look-up count of a node that is never forgotten: members, and what an earlier server handed out.
const PINNED: u32 = u32::MAX;

/// Longest name of a node. Longer ones are asked for, of which the store's file system says that they are too long
/// (`FUSE_NAME_MAX`, Linux `fs/fuse/fuse_i.h`).
const NAME_MAX: usize = 1024;

/// An index of less is not worth shrinking.
const INDEX_MIN: usize = 1024;

/// How many earlier listings of the root stay, for readers that began before a switch.
const EPOCHS_KEPT: usize = 8;

/// One set of members as listings show it: immutable, replaced as a whole.
#[derive(Debug)]
pub struct Members {
    /// Counts the switches of this mount; part of the root's directory offsets.
    pub epoch: u32,
    /// Names with their nodes, sorted by name.
    pub entries: Vec<(StorePath, NodeId)>,
    /// Ordinals, ascending, each with its place in `entries`. A member's ordinal is its place among all members that
    /// this mount ever had, in the order of their nodes: it never changes.
    ordinals: Vec<(u32, u32)>,
    /// Sum of the NAR sizes in bytes.
    pub nar_size: u64,
}

impl Members {
    /// The members from `ordinal` on, in the order of their ordinals.
    pub fn from_ordinal(&self, ordinal: u32) -> impl Iterator<Item = (u32, &StorePath, NodeId)> {
        let from = self.ordinals.partition_point(|(known, _)| *known < ordinal);
        let rest = self.ordinals.get(from..).unwrap_or_default();
        rest.iter().filter_map(|(ordinal, at)| {
            self.entries.get(*at as usize).map(|(name, id)| (*ordinal, name, *id))
        })
    }

    fn empty() -> Self {
        Self { epoch: 0, entries: Vec::new(), ordinals: Vec::new(), nar_size: 0 }
    }

    /// The node of a member.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<NodeId> {
        let at = self.entries.binary_search_by(|(path, _)| path.as_str().as_bytes().cmp(name)).ok()?;
        self.entries.get(at).map(|(_, id)| *id)
    }
}

#[derive(Debug)]
struct Nodes {
    chunks: HashMap<u64, Chunk>,
    index: HashTable<NodeId>,
    hasher: DefaultHashBuilder,
    /// All first-level nodes there ever were; sorted by [`PathTrie::prepare`].
    tops: Vec<NodeId>,
    next: u64,
    live: usize,
}

/// The trie. All methods may be called from any thread.
#[derive(Debug)]
pub struct PathTrie {
    nodes: RwLock<Nodes>,
    members: RwLock<VecDeque<Arc<Members>>>,
}

/// A node made known to the kernel by [`PathTrie::enter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Its id.
    pub id: NodeId,
    /// Whether a journal may not hold the node yet: whoever is told so writes it, then calls
    /// [`PathTrie::recorded`]. Two callers may both be told, and write the same.
    pub unrecorded: bool,
    /// Whether the kernel knew nothing of the node: it was not told of it, or has forgotten it.
    pub fresh: bool,
}

/// A node as a journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// The id handed out.
    pub id: NodeId,
    /// The node it lies in.
    pub parent: NodeId,
    /// Its name there.
    pub name: Box<[u8]>,
}

/// What restores a trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept<'a> {
    /// A node: [`PathTrie::restore`].
    Node {
        /// The id handed out.
        id: NodeId,
        /// The node it lies in.
        parent: NodeId,
        /// Its name there.
        name: &'a [u8],
    },
    /// What was restored so far of this member belongs to an object that is no more: [`PathTrie::detach`].
    Replaced(NodeId),
}

/// What changed at the first level when a view was switched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Switch {
    /// Names that were not served before.
    pub added: Vec<StorePath>,
    /// Names that are served no more.
    pub removed: Vec<StorePath>,
    /// First-level nodes that got their id now.
    pub fresh: Vec<NodeRecord>,
}

/// Whether an entry of a directory can have this name, but for its length (path_resolution(7)).
pub(super) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

fn is_member_name(name: &[u8]) -> bool {
    str::from_utf8(name).is_ok_and(|name| StorePath::new(name).is_ok())
}

fn split(id: NodeId) -> (u64, usize) {
    (id.0 / CHUNK, (id.0 % CHUNK) as usize)
}

type Chunks = HashMap<u64, Chunk>;

fn known_in(chunks: &Chunks, id: NodeId) -> Option<Known<'_>> {
    let (chunk, at) = split(id);
    let chunk = chunks.get(&chunk)?;
    chunk.get(at)
}

fn slot_mut(chunks: &mut Chunks, id: NodeId) -> Option<&mut Slot> {
    let (chunk, at) = split(id);
    chunks.get_mut(&chunk)?.get_mut(at)
}

impl Nodes {
    fn known(&self, id: NodeId) -> Option<Known<'_>> {
        known_in(&self.chunks, id)
    }

    fn slot(&self, id: NodeId) -> Option<&Slot> {
        self.known(id).map(|known| known.slot)
    }

    fn hash(&self, parent: NodeId, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent.0, name))
    }

    fn find(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let same =
            |id: &NodeId| self.known(*id).is_some_and(|k| k.slot.parent() == parent && *k.name == *name);
        self.index.find(self.hash(parent, name), same).copied()
    }

    /// The first-level node that `id` is or lies in, with its name.
    fn member(&self, id: NodeId) -> Option<(NodeId, &[u8])> {
        let mut at = id;
        loop {
            let Known { slot, name } = self.known(at)?;
            if slot.parent() == ROOT {
                return Some((at, name));
            }
            at = slot.parent();
        }
    }

    fn put(&mut self, id: NodeId, parent: NodeId, name: &[u8], lookups: u32) {
        let hash = self.hash(parent, name);
        let Self { chunks, index, hasher, .. } = self;
        let (chunk, at) = split(id);
        if !chunks.entry(chunk).or_default().put(at, parent, name, lookups) {
            return;
        }
        self.live += 1;
        if let Some(parent) = slot_mut(chunks, parent) {
            parent.children += 1;
        }
        if parent == ROOT {
            self.tops.push(id);
        }
        let same = |known: &NodeId| {
            known_in(chunks, *known).is_some_and(|k| k.slot.parent() == parent && *k.name == *name)
        };
        match index.find_mut(hash, same) {
            // Restored, of a path whose node was forgotten or replaced in between: the last one is meant.
            Some(known) => *known = id.max(*known),
            None => {
                index.insert_unique(hash, id, rehash(chunks, hasher));
            }
        }
        self.next = self.next.max(id.0 + 1);
    }

    fn give(&mut self, parent: NodeId, name: &[u8], lookups: u32) -> NodeId {
        let id = NodeId(self.next);
        self.put(id, parent, name, lookups);
        id
    }

    /// Removes `id` if nothing needs its slot, then what nothing needs without it, upwards; returns what went.
    fn remove_unused(&mut self, id: NodeId) -> Vec<NodeId> {
        let mut gone = Vec::new();
        let mut at = id;
        while let Some(slot) = self.slot(at).filter(|slot| slot.is_unused()) {
            let parent = slot.parent();
            self.remove(at);
            gone.push(at);
            let Some(parent_slot) = slot_mut(&mut self.chunks, parent) else { break };
            // A restored parent counts what was restored after it only; it is pinned.
            parent_slot.children = parent_slot.children.saturating_sub(1);
            at = parent;
        }
        gone
    }

    fn remove(&mut self, id: NodeId) {
        let Some(Known { slot, name }) = self.known(id) else { return };
        let hash = self.hash(slot.parent(), name);
        if let Ok(entry) = self.index.find_entry(hash, |known| *known == id) {
            entry.remove();
        }
        let Self { chunks, index, hasher, .. } = self;
        let (chunk, at) = split(id);
        if let Some(home) = chunks.get_mut(&chunk)
            && home.remove(at)
        {
            self.live -= 1;
            if home.is_empty() {
                chunks.remove(&chunk);
            }
        }
        if is_sparse(index.len(), index.capacity()) {
            index.shrink_to(0, rehash(chunks, hasher));
        }
    }
}

fn rehash<'a>(chunks: &'a Chunks, hasher: &'a DefaultHashBuilder) -> impl Fn(&NodeId) -> u64 + 'a {
    // Every id of the index has its slot.
    |id| known_in(chunks, *id).map_or(0, |known| hasher.hash_one((known.slot.parent().0, known.name)))
}

impl Default for PathTrie {
    fn default() -> Self {
        Self::new()
    }
}

impl PathTrie {
    /// A trie in which nothing is reachable yet.
    #[must_use]
    pub fn new() -> Self {
        let nodes = Nodes {
            chunks: HashMap::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            tops: Vec::new(),
            next: ROOT.0 + 1,
            live: 0,
        };
        let none = Arc::new(Members::empty());
        Self { nodes: RwLock::new(nodes), members: RwLock::new(VecDeque::from([none])) }
    }

    /// The nodes, to be changed as a whole: half a change would have a node lead to another path.
    fn change(&self) -> (Changing, RwLockWriteGuard<'_, Nodes>) {
        let nodes = self.nodes.write();
        (panics::changing(), nodes)
    }

    /// Puts back a node that an earlier server handed out. What none can have handed out, a damaged record, is not
    /// restored: without a parent that is older, a path might have no end. Before the first [`PathTrie::switch`] only.
    pub fn restore(&self, record: &NodeRecord) {
        let NodeRecord { id, parent, name } = record;
        let (_whole, mut nodes) = self.change();
        // Whatever it is, the kernel may know the id.
        nodes.next = nodes.next.max(id.0.saturating_add(1));
        let is_placed = match *parent {
            ROOT => *id > ROOT && is_member_name(name),
            parent => parent < *id && nodes.slot(parent).is_some() && is_name(name) && name.len() <= NAME_MAX,
        };
        if is_placed && nodes.slot(*id).is_none() {
            nodes.put(*id, *parent, name, PINNED);
        }
    }

    /// Ids below this one were handed out. Before the first [`PathTrie::switch`] only.
    pub fn restore_next(&self, id: NodeId) {
        let (_whole, mut nodes) = self.change();
        nodes.next = nodes.next.max(id.0);
    }

    /// The id that is handed out next.
    #[must_use]
    pub fn next(&self) -> NodeId {
        NodeId(self.nodes.read().next)
    }

    /// Begins `further` ids behind what was restored: so many may be known to the kernel and to nobody else.
    pub fn skip(&self, further: u64) {
        let (_whole, mut nodes) = self.change();
        nodes.next = nodes.next.saturating_add(further);
    }

    /// Names get other nodes from now on than those that were restored, which live on for whoever holds them. Before the
    /// first [`PathTrie::switch`] only.
    pub fn detach_all(&self) {
        self.change().1.index.clear();
    }

    /// Lets listings and look-ups of the root see exactly `view` from now on; the epoch is one more than the
    /// last, or `epoch` if that is more.
    ///
    /// The caller makes [`Switch::fresh`] durable first where that matters: see [`PathTrie::prepare`].
    pub fn switch(&self, view: &View, epoch: u32) -> Switch {
        let fresh = self.prepare(view);
        let nodes = self.nodes.read();
        let node = |name: &StorePath| nodes.find(ROOT, name.as_str().as_bytes());
        let entries: Vec<_> = view.names().filter_map(|name| Some((name.clone(), node(name)?))).collect();
        let ordinal = |id: &NodeId| u32::try_from(nodes.tops.binary_search(id).ok()?).ok();
        let ordinals = entries.iter().zip(0..).filter_map(|((_, id), at)| Some((ordinal(id)?, at)));
        let mut ordinals: Vec<(u32, u32)> = ordinals.collect();
        ordinals.sort_unstable();
        drop(nodes);
        let mut kept = self.members.write();
        let last = kept.back().cloned();
        let epoch = last.as_ref().map_or(1, |m| m.epoch.wrapping_add(1)).max(epoch);
        let next = Arc::new(Members { epoch, entries, ordinals, nar_size: view.nar_size() });
        kept.push_back(next.clone());
        if kept.len() > EPOCHS_KEPT {
            kept.pop_front();
        }
        drop(kept);
        let before = last.as_ref().map_or(&[][..], |m| &m.entries);
        let missing = |from: &[(StorePath, NodeId)], set: &dyn Fn(&[u8]) -> bool| -> Vec<StorePath> {
            from.iter().map(|(name, _)| name).filter(|name| !set(name.as_str().as_bytes())).cloned().collect()
        };
        Switch {
            added: missing(&next.entries, &|name| last.as_ref().is_some_and(|m| m.find(name).is_some())),
            removed: missing(before, &|name| next.find(name).is_some()),
            fresh,
        }
    }

    /// Gives every name of `view` its node without showing it yet; returns the nodes that are new.
    pub fn prepare(&self, view: &View) -> Vec<NodeRecord> {
        let (_whole, mut nodes) = self.change();
        let mut fresh = Vec::new();
        nodes.tops.sort_unstable();
        for name in view.names().map(|name| name.as_str().as_bytes()) {
            match nodes.find(ROOT, name) {
                Some(id) => {
                    if let Some(slot) = nodes.slot(id) {
                        slot.lookups.store(PINNED, Ordering::Relaxed);
                    }
                }
                None => {
                    let id = nodes.give(ROOT, name, PINNED);
                    fresh.push(NodeRecord { id, parent: ROOT, name: name.into() });
                }
            }
        }
        fresh
    }

    /// The members now shown.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        let kept = self.members.read();
        // A trie is made with one set and always keeps at least one.
        kept.back().cloned().unwrap_or_else(|| Arc::new(Members::empty()))
    }

    /// The members as they were last shown in an epoch that `is` knows, while that is not long ago.
    #[must_use]
    pub fn members_of(&self, is: impl Fn(u32) -> bool) -> Option<Arc<Members>> {
        self.members.read().iter().rev().find(|m| is(m.epoch)).cloned()
    }

    /// Counts one look-up of `name` in `parent`, giving it a node if it has none. `None`: the kernel asked
    /// about a parent that it was never told of.
    ///
    /// The root's names are not entered: they are members or nothing, see [`Members::find`].
    pub fn enter(&self, parent: NodeId, name: &[u8]) -> Option<Entered> {
        {
            let nodes = self.nodes.read();
            nodes.slot(parent)?;
            if let Some(id) = nodes.find(parent, name) {
                return nodes.slot(id).map(|slot| slot.count(id));
            }
        }
        let (_whole, mut nodes) = self.change();
        nodes.slot(parent)?;
        if let Some(id) = nodes.find(parent, name) {
            return nodes.slot(id).map(|slot| slot.count(id));
        }
        Some(Entered { id: nodes.give(parent, name, 1), unrecorded: true, fresh: true })
    }

    /// Counts one more look-up that led to `id`, by whatever name. `None`: the kernel has forgotten it.
    pub fn count(&self, id: NodeId) -> Option<Entered> {
        self.nodes.read().slot(id).map(|slot| slot.count(id))
    }

    /// The node of `name` in `parent`, if it has one.
    #[must_use]
    pub fn find(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes.read().find(parent, name)
    }

    /// What a journal keeps of `id`.
    #[must_use]
    pub fn record(&self, id: NodeId) -> Option<NodeRecord> {
        let nodes = self.nodes.read();
        nodes.known(id).map(|Known { slot, name }| NodeRecord {
            id,
            parent: slot.parent(),
            name: name.into(),
        })
    }

    /// The member that `id` is or lies in; none for the root.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<NodeId> {
        self.nodes.read().member(id).map(|(member, _)| member)
    }

    /// A journal holds `id` now.
    pub fn recorded(&self, id: NodeId) {
        if let Some(slot) = self.nodes.read().slot(id) {
            slot.recorded.store(true, Ordering::Release);
        }
    }

    /// The kernel dropped `count` of its references to `id`. Returns the nodes that nothing needs any more: none, `id`,
    /// or `id` and directories above it that the kernel had forgotten before.
    pub fn forget(&self, id: NodeId, count: u64) -> Vec<NodeId> {
        let (_whole, mut nodes) = self.change();
        let Some(slot) = nodes.slot(id) else { return Vec::new() };
        let known = slot.lookups.load(Ordering::Relaxed);
        if known == PINNED {
            return Vec::new();
        }
        let left = u32::try_from(u64::from(known).saturating_sub(count)).unwrap_or_default();
        slot.lookups.store(left, Ordering::Relaxed);
        nodes.remove_unused(id)
    }

    /// The path of `id` below the store directory, and the parts of it: member first.
    ///
    /// `None`: no such node.
    #[must_use]
    pub fn path(&self, id: NodeId) -> Option<Vec<u8>> {
        let nodes = self.nodes.read();
        let mut parts: Vec<&[u8]> = Vec::with_capacity(12);
        let mut at = id;
        while at != ROOT {
            let Known { slot, name } = nodes.known(at)?;
            parts.push(name);
            at = slot.parent();
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// Another object is in the place of the member `id`: names in it get other nodes from now on. Returns the nodes that
    /// they had, which live on for whoever holds them.
    pub fn detach(&self, id: NodeId) -> Vec<NodeRecord> {
        let (_whole, mut nodes) = self.change();
        let nodes = &mut *nodes;
        let mut detached = Vec::new();
        for (number, chunk) in &nodes.chunks {
            for (at, Known { slot, name }) in chunk.iter() {
                let (node, parent) = (NodeId(number * CHUNK + at), slot.parent());
                if node != id && nodes.member(node).is_some_and(|(member, _)| member == id) {
                    detached.push(NodeRecord { id: node, parent, name: name.into() });
                }
            }
        }
        for node in &detached {
            let hash = nodes.hash(node.parent, &node.name);
            if let Ok(entry) = nodes.index.find_entry(hash, |known| *known == node.id) {
                entry.remove();
            }
        }
        detached
    }

    /// The node that `id` lies in; the root lies in itself.
    #[must_use]
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        if id == ROOT { Some(ROOT) } else { self.nodes.read().slot(id).map(Slot::parent) }
    }

    /// Whether new names may be looked up below `id`: its member is still shown.
    #[must_use]
    pub fn is_shown(&self, id: NodeId) -> bool {
        if id == ROOT {
            return true;
        }
        let nodes = self.nodes.read();
        nodes.member(id).is_some_and(|(_, name)| self.members().find(name).is_some())
    }

    /// Number of nodes known, the root not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.read().live
    }

    /// Whether no node is known but the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with what restores this trie, in that order: all that the kernel may hold. What it had forgotten before a name was
    /// given another node, which a journal may have restored, is left out.
    pub fn for_each(&self, mut each: impl FnMut(Kept<'_>)) {
        let nodes = self.nodes.read();
        let mut chunks: Vec<_> = nodes.chunks.iter().collect();
        chunks.sort_unstable_by_key(|(number, _)| **number);
        let all = || {
            chunks.iter().flat_map(|(number, chunk)| {
                chunk.iter().map(|(at, Known { slot, name })| {
                    let (id, parent) = (NodeId(**number * CHUNK + at), slot.parent());
                    (id, parent, name, nodes.find(parent, name) == Some(id))
                })
            })
        };
        let mut replaced = Vec::new();
        // Whose name was given another node in a directory that kept its own: the kernel had forgotten them before.
        let mut outdated = HashSet::new();
        let is_attached =
            |id: NodeId| nodes.known(id).is_some_and(|k| nodes.find(k.slot.parent(), k.name) == Some(id));
        let is_member = |id: NodeId| nodes.slot(id).is_some_and(|slot| slot.parent() == ROOT);
        for (id, parent, name, attached) in all() {
            if outdated.contains(&parent)
                || !attached && parent != ROOT && !is_member(parent) && is_attached(parent)
            {
                outdated.insert(id);
                continue;
            }
            if parent == ROOT || !attached {
                each(Kept::Node { id, parent, name });
            }
            if !attached {
                replaced.extend(nodes.member(id).map(|(member, _)| member));
            }
        }
        replaced.sort_unstable();
        replaced.dedup();
        replaced.into_iter().for_each(|member| each(Kept::Replaced(member)));
        for (id, parent, name, attached) in all() {
            if parent != ROOT && attached && !outdated.contains(&id) {
                each(Kept::Node { id, parent, name });
            }
        }
    }
}

/// Whether an index with room for `capacity` entries is worth shrinking when it has `len`: not again at once.
fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > INDEX_MIN && len * 4 < capacity
}

#[cfg(test)]
impl Nodes {
    /// Bytes that all of it takes, without what the allocator adds.
    fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.values().map(|chunk| chunk.bytes().0).sum();
        let tables = self.chunks.capacity() * (size_of::<(u64, Chunk)>() + 1)
            + self.index.capacity() * (size_of::<NodeId>() + 1);
        chunks + tables
    }
}

#[cfg(test)]
#[path = "trie_tests.rs"]
mod tests;
