//! The mount table of this process: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Hard point: type and source are whatever was asked for at the mount, by anybody who may run fusermount3(1). Who mounted a FUSE
//! file system is what the kernel says (`user_id=`, `fuse_show_options` of Linux `fs/fuse/inode.c`), and fusermount3 asks
//! for its caller. In the table of another mount namespace, root of a user namespace shows as root as well.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::MountError;

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which no other mount has at the same time.
    pub id: u64,
    /// The mount point.
    pub at: PathBuf,
    /// The type, with its subtype.
    pub kind: String,
    /// The source.
    pub source: String,
    /// Who mounted it, if it is a FUSE file system.
    pub user: Option<u32>,
    /// Major and minor number of the superblock's device, `0:42`.
    pub device: String,
}

impl Mount {
    /// Whether it has this type and this source, and was mounted by the effective user.
    pub(super) fn is(&self, kind: &str, source: &str) -> bool {
        self.is_own(kind) && self.source == source
    }

    /// Whether it has this type, and was mounted by the effective user.
    pub(super) fn is_own(&self, kind: &str) -> bool {
        self.kind == kind && self.user == Some(rustix::process::geteuid().as_raw())
    }
}

/// The mounts of this process's mount namespace; later ones lie on top of earlier ones.
///
/// # Errors
/// [`MountError::Table`], [`MountError::NoProc`].
pub fn mounts() -> Result<Vec<Mount>, MountError> {
    of(Path::new("/proc/self"))
}

/// The mounts that the process `/proc/PID` sees.
///
/// # Errors
/// [`MountError::Table`], [`MountError::NoProc`].
pub(super) fn of(process: &Path) -> Result<Vec<Mount>, MountError> {
    let table = std::fs::read(process.join("mountinfo")).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoProc,
        _ => MountError::Table(error),
    })?;
    Ok(parse_all(&table))
}

/// The mounts of a table. A line that is none is left out.
#[must_use]
pub fn parse_all(table: &[u8]) -> Vec<Mount> {
    table.split(|b| *b == b'\n').filter_map(parse).collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let at = fields.nth(1)?;
    // Optional fields end with a single dash.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let (kind, source) = (text(rest.next()?), text(rest.next()?));
    let options = rest.next().unwrap_or_default();
    let user = options.split(|b| *b == b',').find_map(|option| option.strip_prefix(b"user_id="));
    Some(Mount {
        id,
        at: OsString::from_vec(unescape(at)).into(),
        user: user.and_then(|user| std::str::from_utf8(user).ok()?.parse().ok()).filter(|_| is_fuse(&kind)),
        kind,
        source,
        device: text(device),
    })
}

fn is_fuse(kind: &str) -> bool {
    kind == "fuse" || kind.starts_with("fuse.")
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
        assert_eq!((mount.id, mount.device.as_str()), (36, "98:0"));
        assert_eq!(parse(b"36 35 98:0 / / rw - ext4 /dev/vda rw").unwrap().kind, "ext4");
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
        let view = "fuse.nix-store-fs";
        for (kind, source, options, expected) in [
            (view, "nix-store-fs:a", "ro,user_id=1000,group_id=0", Some(1000)),
            ("fuse", "a", "ro,user_id=0,group_id=0", Some(0)),
            (view, "user_id=0,", "ro,user_id=1000,group_id=0", Some(1000)),
            (view, "a\\040user_id=0", "ro,user_id=1000", Some(1000)),
            (view, "a", "ro,xuser_id=0", None),
            (view, "a", "ro,user_id=x", None),
            ("tmpfs", "a", "ro,user_id=0", None),
        ] {
            assert_eq!(user(kind, source, options), expected, "{kind} {source} {options}");
        }
    }

    #[test]
    fn the_real_table_has_a_root() {
        assert!(mounts().unwrap().iter().any(|mount| mount.at == std::path::Path::new("/")));
    }
}
