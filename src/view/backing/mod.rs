//! The physical store: files and directories below one directory descriptor.
//!
//! Responsibility: attributes, listings, link targets and bytes of what lies at a path below the store
//! directory. It decides nothing about reachability.
//!
//! Invariants:
//! - Nothing is reached but through `openat2` below the store's descriptor with `RESOLVE_BENEATH`,
//!   `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS`, or by one single name in a directory so opened: no
//!   link can lead elsewhere (openat2(2)).
//! - Nothing is served that the host has mounted below a member. A member itself may be a mount point: of a store that
//!   consists of several file systems or bind mounts.
//! - Nothing is opened but what is a plain file or a directory when it is looked at just before, and nothing is read but a
//!   plain file. So a pipe is not waited for, and no driver is woken.
//! - The number of open descriptors is bounded, whatever is known or open above ([`descriptors`]).
//! - An error of the host is an error here: never an absence, an end of file, or a shorter listing. "There is no such
//!   name" says whether that will last ([`BackingError::Absent`]).
//! - An operation that fails through a cached descriptor is repeated through a new one, except for `EIO` of a read; no
//!   descriptor that failed stays cached.
//!
//! Hard points:
//! 1. Paths may be longer than `PATH_MAX`: they are opened in stretches.
//! 2. `RWF_DONTCACHE` (Linux 6.14) keeps a page read here from being cached twice; where the kernel or the
//!    file system below has it not, reads go without.
//! 3. A NAR holds plain files, directories and symbolic links only; anything else in a store is not there.
//! 4. Nix repairs a path by deleting and writing it in place (`LocalStore::addToStore`), or by renaming the old tree away
//!    and deleting it (`replaceValidPath`). Until that is done names are missing and files are short. What is in the
//!    middle of that has a recent modification time, which Nix sets to 1 last ([`Stat::settled`]).
//! 5. The kernel takes fewer bytes than it asked for as the end of the file, for ever. So a read gives everything up to
//!    the length that the same descriptor has, or fails.

mod ahead;
mod calls;
mod descriptors;
mod names;
mod objects;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{OFlags, SeekFrom, Statx, StatxAttributes};
use rustix::io::{Errno, ReadWriteFlags};

use crate::view::trie::NodeId;
pub use ahead::Ahead;
#[cfg(test)]
pub(crate) use calls::faults;
use descriptors::{Descriptors, Held, Of};
use names::{Listings, Names};
pub use objects::{BackingError, FileId, Identity, Kind, Read, Stat, Target, Time};
use objects::{is_file, is_settled};

/// `RWF_DONTCACHE` of `linux/fs.h`: drop the pages that this read brings in.
const RWF_DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Longest stretch of a path opened at once; `PATH_MAX` is 4096 with the closing NUL.
const STRETCH: usize = 4000;
/// How a directory is opened that only leads to others.
const ON_THE_WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
/// How a directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
/// How a file is opened.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW);
/// Largest position in a directory: what a 32-bit program can hold.
pub const POSITION_MAX: u64 = i32::MAX as u64;
/// Positions of `.` and `..`; the first name follows.
const DOTS: [&[u8]; 2] = [b".", b".."];

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
    /// The position after this entry.
    pub next: u64,
    /// What is there.
    pub at: At,
}

/// What is at a name of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The directory itself or the one above, whose attributes are not looked at.
    Dot,
    /// An object with these attributes.
    Object(Stat),
    /// Something that the host has mounted there: the name is the store's, what is there is not.
    Mount,
}

/// The store directory. All methods may be called from any thread.
#[derive(Debug)]
pub struct Backing {
    store: Arc<OwnedFd>,
    /// Its file system: inode numbers mean something within one only. None: nothing is known of it.
    device: Option<(u32, u32)>,
    kept: Descriptors,
    listings: Listings,
    /// How often [`Backing::close_all`] was called.
    replaced: AtomicUsize,
    dontcache: AtomicBool,
}

impl Backing {
    /// Serves what lies in the directory `store`.
    #[must_use]
    pub fn new(store: OwnedFd) -> Self {
        // Without an answer no file is taken for another.
        let device = calls::stat(&store, b"").ok().map(|stat| (stat.stx_dev_major, stat.stx_dev_minor));
        Self {
            store: Arc::new(store),
            device,
            kept: Descriptors::default(),
            listings: Listings::default(),
            replaced: AtomicUsize::new(0),
            dontcache: AtomicBool::new(true),
        }
    }

