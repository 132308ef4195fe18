//! The control socket: how `--reload` reaches a running monitor.
//!
//! One line in, one line out: `reload`, and then `ok` or `error` with a message, both JSON strings. The socket lies
//! in the state directory, which only its owner may enter.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

const RELOAD: &str = "reload\n";
/// A client says its line at once; one that does not is left.
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

/// What became of a reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

    /// Readable when a client has come.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The client that has come, if it asks for a reload.
    ///
    /// # Errors
    /// Those of accept(2), or a client that says something else.
    pub fn accept(&self) -> io::Result<Client> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
        stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
        let mut line = String::new();
        BufReader::new(io::Read::take(&stream, 64)).read_line(&mut line)?;
        if line != RELOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a client said {line:?}")));
        }
        Ok(Client(stream))
    }
}

impl Client {
    /// Tells the client what became of it; one that has gone need not know.
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
    stream.write_all(RELOAD.as_bytes()).map_err(fail)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(fail)?;
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
            let waiting = control.accept().unwrap();
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
        UnixStream::connect(&path).unwrap().write_all(b"GET / HTTP/1.1\n").unwrap();
        assert!(control.accept().is_err());
    }
}
