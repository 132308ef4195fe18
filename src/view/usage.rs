//! What was asked of a view: counters in memory that every server of a mount adds to and the monitor reads.
//!
//! The monitor makes the memory ([`create`]), a server counts in it ([`Usage`]), and the monitor reads it ([`Snapshot`]). See
//! docs/design.md, "Usage".
//!
//! Invariants:
//! - It is only counted here: nothing that a server answers or does depends on what the memory holds.
//! - A slot that has a key keeps it as long as the memory exists, and a key has one slot.
//! - Whatever a hostile server wrote, the next one and the monitor read it within a bounded time and without harm. What it wrote is its
//!   word, and no more than that.
//!
//! Hard points:
//! 1. Two threads, or two servers one after the other, take a slot for one key. Each word of the key is taken by a compare-and-swap, the
//!    first one first, and a word that is taken never changes. So each slot answers "is it mine?" the same way for ever; whoever
//!    looks for a key comes to the same slot, and finishes what a server has begun that was killed between the two words.
//! 2. All threads count all requests. A line of the processor's cache that they all write to would cost more than the request, so
//!    each thread has a line of its own ([`LINES`]). What belongs to a member is shared by all of them, but written only where bytes
//!    are read or a file is opened, which takes a system call in any case; a look-up only compares.
//! 3. Who plays what was learnt ([`super::trace`]) asks as any other does, and that is no use: [`unseen`].

mod snapshot;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use rustix::rand::GetRandomFlags;

use crate::sys::memory::{self, Words};
pub use snapshot::{Asked, Snapshot, Uses};

/// Members of a mount that are counted, about: each has a slot for the life of the mount.
pub const SLOTS: usize = 1 << 14;
const SLOT: usize = 32;
/// Slots of the first level, see [`Usage::try_slots`].
const FIRST: usize = 512;
/// Slots of a level that are tried for a key before the next one: few, as a key in the last level passes by all others.
const NEAR: usize = 16;
/// The same in the last level: more than are taken in a row while nine of ten are taken, and few enough that a question which finds none
/// costs less than answering it.
const REACH: usize = 256;
const PAGE: usize = 4096;
/// Lines of counters. Threads beyond share them.
const LINES: usize = 32;
/// Bytes of one: two lines of a processor's cache, which fetches them in pairs.
const LINE: usize = 128;
/// A page of marks, then one of counters.
const HEAD: usize = 2 * PAGE;
/// Bytes of the memory file. What is not used takes no memory.
pub const BYTES: usize = HEAD + SLOTS * SLOT;

/// The first word: this program, and the version of this layout and of the order in which slots are tried.
const MARK: u64 = u64::from_ne_bytes(*b"nsf-use1");
const MARK_AT: usize = 0;
/// Which mount it belongs to: [`token`].
const TOKEN_AT: usize = 8;
/// Seconds since 1970 at which it was made.
const SINCE_AT: usize = 16;
/// 1: it was made with the mount.
const WHOLE_AT: usize = 24;
/// Nodes that the kernel may know.
const NODES_AT: usize = 32;

/// What a line holds: requests of each kind, then these.
const READ_IN_LINE: usize = Kind::ALL.len() * WORD;
const UNKNOWN_IN_LINE: usize = READ_IN_LINE + WORD;
const PANICS_IN_LINE: usize = UNKNOWN_IN_LINE + WORD;
const ABSENT_IN_LINE: usize = PANICS_IN_LINE + WORD;

/// What a slot holds: the two words of its key, then these.
const OPENS_IN_SLOT: usize = 2 * WORD;
const BYTES_IN_SLOT: usize = 3 * WORD;

const WORD: usize = size_of::<u64>();
/// Bytes of a key: half of a hash part, 80 bits.
const KEY: usize = 2 * WORD;

const _: () = assert!(LINES * LINE <= PAGE && ABSENT_IN_LINE + WORD <= LINE && BYTES_IN_SLOT + WORD <= SLOT);
const _: () = assert!(SLOTS.is_power_of_two() && FIRST.is_power_of_two() && FIRST <= SLOTS);

/// The kinds of request that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A name was looked up.
    Lookup,
    /// References were dropped.
    Forget,
    /// Attributes were asked for.
    Getattr,
    /// A link was read.
    Readlink,
    /// A file was opened.
    Open,
    /// Bytes were read.
    Read,
    /// A directory was listed with attributes.
    Readdirplus,
    /// Totals were asked for.
    Statfs,
    /// A change was asked for and refused.
    Refused,
    /// Anything else.
    Other,
}

