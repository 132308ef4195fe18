//! A process that says when it is ready, over the socket that systemd would give it.
//!
//! Nothing here sleeps: ready and ended are events of descriptors, with a deadline.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::fault::{Doing, Fault, Outcome};

/// Far more than any start or stop takes; only a process that hangs reaches it.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running process.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    ended: OwnedFd,
    /// Kept open to the end: a service manager that cannot be reached is worth a warning to many a service.
    inbox: UnixDatagram,
    log: PathBuf,
}

impl Service {
    /// Starts `command` and waits for READY; returns it with the time that took. Its socket and its standard error
    /// lie in `work` under `name`.
    pub(crate) fn start(mut command: Command, work: &Path, name: &str) -> Outcome<(Self, Duration)> {
        let program = Path::new(command.get_program()).display().to_string();
        let socket = work.join(format!("{name}.notify"));
        let log = work.join(format!("{name}.log"));
        if socket.exists() {
            fs::remove_file(&socket).doing(|| format!("removing {}", socket.display()))?;
        }
        let inbox = UnixDatagram::bind(&socket).doing(|| format!("listening on {}", socket.display()))?;
        let stderr = File::create(&log).doing(|| format!("creating {}", log.display()))?;
        command.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let start = Instant::now();
        let mut child = command.spawn().doing(|| format!("starting {program}"))?;
        let ended = match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => ended,
            Err(error) => {
                stop_hard(&mut child);
                return Err(error).doing(|| format!("watching {program}"));
            }
        };
        let service = Self { child, ended, inbox, log };
        match service.await_ready(start) {
            Ok(taken) => Ok((service, taken)),
            Err(fault) => Err(Fault::new(format!("{program}: {fault}; it said: {}", service.said()))),
        }
    }

    fn await_ready(&self, start: Instant) -> Outcome<Duration> {
        let doing = || "waiting for READY".to_owned();
        let mut message = [0; 4096];
        loop {
            let left = Timespec::try_from(DEADLINE.saturating_sub(start.elapsed())).doing(doing)?;
            let mut events = [
                PollFd::new(&self.inbox, PollFlags::IN),
                PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN),
            ];
            let count = rustix::event::poll(&mut events, Some(&left)).doing(doing)?;
            let [told, _] = &events;
            if !told.revents().is_empty() {
                let length = self.inbox.recv(&mut message).doing(doing)?;
                let text = message.get(..length).unwrap_or_default();
                if text.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return Ok(start.elapsed());
                }
            } else if count > 0 {
                return Err(Fault::new("it ended before it was ready"));
            } else {
                return Err(Fault::new(format!("it was not ready within {} s", DEADLINE.as_secs())));
            }
        }
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it wrote to its standard error, in one line.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Asks it to end, as systemd would, and waits for that; returns what it wrote to standard error.
    pub(crate) fn stop(mut self) -> Outcome<String> {
        self.ask_to_end()?;
        Ok(self.said())
    }

    fn ask_to_end(&mut self) -> Outcome<()> {
        let doing = || "stopping it".to_owned();
        rustix::process::kill_process(self.pid(), Signal::TERM).doing(doing)?;
        let left = Timespec::try_from(DEADLINE).doing(doing)?;
        let mut events = [PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN)];
        if rustix::event::poll(&mut events, Some(&left)).doing(doing)? == 0 {
            return Err(Fault::new(format!("it did not end on SIGTERM; it said: {}", self.said())));
        }
        match self.child.wait().doing(doing)? {
            status if status.success() => Ok(()),
            status => Err(Fault::new(format!("it ended with {status}; it said: {}", self.said()))),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After an error elsewhere, which is the one to report; killed at once, it would leave its children behind.
        if matches!(self.child.try_wait(), Ok(None)) && self.ask_to_end().is_err() {
            stop_hard(&mut self.child);
        }
    }
}

/// A child that has been waited for is left alone; there is nobody to tell that the rest failed.
fn stop_hard(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) && child.kill().is_ok() {
        child.wait().ok();
    }
}
