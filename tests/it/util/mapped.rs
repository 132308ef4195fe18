//! Reading a file through a memory mapping, where a page that cannot be had is an error and not a signal.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping of a whole file. It stays good when the file is closed.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: *mut std::ffi::c_void,
    length: usize,
}

// SAFETY: the mapping is private and read-only, and belongs to this value alone.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the file, which must not be empty.
    pub(crate) fn new(file: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses a place that nothing else uses, and the value unmaps it when it goes.
        let at = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
        Ok(Self { at, length })
    }

    /// All bytes, copied by the kernel: what would be SIGBUS for a process is EFAULT here.
    pub(crate) fn bytes(&self) -> io::Result<Vec<u8>> {
        // SAFETY: the memory is mapped for as long as `self` lives. Store files do not change, and this process
        // itself does not look at the bytes: they are handed to write(2).
        let bytes = unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.length) };
        let mut copy = File::from(rustix::fs::memfd_create("mapped", MemfdFlags::CLOEXEC)?);
        copy.write_all(bytes)?;
        copy.rewind()?;
        let mut read = Vec::with_capacity(self.length);
        copy.read_to_end(&mut read)?;
        Ok(read)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new` with this length, and nobody borrows from it any more.
        let _unmapped = unsafe { munmap(self.at, self.length) };
    }
}
