//! Mounting as an ordinary user: `fusermount3`, which is set-uid root, mounts and passes the device back over the
//! socket whose number stands in `_FUSE_COMMFD` (fusermount3(1); `lib/mount.c` of libfuse).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::MountError;

const FUSERMOUNT: &str = "fusermount3";

fn output(command: &mut Command) -> Result<Output, MountError> {
    command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoFusermount,
        _ => MountError::Fusermount(error.to_string()),
    })
}

fn checked(output: &Output) -> Result<(), MountError> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().unwrap_or("it gave no reason");
    Err(MountError::Fusermount(line.trim_start_matches("fusermount3: ").to_owned()))
}

/// Mounts on `at`; returns the device.
pub(super) fn mount(at: &Path, source: &str) -> Result<OwnedFd, MountError> {
    let failed = |error: io::Error| MountError::Fusermount(error.to_string());
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // The other end has to stay open in the child.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|e| failed(e.into()))?;
    let options = format!("ro,nosuid,nodev,default_permissions,fsname={source},subtype=nix-store-fs");
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-o").arg(options).arg("--").arg(at);
    command.env("_FUSE_COMMFD", theirs.as_fd().as_raw_fd().to_string());
    let answer = output(&mut command);
    drop(theirs);
    checked(&answer?)?;
    receive(&ours).map_err(failed)
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("it passed no device back"))
}

/// Unmounts `at`.
pub(super) fn unmount(at: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    checked(&output(command.arg("--").arg(at))?)
}
