//! Where a view is mounted: dead mounts in the way, places spelled in other ways, and what is left behind.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::util::fixture::Fixture;
use crate::util::namespace::Namespace;
use crate::util::program::{Mounted, Program, unique_name};
use crate::util::service::{Service, Victim};
use crate::util::{DEADLINE, mounts, tree, wait_readable};

/// The kernel answers stat(2) of a dead mount from what it has cached. That does not make the mount alive.
#[test]
fn a_dead_mount_that_was_looked_at_is_cleared() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    fs::metadata(service.path()).unwrap();
    service.kill(Victim::Both);
    service.lose_descriptors();
    fs::metadata(service.path()).expect("the kernel has the attributes cached");
    service.start_ready();
    assert_eq!(mounts::all().iter().filter(|mount| mount.at == service.path()).count(), 1);
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}

/// A dead mount of the same view is cleared, however its place is spelled.
#[test]
fn a_dead_mount_is_cleared_however_its_place_is_spelled() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = crate::util::scratch();
    let at = dir.path().join("a/view");
    fs::create_dir_all(&at).unwrap();
    fs::create_dir(dir.path().join("b")).unwrap();
    symlink("a/view", dir.path().join("link")).unwrap();
    symlink("link", dir.path().join("link-to-link")).unwrap();
    symlink("a", dir.path().join("parent")).unwrap();
    let spelled = |text: &str| dir.path().join(text).into_os_string();
    for place in [
        OsString::from("a/view"),
        "./a/view".into(),
        "a/view/".into(),
        "b/../a/view".into(),
        "a/view/../view".into(),
        spelled("a/view/"),
        spelled("a/view/."),
        spelled("b/../a/view"),
        spelled("link"),
        spelled("link/"),
        spelled("link-to-link"),
        spelled("parent/view"),
    ] {
        let name = unique_name();
        let _dead = leave_dead(mount_named(&fixture, &name, &at));
        let mut view =
            in_dir(fixture.program(), dir.path()).args(["--name", &name]).arg(&place).mount_at(&at);
        assert_eq!(mounts_at(&at), 1, "{place:?}");
        assert_eq!(tree::list(&at).unwrap().len(), fixture.members().len(), "{place:?}");
        view.signal(Signal::TERM);
        assert_eq!(view.end().code(), Some(0), "{place:?}: {}", view.stderr());
        assert_eq!(mounts_at(&at), 0, "{place:?}");
    }
}

/// The same at the default mount point, which is removed at the end as if nobody had died.
#[test]
fn a_dead_mount_is_cleared_at_the_default_mount_point() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let name = unique_name();
    let at = Path::new("/run/nix-store-fs").join(&name);
    let program = || fixture.program().args(["--name", &name]);
    let _dead = leave_dead(program().mount_at(&at));
    let mut view = program().mount_at(&at);
    assert_eq!(tree::list(&at).unwrap().len(), fixture.members().len());
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(!at.exists(), "the mount point is left behind");
}

/// Several dead mounts on top of each other.
#[test]
fn stacked_dead_mounts_are_cleared() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = crate::util::scratch();
    let name = unique_name();
    let _dead = leave_dead(mount_named(&fixture, &name, dir.path()));
    // Nobody but the program mounts on a dead mount. A bind of it is another mount of the same dead file system.
    let other = crate::util::scratch();
    rustix::mount::mount_bind(dir.path(), other.path()).unwrap();
    let _other = mounts::Own::adopt(other.path());
    for _ in 0..2 {
        rustix::mount::mount_bind(other.path(), dir.path()).unwrap();
    }
    assert_eq!(mounts_at(dir.path()), 3);
    let view = mount_named(&fixture, &name, dir.path());
    assert_eq!(mounts_at(dir.path()), 1);
    assert_eq!(tree::list(view.path()).unwrap().len(), fixture.members().len());
}

