//! `scripts/setup`: what it says and does when a step fails or is interrupted, and where the next run resumes.
//!
//! `setup_stub.sh` stands in for every command that changes the machine, so these tests change nothing outside their scratch
//! directory.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tempfile::TempDir;

use crate::util::{DEADLINE, gate, wait_readable};

/// What the stub stands in for.
const STUBS: [&str; 14] = [
    "apt-get",
    "cargo",
    "debootstrap",
    "dpkg",
    "dpkg-query",
    "dpkg-source",
    "id",
    "meson",
    "ninja",
    "pkg-config",
    "python3",
    "rustc",
    "sudo",
    "tar",
];

/// Commands that the script and the stub use as they are.
const HARMLESS: [&str; 19] = [
    "awk", "bash", "cat", "dirname", "env", "flock", "grep", "ln", "mkdir", "mktemp", "mv", "rm", "sed",
    "sh", "sleep", "sort", "tail", "touch", "uniq",
];

/// All pieces of work of a first run, in their order: the step that each belongs to, and the piece that this step begins with.
const WORKS: [(&str, &str, &str); 14] = [
    ("refresh", "refresh the package lists", "refresh"),
    ("install", "install build tools: fuse3", "refresh"),
    ("debootstrap", "make the system that tests boot", "debootstrap"),
    ("pack", "make the system that tests boot", "debootstrap"),
    ("virtiofsd", "build virtiofsd", "virtiofsd"),
    ("venv", "install meson", "venv"),
    ("pip", "install meson", "venv"),
    ("lists", "fetch", "lists"),
    ("source", "fetch", "lists"),
    ("unpack", "fetch", "lists"),
    ("configure libutil", "build libnixutil", "configure libutil"),
    ("build libutil", "build libnixutil", "configure libutil"),
    ("configure libstore", "build libnixstore", "configure libstore"),
    ("build libstore", "build libnixstore", "configure libstore"),
];

const FIRST: &str = WORKS[0].0;
const LAST: &str = WORKS[WORKS.len() - 1].0;

/// The works from one to another.
fn works(first: &str, last: &str) -> Vec<&'static str> {
    let all = WORKS.map(|(work, ..)| work);
    let position = |name| all.iter().position(|work| *work == name).unwrap();
    all[position(first)..=position(last)].to_vec()
}

/// A Debian machine without fuse3, without a Nix library, and with Debian's own cargo.
struct Machine {
    dir: TempDir,
    /// A stub that blocks reads a line from it.
    go: File,
}

/// A new FIFO. It is open for writing too, so that neither side ever sees the end of the file.
fn fifo(dir: &Path, name: &str) -> File {
    let path = dir.join(name);
    let _earlier = fs::remove_file(&path);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

/// How a run of the script ended, and what it did.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stderr: String,
    works: Vec<String>,
}

