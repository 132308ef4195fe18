//! The small Debian that is booted, from the tar file that `scripts/setup --test` keeps.

use std::path::Path;
use std::process::Command;

/// Unpacks `what` of it, `.` for all, into a directory.
pub(super) fn unpack(to: &Path, what: &[&str]) {
    std::fs::create_dir_all(to).unwrap();
    let output = Command::new("tar")
        .arg("-C")
        .arg(to)
        .arg("-xf")
        .arg(crate::util::guest())
        .args(what)
        .output()
        .unwrap();
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
}
