//! What threads do at the moment, as the kernel tells it.
//!
//! Read from `stat` alone: other files of a process can hang as long as one of its threads does.

use std::fs;
use std::path::Path;
use std::time::Instant;

use rustix::process::Pid;

use super::DEADLINE;

/// The directory of a process in `/proc`.
pub(crate) fn process(pid: Pid) -> String {
    format!("/proc/{}", pid.as_raw_nonzero())
}

/// The letter by which the state of a process or thread is known, `/proc/PID` or `/proc/PID/task/TID` (proc_pid_stat(5)); none:
/// it has ended.
pub(crate) fn state(at: impl AsRef<Path>) -> Option<char> {
    let stat = fs::read_to_string(at.as_ref().join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether a process leads its session.
pub(crate) fn leads_a_session(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("{}/stat", process(pid))).unwrap_or_default();
    // After the name: state, parent, group, session.
    let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
    session == Some(pid.as_raw_nonzero().to_string().as_str())
}

/// What a process is called.
pub(crate) fn name(pid: Pid) -> String {
    let stat = fs::read_to_string(format!("{}/stat", process(pid))).unwrap_or_default();
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    name.map(|(name, _)| name.to_owned()).unwrap_or_default()
}

/// Whether a child of a monitor is its server: not what asks whether the view answers, nor what asks ahead of its users.
pub(crate) fn is_server(pid: Pid) -> bool {
    leads_a_session(pid) && name(pid) == "nix-store-fs"
}

/// The processes that the first thread of this one has made.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let process = process(pid);
    let all =
        fs::read_to_string(format!("{process}/task/{}/children", pid.as_raw_nonzero())).unwrap_or_default();
    all.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)).collect()
}

/// Who asks ahead of a view's users, once the view's monitor has begun such a process.
pub(crate) fn player(monitor: Pid) -> Pid {
    let until = Instant::now() + DEADLINE;
    loop {
        let found = children(monitor).into_iter().find(|child| name(*child) == "nix-store-ahead");
        if let Some(player) = found {
            return player;
        }
        assert!(Instant::now() < until, "nobody plays");
        std::thread::yield_now();
    }
}

/// Waits until a process waits for the answer to a request.
pub(crate) fn until_asking(pid: Pid) {
    let until = Instant::now() + DEADLINE;
    let read = |file| fs::read_to_string(format!("{}/{file}", process(pid))).unwrap_or_default();
    // Before Linux 5.16 wchan names nothing where the kernel has no frame pointers; the stack is root's alone to read.
    let at = || read("wchan") + &read("stack");
    while !at().contains("request_wait_answer") {
        assert!(Instant::now() < until, "it waits at '{}'", at());
        std::thread::yield_now();
    }
}

/// Waits until a process has ended, whoever reaps it.
pub(crate) fn until_gone(pid: Pid) {
    let until = Instant::now() + DEADLINE;
    while state(process(pid)).is_some_and(|state| state != 'Z') {
        assert!(Instant::now() < until, "process {pid:?} is still there: {}", describe(pid));
        std::thread::yield_now();
    }
}

/// Waits until each thread of a process sleeps: a server that nobody asks has marked all that it took as answered.
pub(crate) fn until_asleep(pid: Pid) {
    let until = Instant::now() + DEADLINE;
    let threads = || fs::read_dir(format!("{}/task", process(pid))).into_iter().flatten().flatten();
    while threads().any(|thread| state(thread.path()) != Some('S')) {
        assert!(Instant::now() < until, "not asleep: {}", describe(pid));
        std::thread::yield_now();
    }
}

/// Whether the thread of this name waits in the kernel for something that no signal ends.
pub(crate) fn waits_in_kernel(pid: Pid, name: &str) -> bool {
    let is_it = |thread: &Path| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
            && state(thread) == Some('D')
    };
    let threads = fs::read_dir(format!("{}/task", process(pid)));
    threads.into_iter().flatten().flatten().any(|thread| is_it(&thread.path()))
}

/// What each thread of a process is at: its name, its state, and where it waits in the kernel.
pub(crate) fn describe(pid: Pid) -> String {
    let threads = fs::read_dir(format!("{}/task", process(pid)));
    let of = |thread: &Path, file: &str| fs::read_to_string(thread.join(file)).unwrap_or_default();
    let lines = threads.into_iter().flatten().flatten().map(|thread| thread.path()).map(|thread| {
        let stack = of(&thread, "stack");
        let stack: Vec<&str> = stack.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let state = state(&thread).unwrap_or('?');
        format!("{} {state} {}", of(&thread, "comm").trim_end(), stack.join(" < "))
    });
    lines.collect::<Vec<_>>().join("\n")
}
