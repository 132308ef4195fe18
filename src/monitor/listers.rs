//! Who keeps a switch from its end: looked up on a thread, as looking at a process that hangs, hangs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use super::mount::{Mounted, named};
use super::poll;

/// How long processes are looked for.
const PATIENCE: Duration = Duration::from_millis(300);

/// A search for processes that list a view and do not come to an end.
#[derive(Debug)]
pub(super) struct Search {
    found: Receiver<Vec<String>>,
    done: Arc<OwnedFd>,
}

impl Search {
    /// Begins to look for those that list `mounted`.
    ///
    /// # Errors
    /// Those of eventfd(2), and when the thread cannot be made.
    pub(super) fn start(mounted: Mounted) -> io::Result<Self> {
        let done = Arc::new(poll::event()?);
        let signal = done.clone();
        let (tell, found) = channel();
        let work = move || {
            let _ = tell.send(mounted.listers(PATIENCE));
            poll::raise(&signal);
        };
        thread::Builder::new().name("listers".to_owned()).spawn(work)?;
        Ok(Self { found, done })
    }

    /// Readable when it is done.
    pub(super) fn done(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// Who was found, once it is done.
    pub(super) fn found(&self) -> Option<Vec<String>> {
        match self.found.try_recv() {
            Ok(found) => Some(found),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Vec::new()),
        }
    }
}

/// Why a switch does not come to its end, as far as these processes tell, and what to do about it.
pub(super) fn overdue(listing: &[String]) -> String {
    const WHAT: &str = "the kernel still shows names of the old closure";
    const THEN: &str = "End that process, or stop the container that it is in; the new closure is shown then";
    if listing.is_empty() {
        return format!(
            "{WHAT} after 10 s: either the store's disk does not answer, or a process keeps a directory of the view locked by a \
             listing that does not end ('grep -l iterate_dir /proc/[0-9]*/task/*/stack' finds it). {THEN}"
        );
    }
    format!("{WHAT} after 10 s, as a listing of the view does not end: {}. {THEN}", named(listing))
}
