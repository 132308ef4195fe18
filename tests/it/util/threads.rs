//! What threads do at the moment, as the kernel tells it.
//!
//! Read from `stat` alone: other files of a process can hang as long as one of its threads does.

use std::fs;
use std::path::Path;

use rustix::process::Pid;

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

/// Whether the thread of this name waits in the kernel for something that no signal ends.
pub(crate) fn waits_in_kernel(pid: Pid, name: &str) -> bool {
    let is_it = |thread: &Path| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
            && state(thread) == Some('D')
    };
    let threads = fs::read_dir(format!("{}/task", process(pid)));
    threads.into_iter().flatten().flatten().any(|thread| is_it(&thread.path()))
}
