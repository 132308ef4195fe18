//! File systems of the test's own, each in an image file on a loop device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::mounts::Own;

/// More than the smallest XFS and the smallest btrfs. The file is sparse.
const SIZE: u64 = 512 << 20;

/// A file system that is unmounted, and its loop device detached, when it is dropped.
#[derive(Debug)]
pub(crate) struct Image {
    // Unmounted before the directory with the image is removed.
    _mount: Own,
    at: PathBuf,
    _dir: TempDir,
}

impl Image {
    /// Makes a file system of this kind, as mkfs and mount name it, and mounts it.
    pub(crate) fn new(kind: &str) -> Self {
        let dir = super::scratch();
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        File::create(&image).and_then(|file| file.set_len(SIZE)).unwrap();
        std::fs::create_dir(&at).unwrap();
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        // mount detaches the loop device that it sets up when the file system is unmounted (mount(8)).
        run(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(&image).arg(&at));
        Self { _mount: Own::adopt(&at), at, _dir: dir }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

/// An ext4 file system, unless scratch files lie on one anyway.
pub(crate) fn ext4() -> Option<Image> {
    (!scratch_is_on_ext4()).then(|| Image::new("ext4"))
}

/// Whether scratch files lie on ext4 (`EXT4_SUPER_MAGIC` of `linux/magic.h`).
pub(crate) fn scratch_is_on_ext4() -> bool {
    rustix::fs::statfs(std::env::temp_dir()).is_ok_and(|fs| fs.f_type == 0xef53)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
