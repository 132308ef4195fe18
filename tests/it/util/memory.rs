//! A control group with little memory, of version 2 or of version 1 of the kernel's interface.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::program::unique_name;
use super::{DEADLINE, mounts};

/// A control group of the test's own, removed when it is dropped; its processes must have ended by then.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where control groups with the memory controller are mounted.
fn hierarchy() -> Option<(PathBuf, Version)> {
    mounts::all().into_iter().find_map(|mount| {
        let one = mount.kind == "cgroup" && mount.super_options.iter().any(|option| option == "memory");
        let children = fs::read_to_string(mount.at.join("cgroup.subtree_control")).unwrap_or_default();
        let two = mount.kind == "cgroup2" && children.split_whitespace().any(|name| name == "memory");
        let version = if one { Version::One } else { Version::Two };
        (one || two).then_some((mount.at, version))
    })
}

impl MemoryGroup {
    /// A group without a limit yet, if the machine lets this process make one.
    pub(crate) fn new() -> Option<Self> {
        let (top, version) = hierarchy()?;
        let path = top.join(format!("nsf-{}", unique_name()));
        fs::create_dir(&path).ok()?;
        Some(Self { path, version })
    }

    /// The file that takes the number of a process which moves into the group.
    pub(crate) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Bytes that the group uses now.
    pub(crate) fn used(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        };
        self.read(file).trim().parse().expect("a number of bytes")
    }

    /// Limits the group: the kernel evicts what its processes cached rather than let it use more.
    pub(crate) fn limit(&self, bytes: u64) {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        let file = self.path.join(file);
        fs::write(&file, bytes.to_string()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// How often the group was at its limit.
    pub(crate) fn reached(&self) -> u64 {
        match self.version {
            Version::One => self.read("memory.failcnt").trim().parse().expect("a number"),
            Version::Two => self
                .read("memory.events")
                .lines()
                .find_map(|line| line.strip_prefix("max "))
                .and_then(|number| number.parse().ok())
                .expect("a number of events"),
        }
    }

    fn read(&self, file: &str) -> String {
        let file = self.path.join(file);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel takes a moment to let a process that has ended leave its group.
        let until = Instant::now() + DEADLINE / 6;
        while fs::remove_dir(&self.path).is_err() {
            if Instant::now() > until {
                eprintln!("{} could not be removed", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
