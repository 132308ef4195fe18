//! The connection of a view to the kernel, as fusectl shows it, and its abort.
//!
//! Whoever waits for an answer that nobody will give is freed by the end of the connection alone: before that no signal
//! ends the wait. The connection ends when its file system is unmounted everywhere, when its last descriptor is closed, or
//! when it is aborted. A process that waits has the view in use, so unmounting does not end it. Closing does not where
//! somebody else has a descriptor: another process that was given one, or a server that was killed and cannot end, because
//! its thread that invalidates a name waits for a directory that a reader has locked. Only an abort always does. There are two:
//!
//! - `N/abort` in a file system of type fusectl, where N is the number of the connection. It works for a view that is
//!   covered, moved, detached, or mounted in a container alone, and at any time: so the server can have its own first.
//! - umount2(2) with `MNT_FORCE`. It reaches only what can be unmounted here, and aborts at once. It is for user namespaces,
//!   whose root may do this (not on every kernel), and has no fusectl.
//!
//! Hard points:
//! 1. fusectl need not be mounted. Root mounts it for itself alone, detached (fsmount(2)), so that no mount table changes and
//!    whatever lies at `/sys` does not matter. An ordinary user, who owns the files of their own connections, needs the one
//!    in `/sys`. Where neither way is open, closing the device is all there is.
//! 2. Newer kernels tell the number of a device's connection in its fdinfo. It is also the minor number of the device of the
//!    view in the mount table, which has to be remembered: a detached view is in no table.
//! 3. The kernel gives the number of a connection that has ended to the next one. So the file is opened first, and then the
//!    device has to be alive: as long as it is, the file system is, and its number is nobody else's. An open file stays that
//!    of its own connection.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::has_ended;
use crate::mounts;

/// Where systemd mounts fusectl.
const USUAL: &str = "/sys/fs/fuse/connections";
/// `FUSE_CTL_SUPER_MAGIC` of Linux `fs/fuse/control.c`.
const MAGIC: u32 = 0x6573_5543;

/// The number of a connection: the minor number of the device of its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(pub u32);

impl Number {
    /// That of a file system with this device in the mount table, `0:42`.
    pub(super) fn of(device: &str) -> Option<Self> {
        mounts::minor(device).map(Self)
    }

    /// What the kernel says of an open device.
    fn told(device: impl AsFd) -> Option<Self> {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd())).ok()?;
        let number = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
        number.trim().parse().ok().map(Self)
    }
}

/// Access to a connection that lives. It stays that of this one when another gets its number.
#[derive(Debug)]
pub struct Connection {
    abort: File,
}

impl Connection {
    /// That of `device`, whose number is this as far as it was found out.
    ///
    /// # Errors
    /// Those of fsopen(2), fsmount(2) and open(2); `ENOTCONN` if it has ended; `NotFound` if its number is not known.
    pub fn open(number: Option<Number>, device: impl AsFd) -> io::Result<Self> {
        let number = Number::told(&device).or(number).ok_or(io::ErrorKind::NotFound)?;
        let connection = Self::numbered(number)?;
        if has_ended(device) { Err(io::ErrorKind::NotConnected.into()) } else { Ok(connection) }
    }

    fn numbered(number: Number) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let abort = rustix::fs::openat(control()?, format!("{}/abort", number.0), flags, Mode::empty())?;
        Ok(Self { abort: abort.into() })
    }

    /// Ends it: whoever waits gets an error, and so does whoever asks from now on.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn abort(&self) -> io::Result<()> {
        (&self.abort).write_all(b"1")
    }
}

/// Ends the connection with this number, of which no descriptor is at hand. It is in the mount table, so the number is its own.
///
/// # Errors
/// Those of fsopen(2), fsmount(2), open(2) and write(2).
pub(super) fn abort(number: Number) -> io::Result<()> {
    Connection::numbered(number)?.abort()
}

/// The root directory of fusectl.
fn control() -> io::Result<OwnedFd> {
    own().or_else(|own| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let usual = rustix::fs::open(USUAL, flags, Mode::empty())?;
        // Where nothing is mounted there is an empty directory.
        let kind = rustix::fs::fstatfs(&usual)?.f_type;
        if u32::try_from(kind) == Ok(MAGIC) { Ok(usual) } else { Err(own.into()) }
    })
}

/// Mounts it where nobody else sees it, until it is closed.
fn own() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_that_of_a_device_without_a_disk() {
        assert_eq!(Number::of("0:42"), Some(Number(42)));
        assert_eq!(["8:1", "0:", "42", "", "0:x"].map(Number::of), [None; 5]);
    }
}
