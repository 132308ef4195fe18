//! Asking the view something, to know that it answers.
//!
//! Whoever waits for an answer that a server had taken on itself cannot be killed before another server gives it, and a
//! process does not end before all of its threads have. So a process of its own asks, which holds nothing of the monitor's.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::sys;

/// A process that asks.
#[derive(Debug)]
pub(super) struct Probe {
    process: Pid,
    end: OwnedFd,
}

impl Probe {
    /// Asks what is mounted at `at` for its size (statfs(2)): the kernel does not answer that by itself.
    ///
    /// # Errors
    /// Those of fork(2) and pidfd_open(2).
    pub(super) fn start(at: &Path) -> io::Result<Self> {
        let at = CString::new(at.as_os_str().as_bytes())?;
        let process = sys::ask(&at)?;
        match pidfd_open(process, PidfdFlags::empty()) {
            Ok(end) => Ok(Self { process, end }),
            Err(error) => {
                let _ = kill_process(process, Signal::KILL);
                Err(error.into())
            }
        }
    }

    /// Readable when it is done.
    pub(super) fn done(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// What was answered, once it is done: the error of statfs(2), or none.
    pub(super) fn answer(&self) -> Option<io::Result<()>> {
        let (_, status) = waitpid(Some(self.process), WaitOptions::NOHANG).ok().flatten()?;
        Some(match status.exit_status() {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::other("the probe was killed")),
        })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if self.answer().is_none() {
            let _ = kill_process(self.process, Signal::KILL);
            // If it can end, it does so now or when the monitor does.
            let _ = self.answer();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::poll;

    #[test]
    fn an_answer_is_told_and_so_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for (path, error) in [(dir.path().to_owned(), None), (dir.path().join("absent"), Some(2))] {
            let probe = Probe::start(&path).unwrap();
            poll::readable(&[probe.done()], None).unwrap();
            let answer = probe.answer().unwrap();
            assert_eq!(answer.err().and_then(|error| error.raw_os_error()), error);
        }
    }
}
