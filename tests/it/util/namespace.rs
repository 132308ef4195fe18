//! A mount namespace besides the tests' own.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::DEADLINE;

/// A process with a mount namespace of its own, in which everything stays mounted that is mounted now.
#[derive(Debug)]
pub(crate) struct Namespace(Child);

impl Namespace {
    pub(crate) fn new() -> Self {
        Self::held(&["unshare", "-m", "sleep", "1000"])
    }

    /// A machine of its own as far as files below `/run`, shared memory and control groups tell, which are of version 2 alone; then
    /// what `script` changes.
    pub(crate) fn machine(script: &str) -> Self {
        let script = format!(
            "set -e; mount --make-rshared /; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm; \
             umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; {script}; exec sleep 1000"
        );
        Self::held(&["unshare", "-m", "-C", "sh", "-c", &script])
    }

    fn held(command: &[&str]) -> Self {
        let mut holder = Self(Command::new(command[0]).args(&command[1..]).spawn().unwrap());
        let until = Instant::now() + DEADLINE;
        while fs::read_to_string(format!("/proc/{}/comm", holder.0.id())).unwrap() != "sleep\n" {
            assert!(Instant::now() < until, "no process with a mount namespace");
            assert!(holder.0.try_wait().unwrap().is_none(), "{command:?} has failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        holder
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A command in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "-m", program]);
        command
    }

    /// What a command prints in it.
    pub(crate) fn inside(&self, command: &[&str]) -> String {
        let output = self.command(command[0]).args(&command[1..]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
