//! A mount namespace with the helper where mount(8) looks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::util::DEADLINE;
use crate::util::namespace::Namespace;
use crate::util::program::Program;
use crate::util::store::nix_environment;

/// What installs the helper: the machine's directory has it on top, in this mount namespace alone. Views of tests that run at the same
/// time are taken out of it.
const INSTALL: &str = r#"
set -eu
while read -r source target kind rest; do
    if [ "$kind" = fuse.nix-store-fs ]; then umount -l "$target" || true; fi
done < /proc/self/mounts
sbin=$(readlink -f /sbin)
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/utab"
mount -t overlay none -o "lowerdir=$sbin,upperdir=$1/upper,workdir=$1/work" "$sbin"
ln -s "$2" "$sbin/mount.fuse.nix-store-fs"
ln -s "$2" "$sbin/mount.nix-store-fs"
# What libmount writes.
mkdir -p /run/mount
mount --bind "$1/utab" /run/mount
"#;

/// A mount namespace in which mount(8) knows views.
pub(super) struct Host {
    pub(super) namespace: Namespace,
    pub(super) dir: TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = crate::util::scratch();
        let layers = dir.path().join("layers");
        fs::create_dir(&layers).unwrap();
        let host = Self { namespace: Namespace::new(), dir };
        host.run(&format!("set -- {} {}; {INSTALL}", layers.display(), Program::PATH));
        host
    }

    /// A directory to mount on, seen from everywhere.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        let at = self.dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        at
    }

    /// A path of the namespace, for this side.
    pub(super) fn inside(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.namespace.pid(), path.display()))
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = self.namespace.command("timeout");
        nix_environment(&mut command).env("LC_ALL", "C").stdin(Stdio::null());
        command.args(["-k", "5", "100", program]);
        command
    }

    pub(super) fn try_run(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).output().unwrap()
    }

    #[track_caller]
    pub(super) fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) fn fstab(&self, line: &str) -> String {
        let file = self.dir.path().join("fstab");
        fs::write(&file, format!("{line}\n")).unwrap();
        file.display().to_string()
    }

    /// Processes in the namespace, but for the one that keeps it, by their command lines.
    pub(super) fn processes(&self) -> Vec<(Pid, String)> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let holder = self.namespace.pid().to_string();
        let own = namespace(&holder).unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let numbers = all.filter_map(|entry| entry.file_name().into_string().ok());
        let numbers = numbers.filter(|name| name.parse::<i32>().is_ok() && *name != holder);
        numbers
            .filter(|pid| namespace(pid) == Some(own.clone()))
            .map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                (Pid::from_raw(pid.parse().unwrap()).unwrap(), line)
            })
            .collect()
    }

    /// Waits until nothing of a view is left.
    #[track_caller]
    pub(super) fn assert_nothing_left(&self, names: &[&str]) {
        let until = Instant::now() + DEADLINE;
        let state = |name: &&str| Path::new("/run/nix-store-fs/.state").join(name);
        loop {
            // A server that ends is not in the namespace any more, and not reaped yet.
            let (processes, mounts) = (self.processes(), self.mounts());
            let states: Vec<_> = names.iter().map(state).filter(|state| state.exists()).collect();
            if processes.is_empty() && mounts.is_empty() && states.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{processes:?} {mounts:?} {states:?} are left");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The mount table's lines of views.
    pub(super) fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mounts", self.namespace.pid())).unwrap();
        table.lines().filter(|line| line.contains(" fuse.nix-store-fs ")).map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _all = self.try_run("umount -l -a -t fuse.nix-store-fs");
        let until = Instant::now() + DEADLINE;
        while !self.processes().is_empty() && Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for (pid, line) in self.processes() {
            eprintln!("{line} had not ended");
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}
