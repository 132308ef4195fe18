//! The node journal: what a successor has to know so that node ids keep their meaning.
//!
//! A file in the state directory. A node is appended before the reply that makes it known to the kernel, so
//! whatever the kernel can name is in here. Layout, version 1, numbers in little endian:
//!
//! ```text
//! header   8 bytes  "nsfsnode"       4 bytes  version     4 bytes  losses
//! record   4 bytes  CRC-32 of all that follows in the record
//!          1 byte   kind             1 byte   0xA5          2 bytes  length of the payload
//!          payload  kind 1, a node:         8 bytes id, 8 bytes parent's id, the name
//!                   kind 2, a backing file was registered: 8 bytes id, 4 bytes backing id
//!                   kind 3, that registration ended:       8 bytes id, 4 bytes backing id
//!                   kind 4, a node is open through the server: 8 bytes id, 4 bytes 0
//!                   kind 5, no more:                       8 bytes id, 4 bytes 0
//!                   kind 6, ids below this one were handed out: 8 bytes id, 4 bytes 0
//!                   kind 7, the object that a member is, of which the kernel may have cached something:
//!                           8 bytes id, 8 bytes seconds, 4 bytes nanoseconds of its birth; or its inode
//!                           number in place of the seconds, and 2^32 - 1
//!                   kind 8, a member was replaced, and the nodes in it that were written before are of an object
//!                           that is no more: 8 bytes id, 4 bytes 0
//! ```
//!
//! Hard points:
//! 1. Threads append at once, each record list with one `write` to a descriptor opened with `O_APPEND`. A
//!    kill may tear one of them while another still lands behind it: reading skips what does not check out and
//!    continues at the next record that does.
//! 2. Records are idempotent, so a node may be written twice and a rewrite may race with appends.
//! 3. Nodes that the kernel forgot leave records behind: [`Journal::rewrite`] replaces the file. Their ids are not given
//!    again all the same, so the new file begins with the next one.
//! 4. When the file cannot be written (disk full) the view is still served; only a crash would not be survived. What
//!    must not happen then is that a successor gives an id again that the kernel knows as something else. So
//!    the header, whose place on the disk is there already, counts how often ids may have been lost, and a
//!    successor begins as many times [`LOST_IDS`] further on. A server that runs without a journal for so long that it
//!    comes near that counts once more.

mod home;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::RwLock;
use rustix::fs::OFlags;

use crate::view::backing::Identity;
use crate::view::trie::{NodeId, NodeRecord};
pub use home::{Home, open_directory};

const MAGIC: &[u8; 8] = b"nsfsnode";
/// The version of the layout above.
pub const VERSION: u32 = 1;
const HEADER: usize = 16;
/// Where the header counts losses.
const LOSSES_AT: u64 = 12;
/// So many ids are given up for each loss. Few enough to stay below 2^32 for long: an id is an inode number, and 32-bit
/// programs without large-file support cannot examine a larger one.
const LOST_IDS: u64 = 1 << 24;
/// More ids than all threads together can have handed out and not written down.
const LOST_MARGIN: u64 = 1 << 20;
const RECORD_HEADER: usize = 8;
const MARK: u8 = 0xA5;
const KIND_NODE: u8 = 1;
const KIND_BACKING: u8 = 2;
const KIND_BACKING_ENDED: u8 = 3;
const KIND_CACHED: u8 = 4;
const KIND_CACHED_ENDED: u8 = 5;
const KIND_NEXT: u8 = 6;
const KIND_MEMBER: u8 = 7;
const KIND_REPLACED: u8 = 8;
/// In place of nanoseconds: what stands before is an inode number.
const INODE: u32 = u32::MAX;
/// A payload is at most a node with a name of 1024 bytes (`FUSE_NAME_MAX`, Linux `fs/fuse/fuse_i.h`).
const PAYLOAD_MAX: usize = 16 + 1024;
/// No id is as large. So whoever chooses the names in a store cannot write a record into one: its id would have a NUL.
const ID_END: u64 = 1 << 56;
/// Below this size a journal is not worth rewriting, nor before it is twice as large as after the last attempt: so what
/// rewrites write is bounded by what was appended, whatever the names are.
const REWRITE_MIN: u64 = 16 << 20;

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot {doing} the node journal '{}'", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is no node journal.
    #[error("'{}' is not a node journal; unmount the view and start it again", .0.display())]
    Foreign(PathBuf),
    /// The file was written by a program with another layout.
    #[error("the node journal '{}' has version {found}, this program knows version {VERSION}; start the version that wrote it, or unmount the view and start it again", path.display())]
    Version {
        /// The journal.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A node was handed out.
    Node(NodeRecord),
    /// A backing file was registered for a node with the kernel.
    Backing(NodeId, u32),
    /// A registration has ended.
    BackingEnded(NodeId, u32),
    /// A node is open and read through the server, in a mount where others are not.
    Cached(NodeId),
    /// It is no more.
    CachedEnded(NodeId),
    /// Ids below this one were handed out, though nothing may be known of them.
    Next(NodeId),
    /// What a member is on disk; whatever the kernel has cached of it is of this object.
    Member(NodeId, Identity),
    /// A member was replaced on disk: names in it have other nodes than those written before.
    Replaced(NodeId),
}

