//! What was asked of a view, as somebody else than its server reads it.
//!
//! Invariants:
//! - The memory is read with pread(2), which makes no page of what was never written, as a look into a mapping would.
//! - What is read may be a hostile server's. So every number is only a number: sums saturate, a time that nothing can print is none,
//!   keys are of Nix's alphabet, and there are as many members as slots at most.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use super::{
    ABSENT_IN_LINE, BYTES, BYTES_IN_SLOT, HEAD, KEY, Kind, LINES, MARK, MARK_AT, NODES_AT, OPENS_IN_SLOT,
    PANICS_IN_LINE, READ_IN_LINE, SINCE_AT, SLOT, UNKNOWN_IN_LINE, WHOLE_AT, WORD, in_line,
};
use crate::values::StorePath;

/// The last second of the year 9999: later times are none, as they cannot be written as RFC 3339 has it.
const LATEST: u64 = 253_402_300_799;

/// What was asked of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uses {
    /// Reads of the beginning of one of its files, and opens of those that the kernel reads itself.
    pub opens: u64,
    /// Bytes that were read through the server: what the kernel has cached is read once.
    pub bytes: u64,
}

/// Whether a member was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It was, so often. All zero: it was looked up, searched or listed, and nothing of it was read.
    For(Uses),
    /// It never was.
    Never,
    /// It was not seen to be, and may have been all the same: before the counting began, or when no slot was free.
    Unknown,
}

/// What was counted, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When the counting began. None: nobody knows.
    pub since: Option<SystemTime>,
    /// Whether that was when the view was mounted.
    pub whole: bool,
    /// Requests of each kind, in the order of [`Kind::ALL`].
    pub requests: [(Kind, u64); Kind::ALL.len()],
    /// Bytes that were read through the server.
    pub bytes: u64,
    /// Nodes that the kernel may know, at the moment.
    pub nodes: u64,
    /// Requests that ended with a panic.
    pub panics: u64,
    /// Questions for whose member no slot was free.
    pub unknown: u64,
    /// Store paths that were asked for and that the view has not, while that was told.
    pub absent: u64,
    members: BTreeMap<[u8; KEY], Uses>,
}

impl Snapshot {
    /// Reads the memory in `file`.
    ///
    /// # Errors
    /// Those of read(2); `UnexpectedEof` and `InvalidData` for what is no memory of this layout.
    pub fn read(file: impl AsFd) -> io::Result<Self> {
        let all = Memory(read_all(&file)?);
        if all.word(MARK_AT) != MARK {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version, or damaged"));
        }
        let count =
            |at: usize| (0..LINES).map(|line| all.word(in_line(line, at))).fold(0, u64::saturating_add);
        let since = Some(all.word(SINCE_AT)).filter(|since| (1..=LATEST).contains(since));
        Ok(Self {
            since: since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))),
            whole: all.word(WHOLE_AT) == 1,
            requests: Kind::ALL.map(|kind| (kind, count(kind as usize * WORD))),
            bytes: count(READ_IN_LINE),
            nodes: all.word(NODES_AT),
            panics: count(PANICS_IN_LINE),
            unknown: count(UNKNOWN_IN_LINE),
            absent: count(ABSENT_IN_LINE),
            members: all.members().collect(),
        })
    }

    /// What was asked of the member `path`.
    #[must_use]
    pub fn of(&self, path: &StorePath) -> Asked {
        let key = path.as_str().as_bytes().first_chunk::<KEY>();
        match key.and_then(|key| self.members.get(key)) {
            Some(uses) => Asked::For(*uses),
            None if self.whole && self.unknown == 0 => Asked::Never,
            None => Asked::Unknown,
        }
    }

    /// Members that were asked for, by the first 16 characters of their hash parts. Some may be shown no more, or be a lie.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&[u8; KEY], &Uses)> {
        self.members.iter()
    }
}

fn read_all(file: &impl AsFd) -> io::Result<Vec<u8>> {
    let mut all = vec![0; BYTES];
    let mut done = 0;
    while let Some(rest) = all.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *rest, done as u64))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => done += more,
        }
    }
    Ok(all)
}

/// A copy of all of it.
struct Memory(Vec<u8>);

impl Memory {
    /// The word at byte `at`; 0: it lies outside.
    fn word(&self, at: usize) -> u64 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u64::from_ne_bytes)
    }

    fn members(&self) -> impl Iterator<Item = ([u8; KEY], Uses)> {
        let slots = self.0.get(HEAD..).unwrap_or_default().chunks_exact(SLOT);
        slots.enumerate().filter_map(|(number, slot)| {
            let at = HEAD + number * SLOT;
            // A slot of which a word is missing was begun, and will be completed by whoever asks again.
            let key = slot.first_chunk().filter(|key| key.iter().all(|byte| StorePath::is_of_hash(*byte)))?;
            let (opens, bytes) = (self.word(at + OPENS_IN_SLOT), self.word(at + BYTES_IN_SLOT));
            Some((*key, Uses { opens, bytes }))
        })
    }
}
