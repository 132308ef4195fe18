//! A chunk of the trie: the slots of [`CHUNK`] ids that follow one another, and the names of their nodes.
//!
//! Invariant: what a slot takes is bounded by a few hundred bytes, whatever the ids are. A server gives ids one after another, but a
//! journal that a hostile one wrote names them as far apart as it likes.
//!
//! Hard point: slots lie one behind the other by their ids where there is one for nearly each, and are sorted pairs otherwise. A few
//! ids may be skipped in the first form, and what is left over after nodes were forgotten stays in it. From [`DENSE`] slots on there is
//! always a place for each id: then that costs less than a hundred bytes for each.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{Entered, NodeId, PINNED};

/// Slots of one chunk: 24 KiB, with names of about as much.
pub(super) const CHUNK: u64 = 1024;
/// Slots that are pairs, at most.
const DENSE: usize = 256;
/// Ids that may be skipped without that the slots become pairs.
const GAP: usize = 8;

#[derive(Debug)]
pub(super) struct Slot {
    /// Never 0, so that an empty slot needs no mark of its own.
    parent: NonZeroU64,
    /// How often the kernel was told of the node, less what it has forgotten; [`PINNED`].
    pub(super) lookups: AtomicU32,
    /// How many slots have this one as their parent.
    pub(super) children: u32,
    /// Where the name begins among those of the chunk, and its length.
    name_at: u32,
    name_len: u16,
    /// Whether a journal is known to hold this node.
    pub(super) recorded: AtomicBool,
}

/// Hard point 1 of the trie.
const _: () = assert!(size_of::<Option<Slot>>() == 24);

impl Slot {
    pub(super) fn parent(&self) -> NodeId {
        NodeId(self.parent.get())
    }

    pub(super) fn is_unused(&self) -> bool {
        self.children == 0 && self.lookups.load(Ordering::Relaxed) == 0
    }

    pub(super) fn count(&self, id: NodeId) -> Entered {
        // A count that reaches PINNED stays there: the node is kept, which is always safe.
        let before = self.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1));
        Entered { id, unrecorded: !self.recorded.load(Ordering::Acquire), fresh: before == Ok(0) }
    }
}

/// A slot with the name of its node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) slot: &'a Slot,
    pub(super) name: &'a [u8],
}

/// The slots of a chunk, by their places in it.
#[derive(Debug)]
enum Slots {
    Near(Vec<Option<Slot>>),
    /// Sorted by their places.
    Far(Vec<(u16, Slot)>),
}

impl Slots {
    fn get(&self, at: usize) -> Option<&Slot> {
        match self {
            Self::Near(slots) => slots.get(at)?.as_ref(),
            Self::Far(slots) => slots.get(place(slots, at).ok()?).map(|(_, slot)| slot),
        }
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Slot> {
        match self {
            Self::Near(slots) => slots.get_mut(at)?.as_mut(),
            Self::Far(slots) => {
                let found = place(slots, at).ok()?;
                slots.get_mut(found).map(|(_, slot)| slot)
            }
        }
    }

    /// Puts a slot at a place that has none; `live` is how many there are.
    fn put(&mut self, at: usize, slot: Slot, live: usize) {
        match self {
            Self::Near(slots) if live >= DENSE || at <= slots.len() + GAP => put_near(slots, at, slot),
            Self::Near(slots) => {
                let pairs = (0..).zip(std::mem::take(slots)).filter_map(|(at, slot)| Some((at, slot?)));
                let mut far = pairs.collect();
                put_far(&mut far, at, slot);
                *self = Self::Far(far);
            }
            Self::Far(slots) if live >= DENSE => {
                let mut near = Vec::new();
                std::mem::take(slots).into_iter().for_each(|(at, slot)| put_near(&mut near, at.into(), slot));
                put_near(&mut near, at, slot);
                *self = Self::Near(near);
            }
            Self::Far(slots) => put_far(slots, at, slot),
        }
    }

    fn take(&mut self, at: usize) -> Option<Slot> {
        match self {
            Self::Near(slots) => slots.get_mut(at)?.take(),
            Self::Far(slots) => place(slots, at).ok().map(|found| slots.remove(found).1),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &Slot)> {
        let (near, far) = match self {
            Self::Near(slots) => (&slots[..], &[][..]),
            Self::Far(slots) => (&[][..], &slots[..]),
        };
        let near = (0..).zip(near).filter_map(|(at, slot)| Some((at, slot.as_ref()?)));
        near.chain(far.iter().map(|(at, slot)| (u64::from(*at), slot)))
    }
}

/// Where the slot with the place `at` is among sorted ones, or would be.
fn place(slots: &[(u16, Slot)], at: usize) -> Result<usize, usize> {
    slots.binary_search_by_key(&at, |(at, _)| usize::from(*at))
}

fn put_near(slots: &mut Vec<Option<Slot>>, at: usize, slot: Slot) {
    if slots.len() <= at {
        slots.resize_with(at + 1, || None);
    }
    if let Some(place) = slots.get_mut(at) {
        *place = Some(slot);
    }
}

fn put_far(slots: &mut Vec<(u16, Slot)>, at: usize, slot: Slot) {
    // A place is below `CHUNK`.
    if let (Err(place), Ok(number)) = (place(slots, at), u16::try_from(at)) {
        slots.insert(place, (number, slot));
    }
}

/// See above.
#[derive(Debug)]
pub(super) struct Chunk {
    slots: Slots,
    /// Names of all nodes that the chunk ever held, one behind the other.
    names: Vec<u8>,
    live: usize,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { slots: Slots::Near(Vec::new()), names: Vec::new(), live: 0 }
    }
}

impl Chunk {
    fn known<'a>(&'a self, slot: &'a Slot) -> Option<Known<'a>> {
        let (from, len) = (slot.name_at as usize, usize::from(slot.name_len));
        Some(Known { slot, name: self.names.get(from..from + len)? })
    }

