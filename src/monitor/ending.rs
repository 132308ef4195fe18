//! The end: every step has a limit, and the process ends whatever the steps do.
//!
//! Invariants:
//! - Whoever waits for an answer when a view has ended gets an error. Closing the device is not enough for that, so a
//!   connection that is still alive is aborted: see [`mount::Connection`]. Nothing is aborted where unmounting has ended it.
//! - Container engines are told that the view is gone, if they were told of it; that neither fails nor delays the end.
//! - Only a view that is handed over keeps its connection. One that cannot be unmounted loses it: nobody would answer.
//!
//! Hard points:
//! 1. The abort comes when the server had the time to answer what it has taken, and before it is killed. It may be
//!    unable to end before, as it may itself wait for a reader; and so may threads of this process that look for users.
//! 2. SIGTERM may come while a view is being handed over: then it ends. So the signals are looked at again as late as possible.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::error::MonitorError;
use super::mount::{self, Connection, Detach, MountError, Mounted, Number};
use super::refusing;
use super::runtime::{Place, Runtime};
use super::store_thread::Left;
use super::supervisor::{Event, Links, MountEnd, Plan, Verdict};
use super::systemd;
use crate::protocol::control::Outcome;
use crate::{cdi, error};

/// How long the mount thread may take to finish what it does, so that it can be undone.
const MOUNT_GRACE: Duration = Duration::from_millis(500);
/// How long users of a view are looked for, so that they can be named.
const USERS_GRACE: Duration = Duration::from_millis(600);
/// How long an unmount may take, with looking for users.
const UNMOUNT_GRACE: Duration = Duration::from_millis(1000);
/// How long an unmount may take that waited for what an abort has ended.
const ABORTED_GRACE: Duration = Duration::from_millis(100);
/// How long a server has to notice that its mount is gone.
const SERVER_GRACE: Duration = Duration::from_millis(400);

/// How long others may keep what tells container engines of the view.
const ENTRY_GRACE: Duration = Duration::from_millis(200);

/// How a view ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Somebody unmounted it, or a signal asked for its end.
    Unmounted,
    /// It is still there, and a successor is to take it over.
    HandedOver,
}

/// Whether somebody used a view when it was unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Used {
    Nowhere,
    /// The log has named who, or why it cannot be unmounted.
    Here,
}

impl Runtime {
    /// Ends the view as planned.
    pub(super) fn end(&mut self, plan: Plan) -> Result<Ending, MonitorError> {
        let Plan { verdict, mount, links } = plan;
        // Who has just come is told as well.
        for client in self.clients.take(Instant::now()) {
            self.clients.answer(client, &Outcome::Error(verdict.why().to_owned()));
        }
        if !matches!(verdict, Verdict::HandedOver) {
            systemd::stopping();
        }
        if mount == MountEnd::Unmount {
            self.finish_mounting();
        }
        // A probe waits for an answer that may never come. It holds nothing.
        self.probe = None;
        self.knock = None;
        self.search = None;
        let number = self.mounted.as_ref().and_then(Mounted::connection);
        let ends_mount = matches!(mount, MountEnd::Unmount | MountEnd::Gone);
        let ended_at = self.mounted.as_ref().filter(|_| ends_mount).map(|mounted| mounted.at().to_owned());
        let unmounted = match mount {
            MountEnd::Unmount => self.unmount(number),
            MountEnd::Nothing | MountEnd::Gone | MountEnd::Leave => Ok(Used::Nowhere),
        };
        // One that cannot be unmounted ends all the same: a view that nobody serves would keep whoever asks next.
        let used = unmounted.as_ref().copied().unwrap_or(Used::Here);
        match mount {
            MountEnd::Leave => {
                self.kill_server();
                self.wait_for_server();
                systemd::finish();
                // Nobody starts a successor then, and nobody would answer.
                if matches!(verdict, Verdict::HandedOver)
                    && matches!(self.take_signals().first(), Some(Event::Stop))
                {
                    return self.end(Plan {
                        verdict: Verdict::Unmounted,
                        mount: MountEnd::Unmount,
                        links: Links::None,
                    });
                }
            }
            MountEnd::Unmount | MountEnd::Gone => self.end_connection(number, used),
            MountEnd::Nothing => {}
        }
        if mount == MountEnd::Gone
            && let Some(mounted) = &self.mounted
        {
            mounted.remove_made();
        }
        // Nobody else can mount what is in a namespace of its own.
        if let Some(at) = ended_at.filter(|_| matches!(self.place, Place::Path)) {
            self.withdraw(at);
        }
        match links {
            // While the state directory is locked nobody else makes links for this name.
            Links::None => self.store_thread.end(Left::Nothing),
            Links::Earlier => self.store_thread.end(Left::Earlier),
            Links::Keep => {}
        }
        self.prefetching.finish();
        if ends_mount && let Some(state) = self.state.take() {
            state.remove();
        }
        match (verdict, unmounted) {
            (Verdict::Failed(why), unmounted) => {
                if let Err(error) = unmounted {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount the view");
                }
                Err(*why)
            }
            (_, Err(error)) => Err(error.into()),
            (Verdict::Unmounted, Ok(_)) => Ok(Ending::Unmounted),
            (Verdict::HandedOver, Ok(_)) => {
                tracing::info!("handing over");
                Ok(Ending::HandedOver)
            }
        }
    }

