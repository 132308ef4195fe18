//! The store's own blocks, asked for ahead of the view: by several threads, so that the disk has more than one question at a time and no
//! thread of the server waits for it.
//!
//! Bytes that were brought into the store's cache for the view are dropped from there when the view has them: otherwise they would be there twice. What
//! was there before stays.
//!
//! Where memory answers, few questions are asked ([`super::sampling`]).
//!
//! Invariant: of a file no more is asked for than it has, and between two pieces each thread looks whether it is to end, has no bytes left, is too far ahead, or
//! somebody else has the file by now: a profile may say anything, and files are as large as they like.

use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::fs::Advice;
use rustix::io::Errno;

use super::below::{self, Below};
use super::plan::{Plan, Step};
use super::sampling::Sampling;
use crate::sys::cached::{self, Before};

/// Threads that ask the disk.
pub(super) const THREADS: usize = 4;
/// Bytes that they are ahead of the view at most.
const AHEAD: u64 = 32 << 20;
/// How long they rest when they are.
const REST: Duration = Duration::from_millis(1);

/// What threads have in common.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    plan: &'a Plan,
    store: BorrowedFd<'a>,
    /// The next one of which the attributes are asked for.
    next: AtomicUsize,
    /// Where the next file is looked for.
    file: AtomicUsize,
    /// How many files nobody has taken.
    left: AtomicUsize,
    /// Bytes of those below that the view has; none: it is not asked for them.
    served: Option<AtomicU64>,
    /// Bytes that the disk was asked for, and how many it may be.
    asked: AtomicU64,
    budget: u64,
    names: Sampling,
    files: Sampling,
    by_file: Vec<OfFile>,
    /// Bytes of a file that the view is being asked for.
    under_way: AtomicU64,
    over: AtomicBool,
    /// Until when they rest, in microseconds since then.
    resting: AtomicU64,
    begun: Instant,
}

/// Of a file.
#[derive(Debug, Default)]
struct OfFile {
    /// A thread has it, or it was left to users.
    is_taken: AtomicBool,
    /// Bytes that the disk was asked for, and that are not counted as the view's.
    bytes: AtomicU64,
    /// Nothing of it was in memory before.
    is_own: AtomicBool,
    /// The view has it, or who reads it is there.
    is_over: AtomicBool,
}

