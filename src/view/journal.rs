//! The node journal: what a successor has to know so that node ids keep their meaning.
//!
//! Two files in the state directory, of which one is in use. A node is appended before the reply that makes it known to the kernel,
//! so whatever the kernel can name is in here. Layout, version 1, numbers in little endian:
//!
//! ```text
//! header   8 bytes  "nsfsnode"       2 bytes  version     2 bytes  generation     4 bytes  losses
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
//! 3. Nodes that the kernel forgot leave records behind: [`Journal::rewrite`] writes what is left into the other file. Their ids are
//!    not given again all the same, so that one begins with the next id. It is in use from the moment when it has its header, which
//!    is written last; then the earlier file is made empty. So whenever a server is killed, a file without a header (nothing, or
//!    zeros) is not in use, and of two with one it is that of the later generation. Nothing is renamed: a server
//!    that could do that could make files without end.
//! 4. When the file cannot be written (disk full) the view is still served; only a crash would not be survived. What
//!    must not happen then is that a successor gives an id again that the kernel knows as something else. So
//!    the header, whose place on the disk is there already, counts how often ids may have been lost, and a
//!    successor begins as many times [`LOST_IDS`] further on. A server that runs without a journal for so long that it
//!    comes near that counts once more.

mod home;
mod record;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::RwLock;
use rustix::fs::OFlags;

use home::Half;
pub use home::{Home, open_directory};
pub use record::Record;
use record::{RECORD_HEADER, decode, encode};

const MAGIC: &[u8; 8] = b"nsfsnode";
/// The version of the layout above.
pub const VERSION: u16 = 1;
const HEADER: usize = 16;
/// Where the header counts losses.
const LOSSES_AT: u64 = 12;
/// So many ids are given up for each loss. Few enough to stay below 2^32 for long: an id is an inode number, and 32-bit
/// programs without large-file support cannot examine a larger one.
const LOST_IDS: u64 = 1 << 24;
/// More ids than all threads together can have handed out and not written down.
const LOST_MARGIN: u64 = 1 << 20;
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
        found: u16,
    },
}

/// A journal open for appending; any thread may append.
#[derive(Debug)]
pub struct Journal {
    losses: AtomicU32,
    home: Home,
    /// Appends share it, a rewrite holds it alone.
    used: RwLock<Used>,
    size: AtomicU64,
    /// The size above which the next rewrite may be worth it.
    rewrite_above: AtomicU64,
    broken: AtomicBool,
    /// Once broken: from this id on another loss is to be counted.
    recount_at: AtomicU64,
    rewriting: AtomicBool,
}

/// The file in use.
#[derive(Debug)]
struct Used {
    half: Half,
    generation: u16,
    /// For appending.
    file: File,
}

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    generation: u16,
    losses: u32,
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let parts = [
            MAGIC.as_slice(),
            &VERSION.to_le_bytes(),
            &self.generation.to_le_bytes(),
            &self.losses.to_le_bytes(),
        ];
        for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    /// The header of a file; none: it is not in use.
    fn read(home: &Home, half: Half) -> Result<Option<Self>, JournalError> {
        let path = &home.path(half);
        let fail = |doing| move |source| JournalError::Io { doing, path: path.clone(), source };
        let file = home.file(half, OFlags::RDONLY).map_err(fail("open"))?;
        let mut bytes = Vec::new();
        file.take(HEADER as u64).read_to_end(&mut bytes).map_err(fail("read"))?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let Some([v0, v1, g0, g1, l0, l1, l2, l3]) =
            bytes.strip_prefix(MAGIC).and_then(|rest| <[u8; 8]>::try_from(rest).ok())
        else {
            return Err(JournalError::Foreign(path.clone()));
        };
        match u16::from_le_bytes([v0, v1]) {
            VERSION => Ok(Some(Self {
                generation: u16::from_le_bytes([g0, g1]),
                losses: u32::from_le_bytes([l0, l1, l2, l3]),
            })),
            found => Err(JournalError::Version { path: path.clone(), found }),
        }
    }

    /// Of the file in use.
    fn find(home: &Home) -> Result<(Half, Self), JournalError> {
        let first = Self::read(home, Half::First)?;
        let second = match Self::read(home, Half::Second) {
            // It was never needed.
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            answer => answer?,
        };
        match (first, second) {
            (None, None) => Err(JournalError::Foreign(home.path(Half::First))),
            (Some(first), Some(second)) if second.is_after(first) => Ok((Half::Second, second)),
            (Some(first), _) => Ok((Half::First, first)),
            (None, Some(second)) => Ok((Half::Second, second)),
        }
    }

    fn is_after(self, other: Self) -> bool {
        self.generation.wrapping_sub(other.generation).cast_signed() > 0
    }
}

