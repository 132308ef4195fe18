//! The kernel's mount table.

use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug)]
pub(crate) struct Mount {
    pub(crate) at: PathBuf,
    /// Options of this mount.
    pub(crate) options: Vec<String>,
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Options of the file system, the same for each of its mounts.
    pub(crate) super_options: Vec<String>,
}

fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\' {
            let octal = std::str::from_utf8(&tail[..3]).unwrap();
            bytes.push(u8::from_str_radix(octal, 8).unwrap());
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// All mounts, in the order they were made.
pub(crate) fn all() -> Vec<Mount> {
    let words = |field: &str| field.split(',').map(str::to_owned).collect();
    // The kernel escapes white space and leaves other bytes as they are, which need not be text.
    let table = std::fs::read("/proc/self/mountinfo").unwrap();
    let ascii =
        |byte: &u8| if byte.is_ascii() { char::from(*byte).to_string() } else { format!("\\{byte:03o}") };
    table
        .iter()
        .map(ascii)
        .collect::<String>()
        .split_terminator('\n')
        .map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            Mount {
                at: unescape(left[4]),
                options: words(left[5]),
                kind: right[0].to_owned(),
                source: right[1].to_owned(),
                super_options: words(right[2]),
            }
        })
        .collect()
}

/// What is mounted there, the topmost if several are.
pub(crate) fn at(path: &Path) -> Option<Mount> {
    all().into_iter().rfind(|mount| mount.at == path)
}

/// A mount that a test makes for itself, gone again when the test ends however it ends.
#[derive(Debug)]
pub(crate) struct Own(PathBuf);

impl Own {
    pub(crate) fn mount(kind: &str, at: &Path, options: &str) -> Self {
        Self::mount_from(kind, kind, at, options)
    }

    fn mount_from(source: &str, kind: &str, at: &Path, options: &str) -> Self {
        let data = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(source, at, kind, rustix::mount::MountFlags::empty(), data.as_c_str())
            .unwrap_or_else(|error| panic!("mount {kind} on {} with {options}: {error}", at.display()));
        Self(at.to_owned())
    }

    /// Takes care of what somebody has mounted there for the test.
    pub(crate) fn adopt(at: &Path) -> Self {
        Self(at.to_owned())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).is_err() {
            eprintln!("{} could not be unmounted", self.0.display());
        }
    }
}

/// A file system that never answers (FUSE without a server), until it is dropped: then it is gone.
#[derive(Debug)]
pub(crate) struct Silent {
    // Closed first: whoever waits gets an error.
    _device: std::fs::File,
    _mount: Own,
}

impl Silent {
    pub(crate) fn mount(at: &Path) -> Self {
        Self::mount_as("fuse", "fuse", at, 0)
    }

    /// The same with a type and a source as in the mount table, as fusermount3(1) mounts for a user whatever they say.
    pub(crate) fn mount_as(kind: &str, source: &str, at: &Path, user: u32) -> Self {
        let device = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id={user},group_id=0", device.as_raw_fd());
        let mount = Own::mount_from(source, kind, at, &options);
        Self { _device: device, _mount: mount }
    }
}

/// Aborts a FUSE connection, as `/sys/fs/fuse/connections/N/abort` does; nothing if there is none with this number.
pub(crate) fn abort(connection: u32) {
    let dir = super::scratch();
    let _control = Own::mount("fusectl", dir.path(), "");
    let _absent = std::fs::write(dir.path().join(connection.to_string()).join("abort"), "1");
}
