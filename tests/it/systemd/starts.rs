//! How often systemd starts the service: a server that served is back at once, and a program that cannot serve is not
//! started for ever.

use std::fs;

use super::host::{Host, system};
use super::load::Readers;
use super::machine::eventually;
use super::service::user_of;
use crate::util::DEADLINE;
use crate::util::store::Member;

/// A program that cannot serve.
#[derive(Debug)]
struct Broken {
    text: &'static str,
    mode: u32,
    /// How systemd says that it ended.
    status: &'static str,
    /// How often it may have been started by itself.
    restarts: u32,
}

impl Broken {
    const fn new(text: &'static str, status: &'static str, restarts: u32) -> Self {
        Self { text, mode: 0o555, status, restarts }
    }
}

/// A defect of its own, and the only one that is tried with the unit's own limit.
const FAILS: Broken = Broken::new("#!/bin/sh\nexit 1\n", "1", 100);
/// What an earlier process left cannot be read: to try that again is of no use.
const REFUSES: Broken = Broken::new("#!/bin/sh\nexit 10\n", "10", 0);

/// The limit that the others are tried with, for the sake of the time.
const FEWER: u32 = 10;

/// As the loader ends, when a library is too old or absent.
const LACKS_LIBRARY: Broken = Broken::new("#!/bin/sh\nexit 127\n", "127", FEWER);
/// As the system call filter ends a program, where it is set to kill.
const MAKES_FORBIDDEN_CALL: Broken = Broken::new("#!/bin/sh\nkill -SYS $$\n", "31", FEWER);
const CANNOT_BE_EXECUTED: Broken = Broken { text: "", mode: 0o444, status: "203", restarts: FEWER };
const FAILS_AFTER_ALL: Broken = Broken::new("#!/bin/sh\nexit 1\n", "1", FEWER);

/// A machine with a view of one store path.
fn host(view: &str) -> (Host, Member) {
    let host = Host::boot(view);
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);
    (host, one)
}

/// Limits the starts to [`FEWER`].
fn limit_to_fewer(host: &Host) {
    host.write_unit(&format!("{}.d/limit.conf", host.unit()), &format!("[Unit]\nStartLimitBurst={FEWER}\n"));
}

/// What `systemctl start` says when it fails. It is not waited for longer than until the deadline.
#[track_caller]
fn refuse_start(host: &Host) -> String {
    let start = format!("timeout --kill-after 1 {} systemctl start {}", DEADLINE.as_secs(), host.unit());
    let started = host.machine.try_run(&start);
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert_eq!(started.status.code(), Some(1), "systemctl start: {said}\n{}", host.log());
    said
}

/// The service has failed, and was not started more often than it may be after so many restarts of other programs.
#[track_caller]
fn assert_failed(host: &Host, broken: &Broken, others: u32) {
    let [state, status, restarts] = host.properties(["ActiveState", "ExecMainStatus", "NRestarts"]);
    assert_eq!(state, "failed", "{broken:?}: {}", host.log());
    assert_eq!(status, broken.status, "{broken:?}: {}", host.log());
    let restarts = restarts.parse::<u32>().unwrap() - others;
    assert!(restarts <= broken.restarts, "{broken:?}: {restarts} restarts: {}", host.log());
}

/// A program that cannot serve, whatever the reason, is started a bounded number of times. Then `systemctl start`
/// returns and the unit is failed. When the program is in order, the unit starts.
#[test]
fn what_cannot_serve_is_not_started_for_ever() {
    need_systemd!();
    let (host, one) = host("small");
    let fails = |broken: &Broken| {
        host.replace_program(broken.text, broken.mode);
        let said = refuse_start(&host);
        assert!(said.contains("failed because"), "{broken:?}: {said}");
        assert_failed(&host, broken, 0);
        assert_eq!(host.mounts(), Vec::<String>::new());

        host.restore_program();
        host.tell("reset-failed");
        host.tell("start");
        assert_eq!(fs::read_to_string(host.view().join(&one.base).join("name")).unwrap(), "one\n");
        host.tell("stop");
    };
    fails(&FAILS);
    limit_to_fewer(&host);
    for broken in [LACKS_LIBRARY, CANNOT_BE_EXECUTED, MAKES_FORBIDDEN_CALL, REFUSES] {
        fails(&broken);
    }
    returns_though_slow(&host);
}

/// A program that takes so long to fail that it stays below the limit is started again, but `systemctl start` returns.
fn returns_though_slow(host: &Host) {
    let text = host.unit_text();
    let sooner = text.replace("JobRunningTimeoutSec=4min\n", "JobRunningTimeoutSec=2s\n");
    assert!(sooner != text);
    host.write_unit(&host.unit(), &sooner);

    host.replace_program("#!/bin/sh\nsleep 0.5\nexit 1\n", 0o555);
    let said = refuse_start(host);
    assert!(said.contains("timed out"), "{said}");
    host.restore_program();
    assert!(eventually(|| host.property("ActiveState") == "active"), "{}", host.log());
}

/// A hand-over to a program that cannot serve leaves the mount and its stored descriptor, and whoever uses the view as
/// a container does. Readers wait; the real program resumes the view, and none of them has seen an error.
#[test]
fn a_view_is_resumed_after_its_program_failed() {
    need_systemd!();
    let (host, one) = host("web");
    limit_to_fewer(&host);
    host.write_unit("user.service", &user_of(&host));
    host.systemctl("start user.service");
    let user = "show --value --property MainPID user.service";
    let user_before = host.systemctl(user);
    let (file_system, mounts) = (host.file_system(), host.mounts());
    let readers = Readers::start(&host.view(), &host.store.physical(), &one.base);
    for broken in [FAILS_AFTER_ALL, REFUSES] {
        host.replace_program(broken.text, broken.mode);
        host.tell("kill --signal USR2 --kill-whom main");
        assert!(eventually(|| host.property("ActiveState") == "failed"), "{broken:?}: {}", host.log());
        // The first restart is the hand-over itself.
        assert_failed(&host, &broken, 1);
        assert_eq!(host.mounts(), mounts, "{broken:?}");
        // The device, the ledger, and what is counted.
        assert_eq!(host.property("NFileDescriptorStore"), "3", "{broken:?}");

        host.restore_program();
        host.tell("reset-failed");
        host.tell("start");
        readers.work();
        assert_eq!(host.file_system(), file_system, "mounted again");
    }
    readers.finish();
    assert_eq!(host.systemctl(user), user_before);
    host.systemctl("stop user.service");
    assert!(eventually(|| host.property("ActiveState") == "inactive"), "{}", host.log());
    assert_eq!(host.mounts(), Vec::<String>::new());
}

/// A server that was killed or handed over comes back every time: 20 times of each in a row reach no limit.
#[test]
fn many_kills_and_hand_overs_reach_no_limit() {
    need_systemd!();
    let (host, one) = host("small");
    host.tell("start");
    let readers = Readers::start(&host.view(), &host.store.physical(), &one.base);
    for signal in ["KILL", "USR2"] {
        for _ in 0..20 {
            let main = host.property("MainPID");
            host.tell(&format!("kill --signal {signal} --kill-whom main"));
            host.wait_for_successor(&main);
        }
    }
    readers.work();
    readers.finish();
    assert_eq!(
        host.properties(["NRestarts", "Result", "ActiveState"]),
        ["40", "success", "active"],
        "{}",
        host.log()
    );
}
