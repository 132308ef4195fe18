//! A monitor that cannot get stuck: whatever hangs, dies or is damaged around it, it serves or ends with a reason, and
//! SIGTERM ends it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Signal, kill_process};

use crate::util::collecting::Collecting;
use crate::util::fixture::Fixture;
use crate::util::program::{Finished, Program, unique_name};
use crate::util::service::{Service, Victim};
use crate::util::{DEADLINE, mounts, thief, tree};

fn service(fixture: &Fixture) -> Service {
    Service::new(&fixture.store).with(["--system", &fixture.system.path])
}

/// Reads a file on a thread of its own, as it may hang.
fn read(file: PathBuf) -> Receiver<Result<Vec<u8>, String>> {
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(fs::read(file).map_err(|error| error.to_string())));
    told
}

/// `reload` on a thread of its own.
fn reload(service: &Service) -> Receiver<Finished> {
    let (tell, told) = channel();
    let name = service.name.clone();
    std::thread::spawn(move || tell.send(Program::new().args(["reload", &name]).run()));
    told
}

fn wait_for(service: &Service, what: &str) {
    let until = Instant::now() + DEADLINE;
    while service.logged(what) == 0 {
        assert!(Instant::now() < until, "'{what}' is not logged: {}", service.log());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A successor serves what it inherits at once, though the Nix store answers only later; the service manager is told to
/// wait, and READY=1 comes with the closure.
#[test]
fn a_successor_serves_while_the_store_is_locked() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    let text = service.path().join(&fixture.data.base).join("text");
    service.kill(Victim::Both);
    let collecting = Collecting::begin(&fixture.store);
    let from = service.heard();
    service.start();
    let seen = read(text).recv_timeout(DEADLINE / 2);
    assert_eq!(seen, Ok(Ok(b"hello\n".to_vec())), "nobody answers: {}", service.log());
    assert!(service.messages()[from..].iter().all(|message| !message.contains_key("READY")));
    drop(collecting);
    service.wait_ready(from);
    service.stop();
}

/// A successor that cannot even open the store's directory, as the disk does not answer, can be ended; and it serves when the
/// disk answers again.
#[test]
fn a_successor_whose_disk_hangs() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    for recovers in [false, true] {
        service.start_ready();
        service.kill(Victim::Both);
        let disk = mounts::Silent::mount(&fixture.store.root().join("nix"));
        let from = service.heard();
        let seen = read(service.path().join(&fixture.data.base).join("text"));
        service.start();
        service.wait_logged("taking over the view", if recovers { 2 } else { 1 });
        if recovers {
            service.wait_logged("readers wait", 2);
            drop(disk);
            service.wait_ready(from);
            assert_eq!(seen.recv_timeout(DEADLINE), Ok(Ok(b"hello\n".to_vec())), "{}", service.log());
            service.stop();
        } else {
            service.signal(Signal::TERM);
            assert_eq!(service.ended().code(), Some(0), "{}", service.log());
            assert!(seen.recv_timeout(DEADLINE).expect("an answer").is_err(), "{}", service.log());
            assert!(service.stored().is_empty() && mounts::at(service.path()).is_none());
        }
    }
}

/// A monitor that was killed before any server had begun leaves a view that the next one serves.
#[test]
fn a_view_that_no_server_had_begun_is_taken_over() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    // Nobody else's server may read the device while this is held: the first one waits.
    fs::create_dir_all(service.state()).unwrap();
    fs::set_permissions(service.state(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    service.start();
    let until = Instant::now() + DEADLINE;
    while !service.state().join("state").exists() {
        assert!(Instant::now() < until, "{}", service.log());
        std::thread::yield_now();
    }
    service.kill(Victim::Both);
    service.start_ready();
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}

/// What cannot be taken over is unmounted, and the view mounted again: a mount without a journal or without a state.
#[test]
fn a_mount_of_which_too_little_is_known_is_mounted_again() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    for missing in ["journal/nodes", "state"] {
        service.start_ready();
        service.kill(Victim::Both);
        fs::remove_file(service.state().join(missing)).unwrap();
        service.start_ready();
        assert_eq!(mounts::all().iter().filter(|mount| mount.at == service.path()).count(), 1, "{missing}");
        let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
        tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
        assert_eq!(service.logged_soon("cannot be taken over", 1), 1, "{missing}: {}", service.log());
        service.stop();
        fs::remove_file(service.path().with_file_name("stderr")).unwrap();
    }
}

/// `umount -f` of a view in use, and an abort through fusectl, end the connection and not the mount: it is unmounted, the
/// program fails and says why, and the next start serves. `umount -f` of an idle view is an unmount like any other.
#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    rustix::mount::unmount(service.path(), UnmountFlags::FORCE).unwrap();
    assert_eq!(service.ended().code(), Some(0), "{}", service.log());
    for how in ["umount -f", "fusectl"] {
        service.start_ready();
        let open = File::open(service.path().join(&fixture.data.base).join("text")).unwrap();
        match how {
            "fusectl" => mounts::abort(thief::connection(service.path())),
            _ => {
                assert!(rustix::mount::unmount(service.path(), UnmountFlags::FORCE).is_err(), "it is in use")
            }
        }
        assert_eq!(service.ended().code(), Some(11), "{how}: {}", service.log());
        assert!(service.log().contains("the FUSE connection was aborted"), "{how}: {}", service.log());
        assert!(mounts::at(service.path()).is_none(), "{how}: a dead mount is left");
        assert!(service.stored().is_empty(), "{how}: the descriptor is not given back");
        drop(open);
    }
    service.start_ready();
    assert_eq!(tree::list(service.path()).unwrap().len(), fixture.members().len());
    service.stop();
}

