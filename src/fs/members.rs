//! Notices members that are replaced on disk, by a repair.
//!
//! Responsibility: watches the store directory (inotify(7)) and has the view examine the members whose names change in
//! it. What the kernel has cached of a damaged member would stay for ever otherwise, as nobody asks again for it.
//!
//! Hard points:
//! 1. The store of a busy host changes many times a second: a name that is no member costs a look at the table of names.
//! 2. Where the directory cannot be watched (no `/proc`, a file system of another machine) a member that was replaced
//!    is noticed when somebody looks it up, and at a reload.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::ServedView;

/// A watch of the store directory.
#[derive(Debug)]
pub struct MemberWatch(Option<OwnedFd>);

impl MemberWatch {
    /// Watches `store`, if that can be had.
    #[must_use]
    pub fn new(store: impl AsFd) -> Self {
        Self(
            watch(store)
                .inspect_err(|error| tracing::debug!(%error, "cannot watch the store directory"))
                .ok(),
        )
    }

    /// Examines all members once, then those whose names change, for ever.
    pub fn run(self, view: &ServedView) {
        view.check_members();
        let Some(events) = self.0 else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(events, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    view.check_members();
                }
                Ok(event) => {
                    event.file_name().inspect(|name| view.check_member(name.to_bytes()));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "the store directory is watched no more");
                    return;
                }
            }
        }
    }
}

fn watch(store: impl AsFd) -> io::Result<OwnedFd> {
    let events = inotify::init(CreateFlags::CLOEXEC)?;
    let wanted = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, format!("/proc/self/fd/{}", store.as_fd().as_raw_fd()), wanted)?;
    Ok(events)
}