impl Kind {
    /// All of them, in the order in which they are counted and printed.
    pub const ALL: [Self; 10] = [
        Self::Lookup,
        Self::Forget,
        Self::Getattr,
        Self::Readlink,
        Self::Open,
        Self::Read,
        Self::Readdirplus,
        Self::Statfs,
        Self::Refused,
        Self::Other,
    ];

    /// What it is called wherever it is printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Forget => "forget",
            Self::Getattr => "getattr",
            Self::Readlink => "readlink",
            Self::Open => "open",
            Self::Read => "read",
            Self::Readdirplus => "readdirplus",
            Self::Statfs => "statfs",
            Self::Refused => "refused",
            Self::Other => "other",
        }
    }
}

/// New memory, for a mount. `whole`: no server has answered there before.
///
/// # Errors
/// Those of memfd_create(2), getrandom(2) and write(2).
pub fn create(whole: bool) -> io::Result<OwnedFd> {
    let file = memory::memory_file_of("usage", BYTES as u64)?;
    let mut token = [0; WORD];
    rustix::rand::getrandom(&mut token[..], GetRandomFlags::empty())?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    file.write_all_at(&MARK.to_ne_bytes(), MARK_AT as u64)?;
    file.write_all_at(&token, TOKEN_AT as u64)?;
    file.write_all_at(&since.as_secs().to_ne_bytes(), SINCE_AT as u64)?;
    file.write_all_at(&u64::from(whole).to_ne_bytes(), WHOLE_AT as u64)?;
    Ok(file.into())
}

/// A number that only the memory in `file` has; none: it is no such memory. What was counted of
/// one mount says nothing of the next.
#[must_use]
pub fn token(file: impl AsFd) -> Option<u64> {
    let mut head = [0; TOKEN_AT + WORD];
    let read = memory::cannot_shrink(&file).then(|| rustix::io::pread(&file, &mut head, 0))?.ok()?;
    let word =
        |at: usize| head.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_ne_bytes);
    (read == head.len() && word(MARK_AT)? == MARK).then(|| word(TOKEN_AT)).flatten()
}

/// The counters, as a server has them. Copies count in the same memory.
#[derive(Debug, Clone)]
pub struct Usage {
    /// None: there is no memory, and nothing is counted.
    words: Option<Words>,
    /// How many slots there are, and how many of them are the first level: powers of two.
    slots: usize,
    first: usize,
}

/// The first half of a hash part, as two words: no byte of it is 0.
#[derive(Debug, Clone, Copy)]
struct Key {
    first: u64,
    second: u64,
}

/// The counters of one member.
#[derive(Debug, Clone, Copy)]
struct Slot<'a> {
    words: &'a Words,
    at: usize,
}

impl Usage {
    /// Counts in `file`, which [`create`] made. Without a file, or with another one, in memory that ends with this process; without
    /// any, not at all.
    #[must_use]
    pub fn open(file: Option<OwnedFd>) -> Self {
        let shared = file.map(File::from).and_then(|file| {
            Self::map(Some(&file))
                .inspect_err(|error| {
                    tracing::warn!(%error, "what is asked of the view is counted by this server for itself, and not by the mount");
                })
                .ok()
        });
        let words = shared.or_else(|| {
            Self::map(None).inspect_err(|error| tracing::debug!(%error, "requests are not counted")).ok()
        });
        Self { words, slots: SLOTS, first: FIRST }
    }

    fn map(file: Option<&File>) -> io::Result<Words> {
        let (words, _) = memory::map(file, BYTES, 0, 0)?;
        let mark = words.get(MARK_AT).map(|mark| mark.load(Ordering::Relaxed));
        if file.is_some() && mark != Some(MARK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version"));
        }
        Ok(words)
    }