impl Journal {
    /// Starts an empty journal at `path`, replacing what was there.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let fail = |doing| move |source| JournalError::Io { doing, path: path.to_owned(), source };
        let home = Home::open(path).map_err(fail("find"))?;
        home.begin().map_err(fail("create"))?;
        let header = Header { generation: 0, losses: 0 };
        let file = home.file(Half::First, OFlags::WRONLY | OFlags::APPEND).map_err(fail("open"))?;
        (&file).write_all(&header.bytes()).map_err(|source| {
            // What is no whole journal is none: nobody is to resume from it.
            home.remove();
            fail("write")(source)
        })?;
        let used = Used { half: Half::First, generation: header.generation, file };
        Ok(Self::over(home, used, HEADER as u64, header.losses))
    }

    /// Opens the journal of an earlier server and hands every whole record to `each`, in order.
    ///
    /// # Errors
    /// [`JournalError`]; nothing has been changed then.
    pub fn resume(home: Home, mut each: impl FnMut(Record)) -> Result<Self, JournalError> {
        let (half, Header { generation, losses }) = Header::find(&home)?;
        let path = &home.path(half);
        let fail = |doing| move |source| JournalError::Io { doing, path: path.clone(), source };
        let mut file = home.file(half, OFlags::RDWR | OFlags::APPEND).map_err(fail("open"))?;
        file.read_exact(&mut [0; HEADER]).map_err(fail("read"))?;
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
                // What a server was writing that was killed, or had just replaced.
                home.clear(half.other());
                let journal = Self::over(home, Used { half, generation, file }, size, losses);
                if losses > 0 {
                    // The server before this one began where a loss had been counted, and wrote nothing down.
                    journal.count_loss(half);
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

    fn count_loss(&self, half: Half) {
        let losses = self.losses.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // Not through the descriptor for appending, which knows no positions.
        let written = self
            .home
            .file(half, OFlags::WRONLY)
            .and_then(|file| file.write_all_at(&losses.to_le_bytes(), LOSSES_AT));
        if let Err(error) = written {
            tracing::error!(%error, path = %self.home.path(half).display(), "cannot even note that the node journal is incomplete");
        }
    }

    fn over(home: Home, used: Used, size: u64, losses: u32) -> Self {
        Self {
            losses: AtomicU32::new(losses),
            rewriting: AtomicBool::new(false),
            home,
            used: RwLock::new(used),
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
            let used = self.used.read();
            match (&used.file).write_all(buffer) {
                Ok(()) => {
                    self.size.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                    Ok(())
                }
                Err(_) if self.broken.swap(true, Ordering::AcqRel) => Ok(()),
                Err(source) => {
                    // The file is held: a rewrite would use one in its place that knows of no loss.
                    let last = highest(records).unwrap_or_default();
                    self.recount_at.store(last + LOST_IDS - 2 * LOST_MARGIN, Ordering::Release);
                    self.count_loss(used.half);
                    Err(JournalError::Io { doing: "write", path: self.home.path(used.half), source })
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
            self.count_loss(self.used.read().half);
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

    /// Uses the other file from now on, with what `fill` writes; appends wait meanwhile.
    ///
    /// # Errors
    /// [`JournalError::Io`]; the earlier file stays in use then.
    pub fn rewrite(&self, fill: impl FnOnce(&mut dyn FnMut(&Record))) -> Result<(), JournalError> {
        // However it ends: a journal that is never rewritten again grows for ever.
        let _tried = Tried(self);
        self.replace(fill)
    }

    fn replace(&self, fill: impl FnOnce(&mut dyn FnMut(&Record))) -> Result<(), JournalError> {
        let mut used = self.used.write();
        if self.broken.load(Ordering::Acquire) {
            // What was lost since cannot be told from here.
            return Ok(());
        }
        let half = used.half.other();
        let header = Header {
            generation: used.generation.wrapping_add(1),
            losses: self.losses.load(Ordering::Relaxed),
        };
        let mut bytes = vec![0; HEADER];
        fill(&mut |record| encode(record, &mut bytes));
        let file = self.write_other(half, header, &bytes).inspect_err(|_| self.home.clear(half))?;
        let before = std::mem::replace(&mut *used, Used { half, generation: header.generation, file });
        self.size.store(bytes.len() as u64, Ordering::Relaxed);
        self.home.clear(before.half);
        Ok(())
    }

    /// Writes `bytes` into a file that is not in use, and its header when they are there. Returns it, open for appending.
    fn write_other(&self, half: Half, header: Header, bytes: &[u8]) -> Result<File, JournalError> {
        let fail = |doing| move |source| JournalError::Io { doing, path: self.home.path(half), source };
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC;
        let file = self.home.file(half, flags).map_err(fail("open"))?;
        (&file).write_all(bytes).map_err(fail("write"))?;
        // Not through the descriptor for appending, which knows no positions.
        let head = self.home.file(half, OFlags::WRONLY).map_err(fail("open"))?;
        head.write_all_at(&header.bytes(), 0).map_err(fail("write"))?;
        Ok(file)
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

/// The highest id among `records` of nodes.
fn highest(records: &[Record]) -> Option<u64> {
    let ids = records.iter().map(|record| match record {
        Record::Node(node) => node.id.0,
        _ => 0,
    });
    ids.max()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
