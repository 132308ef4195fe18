//! What somebody without rights tries against a view, from a container or in the store below.
//!
//! A store whose contents somebody changes to get at something else: what is read is the member's, or an error.

mod clients;
mod confined;
mod inside;
mod mounts;
mod plants;
mod process;
mod promises;
mod races;
mod server;
mod shapes;
mod withdrawn;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Opens `path` below `base`, which is in the view, as a process does that follows no link itself: what it gets is what the
/// server gives. Never waits for a pipe.
fn open(base: &OwnedFd, path: impl AsRef<Path>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(base, path.as_ref(), flags, Mode::empty(), within)?.into())
}

/// The bytes of a file below `base`.
fn read(base: &OwnedFd, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(base, path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The directory `path`, for [`open`] and [`read`].
fn directory(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}
