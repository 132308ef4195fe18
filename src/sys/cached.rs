//! What the kernel has of a file in its page cache (cachestat(2), which the C library has no function for), and asking the disk for it.

use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
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

/// Bytes of one question to the disk: of a longer one the kernel leaves out what is more than the disk reads ahead (`force_page_cache_ra`).
pub const QUESTION: u64 = 128 << 10;

/// What was in memory of some bytes of a file before the disk was asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing: what is there now may be dropped by who has asked.
    Nothing,
    /// Something; or nobody can tell, as the file system tells of no page that was asked for either (overlayfs, ZFS). What is there is somebody
    /// else's.
    Something,
}

/// Asks the disk for `length` bytes of `file` from `offset` on, question by question, as long as `may` says so: of how many bytes the next
/// one is, and what was there before as far as is known then.
///
/// # Errors
/// Those of posix_fadvise(2).
pub fn bring(
    file: impl AsFd,
    offset: u64,
    length: u64,
    mut may: impl FnMut(u64, Before) -> bool,
) -> Result<Before, Errno> {
    let is_something = length > 0 && is_cached(&file, offset, length);
    let mut before = if is_something { Before::Something } else { Before::Nothing };
    let mut asked = 0;
    while let Some(bytes) =
        NonZeroU64::new(QUESTION.min(length - asked)).filter(|bytes| may(bytes.get(), before))
    {
        rustix::fs::fadvise(&file, offset + asked, Some(bytes), Advice::WillNeed)?;
        if asked == 0 && matches!(cached_pages(&file, offset, length), Ok(0)) {
            before = Before::Something;
        }
        asked += bytes.get();
    }
    Ok(before)
}

/// Whether any of these bytes of `file` are in memory, or on the way to it. Where that cannot be told without asking for their first page
/// (before Linux 6.5, and of other users' files), it is asked for: a read with `RWF_NOWAIT` (preadv2(2)) begins to read ahead where it finds nothing.
fn is_cached(file: impl AsFd, offset: u64, length: u64) -> bool {
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
                assert_eq!(
                    bring(&file, 0, page, |_, before| before == Before::Nothing),
                    Ok(Before::Something)
                );
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{error}"),
        }
    }
}

/// What tests need of a file system without pages of its own.
#[cfg(test)]
pub(crate) mod overlay {
    use std::path::Path;

    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    /// Does `work` with an overlay that shows `lower`, if one can be mounted here. It ends with the thread that does it.
    pub(crate) fn over_an_overlay(lower: &Path, work: impl FnOnce(&Path) + Send) {
        let dir = tempfile::tempdir().unwrap();
        let [other, merged] = ["other", "merged"].map(|name| dir.path().join(name));
        [&other, &merged].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let begin = || -> std::io::Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let layers = format!("lowerdir={}:{}", lower.display(), other.display());
            let layers = std::ffi::CString::new(layers)?;
            Ok(mount("overlay", &merged, "overlay", MountFlags::empty(), layers.as_c_str())?)
        };
        let all = || match begin() {
            Ok(()) => work(&merged),
            Err(error) => eprintln!("not tested: no overlay can be mounted here: {error}"),
        };
        std::thread::scope(|scope| scope.spawn(all).join()).unwrap();
    }
}