/// A journal open for appending; any thread may append.
#[derive(Debug)]
pub struct Journal {
    losses: AtomicU32,
    home: Home,
    /// Appends share it, a rewrite holds it alone.
    file: RwLock<File>,
    size: AtomicU64,
    /// The size above which the next rewrite may be worth it.
    rewrite_above: AtomicU64,
    broken: AtomicBool,
    /// Once broken: from this id on another loss is to be counted.
    recount_at: AtomicU64,
    rewriting: AtomicBool,
}

impl Journal {
    /// Starts an empty journal at `path`, replacing what was there.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let fail = |doing| move |source| JournalError::Io { doing, path: path.to_owned(), source };
        let home = Home::open(path).map_err(fail("find"))?;
        let mut file = begin(&home).map_err(fail("create"))?;
        file.write_all(&header(0)).map_err(|source| {
            // What is no whole journal is none: nobody is to resume from it.
            home.remove();
            fail("write")(source)
        })?;
        Ok(Self::over(home, file, HEADER as u64, 0))
    }

    /// Opens the journal of an earlier server and hands every whole record to `each`, in order.
    ///
    /// # Errors
    /// [`JournalError`]; nothing has been changed then.
    pub fn resume(home: Home, mut each: impl FnMut(Record)) -> Result<Self, JournalError> {
        let path = &home.path().to_owned();
        let fail = |doing| move |source| JournalError::Io { doing, path: path.clone(), source };
        let mut file = home.file(OFlags::RDWR | OFlags::APPEND).map_err(fail("open"))?;
        let mut head = [0; HEADER];
        file.read_exact(&mut head).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => JournalError::Foreign(path.clone()),
            _ => fail("read")(source),
        })?;
        let (magic, rest) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(JournalError::Foreign(path.clone()));
        }
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        let (version, losses) = rest.split_at(4);
        let (found, losses) = (number(version), number(losses));
        if found != VERSION {
            return Err(JournalError::Version { path: path.clone(), found });
        }
        let mut size = HEADER as u64;
        let mut window = Vec::with_capacity(1 << 18);
        loop {
            let held = window.len();
            let read = (&file).take(1 << 18).read_to_end(&mut window).map_err(fail("read"))?;
            size += read as u64;
            let last = window.len() == held;
            let used = decode(&window, last, &mut each);
            window.drain(..used);
            if last {
                let journal = Self::over(home, file, size, losses);
                if losses > 0 {
                    // The server before this one began where a loss had been counted, and wrote nothing down.
                    journal.count_loss();
                }
                return Ok(journal);
            }
        }
    }

    /// Whether nodes may have been handed out that are not in here.
    #[must_use]
    pub fn has_losses(&self) -> bool {
        self.losses.load(Ordering::Relaxed) > 0
    }

    /// How far behind the last id in the journal the first new one has to be.
    #[must_use]
    pub fn lost_ids(&self) -> u64 {
        u64::from(self.losses.load(Ordering::Relaxed)) * LOST_IDS
    }

    fn count_loss(&self) {
        let losses = self.losses.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // Not through the descriptor for appending, which knows no positions.
        let written = self
            .home
            .file(OFlags::WRONLY)
            .and_then(|file| file.write_all_at(&losses.to_le_bytes(), LOSSES_AT));
        if let Err(error) = written {
            tracing::error!(%error, path = %self.home.path().display(), "cannot even note that the node journal is incomplete");
        }
    }

    fn over(home: Home, file: File, size: u64, losses: u32) -> Self {
        Self {
            losses: AtomicU32::new(losses),
            rewriting: AtomicBool::new(false),
            home,
            file: RwLock::new(file),
            size: AtomicU64::new(size),
            rewrite_above: AtomicU64::new(REWRITE_MIN),
            broken: AtomicBool::new(false),
            recount_at: AtomicU64::new(u64::MAX),
        }
    }

    /// Appends `records` with one write. After a failure the journal is broken and takes nothing more.
    ///
    /// # Errors
    /// The first failure only: the caller says once that a crash would not be survived.
    pub fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        thread_local!(static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        if records.is_empty() {
            return Ok(());
        }
        if self.broken.load(Ordering::Acquire) {
            self.recount(records);
            return Ok(());
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            for record in records {
                encode(record, buffer);
            }
            let file = self.file.read();
            match (&*file).write_all(buffer) {
                Ok(()) => {
                    self.size.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                    Ok(())
                }
                Err(_) if self.broken.swap(true, Ordering::AcqRel) => Ok(()),
                Err(source) => {
                    // The file is held: a rewrite would put one in its place that knows of no loss.
                    let last = highest(records).unwrap_or_default();
                    self.recount_at.store(last + LOST_IDS - 2 * LOST_MARGIN, Ordering::Release);
                    self.count_loss();
                    drop(file);
                    Err(JournalError::Io { doing: "write", path: self.home.path().to_owned(), source })
                }
            }
        })
    }

    /// A broken journal holds none of `records`: sees to it that a successor begins behind them.
    fn recount(&self, records: &[Record]) {
        let Some(last) = highest(records) else { return };
        let at = self.recount_at.load(Ordering::Acquire);
        // As far before the end of what is given up as the last time.
        let next = at.saturating_add(LOST_IDS);
        if last >= at
            && self.recount_at.compare_exchange(at, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            self.count_loss();
        }
    }

    /// Whether so many records are outdated that a rewrite is worth it, with `live` nodes known. Who is told so
    /// is the one to do it.
    #[must_use]
    pub fn claim_rewrite(&self, live: usize) -> bool {
        let size = self.size.load(Ordering::Relaxed);
        size > self.rewrite_above.load(Ordering::Relaxed)
            && size / 3 > live as u64 * (RECORD_HEADER + 16 + 24) as u64
            && !self.broken.load(Ordering::Relaxed)
            && !self.rewriting.swap(true, Ordering::Relaxed)
    }

    /// Replaces the file by one that holds what `fill` writes; appends wait meanwhile.
    ///
    /// # Errors
    /// [`JournalError::Io`]; the old file stays in use then.
    pub fn rewrite(&self, fill: impl FnOnce(&mut dyn FnMut(&Record))) -> Result<(), JournalError> {
        // However it ends: a journal that is never rewritten again grows for ever.
        let _tried = Tried(self);
        self.replace(fill)
    }

    fn replace(&self, fill: impl FnOnce(&mut dyn FnMut(&Record))) -> Result<(), JournalError> {
        let mut current = self.file.write();
        if self.broken.load(Ordering::Acquire) {
            // What was lost since cannot be told from here.
            return Ok(());
        }
        let fail = |doing| {
            let path = self.home.path().with_extension("new");
            move |source| JournalError::Io { doing, path, source }
        };
        let mut bytes = header(self.losses.load(Ordering::Relaxed));
        fill(&mut |record| encode(record, &mut bytes));
        let next = self.home.next().map_err(fail("find"))?;
        let mut file = begin(&next).map_err(fail("create"))?;
        file.write_all(&bytes).map_err(fail("write"))?;
        next.replace(&self.home).map_err(fail("rename"))?;
        *current = file;
        self.size.store(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Lets a rewrite be tried again, once it is worth it, when it is dropped.
struct Tried<'a>(&'a Journal);

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        let doubled = self.0.size.load(Ordering::Relaxed).saturating_mul(2);
        self.0.rewrite_above.store(doubled.max(REWRITE_MIN), Ordering::Relaxed);
        self.0.rewriting.store(false, Ordering::Relaxed);
    }
}