/// A run of the script. Dropping it kills its process group.
struct Running {
    child: Child,
    dir: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let dir = crate::util::scratch();
        for name in ["bin", "missing", "tmp"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("missing/fuse3"), "").unwrap();
        let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/setup_stub.sh");
        for name in STUBS.iter().chain(&["stub"]) {
            symlink(&stub, dir.path().join("bin").join(name)).unwrap();
        }
        for name in HARMLESS {
            let command = gate::find(name).unwrap_or_else(|| panic!("the command {name}"));
            symlink(command, dir.path().join("bin").join(name)).unwrap();
        }
        let go = fifo(dir.path(), "go");
        Self { dir, go }
    }

    fn lacks(self, package: &str) -> Self {
        fs::write(self.dir.path().join("missing").join(package), "").unwrap();
        self
    }

    /// Starts `scripts/setup --test` in a process group of its own.
    fn start(&self, environment: &[(&str, &str)]) -> Running {
        let dir = self.dir.path();
        let _first = fs::remove_file(dir.join("works"));
        let child = Command::new("env")
            // A shell cannot catch a signal that was ignored when it started, as in the background of another.
            .arg("--default-signal=INT,TERM")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup"))
            .arg("--test")
            .env_clear()
            .env("PATH", dir.join("bin"))
            .env("STUBS", dir)
            .env("HOME", dir)
            .env("XDG_CACHE_HOME", dir.join("cache"))
            .env("TMPDIR", dir.join("tmp"))
            .env("CARGO", "debian")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("stderr")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        Running { child, dir: dir.to_owned() }
    }

    fn run(&self, environment: &[(&str, &str)]) -> Ended {
        self.start(environment).end()
    }

    /// Starts it, and returns when it is in the middle of this piece of work.
    fn start_and_block(&self, work: &str) -> Running {
        // A new one each time: what an interrupted stub wrote is not for this run.
        let reached = fifo(self.dir.path(), &format!("reached {work}"));
        let running = self.start(&[("BLOCK", work)]);
        let [blocked] = wait_readable([&reached], Instant::now() + DEADLINE);
        assert!(blocked, "it did not come to '{work}'");
        running
    }

    /// Lets the stub that blocks end.
    fn release(&self) {
        rustix::io::write(&self.go, b"go\n").unwrap();
    }

    /// What is left in the directory of temporary files.
    fn temporary(&self) -> Vec<PathBuf> {
        crate::util::tree::list(&self.dir.path().join("tmp")).unwrap()
    }
}

impl Running {
    fn said(&self) -> String {
        fs::read_to_string(self.dir.join("stderr")).unwrap()
    }

    fn end(mut self) -> Ended {
        let ended = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let [ended] = wait_readable([&ended], Instant::now() + DEADLINE);
        assert!(ended, "it did not end; it said: {}", self.said());
        let works = fs::read_to_string(self.dir.join("works")).unwrap_or_default();
        Ended {
            status: self.child.wait().unwrap(),
            stderr: self.said(),
            works: works.lines().map(str::to_owned).collect(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The number cannot be another group's while the child has not been waited for.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ended = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _reaped = self.child.wait();
        }
    }
}

/// A first run does everything once, in order; a second one nothing.
#[test]
fn a_second_run_does_nothing() {
    let machine = Machine::new();
    let first = machine.run(&[]);
    assert!(first.status.success(), "{first:?}");
    assert_eq!(first.works, works(FIRST, LAST));
    // Where the tests look for the system to boot.
    assert!(machine.dir.path().join("cache/nix-store-fs/guest.tar").is_file());
    let second = machine.run(&[]);
    assert!(second.status.success(), "{second:?}");
    assert_eq!(second.works, <[&str; 0]>::default());
    assert_eq!(machine.temporary(), <[PathBuf; 0]>::default());
}

/// A step in which a command fails ends the run, names itself and shows the output; the next run resumes with this step.
#[test]
fn a_failed_step_is_named_and_resumed() {
    let machine = Machine::new();
    let mut resumed = FIRST;
    for (work, step, begins_with) in WORKS {
        let failed = machine.run(&[("FAIL", work)]);
        assert_eq!(failed.status.code(), Some(7), "{work}: {failed:?}");
        assert_eq!(failed.works, works(resumed, work));
        assert!(failed.stderr.contains(&format!("stub: {work} fails\n")), "{work}: {failed:?}");
        let last = failed.stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("setup: step \"{step}")), "{work}: {failed:?}");
        assert_eq!(machine.temporary(), <[PathBuf; 0]>::default(), "{work}");
        resumed = begins_with;
    }
    let repaired = machine.run(&[]);
    assert!(repaired.status.success(), "{repaired:?}");
    assert_eq!(repaired.works, works(resumed, LAST));
}

