//! The end: every step has a limit, and the process ends whatever the steps do.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::error::MonitorError;
use super::mount::{self, MountError, Mounted};
use super::runtime::Runtime;
use super::store_thread::Left;
use super::supervisor::{Links, MountEnd, Plan, Verdict};
use super::systemd;
use crate::protocol::control::Outcome;

/// How long the mount thread may take to finish what it does, so that it can be undone.
const MOUNT_GRACE: Duration = Duration::from_millis(500);
/// How long users of a view are looked for, so that they can be named.
const USERS_GRACE: Duration = Duration::from_millis(600);
/// How long an unmount may take, with looking for users.
const UNMOUNT_GRACE: Duration = Duration::from_millis(1200);
/// How long a server has to notice that its mount is gone.
const SERVER_GRACE: Duration = Duration::from_millis(400);

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
    /// The log has named who.
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
        let unmounted = match mount {
            MountEnd::Unmount => self.unmount(),
            MountEnd::Nothing | MountEnd::Gone | MountEnd::Leave => Ok(Used::Nowhere),
        };
        let used = unmounted.as_ref().ok().copied();
        if let Err(error) = unmounted {
            // The view is still there, and so is what a successor needs.
            return match verdict {
                Verdict::Failed(why) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount the view");
                    Err(*why)
                }
                Verdict::Unmounted | Verdict::HandedOver => Err(error.into()),
            };
        }
        match mount {
            MountEnd::Leave => self.kill_and_wait(),
            MountEnd::Unmount | MountEnd::Gone => {
                // Whoever still has it open gets errors instead of waiting for ever: the connection ends with its last
                // descriptor.
                systemd::forget_device();
                self.device = None;
                self.end_server(used);
            }
            MountEnd::Nothing => {}
        }
        if mount == MountEnd::Gone
            && let Some(mounted) = &self.mounted
        {
            mounted.remove_made();
        }
        match links {
            // While the state directory is locked nobody else makes links for this name.
            Links::None => self.store_thread.end(Left::Nothing),
            Links::Earlier => self.store_thread.end(Left::Earlier),
            Links::Keep => {}
        }
        if matches!(mount, MountEnd::Unmount | MountEnd::Gone)
            && let Some(state) = self.state.take()
        {
            state.remove();
        }
        match verdict {
            Verdict::Unmounted => Ok(Ending::Unmounted),
            Verdict::HandedOver => {
                tracing::info!("handing over");
                Ok(Ending::HandedOver)
            }
            Verdict::Failed(why) => Err(*why),
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
    fn unmount(&mut self) -> Result<Used, MountError> {
        let Some(mounted) = self.mounted.take() else { return Ok(Used::Nowhere) };
        let at = mounted.at().to_owned();
        let (tell, told) = channel();
        let work = move || {
            let _ = tell.send(unmount(&mounted));
        };
        let no_answer = |source| MountError::Point { doing: "unmount", at, source };
        match std::thread::Builder::new().name("unmount".to_owned()).spawn(work) {
            Ok(_) => told.recv_timeout(UNMOUNT_GRACE).unwrap_or_else(|_| {
                Err(no_answer(std::io::Error::new(std::io::ErrorKind::TimedOut, "it takes too long")))
            }),
            Err(error) => Err(no_answer(error)),
        }
    }

    fn end_server(&mut self, used: Option<Used>) {
        let Some(server) = &mut self.server else { return };
        if !server.ends_before(Instant::now() + SERVER_GRACE) {
            if used == Some(Used::Nowhere) {
                tracing::warn!("the view is still mounted elsewhere; access to it will fail there");
            }
            self.kill_and_wait();
        }
    }

    /// Kills the server, and waits a moment so that its successor does not have to wait for it.
    fn kill_and_wait(&mut self) {
        self.kill_server();
        if let Some(server) = &mut self.server {
            let _ = server.ends_before(Instant::now() + SERVER_GRACE / 2);
        }
    }
}

fn unmount(mounted: &Mounted) -> Result<Used, MountError> {
    let mut used = Used::Nowhere;
    mounted.unmount(|at| {
        used = Used::Here;
        let users = mount::users(at, USERS_GRACE);
        let users = if users.is_empty() { "unknown processes".to_owned() } else { users.join(", ") };
        tracing::warn!("the view is still in use by {users}; their open files will fail");
    })?;
    tracing::info!(mountpoint = %mounted.at().display(), "unmounted the view");
    Ok(used)
}
