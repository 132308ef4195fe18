//! The physical store: files and directories below one directory descriptor.
//!
//! Responsibility: attributes, listings, link targets and bytes of what lies at a path below the store
//! directory. It decides nothing about reachability.
//!
//! Invariants:
//! - Nothing is reached but through `openat2` below the store's descriptor with `RESOLVE_BENEATH`,
//!   `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS`, or by one single name in a directory so opened: no
//!   link can lead elsewhere (openat2(2)).
//! - The number of open descriptors is bounded, whatever is known or open above.
//!
//! Hard points:
//! 1. Paths may be longer than `PATH_MAX`: they are opened in stretches.
//! 2. `RWF_DONTCACHE` (Linux 6.14) keeps a page read here from being cached twice; where the kernel or the
//!    file system below has it not, reads go without.
//! 3. A NAR holds plain files, directories and symbolic links only; anything else in a store is not there.
//! 4. What is kept open may be removed and another be put in its place: see [`Backing::in_kept`].

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

use crate::trie::NodeId;

/// `RWF_DONTCACHE` of `linux/fs.h`: drop the pages that this read brings in.
const RWF_DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Longest stretch of a path opened at once; `PATH_MAX` is 4096 with the closing NUL.
const STRETCH: usize = 4000;
/// Descriptors kept open in each of the two caches: 16 shards of 16.
const SHARDS: usize = 16;
const SHARD_LEN: usize = 16;
/// How a directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
/// Bytes of names asked of a directory at once: about what one reply with attributes holds.
const LISTING: usize = 8 << 10;

type Shard = Mutex<Vec<(NodeId, Arc<OwnedFd>)>>;

/// What lies at a name: the three kinds that a NAR knows (Nix manual, "Nix Archive").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

impl Kind {
    fn of(kind: FileType) -> Option<Self> {
        match kind {
            FileType::RegularFile => Some(Self::File),
            FileType::Directory => Some(Self::Directory),
            FileType::Symlink => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// The attributes that belong to a store object. Times of access and change and the count of hard links say
/// more about the host than about the object, and are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// File, directory or link.
    pub kind: Kind,
    /// Permission bits.
    pub perm: u16,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Space taken in units of 512 bytes.
    pub blocks: u64,
    /// Modification time: seconds since 1970 and nanoseconds. 1 in every store object.
    pub mtime: (i64, u32),
    /// Links to a directory: 2 and one for each directory in it, on most file systems. 1 for anything else.
    pub nlink: u32,
    /// The inode number below of a plain file that has more names than this one, else none.
    pub linked: Option<u64>,
}

/// Where a node lies: the directory that holds it, and its name there.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The directory's node, as the key of the descriptor kept open.
    pub parent: NodeId,
    /// The directory's path below the store directory; empty for the store directory itself.
    pub dir: &'a [u8],
    /// The name in it: one component.
    pub name: &'a [u8],
}

/// One name of a listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name; `.` and `..` occur.
    pub name: &'a [u8],
    /// Where to go on after this entry.
    pub next: u64,
    /// Its attributes; none for `.` and `..`.
    pub stat: Option<Stat>,
}

/// The store directory. All methods may be called from any thread.
#[derive(Debug)]
pub struct Backing {
    store: Arc<OwnedFd>,
    /// Its file system: inode numbers mean something within one only.
    device: (u32, u32),
    dirs: Descriptors,
    files: Descriptors,
    dontcache: AtomicBool,
}

impl Backing {
    /// Serves what lies in the directory `store`.
    #[must_use]
    pub fn new(store: OwnedFd) -> Self {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        // Without an answer no file is taken for another.
        let device = rustix::fs::statx(&store, c"", flags, StatxFlags::TYPE)
            .map_or((u32::MAX, u32::MAX), |stat| (stat.stx_dev_major, stat.stx_dev_minor));
        Self {
            store: Arc::new(store),
            device,
            dirs: Descriptors::default(),
            files: Descriptors::default(),
            dontcache: AtomicBool::new(true),
        }
    }

