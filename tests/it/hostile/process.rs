//! What the process has that a container's requests reach first.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix_store_fs::sandbox::KEPT;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::CapabilitySet;

use crate::util::descriptors::access;
use crate::util::fixture::Fixture;
use crate::util::program::Program;
use crate::util::scratch;
use crate::util::service::Service;

/// What cannot be used against anybody is not there: Nix's library, what the service manager and the shell have set, what they
/// have left open.
#[test]
fn a_server_has_neither_nixs_library_nor_an_environment() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    // Where processors can be kept awake there is one descriptor more.
    let arguments = ["--system", &fixture.system.path, "--idle-polling", "never"];
    let mut service = Service::new(&fixture.store).with(arguments);
    service.start_ready();
    let server = service.server();
    let maps = of(server, "maps");
    assert!(maps.contains("nix-store-fs-server"), "{maps}");
    for library in ["libnix", "libcurl", "libsqlite", "libgit2"] {
        assert!(!maps.contains(library), "{maps}");
    }
    let monitor = of(service.monitor(), "maps");
    assert!(monitor.contains("libnixstore"), "the test shows nothing: {monitor}");
    // Standard ones and the monitor's socket again; device, store, journal and its directory, lock, watch of the store.
    let open = fs::read_dir(format!("/proc/{}/fd", server.as_raw_nonzero())).unwrap();
    let mut open: Vec<_> = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect();
    open.sort();
    let named = |path: &Path| open.iter().filter(|found| *found == path).count();
    assert_eq!(named(Path::new("/dev/fuse")), 1, "{open:?}");
    assert_eq!(named(&fixture.store.physical()), 1, "{open:?}");
    for file in ["journal", "journal/nodes", "server"] {
        assert_eq!(named(&service.state().join(file)), 1, "{open:?}");
    }
    assert_eq!(named(Path::new("anon_inode:inotify")), 1, "{open:?}");
    // It could fill a third file otherwise. Who holds the lock is written down by the monitor.
    let lock = service.state().join("server");
    assert_eq!(access(server, &lock), [OFlags::RDONLY]);
    assert_eq!(fs::read_to_string(lock).unwrap(), format!("{}\n", server.as_raw_nonzero()));
    let sockets =
        open.iter().filter(|found| found.to_string_lossy().starts_with("socket:")).collect::<BTreeSet<_>>();
    assert_eq!((sockets.len(), named(Path::new("/dev/null"))), (1, 1), "{open:?}");
    assert_eq!(open.len(), 10, "{open:?}");
    // Beside what tests stop it by.
    let set = of(server, "environ");
    assert!(set.split_terminator('\0').all(|variable| variable.starts_with("NSF_")), "{set}");
    service.stop();
}

fn of(process: Pid, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", process.as_raw_nonzero())).unwrap()
}

/// Both programs belong together; the one that is missing is named.
#[test]
fn a_program_without_its_server_says_so() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let program = Program::install(dir.path());
    let server = dir.path().join("nix-store-fs-server");
    let starts_not = |why: &str| {
        let program = fixture.program().binary(&program).arg(dir.path().join("view"));
        let finished = program.run();
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let said = "nix-store-fs-server'; it belongs beside the program itself";
        assert!(finished.stderr.contains(said) && finished.stderr.contains(why), "{finished:?}");
    };
    fs::remove_file(&server).unwrap();
    starts_not("No such file");
    fs::write(&server, "").unwrap();
    starts_not("Permission denied");
}

/// What `/proc` says of each thread of a process.
fn threads(process: Pid) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    // One may have done its work and ended.
    let read = |task: &Path| {
        Some((fs::read_to_string(task.join("comm")).ok()?, fs::read_to_string(task.join("status")).ok()?))
    };
    tasks
        .filter_map(|task| read(&task.unwrap().path()))
        .map(|(name, status)| Thread { name: name.trim_end().to_owned(), status })
        .collect()
}

struct Thread {
    name: String,
    status: String,
}

impl Thread {
    fn has(&self, key: &str) -> &str {
        let line = self.status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim()
    }

    /// Its effective and its permitted capabilities, which are the same; none that it or a program could get.
    fn capabilities(&self) -> u64 {
        let set = |key| u64::from_str_radix(self.has(key), 16).unwrap();
        assert_eq!(set("CapEff"), set("CapPrm"), "{}: {}", self.name, self.status);
        assert_eq!((set("CapInh"), set("CapAmb")), (0, 0), "{}: {}", self.name, self.status);
        set("CapPrm")
    }
}

/// What a server could use against the host is given up: it shows in `/proc`, and it cannot be had again.
#[test]
fn a_server_has_no_right_that_it_does_not_need() {
    need!(Root, Fuse, Nix, Landlock, Passthrough);
    let fixture = Fixture::new();
    for io in ["cached", "passthrough"] {
        let arguments = ["--system", &fixture.system.path, "--sandbox", "require", "--io", io];
        let mut service = Service::new(&fixture.store).with(arguments);
        service.start_ready();
        let server = service.server();
        let threads = threads(server);
        assert!(threads.len() > 4, "{}", threads.len());
        for thread in &threads {
            assert_eq!(thread.capabilities(), 0, "{io}: {}", thread.status);
            assert_eq!(thread.has("CapBnd"), format!("{:016x}", 0), "{io}: {}", thread.status);
            assert_eq!(
                (thread.has("NoNewPrivs"), thread.has("Seccomp")),
                ("1", "2"),
                "{io}: {}",
                thread.status
            );
        }
        let limits = of(server, "limits");
        let limit = |name: &str| -> Vec<u64> {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.split_whitespace().take(2).map(|limit| limit.parse().unwrap()).collect()
        };
        assert_eq!(limit("Max core file size"), [0, 0], "{limits}");
        assert_eq!(limit("Max locked memory"), [2 << 20; 2], "{limits}");
        assert!(limit("Max file size").iter().all(|bytes| *bytes <= 1 << 30), "{limits}");
        let program = service.path().join(&fixture.data.base).join("program");
        assert_eq!(fs::read(&program).unwrap(), b"#!/bin/sh\necho ran\n");
        // With passthrough the kernel opens the store's file to execute it, with the rights of who registered it.
        assert_eq!(Command::new(&program).output().unwrap().stdout, b"ran\n", "{io}");
        service.stop();
    }
}

