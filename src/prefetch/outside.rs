//! The mount table outside, of who has the view open in a mount namespace of its own ([`crate::sys::apart`]): what is open keeps the view's connection
//! alive when everybody else has unmounted it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, poll};

/// The mount table that this process had.
#[derive(Debug)]
pub(super) struct Outside {
    table: File,
    /// The view's device, as the table has it.
    device: String,
}

impl Outside {
    /// Of the namespace in which this process is now, for a view with this connection.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn open(connection: u64) -> io::Result<Self> {
        Ok(Self { table: File::open("/proc/self/mountinfo")?, device: format!("0:{connection}") })
    }

    /// Whether the view was unmounted there, as far as is known.
    pub(super) fn has_lost_it(&self) -> bool {
        let mut changed = [PollFd::from_borrowed_fd(self.table.as_fd(), PollFlags::PRI)];
        // The table is a file that tells of changes as an error (proc_pid_mounts(5)).
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if !poll(&mut changed, Some(&at_once)).is_ok_and(|changed| changed > 0) {
            return false;
        }
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.table.read_at(&mut buffer, bytes.len() as u64) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        let is_it = |line: &[u8]| line.split(|byte| *byte == b' ').nth(2) == Some(self.device.as_bytes());
        !bytes.split(|byte| *byte == b'\n').any(is_it)
    }
}
