//! Processes that use a view. Looking at a process that hangs, hangs: so several threads look, for a limited time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::Number;
use crate::mounts;

/// Threads that look: one more than processes that are likely to hang at once.
const LOOKERS: usize = 8;
/// Numbers of getdents(2) and getdents64(2), of 32-bit programs as well.
#[cfg(target_arch = "x86_64")]
const LISTS: [i64; 4] = [nix::libc::SYS_getdents, nix::libc::SYS_getdents64, 141, 220];
#[cfg(not(target_arch = "x86_64"))]
const LISTS: [i64; 1] = [nix::libc::SYS_getdents64];
/// Processes that are named in a message.
const NAMED: usize = 8;

/// The first few of `all`, and how many more there are.
#[must_use]
pub fn named(all: &[String]) -> String {
    let few: Vec<&str> = all.iter().take(NAMED).map(String::as_str).collect();
    match all.len().checked_sub(NAMED) {
        None | Some(0) => few.join(", "),
        Some(more) => format!("{} and {more} more", few.join(", ")),
    }
}

/// Processes that have something below `at` open, run it or stand in it: `name (pid)`. What could not be found out within
/// `patience` is left out.
#[must_use]
pub fn users(at: &Path, patience: Duration) -> Vec<String> {
    let at = at.to_owned();
    look(patience, move |process| link(process, &at).map(|_| describe(process)))
}

/// A process in whose mount namespace something is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// `name (pid)`.
    pub(super) process: String,
    /// Where the process has it mounted.
    pub(super) at: PathBuf,
    /// The same, as a path of this process.
    pub(super) way: PathBuf,
}

/// Links in `/proc` by which processes have something below `at` open, run it or stand in it: one of each process. What could
/// not be found out within `patience` is left out.
pub(super) fn links(at: &Path, patience: Duration) -> Vec<PathBuf> {
    let at = at.to_owned();
    look(patience, move |process| link(process, &at))
}

/// A process of each other mount namespace in which a view with this source is mounted. What could not be found out within
/// `patience` is left out.
pub(super) fn holders(source: &str, patience: Duration) -> Vec<Holder> {
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let own = namespace(Path::new("/proc/self"));
    let seen: Mutex<BTreeSet<PathBuf>> = Mutex::new(own.into_iter().collect());
    let source = source.to_owned();
    look(patience, move |process| {
        if !seen.lock().insert(namespace(process)?) {
            return None;
        }
        let found = mounts::of(process).ok()?.into_iter().rfind(|mount| mount.is_own_view_from(&source))?;
        let below = found.at.strip_prefix("/").unwrap_or(&found.at);
        let way = process.join("root").join(below);
        Some(Holder { process: describe(process), at: found.at, way })
    })
}

/// Processes of which a thread lists a directory of the file system with this connection, and waits for something else than the
/// directory. What could not be found out within `patience` is left out.
pub(super) fn listers(connection: Number, patience: Duration) -> Vec<String> {
    look(patience, move |process| {
        let threads = std::fs::read_dir(process.join("task")).ok()?;
        threads.flatten().any(|thread| lists(&thread.path(), connection)).then(|| describe(process))
    })
}

/// Whether a thread, `/proc/PID/task/TID`, is in getdents(2) of a directory of this file system, and does not itself wait for it.
fn lists(thread: &Path, connection: Number) -> bool {
    let read = |file| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
    // Its number and its arguments (proc_pid_syscall(5)).
    let call = read("syscall");
    let mut words = call.split_whitespace();
    let is_listing = words.next().and_then(|number| number.parse().ok()).is_some_and(|n| LISTS.contains(&n));
    let directory =
        words.next().and_then(|first| u32::from_str_radix(first.trim_start_matches("0x"), 16).ok());
    let Some(directory) = directory.filter(|_| is_listing && !read("wchan").contains("rwsem")) else {
        return false;
    };
    // As the kernel knows it, and without asking the server.
    let flags = AtFlags::STATX_DONT_SYNC;
    let directory = thread.join(format!("fd/{directory}"));
    statx(CWD, directory, flags, StatxFlags::INO)
        .is_ok_and(|at| (at.stx_dev_major, at.stx_dev_minor) == (0, connection.0))
}

/// What `ask` finds in `/proc/PID`, oldest processes first.
fn look<T: Send + 'static>(
    patience: Duration,
    ask: impl Fn(&Path) -> Option<T> + Send + Sync + 'static,
) -> Vec<T> {
    let deadline = Instant::now() + patience;
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Taken from the end.
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let (processes, ask) = (Arc::new(Mutex::new(numbers)), Arc::new(ask));
    let (tell, told) = std::sync::mpsc::channel();
    for _ in 0..LOOKERS {
        let (ask, processes, tell) = (ask.clone(), processes.clone(), tell.clone());
        let look = move || {
            loop {
                let Some(process) = processes.lock().pop() else { break };
                let found = ask(&Path::new("/proc").join(process.to_string()));
                if found.is_some_and(|found| tell.send(found).is_err()) {
                    break;
                }
            }
        };
        if std::thread::Builder::new().name("users".to_owned()).spawn(look).is_err() {
            break;
        }
    }
    drop(tell);
    let left = || deadline.saturating_duration_since(Instant::now());
    std::iter::from_fn(|| told.recv_timeout(left()).ok()).collect()
}

fn link(process: &Path, at: &Path) -> Option<PathBuf> {
    let leads_there = |link: &PathBuf| std::fs::read_link(link).is_ok_and(|target| target.starts_with(at));
    let open = || std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
    let known = ["cwd", "root", "exe"].into_iter().map(|link| process.join(link));
    known.into_iter().find(leads_there).or_else(|| open().find(leads_there))
}

fn describe(process: &Path) -> String {
    let name = command(process).unwrap_or_default();
    format!("{name} ({})", process.file_name().unwrap_or_default().display())
}

/// What the process `/proc/PID` calls itself, if it has not ended.
pub(in crate::monitor) fn command(process: &Path) -> Option<String> {
    let name = std::fs::read(process.join("comm")).ok()?;
    Some(String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn all_that_are_found_are_counted_and_a_few_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let sleeper = || Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let mut sleepers: Vec<_> = (0..11).map(|_| sleeper()).collect();
        let found = users(dir.path(), Duration::from_secs(20));
        for sleeper in &mut sleepers {
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
        }
        assert_eq!(found.len(), 11, "{found:?}");
        assert!(sleepers.iter().all(|sleeper| found.contains(&format!("sleep ({})", sleeper.id()))));
    }

    #[test]
    fn who_is_not_named_is_counted() {
        let all: Vec<String> = (1..=10).map(|pid| format!("sh ({pid})")).collect();
        for (count, expected) in [
            (0, ""),
            (1, "sh (1)"),
            (8, "sh (1), sh (2), sh (3), sh (4), sh (5), sh (6), sh (7), sh (8)"),
            (9, "sh (1), sh (2), sh (3), sh (4), sh (5), sh (6), sh (7), sh (8) and 1 more"),
            (10, "sh (1), sh (2), sh (3), sh (4), sh (5), sh (6), sh (7), sh (8) and 2 more"),
        ] {
            assert_eq!(named(&all[..count]), expected);
        }
    }
}