    /// Opens the store directory in the way that everything in it will be opened.
    ///
    /// # Errors
    /// Those of openat2(2); `ENOSYS` also where a system call filter refuses it.
    pub fn check(&self) -> Result<(), Errno> {
        calls::open(&*self.store, b".", DIRECTORY).map(drop)
    }

    /// Says that `room` descriptors are to be had, for as many as `threads` operations at once. Before the first
    /// operation only.
    pub fn set_room(&self, room: usize, threads: usize) {
        self.kept.set_room(room, threads);
    }

    /// Attributes of what lies at `place`, of the link itself if it is one.
    ///
    /// # Errors
    /// [`BackingError`]; absent is also what is neither file, directory nor link.
    pub fn stat(&self, place: Place<'_>) -> Result<Stat, BackingError> {
        let _pass = self.kept.enter();
        self.within(place.parent, place.dir, |dir| self.stat_in(dir, place.dir, place.name))
    }

    /// Attributes of `name` in the directory `dir` at `path`.
    fn stat_in(&self, dir: impl AsFd, path: &[u8], name: &[u8]) -> Result<Stat, Errno> {
        let stat = calls::stat(dir, name)?;
        if !path.is_empty() && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(Errno::XDEV);
        }
        Stat::of(&stat, self.device).ok_or(Errno::NOENT)
    }

    /// Target of the symbolic link at `place`.
    ///
    /// # Errors
    /// [`BackingError`].
    pub fn readlink(&self, place: Place<'_>) -> Result<Target, BackingError> {
        let _pass = self.kept.enter();
        self.within(place.parent, place.dir, |dir| {
            let target = calls::readlink(dir, place.name)?;
            Ok(Target { target, settled: is_settled(&calls::stat(dir, place.name)?) })
        })
    }

    /// Lists the directory `id` at `path` from the position `from` (0: the beginning), each entry with its
    /// attributes, until `each` returns false. Returns whether the listing can be believed: nobody is writing or removing
    /// the directory, and nothing is mounted in it.
    ///
    /// # Errors
    /// [`BackingError`], if `each` was called for no entry: otherwise the next request starts after the last one and gets
    /// the error. `ESTALE` for a position that no listing of this program has.
    pub fn list(
        &self,
        id: NodeId,
        path: &[u8],
        from: u64,
        mut each: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<bool, BackingError> {
        let _pass = self.kept.enter();
        let from = usize::try_from(from).ok().filter(|at| *at as u64 <= POSITION_MAX).ok_or(Errno::STALE)?;
        let first = from.saturating_sub(DOTS.len());
        let known = if from == 0 { None } else { self.listings.get(id, first) };
        // Names that were read while the directory was being written are good until it is finished.
        let good = |names: &Arc<Names>| {
            names.settled || !self.directory(id, path).is_ok_and(|dir| is_settled_at(&dir))
        };
        let names = match known.filter(good) {
            Some(names) => names,
            None => {
                let names = Arc::new(self.names(id, path)?);
                self.listings.put(id, &names, first);
                names
            }
        };
        // Those of an object that was replaced meanwhile: positions in it mean what they meant, and nobody caches it.
        let present = names.settled && names.replaced == self.replaced.load(Ordering::Acquire);
        if first >= names.total() && from > 0 {
            self.listings.drop(id);
            return Ok(present);
        }
        let (mut told, mut complete) = (0, present);
        let dots = DOTS.into_iter().map(|dot| (dot, true)).skip(from);
        let names = (first..).map_while(|at| Some((names.get(at)?, false)));
        for (at, (name, dot)) in (from..).zip(dots.chain(names)) {
            let at_name = match dot {
                true => At::Dot,
                false => match self.within(id, path, |dir| self.stat_in(dir, path, name)) {
                    Ok(stat) => At::Object(stat),
                    Err(BackingError::Host(Errno::XDEV)) => {
                        complete = false;
                        At::Mount
                    }
                    Err(BackingError::Absent { settled }) => {
                        complete &= settled;
                        continue;
                    }
                    Err(_) if told > 0 => break,
                    Err(error) => return Err(error),
                },
            };
            if !each(DirEntry { name, next: at as u64 + 1, at: at_name }) {
                break;
            }
            told += 1;
        }
        Ok(complete)
    }

    /// All names in the directory `id`.
    fn names(&self, id: NodeId, path: &[u8]) -> Result<Names, BackingError> {
        let replaced = self.replaced.load(Ordering::Acquire);
        let read = |dir: BorrowedFd<'_>| {
            // A description of its own: the kept one is shared, and so would be its position.
            let own = self.opening(|| calls::reopen(dir))?;
            let (mut bytes, mut ends) = (Vec::new(), Vec::new());
            calls::names(&own, |name, _| {
                bytes.extend_from_slice(name);
                ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            })?;
            // After reading: what was removed or added meanwhile has changed its time.
            let settled = is_settled(&calls::stat(&own, b"")?);
            let mut names = Names::sorted(&bytes, &ends);
            (names.settled, names.replaced) = (settled, replaced);
            Ok(names)
        };
        self.within_if(id, path, read, |names| names.settled)
    }

    /// Reads from the plain file `id` at `place` into `buffer`.
    ///
    /// # Errors
    /// [`BackingError`]; then no byte of it counts.
    pub fn read(
        &self,
        id: NodeId,
        place: Place<'_>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Read, BackingError> {
        let _pass = self.kept.enter();
        self.with_file(id, place, |file, stat| {
            let there = usize::try_from(stat.stx_size.saturating_sub(offset)).unwrap_or(usize::MAX);
            let wanted = buffer.len().min(there);
            let mut done = 0;
            while let Some(rest) = buffer.get_mut(done..wanted).filter(|rest| !rest.is_empty()) {
                match self.read_once(file, offset + done as u64, rest)? {
                    0 => return Err(Errno::IO),
                    n => done += n,
                }
            }
            Ok(Read { len: done, settled: is_settled(stat) })
        })
    }

    fn read_once(&self, file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        if self.dontcache.load(Ordering::Relaxed) {
            match calls::read(file, buffer, offset, RWF_DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    self.dontcache.store(false, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        calls::read(file, buffer, offset, ReadWriteFlags::empty())
    }

    /// Keeps reads from asking for it: for measuring, and for forcing the fallback.
    pub fn without_dontcache(&self) {
        self.dontcache.store(false, Ordering::Relaxed);
    }

    /// The next data (`hole` false) or hole at or after `offset` in the plain file `id`.
    ///
    /// # Errors
    /// [`BackingError`]; `ENXIO` past the end.
    pub fn seek(&self, id: NodeId, place: Place<'_>, offset: u64, hole: bool) -> Result<u64, BackingError> {
        let _pass = self.kept.enter();
        let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        self.with_file(id, place, |file, _| calls::seek(file, from))
    }

    /// The plain file `id` at `place`, open for reading.
    ///
    /// # Errors
    /// [`BackingError`].
    pub fn file(&self, id: NodeId, place: Place<'_>) -> Result<Arc<OwnedFd>, BackingError> {
        let _pass = self.kept.enter();
        self.with_file(id, place, |file, _| Ok(file.clone()))
    }

    /// Closes what is open for `id`.
    pub fn close(&self, id: NodeId) {
        self.kept.close(id);
        self.listings.drop(id);
    }

    /// Closes everything that is kept open: a store path was replaced.
    pub fn close_all(&self) {
        // Listings under way keep their names: in those of another object a position may be another name's.
        self.replaced.fetch_add(1, Ordering::AcqRel);
        self.kept.clear();
    }

    /// Does `work` with the plain file `id` and its attributes.
    fn with_file<T>(
        &self,
        id: NodeId,
        place: Place<'_>,
        mut work: impl FnMut(&Arc<OwnedFd>, &Statx) -> Result<T, Errno>,
    ) -> Result<T, BackingError> {
        let open = || {
            self.within(place.parent, place.dir, |dir| {
                if !is_file(&calls::stat(dir, place.name)?) {
                    return Err(Errno::STALE);
                }
                let is_member = place.dir.is_empty();
                let open = if is_member { calls::open_across } else { calls::open };
                self.opening(|| open(dir, place.name, FILE))
            })
        };
        let mut with = |held: &Held| {
            let stat = calls::stat(&*held.fd, b"")?;
            if held.kept && stat.stx_nlink == 0 || !is_file(&stat) {
                // Something else has its name now.
                return Err(Errno::STALE);
            }
            work(&held.fd, &stat)
        };
        let held = self.kept.get(Of::File, id, open)?;
        let (held, answer) = match with(&held) {
            // A disk that fails takes long to say so, and says the same again.
            Err(error) if held.kept && !matches!(error, Errno::IO | Errno::NXIO) => {
                self.kept.discard(Of::File, id, &held);
                let held = self.kept.get(Of::File, id, open)?;
                let answer = with(&held);
                (held, answer)
            }
            answer => (held, answer),
        };
        if answer.as_ref().is_err_and(|error| *error != Errno::NXIO) {
            self.kept.discard(Of::File, id, &held);
        }
        answer.map_err(host)
    }

    /// Does `work` in the directory `id` at `path`.
    fn within<T>(
        &self,
        id: NodeId,
        path: &[u8],
        work: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, BackingError> {
        self.within_if(id, path, work, |_| true)
    }

    /// Does `work` in the directory `id` at `path`, once more in one opened now if the kept one failed, or gave what is
    /// not to be believed.
    fn within_if<T>(
        &self,
        id: NodeId,
        path: &[u8],
        mut work: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
        believed: impl Fn(&T) -> bool,
    ) -> Result<T, BackingError> {
        if path.is_empty() {
            return work(self.store.as_fd()).map_err(host);
        }
        let held = self.directory(id, path)?;
        let (held, answer) = match work(held.fd.as_fd()) {
            Ok(answer) if !held.kept || believed(&answer) => return Ok(answer),
            Err(Errno::NOENT) if is_settled_at(&held) => return Err(BackingError::Absent { settled: true }),
            _ if held.kept => {
                self.kept.discard(Of::Directory, id, &held);
                let held = self.directory(id, path)?;
                let answer = work(held.fd.as_fd());
                (held, answer)
            }
            answer => (held, answer),
        };
        match answer {
            Err(Errno::NOENT) => Err(BackingError::Absent { settled: is_settled_at(&held) }),
            Err(error) => {
                self.kept.discard(Of::Directory, id, &held);
                Err(error.into())
            }
            Ok(answer) => Ok(answer),
        }
    }

    fn directory(&self, id: NodeId, path: &[u8]) -> Result<Held, BackingError> {
        self.kept
            .get(Of::Directory, id, || self.opening(|| open_directory(self.store.as_fd(), path)))
            .map_err(host)
    }

    /// Makes a call that opens something, once more when there is no descriptor left but those that are kept.
    fn opening<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match call() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.kept.clear();
                call()
            }
            answer => answer,
        }
    }
}

