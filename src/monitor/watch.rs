//! Watching what the roots depend on (inotify(7)), so that `--watch` misses no change.
//!
//! Two sides share one inotify instance. [`Arming`] is on the thread that follows the roots, and adds watches for what
//! that [depended on](Dependency). [`Changes`] is in the monitor's loop, and reads the events.
//!
//! A link is replaced by a rename in its directory, so directories are watched and the names in them told apart. Every
//! directory above a dependency is watched for the name that leads down to it: so a parent that is renamed, removed or
//! made again is noticed, and also what is made where nothing was.
//!
//! Invariants:
//! - A directory is watched, and its names are known to the reading side, before the directories in it are watched. So
//!   one that is replaced meanwhile is either watched itself, or an event.
//! - Dependencies are examined again after the watches were added. So a change before that is found, and a change after
//!   it is an event.
//! - What nothing depends on any more is not watched.
//!
//! Hard points:
//! 1. The mutex is never held during a system call that may wait for a file system: the monitor's loop needs it.
//! 2. inotify(7) does not report mounts, nor what other machines change on a network file system. Owner and mode of `/` have
//!    no directory that is watched for them: a change of theirs counts at the next reload.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, epoll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::closure::dependency::Dependency;
use crate::closure::resolve::Followed;

/// How often the roots are followed if they change each time. Then the last result counts, and is outdated.
const ATTEMPTS: usize = 4;

/// Events that are read at one time.
const AT_ONCE: usize = 1024;

/// What replaces a link, a directory or a file of roots, changes the contents of one, or who can change it.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONLYDIR);

/// What both sides have.
#[derive(Debug)]
struct Shared {
    inotify: OwnedFd,
    /// Readable after a change for which there is no event.
    outdated: OwnedFd,
    /// Names of interest by watch descriptor.
    names: Mutex<BTreeMap<i32, BTreeSet<OsString>>>,
}

/// The side that adds watches.
#[derive(Debug)]
pub(super) struct Arming {
    shared: Arc<Shared>,
    /// Directories that could not be watched the last time.
    unwatched: Vec<PathBuf>,
}

/// The side that reads events.
#[derive(Debug)]
pub(super) struct Changes {
    shared: Arc<Shared>,
    ready: OwnedFd,
}

/// A watch of nothing. `None`: there cannot be one, and the log says why; a view does without it.
pub(super) fn start() -> Option<(Arming, Changes)> {
    let failed = |error: &Errno| tracing::warn!(%error, "cannot watch the roots; {}", advice(*error));
    try_start().inspect_err(failed).ok()
}

fn try_start() -> rustix::io::Result<(Arming, Changes)> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let outdated = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for source in [&inotify, &outdated] {
        epoll::add(&ready, source, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    let shared = Arc::new(Shared { inotify, outdated, names: Mutex::default() });
    Ok((Arming { shared: shared.clone(), unwatched: Vec::new() }, Changes { shared, ready }))
}

/// What to do about an error of inotify(7), of which the own text names another limit.
fn advice(error: Errno) -> &'static str {
    match error {
        Errno::MFILE => {
            "the limit fs.inotify.max_user_instances may be reached: raise it with sysctl(8) and start again, or reload by hand after a change"
        }
        Errno::NOSPC => {
            "the limit fs.inotify.max_user_watches is reached: raise it with sysctl(8), or reload by hand after a change"
        }
        _ => "reload by hand after a change",
    }
}

impl Arming {
    /// Follows the roots, or reads what is served, by `follow`, and watches what the result depends on. The result is of a moment after which
    /// every change is reported.
    pub(super) fn follow<T>(&mut self, mut follow: impl FnMut() -> Followed<T>) -> Followed<T> {
        let mut attempt = 1;
        loop {
            let followed = follow();
            self.arm(&followed.depends_on);
            if followed.depends_on.iter().all(Dependency::holds) {
                return followed;
            }
            if attempt == ATTEMPTS {
                let _ = rustix::io::write(&self.shared.outdated, &1u64.to_ne_bytes());
                return followed;
            }
            attempt += 1;
        }
    }

    /// Watches exactly the paths of `depends_on` from now on.
    fn arm(&mut self, depends_on: &[Dependency]) {
        let mut armed: BTreeMap<i32, BTreeSet<OsString>> = BTreeMap::new();
        let mut failed = Vec::new();
        for (dir, names) in names_by_directory(depends_on.iter().map(Dependency::path)) {
            match inotify::add_watch(&self.shared.inotify, dir, EVENTS) {
                Ok(watch) => {
                    for known in [&mut *self.shared.names.lock(), &mut armed] {
                        known.entry(watch).or_default().extend(names.iter().map(|name| (*name).to_owned()));
                    }
                }
                // What is made there is noticed above it.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => failed.push((dir, error)),
            }
        }
        let unused: Vec<i32> = {
            let mut names = self.shared.names.lock();
            let before = std::mem::replace(&mut *names, armed);
            before.into_keys().filter(|watch| !names.contains_key(watch)).collect()
        };
        for watch in unused {
            let _ = inotify::remove_watch(&self.shared.inotify, watch);
        }
        self.warn(&failed);
    }

    /// Reports directories that cannot be watched, once as long as they are the same.
    fn warn(&mut self, failed: &[(&Path, Errno)]) {
        let unwatched: Vec<PathBuf> = failed.iter().map(|(dir, _)| dir.to_path_buf()).collect();
        if unwatched == self.unwatched {
            return;
        }
        self.unwatched = unwatched;
        if let Some((dir, error)) = failed.first() {
            tracing::warn!(%error, dir = %dir.display(), directories = failed.len(), "cannot watch; {}", advice(*error));
        }
    }
}

/// The directories above `paths` and the names in them that lead down to those paths; a directory comes before those
/// in it.
fn names_by_directory<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeMap<&'a Path, BTreeSet<&'a OsStr>> {
    let mut names: BTreeMap<&Path, BTreeSet<&OsStr>> = BTreeMap::new();
    for path in paths {
        for path in path.ancestors() {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { break };
            // Then those above it are there as well.
            if !names.entry(dir).or_default().insert(name) {
                break;
            }
        }
    }
    names
}

impl Changes {
    /// Readable when something may have changed.
    #[must_use]
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Reads what events there are, up to [`AT_ONCE`] and a few; whether anything of interest has changed. Whoever makes them
    /// faster than they are read, in a directory that others may write, does not keep the monitor from anything else.
    pub(super) fn take(&mut self) -> bool {
        let mut changed = rustix::io::read(&self.shared.outdated, &mut [0; 8]).is_ok();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.shared.inotify, &mut buffer);
        let mut taken = 0;
        // Not part of a buffer: the rest would be lost.
        while taken < AT_ONCE || !events.is_buffer_empty() {
            let Ok(event) = events.next() else { break };
            taken += 1;
            let mut names = self.shared.names.lock();
            let known = match event.file_name() {
                Some(name) => names
                    .get(&event.wd())
                    .is_some_and(|names| names.contains(OsStr::from_bytes(name.to_bytes()))),
                // The directory is gone, with its file system perhaps: the kernel has removed the watch.
                None if event.events().contains(ReadFlags::IGNORED) => names.remove(&event.wd()).is_some(),
                None => false,
            };
            // An overflow names nothing: anything may have changed.
            changed |= known || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
        }
        changed
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
