//! The server as the monitor sees it: a child process, and a socket to speak over.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::protocol::wire::{self, Order, Report, Start};

/// The argument that makes the program a server; not for people.
pub const SERVER_ARGUMENT: &str = "--server-of-monitor";

/// Deaths in a row that are answered at once; later ones wait.
const PATIENCE: u32 = 3;
/// First and longest wait before another server is started.
const WAIT: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the end of a killed server is waited for, so that it can be said.
const LAST_BREATH: Duration = Duration::from_millis(250);

/// A running server.
#[derive(Debug)]
pub struct Server {
    process: Child,
    socket: UnixStream,
    answered: bool,
}

impl Server {
    /// Starts one, which then waits to be told what to serve.
    ///
    /// # Errors
    /// When the program cannot be started again.
    pub fn spawn() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let process = Command::new("/proc/self/exe")
            .arg0("nix-store-fs")
            .arg(SERVER_ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // An interrupt from the terminal is for the monitor to handle.
            .process_group(0)
            .spawn()?;
        Ok(Self { process, socket, answered: false })
    }

    /// Tells it what to serve. One that died already is found by its closed socket.
    pub fn begin(&self, start: Start, device: &OwnedFd, store: &OwnedFd, idle: Option<OwnedFd>) {
        let order = Order::Start(Box::new(start));
        let descriptors: Vec<_> = [Some(device.as_fd()), Some(store.as_fd()), idle.as_ref().map(AsFd::as_fd)]
            .into_iter()
            .flatten()
            .collect();
        let _ = wire::send(&self.socket, &order, &descriptors);
    }

    /// Its socket, readable when there is a report or it has died.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The next report; none if it has died.
    pub fn report(&mut self) -> Option<Report> {
        let report = wire::receive::<Report>(&self.socket).ok().flatten().map(|(report, _)| report);
        self.answered |= matches!(report, Some(Report::Answered));
        report
    }

    /// Tells it something; a dead one is found by its closed socket.
    pub fn order(&self, order: &Order) {
        let _ = wire::send(&self.socket, order, &[]);
    }

    /// Its socket is closed, so it has ended or is to: tells how it ended, and whether it had answered anything.
    ///
    /// # Errors
    /// Those of kill(2), waitpid(2) and pidfd_open(2).
    pub fn wait(self) -> io::Result<(End, bool)> {
        let answered = self.answered;
        // No effect on one that is ending already.
        self.kill().map(|end| (end, answered))
    }

    /// Ends it at once. What it had taken is given back to its successor.
    ///
    /// # Errors
    /// Those of kill(2), waitpid(2) and pidfd_open(2).
    pub fn kill(mut self) -> io::Result<End> {
        self.process.kill()?;
        if let Some(status) = self.ended(Instant::now() + LAST_BREATH)? {
            return Ok(End::Exited(status));
        }
        let mut process = self.process;
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || process.wait())?;
        Ok(End::Hangs)
    }

    /// Waits for its end until `deadline`, then ends it; returns whether it ended by itself.
    pub fn wait_until(mut self, deadline: Instant) -> bool {
        if let Ok(Some(_)) = self.ended(deadline) {
            return true;
        }
        let _ = self.kill();
        false
    }

    fn ended(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        let end = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty())?;
        super::wait(&[end.as_fd()], Some(deadline))?;
        self.process.try_wait()
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As every process does.
    Exited(ExitStatus),
    /// It was killed, and the kernel does not let it go before another server answers: see [`crate::server`]. It reads
    /// the device no more.
    Hangs,
}

impl End {
    /// Whether it had nothing more to do.
    #[must_use]
    pub fn success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => status.fmt(f),
            Self::Hangs => f.write_str("killed while it waits for a reader"),
        }
    }
}

/// How long to wait before the next server: not at all, unless they die again and again.
#[derive(Debug, Default)]
pub struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// A server died; `useful` if it had answered anything. How long to wait.
    pub fn death(&mut self, useful: bool) -> Duration {
        self.deaths = if useful { 0 } else { self.deaths.saturating_add(1) };
        match self.deaths.checked_sub(PATIENCE + 1) {
            None => Duration::ZERO,
            Some(doublings) => WAIT.saturating_mul(1 << doublings.min(16)).min(WAIT_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_of_useful_servers_never_wait_and_others_wait_longer_and_longer() {
        let mut backoff = Backoff::default();
        assert!((0..1000).all(|_| backoff.death(true).is_zero()));
        let waits: Vec<_> = (0..20).map(|_| backoff.death(false)).collect();
        assert!(waits[..3].iter().all(Duration::is_zero));
        assert!(waits[3..].is_sorted() && waits[3] == WAIT && waits[19] == WAIT_MAX);
        assert!(backoff.death(true).is_zero());
        assert!(backoff.death(false).is_zero());
    }
}
