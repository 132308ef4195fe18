//! The server's process, from its first instruction to its exit code.
//!
//! It is a program of its own, without Nix's library: what is not mapped cannot be used. The monitor starts it, with a socket as its
//! standard input and an empty environment. Who plays or learns ([`prefetch`]) is this program with another first order.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{First, LAST_WORDS, ServeError};
use crate::protocol::wire::{self, Outlasts, Report};
use crate::{error, log, panics, prefetch, startup, sys};

/// The whole program.
pub fn main() -> ! {
    panics::begin();
    startup::begin_server();
    log::begin();
    let code = u8::from(run().is_err());
    log::flush(LAST_WORDS);
    sys::exit_now(code)
}

/// It has ended, and has said why.
struct Failed;

fn run() -> Result<(), Failed> {
    let monitor = io::stdin().as_fd().try_clone_to_owned().map(Arc::new).map_err(|error| {
        log::say(&format!("nix-store-fs: no monitor to serve: {error}"));
        Failed
    })?;
    let first = super::receive_first(&*monitor).map_err(|failure| {
        // Without an order the monitor ended before it had anything to serve, and has said why.
        if !matches!(failure, ServeError::NoOrder(None)) {
            log::say_error(&failure);
        }
        Failed
    })?;
    let (start, descriptors) = match first {
        First::Serve(start, descriptors) => (start, descriptors),
        First::Do(task, descriptors) => {
            prefetch::perform(*task, descriptors, &monitor);
            return Ok(());
        }
    };
    log::set_up(start.log);
    if start.outlasts == Outlasts::Users {
        startup::outlast_users();
    }
    super::serve(*start, descriptors, &monitor).map_err(|failure| {
        tell(&monitor, &failure);
        Failed
    })
}

/// Tells the monitor; or the log, if that cannot be.
fn tell(monitor: &OwnedFd, failure: &ServeError) {
    let why = error::chain(failure);
    if wire::send_report(monitor, &Report::failed(failure.cause(), &why)).is_err() {
        tracing::error!("{why}");
    }
}