    /// Opens the store directory in the way that everything in it will be opened.
    ///
    /// # Errors
    /// Those of openat2(2); `ENOSYS` also where a system call filter refuses it.
    pub fn check(&self) -> Result<(), Errno> {
        open_beneath(&*self.store, b".", OFlags::RDONLY | OFlags::DIRECTORY).map(drop)
    }

    /// Attributes of what lies at `place`, of the link itself if it is one.
    ///
    /// # Errors
    /// `ENOENT` also for what is neither file, directory nor link.
    pub fn stat(&self, place: Place<'_>) -> Result<Stat, Errno> {
        self.within(place, |dir| self.stat_in(dir, place.name))
    }

    fn stat_in(&self, dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
        let wanted = StatxFlags::BASIC_STATS;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(dir, name, flags, wanted)?;
        let mode = u32::from(stat.stx_mode);
        let kind = Kind::of(FileType::from_raw_mode(mode)).ok_or(Errno::NOENT)?;
        let linked = kind == Kind::File
            && stat.stx_nlink > 1
            && (stat.stx_dev_major, stat.stx_dev_minor) == self.device;
        Ok(Stat {
            kind,
            perm: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            nlink: if kind == Kind::Directory { stat.stx_nlink } else { 1 },
            linked: linked.then_some(stat.stx_ino),
        })
    }

    /// Target of the symbolic link at `place`.
    ///
    /// # Errors
    /// Those of readlinkat(2).
    pub fn readlink(&self, place: Place<'_>) -> Result<Vec<u8>, Errno> {
        self.within(place, |dir| rustix::fs::readlinkat(dir, place.name, Vec::with_capacity(256)))
            .map(CString::into_bytes)
    }

    /// Lists the directory `id` at `place` from the position `from` (0: the beginning), each entry with its
    /// attributes, until `each` returns false.
    ///
    /// # Errors
    /// Those of openat2(2) and getdents64(2).
    pub fn list(
        &self,
        id: NodeId,
        place: Place<'_>,
        from: u64,
        mut each: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let kept = || self.dirs.get(id, || self.open_in(place, DIRECTORY));
        // A directory that is no more has no entries, so none has been told before a second attempt.
        self.in_kept(id, kept, |dir| self.list_in(dir, from, &mut each))
    }

    fn list_in(
        &self,
        dir: BorrowedFd<'_>,
        from: u64,
        each: &mut impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        // A description of its own: the kept one is shared, and so would be its position. And on ext4 one that was
        // moved to its end, read, and moved back reads as empty once.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
        if from > 0 {
            rustix::fs::seek(&own, SeekFrom::Start(from))?;
        }
        let mut buffer = Vec::with_capacity(LISTING);
        let mut entries = RawDir::new(&own, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let stat = match name {
                b"." | b".." => None,
                _ => match self.stat_in(&own, name) {
                    Ok(stat) => Some(stat),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                },
            };
            if !each(DirEntry { name, next: entry.next_entry_cookie(), stat }) {
                break;
            }
        }
        Ok(())
    }

    /// Reads from the plain file `id` at `place` into `buffer`; returns how many bytes there were.
    ///
    /// # Errors
    /// Those of openat2(2) and preadv2(2).
    pub fn read(&self, id: NodeId, place: Place<'_>, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let file = self.file(id, place)?;
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_once(&file, offset + done as u64, rest) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn read_once(&self, file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        if self.dontcache.load(Ordering::Relaxed) {
            match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, RWF_DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    self.dontcache.store(false, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        rustix::io::pread(file, buffer, offset)
    }

    /// Keeps reads from asking for it: for measuring, and for forcing the fallback.
    pub fn without_dontcache(&self) {
        self.dontcache.store(false, Ordering::Relaxed);
    }

    /// The next data (`hole` false) or hole at or after `offset` in the plain file `id`.
    ///
    /// # Errors
    /// Those of lseek(2); `ENXIO` past the end.
    pub fn seek(&self, id: NodeId, place: Place<'_>, offset: u64, hole: bool) -> Result<u64, Errno> {
        let file = self.file(id, place)?;
        rustix::fs::seek(&*file, if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) })
    }

    /// The plain file `id` at `place`, open for reading.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn file(&self, id: NodeId, place: Place<'_>) -> Result<Arc<OwnedFd>, Errno> {
        self.files.get(id, || self.open_in(place, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW))
    }

