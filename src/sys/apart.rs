//! A mount namespace of one's own, so that what is open there keeps nobody from unmounting it elsewhere.
//!
//! Hard point: whoever has something of a mount open keeps umount(2) from it, also by a copy that mounts are propagated to. So the copies are
//! private, and all of them are taken away at once: what stays is what is open. Copies in the namespace of another user are locked each to the one
//! below it, and so is the root on most machines, whose kernel has mounted it over another one. There the root is exchanged for an empty one, which
//! takes its place and its lock (pivot_root(2)), and then it can be taken away.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};

/// Whose the namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever has CAP_SYS_ADMIN: the calling thread alone is in it then.
    Root,
    /// An ordinary user, in a user namespace of their own. Called while there is one thread.
    User,
}

/// Opens the directory `at` in a mount namespace of `owner` and leaves everything else that is mounted. The calling thread can open nothing by a path
/// from then on.
///
/// # Errors
/// Those of unshare(2), mount(2), open(2), umount(2) and pivot_root(2).
pub fn open(at: &Path, owner: Owner) -> io::Result<OwnedFd> {
    unshare(match owner {
        Owner::Root => CloneFlags::CLONE_NEWNS,
        Owner::User => CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS,
    })?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(at, flags, Mode::empty())?;
    match (umount2("/", MntFlags::MNT_DETACH), owner) {
        (Err(Errno::EINVAL), Owner::User) => leave_root(at)?,
        (left, _) => left?,
    }
    Ok(open)
}

/// Takes a root away that is locked, by way of the directory `at`.
fn leave_root(at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), at, Some("tmpfs"), flags, Some("size=4k,mode=555"))?;
    rustix::process::chdir(at)?;
    // The old root lies over the new one then.
    rustix::process::pivot_root(".", ".")?;
    Ok(umount2(".", MntFlags::MNT_DETACH)?)
}