/// A view of the same name whose state lies elsewhere, as that of another user does, is not cleared: neither while its
/// server answers, nor while that hangs.
#[test]
fn a_live_view_of_the_same_name_is_not_cleared() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = crate::util::scratch();
    let name = unique_name();
    let mut view = mount_named(&fixture, &name, dir.path());
    let server = server_of(view.pid());
    // Another /run: another state.
    let script =
        "mkdir -p /run/nix-store-fs && mount -t tmpfs -o mode=755 none /run/nix-store-fs && exec \"$@\"";
    let second = || {
        let program = fixture.program().inside(["unshare", "-m", "sh", "-c", script, "sh"]);
        program.args(["--name", &name]).arg(dir.path()).run()
    };
    let refused = second();
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(refused.stderr.contains(&format!("nix-store-fs:{name}")), "{refused:?}");
    kill_process(server, Signal::STOP).unwrap();
    let refused = second();
    kill_process(server, Signal::CONT).unwrap();
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(refused.stderr.contains(&format!("nix-store-fs:{name}")), "{refused:?}");
    assert!(refused.stderr.contains("does not answer"), "{refused:?}");
    assert_eq!(tree::list(dir.path()).unwrap().len(), fixture.members().len());
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
}

fn mounts_at(at: &Path) -> usize {
    mounts::all().iter().filter(|mount| mount.at == at).count()
}

fn mount_named(fixture: &Fixture, name: &str, at: &Path) -> Mounted {
    fixture.program().args(["--name", name]).arg(at).mount_at(at)
}

/// The program with this working directory.
fn in_dir(program: Program, dir: &Path) -> Program {
    program.inside([OsString::from("env"), "-C".into(), dir.into()])
}

fn server_of(monitor: Pid) -> Pid {
    let number = monitor.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
    Pid::from_raw(children.split_whitespace().next_back().unwrap().parse().unwrap()).unwrap()
}

/// Kills both processes of a view, and nobody keeps the device. The mount is there until what this returns is dropped.
#[must_use]
fn leave_dead(mut view: Mounted) -> Mounted {
    let server = server_of(view.pid());
    let process = pidfd_open(server, PidfdFlags::empty()).unwrap();
    view.signal(Signal::KILL);
    view.end();
    let _gone = kill_process(server, Signal::KILL);
    assert_eq!(wait_readable([&process], Instant::now() + DEADLINE), [true], "the server does not die");
    let dead = fs::read_dir(view.path()).unwrap_err();
    assert_eq!(rustix::io::Errno::from_io_error(&dead), Some(rustix::io::Errno::NOTCONN));
    view
}

/// A server that outlives its monitor serves on wherever the view is mounted. The next view of the name cannot be served
/// before that one ends: the start is refused before anything is mounted, says who is in the way, and harms nothing.
#[test]
fn a_view_that_an_earlier_server_still_serves_is_refused() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_alone();
    let until = Instant::now() + DEADLINE;
    while service.logged("the view answers") == 0 {
        assert!(Instant::now() < until, "{}", service.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    let server = service.server();
    let holder = Namespace::new();
    service.kill_monitor_only();
    let state = || {
        let entry = |name: PathBuf| (name.clone(), fs::read(service.state().join(name)).ok());
        tree::list(&service.state()).unwrap().into_iter().map(entry).collect::<Vec<_>>()
    };
    let before = state();
    let other = crate::util::scratch();
    let start = |at: &Path| {
        let program = Program::on(&fixture.store).args(["--system", &fixture.system.path, "--name"]);
        program.arg(&service.name).arg(at).run()
    };
    let server_pid = format!("(pid {})", server.as_raw_nonzero());
    for at in [service.path(), other.path()] {
        let refused = start(at);
        assert_eq!(refused.status.code(), Some(6), "{refused:?}");
        let place = format!("'{}'", service.path().display());
        let holder = format!("sleep ({})", holder.pid());
        for part in [&server_pid, &place, "monitor that has died", &holder] {
            assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        }
        assert_eq!(state(), before);
    }
    assert_eq!(tree::list(service.path()).unwrap().len(), fixture.members().len());
    // Nor can it be reloaded, and who asks for that is told the same.
    let refused = service.reload();
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    for part in ["cannot reload", &server_pid, "monitor that has died"] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }

    rustix::mount::unmount(service.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    for at in [service.path(), other.path()] {
        let refused = start(at);
        assert_eq!(refused.status.code(), Some(6), "{refused:?}");
        let holder = format!("sleep ({})", holder.pid());
        for part in [&server_pid, "monitor that has died", &holder] {
            assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        }
        assert_eq!(mounts_at(at), 0, "mounted where nobody would answer");
        assert_eq!(state(), before);
    }
    let listed = holder.inside(&["ls", &service.path().display().to_string()]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), fixture.members());
    // With the last mount the server ends, and then the name is free. Other tests make mount namespaces as well.
    let process = pidfd_open(server, PidfdFlags::empty()).unwrap();
    drop(holder);
    assert_eq!(wait_readable([&process], Instant::now() + DEADLINE), [true], "the server does not end");
    service.start_ready();
    assert_eq!(tree::list(service.path()).unwrap().len(), fixture.members().len());
    service.stop();
}

