//! The process that a view was mounted for, where others have mounted it ([`Origin::Given`](super::Origin)).
//!
//! A server that reads the device notices the end of its view by itself, and the monitor notices that of the server. One that is stopped
//! (SIGSTOP) notices nothing, and would stay with its monitor for ever. So the device is asked as well: a while after the process has
//! ended, and then again and again, as others may still use the view that it has left behind.
//!
//! Hard point: the device itself cannot be waited for. The kernel wakes whoever polls it for each request (`fuse_dev_poll()` in
//! `fs/fuse/dev.c` of Linux).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long after the process the device is asked first. A server that runs has ended by then.
const FIRST: Duration = Duration::from_secs(1);
/// How long after a question the next one comes at most.
const LONGEST: Duration = Duration::from_secs(60);

/// The process, as far as it is known.
#[derive(Debug)]
pub(super) enum User {
    /// It has not ended, as far as is known: readable once it has (pidfd_open(2)).
    There(OwnedFd),
    /// It has ended.
    Gone {
        /// When the device is asked.
        ask: Instant,
        /// How long that was waited for.
        pause: Duration,
    },
}

impl User {
    /// Readable when the process has ended. None: that is known.
    pub(super) fn end(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::There(process) => Some(process.as_fd()),
            Self::Gone { .. } => None,
        }
    }

    /// When the device is to be asked.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::There(_) => None,
            Self::Gone { ask, .. } => Some(*ask),
        }
    }

    /// The process has ended, or the device was asked.
    pub(super) fn advance(&mut self, now: Instant) {
        let pause = match self {
            Self::There(_) => FIRST,
            Self::Gone { pause, .. } => (*pause * 2).min(LONGEST),
        };
        *self = Self::Gone { ask: now + pause, pause };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_asked_less_and_less_often() {
        let (process, _other) = std::io::pipe().unwrap();
        let mut user = User::There(process.into());
        assert!(user.end().is_some() && user.due().is_none());
        let begin = Instant::now();
        let mut now = begin;
        let mut asked = Vec::new();
        for _ in 0..9 {
            user.advance(now);
            assert!(user.end().is_none());
            now = user.due().unwrap();
            asked.push((now - begin).as_secs());
        }
        assert_eq!(asked, [1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }
}
