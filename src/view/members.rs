//! The members as they are on disk: which are gone, and which have been replaced by a repair.
//!
//! Responsibility: remembers what each member was when it was last examined, and watches the store directory
//! (inotify(7)) for those whose names change. What the kernel has cached of a damaged member would stay for ever
//! otherwise, as nobody asks again for it.
//!
//! Invariant: what the journal holds of a member is an object that everything which the kernel has cached of it belongs to.
//! So it is written before the first answer about a member, and after what was cached of an earlier object has been
//! invalidated. A server that finds another object there than the journal says invalidates, whenever it was replaced.
//!
//! Hard points:
//! 1. The store of a busy host changes many times a second: a name that is no member costs a look at the table of names.
//! 2. Where the directory cannot be watched (no `/proc`, a file system of another machine) a member that was replaced
//!    is noticed when somebody looks it up, and at a reload.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::ServedView;
use crate::sys;
use crate::view::backing::Identity;
use crate::view::trie::NodeId;

/// What was last known of each member.
#[derive(Debug, Default)]
pub(super) struct MembersOnDisk {
    last: Mutex<HashMap<NodeId, Last>>,
    /// How often one was seen to be another object.
    replaced: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    /// None: it was never there.
    identity: Option<Identity>,
    gone: bool,
    /// The object that the kernel may have cached something of: what the journal holds.
    cached: Option<Identity>,
}

/// Whether a member is the object that it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has not been examined before.
    First,
    Same,
    /// It was gone.
    Back,
    /// Another object is in its place.
    Replaced,
}

impl MembersOnDisk {
    /// What an earlier server knew.
    pub(super) fn restore(&self, id: NodeId, identity: Identity) {
        let identity = Some(identity);
        self.last.lock().insert(id, Last { identity, gone: false, cached: identity });
    }

    /// Something was put in the place of the member `id`: it is another object, even if it cannot be told from the one
    /// before, which was made in the same tick of the clock or has left it its inode number.
    pub(super) fn put(&self, id: NodeId) {
        if let Some(last) = self.last.lock().get_mut(&id) {
            last.identity = None;
        }
    }

    /// The kernel has cached nothing, from now on, but of what the member `id` is. Returns what that is.
    pub(super) fn is_cached(&self, id: NodeId) -> Option<Identity> {
        let mut all = self.last.lock();
        let last = all.get_mut(&id)?;
        last.cached = last.identity.or(last.cached);
        last.cached
    }

    /// What the kernel may have cached something of.
    pub(super) fn for_each_cached(&self, mut each: impl FnMut(NodeId, Identity)) {
        for (id, last) in self.last.lock().iter() {
            last.cached.inspect(|identity| each(*id, *identity));
        }
    }

    /// The member `id` is there, and is this object.
    pub(super) fn found(&self, id: NodeId, identity: Identity) -> Seen {
        let mut last = self.last.lock();
        let cached = last.get(&id).and_then(|last| last.cached);
        let seen = match last.insert(id, Last { identity: Some(identity), gone: false, cached }) {
            None => return Seen::First,
            Some(Last { identity: Some(before), gone: false, .. }) if before == identity => {
                return Seen::Same;
            }
            Some(Last { gone: true, .. }) => Seen::Back,
            Some(_) => Seen::Replaced,
        };
        // Under the lock: whoever sees the new object as the same one sees this count as well.
        self.replaced.fetch_add(1, Ordering::Release);
        seen
    }

    /// How many members have been replaced so far: what was found of the store while this has changed may be of an object
    /// that is no more.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// The member `id` is not there; returns whether that is news.
    pub(super) fn is_gone(&self, id: NodeId) -> bool {
        let mut all = self.last.lock();
        let last = all.entry(id).or_insert(Last { identity: None, gone: false, cached: None });
        !std::mem::replace(&mut last.gone, true)
    }
}

/// A watch of the store directory.
#[derive(Debug)]
pub struct MemberWatch(Option<OwnedFd>);

impl MemberWatch {
    /// Watches `store`, if that can be had.
    #[must_use]
    pub fn new(store: impl AsFd) -> Self {
        let failed = |error: &io::Error| {
            tracing::warn!(%error, "cannot watch the store directory; a store path that is repaired shows at the next reload (fs.inotify.max_user_instances limits how many views can watch)");
        };
        Self(watch(store).inspect_err(failed).ok())
    }

    /// Examines all members once, then those whose names change, for ever.
    pub fn run(self, view: &ServedView) {
        view.check_members();
        let Some(events) = self.0 else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(events, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    view.check_members();
                }
                Ok(event) => {
                    let put = event.events().intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                    event.file_name().inspect(|name| view.check_member(name.to_bytes(), put));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "the store directory is watched no more");
                    return;
                }
            }
        }
    }
}

fn watch(store: impl AsFd) -> io::Result<OwnedFd> {
    let events = inotify::init(CreateFlags::CLOEXEC)?;
    let wanted = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, sys::path_of(store), wanted)?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_first_the_same_replaced_gone_and_back() {
        let all = MembersOnDisk::default();
        let (id, one, other) = (NodeId(2), Identity::Born((1, 1)), Identity::Born((1, 2)));
        assert_eq!(all.found(id, one), Seen::First);
        assert_eq!((all.found(id, one), all.replaced()), (Seen::Same, 0));
        assert_eq!((all.found(id, other), all.replaced()), (Seen::Replaced, 1));
        assert_eq!(all.found(id, Identity::Inode(1)), Seen::Replaced);
        assert!(all.is_gone(id) && !all.is_gone(id), "told once");
        assert_eq!((all.found(id, one), all.replaced()), (Seen::Back, 3));
        assert_eq!((all.found(id, one), all.replaced()), (Seen::Same, 3));
        assert!(all.is_gone(NodeId(3)));
        assert_eq!(all.found(NodeId(3), one), Seen::Back);
        all.put(NodeId(3));
        assert_eq!(all.found(NodeId(3), one), Seen::Replaced, "whatever it looks like");
        all.put(NodeId(4));
        assert_eq!(all.found(NodeId(4), one), Seen::First);
    }

    /// A server that is killed before the kernel's caches are invalidated leaves that to the next one.
    #[test]
    fn what_the_kernel_has_cached_is_what_it_was_until_it_is_invalidated() {
        let (all, id) = (MembersOnDisk::default(), NodeId(2));
        let (one, other) = (Identity::Born((1, 1)), Identity::Inode(2));
        let cached = |all: &MembersOnDisk| {
            let mut cached = Vec::new();
            all.for_each_cached(|id, identity| cached.push((id, identity)));
            cached
        };
        assert_eq!(all.found(id, one), Seen::First);
        assert_eq!((all.is_cached(id), cached(&all)), (Some(one), vec![(id, one)]));
        assert_eq!((all.found(id, other), cached(&all)), (Seen::Replaced, vec![(id, one)]));
        let next = MembersOnDisk::default();
        cached(&all).into_iter().for_each(|(id, identity)| next.restore(id, identity));
        assert_eq!(next.found(id, other), Seen::Replaced);
        assert_eq!((all.is_cached(id), cached(&all)), (Some(other), vec![(id, other)]));
        assert_eq!(all.is_cached(NodeId(3)), None);
    }
}
