//! A control group for each container, so that containers that run at the same time do not meet in one, and so that
//! nothing of a container outlives its test.

use std::fs;
use std::path::{Path, PathBuf};

use super::machine::eventually;
use crate::util::mounts;

/// The control group of this process in the unified hierarchy, wherever that is mounted.
pub(super) fn own() -> Option<PathBuf> {
    let mount = mounts::all().into_iter().find(|mount| mount.kind == "cgroup2")?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount.at.join(path)).filter(|dir| dir.join("cgroup.procs").exists())
}

/// A control group that is emptied and removed when dropped.
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    pub(super) fn new(name: &str) -> Self {
        let path = own().expect("a cgroup2 file system").join(format!("nsf-{name}"));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The processes in it and below.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for group in groups(&self.0) {
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(processes.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        found
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let killed = fs::write(self.0.join("cgroup.kill"), "1");
        let empty = eventually(|| self.processes().is_empty());
        // Deepest first.
        let removed = groups(&self.0).iter().rev().try_for_each(fs::remove_dir);
        if !empty || removed.is_err() {
            eprintln!("{}: left behind (killed: {killed:?}, removed: {removed:?})", self.0.display());
        }
    }
}

/// A control group and those below it, each before its own.
fn groups(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(groups(&entry.path()));
        }
    }
    found
}
