//! The system calls that the backing store makes, each in one place.
//!
//! Responsibility: the calls with their flags, repeated when they were interrupted. It is also where tests let the
//! host fail: `faults` answers the n-th call with an error instead of making it.

use std::ffi::CString;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    Advice, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxFlags,
};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

/// How often a call that was interrupted, or raced with a rename, is made again. Signals are blocked in every thread
/// (`crate::monitor`), so more than one in a row comes from a file system that answers so for ever.
const RETRIES: usize = 64;

/// No link leads anywhere, and nothing is reached but what lies below (openat2(2)).
const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Nor what is mounted there.
const ON_ONE_MOUNT: ResolveFlags = BELOW.union(ResolveFlags::NO_XDEV);
/// How a directory is opened again.
const ANEW: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Of the link itself; of the directory, when there is no name.
const ITSELF: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::EMPTY_PATH);
/// The attributes that are asked for.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Makes `call`, again while it is only interrupted. `EAGAIN` of openat2(2) is a rename that raced with it.
fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..RETRIES {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    call()
}

#[cfg(not(test))]
fn fault() -> Result<(), Errno> {
    Ok(())
}

#[cfg(not(test))]
fn longest_read() -> usize {
    usize::MAX
}

#[cfg(test)]
use faults::{fault, longest_read};

/// Opens `path` below `base`, never through a link or a mount point (openat2(2)).
pub(super) fn open(base: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve(base, path, flags, ON_ONE_MOUNT)
}

/// The same, but `path` may be, or lead through, a mount point.
pub(super) fn open_across(base: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve(base, path, flags, BELOW)
}

fn resolve(base: impl AsFd, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let flags = flags.union(OFlags::CLOEXEC);
    again(|| {
        fault()?;
        rustix::fs::openat2(&base, &path, flags, Mode::empty(), how)
    })
}

/// A description of its own for the directory `dir`, at its beginning (openat(2)).
pub(super) fn reopen(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    again(|| {
        fault()?;
        rustix::fs::openat(&dir, c".", ANEW, Mode::empty())
    })
}

/// Attributes of `name` in `dir`, of `dir` itself when the name is empty (statx(2)).
pub(super) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Statx, Errno> {
    again(|| {
        fault()?;
        rustix::fs::statx(&dir, name, ITSELF, WANTED)
    })
}

/// Target of the link `name` in `dir` (readlinkat(2)).
pub(super) fn readlink(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    again(|| {
        fault()?;
        rustix::fs::readlinkat(&dir, name, Vec::with_capacity(256)).map(CString::into_bytes)
    })
}

/// Calls `each` for every name in `dir`, and what it stands for if the file system says so, `.` and `..` left out
/// (getdents64(2)). `dir` is at its beginning.
pub(super) fn names(dir: impl AsFd, mut each: impl FnMut(&[u8], FileType)) -> Result<(), Errno> {
    /// About the names of a directory of some hundred entries.
    const BUFFER: usize = 8 << 10;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut retries = RETRIES;
    loop {
        let next = if entries.is_buffer_empty() { fault().err().map(Err) } else { None };
        match next.or_else(|| entries.next()) {
            None => return Ok(()),
            Some(Err(Errno::INTR | Errno::AGAIN)) if retries > 0 => retries -= 1,
            Some(Err(error)) => return Err(error),
            Some(Ok(entry)) => match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => each(name, entry.file_type()),
            },
        }
    }
}

/// Reads at `offset` (preadv2(2)).
pub(super) fn read(
    file: impl AsFd,
    buffer: &mut [u8],
    offset: u64,
    flags: ReadWriteFlags,
) -> Result<usize, Errno> {
    let length = buffer.len().min(longest_read());
    let buffer = buffer.get_mut(..length).unwrap_or_default();
    again(|| {
        fault()?;
        rustix::io::preadv2(&file, &mut [IoSliceMut::new(buffer)], offset, flags)
    })
}

/// Says what will happen to some bytes of `file` (posix_fadvise(2)).
pub(super) fn advise(file: impl AsFd, offset: u64, length: NonZeroU64, advice: Advice) -> Result<(), Errno> {
    rustix::fs::fadvise(file, offset, Some(length), advice)
}

/// The next data or hole (lseek(2)).
pub(super) fn seek(file: impl AsFd, from: SeekFrom) -> Result<u64, Errno> {
    fault()?;
    rustix::fs::seek(file, from)
}

/// Faults of the host, for tests: of the calling thread only.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::RefCell;

    use rustix::io::Errno;

    /// Something that happens on the host.
    type Event = Box<dyn FnOnce()>;

    #[derive(Default)]
    struct Plan {
        made: usize,
        /// What happens before the call with this number.
        event: Option<(usize, Event)>,
        /// The numbers of the calls that fail, and how.
        fail: Option<(std::ops::Range<usize>, Errno)>,
        failed: bool,
        /// How many bytes a read gives at the most.
        longest_read: Option<usize>,
    }

    thread_local!(static PLAN: RefCell<Plan> = RefCell::default());

    pub(super) fn fault() -> Result<(), Errno> {
        let number = PLAN.with_borrow_mut(|plan| {
            plan.made += 1;
            plan.made - 1
        });
        // It may make calls, too.
        let event = PLAN.with_borrow_mut(|plan| plan.event.take_if(|(at, _)| *at == number));
        event.into_iter().for_each(|(_, event)| event());
        PLAN.with_borrow_mut(|plan| match &plan.fail {
            Some((numbers, errno)) if numbers.contains(&number) => {
                plan.failed = true;
                Err(*errno)
            }
            _ => Ok(()),
        })
    }

    pub(super) fn longest_read() -> usize {
        PLAN.with_borrow(|plan| plan.longest_read).unwrap_or(usize::MAX)
    }

    /// Does `work`, during which `event` happens before the call with this number. Returns its result, and whether there
    /// was such a call.
    pub(crate) fn happening<T>(
        number: usize,
        event: impl FnOnce() + 'static,
        work: impl FnOnce() -> T,
    ) -> (T, bool) {
        PLAN.set(Plan { event: Some((number, Box::new(event))), ..Plan::default() });
        let result = work();
        (result, PLAN.take().event.is_none())
    }

    /// Does `work`, during which every read gives `length` bytes at the most.
    pub(crate) fn reads_of<T>(length: usize, work: impl FnOnce() -> T) -> T {
        PLAN.set(Plan { longest_read: Some(length), ..Plan::default() });
        let result = work();
        PLAN.take();
        result
    }

    /// Does `work`, during which the calls with these numbers fail. Returns its result, how many calls were made, and
    /// whether one failed.
    pub(crate) fn during<T>(
        numbers: std::ops::Range<usize>,
        errno: Errno,
        work: impl FnOnce() -> T,
    ) -> (T, usize, bool) {
        PLAN.set(Plan { fail: Some((numbers, errno)), ..Plan::default() });
        let result = work();
        let plan = PLAN.take();
        (result, plan.made, plan.failed)
    }
}
