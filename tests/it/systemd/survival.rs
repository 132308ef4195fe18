//! The view lives on when its processes do not: systemd's descriptor store keeps the mount.

use super::host::{Host, system};
use super::load::Readers;
use super::machine::eventually;

/// A service that serves, with readers inside its view.
fn under_load(put_through: impl FnOnce(&Host, &Readers)) {
    let host = Host::boot("small");
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);
    host.tell("start");
    let (file_system, counted) = (host.file_system(), counted(&host));
    let readers = Readers::start(&host.view(), &host.store.physical(), &one.base);
    put_through(&host, &readers);
    readers.work();
    readers.finish();
    assert_eq!(host.file_system(), file_system, "mounted again");
    assert_eq!(host.mounts().len(), 1, "{:?}", host.mounts());
    assert_eq!(self::counted(&host), counted, "what was asked of the view is lost");

    host.tell("stop");
    assert_eq!(host.mounts(), Vec::<String>::new());
    assert_eq!(host.property("NFileDescriptorStore"), "0");
    assert_eq!(host.property("Result"), "success", "{}", host.log());
}

/// The marks of the memory in which it is counted what is asked of the view: whose it is, since when, and that this is all.
fn counted(host: &Host) -> String {
    let memory = format!("/proc/{}/fd -lname '/memfd:usage*'", host.property("MainPID"));
    let marks = host.machine.run(&format!("od -An -tx8 -w24 -j8 -N24 $(find {memory})"));
    assert!(marks.trim_end().ends_with(" 0000000000000001"), "not whole: {marks}");
    marks
}

/// `kill -9` of the main process, and of every process of the service at once: no reader notices.
#[test]
fn killed_under_readers() {
    need_systemd!();
    under_load(|host, readers| {
        for round in 0..6 {
            let main = host.property("MainPID");
            let whom = if round % 2 == 0 { "main" } else { "all" };
            host.tell(&format!("kill --signal KILL --kill-whom {whom}"));
            host.wait_for_successor(&main);
            readers.work();
        }
        // Or more: a kill of all of them may hit the successor as well.
        assert!(host.property("NRestarts").parse::<u32>().unwrap() >= 6, "{}", host.log());
    });
}

/// `kill -9` of the server alone is mended by its monitor: for systemd nothing has happened.
#[test]
fn server_killed_under_readers() {
    need_systemd!();
    under_load(|host, readers| {
        let main = host.property("MainPID");
        let servers = format!("cat /proc/{main}/task/*/children");
        for _ in 0..3 {
            let server = host.machine.run(&servers);
            host.machine.run(&format!("kill -KILL {server}"));
            assert!(eventually(|| ![server.as_str(), ""].contains(&host.machine.run(&servers).as_str())));
            readers.work();
        }
        assert_eq!(host.property("MainPID"), main);
        assert_eq!(host.property("NRestarts"), "0", "{}", host.log());
    });
}

/// SIGUSR2 hands over: exit code 75, the mount stays, a successor serves it.
#[test]
fn handed_over_under_readers() {
    need_systemd!();
    under_load(|host, readers| {
        host.write_unit(
            &format!("{}.d/ends.conf", host.unit()),
            "[Service]\nExecStopPost=/bin/sh -c 'echo $EXIT_CODE $EXIT_STATUS >>/run/ends'\n",
        );
        for _ in 0..3 {
            let main = host.property("MainPID");
            host.tell("kill --signal USR2 --kill-whom main");
            host.wait_for_successor(&main);
            readers.work();
        }
        assert_eq!(
            host.machine.run("cat /run/ends"),
            "exited 75
"
            .repeat(3),
            "{}",
            host.log()
        );
    });
}

/// `systemctl restart` is a hand-over as well.
#[test]
fn restarted_under_readers() {
    need_systemd!();
    under_load(|host, readers| {
        for _ in 0..3 {
            let main = host.property("MainPID");
            host.tell("restart");
            assert_ne!(host.property("MainPID"), main);
            readers.work();
        }
    });
}
