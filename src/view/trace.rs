//! The trace: what was asked of a view since it was mounted, in order, in memory that the monitor makes and servers write.
//!
//! The monitor makes the memory ([`create`]) and says who plays ([`begin_play`]); a server writes ([`Trace`]); who learns from it reads
//! ([`records::read`]), and who plays while it is written ([`following`]). See docs/design.md, "What a view has learnt".
//!
//! Invariants:
//! - A record exists when *end* lies behind it, and then it is whole: it is written first. So a server that is killed leaves nothing
//!   half done, and the next one writes where it stopped.
//! - Nothing that a server answers depends on what was recorded. What it looks up here is who plays, which changes lifetimes alone.
//! - Whatever a hostile server wrote, the next one and whoever reads it are done in a bounded time and without harm.
//!
//! Hard points:
//! 1. It is written after the answer was given, so nobody waits for it. Threads of a server take turns.
//! 2. What the kernel answers from its caches is not seen, and what was played lies there. So some names are *marked*
//!    ([`Marks`]): the player is told them in such a way that their first user asks once more.

pub mod following;
pub mod records;

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::rand::GetRandomFlags;
use rustix::time::ClockId;

use crate::sys::memory::{self, Words};
use records::{Kind, Pages};

/// Bytes of the memory file. What is not used takes no memory.
pub const BYTES: usize = 4 << 20;
const HEAD: usize = 4096;
const WORD: usize = size_of::<u64>();

/// The first word: this program, and the version of this layout.
const MARK: u64 = u64::from_ne_bytes(*b"nsf-trc1");
const MARK_AT: usize = 0;
/// What the marks depend on.
const SEED_AT: usize = 8;
/// The thread that plays; 0: none does.
const PLAYER_AT: usize = 16;
/// 1: somebody plays or has played.
const PLAYED_AT: usize = 48;
/// One name of so many is marked; 0: of [`LEAST_APART`].
const APART_AT: usize = 56;
/// 1: nothing more is recorded.
const CLOSED_AT: usize = 24;
/// Milliseconds of CLOCK_MONOTONIC at the first record; 0: there is none.
const FIRST_AT: usize = 32;
/// Bytes of records.
const END_AT: usize = FIRST_AT + WORD;

/// One name of so many is marked, or fewer.
const LEAST_APART: u64 = 64;
/// Of a large profile, so many uses are marked, or up to twice as many: enough to tell how much of it was of use.
const SAMPLE: u64 = 32;
/// Of so many marked files, one has bytes that are marked as well.
const MARKED_BYTES: u64 = 8;

/// New memory, for a new mount.
///
/// # Errors
/// Those of memfd_create(2), getrandom(2) and write(2).
pub fn create() -> io::Result<OwnedFd> {
    let file = memory::memory_file_of("trace", BYTES as u64)?;
    let mut seed = [0; WORD];
    rustix::rand::getrandom(&mut seed[..], GetRandomFlags::empty())?;
    file.write_all_at(&MARK.to_ne_bytes(), MARK_AT as u64)?;
    file.write_all_at(&seed, SEED_AT as u64)?;
    Ok(file.into())
}

/// Says which thread plays from now on, by its id where the view was mounted, and of about how many uses it knows.
///
/// # Errors
/// Those of pwrite(2).
pub fn begin_play(trace: impl AsFd, player: u32, uses: u64) -> io::Result<()> {
    write(&trace, APART_AT, apart(uses))?;
    write(&trace, PLAYED_AT, 1)?;
    write(trace, PLAYER_AT, player.into())
}

/// Nobody plays any longer.
///
/// # Errors
/// Those of pwrite(2).
pub fn end_play(trace: impl AsFd) -> io::Result<()> {
    write(trace, PLAYER_AT, 0)
}

/// How many names there are for each marked one, where there are so many uses. Each costs who uses it a request.
fn apart(uses: u64) -> u64 {
    (uses / (2 * SAMPLE)).checked_next_power_of_two().unwrap_or(u64::MAX).max(LEAST_APART)
}

/// Nothing more is recorded, and the memory of what was is given back.
///
/// # Errors
/// Those of pwrite(2) and fallocate(2).
pub fn close(trace: impl AsFd) -> io::Result<()> {
    write(&trace, CLOSED_AT, 1)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(trace, flags, HEAD as u64, (BYTES - HEAD) as u64)?)
}

/// Whether anything was recorded, as the server says.
#[must_use]
pub fn has_begun(trace: impl AsFd) -> bool {
    read_word(trace, END_AT).is_ok_and(|end| end != 0)
}

