//! How much page cache, and how much memory of the kernel's own, a measured step filled.
//!
//! The kernel charges a page to the control group of whoever brought it in, and a name or an inode to that of whoever
//! looked it up first. So a group with nothing in it but this run and the programs that it starts tells what they
//! added, whatever else the machine is doing. Where no such group can be made, the memory of the whole machine is all
//! there is to look at. A group of version 1 does not tell names and inodes from other memory of the kernel, such as
//! stacks; what ends before a figure is taken does not count in it.

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
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    One,
    Two,
}

impl PageCache {
    /// Moves this process into a group of its own, or notes that it could not.
    pub(crate) fn watch(notes: &mut Vec<String>) -> Self {
        let group = Group::make();
        if group.is_none() {
            notes.push(
                "page cache and kernel memory are those of the whole machine: no control group of our own could be made"
                    .into(),
            );
        }
        Self { group }
    }

    /// Bytes in the page cache that count.
    pub(crate) fn bytes(&self) -> Outcome<u64> {
        match &self.group {
            Some(group) => match group.version {
                Version::One => group.stat("total_cache"),
                Version::Two => group.stat("file"),
            },
            None => machine::meminfo("Cached"),
        }
    }

    /// Bytes of names, inodes and the like that count.
    pub(crate) fn kernel(&self) -> Outcome<u64> {
        match &self.group {
            Some(group) => match group.version {
                Version::One => group.number("memory.kmem.usage_in_bytes"),
                Version::Two => group.stat("slab"),
            },
            None => machine::meminfo("Slab"),
        }
    }

    /// Both, each at this time.
    pub(crate) fn now(&self) -> Outcome<Filled> {
        Ok(Filled { pages: self.bytes()?, kernel: self.kernel()? })
    }
}

/// What is filled at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    /// Bytes of page cache.
    pub(crate) pages: u64,
    /// Bytes of the kernel's own.
    pub(crate) kernel: u64,
}

impl Filled {
    /// What was added since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            pages: self.pages.saturating_sub(earlier.pages),
            kernel: self.kernel.saturating_sub(earlier.kernel),
        }
    }

    /// Both together.
    pub(crate) fn total(self) -> u64 {
        self.pages + self.kernel
    }
}

impl Group {
    /// Version 2 where systemd or somebody else gives memory accounting to groups of the first level, else
    /// version 1.
    fn make() -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let given = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        let (base, version) = if given.split_whitespace().any(|controller| controller == "memory") {
            (root.to_owned(), Version::Two)
        } else {
            (root.join("memory"), Version::One)
        };
        let own = base.join(format!("nix-store-fs-bench-{}", std::process::id()));
        if !base.join("cgroup.procs").exists() || fs::create_dir(&own).is_err() {
            return None;
        }
        let group = Self { base, own, version };
        join(&group.own).is_ok().then_some(group)
    }

    /// A line of `memory.stat`.
    fn stat(&self, key: &str) -> Outcome<u64> {
        let path = self.own.join("memory.stat");
        let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(known, _)| *known == key)
            .and_then(|(_, value)| value.trim().parse().ok())
            .ok_or_else(|| Fault::new(format!("{} has no line {key}", path.display())))
    }

    /// A file that holds one number.
    fn number(&self, name: &str) -> Outcome<u64> {
        let path = self.own.join(name);
        let doing = || format!("reading {}", path.display());
        fs::read_to_string(&path).doing(doing)?.trim().parse().doing(doing)
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
