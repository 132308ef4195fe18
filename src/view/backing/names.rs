//! The sorted names of the directories that are being listed.
//!
//! Responsibility: a position in a directory is the number of names before it in the order of their bytes. It is the
//! same in every server, because a store path never changes; it fits into 31 bits, which is what a 32-bit program without
//! large-file support has for it (`compat_filldir`, Linux `fs/readdir.c`); and it tells nothing of how the host's file
//! system hashes names.
//!
//! Hard points:
//! 1. One reply holds some 20 to 100 entries, so the names of a large directory are kept from one request to the next,
//!    until the listing has reached its end: otherwise it would read the directory once for each reply.
//! 2. Listings may be left in the middle, and many may be under way: what is kept is bounded ([`BYTES_MAX`]). When it is
//!    used up, large directories keep only the names that come next ([`WINDOW`]), so that listings at the same time
//!    do not displace each other's.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::view::trie::NodeId;

/// Names of this many bytes are kept in all.
const BYTES_MAX: usize = 32 << 20;
/// Names of this many bytes are kept of one listing when all names do not fit.
const WINDOW: usize = 256 << 10;
/// Listings of which names are kept.
const LISTINGS_MAX: usize = 1024;

/// The names of a directory, sorted; or some of them in a row.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// One behind the other.
    bytes: Vec<u8>,
    /// Where each one ends.
    ends: Vec<u32>,
    /// The number of the first one.
    first: usize,
    /// How many names the directory has.
    total: usize,
    /// Whether the directory was complete: see [`super::Stat::settled`].
    pub(super) settled: bool,
    /// How many members had been replaced before they were read.
    pub(super) replaced: usize,
}

impl Names {
    /// Sorts `bytes`, in which names end where `ends` says.
    pub(super) fn sorted(bytes: &[u8], ends: &[u32]) -> Self {
        let begins = std::iter::once(0).chain(ends.iter().copied());
        let mut names: Vec<&[u8]> =
            begins.zip(ends).filter_map(|(from, to)| bytes.get(from as usize..*to as usize)).collect();
        names.sort_unstable();
        Self { total: names.len(), ..Self::gather(names.into_iter()) }
    }

