//! Who the command is: user and mount namespaces, and the maps between their users.
//!
//! Whoever has no CAP_SYS_ADMIN mounts in a user namespace of its own, A, where it is user 0, and runs the command in another one, B,
//! made from there, where it is itself again. What was mounted in A is locked in B (mount_namespaces(7)): the command can
//! neither unmount the view nor look below it, nor can anybody in a namespace that it makes.
//!
//! Hard points:
//! 1. `/dev/fuse` has to be opened in the user namespace that mounts it (`fuse_get_tree`), so in A.
//! 2. Groups cannot be given up in a namespace that whoever has no right made (user_namespaces(7), "setgroups"), so the command keeps
//!    the access of its further groups, which have no number in there.

use std::io;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::thread::CapabilitySet;

use super::RunError;
use crate::mounts::TableError;

/// How this process comes to mount something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// It has CAP_SYS_ADMIN where it is.
    Own,
    /// By a user namespace, for the user with these numbers.
    Namespace {
        /// The user.
        user: u32,
        /// The group.
        group: u32,
    },
}

/// What this process has.
#[must_use]
pub(super) fn right() -> Right {
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    // Another user with this right is in a user namespace, which may have no user 0 to mount for.
    if may && rustix::process::geteuid().is_root() {
        return Right::Own;
    }
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Right::Namespace { user, group }
}

/// Enters the namespaces in which mounts are made. What is mounted outside arrives, and nothing goes the other way.
///
/// # Errors
/// [`RunError::Namespace`], [`RunError::Map`], [`RunError::Mount`].
pub(super) fn enter(right: Right) -> Result<(), RunError> {
    match right {
        Right::Own => unshare(CloneFlags::CLONE_NEWNS).map_err(refused)?,
        Right::Namespace { user, group } => {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(refused)?;
            map((0, user), (0, group)).map_err(|error| unmapped(error, user))?;
        }
    }
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(|error| match error {
        Errno::INVAL => RunError::Chroot(error.into()),
        _ => RunError::Mount { what: "/".into(), source: error.into() },
    })
}

/// Enters the namespaces in which the command runs, where that takes others.
///
/// # Errors
/// [`RunError::Namespace`], [`RunError::Map`].
pub(super) fn lock(right: Right) -> Result<(), RunError> {
    let Right::Namespace { user, group } = right else { return Ok(()) };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(refused)?;
    map((user, 0), (group, 0)).map_err(|error| unmapped(error, user))
}

/// Enters a network namespace in which nobody can be reached but oneself.
///
/// # Errors
/// [`RunError::Namespace`], [`RunError::Network`].
pub(super) fn leave_network() -> Result<(), RunError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(refused)?;
    crate::sys::raise_loopback().map_err(RunError::Network)
}

/// Lets the next children of this process be in a process namespace of their own.
///
/// # Errors
/// [`RunError::Namespace`].
pub(super) fn leave_processes() -> Result<(), RunError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(refused)
}

/// Gives the user namespace that this process has just made one user and one group: numbers within, and what they are outside. Whoever
/// has no right outside has to give up further groups for that (user_namespaces(7)).
///
/// # Errors
/// Those of write(2).
pub fn map(user: (u32, u32), group: (u32, u32)) -> io::Result<()> {
    match std::fs::write("/proc/self/setgroups", "deny") {
        // Old kernels that have no such file let the map be written without.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for (file, (within, outside)) in [("/proc/self/uid_map", user), ("/proc/self/gid_map", group)] {
        std::fs::write(file, format!("{within} {outside} 1"))?;
    }
    Ok(())
}

fn refused(error: nix::Error) -> RunError {
    RunError::Namespace { advice: advice(error, setting), source: error.into() }
}

/// What a file below `/proc/sys` holds (sysctl(8)).
fn setting(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()
}

/// `user`: who this process was before. It is nobody in a namespace without a map.
fn unmapped(source: io::Error, user: u32) -> RunError {
    if source.kind() == io::ErrorKind::NotFound {
        return TableError::NoProc.into();
    }
    let advice = if user == 0 {
        // Linux 5.12, `verify_root_map` of kernel/user_namespace.c.
        "user 0 without CAP_SETFCAP cannot make a user namespace, as within another 'run' of root's: give that one --keep-caps, or be an ordinary user"
    } else {
        advice(nix::Error::EPERM, setting)
    };
    RunError::Map { advice, source }
}

/// What to change where namespaces are refused: `setting` reads a file below `/proc/sys` (sysctl(8)).
fn advice(error: nix::Error, setting: impl Fn(&str) -> Option<String>) -> &'static str {
    let is = |name, value: &str| setting(name).is_some_and(|found| found.trim() == value);
    match error {
        nix::Error::ENOSPC | nix::Error::EUSERS => {
            if is("user/max_user_namespaces", "0") {
                "user namespaces are turned off: 'sysctl -w user.max_user_namespaces=10000' as root turns them on"
            } else {
                "there are as many namespaces as this user may have: end some, or raise user.max_user_namespaces and user.max_mnt_namespaces (sysctl) as root"
            }
        }
        _ if is("kernel/unprivileged_userns_clone", "0") => {
            "ordinary users may not make user namespaces: 'sysctl -w kernel.unprivileged_userns_clone=1' as root lets them"
        }
        _ if is("kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "AppArmor keeps ordinary users from user namespaces: give this program a profile with 'userns,' (docs/run.md has one), or, for all programs, 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0' as root"
        }
        _ => {
            "this system, container or chroot does not let this user make user namespaces: in a container, allow unshare and mount (docker: --security-opt seccomp=unconfined), or run as root"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_namespaces_is_named() {
        for (error, settings, expected) in [
            (
                nix::Error::ENOSPC,
                &[("user/max_user_namespaces", "0\n")][..],
                "user.max_user_namespaces=10000",
            ),
            (nix::Error::ENOSPC, &[("user/max_user_namespaces", "62\n")], "as many namespaces"),
            (
                nix::Error::EPERM,
                &[("kernel/unprivileged_userns_clone", "0\n")],
                "unprivileged_userns_clone=1",
            ),
            (nix::Error::EPERM, &[("kernel/apparmor_restrict_unprivileged_userns", "1\n")], "AppArmor"),
            (
                nix::Error::EPERM,
                &[
                    ("kernel/unprivileged_userns_clone", "1\n"),
                    ("kernel/apparmor_restrict_unprivileged_userns", "0\n"),
                ],
                "in a container",
            ),
            (nix::Error::EINVAL, &[], "in a container"),
        ] {
            let setting = |name: &str| {
                settings.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            let said = advice(error, setting);
            assert!(said.contains(expected), "{error} {settings:?}: {said}");
        }
    }
}
