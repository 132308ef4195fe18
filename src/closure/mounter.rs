//! Who mounted what a file is on, where that lets them make up its owner and its mode.
//!
//! On a FUSE file system owner and mode are what its server says, and the server is its mounter's. Everybody may mount one by
//! fusermount3(1), over a directory of their own, and let others see it where `user_allow_other` is set.
//!
//! Hard points:
//! 1. Only the kernel says who it was ([`crate::mounts`]).
//! 2. virtiofs has the magic number of FUSE as well (`convert_fuse_statfs`), and root alone mounts it. So the type decides.
//! 3. A mount that is in another namespace, or in none any more, is not in the table. Then the magic number alone is known.
//! 4. The table is that of the calling thread: Nix's library makes a mount namespace for its own.
//! 5. The number is one of the user namespace that the file system was mounted in. One from outside cannot be told from that of the
//!    same user here; 0 is root of a namespace that this one is in.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use crate::mounts::{self, Mount};

/// `FUSE_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const FUSE: u32 = 0x6573_5546;

/// Who mounted a file system, if the owners in it are theirs to make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounter {
    /// They are not: the kernel keeps the owners, or root alone can mount its kind.
    Privileged,
    /// The user with this number.
    User(u32),
    /// It is a FUSE file system, and nobody says whose.
    Unknown,
}

impl fmt::Display for Mounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Privileged => f.write_str("root"),
            Self::User(user) => write!(f, "uid {user}"),
            Self::Unknown => f.write_str("an unknown user"),
        }
    }
}

impl Mounter {
    /// That of what `file` is on, which may be open for its path only (`O_PATH`).
    #[must_use]
    pub fn of(file: impl AsFd) -> Self {
        let file = file.as_fd();
        if rustix::fs::fstatfs(file).is_ok_and(|fs| u32::try_from(fs.f_type) != Ok(FUSE)) {
            return Self::Privileged;
        }
        // The number is not given to another mount while the file is open.
        let found = mount_id(file).zip(mounts::of(Path::new("/proc/thread-self")).ok());
        found.and_then(|(id, table)| find(&table, id)).unwrap_or(Self::Unknown)
    }
}

fn mount_id(file: BorrowedFd<'_>) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(file, c"", flags, StatxFlags::MNT_ID).ok()?;
    let known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    known.then_some(found.stx_mnt_id)
}

/// The mounter of the mount number `id`; `None`: it is not there.
fn find(table: &[Mount], id: u64) -> Option<Mounter> {
    let found = table.iter().find(|mount| mount.id == id)?;
    Some(match found.user {
        _ if !found.is_fuse() => Mounter::Privileged,
        Some(user) => Mounter::User(user),
        None => Mounter::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_mounted_is_what_the_kernel_says() {
        let (user, privileged, unknown) = (Mounter::User, Mounter::Privileged, Mounter::Unknown);
        for (kind, source, options, expected) in [
            ("fuse", "a", "rw,user_id=1000,group_id=100,allow_other", user(1000)),
            ("fuse.nix-store-fs", "nix-store-fs:a", "ro,user_id=0,group_id=0", user(0)),
            ("fuse.x.ext4", "a", "rw,user_id=1000,group_id=0", user(1000)),
            ("fuseblk", "/dev/sdb1", "rw,user_id=7,group_id=0,blksize=4096", user(7)),
            ("fuse", "user_id=0,", "rw,user_id=1000,group_id=0", user(1000)),
            ("fuse", "a\\040-\\040ext4", "rw,user_id=1000", user(1000)),
            ("fuse", "a", "rw,context=user_id=0,user_id=1000,group_id=0", user(1000)),
            ("fuse", "a", "rw,xuser_id=0", unknown),
            ("fuse", "a", "rw,user_id=x", unknown),
            ("fuse", "a", "rw,user_id=-1", unknown),
            ("virtiofs", "store", "rw", privileged),
            ("ext4", "/dev/vda", "rw,user_id=1000", privileged),
            ("fusectl", "fusectl", "rw", privileged),
        ] {
            for optional in ["", "shared:7 ", "master:1 propagate_from:2 "] {
                let line = format!("36 35 0:9 / /mnt rw {optional}- {kind} {source} {options}");
                let table =
                    format!("35 1 0:8 / / rw - tmpfs 36 rw\n{line}\n136 35 0:7 / /a rw - ext4 b rw\n");
                assert_eq!(find(&mounts::parse_all(table.as_bytes()), 36), Some(expected), "{line}");
            }
        }
        for table in
            ["", "\n", "36\n", "36 35 0:9 / /mnt rw\n", "36 35 0:9 / /mnt rw - fuse a\n", "x 36 - a b c"]
        {
            assert_eq!(find(&mounts::parse_all(table.as_bytes()), 36), None, "{table:?}");
        }
    }

    /// A mount of the kernel's own is in no table, and is no FUSE file system.
    #[test]
    fn no_owner_is_made_up_where_the_kernel_keeps_them() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert_eq!(Mounter::of(pipe), Mounter::Privileged);
        let top = std::fs::File::open("/proc").unwrap();
        assert_eq!(Mounter::of(&top), Mounter::Privileged);
        let table = mounts::of(Path::new("/proc/thread-self")).unwrap();
        assert_eq!(find(&table, mount_id(top.as_fd()).unwrap()), Some(Mounter::Privileged));
    }
}