    fn gather<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut all = Self::default();
        for name in names {
            all.bytes.extend_from_slice(name);
            // A directory's names are far fewer bytes than that.
            all.ends.push(u32::try_from(all.bytes.len()).unwrap_or(u32::MAX));
        }
        all
    }

    /// How many names the directory has.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The name with this number, counted from 0, if it is here.
    pub(super) fn get(&self, number: usize) -> Option<&[u8]> {
        let at = number.checked_sub(self.first)?;
        let to = *self.ends.get(at)? as usize;
        let from = at.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(from..to)
    }

    /// Those from `first` on, of [`WINDOW`] bytes.
    fn window(&self, first: usize) -> Self {
        let mut bytes = 0;
        let names = (first..).map_while(|number| self.get(number)).take_while(|name| {
            let fits = bytes < WINDOW;
            bytes += name.len();
            fits
        });
        let Self { total, settled, replaced, .. } = *self;
        Self { first, total, settled, replaced, ..Self::gather(names) }
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
    /// The names of `id`, if that with the number `next` is kept, or it is known that there is none.
    pub(super) fn get(&self, id: NodeId, next: usize) -> Option<Arc<Names>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|(known, _)| *known == id)?;
        kept.get_mut(..=at)?.rotate_right(1);
        let (_, names) = kept.first()?;
        (next >= names.total || names.get(next).is_some()).then(|| names.clone())
    }

    /// Keeps the names of `id`, of which that with the number `next` is needed next, in place of earlier ones.
    pub(super) fn put(&self, id: NodeId, names: &Arc<Names>, next: usize) {
        let mut kept = self.kept.lock();
        kept.retain(|(known, _)| *known != id);
        let others: usize = kept.iter().map(|(_, names)| names.size()).sum();
        let all = others + names.size() <= BYTES_MAX;
        kept.insert(0, (id, if all { names.clone() } else { Arc::new(names.window(next)) }));
        let mut bytes = 0;
        let fits = |(_, names): &(NodeId, Arc<Names>)| {
            bytes += names.size();
            bytes <= BYTES_MAX
        };
        let fitting = kept.iter().take(LISTINGS_MAX).map(fits).take_while(|fits| *fits).count();
        let dropped = kept.split_off(fitting);
        drop(kept);
        drop(dropped);
    }

    /// Nobody lists `id` any more.
    pub(super) fn drop(&self, id: NodeId) {
        let mut kept = self.kept.lock();
        let gone = kept.iter().position(|(known, _)| *known == id).map(|at| kept.remove(at));
        drop(kept);
        drop(gone);
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
        Names::sorted(&bytes, &ends)
    }

    proptest! {
        #[test]
        fn names_come_back_in_the_order_of_their_bytes(mut all in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..50),
                                                       first in 0..60_usize) {
            let sorted = names(&all);
            all.sort();
            prop_assert_eq!(sorted.total(), all.len());
            let found: Vec<_> = (0..all.len()).map(|at| sorted.get(at).unwrap().to_vec()).collect();
            prop_assert_eq!(&found, &all);
            prop_assert_eq!(sorted.get(sorted.total()), None);
            let window = sorted.window(first);
            prop_assert_eq!(window.total(), all.len());
            for (at, name) in all.iter().enumerate() {
                prop_assert_eq!(window.get(at), (at >= first).then_some(name.as_slice()));
            }
        }
    }

    /// A directory of 100 bytes a name.
    fn directory(count: usize) -> Arc<Names> {
        Arc::new(names(&(0..count).map(|n| format!("{n:0100}").into_bytes()).collect::<Vec<_>>()))
    }

    /// A window ends where it is full, is counted in bytes, and is of the same listing.
    #[test]
    fn a_window_is_a_part_of_its_directory() {
        let mut all = names(&(0..10_000).map(|n| format!("{n:0128}").into_bytes()).collect::<Vec<_>>());
        assert_eq!(all.size(), 10_000 * (128 + 4));
        assert!(!all.window(0).settled);
        (all.settled, all.replaced) = (true, 7);
        let window = all.window(3);
        assert_eq!((window.ends.len(), window.first, window.total), (WINDOW / 128, 3, 10_000));
        assert_eq!((window.settled, window.replaced), (true, 7));
    }

    /// However many large directories are listed at once, each has what comes next, and together they are bounded.
    #[test]
    fn listings_at_the_same_time_do_not_displace_each_other() {
        let listings = Listings::default();
        let large = directory(100_000);
        // A hundred of them in turns, with replies of 100 names.
        let (mut read, mut next) = (0, 0);
        while next < 20_000 {
            for id in (0..100).map(NodeId) {
                if listings.get(id, next).is_none() {
                    read += 1;
                    listings.put(id, &large, next);
                }
                assert!(next == 0 || listings.get(id, large.total()).is_some(), "the end is known");
            }
            next += 100;
        }
        assert!(read < 100 * (20_000 * 100 / WINDOW + 3), "directories are read {read} times");
        let bytes: usize = listings.kept.lock().iter().map(|(_, names)| names.size()).sum();
        assert!(bytes <= BYTES_MAX);
        assert!(listings.get(NodeId(99), 499).is_none(), "a window has nothing before it");
        assert_eq!(large.window(500).ends.len(), WINDOW / 100 + 1);
    }

    #[test]
    fn what_is_left_in_the_middle_makes_room() {
        let listings = Listings::default();
        let kept = || (0..5000).filter(|id| listings.get(NodeId(*id), 0).is_some()).count();
        let small = directory(1);
        (0..5000).for_each(|id| listings.put(NodeId(id), &small, 0));
        assert_eq!(kept(), LISTINGS_MAX);
        assert!(listings.get(NodeId(4999), 0).is_some(), "the last one is kept");
        listings.drop(NodeId(4999));
        assert!(listings.get(NodeId(4999), 0).is_none());
        let largest = directory(BYTES_MAX / 104 - 2000);
        listings.put(NodeId(1), &largest, 0);
        listings.put(NodeId(2), &small, 0);
        assert!(listings.get(NodeId(1), largest.total() - 1).is_some(), "one that just fits is kept whole");
    }
}
