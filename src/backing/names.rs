//! The sorted names of the directories that are being listed.
//!
//! Responsibility: a position in a directory is the number of names before it in the order of their bytes. It is the
//! same in every server, because a store path never changes; it fits into 31 bits, which is what a 32-bit program without
//! large-file support has for it (`compat_filldir`, Linux `fs/readdir.c`); and it tells nothing of how the host's file
//! system hashes names.
//!
//! Hard points:
//! 1. One reply holds some 20 to 100 entries, so the names of a large directory are kept from one request to the next,
//!    until its end has been told: otherwise a listing would read it once for each reply.
//! 2. A listing may be left in the middle: what is kept is bounded by [`BYTES_MAX`], but always at least
//!    [`LISTINGS_MIN`] of them, however large, so that listings at the same time do not throw out each other's.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::trie::NodeId;

/// Names of this many bytes are kept in all.
const BYTES_MAX: usize = 32 << 20;
/// So many listings are kept whatever their size.
const LISTINGS_MIN: usize = 16;
/// And no more than so many.
const LISTINGS_MAX: usize = 64;

/// The names of a directory, sorted.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// One behind the other.
    bytes: Vec<u8>,
    /// Where each one ends.
    ends: Vec<u32>,
    /// Whether the directory was complete: see [`super::Stat::settled`].
    pub(super) settled: bool,
}

impl Names {
    /// Sorts `bytes`, in which names end where `ends` says.
    pub(super) fn sorted(bytes: &[u8], ends: &[u32], settled: bool) -> Self {
        let begins = std::iter::once(0).chain(ends.iter().copied());
        let mut names: Vec<&[u8]> =
            begins.zip(ends).filter_map(|(from, to)| bytes.get(from as usize..*to as usize)).collect();
        names.sort_unstable();
        let mut sorted =
            Self { bytes: Vec::with_capacity(bytes.len()), ends: Vec::with_capacity(names.len()), settled };
        for name in names {
            sorted.bytes.extend_from_slice(name);
            // No longer than `bytes`, whose ends are such numbers.
            sorted.ends.push(u32::try_from(sorted.bytes.len()).unwrap_or(u32::MAX));
        }
        sorted
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The name at `at`, counted from 0.
    pub(super) fn get(&self, at: usize) -> Option<&[u8]> {
        let to = *self.ends.get(at)? as usize;
        let from = at.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(from..to)
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.ends.len() * 4
    }
}

/// Listings under way, the last used in front.
#[derive(Debug, Default)]
pub(super) struct Listings {
    kept: Mutex<Vec<(NodeId, Arc<Names>)>>,
}

impl Listings {
    /// The names of `id`, if they are kept.
    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Names>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|(known, _)| *known == id)?;
        kept.get_mut(..=at)?.rotate_right(1);
        kept.first().map(|(_, names)| names.clone())
    }

    /// Keeps the names of `id`, in place of earlier ones.
    pub(super) fn put(&self, id: NodeId, names: Arc<Names>) {
        let mut kept = self.kept.lock();
        kept.retain(|(known, _)| *known != id);
        kept.insert(0, (id, names));
        let mut bytes = 0;
        let fits = |(at, (_, names)): (usize, &(NodeId, Arc<Names>))| {
            bytes += names.size();
            at < LISTINGS_MIN || at < LISTINGS_MAX && bytes <= BYTES_MAX
        };
        let fitting = kept.iter().enumerate().map(fits).take_while(|fits| *fits).count();
        let dropped = kept.split_off(fitting);
        drop(kept);
        drop(dropped);
    }

    /// Nobody lists `id` any more, or its names may have changed.
    pub(super) fn drop(&self, id: NodeId) {
        let mut kept = self.kept.lock();
        let gone = kept.iter().position(|(known, _)| *known == id).map(|at| kept.remove(at));
        drop(kept);
        drop(gone);
    }

    pub(super) fn clear(&self) {
        drop(std::mem::take(&mut *self.kept.lock()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(all: &[Vec<u8>]) -> Names {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for name in all {
            bytes.extend_from_slice(name);
            ends.push(bytes.len() as u32);
        }
        Names::sorted(&bytes, &ends, true)
    }

    proptest! {
        #[test]
        fn names_come_back_in_the_order_of_their_bytes(mut all in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..50)) {
            let sorted = names(&all);
            all.sort();
            prop_assert_eq!(sorted.len(), all.len());
            let found: Vec<_> = (0..all.len()).map(|at| sorted.get(at).unwrap().to_vec()).collect();
            prop_assert_eq!(found, all);
            prop_assert_eq!(sorted.get(sorted.len()), None);
        }
    }

    #[test]
    fn few_large_listings_are_kept_and_many_small_ones_up_to_a_number() {
        let listings = Listings::default();
        let large = Arc::new(names(&[vec![b'x'; BYTES_MAX]]));
        let small = Arc::new(names(&[b"x".to_vec()]));
        let kept = || (0..1000).filter(|id| listings.get(NodeId(*id)).is_some()).count();
        (0..100).for_each(|id| listings.put(NodeId(id), large.clone()));
        assert_eq!(kept(), LISTINGS_MIN);
        assert!(listings.get(NodeId(99)).is_some(), "the last one is");
        (0..1000).for_each(|id| listings.put(NodeId(id), small.clone()));
        assert_eq!(kept(), LISTINGS_MAX);
        listings.put(NodeId(999), large);
        assert_eq!(kept(), LISTINGS_MIN, "it replaced the one of before, and does not fit beside many");
        listings.drop(NodeId(999));
        assert!(listings.get(NodeId(999)).is_none());
        listings.clear();
        assert_eq!(kept(), 0);
    }
}
