//! The descriptor of `/dev/fuse`, mounted: requests are read from it, answers and notifications written to it.
//!
//! Invariant: no write blocks but that of [`Device::forget_name`], [`Device::forget_pages`]: there the kernel waits for locks that
//! whoever waits for an answer may hold.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::abi::{InvalEntryOut, InvalInodeOut, OutHeader, notify};
use crate::sys;

/// A connection to the kernel.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Device {
    fn from(device: OwnedFd) -> Self {
        Self(device)
    }
}

/// The answer that one request waits for: it is given once, or `EIO` is.
#[derive(Debug)]
pub struct Answer<'a> {
    device: &'a Device,
    /// The request; 0 once it is answered.
    unique: u64,
}

impl Device {
    /// Waits for a request and reads it into `buffer`; returns its length. `ENODEV`: the connection has ended.
    ///
    /// # Errors
    /// Those of read(2). `ENOENT`: the request that was there has been taken back.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.0, buffer)
    }

    /// The answer to the request with this id.
    #[must_use]
    pub fn answer(&self, unique: u64) -> Answer<'_> {
        Answer { device: self, unique }
    }

    /// Has the kernel forget `name` in the directory `parent`. Waits until nobody looks at the directory, who may wait for an
    /// answer: not to be called by a thread that answers.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn forget_name(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let name_len = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        let head = InvalEntryOut { parent, name_len, flags: 0 };
        self.notify(notify::INVAL_ENTRY, &[head.as_bytes(), name, b"\0"])
    }

    /// Has the kernel forget the attributes of `node`, and its pages or listing. Waits for whoever reads them: not to be called
    /// by a thread that answers.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn forget_pages(&self, node: u64) -> io::Result<()> {
        self.notify(notify::INVAL_INODE, &[InvalInodeOut { node, offset: 0, len: 0 }.as_bytes()])
    }

    /// Has the kernel forget the attributes of `node`, and nothing else: no lock is waited for (`fuse_reverse_inval_inode`).
    ///
    /// # Errors
    /// Those of write(2).
    pub fn forget_attributes(&self, node: u64) -> io::Result<()> {
        self.notify(notify::INVAL_INODE, &[InvalInodeOut { node, offset: -1, len: 0 }.as_bytes()])
    }

    /// Has the kernel ask again for every name that it knows (Linux 6.16). No lock is waited for.
    ///
    /// # Errors
    /// Those of write(2); `EINVAL`: the kernel cannot.
    pub fn forget_all_names(&self) -> io::Result<()> {
        self.notify(notify::INC_EPOCH, &[])
    }

    /// Has the kernel give again what was taken and not answered (Linux 6.9).
    ///
    /// # Errors
    /// Those of write(2); `EINVAL`: the kernel cannot.
    pub fn resend(&self) -> io::Result<()> {
        self.notify(notify::RESEND, &[])
    }

    /// Has the kernel read `file` by itself, which is open for reading; returns the number of the registration, never 0
    /// (FUSE_DEV_IOC_BACKING_OPEN, Linux 6.9; CAP_SYS_ADMIN).
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn register(&self, file: impl AsFd) -> io::Result<u32> {
        sys::open_backing(&self.0, file)
    }

    /// Ends a registration (FUSE_DEV_IOC_BACKING_CLOSE; CAP_SYS_ADMIN). What is open by it stays open.
    ///
    /// # Errors
    /// Those of ioctl(2). `ENOENT`: there is none with this number.
    pub fn end_registration(&self, number: u32) -> io::Result<()> {
        sys::close_backing(&self.0, number)
    }

    /// `ENOENT`, the kernel knows nothing of the kind, is no error.
    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        match self.write(code, 0, parts) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// One message: the kernel takes it in one call (`fuse_dev_do_write`).
    fn write(&self, error: i32, unique: u64, parts: &[&[u8]]) -> Result<(), Errno> {
        let bytes = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
        let header = OutHeader { len: u32::try_from(bytes).map_err(|_| Errno::MSGSIZE)?, error, unique };
        let head = [IoSlice::new(header.as_bytes())];
        // No message has more parts.
        let mut slices = [IoSlice::new(&[]); 4];
        let all = head.into_iter().chain(parts.iter().map(|part| IoSlice::new(part)));
        let used = slices.iter_mut().zip(all).map(|(place, slice)| *place = slice).count();
        loop {
            match rustix::io::writev(&self.0, slices.get(..used).unwrap_or_default()) {
                Err(Errno::INTR) => {}
                answer => return answer.map(drop),
            }
        }
    }
}

