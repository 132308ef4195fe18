//! Watching what a closure depends on: links and files whose change may change it.
//!
//! A link is replaced by a rename in its directory, so directories are watched (inotify(7)) and the names in them
//! told apart. Several changes in a row make one reload: a change is reported once it has been quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// How long it has to be quiet.
const QUIET: Duration = Duration::from_millis(200);
/// Changes that never end are reported all the same after this.
const PATIENCE: Duration = Duration::from_secs(2);

/// What may be the cause of `error` of inotify_init1(2), and what to do. Its own text names another limit.
pub(super) fn limit(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => {
            "; the limit fs.inotify.max_user_instances may be reached: raise it with sysctl(8), or start without --watch"
        }
        _ => "",
    }
}

/// The watch.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: OwnedFd,
    /// Names of interest by watch descriptor.
    names: BTreeMap<i32, BTreeSet<OsString>>,
    changed: Option<(Instant, Instant)>,
}

impl Watch {
    /// A watch of nothing.
    ///
    /// # Errors
    /// Those of inotify_init1(2).
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, names: BTreeMap::new(), changed: None })
    }

    /// Watches exactly `paths` from now on. One in a directory that does not exist is watched through the nearest
    /// directory above it that does.
    pub(super) fn set(&mut self, paths: &[PathBuf]) {
        let before: BTreeSet<i32> = self.names.keys().copied().collect();
        self.names.clear();
        for path in paths {
            self.add(path);
        }
        for old in before.into_iter().filter(|old| !self.names.contains_key(old)) {
            let _ = inotify::remove_watch(&self.inotify, old);
        }
    }

    fn add(&mut self, path: &Path) {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ONLYDIR;
        for path in path.ancestors() {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
            match inotify::add_watch(&self.inotify, dir, flags) {
                Ok(watch) => {
                    self.names.entry(watch).or_default().insert(name.to_owned());
                    return;
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                // The text of the error speaks of a full device.
                Err(Errno::NOSPC) => {
                    tracing::warn!(dir = %dir.display(), "cannot watch: the limit fs.inotify.max_user_watches is reached; raise it with sysctl(8), or reload by hand after a change");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, dir = %dir.display(), "cannot watch; reload by hand after a change");
                    return;
                }
            }
        }
    }

    /// Readable when something may have changed.
    #[must_use]
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Takes in what has happened.
    pub(super) fn take(&mut self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut hit = false;
        while let Ok(event) = events.next() {
            // An overflow tells of no name: anything may have changed.
            let name = event.file_name().map(|name| {
                use std::os::unix::ffi::OsStrExt;
                std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned()
            });
            hit |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                || name.is_some_and(|name| {
                    self.names.get(&event.wd()).is_some_and(|names| names.contains(&name))
                });
        }
        if hit {
            let now = Instant::now();
            let first = self.changed.map_or(now, |(first, _)| first);
            self.changed = Some((first, now));
        }
    }

    /// When to look again, if a change is waiting for quiet.
    #[must_use]
    pub(super) fn due(&self) -> Option<Instant> {
        self.changed.map(|(first, last)| (last + QUIET).min(first + PATIENCE))
    }

    /// Whether a change has been quiet for long enough; says so once.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.due().is_some_and(|due| due <= Instant::now());
        if due {
            self.changed = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn wait(watch: &mut Watch) {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(watch.events(), rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "no event came");
        watch.take();
    }

    #[test]
    fn a_replaced_link_is_a_change_and_its_neighbour_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("system");
        symlink("a", &link).unwrap();
        let mut watch = Watch::new().unwrap();
        watch.set(std::slice::from_ref(&link));
        symlink("b", dir.path().join("other")).unwrap();
        wait(&mut watch);
        assert_eq!(watch.due(), None);
        std::fs::rename(dir.path().join("other"), &link).unwrap();
        wait(&mut watch);
        assert!(watch.due().is_some());
        assert!(!watch.is_due(), "it has not been quiet yet");
    }

    #[test]
    fn a_reached_limit_is_named() {
        let text = |errno: Errno| crate::error::chain(&super::super::MonitorError::Watch(errno.into()));
        assert_eq!(
            text(Errno::MFILE),
            "cannot watch links; the limit fs.inotify.max_user_instances may be reached: raise it with sysctl(8), or start \
             without --watch: Too many open files (os error 24)"
        );
        assert_eq!(text(Errno::NOMEM), "cannot watch links: Cannot allocate memory (os error 12)");
    }

    #[test]
    fn what_does_not_exist_yet_is_watched_from_above() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new().unwrap();
        watch.set(&[dir.path().join("a/b/system")]);
        std::fs::create_dir(dir.path().join("a")).unwrap();
        wait(&mut watch);
        assert!(watch.due().is_some());
    }
}
