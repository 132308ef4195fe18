//! A mount that nobody sees, to try what the kernel does.
//!
//! Invariant: nobody looks at the mount, so nobody can wait for an answer, and its end waits for nobody.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{Finding, Findings};
use crate::fuse::Device;
use crate::protocol::handshake::{self, Agreement, HandshakeError, Io, Passthrough, Promised, Wishes};

/// How long the kernel's first request is waited for. It takes less than a millisecond.
const LIMIT: Duration = Duration::from_secs(1);
/// A directory (`S_IFDIR`) that everybody may look into.
const DIRECTORY: u32 = 0o040_555;

/// Tries what the kernel does.
///
/// # Errors
/// [`TrialError`].
pub fn findings() -> Result<Findings, TrialError> {
    let (device, _mount) = mount()?;
    let device = Arc::new(Device::from(device));
    wait(&device)?;
    let promised = Promised::default();
    let wishes = Wishes { passthrough: Passthrough::IfOffered, idmap: true, store_depth: 0, promised };
    let Agreement { io, idmap, .. } = handshake::answer(&*device, wishes)?;
    Ok(Findings {
        forgets_all_names: takes(device.forget_all_names()),
        resends: takes(device.resend()),
        passthrough: registers(&device, io),
        idmap: Finding::from(idmap),
    })
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The operating system refused something.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Kernel and program did not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Something took too long.
    #[error("the kernel sent no request within {} s", LIMIT.as_secs())]
    Late,
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> TrialError {
    move |error| TrialError::System { doing, source: error.into() }
}

/// Waits until the kernel asks something.
fn wait(device: &Device) -> Result<(), TrialError> {
    let limit = Timespec::try_from(LIMIT).map_err(|_| TrialError::Late)?;
    match poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&limit)) {
        Ok(0) => Err(TrialError::Late),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(failed("wait for a request")(error)),
    }
}

/// Whether the kernel knows a notification.
fn takes(answer: io::Result<()>) -> Finding {
    match answer.map_err(|error| Errno::from_io_error(&error)) {
        Ok(()) => Finding::Yes,
        Err(Some(Errno::INVAL)) => Finding::No,
        Err(_) => Finding::Unknown,
    }
}

/// Whether the kernel reads files by itself. That it can is told by the exchange, which led to `io`; whether this process may
/// have it do so is decided for each file (fuse_backing_open() in fs/fuse/backing.c).
fn registers(device: &Device, io: Io) -> Finding {
    if io != Io::Passthrough {
        return Finding::No;
    }
    let file = rustix::fs::memfd_create("trial", MemfdFlags::CLOEXEC).map_err(io::Error::from);
    match file.and_then(|file| device.register(file)) {
        Ok(_) => Finding::Yes,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => Finding::Denied,
        Err(_) => Finding::Unknown,
    }
}

/// A connection, and its mount, which is in no mount table.
fn mount() -> Result<(OwnedFd, OwnedFd), TrialError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open /dev/fuse"))?;
    let mount = attach(&device).map_err(failed("mount FUSE"))?;
    Ok((device, mount))
}

fn attach(device: &OwnedFd) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    let mode = format!("{DIRECTORY:o}");
    let options = [
        ("source", "nix-store-fs"),
        ("fd", &number),
        ("rootmode", &mode),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    // Without it the kernel refuses a connection whose mounts can be idmapped.
    rustix::mount::fsconfig_set_flag(context.as_fd(), "default_permissions")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
