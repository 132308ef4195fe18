//! Handing a view over: to the next process, to another version, and never to one that cannot read what was left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, Signal, pidfd_open};

use crate::util::fixture::Fixture;
use crate::util::load::{self, Load, say};
use crate::util::mounts;
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::{DEADLINE, tree, wait_readable};

/// What a version is made to look like: as long as the real one.
const OTHER: &str = "9.8.7";

/// A copy of the program that calls itself another version.
fn another_version(dir: &Path) -> PathBuf {
    let version = |binary: &Path| {
        let output = Command::new(binary).arg("--version").output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().next().unwrap().to_owned()
    };
    let real = version(Path::new(Program::PATH));
    let number = real.rsplit(' ').next().unwrap();
    assert_eq!(number.len(), OTHER.len(), "the other version has to be as long as {number}");
    let copy = Program::install(dir);
    let mut bytes = fs::read(Program::PATH).unwrap();
    fs::remove_file(&copy).unwrap();
    let (from, to) = (real.as_bytes(), real.replace(number, OTHER));
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty(), "the program holds its version as text");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    fs::write(&copy, bytes).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(version(&copy), to);
    copy
}

/// Whoever stops a service does not start a successor: a SIGTERM ends the view also where SIGUSR2 comes with it.
#[test]
fn a_stop_wins() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    // Both wait for it then; it reads the one with the lower number first, which is SIGUSR2.
    for signal in [Signal::STOP, Signal::TERM, Signal::USR2, Signal::CONT] {
        service.signal(signal);
    }
    assert_eq!(service.ended().code(), Some(0), "{}", service.log());
    assert!(service.stored().is_empty() && mounts::at(service.path()).is_none(), "{}", service.log());
}

/// SIGUSR2: exit 75, the mount stays, the successor continues; back and forth between two versions, under load.
#[test]
fn two_versions_back_and_forth() {
    need!(Root, Fuse, Nix, Busybox);
    let fixture = Fixture::new();
    let busybox = load::add_busybox(&fixture.store);
    let many = load::add_many(&fixture.store, 2000);
    let mut service = Service::new(&fixture.store).with([
        "--system",
        &fixture.system.path,
        "--root",
        &busybox.path,
        "--root",
        &many.path,
    ]);
    let dir = crate::util::scratch();
    let binaries = [another_version(dir.path()), PathBuf::from(Program::PATH)];
    service.start_ready();
    let mount = mounts::at(service.path()).unwrap();
    let members = [&fixture.data, &fixture.file, &busybox, &many].map(|member| member.base.as_str());
    let running = Load::start(service.path(), &fixture.store, members, Some(&busybox), 4);
    let mut handed_over = 0;
    for round in 0..20 {
        // Some reading between two hand-overs, with names that are new to the server.
        std::thread::sleep(Duration::from_millis(150));
        let server = pidfd_open(service.server(), PidfdFlags::empty()).unwrap();
        service.signal(Signal::USR2);
        let status = service.ended();
        assert_eq!(status.code(), Some(75), "{}", service.log());
        assert!(mounts::at(service.path()).is_some_and(|now| now.source == mount.source));
        // It was killed; on a busy machine it may end a moment later.
        assert_eq!(wait_readable([&server], Instant::now() + DEADLINE), [true], "its server still runs");
        service.binary.clone_from(&binaries[round % 2]);
        service.start_ready();
        handed_over += 1;
        let exe = fs::read_link(format!("/proc/{}/exe", service.server().as_raw_nonzero())).unwrap();
        assert_eq!(
            exe.canonicalize().unwrap(),
            binaries[round % 2].with_file_name("nix-store-fs-server").canonicalize().unwrap(),
            "the server's version"
        );
    }
    say(&format!("hand-overs between two versions: {handed_over}"));
    running.finish().judge("hand-over");
    assert_eq!(mounts::all().iter().filter(|mount| mount.at == service.path()).count(), 1);
    service.stop();
    assert!(service.stored().is_empty(), "the descriptor is not given back at the end");
}

/// What a reload was asked to show survives a hand-over, and so does a reload after it.
#[test]
fn a_successor_reloads() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let first = fixture.store.profile("web/system-1", &fixture.file.path);
    let link = first.parent().unwrap().join("system");
    std::os::unix::fs::symlink("system-1", &link).unwrap();
    let mut service = Service::new(&fixture.store).with([Path::new("--system"), &link]);
    service.start_ready();
    assert_eq!(tree::list(service.path()).unwrap(), [PathBuf::from(&fixture.file.base)]);
    let absent = service.path().join(&fixture.data.base);
    assert!(!absent.exists());
    // The profile changes while nobody serves.
    service.signal(Signal::USR2);
    assert_eq!(service.ended().code(), Some(75));
    fs::remove_file(&first).unwrap();
    std::os::unix::fs::symlink(&fixture.system.path, &first).unwrap();
    service.start_ready();
    assert!(absent.exists(), "a name that was asked for and missed before");
    assert_eq!(tree::list(service.path()).unwrap().len(), fixture.members().len());
    service.reload_well();
    service.stop();
}

/// State or journal of a version nobody knows: refused with what to do, and the mount is left to who does know.
#[test]
fn unknown_versions_are_refused() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let text = service.path().join(&fixture.data.base).join("text");
    assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    type Change = fn(Vec<u8>) -> Vec<u8>;
    let newer_state: Change = |_| br#"{"version":99,"what":"ever"}"#.to_vec();
    let newer_journal: Change = |mut bytes| {
        bytes[8] = 99;
        bytes
    };
    let foreign_journal: Change = |_| b"something else altogether".to_vec();
    for (file, change, said) in [
        (
            "state",
            newer_state,
            "has version 99, this program knows version 1; start the version that wrote it",
        ),
        (
            "journal/nodes",
            newer_journal,
            "has version 99, this program knows version 1; start the version that wrote it",
        ),
        ("journal/nodes", foreign_journal, "is not a node journal"),
    ] {
        service.kill(Victim::Both);
        let file = service.state().join(file);
        let kept = fs::read(&file).unwrap();
        let changed = change(kept.clone());
        fs::write(&file, &changed).unwrap();
        let before = service.logged(said);
        service.start();
        assert_eq!(service.ended().code(), Some(10), "{}", service.log());
        assert_eq!(service.logged_soon(said, before + 1) - before, 1, "{said}: {}", service.log());
        assert!(mounts::at(service.path()).is_some(), "the mount was not left alone");
        assert_eq!(service.stored(), ["fuse", "ledger", "usage"], "the descriptor was not left alone");
        assert!(fs::read(&file).unwrap() == changed, "what somebody else wrote was not left alone");
        // The version that wrote it can still resume.
        fs::write(&file, kept).unwrap();
        service.start_ready();
        load::drop_kernel_caches();
        assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    }
    service.stop();
}