/// A word of the head, of memory that is not mapped.
fn read_word(trace: impl AsFd, at: usize) -> io::Result<u64> {
    let mut word = [0; WORD];
    let read = rustix::io::pread(trace, &mut word, at as u64)?;
    if read == WORD { Ok(u64::from_ne_bytes(word)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn write(trace: impl AsFd, at: usize, word: u64) -> io::Result<()> {
    let written = rustix::io::pwrite(trace, &word.to_ne_bytes(), at as u64)?;
    if written == WORD { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Which names are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    seed: u64,
    apart: u64,
}

impl Marks {
    /// Those that depend on `seed`, where there are so many `uses`.
    #[must_use]
    pub fn new(seed: u64, uses: u64) -> Self {
        Self { seed, apart: apart(uses) }
    }

    fn of_words(seed: u64, apart: u64) -> Self {
        Self { seed, apart: if apart == 0 { LEAST_APART } else { apart } }
    }

    /// Those of the memory in `trace`.
    #[must_use]
    pub fn of(trace: impl AsFd) -> Option<Self> {
        let word = |at| read_word(&trace, at).ok();
        Some(Self::of_words(word(SEED_AT)?, word(APART_AT)?))
    }

    /// Whether `path`, below the store directory, is marked. No member is: each of them is told in that way.
    #[must_use]
    pub fn is_marked(self, path: &[u8]) -> bool {
        path.contains(&b'/') && self.hash(path).is_multiple_of(self.apart)
    }

    /// Whether the bytes of the file `path` are marked as well: nobody asks for them ahead.
    #[must_use]
    pub fn are_bytes_marked(self, path: &[u8]) -> bool {
        self.is_marked(path)
            && self.hash(path).checked_div(self.apart).is_some_and(|rest| rest.is_multiple_of(MARKED_BYTES))
    }

    fn hash(self, path: &[u8]) -> u64 {
        // The same in every process of one build of the program.
        let mut hash = DefaultHasher::new();
        (self.seed, path).hash(&mut hash);
        hash.finish()
    }
}

/// The trace, as a server has it.
#[derive(Debug)]
pub struct Trace(Option<Writer>);

#[derive(Debug)]
struct Writer {
    words: Words,
    /// The path of the last record of this server.
    last: Mutex<Vec<u8>>,
}

impl Trace {
    /// Records in `file`, which [`create`] made; without a file, or with another one, nothing is recorded and nobody plays.
    #[must_use]
    pub fn open(file: Option<OwnedFd>) -> Self {
        let map = |file: OwnedFd| {
            let (words, _) = memory::map(Some(&File::from(file)), BYTES, 0, 0)?;
            let word = |at| words.get(at).map(|word| word.load(Ordering::Relaxed));
            if word(MARK_AT) != Some(MARK) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version"));
            }
            Ok(Writer { words, last: Mutex::default() })
        };
        let writer = file.map(map).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "this server does not record what is asked for, and nothing is learnt from it");
            None
        });
        Self(writer)
    }

    /// Nothing is recorded, and nobody plays.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether the thread that made a request is the one that plays.
    #[must_use]
    pub fn is_player(&self, thread: u32) -> bool {
        thread != 0
            && self.word(PLAYER_AT).is_some_and(|word| word.load(Ordering::Relaxed) == u64::from(thread))
    }

    /// Whether somebody plays, or has played.
    #[must_use]
    pub fn is_played(&self) -> bool {
        self.word(PLAYED_AT).is_some_and(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Which names are marked for who plays at this moment; none: nothing is recorded.
    #[must_use]
    pub fn marks(&self) -> Option<Marks> {
        let writer = self.0.as_ref()?;
        Some(Marks::of_words(writer.word(SEED_AT)?, writer.word(APART_AT)?))
    }

    /// Records that something of this `kind` was asked for; `pages` for a read. `path`, which lies below the store directory, is asked for if
    /// there is room for it.
    pub fn note(&self, kind: Kind, pages: Option<Pages>, path: impl FnOnce() -> Option<Vec<u8>>) {
        let Some(writer) = &self.0 else { return };
        if writer.word(CLOSED_AT) == Some(0)
            && let Some(path) = path()
        {
            // None: it is full, or the path is one that nobody needs.
            let _ = writer.append(kind, pages, path);
        }
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.0.as_ref()?.words.get(at)
    }
}

impl Writer {
    fn word(&self, at: usize) -> Option<u64> {
        self.words.get(at).map(|word| word.load(Ordering::Relaxed))
    }

    fn set(&self, at: usize, word: u64) -> Option<()> {
        self.words.get(at).map(|place| place.store(word, Ordering::Relaxed))
    }

    fn append(&self, kind: Kind, pages: Option<Pages>, path: Vec<u8>) -> Option<()> {
        let mut last = self.last.lock();
        let end = usize::try_from(self.word(END_AT)?).ok()?;
        let shared = records::shared(&last, &path);
        let rest = path.get(shared..)?;
        let now = milliseconds();
        let first = match self.word(FIRST_AT)? {
            0 => now,
            first => first,
        };
        let after = u32::try_from(now.saturating_sub(first)).unwrap_or(u32::MAX);
        let head = records::head(kind, after, shared, rest.len())?;
        let mut at = HEAD.checked_add(end)?;
        let length = WORD + pages.map_or(0, |_| WORD) + rest.len().next_multiple_of(WORD);
        if at.checked_add(length)? > BYTES {
            return None;
        }
        for word in [Some(head), pages.map(Pages::pack)].into_iter().flatten() {
            self.set(at, word)?;
            at += WORD;
        }
        for chunk in rest.chunks(WORD) {
            let mut word = [0; WORD];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.set(at, u64::from_ne_bytes(word))?;
            at += WORD;
        }
        self.set(FIRST_AT, first)?;
        *last = path;
        // Behind all of it: whoever reads the end finds the record.
        self.words.get(END_AT)?.store((end + length) as u64, Ordering::Release);
        Some(())
    }
}

/// Of a clock that nobody sets. Never 0.
fn milliseconds() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    let of = |part: i64| u64::try_from(part).unwrap_or_default();
    (of(now.tv_sec) * 1000 + of(now.tv_nsec) / 1_000_000).max(1)
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