/// Opens the directory at `path` below the `store` directory.
fn open_directory(store: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    match open_on_one_mount(store, path) {
        // The member is a mount point, or something below it is.
        Err(Errno::XDEV) => {}
        answer => return answer,
    }
    match path.iter().position(|b| *b == b'/').and_then(|end| path.split_at_checked(end)) {
        Some((member, rest)) => {
            let member = calls::open_across(store, member, ON_THE_WAY)?;
            open_on_one_mount(member.as_fd(), rest.get(1..).unwrap_or_default())
        }
        None => calls::open_across(store, path, DIRECTORY),
    }
}

/// Opens the directory at `path` below `dir`, in stretches where it is long.
fn open_on_one_mount(dir: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let (mut at, mut rest): (Option<OwnedFd>, _) = (None, path);
    loop {
        let base = at.as_ref().map_or(dir, AsFd::as_fd);
        let cut = rest.get(..STRETCH).and_then(|head| head.iter().rposition(|b| *b == b'/'));
        let Some((head, tail)) = cut.and_then(|cut| rest.split_at_checked(cut)) else {
            return calls::open(base, rest, DIRECTORY);
        };
        at = Some(calls::open(base, head, ON_THE_WAY)?);
        rest = tail.get(1..).unwrap_or_default();
    }
}

/// An answer that comes from no settled directory.
fn host(error: Errno) -> BackingError {
    match error {
        Errno::NOENT => BackingError::Absent { settled: false },
        error => BackingError::Host(error),
    }
}

fn is_settled_at(dir: &Held) -> bool {
    calls::stat(&*dir.fd, b"").is_ok_and(|stat| is_settled(&stat))
}

#[cfg(test)]
mod planted_tests;
#[cfg(test)]
pub(crate) mod tests;
