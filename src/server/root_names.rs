//! What the kernel was told of names at the root, and how long it shows that after a switch.
//!
//! The root is the one directory that a reload changes. The kernel can be notified to forget a name, but for that it locks the
//! directory: it waits for whoever lists it, without end if that is into memory which is never there, and everybody else waits
//! behind it. So what may change is told for a second, and a switch waits until that has passed. No lock is needed for it.
//!
//! Invariants:
//! - When [`RootNames::expire`] has returned, this server gives no answer any more that was decided before the switch, and
//!   what was told with a limited lifetime has expired, but for hard point 2.
//! - Nobody who answers waits here for longer than another thread takes to write an answer.
//!
//! Hard points:
//! 1. An answer takes time between its decision and the kernel. So it is decided again if there was a switch in between, and
//!    given under a lock that a switch takes once ([`RootNames::decide`]).
//! 2. A lifetime begins when the reader takes the answer in (`fuse_lookup_name`, `fuse_dentry_revalidate`), which is when it is
//!    scheduled after the answer has woken it. [`MARGIN`] is for that, and for ticks of the kernel's clock (10 ms at most). A
//!    reader that does not run for longer shows others what it was told for one more lifetime, and no longer. A listing that is
//!    copied to its reader's memory may stop there for any time, and enters its names (`fuse_direntplus_link`) after that.
//! 3. The kernel must not cache the root's listing either: who reads a cached one is given it under the lock of its page
//!    (`fuse_readdir_cached`). It caches one whose end is an empty answer; [`END`] is none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};

use super::stops;
use crate::protocol::handshake::{Lifetime, Promised};
use crate::view::trie::PathTrie;

/// Seconds of a limited lifetime.
const LIMITED: u64 = 1;
/// Seconds of an endless one: what the kernel was told holds until it is invalidated.
pub(super) const ENDLESS: u64 = u32::MAX as u64;
/// Hard point 2.
const MARGIN: Duration = Duration::from_millis(100);

/// Bytes of the end of the root's listing: fewer than an entry has, so the kernel finds none in it (`parse_dirplusfile`).
pub(super) const END: usize = 8;

fn seconds(lifetime: Lifetime) -> u64 {
    match lifetime {
        Lifetime::Limited if stops::limits() => LIMITED,
        Lifetime::Limited | Lifetime::Endless => ENDLESS,
    }
}

/// See above.
#[derive(Debug)]
pub struct RootNames {
    promise: Promised,
    begun: Instant,
    /// Held while an answer is given.
    giving: RwLock<()>,
    /// When the last absence expires that was told, and the last name: milliseconds after `begun`.
    absences: AtomicU64,
    names: AtomicU64,
}

/// Whoever has it may give an answer.
#[derive(Debug)]
pub(super) struct Giving<'a>(
    #[expect(dead_code, reason = "dropping it lets a switch end")] RwLockReadGuard<'a, ()>,
);

impl RootNames {
    /// Of a server that promises this. An earlier one may have told something just now, if there was one.
    #[must_use]
    pub fn new(promise: Promised, resumed: bool) -> Self {
        let new = Self {
            promise,
            begun: Instant::now(),
            giving: RwLock::new(()),
            absences: AtomicU64::new(0),
            names: AtomicU64::new(0),
        };
        if resumed {
            new.told_absence();
            new.told_name();
        }
        new
    }

    /// How long the name of a member may be cached, in seconds.
    pub(super) fn of_names(&self) -> u64 {
        seconds(self.promise.names)
    }

    /// The same of an absence.
    pub(super) fn of_absences(&self) -> u64 {
        seconds(self.promise.absences)
    }

    /// What `decide` decides about the members that are shown when it is given.
    pub(super) fn decide<T>(&self, trie: &PathTrie, mut decide: impl FnMut() -> T) -> (T, Giving<'_>) {
        loop {
            let before = trie.members().epoch;
            let decided = decide();
            let giving = Giving(self.giving.read());
            if trie.members().epoch == before {
                return (decided, giving);
            }
        }
    }

    /// The absence of a name was told.
    pub(super) fn told_absence(&self) {
        self.absences.store(self.expiry(), Ordering::Relaxed);
    }

    /// A name was told.
    pub(super) fn told_name(&self) {
        if self.promise.names == Lifetime::Limited {
            self.names.store(self.expiry(), Ordering::Relaxed);
        }
    }

    fn expiry(&self) -> u64 {
        let life = Duration::from_secs(LIMITED) + MARGIN;
        u64::try_from((self.begun.elapsed() + life).as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until the kernel shows nothing any more that was told before the trie was switched: absences, if names were
    /// `added`, and names, if some were `removed`.
    pub(super) fn expire(&self, added: bool, removed: bool) {
        // Whoever decided before has given the answer then, and noted when.
        drop(self.giving.write());
        let last = |of: &AtomicU64, counts: bool| if counts { of.load(Ordering::Relaxed) } else { 0 };
        let until = last(&self.absences, added).max(last(&self.names, removed));
        std::thread::sleep(Duration::from_millis(until).saturating_sub(self.begun.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::values::{StorePath, View};

    const NAME: &str = "00000000000000000000000000000000-name";

    fn view() -> View {
        [(StorePath::new(NAME).unwrap(), 1)].into_iter().collect()
    }

    fn at_risk(all: &RootNames) -> (bool, bool) {
        (all.absences.load(Ordering::Relaxed) > 0, all.names.load(Ordering::Relaxed) > 0)
    }

    #[test]
    fn only_what_expires_and_was_told_is_waited_for() {
        let [prunes, grows] = [true, false].map(|prune| RootNames::new(Promised::new(prune), false));
        assert_eq!([at_risk(&prunes), at_risk(&grows)], [(false, false); 2]);
        [&prunes, &grows].into_iter().for_each(RootNames::told_name);
        assert_eq!([at_risk(&prunes), at_risk(&grows)], [(false, true), (false, false)]);
        prunes.told_absence();
        assert_eq!(at_risk(&prunes), (true, true));
        assert_eq!(at_risk(&RootNames::new(Promised::new(true), true)), (true, true), "by an earlier server");
        let before = Instant::now();
        prunes.expire(false, false);
        grows.expire(true, true);
        assert!(before.elapsed() < MARGIN, "nothing is at risk");
        prunes.expire(true, false);
        assert!(before.elapsed() >= Duration::from_secs(LIMITED));
    }

    /// A switch between the decision and the answer: it is decided again, and what is given after the switch is about it.
    #[test]
    fn what_was_decided_before_a_switch_is_not_given_after_it() {
        let (all, trie) = (RootNames::new(Promised::new(false), false), PathTrie::new());
        let mut asked = 0;
        let (found, giving) = all.decide(&trie, || {
            let found = trie.members().find(NAME.as_bytes()).is_some();
            if asked == 0 {
                trie.switch(&view(), 2);
            }
            asked += 1;
            found
        });
        assert_eq!((found, asked), (true, 2));
        std::thread::scope(|scope| {
            let (tell, told) = channel();
            scope.spawn({
                let all = &all;
                move || {
                    all.expire(true, true);
                    tell.send(()).unwrap();
                }
            });
            // It waits for the lock, or has not come to that.
            assert!(told.try_recv().is_err(), "it did not wait for an answer");
            drop(giving);
            told.recv().unwrap();
        });
    }
}
