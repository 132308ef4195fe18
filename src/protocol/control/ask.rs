//! Who asks a monitor.
//!
//! What a monitor sends is bounded in length and time, and is believed to be nothing but text: a program that looks at many views
//! must not be stopped by one of them. Only a reload may take as long as it takes.

use std::io::{self, BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;

use super::report::{self, Report};
use super::status::{self, Status};
use super::{Outcome, Question, RELOAD, document};

/// How long a monitor has to answer a question: it does so at once, unless it is stopped or does not come to run.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line of an answer.
const LINE_MAX: usize = 64 << 10;
/// How often a question is asked: a monitor may hand over, or have a crowd of clients, at that moment.
const ATTEMPTS: u32 = 3;

/// Why a reload could not be asked for, or came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Nobody listens.
    #[error("no view called '{name}' is being served (asked at '{}'); start it, or check the name", path.display())]
    NotServed {
        /// The view.
        name: String,
        /// Its control socket.
        path: PathBuf,
    },
    /// The mount table has no view there.
    #[error("no view that this user serves is mounted on '{}'; start it, give the name or the mount point of one, or reload as whoever serves it", .0.display())]
    NoView(PathBuf),
    /// A server without a monitor serves the view.
    #[error("cannot reload, because nobody is there to do it: {0}")]
    Unmonitored(String),
    /// The monitor cannot be spoken to.
    #[error("cannot ask the monitor at '{}'", path.display())]
    Io {
        /// Its control socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The monitor ended before it answered.
    #[error("the view ended before the reload was done")]
    Ended,
    /// The monitor says why nothing has changed.
    #[error("{0}")]
    Refused(String),
}

/// Asks the monitor of the view `name` with the socket `path` for a reload, and waits until the new closure is
/// visible. Returns what the monitor says of it.
///
/// # Errors
/// [`ReloadError`].
pub fn reload(name: &str, path: &Path) -> Result<String, ReloadError> {
    let fail = |source| ReloadError::Io { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ReloadError::NotServed { name: name.to_owned(), path: path.to_owned() }
        }
        _ => fail(error),
    })?;
    // A monitor that ends closes the connection, whatever it has read of it.
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ReloadError::Ended,
        _ => fail(error),
    };
    stream.write_all(RELOAD.as_bytes()).map_err(ended)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(ended)?;
    match serde_json::from_str(&line) {
        Ok(Outcome::Ok(said)) => Ok(said),
        Ok(Outcome::Error(why)) => Err(ReloadError::Refused(why)),
        Err(_) => Err(ReloadError::Ended),
    }
}

