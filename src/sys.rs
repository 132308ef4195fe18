//! The raw calls that no library offers safely: descriptors by number, and the allocator's.

#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use fuser::{BackingId, ReplyOpen};
use rustix::io::DupFlags;

/// Makes the number of `target` mean what `by` means; what it meant before is closed, close-on-exec stays set
/// (dup3(2)).
///
/// # Errors
/// Those of dup3(2).
pub fn replace(target: BorrowedFd<'_>, by: impl AsFd) -> io::Result<()> {
    // SAFETY: `target` is open for the length of the call, and ManuallyDrop keeps this second owner from ever
    // closing it. dup3 exchanges what the number means atomically, so its real owner still owns an open one.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    Ok(rustix::io::dup3(by, &mut place, DupFlags::CLOEXEC)?)
}

/// Takes ownership of a descriptor that systemd passed to this process, by its number (sd_listen_fds(3)).
///
/// # Errors
/// `EBADF` when no such descriptor is open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: only borrowed to ask whether the number is open, before anything is built on it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the number is open, systemd passed it for this process to own, and the caller asks for each one
    // once: the variables that name it are read once at start.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A registered backing file by its number, for the answer to an open. Dropping it ends the registration;
/// [`BackingId::into_raw`] gives it up without.
#[must_use]
pub fn wrap_backing(reply: &ReplyOpen, number: u32) -> BackingId {
    // SAFETY: the kernel checks the number against those of this connection, so one that is not open there is an
    // error of the open, and never reaches memory. Callers pass numbers that this connection's kernel handed out.
    unsafe { reply.wrap_backing(number) }
}

/// Gives memory that was freed back to the kernel (malloc_trim(3)); the allocator keeps it otherwise, where small
/// pieces were freed. Where the C library has no such call, nothing happens.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: the call takes a number, touches only free memory, and may be made from any thread.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_replaced_descriptor_leads_elsewhere_under_its_old_number() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let (other, _keep) = UnixStream::pair().unwrap();
        let number = other.as_raw_fd();
        replace(other.as_fd(), &near).unwrap();
        assert_eq!(other.as_raw_fd(), number);
        (&other).write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn numbers_that_are_not_open_are_not_adopted() {
        assert!(adopt(0).is_err());
        assert!(adopt(900_000).is_err());
    }
}
