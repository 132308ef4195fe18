//! A thread that brings the next files of whoever walks the view: [`Walks`] decides, [`backing::Ahead`] does it.
//!
//! Invariants:
//! - Who answers a request takes one lock for it, which nobody holds while anything is opened, listed or asked for, and
//!   waits for nothing else here.
//! - No answer depends on it: it changes what the store has cached, and nothing that is returned.
//! - The thread uses no descriptor of the process but the store directory's, so it can have a table of its own.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::backing;
use super::trie::PathTrie;
use super::walk::{Cursor, Job, Kind, Listed, Next, Tree, WALKS, Wake, WalkId, Walks};

/// After that long without a read a walk has ended.
const QUIET: Duration = Duration::from_secs(5);

/// What those who answer and the thread that brings have in common.
#[derive(Debug, Default)]
pub struct ReadAhead {
    walks: Mutex<Walks>,
    due: Condvar,
}

impl ReadAhead {
    /// The file at `path` is about to be read from its beginning.
    pub fn reads(&self, path: &[u8]) {
        let wake = self.walks.lock().read(path);
        if wake == Wake::Now {
            self.due.notify_one();
        }
    }

    /// Does what is to be done, for ever.
    pub fn work(&self, mut bringer: Bringer) -> ! {
        loop {
            let job = self.next(&mut bringer);
            bringer.perform(self, job);
        }
    }

    /// Waits for something to be done.
    fn next(&self, bringer: &mut Bringer) -> Job {
        let mut walks = self.walks.lock();
        loop {
            if let Some(job) = walks.job() {
                return job;
            }
            if walks.is_any() {
                if self.due.wait_for(&mut walks, QUIET).timed_out() {
                    walks.quiet();
                }
            } else if bringer.cursors.iter().any(Option::is_some) {
                MutexGuard::unlocked(&mut walks, || bringer.rest());
            } else {
                self.due.wait(&mut walks);
            }
        }
    }

    /// Does what is to be done now.
    #[cfg(test)]
    fn catch_up(&self, bringer: &mut Bringer) {
        loop {
            let job = self.walks.lock().job();
            let Some(job) = job else { return };
            bringer.perform(self, job);
        }
    }
}

/// What brings, with its places in the walks that are under way.
#[derive(Debug)]
pub struct Bringer {
    tree: Members,
    cursors: [Option<(WalkId, Cursor)>; WALKS],
}

/// The view as it is walked: the members, and below them the store.
#[derive(Debug)]
struct Members {
    trie: Arc<PathTrie>,
    files: backing::Ahead,
}

impl Tree for Members {
    fn list(&mut self, dir: &[u8]) -> Option<Vec<Listed>> {
        if !dir.is_empty() {
            return self.files.list(dir);
        }
        let members = self.trie.members();
        let names =
            members.from_ordinal(0).map(|(_, name, _)| (name.as_str().as_bytes().into(), Kind::Unknown));
        Some(names.collect())
    }
}

impl Bringer {
    /// Brings `files` of the members of `trie`.
    #[must_use]
    pub fn new(files: backing::Ahead, trie: Arc<PathTrie>) -> Self {
        Self { tree: Members { trie, files }, cursors: [None, None] }
    }

    /// The number of the one descriptor that it needs.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.tree.files.descriptor()
    }

    fn perform(&mut self, of: &ReadAhead, job: Job) {
        match job {
            Job::Drop(path, bytes) => self.tree.files.drop_pages(&path, bytes),
            Job::Bring { place, walk, behind, order } => {
                let Some(cursor) = self.cursors.get_mut(place) else { return };
                let cursor = match cursor {
                    Some((of, cursor)) if *of == walk => cursor,
                    other => &mut other.insert((walk, Cursor::behind(&behind, order))).1,
                };
                match cursor.next(&mut self.tree) {
                    Next::File(path) => {
                        let expected = of.walks.lock().expect(walk, &path);
                        if expected {
                            let found = self.tree.files.bring(&path);
                            of.walks.lock().brought(walk, &path, found);
                        }
                    }
                    Next::Later => of.walks.lock().found_no_file(walk),
                    Next::End => of.walks.lock().at_end(walk),
                }
            }
        }
    }

    /// Nobody walks: closes and forgets everything.
    fn rest(&mut self) {
        self.tree.files.close();
        self.cursors = [None, None];
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