/// An empty file, in place of what was there.
fn begin(home: &Home) -> io::Result<File> {
    home.remove();
    home.file(OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL)
}

/// The highest id among `records` of nodes.
fn highest(records: &[Record]) -> Option<u64> {
    let ids = records.iter().map(|record| match record {
        Record::Node(node) => node.id.0,
        _ => 0,
    });
    ids.max()
}

fn header(losses: u32) -> Vec<u8> {
    [MAGIC.as_slice(), &VERSION.to_le_bytes(), &losses.to_le_bytes()].concat()
}

fn encode(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match record {
        Record::Node(node) => {
            let len = u16::try_from(16 + node.name.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&[KIND_NODE, MARK]);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&node.id.0.to_le_bytes());
            out.extend_from_slice(&node.parent.0.to_le_bytes());
            out.extend_from_slice(&node.name);
        }
        Record::Backing(id, number) => encode_backing(KIND_BACKING, *id, *number, out),
        Record::BackingEnded(id, number) => encode_backing(KIND_BACKING_ENDED, *id, *number, out),
        Record::Cached(id) => encode_backing(KIND_CACHED, *id, 0, out),
        Record::CachedEnded(id) => encode_backing(KIND_CACHED_ENDED, *id, 0, out),
        Record::Next(id) => encode_backing(KIND_NEXT, *id, 0, out),
        Record::Replaced(id) => encode_backing(KIND_REPLACED, *id, 0, out),
        Record::Member(id, identity) => {
            let (value, nanoseconds) = match *identity {
                Identity::Born((seconds, nanoseconds)) => (seconds.cast_unsigned(), nanoseconds),
                Identity::Inode(inode) => (inode, INODE),
            };
            out.extend_from_slice(&[KIND_MEMBER, MARK, 20, 0]);
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
            out.extend_from_slice(&nanoseconds.to_le_bytes());
        }
    }
    if let Some((place, rest)) = out.get_mut(start..).and_then(|r| r.split_first_chunk_mut::<4>()) {
        *place = crc32fast::hash(rest).to_le_bytes();
    }
}

