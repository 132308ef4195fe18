//! The server as the monitor sees it: a child process, and a socket to speak over. Nothing here waits.
//!
//! Invariant: a server that says more than it has to is not listened to for longer: it may be a container's by then.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::fs::{Access, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{MonitorError, system};
use super::poll;
use crate::log::Sink;
use crate::protocol::wire::{self, Order, Received, Report};
use crate::sys;

/// The server's program: beside the monitor's.
const PROGRAM: &str = "nix-store-fs-server";

/// The server's program, opened once: whatever is installed later, the servers of a monitor are of its own version.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

impl Program {
    /// Opens it.
    ///
    /// # Errors
    /// [`MonitorError::Program`].
    pub(super) fn find() -> Result<Self, MonitorError> {
        // Where the program lies that runs, whatever link it was started by (proc_pid_exe(5)).
        let own = std::env::current_exe().map_err(system("find the file of this program"))?;
        let path = own.with_file_name(PROGRAM);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let executable = || rustix::fs::access(&path, Access::EXEC_OK);
        match rustix::fs::open(&path, flags, Mode::empty()).and_then(|program| executable().map(|()| program))
        {
            Ok(program) => Ok(Self(program)),
            Err(error) => Err(MonitorError::Program { path, source: error.into() }),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(sys::path_of(&self.0));
        command.env_clear().envs(variables());
        command
    }
}

/// What a server has as standard error: what this process has, if it is to write its log there. A terminal is opened once more, to be written only, as what is typed there is
/// not for a server. Anything else is as it is: a socket cannot be opened, and in a file both would write over each other.
fn log(sink: Sink) -> Stdio {
    if sink == Sink::Syslog {
        return Stdio::null();
    }
    let stderr = io::stderr();
    if !stderr.is_terminal() {
        return Stdio::inherit();
    }
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()) {
        Ok(terminal) => terminal.into(),
        // It has hung up, or is another user's (su(1)).
        Err(error) => {
            tracing::debug!(%error, "the server has the terminal as this process has it");
            Stdio::inherit()
        }
    }
}

/// What a server has in its environment: nothing, but for what tests stop it by.
fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    let all = cfg!(debug_assertions).then(std::env::vars_os);
    all.into_iter().flatten().filter(|(name, _)| name.to_string_lossy().starts_with("NSF_"))
}

/// Starts the program, which then waits for an order; with a pidfd of it, and the socket for orders and reports.
///
/// # Errors
/// When it cannot be started again.
pub(super) fn spawn(program: &Program, sink: Sink) -> io::Result<(Child, OwnedFd, OwnedFd)> {
    let (socket, theirs) = wire::pair()?;
    let mut process = program
        .command()
        .arg0(PROGRAM)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(log(sink))
        // It makes a session of its own: see [`crate::startup::begin_server`].
        .spawn()?;
    match pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
        Ok(end) => Ok((process, end, socket)),
        Err(error) => {
            // Nobody would notice its end. It has not begun.
            let _ = process.kill();
            let _ = process.wait();
            Err(error.into())
        }
    }
}

/// Leaves a process to a thread that waits for its end.
pub(super) fn reap(mut process: Child) {
    let reaper = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || process.wait());
    if let Err(error) = reaper {
        tracing::debug!(%error, "a process that was killed stays a zombie until the monitor ends");
    }
}

/// Reports of a server besides one for each order: that it serves or cannot begin, and that it has answered.
const REPORTS: u32 = 2;

/// A server's process.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    /// Readable when the process has ended (pidfd_open(2)).
    end: OwnedFd,
    /// None once it was closed by the server, or was of no use.
    socket: Option<OwnedFd>,
    /// How many more reports it may make.
    reports: u32,
}

impl Server {
    /// Starts one, which then waits for the order to begin.
    ///
    /// # Errors
    /// When the program cannot be started again.
    pub(super) fn spawn(program: &Program, sink: Sink) -> io::Result<Self> {
        let (process, end, socket) = spawn(program, sink)?;
        Ok(Self { process, end, socket: Some(socket), reports: REPORTS })
    }

    /// Orders it to begin, with [`Order::Start`], which names the `descriptors`.
    ///
    /// # Errors
    /// Those of [`wire::send_order`].
    pub(super) fn begin(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        wire::send_order(socket, order, descriptors)
    }

    /// Orders it to do something.
    ///
    /// # Errors
    /// Those of [`wire::send_order`].
    pub(super) fn order(&mut self, order: &Order) -> io::Result<()> {
        self.reports = self.reports.saturating_add(1);
        self.begin(order, &[])
    }

    /// Its socket: readable when there is a report, or when the server has closed it. None after [`Self::hang_up`].
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Closes the socket: nothing more is said.
    pub(super) fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Readable when its process has ended.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The next report, if one has come.
    ///
    /// # Errors
    /// Those of [`wire::receive_report`]; `InvalidData` for more than it has to make.
    pub(super) fn report(&mut self) -> io::Result<Received<Report>> {
        let Some(socket) = &self.socket else { return Ok(Received::Nothing) };
        let received = wire::receive_report(socket)?;
        if let Received::Message(_) = received {
            self.reports = self.reports.checked_sub(1).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "it sends more reports than there is to report")
            })?;
        }
        Ok(received)
    }

    /// Kills it. What it had taken is given back to its successor.
    ///
    /// # Errors
    /// Those of kill(2).
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.process.kill()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Leaves it to a thread that waits for its end. It was killed and reads the device no more, but the kernel does not
    /// let it go before another server answers: see [`crate::server`].
    pub(super) fn reap_later(self) {
        reap(self.process);
    }

    /// Waits for its end until `deadline`; returns whether it has come.
    pub(super) fn ends_before(&mut self, deadline: Instant) -> bool {
        poll::readable(&[self.end()], Some(deadline)).is_ok_and(|ended| ended == [true])
            && matches!(self.ended(), Ok(Some(_)))
    }
}
