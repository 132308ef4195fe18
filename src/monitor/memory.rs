//! Memory that a process takes: `RssAnon` and `RssShmem` of proc_pid_status(5).
//!
//! Hard points:
//! 1. The file is read without a lock of the process's memory, so nothing that the process does makes its reader wait. That is
//!    otherwise for `smaps_rollup`, which would count pages that several share by their shares; it is also refused for a process
//!    that is not dumpable, as servers are. `status` may be read by everybody.
//! 2. Resident pages of files are left out: programs and libraries are shared by all views. What a server maps of its view's own
//!    memory files is `RssShmem`.

use std::fs;

/// Bytes that the process takes; none if it has ended, or `/proc` does not tell.
pub(super) fn of(pid: u32) -> Option<u64> {
    parse(&fs::read(format!("/proc/{pid}/status")).ok()?)
}

/// From the text of `/proc/PID/status`. What a process calls itself is escaped in it, and ends no line.
fn parse(status: &[u8]) -> Option<u64> {
    let value = |key: &[u8]| {
        let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key))?;
        let kibibytes: u64 = str::from_utf8(line).ok()?.trim().strip_suffix(" kB")?.parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    value(b"RssAnon:")?.checked_add(value(b"RssShmem:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_and_shared_memory_are_added_and_files_are_not() {
        let status = b"Name:\t\\nRssAnon: 9 kB\xff\nVmRSS:\t  99 kB\nRssAnon:\t     100 kB\nRssFile:\t 7 kB\nRssShmem:\t       4 kB\n";
        assert_eq!(parse(status), Some(104 * 1024));
        for wrong in [
            &b""[..],
            b"RssAnon:\t1 kB\n",
            b"RssAnon:\t1 kB\nRssShmem:\t1 MB\n",
            b"RssAnon:\t-1 kB\nRssShmem:\t1 kB\n",
            b"RssAnon:\t18446744073709551615 kB\nRssShmem:\t1 kB\n",
        ] {
            assert_eq!(parse(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn a_process_that_takes_more_shows_it_and_one_that_has_ended_has_none() {
        const MORE: usize = 64 << 20;
        let before = of(std::process::id()).unwrap();
        let taken = vec![1u8; MORE];
        let after = of(std::process::id()).unwrap();
        // Other tests take and give back memory meanwhile, but less.
        assert!(after > before + MORE as u64 / 2, "{before} {after} {}", taken.len());
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let pid = ended.id();
        rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&ended)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(of(pid), None, "a zombie");
        ended.wait().unwrap();
        assert_eq!(of(pid), None);
    }
}
