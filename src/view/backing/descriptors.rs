//! Descriptors kept open, by node, and how many there may be.
//!
//! Invariants:
//! - One descriptor is kept for a node: whoever opens a second one uses the first.
//! - As many are kept, and as many operations run at once, as the process may have open files: see
//!   [`Descriptors::set_room`].
//!
//! Hard point: a process may have very few descriptors (`ulimit -n 20`). Then operations wait for each other, because one
//! that ran out in the middle would have to fail.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::view::trie::NodeId;

const SHARDS: usize = 16;
/// Most that each of the two tables keeps: enough for the directories that are being worked in; more would only hold
/// the host's memory.
const KEPT_MAX: usize = 256;
/// Most that one operation has open at once and does not keep: a stretch of a path, the next one, and a directory or
/// file; and as much again for the place of another name of a file.
pub(super) const EACH: usize = 7;

type Shard = Mutex<Vec<(NodeId, Arc<OwnedFd>)>>;

/// A small list in each shard, the last used in front.
#[derive(Debug, Default)]
struct Table {
    shards: [Shard; SHARDS],
}

/// What is kept open. All methods may be called from any thread.
#[derive(Debug)]
pub(super) struct Descriptors {
    dirs: Table,
    files: Table,
    /// Most in each table.
    keep: AtomicUsize,
    /// How often everything was closed.
    cleared: AtomicUsize,
    gate: Gate,
}

/// Of what a descriptor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Directory,
    File,
}

/// A descriptor for an operation.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) fd: Arc<OwnedFd>,
    /// Whether it was open before this operation: what it leads to may have been replaced since.
    pub(super) kept: bool,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self {
            dirs: Table::default(),
            files: Table::default(),
            keep: KEPT_MAX.into(),
            cleared: AtomicUsize::new(0),
            gate: Gate::default(),
        }
    }
}

impl Descriptors {
    /// Shares out `room` descriptors between what is kept and what `threads` operations at once need.
    pub(super) fn set_room(&self, room: usize, threads: usize) {
        let needed = threads.saturating_mul(EACH);
        let keep = room.saturating_sub(needed) / 2;
        if keep >= SHARDS {
            self.keep.store(keep.min(KEPT_MAX), Ordering::Relaxed);
            self.gate.open(None);
        } else {
            self.keep.store(0, Ordering::Relaxed);
            self.gate.open(Some((room / EACH).clamp(1, threads)));
        }
    }

    /// Waits until one more operation may have descriptors open.
    pub(super) fn enter(&self) -> Pass<'_> {
        self.gate.enter()
    }

    fn table(&self, of: Of) -> &Table {
        match of {
            Of::Directory => &self.dirs,
            Of::File => &self.files,
        }
    }

    /// The descriptor of `id`, which `open` gives if none is kept.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn get<E>(
        &self,
        of: Of,
        id: NodeId,
        open: impl FnOnce() -> Result<OwnedFd, E>,
    ) -> Result<Held, E> {
        let shard = self.table(of).shard(id);
        if let Some(fd) = shard.and_then(|shard| find(&mut shard.lock(), id)) {
            return Ok(Held { fd, kept: true });
        }
        let cleared = self.cleared.load(Ordering::Acquire);
        let opened = Arc::new(open()?);
        let keep = self.keep.load(Ordering::Relaxed) / SHARDS;
        let Some(shard) = shard else { return Ok(Held { fd: opened, kept: false }) };
        let mut kept = shard.lock();
        if let Some(fd) = find(&mut kept, id) {
            // Somebody was faster. Closing ours is a system call: not under the lock.
            drop(kept);
            return Ok(Held { fd, kept: true });
        }
        if self.cleared.load(Ordering::Acquire) != cleared {
            // Opened before everything was closed: another object may be there now.
            return Ok(Held { fd: opened, kept: false });
        }
        kept.insert(0, (id, opened.clone()));
        let fitting = keep.min(kept.len());
        let dropped = kept.split_off(fitting);
        drop(kept);
        drop(dropped);
        Ok(Held { fd: opened, kept: false })
    }

    /// Closes what is kept of `id` if it is `held`: somebody may have replaced it already.
    pub(super) fn discard(&self, of: Of, id: NodeId, held: &Held) {
        let Some(shard) = self.table(of).shard(id) else { return };
        let mut kept = shard.lock();
        let at = kept.iter().position(|(known, fd)| *known == id && Arc::ptr_eq(fd, &held.fd));
        let gone = at.map(|at| kept.remove(at));
        drop(kept);
        drop(gone);
    }

    /// Closes what is kept of `id`.
    pub(super) fn close(&self, id: NodeId) {
        for table in [&self.dirs, &self.files] {
            let Some(shard) = table.shard(id) else { continue };
            let mut kept = shard.lock();
            let gone = kept.iter().position(|(known, _)| *known == id).map(|at| kept.remove(at));
            drop(kept);
            drop(gone);
        }
    }

    /// Closes everything that is kept, and what is being opened at this moment is not kept.
    pub(super) fn clear(&self) {
        self.cleared.fetch_add(1, Ordering::AcqRel);
        for shard in self.dirs.shards.iter().chain(&self.files.shards) {
            drop(std::mem::take(&mut *shard.lock()));
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.dirs.shards.iter().chain(&self.files.shards).map(|shard| shard.lock().len()).sum()
    }
}