/// A view that was unmounted in one place and is mounted in another is served there, also by the next server.
#[test]
fn a_view_that_only_a_container_still_has_is_served_on() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    let elsewhere = crate::util::scratch();
    rustix::mount::mount_bind(service.path(), elsewhere.path()).unwrap();
    let copy = mounts::Own::adopt(elsewhere.path());
    rustix::mount::mount_change(elsewhere.path(), rustix::mount::MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::unmount(service.path(), UnmountFlags::empty()).unwrap();
    let text = elsewhere.path().join(&fixture.data.base).join("text");
    assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    for _ in 0..3 {
        service.kill(Victim::Server);
        let fresh = elsewhere.path().join(&fixture.data.base).join("names/a space");
        let seen = read(fresh).recv_timeout(DEADLINE / 2);
        assert_eq!(seen, Ok(Ok(b"a space".to_vec())), "{}", service.log());
    }
    drop(copy);
    assert_eq!(service.ended().code(), Some(0), "unmounted everywhere: {}", service.log());
}

/// A journal that is damaged under a running monitor: nobody can resume, and nobody waits for ever.
#[test]
fn a_journal_that_is_damaged_ends_the_view_with_the_reason() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    let text = service.path().join(&fixture.data.base).join("text");
    assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    fs::write(service.state().join("journal/nodes"), "something else altogether").unwrap();
    service.kill(Victim::Server);
    let seen = read(service.path().join(&fixture.data.base).join("names/a space")).recv_timeout(DEADLINE / 2);
    assert!(matches!(seen, Ok(Err(_))), "a reader waits: {seen:?}\n{}", service.log());
    assert_eq!(service.ended().code(), Some(11), "{}", service.log());
    assert!(service.log().contains("is not a node journal"), "{}", service.log());
    assert!(mounts::at(service.path()).is_none());
    service.start_ready();
    assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    service.stop();
}

/// Who waits for a reload is told when the view is handed over or ends.
#[test]
fn clients_are_told_of_the_end() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    for (signal, code, said) in
        [(Signal::USR2, 75, "handed over to another process"), (Signal::TERM, 0, "was unmounted before")]
    {
        service.start_ready();
        let collecting = Collecting::begin(&fixture.store);
        let from = service.heard();
        // The reload is that of the client, whose request was read before it began.
        let client = reload(&service);
        service.wait(from, "RELOADING");
        service.signal(signal);
        assert_eq!(service.ended().code(), Some(code), "{}", service.log());
        let finished = client.recv_timeout(DEADLINE).expect("an answer");
        assert_eq!(finished.status.code(), Some(8), "{finished:?}");
        assert!(finished.stderr.contains(said), "{finished:?}");
        drop(collecting);
    }
}

/// Clients that say nothing delay nobody.
#[test]
fn silent_clients_delay_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    let control = service.state().join("control");
    let mut silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&control).unwrap()).collect();
    for client in silent.iter_mut().step_by(2) {
        client.write_all(b"rel").unwrap();
    }
    service.reload_well();
    // They are dropped after a while.
    for mut client in silent {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let end = client.read(&mut [0]);
        let closed =
            end.as_ref().map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |n| *n == 0);
        assert!(closed, "a silent client is kept: {end:?}");
    }
    service.stop();
}

/// A server that does nothing any more: a reload waits for it and says so, and SIGTERM ends both.
#[test]
fn a_server_that_is_stopped_stops_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    let server = service.server();
    kill_process(server, Signal::STOP).unwrap();
    let client = reload(&service);
    wait_for(&service, "still waiting");
    service.signal(Signal::TERM);
    assert_eq!(service.ended().code(), Some(0), "{}", service.log());
    assert_eq!(client.recv_timeout(DEADLINE).expect("an answer").status.code(), Some(8));
    assert!(mounts::at(service.path()).is_none());
}

/// SIGTERM ends a start that hangs: in the Nix store, at a mount point that does not answer, before a server serves.
#[test]
fn sigterm_ends_a_start_that_hangs() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    // In the store.
    let collecting = Collecting::begin(&fixture.store);
    let mut locked = service(&fixture);
    locked.start();
    locked.wait_locked();
    locked.signal(Signal::TERM);
    assert_eq!(locked.ended().code(), Some(0), "{}", locked.log());
    drop(collecting);

    // At the mount point: it is below a file system whose server does nothing.
    let hanging = fixture.mount();
    let children = format!("/proc/{0}/task/{0}/children", hanging.pid().as_raw_nonzero());
    let children = fs::read_to_string(children).unwrap();
    let server = children.split_whitespace().next_back().unwrap().parse().unwrap();
    let server = rustix::process::Pid::from_raw(server).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    let mut at_the_place = service(&fixture);
    let place = hanging.path().join("nobody/asked/for/this");
    let usual = at_the_place.path().to_owned();
    at_the_place.replace(&usual, &place);
    at_the_place.start();
    wait_for(&at_the_place, "the mount point does not answer yet");
    at_the_place.signal(Signal::TERM);
    assert_eq!(at_the_place.ended().code(), Some(0), "{}", at_the_place.log());
    kill_process(server, Signal::CONT).unwrap();
    drop(hanging);
}

