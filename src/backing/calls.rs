//! The system calls that the backing store makes, each in one place.
//!
//! Responsibility: the calls with their flags, repeated when they were interrupted. It is also where tests let the
//! host fail: `faults` answers the n-th call with an error instead of making it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

/// How often a call that was interrupted, or raced with a rename, is made again. Signals are blocked in every thread
/// (`crate::monitor`), so more than one in a row comes from a file system that answers so for ever.
const RETRIES: usize = 64;

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
fn end_is_here() -> bool {
    false
}

#[cfg(test)]
use faults::{end_is_here, fault};

/// Opens `path` below `base`, never through a link (openat2(2)).
pub(super) fn open(base: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    again(|| {
        fault()?;
        rustix::fs::openat2(&base, &path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    })
}

/// A description of its own for the directory `dir`, at its beginning (openat(2)).
pub(super) fn reopen(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    again(|| {
        fault()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, c".", flags, Mode::empty())
    })
}

/// Attributes of `name` in `dir`, of `dir` itself when the name is empty (statx(2)).
pub(super) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    again(|| {
        fault()?;
        rustix::fs::statx(&dir, name, flags, wanted)
    })
}

/// Target of the link `name` in `dir` (readlinkat(2)).
pub(super) fn readlink(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    again(|| {
        fault()?;
        rustix::fs::readlinkat(&dir, name, Vec::with_capacity(256)).map(CString::into_bytes)
    })
}

/// Calls `each` for every name in `dir`, `.` and `..` left out (getdents64(2)). `dir` is at its beginning.
pub(super) fn names(dir: impl AsFd, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
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
                name => each(name),
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
    again(|| {
        fault()?;
        if end_is_here() {
            return Ok(0);
        }
        rustix::io::preadv2(&file, &mut [IoSliceMut::new(buffer)], offset, flags)
    })
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

    #[derive(Debug, Default)]
    struct Plan {
        made: usize,
        /// The numbers of the calls that fail, and how.
        fail: Option<(std::ops::Range<usize>, Errno)>,
        failed: bool,
        /// Whether reads end at the beginning.
        short: bool,
    }

    thread_local!(static PLAN: RefCell<Plan> = RefCell::default());

    pub(super) fn fault() -> Result<(), Errno> {
        PLAN.with_borrow_mut(|plan| {
            let number = plan.made;
            plan.made += 1;
            match &plan.fail {
                Some((numbers, errno)) if numbers.contains(&number) => {
                    plan.failed = true;
                    Err(*errno)
                }
                _ => Ok(()),
            }
        })
    }

    pub(super) fn end_is_here() -> bool {
        PLAN.with_borrow(|plan| plan.short)
    }

    /// Does `work`, during which every read ends where it begins.
    pub(crate) fn short_reads<T>(work: impl FnOnce() -> T) -> T {
        PLAN.set(Plan { short: true, ..Plan::default() });
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