impl Answer<'_> {
    /// Nothing to say but that it is done.
    pub fn done(self) {
        self.bytes(&[]);
    }

    /// An error.
    pub fn error(mut self, error: Errno) {
        self.give_error(error);
    }

    /// An error for a request that nobody knows, so that the kernel begins a path walk again (`ESTALE`). Whether somebody waited.
    #[must_use]
    pub fn lost(mut self) -> bool {
        let unique = std::mem::take(&mut self.unique);
        self.device.write(-Errno::STALE.raw_os_error(), unique, &[]).is_ok()
    }

    /// What was asked for.
    pub fn value<T: IntoBytes + Immutable>(self, value: &T) {
        self.bytes(value.as_bytes());
    }

    /// What was asked for, in bytes.
    pub fn bytes(mut self, bytes: &[u8]) {
        if let Err(error) = self.device.write(0, self.unique, &[bytes]) {
            self.refused(error);
        }
        self.unique = 0;
    }

    /// No answer is waited for.
    pub fn none(mut self) {
        self.unique = 0;
    }

    fn give_error(&mut self, error: Errno) {
        let unique = std::mem::take(&mut self.unique);
        let mut errors = [error, Errno::IO, Errno::IO].into_iter().map(|error| {
            let answer = self.device.write(-error.raw_os_error(), unique, &[]);
            // Nobody waits any more: taken back, answered by an earlier server, or the connection has ended.
            matches!(answer, Ok(()) | Err(Errno::NOENT | Errno::NODEV))
        });
        if !errors.any(|given| given) {
            tracing::error!(unique, "the kernel takes no answer; whoever asked waits until the view ends");
        }
    }

    /// The kernel did not take an answer. If it still waits for one it gets an error, so that nobody waits for ever.
    fn refused(&mut self, error: Errno) {
        // Nobody waits any more: taken back, answered by an earlier server, or the connection has ended.
        if !matches!(error, Errno::NOENT | Errno::NODEV) {
            tracing::error!(%error, unique = self.unique, "the kernel refuses an answer; this is a bug, please report it");
            self.give_error(Errno::IO);
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if self.unique != 0 {
            // A panic is logged by whoever contains it.
            if !std::thread::panicking() {
                tracing::error!(
                    unique = self.unique,
                    "a request was left without an answer; this is a bug, please report it"
                );
            }
            self.give_error(Errno::IO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A device, and what the kernel would get.
    fn device() -> (Device, UnixDatagram) {
        let (kernel, device) = UnixDatagram::pair().unwrap();
        kernel.set_nonblocking(true).unwrap();
        (Device::from(OwnedFd::from(device)), kernel)
    }

    fn told(kernel: &UnixDatagram) -> Option<(i32, u64, Vec<u8>)> {
        let mut buffer = [0; 200];
        let read = kernel.recv(&mut buffer).ok()?;
        let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, read, "the kernel refuses a message of another length");
        let unique = u64::from_ne_bytes(buffer[8..16].try_into().unwrap());
        Some((word(4).cast_signed(), unique, buffer[16..read].to_vec()))
    }

    #[test]
    fn each_request_has_one_answer_whatever_happens_to_it() {
        let (device, kernel) = device();
        device.answer(2).bytes(b"bytes");
        assert_eq!(told(&kernel), Some((0, 2, b"bytes".to_vec())));
        device.answer(4).error(Errno::NOENT);
        assert_eq!(told(&kernel), Some((-2, 4, vec![])));
        device.answer(6).done();
        assert_eq!(told(&kernel), Some((0, 6, vec![])));
        device.answer(8).none();
        assert_eq!(told(&kernel), None);
        drop(device.answer(10));
        assert_eq!(told(&kernel), Some((-5, 10, vec![])), "left without an answer");
        assert!(device.answer(12).lost());
        assert_eq!(told(&kernel), Some((-116, 12, vec![])));
        assert_eq!(told(&kernel), None);
    }

    #[test]
    fn notifications_have_a_code_and_no_id() {
        let (device, kernel) = device();
        device.forget_name(7, b"name").unwrap();
        let (code, unique, body) = told(&kernel).unwrap();
        assert_eq!((code, unique), (3, 0));
        assert_eq!(body[..8], 7_u64.to_ne_bytes());
        assert_eq!(body[8..12], 4_u32.to_ne_bytes());
        assert_eq!(body[16..], *b"name\0");
        device.forget_pages(7).unwrap();
        let (code, _, body) = told(&kernel).unwrap();
        assert_eq!((code, body.len(), &body[..8]), (2, 24, &7_u64.to_ne_bytes()[..]));
        device.forget_attributes(7).unwrap();
        let (code, _, body) = told(&kernel).unwrap();
        assert_eq!((code, &body[8..16]), (2, &(-1_i64).to_ne_bytes()[..]));
        device.resend().unwrap();
        device.forget_all_names().unwrap();
        assert_eq!([told(&kernel), told(&kernel)], [Some((7, 0, vec![])), Some((8, 0, vec![]))]);
    }
}
