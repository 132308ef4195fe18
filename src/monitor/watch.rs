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

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

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
}

impl Watch {
    /// A watch of nothing.
    ///
    /// # Errors
    /// Those of inotify_init1(2).
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, names: BTreeMap::new() })
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

    /// Takes in what has happened; returns whether something has changed.
    pub(super) fn take(&mut self) -> bool {
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
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn wait(watch: &mut Watch) -> bool {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(watch.events(), rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "no event came");
        watch.take()
    }

    #[test]
    fn a_replaced_link_is_a_change_and_its_neighbour_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("system");
        symlink("a", &link).unwrap();
        let mut watch = Watch::new().unwrap();
        watch.set(std::slice::from_ref(&link));
        symlink("b", dir.path().join("other")).unwrap();
        assert!(!wait(&mut watch));
        std::fs::rename(dir.path().join("other"), &link).unwrap();
        assert!(wait(&mut watch));
    }

    #[test]
    fn what_does_not_exist_yet_is_watched_from_above() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new().unwrap();
        watch.set(&[dir.path().join("a/b/system")]);
        std::fs::create_dir(dir.path().join("a")).unwrap();
        assert!(wait(&mut watch));
    }
}
