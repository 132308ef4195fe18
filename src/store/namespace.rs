//! The mount namespace of the thread that Nix's library runs on.
//!
//! Invariants: nothing that is mounted or unmounted here is seen outside, and nothing here keeps a file system busy that is
//! unmounted outside.
//!
//! Hard point: a mount that is copied into a new namespace goes with its original only where that is shared, as everything is under
//! systemd. Of a private one the copy stays, and a view of which a copy is mounted does not end. So such copies are taken away here.
//! Of other file systems they stay: the store, its state or a root may lie there.

use std::cell::Cell;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;

use super::ffi::bridge;
use crate::mounts::{self, Mount};

/// Gives the calling thread a mount namespace of its own, once. A view stays in it if one of `needed` lies there, or this program.
///
/// # Errors
/// Those of unshare(2) and mount(2); Nix's own.
pub(super) fn enter(needed: &[&Path]) -> io::Result<()> {
    thread_local!(static PRIVATE: Cell<bool> = const { Cell::new(false) });
    if PRIVATE.get() {
        return Ok(());
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // From 2.35 Nix wants to unshare by itself, and looks whether it did; so this comes before the mounts are
    // made slaves.
    bridge::allow_private_remount().map_err(io::Error::other)?;
    // The machine's unmounts still arrive where mounts are shared, and none of ours leaves.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    PRIVATE.set(true);
    detach_views(needed);
    Ok(())
}

/// Takes away the copies of views that would outlive the views. One that stays does no harm before its view is to end.
fn detach_views(needed: &[&Path]) {
    let program = std::env::current_exe();
    let needed: Vec<_> = needed.iter().copied().chain(program.as_deref().ok()).collect();
    let table = match mounts::of(Path::new("/proc/thread-self")) {
        Ok(table) => table,
        Err(error) => {
            tracing::debug!("views may have to wait for this one to end: {error}");
            return;
        }
    };
    let stays = |view: &Mount| view.is_slave || needed.iter().any(|path| path.starts_with(&view.at));
    // From the top: a mount may lie on another one.
    for view in table.iter().rev().filter(|mount| mount.kind == mounts::VIEW && !stays(mount)) {
        if let Err(error) = umount2(&view.at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            tracing::debug!(
                "the view on '{}' may have to wait for this one to end: {error}",
                view.at.display()
            );
        }
    }
}
