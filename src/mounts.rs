//! The mount table: `mountinfo` of a process or a thread (proc_pid_mountinfo(5)).
//!
//! Hard point: type and source are whatever was asked for at the mount, by anybody who may run fusermount3(1). Who mounted a FUSE
//! file system is what the kernel says (`user_id=`, `fuse_show_options` of Linux `fs/fuse/inode.c`), and fusermount3 asks
//! for its caller. No text that a user chooses comes behind it in the line. In the table of another mount namespace, root of a
//! user namespace shows as root as well.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of a view's mount: the kernel's, a dot, and this program's name.
pub const VIEW: &str = "fuse.nix-store-fs";

/// The options of an overlay that name directories.
const LAYERS: [&[u8]; 4] = [b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir"];

/// Why a mount table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is none.
    #[error("/proc is not mounted; mount it with 'mount -t proc proc /proc'")]
    NoProc,
    /// It cannot be read.
    #[error("cannot read the mount table '{}'", path.display())]
    Read {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which no other mount has at the same time.
    pub id: u64,
    /// The directory of the file system that is mounted, as a path in it.
    pub root: PathBuf,
    /// The mount point.
    pub at: PathBuf,
    /// The type, with its subtype.
    pub kind: String,
    /// The source.
    pub source: String,
    /// Who mounted it, if it is a FUSE file system.
    pub user: Option<u32>,
    /// The process group that mounts there, if it is an automount point (autofs(5)): all others wait until it has.
    pub automounter: Option<i32>,
    /// Major and minor number of the superblock's device, `0:42`.
    pub device: String,
    /// The directories that it shows together, if it is an overlay, as far as they are absolute.
    pub layers: Vec<PathBuf>,
    /// Whether it goes when the mount that it was copied from is unmounted (mount_namespaces(7), "slave").
    pub is_slave: bool,
}

impl Mount {
    /// Whether it is a view that the effective user mounted.
    #[must_use]
    pub fn is_own_view(&self) -> bool {
        self.kind == VIEW && self.user == Some(rustix::process::geteuid().as_raw())
    }

    /// The same, with this source.
    #[must_use]
    pub fn is_own_view_from(&self, source: &str) -> bool {
        self.is_own_view() && self.source == source
    }

    /// Whether the kernel believes whoever mounted it what owners and modes its files have.
    #[must_use]
    pub fn is_fuse(&self) -> bool {
        is_fuse(&self.kind)
    }
}

/// The mounts of this process's mount namespace; later ones lie on top of earlier ones.
///
/// # Errors
/// [`TableError`].
pub fn mounts() -> Result<Vec<Mount>, TableError> {
    of(Path::new("/proc/self"))
}

/// The mounts that the process `/proc/PID` sees, or the thread `/proc/thread-self`.
///
/// # Errors
/// [`TableError`].
pub fn of(process: &Path) -> Result<Vec<Mount>, TableError> {
    let path = process.join("mountinfo");
    match std::fs::read(&path) {
        Ok(table) => Ok(parse_all(&table)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TableError::NoProc),
        Err(source) => Err(TableError::Read { path, source }),
    }
}

/// The minor number of a file system that has no disk: its `device` in the table is `0:42`.
#[must_use]
pub fn minor(device: &str) -> Option<u32> {
    device.strip_prefix("0:")?.parse().ok()
}

/// The mounts of a table. A line that is none is left out.
#[must_use]
pub fn parse_all(table: &[u8]) -> Vec<Mount> {
    table.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// Those of an overlay with these options: `Documentation/filesystems/overlayfs.rst` of Linux. In each a colon, a comma and a
/// backslash have a backslash before them.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let options = unescape(options);
    let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bytes = options.iter();
    while let Some(byte) = bytes.next() {
        let is_end = matches!(byte, b',' | b':');
        // A layer begins behind the equals sign of its option.
        let begins = *byte == b'=' && parts.last().is_some_and(|part| LAYERS.contains(&part.as_slice()));
        match (byte, parts.last_mut()) {
            _ if is_end || begins => parts.push(Vec::new()),
            (b'\\', Some(part)) => part.extend(bytes.next()),
            (byte, Some(part)) => part.push(*byte),
            (_, None) => {}
        }
    }
    parts
        .into_iter()
        .filter(|part| part.starts_with(b"/"))
        .map(|part| OsString::from_vec(part).into())
        .collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let root = fields.next()?;
    let at = fields.next()?;
    // Optional fields end with a single dash.
    let optional = fields.by_ref().take_while(|field| *field != b"-");
    let is_slave = optional.filter(|field| field.starts_with(b"master:")).count() > 0;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let (kind, source) = (text(fields.next()?), text(fields.next()?));
    let options = fields.next()?;
    let number = |name: &[u8]| {
        let value = options.rsplit(|b| *b == b',').find_map(|option| option.strip_prefix(name))?;
        std::str::from_utf8(value).ok()
    };
    let user = number(b"user_id=").and_then(|user| user.parse().ok());
    let automounter = number(b"pgrp=").and_then(|group| group.parse().ok());
    Some(Mount {
        id,
        root: OsString::from_vec(unescape(root)).into(),
        at: OsString::from_vec(unescape(at)).into(),
        user: user.filter(|_| is_fuse(&kind)),
        automounter: automounter.filter(|_| kind == "autofs"),
        layers: if kind == "overlay" { layers(options) } else { Vec::new() },
        kind,
        source,
        device: text(device),
        is_slave,
    })
}

/// What stands in front of a dot is the kernel's name, the rest is whatever was asked for. virtiofs is none: root alone mounts it.
fn is_fuse(kind: &str) -> bool {
    matches!(kind.split('.').next(), Some("fuse" | "fuseblk"))
}

/// Space, tab, newline and backslash stand as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'\\'
            && let Some((digits, behind)) = tail.split_first_chunk::<3>()
            && let Ok(digits) = std::str::from_utf8(digits)
            && let Ok(byte) = u8::from_str_radix(digits, 8)
        {
            out.push(byte);
            rest = behind;
        } else {
            out.push(*first);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields_are_read() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - fuse.nix-store-fs nix-store-fs:a\\134b rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.at, PathBuf::from("/mnt 2"));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("fuse.nix-store-fs", "nix-store-fs:a\\b"));
        assert_eq!((mount.id, mount.device.as_str(), mount.is_slave), (36, "98:0", true));
        let mount = parse(b"36 35 98:0 / / rw - ext4 master:1 rw").unwrap();
        assert_eq!((mount.kind.as_str(), mount.source.as_str(), mount.is_slave), ("ext4", "master:1", false));
        assert_eq!(mount.user, None);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / / rw"), None);
    }

    /// Nothing but the kernel's own option says who mounted a file system.
    #[test]
    fn a_file_system_is_whose_the_kernel_says() {
        let user = |kind: &str, source: &str, options: &str| {
            parse(format!("36 35 0:9 / /mnt rw - {kind} {source} {options}").as_bytes()).unwrap().user
        };
        let view = VIEW;
        for (kind, source, options, expected) in [
            (view, "nix-store-fs:a", "ro,user_id=1000,group_id=0", Some(1000)),
            ("fuse", "a", "ro,user_id=0,group_id=0", Some(0)),
            (view, "user_id=0,", "ro,user_id=1000,group_id=0", Some(1000)),
            (view, "a\\040user_id=0", "ro,user_id=1000", Some(1000)),
            (view, "a", "ro,xuser_id=0", None),
            (view, "a", "ro,user_id=x", None),
            (view, "a", "ro,user_id=-1", None),
            ("fuse.x.ext4", "a", "rw,user_id=7,group_id=0", Some(7)),
            ("fuseblk", "/dev/sdb1", "rw,user_id=7,group_id=0,blksize=4096", Some(7)),
            ("fuse", "a\\040-\\040ext4", "rw,user_id=1000", Some(1000)),
            ("fuse", "a", "rw,context=user_id=0,user_id=1000,group_id=0", Some(1000)),
            ("tmpfs", "a", "ro,user_id=0", None),
            ("fusectl", "a", "ro,user_id=0", None),
        ] {
            assert_eq!(user(kind, source, options), expected, "{kind} {source} {options}");
        }
    }

    #[test]
    fn an_automount_point_is_whose_the_kernel_says() {
        let group = |kind: &str, options: &str| {
            parse(format!("36 35 0:9 / /mnt rw - {kind} systemd-1 {options}").as_bytes()).unwrap().automounter
        };
        let options = "rw,fd=47,pgrp=1,timeout=0,minproto=5,maxproto=5,direct,pipe_ino=9";
        assert_eq!(group("autofs", options), Some(1));
        assert_eq!(group("autofs", "rw,fd=-1,timeout=0"), None);
        assert_eq!(group("tmpfs", options), None);
    }

    #[test]
    fn the_real_table_has_a_root() {
        assert!(mounts().unwrap().iter().any(|mount| mount.at == std::path::Path::new("/")));
    }
}
