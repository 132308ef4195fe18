//! The end of a connection that cannot be aborted: whoever waits, or asks meanwhile, is answered with an error, until the
//! killed server has ended.
//!
//! That server holds the device as long as one of its threads waits in the kernel for a directory that a reader has locked
//! (`fuse_reverse_inval_entry`), and that reader waits for an answer. What was taken is in the ledger, and the rest in the queue.
//!
//! Invariant: whatever a hostile server wrote into the ledger, the kernel is told errors and nothing else. Of a request its id counts,
//! and whether its kind has an answer. The fuzz target `ledger` checks that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::poll;
use crate::fuse::{Device, Ledger, Request, ledger};

/// How long a request is waited for.
const STEP: Duration = Duration::from_millis(10);

/// Answers with errors, until `ended` or `until` has come. Nobody else reads `device` or writes to `ledger` any more.
///
/// # Errors
/// Those of mapping the ledger and of reading the device.
pub fn refuse(
    device: OwnedFd,
    ledger: Option<OwnedFd>,
    until: Instant,
    mut ended: impl FnMut() -> bool,
) -> io::Result<()> {
    // A request that was polled may be taken back before it is read.
    rustix::io::ioctl_fionbio(&device, true)?;
    let device = Device::from(device);
    let (_, slots) = Ledger::open(ledger)?;
    for slot in slots.iter().filter(|slot| slot.is_left_over()) {
        answer(&device, slot.request());
    }
    let mut request = vec![0; ledger::BUFFER];
    while !ended() && Instant::now() < until {
        if poll::readable(&[device.as_fd()], Some(Instant::now() + STEP))?.contains(&true) {
            match device.read(&mut request) {
                Ok(length) => answer(&device, request.get(..length).unwrap_or_default()),
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                // It has ended.
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn answer(device: &Device, request: &[u8]) {
    let Some(request) = Request::parse(request) else { return };
    let answer = device.answer(request.unique);
    if request.operation.has_answer() { answer.error(Errno::IO) } else { answer.none() }
}
