//! How much of a file the kernel has in its page cache: cachestat(2), which the C library has no function for.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

/// The number of the call, which is newer than the numbers that all architectures but old ones share (Linux 6.5).
pub const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat`: pages cached, dirty, being written, evicted, and evicted lately.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    others: [u64; 4],
}

/// How many pages of these bytes of `file` are in memory or on the way to it. It reads nothing.
///
/// # Errors
/// Those of cachestat(2): `ENOSYS` before Linux 6.5; `EPERM` for who neither owns the file nor may write it (Linux 6.14).
pub fn cached_pages(file: impl AsFd, offset: u64, length: u64) -> io::Result<u64> {
    let (range, mut stat) = (Range { offset, length }, Stat::default());
    // SAFETY: the kernel reads a range and writes a stat, both of which have its layout and live for as long as the call.
    let done =
        unsafe { libc::syscall(CACHESTAT, file.as_fd().as_raw_fd(), &raw const range, &raw mut stat, 0) };
    if done == 0 { Ok(stat.cached) } else { Err(io::Error::last_os_error()) }
}

/// Whether any of these bytes of `file` are in memory, or on the way to it. Where that cannot be told without asking for their first page
/// (before Linux 6.5, and of other users' files), it is asked for: a read with `RWF_NOWAIT` (preadv2(2)) begins to read ahead where it finds nothing.
pub fn is_cached(file: impl AsFd, offset: u64, length: u64) -> bool {
    if let Ok(pages) = cached_pages(&file, offset, length) {
        return pages > 0;
    }
    // One page, and none around it.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
    let mut byte = [0];
    let read = rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_cached() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'x'; 1 << 20]).unwrap();
        let page = rustix::param::page_size() as u64;
        match cached_pages(&file, 0, 1 << 20) {
            Ok(pages) => {
                assert_eq!(pages, (1 << 20) / page);
                assert_eq!(cached_pages(&file, 0, 1).unwrap(), 1);
                assert_eq!(cached_pages(&file, 1 << 20, page).unwrap(), 0);
                assert!(is_cached(&file, 0, page) && !is_cached(&file, 1 << 20, page));
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{error}"),
        }
    }
}
