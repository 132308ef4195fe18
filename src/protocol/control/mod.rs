//! The control socket: how other processes of its user reach a running monitor.
//!
//! A question is a line: `reload`, or `status 1`, `report 1`, the number being the version of the answer. An answer is a line of
//! JSON: `{"ok": …}` or `{"error": …}`, with a string that is a message for a person. With the line of an answer to `status` or
//! `report` comes a descriptor (SCM_RIGHTS): a memory file with the whole of it as JSON ([`status::Status`], [`report::Report`]).
//! Then the monitor sends no more. One of an earlier version, which does not know a question, closes the connection.
//!
//! The socket lies in the state directory, which only its owner may enter. Neither side trusts the other for all that: nothing
//! here waits for a client, and [`ask`] bounds what it reads and how long it waits.

pub mod ask;
mod document;
pub mod report;
pub mod status;

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};

pub use ask::{AskError, PATIENCE, ReloadError, ask_report, ask_status, ask_status_within, reload};
pub use document::Document;

const RELOAD: &str = "reload\n";
/// Digits of a version.
const DIGITS: usize = 9;
/// Longer than every question.
const LINE_MAX: usize = 32;

/// What became of a request; how its answer begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is done. For a reload: the new closure is what is seen; says how much it is.
    Ok(String),
    /// It is not. For a reload: nothing has changed. Says why.
    Error(String),
}

/// What can be asked that changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// How the view is.
    Status,
    /// What was missed, and what was used.
    Report,
}

impl Question {
    const ALL: [Self; 2] = [Self::Status, Self::Report];

    fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Report => "report",
        }
    }

    fn version(self) -> u32 {
        match self {
            Self::Status => status::VERSION,
            Self::Report => report::VERSION,
        }
    }

    /// As it is asked.
    fn line(self) -> String {
        format!("{} {}\n", self.word(), self.version())
    }

    /// What somebody is told who wants an answer of another version.
    fn other_version(self, wanted: u32) -> Outcome {
        let (word, version, program) = (self.word(), self.version(), env!("CARGO_PKG_VERSION"));
        Outcome::Error(format!(
            "this monitor (nix-store-fs {program}) answers '{word}' in version {version} and not in {wanted}; ask with a nix-store-fs \
             of its version, or let it hand over to a newer one: install that, send this one SIGUSR2 and start the view again"
        ))
    }
}

/// What a client has said so far.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Reload,
    Question(Question),
    /// A question, but for an answer of this other version.
    OtherVersion(Question, u32),
    /// It may still become one of them.
    Begun,
    Malformed,
}

impl Line {
    fn read(said: &[u8]) -> Self {
        if said == RELOAD.as_bytes() {
            return Self::Reload;
        }
        if RELOAD.as_bytes().starts_with(said) {
            return Self::Begun;
        }
        Question::ALL.into_iter().find_map(|question| Self::of(question, said)).unwrap_or(Self::Malformed)
    }

    /// None: it is not this question.
    fn of(question: Question, said: &[u8]) -> Option<Self> {
        let word = question.word().as_bytes();
        let Some(rest) = said.strip_prefix(word) else {
            return word.starts_with(said).then_some(Self::Begun);
        };
        let Some(number) = rest.strip_prefix(b" ") else { return rest.is_empty().then_some(Self::Begun) };
        let digits = number.strip_suffix(b"\n").unwrap_or(number);
        // One spelling for each number, so that a question is always the same line.
        let is_padded = digits.len() > 1 && digits.starts_with(b"0");
        if is_padded || digits.len() > DIGITS || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        if digits.len() == number.len() {
            return Some(Self::Begun);
        }
        let version = str::from_utf8(digits).ok()?.parse().ok()?;
        let is_known = version == question.version();
        Some(if is_known { Self::Question(question) } else { Self::OtherVersion(question, version) })
    }
}

/// The monitor's end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
}

/// Somebody who has connected, and has not said what for.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What a connection has asked for.
#[derive(Debug)]
pub enum Asked {
    /// A reload.
    Reload(Client),
    /// A question.
    Question(Client, Question),
    /// What cannot be answered, and what is told instead.
    Unanswerable(Client, Outcome),
    /// Nothing yet.
    Nothing(Connection),
    /// Nothing that is understood.
    Unknown,
}

/// Somebody who waits for an answer, or was given one.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Control {
    /// Listens at `path`, in place of an earlier monitor's socket.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn listen(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Readable when somebody has come.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whoever has come, if somebody has.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(Connection { stream, line: Vec::new() }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Connection {
    /// Readable when there is more of its request.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Tells it why nothing comes of it, without waiting.
    pub fn refuse(self, why: &str) {
        Client(self.stream).tell(&Outcome::Error(why.to_owned()));
    }

    /// Reads what has come of its request, without waiting.
    #[must_use]
    pub fn read(mut self) -> Asked {
        let mut bytes = [0; LINE_MAX];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Asked::Unknown,
                Ok(read) => self.line.extend(bytes.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Asked::Nothing(self),
                Err(_) => return Asked::Unknown,
            }
            match Line::read(&self.line) {
                Line::Begun => {}
                Line::Reload => return Asked::Reload(Client(self.stream)),
                Line::Question(question) => return Asked::Question(Client(self.stream), question),
                Line::OtherVersion(question, version) => {
                    return Asked::Unanswerable(Client(self.stream), question.other_version(version));
                }
                Line::Malformed => return Asked::Unknown,
            }
        }
    }
}

impl Client {
    /// Readable when it waits no more: see [`Self::is_quiet`].
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether it waits for its answer. One that has gone does not, and one that says more is no client.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        matches!(
            (&self.0).read(&mut [0]).map_err(|error| error.kind()),
            Err(io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        )
    }

    /// Gives the client a document, without waiting, and says no more. It is in the client's socket until that takes it from
    /// there, or closes the socket, and as long as somebody keeps this value ([`Self::is_quiet`]).
    ///
    /// # Errors
    /// Those of sendmsg(2): `ETOOMANYREFS` where its user has too many descriptors under way.
    pub fn give(&self, question: Question, document: &Document) -> io::Result<()> {
        let line = line_of(&Outcome::Ok(question.line().trim_end().to_owned()))?;
        let file = [document.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&file)) {
            return Err(io::Error::other("internal error: there is no room for a descriptor"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&line)], &mut control, flags)?;
        let _ = self.0.shutdown(Shutdown::Write);
        Ok(())
    }

    /// Tells the client what became of it, without waiting; one that has gone need not know.
    pub fn tell(mut self, outcome: &Outcome) {
        if let Ok(line) = line_of(outcome) {
            let _ = self.0.write_all(&line);
        }
    }
}

fn line_of(outcome: &Outcome) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(outcome)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