/// Why a monitor has not answered a question.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no monitor listens at '{}'; start the view, or check the name", .0.display())]
    NotServed(PathBuf),
    /// The monitor cannot be spoken to.
    #[error("cannot ask the monitor at '{}'; ask as the user who serves the view", path.display())]
    Io {
        /// Its control socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The monitor closes the connection.
    #[error(
        "the monitor at '{}' does not know the question '{question}': it is of an earlier version of nix-store-fs; let it hand over to \
         this one (send it SIGUSR2 and start the view again), or stop and start the view", path.display()
    )]
    Earlier {
        /// Its control socket.
        path: PathBuf,
        /// What it was asked.
        question: &'static str,
    },
    /// The monitor is there, and says nothing.
    #[error(
        "the monitor at '{}' has not answered for {} s; it may be stopped, or the machine overloaded: look at its process, and ask \
         again", path.display(), after.as_secs()
    )]
    Silent {
        /// Its control socket.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },
    /// What came is no answer.
    #[error("cannot understand the answer of the monitor at '{}': {why}; ask with a nix-store-fs of its version", path.display())]
    Malformed {
        /// Its control socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Others have asked so much meanwhile that the answer was given up.
    #[error("the monitor at '{}' has withdrawn its answer, as too many clients ask at once; ask again", .0.display())]
    Withdrawn(PathBuf),
    /// The monitor says why it has no answer.
    #[error("{0}")]
    Refused(String),
}

/// Asks the monitor with the control socket `path` how its view is.
///
/// # Errors
/// [`AskError`].
pub fn ask_status(path: &Path) -> Result<Status, AskError> {
    ask_status_within(path, PATIENCE)
}

/// The same of a monitor that has `patience` to answer.
///
/// # Errors
/// [`AskError`].
pub fn ask_status_within(path: &Path, patience: Duration) -> Result<Status, AskError> {
    let status: Status = ask(path, Question::Status, patience)?;
    match status.version {
        status::VERSION => Ok(status),
        other => Err(other_version(path, other)),
    }
}

/// Asks the monitor with the control socket `path` what was missed and used in its view.
///
/// # Errors
/// [`AskError`].
pub fn ask_report(path: &Path) -> Result<Report, AskError> {
    let report: Report = ask(path, Question::Report, PATIENCE)?;
    match report.version {
        report::VERSION => Ok(report),
        other => Err(other_version(path, other)),
    }
}

fn other_version(path: &Path, version: u32) -> AskError {
    AskError::Malformed { path: path.to_owned(), why: format!("it is of version {version}") }
}

/// What came of one attempt.
enum Attempt {
    Answer(Vec<u8>),
    /// The connection was closed without a word.
    Closed,
    Withdrawn,
}

fn ask<T: DeserializeOwned>(path: &Path, question: Question, patience: Duration) -> Result<T, AskError> {
    let until = Instant::now() + patience;
    let mut last = AskError::NotServed(path.to_owned());
    for _ in 0..ATTEMPTS {
        match attempt(path, question, until, patience)? {
            Attempt::Answer(answer) => {
                return serde_json::from_slice(&answer)
                    .map_err(|error| AskError::Malformed { path: path.to_owned(), why: error.to_string() });
            }
            // One that ends does so as well: then nobody listens at the next attempt.
            Attempt::Closed => last = AskError::Earlier { path: path.to_owned(), question: question.word() },
            Attempt::Withdrawn => last = AskError::Withdrawn(path.to_owned()),
        }
    }
    Err(last)
}

fn attempt(path: &Path, question: Question, until: Instant, patience: Duration) -> Result<Attempt, AskError> {
    let fail = |error: Errno| match error {
        Errno::NOENT | Errno::CONNREFUSED => AskError::NotServed(path.to_owned()),
        Errno::WOULDBLOCK => AskError::Silent { path: path.to_owned(), after: patience },
        error => AskError::Io { path: path.to_owned(), source: error.into() },
    };
    let malformed = |why: &str| AskError::Malformed { path: path.to_owned(), why: why.to_owned() };
    let socket = connect(path, until).map_err(fail)?;
    // One line fits into a socket that nobody has written to.
    match rustix::net::send(&socket, question.line().as_bytes(), SendFlags::NOSIGNAL) {
        // An answer may have come before the end of the connection.
        Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => {}
        Err(error) => return Err(fail(error)),
    }
    let mut line = Vec::new();
    let mut file = None;
    while !line.ends_with(b"\n") {
        if line.len() >= LINE_MAX {
            return Err(malformed("its line is too long"));
        }
        match receive(&socket, &mut line, &mut file, until) {
            Ok(0) if line.is_empty() => return Ok(Attempt::Closed),
            Ok(0) => return Err(malformed("it ends in the middle of a line")),
            Ok(_) => {}
            Err(Errno::CONNRESET) => return Ok(Attempt::Closed),
            Err(error) => return Err(fail(error)),
        }
    }
    match serde_json::from_slice(&line) {
        Ok(Outcome::Ok(_)) => {}
        Ok(Outcome::Error(why)) => return Err(AskError::Refused(why)),
        Err(error) => return Err(malformed(&error.to_string())),
    }
    let file = file.ok_or_else(|| malformed("it comes without a memory file"))?;
    match document::read(file) {
        Ok(answer) if answer.is_empty() => Ok(Attempt::Withdrawn),
        Ok(answer) => Ok(Attempt::Answer(answer)),
        Err(error) => Err(malformed(&error.to_string())),
    }
}

/// Like [`UnixStream::connect`], which would wait without a limit for a monitor that does not accept.
fn connect(path: &Path, until: Instant) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    wait_at_most(&socket, Timeout::Send, until)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Err(Errno::INTR) => {}
            answer => return answer.map(|()| socket),
        }
    }
}

/// Receives a piece of a line, and the first descriptor that comes with it: the kernel closes those for which there is no room.
fn receive(
    socket: &OwnedFd,
    line: &mut Vec<u8>,
    file: &mut Option<OwnedFd>,
    until: Instant,
) -> Result<usize, Errno> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        wait_at_most(socket, Timeout::Recv, until)?;
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            answer => break answer?.bytes,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            files.for_each(|found| *file = Some(file.take().unwrap_or(found)));
        }
    }
    line.extend(bytes.iter().take(got));
    Ok(got)
}

/// Sets how long the next call may wait; `WOULDBLOCK` if it may not wait at all.
fn wait_at_most(socket: &OwnedFd, kind: Timeout, until: Instant) -> Result<(), Errno> {
    let left = until.saturating_duration_since(Instant::now());
    // Zero would be for ever.
    if left < Duration::from_millis(1) {
        return Err(Errno::WOULDBLOCK);
    }
    set_socket_timeout(socket, kind, Some(left))
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
