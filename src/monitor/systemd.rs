//! What the monitor says to the service manager. What it gets back from its descriptor store: see [`crate::startup`].
//!
//! Without a service manager every call does nothing (sd_notify(3), sd_pid_notify_with_fds(3)).
//!
//! Invariants: no call waits for the service manager, which may read nothing for a while: a thread sends what waits in a
//! queue. The queue is bounded, and READY=1 is never lost: only a whole reload is left out, if a later one follows it
//! before it was sent.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sd_notify::NotifyState;

use crate::startup::{DEVICE, LEDGER, USAGE};

/// How long the end of the process waits for what is not sent yet.
const END_GRACE: Duration = Duration::from_millis(700);
/// How long the service manager is to wait for the next notice of a start.
const PATIENCE: Duration = Duration::from_secs(90);

static NOTICES: Notices = Notices {
    queue: Mutex::new(Queue { waiting: VecDeque::new(), sending: false, started: false, stored: false }),
    changed: Condvar::new(),
};

/// What is to be sent.
#[derive(Debug)]
enum Notice {
    Store(OwnedFd),
    StoreLedger(OwnedFd),
    ForgetLedgers,
    StoreUsage(OwnedFd),
    ForgetUsages,
    Forget,
    Ready(String),
    Status(String),
    /// The start takes longer, and waits for this.
    Starting(&'static str),
    Reloading(NotifyState<'static>),
    Stopping,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Notice>,
    /// Whether one has been taken out and not been sent yet.
    sending: bool,
    /// Whether the thread exists.
    started: bool,
    /// Whether the service manager has been sent the device.
    stored: bool,
}

#[derive(Debug)]
struct Notices {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Queue {
    fn push(&mut self, notice: Notice) {
        // A status counts until the next one.
        let is_status = |notice: &Notice| matches!(notice, Notice::Status(_) | Notice::Starting(_));
        let replaces = is_status(&notice) || matches!(notice, Notice::Ready(_) | Notice::Reloading(_));
        if replaces && self.waiting.back().is_some_and(is_status) {
            self.waiting.pop_back();
        }
        let ends_with_a_reload = {
            let mut last = self.waiting.iter().rev();
            matches!((last.next(), last.next()), (Some(Notice::Ready(_)), Some(Notice::Reloading(_))))
        };
        match &notice {
            Notice::Reloading(_) if ends_with_a_reload => {
                self.waiting.truncate(self.waiting.len().saturating_sub(2));
            }
            Notice::Ready(_) if matches!(self.waiting.back(), Some(Notice::Ready(_))) => {
                self.waiting.pop_back();
            }
            _ => {}
        }
        self.waiting.push_back(notice);
    }
}

impl Notices {
    fn push(&'static self, notice: Notice) {
        if !is_there() {
            return;
        }
        let mut queue = self.queue.lock();
        queue.push(notice);
        if !queue.started {
            match thread::Builder::new().name("notify".to_owned()).spawn(|| self.send_all()) {
                Ok(_) => queue.started = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot notify the service manager now; trying again with the next message");
                }
            }
        }
        drop(queue);
        self.changed.notify_all();
    }

    fn send_all(&self) {
        let mut queue = self.queue.lock();
        loop {
            let Some(notice) = queue.waiting.pop_front() else {
                self.changed.notify_all();
                self.changed.wait(&mut queue);
                continue;
            };
            queue.sending = true;
            drop(queue);
            let stores = send(&notice);
            drop(notice);
            queue = self.queue.lock();
            queue.sending = false;
            queue.stored = stores.unwrap_or(queue.stored);
        }
    }

    /// Waits until all is sent, for `limit` at most.
    fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut queue = self.queue.lock();
        while queue.sending || !queue.waiting.is_empty() {
            if self.changed.wait_until(&mut queue, until).timed_out() {
                return false;
            }
        }
        true
    }
}

/// Sends `notice`, however long it takes; tells whether the service manager has the device now, if that has changed.
fn send(notice: &Notice) -> Option<bool> {
    let notify = |state: &[NotifyState<'_>]| {
        if let Err(error) = sd_notify::notify(state) {
            tracing::warn!(%error, "cannot notify the service manager");
        }
    };
    // Polling is off: an aborted connection is the successor's to find.
    let store = |name, descriptor: &OwnedFd| {
        let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        sd_notify::notify_with_fds(&state, &[descriptor.as_fd()])
    };
    let forget = |name| notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    match notice {
        Notice::Store(device) => {
            let sent = store(DEVICE, device).inspect_err(|error| tracing::warn!(
                %error,
                "the service manager does not keep the device; the view would not survive a crash of its monitor"
            ));
            return Some(sent.is_ok());
        }
        Notice::StoreLedger(ledger) => {
            if let Err(error) = store(LEDGER, ledger) {
                tracing::warn!(%error, "the service manager does not keep the ledger");
            }
        }
        Notice::ForgetLedgers => forget(LEDGER),
        Notice::StoreUsage(usage) => {
            if let Err(error) = store(USAGE, usage) {
                tracing::warn!(%error, "the service manager does not keep what is counted of the view");
            }
        }
        Notice::ForgetUsages => forget(USAGE),
        Notice::Forget => {
            forget(DEVICE);
            forget(LEDGER);
            forget(USAGE);
            return Some(false);
        }
        Notice::Ready(status) => notify(&[NotifyState::Ready, NotifyState::Status(status)]),
        Notice::Status(status) => notify(&[NotifyState::Status(status)]),
        Notice::Starting(what) => {
            let extend = format!("EXTEND_TIMEOUT_USEC={}", PATIENCE.as_micros());
            notify(&[NotifyState::Custom(&extend), NotifyState::Status(what)]);
        }
        Notice::Reloading(now) => notify(&[NotifyState::Reloading, now.clone()]),
        Notice::Stopping => notify(&[NotifyState::Stopping]),
    }
    None
}

/// Whether a service manager listens.
#[must_use]
pub(super) fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The view answers; what it serves.
pub(super) fn ready(status: &str) {
    NOTICES.push(Notice::Ready(status.to_owned()));
}

/// What it serves.
pub(super) fn status(status: &str) {
    NOTICES.push(Notice::Status(status.to_owned()));
}

/// The start takes longer, because of `what` (EXTEND_TIMEOUT_USEC= of sd_notify(3)).
pub(super) fn starting(what: &'static str) {
    NOTICES.push(Notice::Starting(what));
}

/// A reload has begun; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => NOTICES.push(Notice::Reloading(now)),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager of a reload"),
    }
}

