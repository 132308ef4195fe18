//! The store's own blocks, asked for ahead of the view: by several threads, so that the disk has more than one question at a time and no
//! thread of the server waits for it.
//!
//! Bytes that were brought into the store's cache for the view are dropped from there when the view has them: otherwise they would be there twice. What
//! was there before stays.
//!
//! Where memory answers, few questions are asked ([`super::sampling`]).

use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::fs::Advice;
use rustix::io::Errno;

use super::below::Below;
use super::plan::{Plan, Step};
use super::sampling::Sampling;
use crate::sys::cached::is_cached;
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
    /// The next one of which the attributes are asked for.
    next: AtomicUsize,
    /// Where the next file is looked for.
    file: AtomicUsize,
    /// Files that a thread has taken, or that were left to users, and how many others there are.
    taken: Vec<AtomicBool>,
    left: AtomicUsize,
    /// Bytes that the view has; none: it is not asked for them.
    served: Option<&'a AtomicU64>,
    /// Bytes that the disk was asked for, and how many it may be.
    asked: AtomicU64,
    budget: u64,
    names: Sampling,
    files: Sampling,
    /// Files whose bytes were brought.
    brought: Vec<AtomicBool>,
    over: AtomicBool,
    /// Until when they rest, in microseconds since then.
    resting: AtomicU64,
    begun: Instant,
}

impl<'a> Blocks<'a> {
    /// Of what `plan` asks for, in `store`. `served` tells how many bytes the view was asked for.
    pub(super) fn new(
        plan: &'a Plan,
        store: BorrowedFd<'a>,
        served: Option<&'a AtomicU64>,
        budget: u64,
    ) -> Self {
        let none = || plan.bytes.iter().map(|_| AtomicBool::new(false)).collect();
        Self {
            plan,
            store,
            next: AtomicUsize::new(0),
            file: AtomicUsize::new(0),
            taken: none(),
            left: AtomicUsize::new(plan.bytes.len()),
            served,
            asked: AtomicU64::new(0),
            budget,
            names: Sampling::default(),
            files: Sampling::default(),
            brought: none(),
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
            if !self.files.asks(at) {
                continue;
            }
            self.wait();
            let before = waits();
            let is_brought = bring(&mut below, step).unwrap_or(false);
            self.files.told(waits() != before);
            if is_brought && let Some(brought) = self.brought.get(at) {
                brought.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether nothing is left to ask for.
    pub(super) fn is_done(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0 || self.asked.load(Ordering::Relaxed) > self.budget
    }

    /// Continues with the file of this step.
    pub(super) fn jump(&self, at: usize) {
        self.file.store(at, Ordering::Relaxed);
    }

    /// The file of this step is left to who reads it.
    pub(super) fn leave(&self, at: usize) {
        match self.reserve(at) {
            true => {}
            // It is what the view has, or will have, but it may be read of the store just now.
            false => self.serve(at),
        }
    }

    fn serve(&self, at: usize) {
        if let Some((served, step)) = self.served.zip(self.plan.bytes.get(at)) {
            served.fetch_add(step.bytes(), Ordering::Relaxed);
        }
    }

    /// The view has the file of this step.
    pub(super) fn served(&self, below: &mut Below<'_>, at: usize) {
        self.drop_file(below, at);
        self.serve(at);
    }

    /// Drops what was brought and is left.
    pub(super) fn drop_rest(&self, below: &mut Below<'_>) {
        (0..self.plan.bytes.len()).for_each(|at| self.drop_file(below, at));
    }

    /// Drops what was brought of the file of this step.
    pub(super) fn drop_file(&self, below: &mut Below<'_>, at: usize) {
        if self.brought.get(at).is_some_and(|brought| brought.swap(false, Ordering::Relaxed))
            && let Some(Step::Read { path, ranges }) = self.plan.bytes.get(at)
            && let Ok(file) = below.file(path)
        {
            // No more than that: somebody else may use the rest.
            for pages in ranges.iter() {
                if let Some(length) = NonZeroU64::new(u64::from(pages.count) * PAGE) {
                    let _ = rustix::fs::fadvise(&file, pages.first * PAGE, Some(length), Advice::DontNeed);
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
        while !self.over.load(Ordering::Relaxed) && self.left.load(Ordering::Relaxed) > 0 {
            let at = self.file.fetch_add(1, Ordering::Relaxed) % self.plan.bytes.len().max(1);
            if self.reserve(at) {
                return self.plan.bytes.get(at).map(|step| (at, step));
            }
        }
        None
    }

    /// Whether nobody had it.
    fn reserve(&self, at: usize) -> bool {
        let is_first = self.taken.get(at).is_some_and(|taken| !taken.swap(true, Ordering::Relaxed));
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

/// Asks the disk for what `step` reads; whether nothing of it was there.
fn bring(below: &mut Below<'_>, step: &Step) -> Result<bool, Errno> {
    let Step::Read { path, ranges } = step else { return Ok(false) };
    let file = below.file(path)?;
    let mut was_there = false;
    for pages in ranges.iter() {
        let (from, length) = (pages.first * PAGE, u64::from(pages.count) * PAGE);
        was_there |= is_cached(&file, from, length);
        for at in (0..length).step_by(PIECE as usize) {
            let piece = NonZeroU64::new(PIECE.min(length - at));
            rustix::fs::fadvise(&file, from + at, piece, Advice::WillNeed)?;
        }
    }
    Ok(!was_there)
}
