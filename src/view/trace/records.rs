//! Records of the trace, as bytes and as values.
//!
//! Layout of a record, in words of eight bytes of this machine: the head (bits 0 to 31 milliseconds since the first record, 32 to 43 bytes of
//! the path that the record before shares, 44 to 55 bytes of the rest, 56 to 63 the kind); for a read, the page (24 bits up) and the number of pages
//! (24 bits); the rest of the path, filled up with zeros.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::{BYTES, END_AT, FIRST_AT, HEAD, MARK, MARK_AT, WORD, read_word};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bits of a length in a head.
const LENGTH: u32 = 12;
/// Longest path, in bytes.
const PATH_MAX: usize = (1 << LENGTH) - 1;
/// Bytes of the longest record, about.
const LONGEST: u64 = PATH_MAX as u64 + 32;
/// Bytes of all paths that are read: a hostile server can make each share the most with the one before.
const ALL_PATHS: usize = 64 << 20;
const COUNT: u32 = 24;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A name was looked up, and is there.
    Name,
    /// A name was looked up, and is absent for good.
    Absent,
    /// A directory was listed from its beginning.
    Listed,
    /// Where a link leads.
    Link,
    /// Bytes of a file.
    Read,
    /// A file was opened that the kernel reads by itself: nobody knows how much of it.
    Opened,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Name, Self::Absent, Self::Listed, Self::Link, Self::Read, Self::Opened];

    fn number(self) -> u64 {
        self as u64 + 1
    }

    fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// A range of a file's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages {
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u32,
}

impl Pages {
    /// Those in which `bytes` from `offset` on lie.
    #[must_use]
    pub fn of(offset: u64, bytes: usize) -> Self {
        let first = offset / PAGE;
        let end = offset.saturating_add(bytes as u64).div_ceil(PAGE);
        Self { first, count: u32::try_from(end.saturating_sub(first)).unwrap_or(u32::MAX) }
    }

    /// Where they begin, and how many bytes a file of `size` bytes has in them.
    #[must_use]
    pub fn within(self, size: u64) -> (u64, u64) {
        let from = self.first.saturating_mul(PAGE);
        (from, (u64::from(self.count) * PAGE).min(size.saturating_sub(from)))
    }

    pub(super) fn pack(self) -> u64 {
        let most = (1 << COUNT) - 1;
        let first = self.first.min((1 << (u64::BITS - COUNT)) - 1);
        first << COUNT | u64::from(self.count).min(most)
    }

    fn unpack(word: u64) -> Self {
        let count = word & ((1 << COUNT) - 1);
        Self { first: word >> COUNT, count: u32::try_from(count).unwrap_or(u32::MAX) }
    }
}

/// Something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What.
    pub kind: Kind,
    /// How long after the first record.
    pub after: Duration,
    /// Of what, below the store directory.
    pub path: Vec<u8>,
    /// Which bytes; of reads alone.
    pub pages: Option<Pages>,
}

/// How many bytes two paths have in common, as far as a head can tell.
pub(super) fn shared(last: &[u8], path: &[u8]) -> usize {
    last.iter().zip(path).take(PATH_MAX).take_while(|(one, other)| one == other).count()
}

/// The head of a record. None: the path is too long for it.
pub(super) fn head(kind: Kind, after: u32, shared: usize, rest: usize) -> Option<u64> {
    let fits = shared <= PATH_MAX && rest <= PATH_MAX && shared + rest <= PATH_MAX;
    let (shared, rest) = (u64::try_from(shared).ok()?, u64::try_from(rest).ok()?);
    fits.then(|| u64::from(after) | shared << u32::BITS | rest << (u32::BITS + LENGTH) | kind.number() << 56)
}

/// The records in `trace`, as far as they can be understood.
///
/// # Errors
/// Those of pread(2); `InvalidData`: it is no trace of this version.
pub fn read(trace: impl AsFd) -> io::Result<Vec<Record>> {
    // Not mapped, as that would make pages of what was never written.
    if read_word(&trace, MARK_AT)? != MARK {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no trace of this version"));
    }
    let end = usize::try_from(read_word(&trace, END_AT)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; end.min(BYTES - HEAD)];
    read_exact(&trace, &mut bytes, HEAD as u64)?;
    Ok(parse(&bytes))
}

/// For how long after its first record `trace` was written, of which `records` were read: until now, or until it was full.
///
/// # Errors
/// Those of pread(2).
pub fn lasted(trace: impl AsFd, records: &[Record]) -> io::Result<Duration> {
    let (first, end) = (read_word(&trace, FIRST_AT)?, read_word(&trace, END_AT)?);
    let is_full = end.saturating_add(LONGEST) > (BYTES - HEAD) as u64;
    let last = records.last().map(|record| record.after).unwrap_or_default();
    let now = Duration::from_millis(super::milliseconds().saturating_sub(first));
    Ok(if is_full || first == 0 { last } else { now })
}

fn read_exact(trace: impl AsFd, bytes: &mut [u8], from: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(&trace, rest, from + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

/// The records that `bytes` begin with.
#[must_use]
pub fn parse(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let (mut words, mut last, mut length) = (bytes, Vec::new(), 0);
    while let Some((record, rest)) = next(words, &last) {
        length += record.path.len();
        if length > ALL_PATHS {
            break;
        }
        last.clone_from(&record.path);
        records.push(record);
        words = rest;
    }
    records
}

pub(super) fn next<'a>(bytes: &'a [u8], last: &[u8]) -> Option<(Record, &'a [u8])> {
    let (head, bytes) = bytes.split_first_chunk::<WORD>()?;
    let head = u64::from_ne_bytes(*head);
    let length = |shift: u32| usize::try_from(head >> shift & ((1 << LENGTH) - 1)).ok();
    let (shared, rest) = (length(u32::BITS)?, length(u32::BITS + LENGTH)?);
    let kind = Kind::of(head >> 56)?;
    let (pages, bytes) = if kind == Kind::Read {
        let (pages, bytes) = bytes.split_first_chunk::<WORD>()?;
        (Some(Pages::unpack(u64::from_ne_bytes(*pages))), bytes)
    } else {
        (None, bytes)
    };
    let (rest, bytes) = bytes.get(..rest).zip(bytes.get(rest.next_multiple_of(WORD)..))?;
    let path = [last.get(..shared)?, rest].concat();
    let after = Duration::from_millis(head & u64::from(u32::MAX));
    (path.len() <= PATH_MAX).then_some((Record { kind, after, path, pages }, bytes))
}