/// The view ends.
pub(super) fn stopping() {
    NOTICES.push(Notice::Stopping);
}

/// Keeps the device beyond this process.
pub(super) fn store_device(device: &OwnedFd) {
    match device.try_clone() {
        Ok(device) => NOTICES.push(Notice::Store(device)),
        Err(error) => tracing::warn!(
            %error,
            "the service manager does not keep the device; the view would not survive a crash of its monitor"
        ),
    }
}

/// Keeps the ledger beyond this process. Without it a successor can do.
pub(super) fn store_ledger(ledger: &OwnedFd) {
    match ledger.try_clone() {
        Ok(ledger) => NOTICES.push(Notice::StoreLedger(ledger)),
        Err(error) => tracing::warn!(%error, "the service manager does not keep the ledger"),
    }
}

/// Lets ledgers go that are not this mount's: they would take the place of its own.
pub(super) fn forget_ledgers() {
    NOTICES.push(Notice::ForgetLedgers);
}

/// Keeps what is counted of the view beyond this process. Without it a successor begins to count.
pub(super) fn store_usage(usage: &OwnedFd) {
    match usage.try_clone() {
        Ok(usage) => NOTICES.push(Notice::StoreUsage(usage)),
        Err(error) => {
            tracing::warn!(%error, "the service manager does not keep what is counted of the view");
        }
    }
}

/// Gives up what was counted of another mount: it would take the place of what is counted of this one.
pub(super) fn forget_usages() {
    NOTICES.push(Notice::ForgetUsages);
}

/// Gives up what is stored of the view.
pub(super) fn forget_device() {
    NOTICES.push(Notice::Forget);
}

/// Whether the service manager keeps the device. Waits a moment for it to be sent.
#[must_use]
pub(super) fn keeps_device() -> bool {
    is_there() && {
        NOTICES.flush(END_GRACE);
        NOTICES.queue.lock().stored
    }
}

/// The process ends: waits a moment for what is not sent yet.
pub(super) fn finish() {
    if !NOTICES.flush(END_GRACE) {
        tracing::warn!("the service manager does not read its notifications; ending all the same");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(queue: &Queue) -> Vec<String> {
        let text = |notice: &Notice| match notice {
            Notice::Ready(status) => status.clone(),
            Notice::Reloading(now) => now.to_string(),
            other => format!("{other:?}"),
        };
        queue.waiting.iter().map(text).collect()
    }

    /// However many reloads nobody has read of, the first READY=1 and the last reload are there, in order.
    #[test]
    fn a_queue_that_nobody_reads_does_not_grow() {
        let mut queue = Queue { waiting: VecDeque::new(), sending: false, started: true, stored: false };
        queue.push(Notice::Ready("first".to_owned()));
        for reload in 0..100 {
            queue.push(Notice::Reloading(NotifyState::MonotonicUsec(reload)));
            queue.push(Notice::Status("in between".to_owned()));
            queue.push(Notice::Ready(reload.to_string()));
            queue.push(Notice::Status("twice".to_owned()));
            queue.push(Notice::Status("afterwards".to_owned()));
        }
        queue.push(Notice::Stopping);
        queue.push(Notice::Forget);
        assert_eq!(
            said(&queue),
            ["first", "MONOTONIC_USEC=99", "99", "Status(\"afterwards\")", "Stopping", "Forget"]
        );
        let mut start = Queue { waiting: VecDeque::new(), sending: false, started: true, stored: false };
        (0..10).for_each(|_| start.push(Notice::Starting("the store")));
        start.push(Notice::Ready("ready".to_owned()));
        assert_eq!(said(&start), ["ready"]);
    }
}