/// A server that cannot start at all: the new view ends with the reason, and nothing is left. What may pass is tried again
/// first, with growing pauses.
#[test]
fn a_new_view_that_no_server_can_serve_ends() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let scratch = crate::util::scratch();
    let refuse = crate::util::compile("refuse.c", scratch.path());
    let (no_memory, not_known) = (Errno::NOMEM.raw_os_error(), Errno::NOSYS.raw_os_error());
    // Only the server maps so many bytes at once.
    let ledger = format!("mmap={}", nix_store_fs::fuse::ledger::BYTES);
    for (call, errno, code, said, tries) in [
        (ledger.as_str(), no_memory, 1, "mapping the ledger: Cannot allocate memory", 9),
        ("openat2", not_known, 7, "the store directory cannot be opened with openat2(2)", 0),
    ] {
        let (name, at) = (unique_name(), scratch.path().join(call));
        let program = fixture.program().args(["--name", &name]).arg(&at);
        let refuse = refuse.display().to_string();
        let finished = program.inside([refuse.as_str(), &errno.to_string(), call]).run();
        assert_eq!(finished.status.code(), Some(code), "{finished:?}");
        let last = finished.stderr.lines().last().unwrap();
        assert!(
            last.starts_with("nix-store-fs: the server failed to start") && last.contains(said),
            "{finished:?}"
        );
        let exited = finished
            .stderr
            .lines()
            .filter(|line| line.contains("the server ") && line.contains("exit"))
            .count();
        assert_eq!(exited - usize::from(last.contains("exit")), tries, "{finished:?}");
        assert!(!at.exists(), "the mount point is left");
        assert!(mounts::all().iter().all(|mount| mount.source != format!("nix-store-fs:{name}")));
        assert!(!Path::new("/run/nix-store-fs/.state").join(&name).exists(), "the state is left");
    }
}

/// Whatever lies over the mount, wherever it was moved, and if only a bind copy is left: a successor serves the connection
/// that lives, and at the end the view is unmounted where it is.
#[test]
fn a_view_is_taken_over_wherever_it_is() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let (dir, elsewhere) = (crate::util::scratch(), crate::util::scratch());
    let (above, moved) = (dir.path().join("above"), dir.path().join("moved"));
    fs::create_dir_all(above.join("view")).unwrap();
    let mut service = service(&fixture);
    let usual = service.path().to_owned();
    service.replace(&usual, &above.join("view"));
    let text = |view: &Path| view.join(&fixture.data.base).join("text");
    let take_over = |service: &mut Service, at: &Path| {
        for victim in [Victim::Both, Victim::Monitor] {
            service.kill(victim);
            service.start_ready();
            assert_eq!(
                read(text(at)).recv_timeout(DEADLINE / 2),
                Ok(Ok(b"hello\n".to_vec())),
                "{}",
                service.log()
            );
        }
    };
    service.start_ready();
    // Covered.
    let view = above.join("view");
    let held = File::open(&view).unwrap();
    let inside = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held)));
    let cover = mounts::Own::mount("tmpfs", &view, "");
    take_over(&mut service, &inside);
    drop((cover, held));
    // Moved.
    fs::rename(&above, &moved).unwrap();
    take_over(&mut service, &moved.join("view"));
    assert!(!above.exists(), "it was mounted again");
    // A bind copy is all that is left of it.
    rustix::mount::mount_bind(moved.join("view"), elsewhere.path()).unwrap();
    let _copy = mounts::Own::adopt(elsewhere.path());
    rustix::mount::unmount(moved.join("view"), UnmountFlags::empty()).unwrap();
    take_over(&mut service, elsewhere.path());
    service.signal(Signal::TERM);
    assert_eq!(service.ended().code(), Some(0), "{}", service.log());
    assert!(service.stored().is_empty());
}

/// The state directory of a running view is removed: as long as its server lives nothing happens; when it dies nobody can
/// resume, and nobody waits for ever. Until then there is nothing to hand over.
#[test]
fn a_state_directory_that_is_removed() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    fs::remove_dir_all(service.state()).unwrap();
    service.signal(Signal::USR2);
    wait_for(&service, "cannot hand over");
    let text = service.path().join(&fixture.data.base).join("text");
    assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    service.kill(Victim::Server);
    assert!(read(service.path().join("nosuch")).recv_timeout(DEADLINE / 2).is_ok(), "{}", service.log());
    assert_eq!(service.ended().code(), Some(11), "{}", service.log());
    assert!(mounts::at(service.path()).is_none());
    service.start_ready();
    service.stop();
}
