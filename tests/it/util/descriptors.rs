//! Descriptors of another process (proc_pid_fdinfo(5)).

use std::fs;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::Pid;

/// How `path` is open in a process, for each descriptor: for reading, for writing, or for both.
pub(crate) fn access(process: Pid, path: &Path) -> Vec<OFlags> {
    let of = |name: &str| Path::new("/proc").join(process.as_raw_nonzero().to_string()).join(name);
    let open = fs::read_dir(of("fd")).unwrap().map(|fd| fd.unwrap());
    let open = open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|found| found == path));
    let flags = open.map(|fd| {
        let info = fs::read_to_string(of("fdinfo").join(fd.file_name())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        OFlags::from_bits_retain(u32::from_str_radix(flags, 8).unwrap()) & OFlags::ACCMODE
    });
    flags.collect()
}
