//! How much page cache a measured step filled.
//!
//! The kernel charges a page to the control group of whoever brought it in, so a group with nothing in it but
//! this run and the servers that it starts tells what they added, whatever else the machine is doing. Where no
//! such group can be made, the page cache of the whole machine is all there is to look at.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fault::{Doing, Fault, Outcome};
use crate::machine;

/// The control group of this run, if it has one.
#[derive(Debug)]
pub(crate) struct PageCache {
    group: Option<Group>,
}

#[derive(Debug)]
struct Group {
    /// Where the process goes back to.
    base: PathBuf,
    own: PathBuf,
    /// The line of `memory.stat` that counts file pages.
    key: &'static str,
}

impl PageCache {
    /// Moves this process into a group of its own, or notes that it could not.
    pub(crate) fn watch(notes: &mut Vec<String>) -> Self {
        let group = Group::make();
        if group.is_none() {
            notes.push(
                "page cache is that of the whole machine: no control group of our own could be made".into(),
            );
        }
        Self { group }
    }

    /// Bytes in the page cache that count.
    pub(crate) fn bytes(&self) -> Outcome<u64> {
        match &self.group {
            Some(group) => group.bytes(),
            None => machine::meminfo("Cached"),
        }
    }
}

impl Group {
    /// Version 2 where systemd or somebody else gives memory accounting to groups of the first level, else
    /// version 1.
    fn make() -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let given = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        let (base, key) = if given.split_whitespace().any(|controller| controller == "memory") {
            (root.to_owned(), "file")
        } else {
            (root.join("memory"), "cache")
        };
        let own = base.join(format!("nix-store-fs-bench-{}", std::process::id()));
        if !base.join("cgroup.procs").exists() || fs::create_dir(&own).is_err() {
            return None;
        }
        let group = Self { base, own, key };
        join(&group.own).is_ok().then_some(group)
    }

    fn bytes(&self) -> Outcome<u64> {
        let path = self.own.join("memory.stat");
        let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(key, _)| *key == self.key)
            .and_then(|(_, value)| value.trim().parse().ok())
            .ok_or_else(|| Fault::new(format!("{} has no line {}", path.display(), self.key)))
    }
}

fn join(group: &Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group that stays behind is empty and harmless.
        if join(&self.base).is_ok() {
            fs::remove_dir(&self.own).ok();
        }
    }
}