    fn finish_mounting(&mut self) {
        let Some(thread) = self.mounting.take() else { return };
        match thread.result_before(Instant::now() + MOUNT_GRACE) {
            Some(result) => {
                let _ = self.keep_mount(result);
            }
            None => tracing::warn!(
                mountpoint = %self.settings.mountpoint.display(),
                "the mount point does not answer; ending without waiting for it"
            ),
        }
    }

    /// Unmounts; if the view is in use, it is detached, and the log names who used it.
    fn unmount(&mut self, number: Option<Number>) -> Result<Used, MountError> {
        let Some(mounted) = self.mounted.take() else { return Ok(Used::Nowhere) };
        let at = mounted.at().to_owned();
        // Where the connection cannot be aborted later, now is the time.
        let detach = match self.connection(number) {
            Some(Err(_)) => Detach::Forcibly,
            Some(Ok(_)) | None => Detach::Gently,
        };
        let (tell, told) = channel();
        let work = move || {
            let _ = tell.send(unmount(&mounted, detach));
        };
        let no_answer = |source| MountError::Point { doing: "unmount", at, source };
        if let Err(error) = std::thread::Builder::new().name("unmount".to_owned()).spawn(work) {
            return Err(no_answer(error));
        }
        if let Ok(result) = told.recv_timeout(UNMOUNT_GRACE) {
            return result;
        }
        // It may itself wait for somebody who waits for an answer.
        let aborted = matches!(self.connection(number), Some(Ok(connection)) if connection.abort().is_ok());
        let freed = aborted.then(|| told.recv_timeout(ABORTED_GRACE).ok()).flatten();
        freed.unwrap_or_else(|| {
            Err(no_answer(std::io::Error::new(std::io::ErrorKind::TimedOut, "it takes too long")))
        })
    }

    /// Access to the connection, if there is one that has not ended.
    fn connection(&self, number: Option<Number>) -> Option<std::io::Result<Connection>> {
        let device = self.device.as_ref().filter(|device| !mount::has_ended(device))?;
        Some(Connection::open(number, device))
    }

    /// Ends the connection, in whatever state it is, and the server.
    fn end_connection(&mut self, number: Option<Number>, used: Used) {
        systemd::forget_device();
        let ended =
            self.server.as_mut().is_none_or(|server| server.ends_before(Instant::now() + SERVER_GRACE));
        let connection = self.connection(number);
        if !ended && used == Used::Nowhere && connection.is_some() {
            tracing::warn!(
                "the view is still mounted elsewhere, or has open files; access to it will fail there"
            );
        }
        let aborted =
            connection.map_or(Ok(()), |connection| connection.and_then(|connection| connection.abort()));
        if let Err(error) = &aborted {
            // It ends with its last descriptor.
            tracing::debug!(%error, "cannot abort the connection; closing the device");
        }
        if !ended {
            self.kill_server();
        }
        if aborted.is_err() {
            self.refuse();
        }
        self.device = None;
        if !ended {
            self.wait_for_server();
        }
    }

    /// Container engines are not to mount what has ended. It is done once the mount is gone: see [`crate::cdi`].
    fn withdraw(&self, at: PathBuf) {
        let view = self.settings.name.clone();
        let (tell, told) = channel();
        let work = move || {
            let _ = tell.send(cdi::withdraw(&view, &at, ENTRY_GRACE));
        };
        // The directory may be on a disk that does not answer.
        let begun = std::thread::Builder::new().name("cdi".to_owned()).spawn(work);
        let why = match (begun, told.recv_timeout(2 * ENTRY_GRACE)) {
            (Ok(_), Ok(Ok(()))) => return,
            (Ok(_), Ok(Err(error))) => error::chain(&error),
            (Ok(_), Err(error)) => error.to_string(),
            (Err(error), _) => error.to_string(),
        };
        tracing::warn!("container engines may still be told of the view ({why}); run 'nix-store-fs cdi'");
    }

    /// Frees the killed server, which has a descriptor as well.
    fn refuse(&mut self) {
        let (Some(device), Some(server)) = (self.device.take(), &mut self.server) else { return };
        let ended = || server.ends_before(Instant::now());
        if let Err(error) = refusing::refuse(device, self.ledger.take(), Instant::now() + SERVER_GRACE, ended)
        {
            tracing::debug!(%error, "cannot answer with errors");
        }
    }

    /// Waits a moment for the killed server, so that its successor does not have to.
    fn wait_for_server(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.ends_before(Instant::now() + SERVER_GRACE / 2);
        }
    }
}

fn unmount(mounted: &Mounted, detach: Detach) -> Result<Used, MountError> {
    let mut used = Used::Nowhere;
    mounted.unmount(detach, |at| {
        used = Used::Here;
        let users = mount::users(at, USERS_GRACE);
        let users = if users.is_empty() { "unknown processes".to_owned() } else { mount::named(&users) };
        tracing::warn!("the view is still in use by {users}; their open files will fail");
    })?;
    tracing::info!(mountpoint = %mounted.at().display(), "unmounted the view");
    Ok(used)
}