    /// Lets go of what is open for `id`.
    pub fn close(&self, id: NodeId) {
        self.dirs.remove(id);
        self.files.remove(id);
    }

    fn directory(&self, id: NodeId, path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(self.store.clone());
        }
        self.dirs.get(id, || self.open(path, DIRECTORY))
    }

    fn open_in(&self, place: Place<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.within(place, |dir| open_beneath(dir, place.name, flags))
    }

    /// Does `work` in the directory of `place`.
    fn within<T>(
        &self,
        place: Place<'_>,
        work: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.in_kept(place.parent, || self.directory(place.parent, place.dir), work)
    }

    /// Does `work` in the directory `id`, which `kept` gives: again in one opened anew if the kept one has been removed,
    /// as a repair removes one when it has put another in its place.
    fn in_kept<T>(
        &self,
        id: NodeId,
        kept: impl Fn() -> Result<Arc<OwnedFd>, Errno>,
        mut work: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let dir = kept()?;
        match work(dir.as_fd()) {
            Err(Errno::NOENT) if is_removed(&*dir) => {
                self.dirs.remove(id);
                work(kept()?.as_fd())
            }
            answer => answer,
        }
    }

    /// Opens `path` below the store directory, in stretches where it is long.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        let mut rest = path;
        loop {
            let base = at.as_ref().map_or(self.store.as_fd(), AsFd::as_fd);
            let cut = rest.get(..STRETCH).and_then(|head| head.iter().rposition(|b| *b == b'/'));
            let Some((head, tail)) = cut.and_then(|cut| rest.split_at_checked(cut)) else {
                return open_beneath(base, rest, flags);
            };
            at = Some(open_beneath(base, head, OFlags::PATH | OFlags::DIRECTORY)?);
            rest = tail.get(1..).unwrap_or_default();
        }
    }
}

fn open_beneath(base: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    loop {
        match rustix::fs::openat2(&base, &path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename somewhere on the machine raced with the resolution (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Whether no name leads to this directory any more.
fn is_removed(dir: impl AsFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(dir, c"", flags, StatxFlags::NLINK).is_ok_and(|stat| stat.stx_nlink == 0)
}

/// Descriptors kept open, by node: a small list in each shard, the last used in front.
#[derive(Debug, Default)]
struct Descriptors {
    shards: [Shard; SHARDS],
}

impl Descriptors {
    fn shard(&self, id: NodeId) -> Option<&Shard> {
        self.shards.get(usize::try_from(id.0 % SHARDS as u64).unwrap_or_default())
    }

    fn get(&self, id: NodeId, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Arc<OwnedFd>, Errno> {
        let shard = self.shard(id).ok_or(Errno::BADF)?;
        {
            let mut kept = shard.lock();
            if let Some(at) = kept.iter().position(|(known, _)| *known == id) {
                let found = kept.remove(at);
                let file = found.1.clone();
                kept.insert(0, found);
                return Ok(file);
            }
        }
        let file = Arc::new(open()?);
        let mut kept = shard.lock();
        let dropped = if kept.len() >= SHARD_LEN { kept.pop() } else { None };
        kept.insert(0, (id, file.clone()));
        drop(kept);
        // Closing is a system call: not under the lock.
        drop(dropped);
        Ok(file)
    }

    fn remove(&self, id: NodeId) {
        if let Some(shard) = self.shard(id) {
            let mut kept = shard.lock();
            let gone = kept.iter().position(|(known, _)| *known == id).map(|at| kept.remove(at));
            drop(kept);
            drop(gone);
        }
    }
}

#[cfg(test)]
#[path = "backing_tests.rs"]
mod tests;
