//! The mount table of this process: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

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
    /// Major and minor number of the superblock's device, `0:42`.
    pub device: String,
}

impl Mount {
    /// Whether it has this type and this source.
    pub(super) fn is(&self, kind: &str, source: &str) -> bool {
        self.kind == kind && self.source == source
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
    Ok(table.split(|b| *b == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let at = fields.nth(1)?;
    // Optional fields end with a single dash.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mount {
        id,
        at: OsString::from_vec(unescape(at)).into(),
        kind: text(rest.next()?),
        source: text(rest.next()?),
        device: text(device),
    })
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
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / / rw"), None);
    }

    #[test]
    fn the_real_table_has_a_root() {
        assert!(mounts().unwrap().iter().any(|mount| mount.at == std::path::Path::new("/")));
    }
}
