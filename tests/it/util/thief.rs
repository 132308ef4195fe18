//! Requests that get lost: whoever waits for the answer waits for ever, on any kernel.
//!
//! A thief has a copy of the descriptor of `/dev/fuse` (pidfd_getfd(2)) and reads a request in the server's place, which
//! is stopped meanwhile. As long as the thief lives it is also somebody else who holds the device: the connection does not
//! end with the descriptors of monitor and server.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use super::{DEADLINE, mounts, threads, wait_readable};

/// `FUSE_FORGET`, `FUSE_INTERRUPT` and `FUSE_BATCH_FORGET` of `linux/fuse.h`: nobody waits for an answer to these.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// A copy of the device of a view.
#[derive(Debug)]
pub(crate) struct Thief(OwnedFd);

impl Thief {
    /// Takes a copy of the device that the process `holder` has open.
    pub(crate) fn of(holder: Pid) -> Self {
        let process = pidfd_open(holder, PidfdFlags::empty()).unwrap();
        let dir = format!("/proc/{}/fd", holder.as_raw_nonzero());
        let device = fs::read_dir(dir)
            .unwrap()
            .flatten()
            .find(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == Path::new("/dev/fuse")));
        let number = device.expect("a device").file_name().to_str().unwrap().parse().unwrap();
        Self(pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap())
    }

    /// The device.
    pub(crate) fn device(&self) -> &OwnedFd {
        &self.0
    }

    /// Waits until a request is there that nobody has read.
    pub(crate) fn wait(&self) {
        assert_eq!(wait_readable([&self.0], Instant::now() + DEADLINE), [true], "nobody asks");
    }

    /// Reads requests up to the first one that somebody waits for, and throws them away.
    pub(crate) fn take(&self) {
        let mut request = vec![0; 2 << 20];
        loop {
            self.wait();
            let length = rustix::io::read(&self.0, &mut request).unwrap();
            let opcode = request[..length].get(4..8).unwrap().try_into().map(u32::from_le_bytes).unwrap();
            if !UNANSWERED.contains(&opcode) {
                return;
            }
        }
    }
}

/// Stops all threads of a process: none of them reads anything from now on.
pub(crate) fn stop(process: Pid) {
    kill_process(process, Signal::STOP).unwrap();
    let stopped = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
        tasks.flatten().all(|task| threads::state(task.path()) == Some('T'))
    };
    let until = Instant::now() + DEADLINE;
    while !stopped() {
        assert!(Instant::now() < until, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The number of the connection of the view that is mounted at `view`.
pub(crate) fn connection(view: &Path) -> u32 {
    rustix::fs::minor(fs::metadata(view).unwrap().dev())
}

/// A process that waits for an answer of a view. If the test fails, the connection of that view is aborted.
#[derive(Debug)]
pub(crate) struct Waiter {
    process: Child,
    connection: u32,
}

impl Waiter {
    /// Runs `command` over the view with this connection.
    pub(crate) fn start(connection: u32, command: &mut Command) -> Self {
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { process, connection }
    }

    /// Runs `command` over a view, which `server` serves, and loses the first request that comes of it.
    pub(crate) fn lose(connection: u32, thief: &Thief, server: Pid, command: &mut Command) -> Self {
        stop(server);
        let waiter = Self::start(connection, command);
        thief.take();
        kill_process(server, Signal::CONT).unwrap();
        waiter
    }

    /// Kills it. It cannot end: it waits for an answer.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.wait_uninterruptible();
    }

    /// Waits until it is in a sleep that no signal ends, or a deadly one alone.
    pub(crate) fn wait_uninterruptible(&self) {
        let until = Instant::now() + DEADLINE;
        let process = threads::process(Pid::from_child(&self.process));
        while threads::state(&process) != Some('D') {
            assert!(Instant::now() < until, "{:?}", threads::state(&process));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let process = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty()).unwrap();
        let ended = wait_readable([&process], Instant::now() + DEADLINE);
        assert_eq!(ended, [true], "a process waits for an answer");
        self.process.wait().unwrap()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            mounts::abort(self.connection);
        }
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}
