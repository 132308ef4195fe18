//! What the monitor says to the service manager. What it gets back from its descriptor store: see [`crate::startup`].
//!
//! Without a service manager every call does nothing (sd_notify(3), sd_pid_notify_with_fds(3)).

use std::os::fd::{AsFd, OwnedFd};

use std::time::Duration;

use sd_notify::NotifyState;

use crate::startup::DEVICE;

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot speak to the service manager");
    }
}

/// Whether a service manager listens.
#[must_use]
pub(super) fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The view answers; what it serves.
pub(super) fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it serves.
pub(super) fn status(status: &str) {
    say(&[NotifyState::Status(status)]);
}

/// How long the service manager is to wait for the next notice of a start.
const PATIENCE: Duration = Duration::from_secs(90);

/// The start takes longer, because of `what` (EXTEND_TIMEOUT_USEC= of sd_notify(3)).
pub(super) fn starting(what: &str) {
    let extend = format!("EXTEND_TIMEOUT_USEC={}", PATIENCE.as_micros());
    say(&[NotifyState::Custom(&extend), NotifyState::Status(what)]);
}

/// A reload has begun; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => say(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager of a reload"),
    }
}

/// The view ends.
pub(super) fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// Keeps the device beyond this process. Polling is off: an aborted connection is the successor's to find.
pub(super) fn store_device(device: &OwnedFd) {
    let state = [NotifyState::FdStore, NotifyState::FdName(DEVICE), NotifyState::Custom("FDPOLL=0")];
    if is_there()
        && let Err(error) = sd_notify::notify_with_fds(&state, &[device.as_fd()])
    {
        tracing::warn!(%error, "the service manager does not keep the device; the view would not survive a crash of its monitor");
    }
}

/// Lets the device go.
pub(super) fn forget_device() {
    say(&[NotifyState::FdStoreRemove, NotifyState::FdName(DEVICE)]);
}
