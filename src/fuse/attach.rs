//! The beginning of a connection: `/dev/fuse` opened, and mounted somewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::mounts::VIEW;
use crate::startup;

const DEVICE: &str = "/dev/fuse";

/// Why a connection cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no FUSE device.
    #[error(
        "/dev/fuse does not exist; load the kernel module with 'modprobe fuse', or pass the device into this container"
    )]
    NoDevice,
    /// What is in the place of the FUSE device is another device, or a file.
    #[error(
        "/dev/fuse is not the FUSE device, which is character device 10:229; pass the host's device into this container, or \
         replace it: 'rm /dev/fuse && mknod /dev/fuse c 10 229'"
    )]
    NotFuse,
    /// The FUSE device may not be opened.
    #[error("/dev/fuse may not be opened; run as root, or allow this user or container to use the device")]
    Device(#[source] io::Error),
    /// The kernel refused the mount.
    #[error("the kernel refuses to mount on '{}'; mounting needs CAP_SYS_ADMIN", at.display())]
    Refused {
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Refuses another device in the place of the FUSE device; that none is there, or may be opened, is found when it is.
///
/// # Errors
/// [`AttachError::NotFuse`].
pub fn check() -> Result<(), AttachError> {
    let Ok(found) = rustix::fs::stat(DEVICE) else { return Ok(()) };
    if startup::is_fuse_device(&found) { Ok(()) } else { Err(AttachError::NotFuse) }
}

/// Opens the device, and mounts it on `at` with this `source` for the mount table. Who does this has CAP_SYS_ADMIN in the user
/// namespace of the mount namespace, and opens the device in the same one (`fuse_get_tree` of Linux `fs/fuse/inode.c`).
///
/// # Errors
/// [`AttachError`].
pub fn attach(at: &Path, source: &str) -> Result<OwnedFd, AttachError> {
    let device: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => AttachError::NoDevice,
            // A device node for which no driver is loaded.
            _ if matches!(error.raw_os_error(), Some(n) if n == Errno::NODEV.raw_os_error() || n == Errno::NXIO.raw_os_error()) => {
                AttachError::NoDevice
            }
            _ => AttachError::Device(error),
        })?
        .into();
    // rootmode has only to be a directory; the root's real mode comes with its attributes.
    let options = format!(
        "fd={},rootmode=40555,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(source, at, VIEW, flags, &*options)
        .map_err(|error| AttachError::Refused { at: at.to_owned(), source: error.into() })?;
    Ok(device)
}