/// A start that follows an unmount at once waits for the server to end.
#[test]
fn a_view_may_start_right_after_an_unmount() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let (dir, name) = (crate::util::scratch(), unique_name());
    for _ in 0..5 {
        let mut view = mount_named(&fixture, &name, dir.path());
        view.signal(Signal::KILL);
        view.end();
        while mounts_at(dir.path()) > 0 {
            rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
    let view = mount_named(&fixture, &name, dir.path());
    assert_eq!(tree::list(view.path()).unwrap().len(), fixture.members().len());
}

/// Every directory that was made for a view goes with it, and one that somebody uses stays.
#[test]
fn directories_made_for_a_view_go_with_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = crate::util::scratch();
    let (first, at) = (dir.path().join("a"), dir.path().join("a/b/view"));
    let name = unique_name();
    let end = |mut view: Mounted| {
        view.signal(Signal::TERM);
        assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    };
    end(mount_named(&fixture, &name, &at));
    assert!(!first.exists(), "left behind after a signal");

    let mut view = mount_named(&fixture, &name, &at);
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(!first.exists(), "left behind after an unmount");

    let _dead = leave_dead(mount_named(&fixture, &name, &at));
    end(mount_named(&fixture, &name, &at));
    assert!(!first.exists(), "left behind by a view that died");

    let no_fuse =
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec \"$@\"";
    let program = fixture.program().inside(["unshare", "-m", "sh", "-c", no_fuse, "sh"]);
    assert_eq!(program.args(["--name", &name]).arg(&at).run().status.code(), Some(7));
    assert!(!first.exists(), "left behind by a start that failed");

    let view = mount_named(&fixture, &name, &at);
    fs::write(first.join("kept"), "").unwrap();
    end(view);
    assert!(first.join("kept").exists() && !first.join("b").exists());
}

/// A mount point need not be text: the state that a successor needs is written all the same.
#[test]
fn a_mount_point_that_is_not_utf8() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let (dir, name) = (crate::util::scratch(), unique_name());
    let at = dir.path().join(OsStr::from_bytes(b"not-utf8-\xff/view"));
    // Where no other test reads the mount table.
    let program = fixture.program().inside(["unshare", "-m"]).args(["--name", &name]).arg(&at);
    let mut view = program.mount_at(&at);
    assert!(Path::new("/run/nix-store-fs/.state").join(&name).join("state").exists(), "{}", view.stderr());
    assert!(!view.stderr().contains("would not survive"), "{}", view.stderr());
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(tree::list(dir.path()).unwrap().iter().all(|name| name.to_str().is_some()), "left behind");
}
