//! What the kernel has cached of a file.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use rustix::fs::Advice;

/// How many pages of `file` are in memory for whoever maps it, and how many it has. `helper` is resident.c.
pub(crate) fn resident(helper: &Path, file: &Path) -> (usize, usize) {
    let output = Command::new(helper).arg(file).output().expect("the helper runs");
    assert!(output.status.success(), "{}: {output:?}", file.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Has all of `file` forgotten.
pub(crate) fn evict(file: &Path) {
    let file = File::open(file).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}
