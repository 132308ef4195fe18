//! Locks (flock(2)) of processes that may just be ending, or just be starting another one.
//!
//! Hard point: a lock belongs to all descriptors of its open file. A process that is made has them all until it has called execve(2),
//! close-on-exec or not. So a lock may be held for a moment longer than its owner lives.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// How long to wait between two attempts.
const STEP: Duration = Duration::from_millis(20);

/// Takes the lock of `file`, at the latest after `patience`. Whether it was free by then.
///
/// # Errors
/// Those of flock(2).
pub fn take_within(file: &File, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(STEP),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_once_nobody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::options().create(true).append(true).open(dir.path().join("lock")).unwrap();
        let (held, wanted) = (open(), open());
        rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
        // As of a process that is made: the lock outlives the descriptor that it was taken by.
        let also = held.try_clone().unwrap();
        drop(held);
        assert!(!take_within(&wanted, Duration::ZERO).unwrap());
        let letting_go = std::thread::spawn(move || drop(also));
        assert!(take_within(&wanted, Duration::from_secs(60)).unwrap());
        letting_go.join().unwrap();
        assert!(!take_within(&open(), Duration::ZERO).unwrap(), "it stays taken");
    }
}