/// Ctrl-C, or a signal to all of its processes, ends the run, which names the step; the next run resumes with this step.
#[test]
fn an_interrupted_step_is_named_and_resumed() {
    for signal in [Signal::INT, Signal::TERM] {
        let machine = Machine::new();
        let mut resumed = FIRST;
        for (work, step, begins_with) in WORKS {
            let running = machine.start_and_block(work);
            kill_process_group(Pid::from_child(&running.child), signal).unwrap();
            let interrupted = running.end();
            assert!(!interrupted.status.success(), "{work}: {interrupted:?}");
            assert_eq!(interrupted.works, works(resumed, work), "{signal:?} {interrupted:?}");
            let last = interrupted.stderr.lines().last().unwrap();
            assert!(
                last.starts_with(&format!("setup: interrupted in step \"{step}")),
                "{work}: {interrupted:?}"
            );
            resumed = begins_with;
        }
        let last = machine.run(&[]);
        assert!(last.status.success(), "{last:?}");
        assert_eq!(last.works, works(resumed, LAST), "{signal:?}");
        assert_eq!(machine.temporary(), <[PathBuf; 0]>::default(), "{signal:?}");
    }
}

/// The commands of a script that was killed alone are still at work. The next run waits for them, and resumes after their step.
#[test]
fn a_killed_run_is_waited_for_and_resumed() {
    for signal in [Signal::TERM, Signal::KILL] {
        let machine = Machine::new();
        let running = machine.start_and_block("build libutil");
        kill_process(Pid::from_child(&running.child), signal).unwrap();
        let killed = running.end();
        assert!(!killed.status.success(), "{killed:?}");

        let next = machine.start(&[]);
        let until = Instant::now() + DEADLINE;
        while !next.said().contains("waiting") {
            assert!(Instant::now() < until, "it does not wait: {}", next.said());
            std::thread::yield_now();
        }
        machine.release();
        let next = next.end();
        assert!(next.status.success(), "{next:?}");
        assert_eq!(next.works, works("configure libstore", LAST), "{signal:?}");
    }
}

/// A library that was built and does not answer is built again by the next run.
#[test]
fn a_library_that_is_not_there_is_built_again() {
    let machine = Machine::new();
    let failed = machine.run(&[("LOSE", "1")]);
    assert!(!failed.status.success(), "{failed:?}");
    let last = failed.stderr.lines().last().unwrap();
    assert!(last.starts_with("setup: step \"check the library"), "{failed:?}");
    let next = machine.run(&[]);
    assert!(next.status.success(), "{next:?}");
    assert_eq!(next.works.last().map(String::as_str), Some(LAST));
}

/// A Rust that is too old is named before anything is done.
#[test]
fn an_old_rust_is_refused_first() {
    for (rust, accepted) in [("1.85.1", false), ("1.88.0", true)] {
        let ended = Machine::new().run(&[("RUST", rust)]);
        assert_eq!(ended.status.success(), accepted, "{rust}: {ended:?}");
        assert_eq!(ended.works.is_empty(), !accepted, "{rust}: {ended:?}");
        assert_eq!(ended.stderr.contains("no Rust 1.88 or newer"), !accepted, "{rust}: {ended:?}");
    }
}

/// Debian packages rustfmt and clippy apart from its cargo; with another cargo it is not for apt to install them.
#[test]
fn rustfmt_and_clippy_come_from_where_cargo_does() {
    let machine = Machine::new().lacks("rustfmt").lacks("rust-clippy");
    let rustup = machine.run(&[("CARGO", "rustup")]);
    assert_eq!(rustup.status.code(), Some(1), "{rustup:?}");
    assert!(rustup.stderr.contains("rustup component add rustfmt clippy"), "{rustup:?}");
    assert!(!rustup.stderr.contains("install rustfmt"), "{rustup:?}");

    let debian = machine.run(&[]);
    assert!(debian.status.success(), "{debian:?}");
    assert!(debian.stderr.contains(": rustfmt rust-clippy\n"), "{debian:?}");
    assert!(!machine.dir.path().join("missing/rust-clippy").exists(), "{debian:?}");
}
