//! The server's process, from its first instruction to its exit code.
//!
//! It is a program of its own, without Nix's library: what is not mapped cannot be used. The monitor starts it, with a socket as its
//! standard input and an empty environment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{LAST_WORDS, ServeError};
use crate::protocol::wire::{self, Outlasts, Report};
use crate::{error, log, panics, startup, sys};

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
    let (start, descriptors) = super::receive_start(&*monitor).map_err(|failure| {
        // Without an order the monitor ended before it had anything to serve, and has said why.
        if !matches!(failure, ServeError::NoOrder(None)) {
            log::say_error(&failure);
        }
        Failed
    })?;
    log::set_up(start.log);
    if start.outlasts == Outlasts::Users {
        startup::outlast_users();
    }
    super::serve(start, descriptors, &monitor).map_err(|failure| {
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
