//! A process that opens by file handle reaches the view and nothing else, as on no bind mount.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::util::fixture::Fixture;
use crate::util::{self, tree};

/// More node ids than the fixture has entries.
const LAST: usize = 50_000;

fn opened(helper: &Path, dir: &Path) -> Vec<PathBuf> {
    let output = Command::new(helper).arg(dir).arg(LAST.to_string()).output().expect("the helper runs");
    assert!(output.status.success(), "{output:?}");
    output.stdout.split(|b| *b == 0).filter(|p| !p.is_empty()).map(|p| OsStr::from_bytes(p).into()).collect()
}

#[test]
fn forged_handles_reach_the_view_and_nothing_else() {
    need!(Root, Fuse, Nix);
    let scratch = util::scratch();
    let helper = util::compile("handles.c", scratch.path());
    let fixture = Fixture::new();
    let view = fixture.mount();
    // The kernel knows every node of the view.
    let known = tree::walk(view.path(), "").len();
    assert!(known < LAST);
    let reached = opened(&helper, view.path());
    assert!(reached.iter().any(|path| path == view.path()), "the root itself can be opened: {reached:?}");
    let outside: Vec<_> = reached.iter().filter(|path| !path.starts_with(view.path())).collect();
    assert!(outside.is_empty(), "{outside:?}");
}
