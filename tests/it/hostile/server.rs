//! A server that a container has taken over says to its monitor what it likes.

use std::fs;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal};

use crate::util::fixture::Fixture;
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::thief::Thief;
use crate::util::{compile, scratch};

const DEEDS: [&str; 8] =
    ["floods", "refuses", "garbage", "too long", "length without a body", "empty", "closes", "is silent"];

/// Memory of a monitor, at most: it has Nix's library.
const KIBIBYTES: u64 = 200 * 1024;

/// Whatever a server does with the socket, the monitor ends when it is told to, and has not grown.
#[test]
fn a_hostile_server_neither_holds_its_monitor_nor_fills_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let program = Program::install(dir.path());
    let built = compile("hostile_server.c", dir.path());
    fs::rename(built, dir.path().join("nix-store-fs-server")).unwrap();
    for deed in DEEDS {
        let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
        service.binary = program.clone();
        service.set("NSF_HOSTILE", deed);
        service.start();
        // One that says something is killed for it, and has a successor.
        service.wait_logged("started a server", if deed == "is silent" { 1 } else { 2 });
        let most = most(service.monitor());
        service.signal(Signal::TERM);
        let status = service.ended();
        assert!(status.code().is_some_and(|code| code < 2), "{deed}: {status}\n{}", service.log());
        assert!(most < KIBIBYTES, "{deed}: {most} KiB");
    }
}

/// The most memory that a process has had, in KiB.
fn most(process: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    most.and_then(|most| most.split_whitespace().next()?.parse().ok()).unwrap()
}

/// The device is one open file of all servers. One that makes it non-blocking keeps no successor from serving.
#[test]
fn a_device_made_non_blocking_is_made_blocking_again() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let thief = Thief::of(service.server());
    let flags = || rustix::fs::fcntl_getfl(thief.device()).unwrap();
    let asynchronous = OFlags::from_bits_retain(nix::libc::O_ASYNC.cast_unsigned());
    rustix::fs::fcntl_setfl(thief.device(), flags() | OFlags::NONBLOCK | asynchronous).unwrap();
    service.kill(Victim::Server);
    let from = service.heard();
    service.signal(Signal::HUP);
    service.wait_ready(from);
    assert!(service.path().join(&fixture.data.base).join("text").exists());
    assert!(!flags().intersects(OFlags::NONBLOCK | asynchronous), "{:?}", flags());
    assert_eq!(service.logged("the server exited"), 1, "{}", service.log());
    service.stop();
}