    /// What is at the place `at`.
    pub(super) fn get(&self, at: usize) -> Option<Known<'_>> {
        self.known(self.slots.get(at)?)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Slot> {
        self.slots.get_mut(at)
    }

    /// Puts a node at the place `at`, which has none. False: that cannot be.
    #[must_use]
    pub(super) fn put(&mut self, at: usize, parent: NodeId, name: &[u8], lookups: u32) -> bool {
        let (Some(number), Ok(name_at), Ok(name_len)) =
            (NonZeroU64::new(parent.0), u32::try_from(self.names.len()), u16::try_from(name.len()))
        else {
            return false;
        };
        self.names.extend_from_slice(name);
        let slot = Slot {
            parent: number,
            lookups: AtomicU32::new(lookups),
            children: 0,
            name_at,
            name_len,
            recorded: AtomicBool::new(lookups == PINNED),
        };
        self.slots.put(at, slot, self.live);
        if at + 1 == CHUNK as usize {
            self.names.shrink_to_fit();
        }
        self.live += 1;
        true
    }

    /// Takes the node at the place `at` away. False: there is none.
    #[must_use]
    pub(super) fn remove(&mut self, at: usize) -> bool {
        let found = self.slots.take(at).is_some();
        self.live -= usize::from(found);
        found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// All nodes with their places, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Known<'_>)> {
        self.slots.iter().filter_map(|(at, slot)| Some((at, self.known(slot)?)))
    }

    /// Bytes that it takes besides itself, and those of them that are for names.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> (usize, usize) {
        let slots = match &self.slots {
            Slots::Near(slots) => slots.capacity() * size_of::<Option<Slot>>(),
            Slots::Far(slots) => slots.capacity() * size_of::<(u16, Slot)>(),
        };
        (slots + self.names.capacity(), self.names.capacity())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever form the slots have, they are those that were put in and not taken out.
        #[test]
        fn a_chunk_agrees_with_a_map(steps in proptest::collection::vec((0..CHUNK as usize, 0..4u8), 1..1500), near in 1..CHUNK as usize) {
            let mut chunk = Chunk::default();
            let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
            for (number, (at, kind)) in steps.into_iter().enumerate() {
                // Some beside others, some all over.
                let at = if kind == 1 { at % near } else { at };
                let place = at as u64;
                if kind == 0 {
                    prop_assert_eq!(chunk.remove(at), model.remove(&place).is_some());
                } else if let Entry::Vacant(vacant) = model.entry(place) {
                    let name = number.to_le_bytes();
                    prop_assert!(chunk.put(at, NodeId(7), &name, 1));
                    vacant.insert(name.to_vec());
                }
                prop_assert_eq!(chunk.get(at).map(|known| known.name), model.get(&place).map(Vec::as_slice));
                prop_assert_eq!(chunk.get_mut(at).is_some(), model.contains_key(&place));
                prop_assert_eq!(chunk.is_empty(), model.is_empty());
            }
            let all: BTreeMap<u64, Vec<u8>> = chunk.iter().map(|(at, known)| (at, known.name.to_vec())).collect();
            prop_assert_eq!(&all, &model);
            prop_assert!(chunk.iter().map(|(at, _)| at).is_sorted());
        }
    }
}
