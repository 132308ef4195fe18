//! How long it may ask, and how much memory that may take.
//!
//! What it asks for fills caches of the kernel, which are charged to the control group of this process, and so of the view's unit. So both count: what the
//! machine has left, and what that group and those above it may take.
//!
//! Everything is opened before rights are given up, and read again each time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::outside::Outside;
use crate::protocol::task::Stopped;

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(20);
/// Somebody has waited for memory for so long since the beginning: it is short.
const STALLED: Duration = Duration::from_millis(50);
/// Of what is available, so much is left alone: three of four parts.
const SHARE: u64 = 4;

/// See above.
#[derive(Debug)]
pub(super) struct Limits {
    begun: Instant,
    time: Duration,
    /// None: in a test.
    outside: Option<Outside>,
    looked: Option<Instant>,
    available: Option<File>,
    /// What was available at first.
    before: Option<u64>,
    pressures: Vec<Pressure>,
    groups: Vec<Group>,
    /// Bytes of files that were read.
    read: u64,
    /// How many may be.
    budget: u64,
}

/// A file of stall times (Documentation/accounting/psi.rst).
#[derive(Debug)]
struct Pressure {
    file: File,
    before: Duration,
}

/// A control group (Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug)]
struct Group {
    most: Vec<File>,
    current: File,
}

impl Limits {
    /// For at most so much `time`, as long as the view is mounted `outside`.
    pub(super) fn new(time: Duration, outside: Outside) -> Self {
        let group = own_group();
        let levels =
            || group.iter().flat_map(|group| group.ancestors().take_while(|dir| *dir != Path::new(CGROUPS)));
        let pressures = [
            pressure_of_machine(),
            group.as_ref().map(|group| group.join("memory.pressure")).unwrap_or_default(),
        ];
        let mut new = Self {
            begun: Instant::now(),
            time,
            outside: Some(outside),
            looked: None,
            available: File::open("/proc/meminfo").ok(),
            before: None,
            pressures: pressures.iter().filter_map(|path| Pressure::open(path)).collect(),
            groups: levels().filter_map(Group::open).collect(),
            read: 0,
            budget: 0,
        };
        let room = new.groups.iter().filter_map(Group::room).min().unwrap_or(u64::MAX);
        new.before = new.available();
        new.budget = new.before.unwrap_or(0).min(room) / SHARE;
        new
    }

    /// So many bytes were read.
    pub(super) fn count(&mut self, bytes: u64) {
        self.read = self.read.saturating_add(bytes);
    }

    /// Bytes of files that may be read.
    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    /// Since when it asks.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Why it is to stop, if it is.
    pub(super) fn exceeded(&mut self) -> Option<Stopped> {
        if self.read > self.budget {
            return Some(Stopped::Memory);
        }
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now.duration_since(looked) < EVERY) {
            return None;
        }
        self.looked = Some(now);
        if now.duration_since(self.begun) > self.time {
            return Some(Stopped::Time);
        }
        if self.outside.as_mut().is_some_and(Outside::has_lost_it) {
            return Some(Stopped::View);
        }
        let is_short = self.pressures.iter().any(|pressure| pressure.since_then() > STALLED)
            || self.groups.iter().filter_map(Group::room).any(|room| room == 0)
            || self.available().zip(self.before).is_some_and(|(now, before)| now < before / 2);
        is_short.then_some(Stopped::Memory)
    }

    fn available(&self) -> Option<u64> {
        let text = read(self.available.as_ref()?)?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// The directory of the control group that this process is in, where groups are of version 2.
fn own_group() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(CGROUPS).join(path))
}

fn pressure_of_machine() -> PathBuf {
    // A file that a test writes, in builds for tests.
    let of_tests = cfg!(debug_assertions).then(|| std::env::var_os("NSF_PRESSURE")).flatten();
    of_tests.map_or_else(|| "/proc/pressure/memory".into(), PathBuf::from)
}

impl Pressure {
    fn open(path: &Path) -> Option<Self> {
        let new = Self { file: File::open(path).ok()?, before: Duration::ZERO };
        // A kernel that was told not to count says so when it is read.
        let before = new.total()?;
        Some(Self { before, ..new })
    }

    fn total(&self) -> Option<Duration> {
        stalled(&read(&self.file)?)
    }

    fn since_then(&self) -> Duration {
        self.total().unwrap_or_default().saturating_sub(self.before)
    }
}

/// The time in which somebody waited for memory.
fn stalled(text: &str) -> Option<Duration> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let total = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

impl Group {
    fn open(dir: &Path) -> Option<Self> {
        let open = |name| File::open(dir.join(name));
        let most = ["memory.high", "memory.max"].into_iter().filter_map(|name| open(name).ok()).collect();
        Some(Self { most, current: open("memory.current").ok()? })
    }

    /// Bytes that it may take besides what it takes. None: it has no limit.
    fn room(&self) -> Option<u64> {
        let number = |file: &File| read(file)?.trim().parse::<u64>().ok();
        let most = self.most.iter().filter_map(number).min()?;
        Some(most.saturating_sub(number(&self.current)?))
    }
}

/// A file of the kernel, from its beginning.
fn read(file: &File) -> Option<String> {
    let mut bytes = vec![0; 8192];
    let read = loop {
        match file.read_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => break answer.ok()?,
        }
    };
    bytes.truncate(read);
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(stalled(text), Some(Duration::from_micros(1500)));
        for other in ["", "some total=x", "full total=1", "some avg10=1"] {
            assert_eq!(stalled(other), None, "{other:?}");
        }
        let limits = Limits::new(Duration::MAX, Outside::open(0).unwrap());
        assert!(limits.available().unwrap() > 1 << 20);
        assert!(limits.budget > 0 && limits.budget <= limits.before.unwrap() / SHARE);
    }

    #[test]
    fn time_bytes_and_memory_are_limits() {
        let none = Limits {
            begun: Instant::now(),
            time: Duration::MAX,
            outside: None,
            looked: None,
            available: None,
            before: None,
            pressures: Vec::new(),
            groups: Vec::new(),
            read: 0,
            budget: 10,
        };
        let mut bytes = none;
        assert_eq!(bytes.exceeded(), None);
        bytes.count(11);
        assert_eq!(bytes.exceeded(), Some(Stopped::Memory), "also between two looks");
        let mut time = Limits { time: Duration::ZERO, looked: None, read: 0, ..bytes };
        assert_eq!(time.exceeded(), Some(Stopped::Time));
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let mut pressure = File::create(dir.path().join("pressure")).unwrap();
        writeln!(pressure, "some avg10=0.00 total=1000000").unwrap();
        let open = Pressure::open(&dir.path().join("pressure")).unwrap();
        let mut short = Limits { time: Duration::MAX, looked: None, pressures: vec![open], ..time };
        assert_eq!(short.exceeded(), None, "what was before does not count");
        write("pressure", "some avg10=9.00 total=1060000\n");
        short.looked = None;
        assert_eq!(short.exceeded(), Some(Stopped::Memory));
        write("memory.high", "max\n");
        write("memory.max", "1000\n");
        write("memory.current", "400\n");
        let group = Group::open(dir.path()).unwrap();
        assert_eq!(group.room(), Some(600));
        let mut small = Limits { pressures: Vec::new(), groups: vec![group], looked: None, ..short };
        assert_eq!(small.exceeded(), None);
        write("memory.high", "300\n");
        small.looked = None;
        assert_eq!(small.exceeded(), Some(Stopped::Memory));
    }
}
