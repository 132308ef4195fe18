//! The log when nobody reads it: a message may be lost, a reader of the view or a signal never waits for it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::util::fixture::Fixture;
use crate::util::program::Program;
use crate::util::{DEADLINE, mounts, wait_readable};

/// Part of the message that counts lost ones.
const DROPPED: &str = "dropped";

/// A pipe with a name, for the program's standard error. It stays open as long as this.
struct Pipe {
    end: File,
    at: PathBuf,
    _dir: TempDir,
}

impl Pipe {
    fn new() -> Self {
        let dir = crate::util::scratch();
        let at = dir.path().join("log");
        rustix::fs::mkfifoat(CWD, &at, Mode::RUSR | Mode::WUSR).unwrap();
        let end: OwnedFd = rustix::fs::open(&at, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
        Self { end: end.into(), at, _dir: dir }
    }

    /// One into which not a byte fits.
    fn full() -> Self {
        let pipe = Self::new();
        let mut end = &pipe.end;
        for filler in [&[b'\n'; 4096][..], b"\n"] {
            while end.write_all(filler).is_ok() {}
        }
        pipe
    }

    /// The program with this as its standard error.
    fn of(&self, program: Program) -> Program {
        let script = format!(r#"exec "$@" 2>'{}'"#, self.at.display());
        program.inside(["sh", "-c", &script, "sh"])
    }

    /// What is in the pipe now.
    fn read(&self) -> String {
        let mut bytes = Vec::new();
        let error = (&self.end).read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Reads until there is a line with `what`; returns all that was read.
    fn read_until(&self, what: &str) -> String {
        let until = Instant::now() + DEADLINE;
        let mut said = String::new();
        loop {
            said.push_str(&self.read());
            if said.lines().any(|line| line.contains(what)) && said.ends_with('\n') {
                return said;
            }
            let [readable] = wait_readable([&self.end], until);
            assert!(readable, "no line says '{what}'; the last one: {:?}", said.lines().last());
        }
    }
}

/// A view whose log has nowhere to go answers, becomes ready, is reloaded and ends.
#[test]
fn a_log_that_nobody_reads_keeps_nothing_from_going_on() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let pipe = Pipe::full();
    let mut view = pipe.of(fixture.program().arg("-vv")).mount();
    let data = view.path().join(&fixture.data.base);
    assert_eq!(fs::read(data.join("text")).unwrap(), b"hello\n");
    // More than is kept for somebody who may still come to read.
    for number in 0..10_000 {
        assert!(!data.join(format!("absent-{number}")).exists());
    }
    let reload = Program::new().arg("reload").arg(view.path()).run();
    assert_eq!(reload.status.code(), Some(0), "{}", reload.stderr);
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0));
    assert!(mounts::at(view.path()).is_none());
}

/// Once it is read, what was kept comes whole, and one line tells how many are missing.
#[test]
fn a_log_that_is_read_later_tells_how_much_is_missing() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let pipe = Pipe::full();
    let mut view = pipe.of(fixture.program().args(["-vv", "--log-format", "json"])).mount();
    let data = view.path().join(&fixture.data.base);
    for number in 0..10_000 {
        assert!(!data.join(format!("absent-{number}")).exists());
    }
    let said = pipe.read_until(DROPPED);
    for line in said.lines().filter(|line| !line.is_empty()) {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let message = event["fields"]["message"].as_str().unwrap_or_default();
        assert!(!message.contains(DROPPED) || event["fields"]["count"].as_u64().unwrap() > 0, "{line}");
    }
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0));
}

/// The last message of a program that fails is neither lost nor waited for for ever.
#[test]
fn a_failure_is_told_to_whoever_reads_and_ends_all_the_same() {
    need!(Nix);
    let fixture = Fixture::new();
    for (arguments, code, why) in [
        (["--system", "/nonexistent", "--dump-closure"], 3, "nix-store-fs: "),
        (["--system", "x", "--threads=none"], 2, "--threads"),
    ] {
        let program = || Program::on(&fixture.store).args(arguments);
        let pipe = Pipe::new();
        assert_eq!(pipe.of(program()).run().status.code(), Some(code));
        let said = pipe.read();
        assert!(said.contains(why), "{said}");
        let full = Pipe::full();
        assert_eq!(full.of(program()).run().status.code(), Some(code), "with a full pipe");
    }
}

/// What a process calls itself is its own choice: it writes no line of its own, and nothing that a terminal obeys.
#[test]
fn a_process_cannot_write_into_the_log_by_its_name() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for format in ["text", "json"] {
        let mut view = fixture.program().args(["--log-format", format]).mount();
        // 15 bytes at most (PR_SET_NAME(2const)): a line break, ESC, DEL, and CSI as one character.
        let script =
            r#"cd "$1" && printf 'a\nFAKE\033[2J\177\302\233' >/proc/self/comm && echo && read line"#;
        let mut user = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(view.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        user.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        view.signal(Signal::TERM);
        assert_eq!(view.end().code(), Some(0));
        drop(user.stdin.take());
        user.wait().unwrap();
        let said = view.stderr();
        let line = said.lines().find(|line| line.contains("still in use by")).expect(&said);
        assert!(line.contains("FAKE") && line.contains(&format!("({})", user.id())), "{said}");
        assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
    }
}

/// Whoever read the log has gone: nothing but the log is lost.
#[test]
fn a_reader_of_the_log_that_goes_takes_nothing_with_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let pipe = Pipe::new();
    let mut view = pipe.of(fixture.program().arg("-v")).mount();
    pipe.read_until("the view answers");
    let server = view.server_now();
    drop(pipe);
    let reload = Program::new().arg("reload").arg(view.path()).run();
    assert_eq!(reload.status.code(), Some(0), "{}", reload.stderr);
    assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    assert_eq!(view.server_now(), server, "the server had to be replaced");
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0));
}
