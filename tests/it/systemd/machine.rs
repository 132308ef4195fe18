//! A running `systemd-nspawn`, from the moment its systemd says that it is up until nothing of it is left.
//!
//! Hard points
//! 1. nspawn wants a control group tree of version 2 only, and a machine may have another: it runs in a mount
//!    namespace of its own, where no other is mounted.
//! 2. A mount namespace of its own holds every mount of the moment it was made, also the views of tests that run at
//!    the same time, which would outlive their unmounting. Those are taken out of it first.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use super::cgroup::Cgroup;
use crate::util::{DEADLINE, gate, wait_readable};

/// Runs first, with the control group, the directory for `/nix` and the name of the view in its environment.
const WRAPPER: &str = r#"
set -eu
echo $$ > "$GUEST_CGROUP/cgroup.procs"
umount -l -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
# What nspawn leaves behind: locks, and with --link-journal a link.
mkdir -p /run/systemd/nspawn
mount -t tmpfs none /run/systemd/nspawn
if [ -d /var/log/journal ]; then mount -t tmpfs none /var/log/journal; fi
mount --bind "$GUEST_NIX" /nix
while read -r source target kind rest; do
    if [ "$kind" = fuse.nix-store-fs ] && [ "$source" != "nix-store-fs:$GUEST_VIEW" ]; then umount -l "$target" || true; fi
done < /proc/self/mounts
exec "$@"
"#;

/// Polls until `condition` holds; whether it did before the deadline.
pub(super) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// How to boot.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    pub(super) name: &'a str,
    /// What the command sees as `/nix`.
    pub(super) nix: &'a Path,
    /// Runs or becomes `systemd-nspawn --notify-ready=yes`.
    pub(super) command: Command,
}

/// A container whose systemd is up.
#[derive(Debug)]
pub(super) struct Machine {
    process: Child,
    console: PathBuf,
    ready: UnixDatagram,
    leader: u32,
    cgroup: Cgroup,
    _dir: TempDir,
}

impl Boot<'_> {
    pub(super) fn start(self) -> Machine {
        let dir = crate::util::scratch();
        let console = dir.path().join("console");
        let socket = dir.path().join("notify");
        let ready = UnixDatagram::bind(&socket).unwrap();
        let cgroup = Cgroup::new(self.name);
        let log = File::create(&console).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", WRAPPER, "sh"])
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .env("GUEST_CGROUP", cgroup.path())
            .env("GUEST_NIX", self.nix)
            .env("GUEST_VIEW", self.name)
            .env("NOTIFY_SOCKET", &socket)
            .envs(self.command.get_envs().filter_map(|(key, value)| Some((key, value?))))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let started = Instant::now();
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // From here on the guard ends it, also when what follows panics.
        let mut machine = Machine { process, console, ready, leader: 0, cgroup, _dir: dir };
        machine.wait_ready();
        eprintln!("{} was up after {:?}", self.name, started.elapsed());
        machine.leader = machine.find_leader();
        machine
    }
}

impl Machine {
    /// What its console shows.
    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Its first process, by the number that this side knows.
    pub(super) fn leader(&self) -> u32 {
        self.leader
    }

    /// Whether its root is an ordinary user of the machine.
    pub(super) fn has_private_users(&self) -> bool {
        let map = fs::read_to_string(format!("/proc/{}/uid_map", self.leader)).unwrap();
        let map: Vec<&str> = map.split_whitespace().collect();
        matches!(map[..], ["0", first, _] if first != "0")
    }

    /// A path inside, for this side to use.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.leader))
    }

    /// Runs a shell script inside, as the container's root.
    pub(super) fn try_run(&self, script: &str) -> Output {
        Command::new(gate::find("nsenter").expect("nsenter"))
            .args(["--target", &self.leader.to_string(), "--all", "--", "/bin/sh", "-c", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The same, for a script that has to succeed; returns what it prints.
    pub(super) fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {}\n{stdout}\n{stderr}", output.status);
        stdout
    }

    /// The same, for a script that has to fail; returns what it says.
    pub(super) fn refuse(&self, script: &str) -> String {
        let output = self.try_run(script);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{script}: it succeeds, and prints {stdout}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Tells it to power off from inside, and waits until it has.
    pub(super) fn power_off(&mut self) -> ExitStatus {
        let _connection_may_break = self.try_run("systemctl poweroff");
        self.end().unwrap_or_else(|| panic!("it did not power off; its console:\n{}", self.console()))
    }

    fn end(&mut self) -> Option<ExitStatus> {
        let ended = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty()).ok()?;
        let [ended] = wait_readable([&ended], Instant::now() + DEADLINE);
        if ended { self.process.wait().ok() } else { None }
    }

    fn wait_ready(&mut self) {
        let until = Instant::now() + DEADLINE;
        let alive = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty()).expect("pidfd_open");
        let mut message = [0; 4096];
        loop {
            match wait_readable([&self.ready, &alive], until) {
                [true, _] => {
                    let length = self.ready.recv(&mut message).unwrap();
                    if message[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                        return;
                    }
                }
                [false, true] => panic!("the container ended while booting:\n{}", self.console()),
                [false, false] => panic!("the container did not boot:\n{}", self.console()),
            }
        }
    }

    /// The process that is number 1 in a process namespace of its own.
    fn find_leader(&self) -> u32 {
        let is_first = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            let numbers: Vec<&str> = numbers.split_whitespace().collect();
            matches!(numbers[..], [_, .., "1"])
        };
        let mut processes = self.cgroup.processes();
        processes.retain(is_first);
        match processes[..] {
            [leader] => leader,
            _ => panic!("{processes:?} are first processes:\n{}", self.console()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the console showed:\n{}---", self.console());
        }
        if matches!(self.process.try_wait(), Ok(None)) {
            // A container that is not told to power off goes with its supervisor; what is left, with its group.
            let _gone = kill_process(Pid::from_child(&self.process), Signal::KILL);
            let _reaped = self.process.wait();
        }
    }
}