    /// Counts nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { words: None, slots: SLOTS, first: FIRST }
    }

    /// Counts a request.
    pub fn add(&self, kind: Kind) {
        self.count(kind as usize * WORD, 1);
    }

    /// Counts a request that ended with a panic.
    pub fn panicked(&self) {
        self.count(PANICS_IN_LINE, 1);
    }

    /// Counts a store path that was asked for and that the view has not, before anybody is told of it.
    pub fn absent(&self) {
        self.count(ABSENT_IN_LINE, 1);
    }

    /// How many nodes the kernel may know at the moment.
    pub fn set_nodes(&self, nodes: usize) {
        if let Some(known) = self.words.as_ref().and_then(|words| words.get(NODES_AT)) {
            known.store(nodes as u64, Ordering::Relaxed);
        }
    }

    /// How many requests of this kind were counted, by whichever server.
    #[must_use]
    pub fn requests(&self, kind: Kind) -> u64 {
        let of = |line| self.words.as_ref()?.get(in_line(line, kind as usize * WORD));
        (0..LINES).filter_map(of).fold(0, |sum, count| sum.wrapping_add(count.load(Ordering::Relaxed)))
    }

    /// Something was asked for in the member in which `path` lies, a path below the store directory; by its name, or by what is in it.
    pub fn touch(&self, path: &[u8]) {
        let _ = self.slot(path);
    }

    /// So many `bytes` of the file at `path` were read from `offset` on. A read of the beginning counts as an open: the kernel opens
    /// files without asking.
    pub fn read(&self, path: &[u8], offset: u64, bytes: usize) {
        if is_unseen() {
            return;
        }
        self.count(READ_IN_LINE, bytes as u64);
        if let Some(slot) = self.slot(path) {
            if offset == 0 {
                slot.add(OPENS_IN_SLOT, 1);
            }
            slot.add(BYTES_IN_SLOT, bytes as u64);
        }
    }

    /// The file at `path` was opened, and the kernel reads it itself: nobody sees how much.
    pub fn opened(&self, path: &[u8]) {
        if let Some(slot) = self.slot(path) {
            slot.add(OPENS_IN_SLOT, 1);
        }
    }

    fn count(&self, in_the_line: usize, more: u64) {
        let own = in_line(own_line(), in_the_line);
        if let Some(count) = self.words.as_ref().and_then(|words| words.get(own)) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// The slot of the member in which `path` lies, which is taken if it has none yet. None: it lies in none, no slot is free, or it is no
    /// use.
    fn slot(&self, path: &[u8]) -> Option<Slot<'_>> {
        if is_unseen() {
            return None;
        }
        let (words, key) = (self.words.as_ref()?, Key::of(path)?);
        let own = self.try_slots(key, |at| {
            (is_taken(words.get(at)?, key.first) && is_taken(words.get(at + WORD)?, key.second)).then_some(at)
        });
        if own.is_none() {
            self.count(UNKNOWN_IN_LINE, 1);
        }
        own.map(|at| Slot { words, at })
    }

    /// Calls `found` with where the slots are that may be the one of `key`, always in the same order, until it returns something.
    ///
    /// They are in levels, each as large as all those before it, and a level is used where the ones before are full: keys are
    /// scattered, and in one table a few hundred of them would make a page of memory each.
    fn try_slots<T>(&self, key: Key, mut found: impl FnMut(usize) -> Option<T>) -> Option<T> {
        let home = key.home();
        let (mut begin, mut size) = (0, self.first);
        while begin < self.slots {
            let tries = if begin + size < self.slots { NEAR } else { REACH };
            for step in 0..tries.min(size) {
                let slot = begin + ((home + step) & (size - 1));
                if let Some(found) = found(HEAD + slot * SLOT) {
                    return Some(found);
                }
            }
            begin += size;
            size = begin;
        }
        None
    }
}

impl Slot<'_> {
    fn add(self, in_the_slot: usize, more: u64) {
        if let Some(count) = self.words.get(self.at + in_the_slot) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl Key {
    /// Of the member in which `path` lies. None: it is the root.
    fn of(path: &[u8]) -> Option<Self> {
        let (first, rest) = path.split_first_chunk()?;
        let second = rest.first_chunk()?;
        Some(Self { first: u64::from_ne_bytes(*first), second: u64::from_ne_bytes(*second) })
    }

    /// A number below [`SLOTS`]: where it is looked for first.
    fn home(self) -> usize {
        // 2^64 by the golden ratio: the highest bits of the product depend on every bit of the key.
        let mixed = (self.first.rotate_left(31) ^ self.second).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (u64::BITS - SLOTS.trailing_zeros())) as usize
    }
}

/// Does `work`, and if `unseen`, what it asks of a member in this thread counts as no use.
pub fn unseen<T>(unseen: bool, work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            UNSEEN.set(self.0);
        }
    }
    // Also after a panic, which ends one answer.
    let _before = Before(UNSEEN.replace(unseen));
    work()
}

/// Whether this thread answers somebody who does not count as a user: see [`unseen`].
pub(super) fn is_unseen() -> bool {
    UNSEEN.get()
}

/// Whether `word` is this one from now on. What it is once, it stays.
fn is_taken(word: &AtomicU64, by: u64) -> bool {
    let take = || word.compare_exchange(0, by, Ordering::Relaxed, Ordering::Relaxed);
    match word.load(Ordering::Relaxed) {
        0 => take().map_or_else(|found| found == by, |_| true),
        found => found == by,
    }
}

fn in_line(line: usize, at: usize) -> usize {
    PAGE + line * LINE + at
}

thread_local! {
    /// See [`unseen`].
    static UNSEEN: Cell<bool> = const { Cell::new(false) };
}

/// The line that this thread counts in.
fn own_line() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % LINES);
        }
        own.get()
    })
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