impl Table {
    fn shard(&self, id: NodeId) -> Option<&Shard> {
        self.shards.get(usize::try_from(id.0 % SHARDS as u64).unwrap_or_default())
    }
}

fn find(kept: &mut [(NodeId, Arc<OwnedFd>)], id: NodeId) -> Option<Arc<OwnedFd>> {
    let at = kept.iter().position(|(known, _)| *known == id)?;
    kept.get_mut(..=at)?.rotate_right(1);
    kept.first().map(|(_, fd)| fd.clone())
}

/// How many operations may run at once, if not any number.
#[derive(Debug, Default)]
struct Gate {
    /// None: any number.
    free: Mutex<Option<usize>>,
    more: Condvar,
    limited: std::sync::atomic::AtomicBool,
}

/// Permission to have [`EACH`] descriptors open, until it is dropped.
#[derive(Debug)]
pub(super) struct Pass<'a>(Option<&'a Gate>);

thread_local!(static INSIDE: Cell<usize> = const { Cell::new(0) });

impl Gate {
    /// Before the first operation only.
    fn open(&self, limit: Option<usize>) {
        *self.free.lock() = limit;
        self.limited.store(limit.is_some(), Ordering::Release);
    }

    /// An operation inside another one already has permission.
    fn enter(&self) -> Pass<'_> {
        if !self.limited.load(Ordering::Acquire) {
            return Pass(None);
        }
        if INSIDE.replace(INSIDE.get() + 1) == 0 {
            let mut free = self.free.lock();
            while *free == Some(0) {
                self.more.wait(&mut free);
            }
            *free = free.map(|free| free - 1);
        }
        Pass(Some(self))
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let Some(gate) = self.0 else { return };
        INSIDE.set(INSIDE.get().saturating_sub(1));
        if INSIDE.get() == 0 {
            let mut free = gate.free.lock();
            *free = free.map(|free| free + 1);
            gate.more.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn open() -> Result<OwnedFd, Errno> {
        Ok(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_last_used_stays() {
        let all = Descriptors::default();
        let ids = (0..10_000).map(NodeId);
        for id in ids.clone() {
            assert!(!all.get(Of::File, id, open).unwrap().kept);
            assert!(id.0 == 0 || all.get(Of::File, NodeId(0), || Err(Errno::IO)).unwrap().kept);
        }
        assert_eq!(all.count(), KEPT_MAX);
        for id in 9_990..10_000 {
            assert!(all.get(Of::File, NodeId(id), || Err(Errno::IO)).unwrap().kept, "{id}");
        }
        all.clear();
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn directories_and_files_are_kept_apart_and_closed_together() {
        let all = Descriptors::default();
        let id = NodeId(3);
        all.get(Of::File, id, open).unwrap();
        assert!(!all.get(Of::Directory, id, open).unwrap().kept);
        all.get(Of::Directory, NodeId(4), open).unwrap();
        all.close(id);
        assert_eq!(all.count(), 1);
    }

    #[test]
    fn whoever_opens_second_uses_the_first_one() {
        let all = Descriptors::default();
        let id = NodeId(3);
        let mut first = None;
        let second = all
            .get(Of::File, id, || {
                first = Some(all.get(Of::File, id, open).unwrap());
                open()
            })
            .unwrap();
        assert!(second.kept && Arc::ptr_eq(&second.fd, &first.unwrap().fd));
        assert_eq!(all.count(), 1);
    }

    #[test]
    fn what_was_opened_before_everything_was_closed_is_not_kept() {
        let all = Descriptors::default();
        let opened = all.get(Of::File, NodeId(3), || {
            all.clear();
            open()
        });
        assert!(!opened.unwrap().kept);
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn only_what_failed_is_discarded() {
        let all = Descriptors::default();
        let id = NodeId(3);
        let old = all.get(Of::File, id, open).unwrap();
        all.discard(Of::File, id, &old);
        assert_eq!(all.count(), 0);
        let new = all.get(Of::File, id, open).unwrap();
        all.discard(Of::File, id, &old);
        assert_eq!(all.count(), 1, "somebody opened another one meanwhile");
        all.discard(Of::File, id, &new);
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn little_room_is_for_operations_and_much_is_for_keeping() {
        let all = Descriptors::default();
        for (room, threads, keep, at_once) in [
            (0, 2, 0, Some(1)),
            (13, 2, 0, Some(1)),
            (14, 2, 0, Some(2)),
            (45, 2, 0, Some(2)),
            (46, 2, 16, None),
            (400, 8, 172, None),
            (1 << 30, 64, KEPT_MAX, None),
        ] {
            all.set_room(room, threads);
            let found = (all.keep.load(Ordering::Relaxed), *all.gate.free.lock());
            assert_eq!(found, (keep, at_once), "{room} for {threads}");
        }
    }

    #[test]
    fn operations_wait_for_each_other_and_never_for_themselves() {
        let all = Descriptors::default();
        all.set_room(EACH * 2, 8);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..200 {
                        let _outer = all.enter();
                        let _inner = (round % 2 == 0).then(|| all.enter());
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(*all.gate.free.lock(), Some(2));
    }
}