fn encode_backing(kind: u8, id: NodeId, number: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, MARK, 12, 0]);
    out.extend_from_slice(&id.0.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
}

/// Decodes what is whole in `window`; returns how many bytes are done with. With `last`, nothing follows.
fn decode(window: &[u8], last: bool, each: &mut impl FnMut(Record)) -> usize {
    let mut at = 0;
    while let Some(rest) = window.get(at..).filter(|rest| !rest.is_empty()) {
        match parse(rest) {
            Parsed::Whole(record, len) => match next_inside(rest, len) {
                Some(next) => at += next,
                None => {
                    each(record);
                    at += len;
                }
            },
            Parsed::Short if !last => return at,
            Parsed::Short | Parsed::Bad => at += 1,
        }
    }
    at
}

/// Where another record begins inside the one of `len` bytes that `bytes` begins with. That one was torn then, and the
/// first bytes of the other one happen to be those that it lacks.
fn next_inside(bytes: &[u8], len: usize) -> Option<usize> {
    let behind = bytes.get(len..).filter(|behind| !behind.is_empty())?;
    if !matches!(parse(behind), Parsed::Bad) {
        return None;
    }
    // A name is nothing of the kind: ids below `ID_END` have a NUL in them.
    (1..len).find(|at| bytes.get(*at..).is_some_and(|inside| matches!(parse(inside), Parsed::Whole(..))))
}

enum Parsed {
    Whole(Record, usize),
    /// The beginning of a record, as far as one can tell.
    Short,
    Bad,
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
        return Parsed::Short;
    };
    let [c0, c1, c2, c3, kind, mark, l0, l1] = *head;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    if mark != MARK || len > PAYLOAD_MAX || !(KIND_NODE..=KIND_REPLACED).contains(&kind) {
        return Parsed::Bad;
    }
    let Some(payload) = rest.get(..len) else {
        return Parsed::Short;
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind, mark, l0, l1]);
    hasher.update(payload);
    if hasher.finalize() != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Parsed::Bad;
    }
    let Some((id, payload)) = payload.split_first_chunk::<8>() else {
        return Parsed::Bad;
    };
    let id = NodeId(u64::from_le_bytes(*id));
    if id.0 >= ID_END {
        return Parsed::Bad;
    }
    let record = match kind {
        KIND_NODE => payload.split_first_chunk::<8>().map(|(parent, name)| {
            Record::Node(NodeRecord { id, parent: NodeId(u64::from_le_bytes(*parent)), name: name.into() })
        }),
        KIND_MEMBER => payload.split_first_chunk::<8>().and_then(|(value, nanoseconds)| {
            let value = u64::from_le_bytes(*value);
            let identity = match u32::from_le_bytes(nanoseconds.try_into().ok()?) {
                INODE => Identity::Inode(value),
                nanoseconds => Identity::Born((value.cast_signed(), nanoseconds)),
            };
            Some(Record::Member(id, identity))
        }),
        _ => <[u8; 4]>::try_from(payload).ok().map(u32::from_le_bytes).map(|number| match kind {
            KIND_BACKING => Record::Backing(id, number),
            KIND_BACKING_ENDED => Record::BackingEnded(id, number),
            KIND_CACHED => Record::Cached(id),
            KIND_CACHED_ENDED => Record::CachedEnded(id),
            KIND_REPLACED => Record::Replaced(id),
            _ => Record::Next(id),
        }),
    };
    record.map_or(Parsed::Bad, |record| Parsed::Whole(record, RECORD_HEADER + len))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
