//! Opening the store's directory, which may take for ever: the disk may not answer.
//!
//! Invariant: the loop's thread waits for it for a moment at most, however often it is tried.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::error::{MonitorError, system};

/// How long a server's start waits for it. It takes microseconds where the disk answers.
const GRACE: Duration = Duration::from_millis(100);

/// A directory that is being opened on a thread of its own.
#[derive(Debug)]
pub(super) struct Opening(Receiver<Result<Arc<OwnedFd>, MonitorError>>);

impl Opening {
    /// Begins to open `path`.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(path: PathBuf) -> Result<Self, MonitorError> {
        let (tell, opened) = channel();
        let work = move || {
            let _ = tell.send(open(&path));
        };
        thread::Builder::new().name("open".to_owned()).spawn(work).map_err(system("start a thread"))?;
        Ok(Self(opened))
    }

    /// The directory, or why it cannot be opened; itself again if that is not known yet.
    pub(super) fn result(self) -> Result<Result<Arc<OwnedFd>, MonitorError>, Self> {
        match self.0.recv_timeout(GRACE) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Timeout) => Err(self),
            Err(RecvTimeoutError::Disconnected) => {
                Ok(Err(system("open the store directory")(std::io::Error::other("its thread has ended"))))
            }
        }
    }
}

/// Opens a store directory.
///
/// # Errors
/// [`MonitorError::Store`].
pub(super) fn open(path: &Path) -> Result<Arc<OwnedFd>, MonitorError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map(Arc::new)
        .map_err(|error| MonitorError::Store { path: path.to_owned(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_opened_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let result = |path: &Path| Opening::start(path.to_owned()).unwrap().result().unwrap();
        result(dir.path()).unwrap();
        for path in [file, dir.path().join("absent")] {
            assert!(matches!(result(&path), Err(MonitorError::Store { path: at, .. }) if at == path));
        }
    }

    #[test]
    fn one_that_takes_long_is_asked_again() {
        let (tell, opened) = channel();
        let opening = Opening(opened).result().unwrap_err();
        tell.send(open(Path::new("/"))).unwrap();
        opening.result().unwrap().unwrap();
        let (_, ended) = channel();
        assert!(Opening(ended).result().unwrap().is_err());
    }
}
