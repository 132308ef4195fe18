//! The control socket: how `reload` reaches a running monitor.
//!
//! One line in, one line out: `reload`, and then `ok` or `error` with a message, both JSON strings. The socket lies
//! in the state directory, which only its owner may enter.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const RELOAD: &str = "reload\n";

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The new closure is what is seen; says how much it is.
    Ok(String),
    /// Nothing has changed; says why.
    Error(String),
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
    /// Nothing yet.
    Nothing(Connection),
    /// Nothing that is understood.
    Unknown,
}

/// Somebody who waits for the outcome of a reload.
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
        let mut bytes = [0; RELOAD.len() + 1];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Asked::Unknown,
                Ok(read) => self.line.extend(bytes.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Asked::Nothing(self),
                Err(_) => return Asked::Unknown,
            }
            if self.line == RELOAD.as_bytes() {
                return Asked::Reload(Client(self.stream));
            }
            if !RELOAD.as_bytes().starts_with(&self.line) {
                return Asked::Unknown;
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

    /// Tells the client what became of it, without waiting; one that has gone need not know.
    pub fn tell(mut self, outcome: &Outcome) {
        if let Ok(mut line) = serde_json::to_vec(outcome) {
            line.push(b'\n');
            let _ = self.0.write_all(&line);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_its_outcome_and_a_stranger_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        assert!(matches!(reload("a", &path), Err(ReloadError::NotServed { .. })));
        let control = Control::listen(&path).unwrap();
        let ask = |answer: Option<Outcome>| {
            let path = path.clone();
            let client = std::thread::spawn(move || reload("a", &path));
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(control.socket(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            let mut connection = control.accept().unwrap().unwrap();
            let waiting = loop {
                let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                    connection.socket(),
                    rustix::event::PollFlags::IN,
                )];
                rustix::event::poll(&mut fds, None).unwrap();
                match connection.read() {
                    Asked::Reload(client) => break client,
                    Asked::Nothing(same) => connection = same,
                    Asked::Unknown => panic!(),
                }
            };
            match answer {
                Some(outcome) => waiting.tell(&outcome),
                None => drop(waiting),
            }
            client.join().unwrap()
        };
        assert_eq!(ask(Some(Outcome::Ok("3 paths".into()))).unwrap(), "3 paths");
        assert!(
            matches!(ask(Some(Outcome::Error("why\nnot".into()))), Err(ReloadError::Refused(s)) if s == "why\nnot")
        );
        assert!(matches!(ask(None), Err(ReloadError::Ended)));
        assert!(control.accept().unwrap().is_none());
        for (said, unknown) in
            [("GET / HTTP/1.1\n", true), ("reload\nreload\n", true), ("reload", false), ("", false)]
        {
            let mut stranger = UnixStream::connect(&path).unwrap();
            stranger.write_all(said.as_bytes()).unwrap();
            let asked = control.accept().unwrap().unwrap().read();
            assert_eq!(matches!(asked, Asked::Unknown), unknown, "{said:?}: {asked:?}");
            assert!(unknown || matches!(asked, Asked::Nothing(_)), "{said:?}: {asked:?}");
        }
        // One that comes in pieces, and one that goes before it has asked.
        let mut slow = UnixStream::connect(&path).unwrap();
        let mut connection = control.accept().unwrap().unwrap();
        for byte in RELOAD.as_bytes().chunks(1) {
            let Asked::Nothing(same) = connection.read() else { panic!() };
            connection = same;
            slow.write_all(byte).unwrap();
        }
        assert!(matches!(connection.read(), Asked::Reload(_)));
        drop(UnixStream::connect(&path).unwrap());
        assert!(matches!(control.accept().unwrap().unwrap().read(), Asked::Unknown));
    }
}