/// Nobody speaks to the monitor's library but its store, and nobody reaches its parsers but by the server and the control socket. What
/// it does not need for its own work is given up all the same, by every thread.
#[test]
fn a_monitor_keeps_what_mounting_and_nix_need() {
    need!(Root, Fuse, Nix, Landlock);
    let fixture = Fixture::new();
    let arguments = ["--system", &fixture.system.path, "--sandbox", "require", "--report", "--watch"];
    let mut service = Service::new(&fixture.store).with(arguments);
    service.start_ready();
    // Both threads of the report have begun.
    assert!(!service.path().join(&fixture.outside.base).exists());
    service.wait_logged("a store path was asked for", 1);
    let listed = KEPT.iter().fold(0, |all, kept| all | kept.bit.bits());
    let threads = threads(service.monitor());
    for name in ["log", "store", "notify", "missed", "asked"] {
        assert!(threads.iter().any(|thread| thread.name == name), "the test shows nothing of {name}");
    }
    for thread in &threads {
        assert_eq!(thread.capabilities() & !listed, 0, "{}: {}", thread.name, thread.status);
        assert_eq!(thread.has("CapBnd"), format!("{:016x}", 0), "{}: {}", thread.name, thread.status);
        if thread.name == "store" {
            // The store is open.
            let opening = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
            assert_eq!(thread.capabilities() & opening.bits(), 0, "{}", thread.status);
        }
        // Whether the store has a name, whatever its mode; who asked, whatever is hidden in /proc.
        for (name, looks) in
            [("missed", CapabilitySet::DAC_READ_SEARCH), ("asked", CapabilitySet::SYS_PTRACE)]
        {
            let more = thread.capabilities() & !looks.bits();
            assert!(thread.name != name || more == 0, "{}", thread.status);
        }
        let calls = (thread.has("NoNewPrivs"), thread.has("Seccomp"));
        assert_eq!(calls, ("1", "2"), "{}: {}", thread.name, thread.status);
    }
    service.stop();
}

/// What a monitor cannot give up it says in one line, or with `--sandbox require` by its end, before anything is mounted.
#[test]
fn what_a_monitor_cannot_give_up_it_says() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let refuse = crate::util::compile("refuse.c", dir.path()).display().to_string();
    let not_implemented = Errno::NOSYS.raw_os_error().to_string();
    for (call, part) in
        [("landlock_create_ruleset", "access to files (Landlock of Linux 5.13)"), ("capset", "capabilities")]
    {
        let program = |how| {
            let program = fixture.program().inside([&*refuse, &*not_implemented, call]);
            program.args(["--report", "--sandbox", how])
        };
        let finished = program("require").arg(dir.path().join("view")).run();
        assert_eq!(finished.status.code(), Some(7), "{finished:?}");
        let why = format!("does not let the monitor give up its rights: {part}");
        assert!(finished.stderr.contains(&why), "{finished:?}");
        assert!(!dir.path().join("view").exists());
        let mut view = program("best").mount();
        assert!(view.path().join(&fixture.data.base).exists());
        view.signal(Signal::TERM);
        assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
        let said = format!("the monitor keeps rights that it does not need: {part}");
        assert_eq!(view.stderr().matches(&said).count(), 1, "{}", view.stderr());
    }
}

/// One list: what the unit gives and what the monitor keeps of that. Naming who uses a view is worth no right that
/// a service has all its life, and takes one of root's that is there anyway.
#[test]
fn the_unit_gives_what_the_monitor_keeps() {
    let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("nixos/unit.nix")).unwrap();
    let list = unit.split_once("CapabilityBoundingSet = [").unwrap().1.split_once("];").unwrap().0;
    let given: BTreeSet<_> = list.split('"').filter(|word| word.starts_with("CAP_")).collect();
    let kept: BTreeSet<_> = KEPT.iter().map(|kept| kept.name).collect();
    assert_eq!(kept.symmetric_difference(&given).copied().collect::<Vec<_>>(), ["CAP_SYS_PTRACE"]);
}

/// A server that a fault of its own ends, as a filter that is too narrow does, is not started for ever.
#[test]
fn a_first_server_that_crashes_three_times_ends_the_start() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let program = Program::install(dir.path());
    let server = dir.path().join("nix-store-fs-server");
    fs::remove_file(&server).unwrap();
    let crashes = crate::util::compile("crashes.c", dir.path());
    fs::rename(crashes, &server).unwrap();
    let finished = fixture.program().binary(program).arg(dir.path().join("view")).run();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert_eq!(finished.stderr.matches("restarting it").count(), 2, "{finished:?}");
    assert!(finished.stderr.contains("the server failed to start: signal: 31 (SIGSYS)"), "{finished:?}");
    assert!(finished.stderr.contains("use --sandbox none"), "{finished:?}");
}
