//! Memory that several processes map.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// An empty memory file, called `name` in `/proc` (memfd_create(2)).
///
/// # Errors
/// Those of memfd_create(2).
pub fn memory_file(name: &str) -> io::Result<File> {
    let create =
        |more| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more);
    // Kernels since 6.3 may demand the flag (`vm.memfd_noexec`), and older ones do not know it.
    let file = match create(MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => create(MemfdFlags::empty()),
        answer => answer,
    };
    Ok(File::from(file?))
}

/// A memory file of `length` zero bytes whose length stays: what is mapped of it never ends in SIGBUS.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn memory_file_of(name: &str, length: u64) -> io::Result<File> {
    let file = memory_file(name)?;
    file.set_len(length)?;
    // And nobody seals it against writing.
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Whether `file` is a memory file that nobody can make shorter.
pub fn cannot_shrink(file: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Mapped memory, readable and writable.
#[derive(Debug)]
struct Mapping {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread. What is reached through it is words, which are atomic, and parts
// that have one owner each.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and whoever could still reach it holds a reference that keeps it.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// The first pages of shared memory: words that processes and threads read and write at any time.
#[derive(Debug, Clone)]
pub struct Words {
    mapping: Arc<Mapping>,
    bytes: usize,
}

/// A part of shared memory that one owner reads and writes.
#[derive(Debug)]
pub struct Part {
    mapping: Arc<Mapping>,
    at: usize,
    bytes: usize,
}

/// Maps memory: `head` bytes of words, then `count` parts of `part` bytes. With `file`, which
/// [`cannot_shrink`] and is long enough, it is that file's, and whoever else maps the file sees it; without, it is this process's
/// own.
///
/// The caller sees to it that no other process uses the parts as long as this one has them.
///
/// # Errors
/// Those of mmap(2); `EINVAL` for a file that may not be mapped so.
pub fn map(file: Option<&File>, head: usize, count: usize, part: usize) -> io::Result<(Words, Vec<Part>)> {
    let length = part.checked_mul(count).and_then(|parts| parts.checked_add(head)).ok_or(Errno::INVAL)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let at = match file {
        Some(file) => {
            let long_enough = usize::try_from(file.metadata()?.len()).is_ok_and(|there| there >= length);
            if !cannot_shrink(file) || !long_enough {
                return Err(Errno::INVAL.into());
            }
            // SAFETY: a new mapping at a place that the kernel chooses. The file never gets shorter than it, as was checked.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }
        }
        // SAFETY: a new mapping at a place that the kernel chooses.
        None => unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, MapFlags::PRIVATE)
        },
    }?;
    let at = NonNull::new(at.cast()).ok_or(Errno::NOMEM)?;
    let mapping = Arc::new(Mapping { at, length });
    let parts =
        (0..count).map(|n| Part { mapping: mapping.clone(), at: head + n * part, bytes: part }).collect();
    Ok((Words { mapping, bytes: head }, parts))
}

impl Words {
    /// The word at byte `at`, a multiple of 8; none: it lies outside.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(size_of::<u64>()) || at.checked_add(size_of::<u64>())? > self.bytes {
            return None;
        }
        // SAFETY: it lies in the mapping, which `self` keeps, is aligned as the mapping begins at a page, and is never reached but
        // as an atomic: no part lies in the head.
        Some(unsafe { AtomicU64::from_ptr(self.mapping.at.as_ptr().add(at).cast()) })
    }
}

impl Part {
    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: it lies in the mapping, which `self` keeps. Only `self` reaches it: parts do not overlap, and no other process
        // uses them, as whoever maps promises.
        unsafe { std::slice::from_raw_parts(self.mapping.at.as_ptr().add(self.at), self.bytes) }
    }

    /// The same, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.at.as_ptr().add(self.at), self.bytes) }
    }

    /// Keeps the first `bytes` in memory (mlock(2)), and in this process's page table: a system call that writes into them finds
    /// them there, even if the process is being killed.
    ///
    /// # Errors
    /// Those of mlock(2): `ENOMEM` and `EPERM` where the process may not.
    pub fn keep_in_memory(&self, bytes: usize) -> io::Result<()> {
        const PAGE: usize = 4096;
        let length = bytes.min(self.bytes);
        for at in (0..length).step_by(PAGE) {
            // SAFETY: it lies in the mapping, which `self` keeps, and only `self` reaches it.
            unsafe {
                let byte = self.mapping.at.as_ptr().add(self.at + at);
                byte.write_volatile(byte.read_volatile());
            }
        }
        // SAFETY: the range lies in the mapping, which `self` keeps.
        Ok(unsafe { rustix::mm::mlock(self.mapping.at.as_ptr().add(self.at).cast(), length) }?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn what_one_mapping_writes_another_sees() {
        let file = memory_file_of("test", 3 * PAGE as u64).unwrap();
        let (words, mut parts) = map(Some(&file), PAGE, 2, PAGE).unwrap();
        words.get(8).unwrap().store(7, Ordering::Relaxed);
        parts[1].bytes_mut()[..2].copy_from_slice(b"ab");
        drop((words, parts));
        let (words, parts) = map(Some(&file), PAGE, 2, PAGE).unwrap();
        assert_eq!(words.get(8).unwrap().load(Ordering::Relaxed), 7);
        assert_eq!((parts[0].bytes()[0], &parts[1].bytes()[..2]), (0, &b"ab"[..]));
        assert!(words.get(PAGE).is_none() && words.get(4).is_none());
        parts[0].keep_in_memory(PAGE).unwrap();
    }

    #[test]
    fn only_what_cannot_shrink_and_is_long_enough_is_mapped() {
        let file = memory_file_of("test", PAGE as u64).unwrap();
        assert!(map(Some(&file), PAGE, 1, PAGE).is_err());
        assert!(file.set_len(0).is_err() && file.set_len(2 * PAGE as u64).is_err());
        assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_err());
        map(Some(&file), PAGE, 0, PAGE).unwrap();
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(2 * PAGE as u64).unwrap();
        assert!(map(Some(&plain), PAGE, 1, PAGE).is_err());
        assert!(map(None, PAGE, 1, PAGE).is_ok());
    }
}
