//! Opening the view for who plays, so that nobody is kept from unmounting it ([`apart`]), on a thread that may wait for ever: a path may lead
//! into a file system that does not answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::monitor::poll;
use crate::sys::apart::{self, Owner};

/// The thread.
#[derive(Debug)]
pub(super) struct Looking {
    opened: Receiver<io::Result<OwnedFd>>,
    ready: Arc<OwnedFd>,
}

impl Looking {
    /// Begins to open the view at `at`.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(at: PathBuf) -> io::Result<Self> {
        let ready = Arc::new(poll::event()?);
        let signal = ready.clone();
        let (tell, opened) = channel();
        let work = move || {
            let _ = tell.send(apart::open(&at, Owner::Root));
            poll::raise(&signal);
        };
        thread::Builder::new().name("look".to_owned()).spawn(work)?;
        Ok(Self { opened, ready })
    }

    /// Readable when it is done.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// What came of it, once it is done.
    pub(super) fn result(&self) -> Option<io::Result<OwnedFd>> {
        self.opened.try_recv().ok()
    }
}
