//! The store's own blocks, asked for ahead of the view: by several threads, so that the disk has more than one question at a time and no
//! thread of the server waits for it.
//!
//! Bytes that were brought into the store's cache for the view are dropped from there when the view has them: otherwise they would be there twice. What
//! was there before stays.

use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

use super::below::Below;
use super::plan::{Plan, Step};
use crate::view::trace::records::PAGE;

/// Threads that ask the disk.
pub(super) const THREADS: usize = 4;
/// Bytes that they are ahead of the view at most.
const AHEAD: u64 = 32 << 20;
/// Bytes of one question: of a longer one the kernel leaves out what is more than the disk reads ahead (`force_page_cache_ra`).
const PIECE: u64 = 128 << 10;
/// How long they rest when they are.
const REST: Duration = Duration::from_millis(1);

/// What threads have in common.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    plan: &'a Plan,
    store: BorrowedFd<'a>,
    /// The next one of which the attributes are asked for, and the next file.
    next: [AtomicUsize; 2],
    /// Bytes that the view has; none: it is not asked for them.
    served: Option<&'a AtomicU64>,
    /// Bytes that the disk was asked for, and how many it may be.
    asked: AtomicU64,
    budget: u64,
    /// Files whose bytes were brought.
    brought: Vec<AtomicBool>,
    over: AtomicBool,
}

impl<'a> Blocks<'a> {
    /// Of what `plan` asks for, in `store`. `served` tells how many bytes the view was asked for.
    pub(super) fn new(
        plan: &'a Plan,
        store: BorrowedFd<'a>,
        served: Option<&'a AtomicU64>,
        budget: u64,
    ) -> Self {
        let brought = plan.bytes.iter().map(|_| AtomicBool::new(false)).collect();
        Self {
            plan,
            store,
            next: Default::default(),
            served,
            asked: AtomicU64::new(0),
            budget,
            brought,
            over: AtomicBool::new(false),
        }
    }

    /// Ends all threads soon.
    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// What a thread does.
    pub(super) fn work(&self) {
        let mut below = Below::new(self.store);
        while let Some(path) = self.take(0).and_then(|at| self.plan.blocks.get(at)) {
            // What is not there is for the view to say.
            let _ = below.stat(path);
        }
        while let Some(at) = self.take(1)
            && let Some(step) = self.plan.bytes.get(at)
        {
            let asked = self.asked.fetch_add(step.bytes(), Ordering::Relaxed);
            if asked > self.budget {
                return;
            }
            while self.served.is_some_and(|served| asked > served.load(Ordering::Relaxed) + AHEAD) {
                std::thread::sleep(REST);
                if self.over.load(Ordering::Relaxed) {
                    return;
                }
            }
            if bring(&mut below, step).unwrap_or(false)
                && let Some(brought) = self.brought.get(at)
            {
                brought.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether nothing is left to ask for.
    pub(super) fn is_done(&self) -> bool {
        let next = self.next.get(1).map_or(0, |next| next.load(Ordering::Relaxed));
        next >= self.plan.bytes.len() + THREADS || self.asked.load(Ordering::Relaxed) > self.budget
    }

    /// The view does not get what was brought for the steps from `at` on.
    pub(super) fn drop_rest(&self, below: &mut Below<'_>, at: usize) {
        (at..self.plan.bytes.len()).for_each(|at| self.drop_file(below, at));
    }

    /// The view has the file of this step.
    pub(super) fn drop_file(&self, below: &mut Below<'_>, at: usize) {
        if self.brought.get(at).is_some_and(|brought| brought.load(Ordering::Relaxed))
            && let Some(step) = self.plan.bytes.get(at)
            && let Ok(file) = below.file(step.path())
        {
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        }
    }

    fn take(&self, which: usize) -> Option<usize> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.next.get(which)?.fetch_add(1, Ordering::Relaxed))
    }
}

/// Asks the disk for what `step` reads; whether nothing of it was there.
fn bring(below: &mut Below<'_>, step: &Step) -> Result<bool, Errno> {
    let Step::Read { path, ranges } = step else { return Ok(false) };
    let file = below.file(path)?;
    let mut was_there = false;
    for pages in ranges.iter() {
        let (from, length) = (pages.first * PAGE, u64::from(pages.count) * PAGE);
        was_there |= is_cached(file.as_fd(), from);
        for at in (0..length).step_by(PIECE as usize) {
            let piece = NonZeroU64::new(PIECE.min(length - at));
            rustix::fs::fadvise(&file, from + at, piece, Advice::WillNeed)?;
        }
    }
    Ok(!was_there)
}

/// Whether the page at `from` is in memory (preadv2(2), `RWF_NOWAIT`). Where that cannot be told, it may be.
fn is_cached(file: BorrowedFd<'_>, from: u64) -> bool {
    let mut byte = [0];
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], from, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}
