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
    known: Known,
}

/// What the table said the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nobody has looked: it tells of later changes only, and the view may have been unmounted before.
    Nothing,
    Mounted,
    Lost,
}

impl Outside {
    /// Of the namespace in which this process is now, for a view with this connection.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn open(connection: u64) -> io::Result<Self> {
        Ok(Self {
            table: File::open("/proc/self/mountinfo")?,
            device: format!("0:{connection}"),
            known: Known::Nothing,
        })
    }

    /// Whether the view was unmounted there, as far as is known.
    pub(super) fn has_lost_it(&mut self) -> bool {
        // Asked in any case: that is what changes are counted from.
        let changed = self.has_changed();
        if (changed || self.known == Known::Nothing)
            && self.known != Known::Lost
            && let Some(mounted) = self.has_it()
        {
            self.known = if mounted { Known::Mounted } else { Known::Lost };
        }
        self.known == Known::Lost
    }

    fn has_changed(&self) -> bool {
        let mut changed = [PollFd::from_borrowed_fd(self.table.as_fd(), PollFlags::PRI)];
        // The table is a file that tells of changes as an error (proc_pid_mounts(5)).
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut changed, Some(&at_once)).is_ok_and(|changed| changed > 0)
    }

    /// Nothing: the table cannot be read.
    fn has_it(&self) -> Option<bool> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.table.read_at(&mut buffer, bytes.len() as u64) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        let is_it = |line: &[u8]| line.split(|byte| *byte == b' ').nth(2) == Some(self.device.as_bytes());
        Some(bytes.split(|byte| *byte == b'\n').any(is_it))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_was_unmounted_before_anybody_looked_is_lost() {
        // A device of no mount.
        assert!(Outside::open(0).unwrap().has_lost_it());
        let mounted = std::fs::metadata("/proc").unwrap().dev();
        assert_eq!(rustix::fs::major(mounted), 0);
        let mut outside = Outside::open(rustix::fs::minor(mounted).into()).unwrap();
        assert!(!outside.has_lost_it());
        assert!(!outside.has_lost_it());
    }
}
