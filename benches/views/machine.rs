//! What the machine tells: kernel, processor, date, the page cache, and the figures of one process.

use std::fs;
use std::path::Path;
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

/// Empties the page cache, and forgets the names and inodes that nobody holds.
pub(crate) fn drop_caches() -> Outcome<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").doing(|| "writing /proc/sys/vm/drop_caches".into())
}

/// Memory and processor time of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident memory, shared pages included.
    pub(crate) resident: u64,
    /// Resident memory that is this process's alone.
    pub(crate) private: u64,
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
}

/// Asks /proc about one process.
pub(crate) fn usage(process: Pid) -> Outcome<Usage> {
    let number = process.as_raw_nonzero();
    let rollup = format!("/proc/{number}/smaps_rollup");
    let stat = format!("/proc/{number}/stat");
    let text = fs::read_to_string(&stat).doing(|| format!("reading {stat}"))?;
    // The fields that follow the command's name begin with the third; times are the 14th and the 15th.
    let ticks = text
        .rsplit_once(')')
        .map(|(_, rest)| {
            rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum()
        })
        .unwrap_or(0_u32);
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    Ok(Usage {
        resident: table_value(&rollup, "Rss")?,
        private: table_value(&rollup, "Private_Clean")? + table_value(&rollup, "Private_Dirty")?,
        cpu: Duration::from_secs(1) * ticks / per_second,
    })
}

/// The child of `parent` that answers requests: it runs the server's program, which lies beside the monitor's.
pub(crate) fn server_of(parent: Pid) -> Outcome<Pid> {
    let program = |pid: Pid| fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok();
    let wanted = program(parent).map(|path| path.with_file_name("nix-store-fs-server"));
    for entry in fs::read_dir("/proc").doing(|| "listing /proc".into())? {
        let Ok(entry) = entry else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = number else { continue };
        if parent_of(&entry.path()) == Some(parent) && program(pid) == wanted {
            return Ok(pid);
        }
    }
    Err(Fault::new(format!("process {} has no server", parent.as_raw_nonzero())))
}

/// A process that has just ended has no parent to speak of.
fn parent_of(process: &Path) -> Option<Pid> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Pid::from_raw(rest.split_whitespace().nth(1)?.parse().ok()?)
}
