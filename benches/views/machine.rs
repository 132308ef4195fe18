//! What the machine tells: kernel, processor, date, the page cache, and the figures of one process.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Pid;

use crate::fault::{Doing, Fault, Outcome};

const SECONDS_PER_DAY: u64 = 86_400;

/// The conditions of a run, kept with its figures.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Year, month and day, in UTC.
    pub(crate) date: String,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The processor's model name.
    pub(crate) cpu: String,
    /// Processors that may be used.
    pub(crate) cores: usize,
    /// Main memory in bytes.
    pub(crate) memory: u64,
    /// Processes that wanted to run in the last minute, as the kernel averages them: the company of the run.
    pub(crate) load: String,
}

impl Machine {
    /// Looks at the machine.
    pub(crate) fn look() -> Outcome<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").doing(|| "reading /proc/cpuinfo".into())?;
        let cpu = cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == "model name")
            .map_or("unknown", |(_, value)| value.trim());
        let days =
            SystemTime::now().duration_since(UNIX_EPOCH).doing(|| "asking the clock".into())?.as_secs()
                / SECONDS_PER_DAY;
        let load = fs::read_to_string("/proc/loadavg").doing(|| "reading /proc/loadavg".into())?;
        Ok(Self {
            date: civil(days),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal")?,
            load: load.split_whitespace().next().unwrap_or_default().to_owned(),
        })
    }
}

/// Days since 1970 as a date of the Gregorian calendar, counted in years that begin in March.
fn civil(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, carry) =
        if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year_of_era + carry)
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn meminfo(wanted: &str) -> Outcome<u64> {
    table_value("/proc/meminfo", wanted)
}

/// A value of a `Key:  123 kB` table in /proc, in bytes.
fn table_value(path: &str, wanted: &str) -> Outcome<u64> {
    let text = fs::read_to_string(path).doing(|| format!("reading {path}"))?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == wanted)
        .and_then(|(_, value)| value.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Fault::new(format!("{path} has no line {wanted}")))
}

/// Bytes that were read from disks since the machine began, by anybody.
pub(crate) fn read_from_disk() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/vmstat").doing(|| "reading /proc/vmstat".into())?;
    text.lines()
        .find_map(|line| line.strip_prefix("pgpgin "))
        .and_then(|count| count.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Fault::new("/proc/vmstat has no line pgpgin"))
}

/// Memory of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident memory, shared pages included.
    pub(crate) resident: u64,
    /// Resident memory that is this process's alone.
    pub(crate) private: u64,
    /// Resident memory, of each shared page its share.
    pub(crate) proportional: u64,
}

/// Asks /proc about one process.
pub(crate) fn usage(process: Pid) -> Outcome<Usage> {
    let rollup = format!("/proc/{}/smaps_rollup", process.as_raw_nonzero());
    Ok(Usage {
        resident: table_value(&rollup, "Rss")?,
        private: table_value(&rollup, "Private_Clean")? + table_value(&rollup, "Private_Dirty")?,
        proportional: table_value(&rollup, "Pss")?,
    })
}

/// What a process has spent, together with those of its children that have ended and been waited for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// User and system time, in whole ticks of the kernel (10 ms).
    pub(crate) cpu: Duration,
    /// Bytes that it had brought from disk.
    pub(crate) disk: u64,
}

impl Spent {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, disk: self.disk + other.disk }
    }

    /// What was spent since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(earlier.cpu), disk: self.disk.saturating_sub(earlier.disk) }
    }
}

/// Asks /proc what a process and its ended children have spent.
pub(crate) fn spent(process: Pid) -> Outcome<Spent> {
    let io = format!("/proc/{}/io", process.as_raw_nonzero());
    let text = fs::read_to_string(&io).doing(|| format!("reading {io}"))?;
    let disk = text
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "))
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| Fault::new(format!("{io} has no line read_bytes")))?;
    Ok(Spent { cpu: processor_time(process)?, disk })
}

/// User and system time of a process and of its ended children: the 14th to the 17th field.
fn processor_time(process: Pid) -> Outcome<Duration> {
    let ticks = stat(process)?.iter().skip(11).take(4).filter_map(|field| field.parse::<u32>().ok()).sum();
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    Ok(Duration::from_secs(1) * ticks / per_second)
}

/// The fields of /proc/PID/stat that follow the command's name, from the third on (proc_pid_stat(5)).
fn stat(process: Pid) -> Outcome<Vec<String>> {
    let path = format!("/proc/{}/stat", process.as_raw_nonzero());
    let text = fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// The children of `parent` that have not been waited for, the one that was started first in front.
pub(crate) fn children_of(parent: Pid) -> Outcome<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").doing(|| "listing /proc".into())? {
        let Ok(entry) = entry else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // A process that has just ended has no parent to speak of.
        let Some((pid, fields)) = number.and_then(|pid| Some((pid, stat(pid).ok()?))) else { continue };
        let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        if field(1) == u64::try_from(parent.as_raw_nonzero().get()).ok() {
            children.push((field(19), pid.as_raw_nonzero(), pid));
        }
    }
    children.sort_by_key(|(started, number, _)| (*started, *number));
    Ok(children.into_iter().map(|(_, _, pid)| pid).collect())
}