impl<'a> Blocks<'a> {
    /// Of what `plan` asks for, in `store`. `reads`: the view is asked for the same bytes, and they are not to be far ahead of it.
    pub(super) fn new(plan: &'a Plan, store: BorrowedFd<'a>, reads: bool, budget: u64) -> Self {
        Self {
            plan,
            store,
            next: AtomicUsize::new(0),
            file: AtomicUsize::new(0),
            left: AtomicUsize::new(plan.bytes.len()),
            served: reads.then(AtomicU64::default),
            asked: AtomicU64::new(0),
            budget,
            names: Sampling::default(),
            files: Sampling::default(),
            by_file: plan.bytes.iter().map(|_| OfFile::default()).collect(),
            under_way: AtomicU64::new(0),
            over: AtomicBool::new(false),
            resting: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }

    /// They rest until then.
    pub(super) fn rest(&self, until: Instant) {
        let micros = until.saturating_duration_since(self.begun).as_micros();
        self.resting.store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Ends all threads soon.
    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// What a thread does.
    pub(super) fn work(&self) {
        let mut below = Below::new(self.store);
        while let Some((at, path)) = self.take() {
            if self.names.asks(at) {
                self.wait();
                let before = waits();
                // What is not there is for the view to say.
                let _ = below.stat(path);
                self.names.told(waits() != before);
            }
        }
        while let Some((at, step)) = self.take_file() {
            if !self.files.asks(at) {
                // As if it had been, so that others do not get too far ahead.
                let _ = self.count(at, step.bytes());
                continue;
            }
            self.wait();
            let before = waits();
            let is_own = self.bring(&mut below, at, step).unwrap_or(false);
            self.files.told(waits() != before);
            if is_own && let Some(brought) = self.by_file.get(at) {
                brought.is_own.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Asks the disk for what `step` reads; whether nothing of it was there.
    fn bring(&self, below: &mut Below<'_>, at: usize, step: &Step) -> Result<bool, Errno> {
        let Step::Read { path, ranges } = step else { return Ok(false) };
        let file = below.file(path)?;
        let size = below::size(&file)?;
        let (mut was_there, mut may) = (false, true);
        for pages in ranges.iter() {
            let (from, length) = pages.within(size);
            let before = cached::bring(&file, from, length, |bytes, _| {
                may = self.count(at, bytes);
                may
            })?;
            was_there |= before == Before::Something;
            if !may {
                break;
            }
        }
        Ok(!was_there)
    }

    /// Counts so many bytes of the file of this step, once it is not too far ahead. Returns whether they are to be asked for.
    fn count(&self, at: usize, bytes: u64) -> bool {
        let Some(brought) = self.by_file.get(at) else { return false };
        let stops = || self.over.load(Ordering::Relaxed) || brought.is_over.load(Ordering::SeqCst);
        let is_far = || {
            self.served.as_ref().is_some_and(|served| {
                let has =
                    served.load(Ordering::SeqCst).saturating_add(self.under_way.load(Ordering::Relaxed));
                self.asked.load(Ordering::SeqCst) >= has.saturating_add(AHEAD)
            })
        };
        while !stops() && is_far() {
            std::thread::sleep(REST);
        }
        if stops() || self.asked.fetch_add(bytes, Ordering::SeqCst) > self.budget {
            return false;
        }
        brought.bytes.fetch_add(bytes, Ordering::SeqCst);
        // Whoever comes second counts them.
        if brought.is_over.load(Ordering::SeqCst) {
            self.forgive(brought);
        }
        true
    }

    /// What was brought of a file is ahead of nobody any longer.
    fn forgive(&self, brought: &OfFile) {
        let bytes = brought.bytes.swap(0, Ordering::SeqCst);
        if let Some(served) = &self.served {
            served.fetch_add(bytes, Ordering::SeqCst);
        }
    }

    /// Whether nothing is left to ask for.
    pub(super) fn is_done(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0 || self.asked.load(Ordering::Relaxed) > self.budget
    }

    /// Continues with the file of this step. What was brought before is for later, and does not count.
    pub(super) fn jump(&self, at: usize) {
        self.file.store(at, Ordering::Relaxed);
        self.by_file.iter().for_each(|brought| self.forgive(brought));
    }

    /// The file of this step is left to who reads it.
    pub(super) fn leave(&self, at: usize) {
        self.reserve(at);
        if let Some(brought) = self.by_file.get(at) {
            brought.is_over.store(true, Ordering::SeqCst);
            self.forgive(brought);
        }
    }

    /// The view is asked for so many bytes of a file.
    pub(super) fn asks(&self, bytes: u64) {
        self.under_way.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The view has the file of this step, whether or not a thread has come to it.
    pub(super) fn served(&self, below: &mut Below<'_>, at: usize) {
        self.leave(at);
        self.drop_file(below, at);
        self.under_way.store(0, Ordering::Relaxed);
    }

    /// Drops what was brought and is left.
    pub(super) fn drop_rest(&self, below: &mut Below<'_>) {
        (0..self.plan.bytes.len()).for_each(|at| self.drop_file(below, at));
    }

    /// Drops what was brought of the file of this step.
    pub(super) fn drop_file(&self, below: &mut Below<'_>, at: usize) {
        if self.by_file.get(at).is_some_and(|brought| brought.is_own.swap(false, Ordering::Relaxed))
            && let Some(Step::Read { path, ranges }) = self.plan.bytes.get(at)
            && let Ok(file) = below.file(path)
        {
            // No more than that: somebody else may use the rest.
            for pages in ranges.iter() {
                let (from, length) = pages.within(u64::MAX);
                if let Some(length) = NonZeroU64::new(length) {
                    let _ = rustix::fs::fadvise(&file, from, Some(length), Advice::DontNeed);
                }
            }
        }
    }

    fn wait(&self) {
        let until = self.begun + Duration::from_micros(self.resting.load(Ordering::Relaxed));
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() && !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(left);
        }
    }

    fn take(&self) -> Option<(usize, &'a [u8])> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        Some((at, self.plan.blocks.get(at)?))
    }

    /// The next file that nobody has, from where the view is asked on.
    fn take_file(&self) -> Option<(usize, &'a Step)> {
        while !self.over.load(Ordering::Relaxed) && !self.is_done() {
            let at = self.file.fetch_add(1, Ordering::Relaxed) % self.plan.bytes.len().max(1);
            if self.reserve(at) {
                return self.plan.bytes.get(at).map(|step| (at, step));
            }
        }
        None
    }

    /// Whether nobody had it.
    fn reserve(&self, at: usize) -> bool {
        let is_first = self.by_file.get(at).is_some_and(|file| !file.is_taken.swap(true, Ordering::Relaxed));
        if is_first {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
        is_first
    }
}

/// What this thread has read from a disk, and how often it has waited for anything else that is not the processor, such as a file system that
/// reads in threads of its own (getrusage(2)). A number that grows with both.
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(0, |usage| usage.block_reads().saturating_add(usage.voluntary_context_switches()))
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
