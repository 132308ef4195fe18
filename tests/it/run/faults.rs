//! What can be missing or broken: one line each, and the code of a failure of this program's own.

use std::time::{Duration, Instant};

use super::{BOTH, Runs, Who, nothing_is_left};
use crate::util::DEADLINE;
use crate::util::hold::arm;
use crate::util::program::Finished;

fn refused(done: &Finished, said: &str) {
    assert_eq!(done.status.code(), Some(125), "{said}: {done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{said}: {done:?}");
    assert!(done.stderr.contains(said), "{said}: {done:?}");
}

#[test]
fn a_device_that_is_absent_or_closed_is_said() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for (who, before, said) in [
        (Who::Root, "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3", "/dev/fuse does not exist"),
        (Who::Root, "mount --bind /dev/null /dev/fuse", "/dev/fuse is not the FUSE device"),
    ] {
        let runs = Runs::by(who);
        let script = format!("{before} && exec \"$@\"");
        let program = runs.with(&[], &["true"]).inside(["unshare", "-m", "sh", "-c", &script, "sh"]);
        refused(&program.run(), said);
        nothing_is_left(runs.fixture.store.root());
    }
    let runs = Runs::by(Who::Nobody);
    let closed = runs.with_device_of("0600", &["--root", &runs.fixture.system.path, "--", "true"]);
    refused(&closed.run(), "/dev/fuse may not be opened");
    nothing_is_left(runs.fixture.store.root());
}

/// Nix is asked while the view is being mounted, so also for one that cannot be. Nothing of that is left.
#[test]
fn the_store_is_asked_before_there_is_a_mount() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let dir = runs.own_dir();
    let (held, asked) = arm(dir.path(), "resolving");
    let program = runs.with_device_of("0600", &["--root", &runs.fixture.system.path, "--", "true"]);
    refused(&program.env("NSF_HOLD", dir.path()).run(), "/dev/fuse may not be opened");
    let until = Instant::now() + DEADLINE;
    while !asked.exists() {
        assert!(Instant::now() < until, "nobody asks");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(held);
    nothing_is_left(runs.fixture.store.root());
    let temporary = runs.fixture.store.root().join("nix/var/nix/temproots");
    assert_eq!(std::fs::read_dir(temporary).unwrap().count(), 0);
}

#[test]
fn a_system_without_user_namespaces_says_what_to_change() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let dir = crate::util::scratch();
    let refuse = crate::util::compile("refuse.c", dir.path()).display().to_string();
    // EPERM and ENOSPC.
    for (errno, said) in [("1", "make user namespaces"), ("28", "as many namespaces as this user may have")] {
        let done = runs.with(&[], &["true"]).through([refuse.as_str(), errno, "unshare"]).run();
        refused(&done, said);
    }
    nothing_is_left(runs.fixture.store.root());
}

#[test]
fn a_store_that_cannot_be_asked_is_said() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let program =
            super::Program::new().args(["run", "--chdir", "/", "--store", "unix:///no/such/socket"]);
        let program = program.args(["--root", &runs.fixture.system.path, "--", "true"]);
        let done = runs.as_user(program).run();
        refused(&done, "/no/such/socket");
        let absent = "/nix/store/00000000000000000000000000000000-absent";
        refused(&runs.program(&["--root", absent, "--", "true"]).run(), "is not valid");
        nothing_is_left(runs.fixture.store.root());
    }
    let runs = Runs::by(Who::Nobody);
    let db = runs.fixture.store.root().join("nix/var/nix/db");
    std::fs::set_permissions(&db, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    std::os::unix::fs::chown(&db, Some(0), Some(0)).unwrap();
    refused(&runs.with(&[], &["true"]).run(), "ermission denied");
    nothing_is_left(runs.fixture.store.root());
}

/// A saved closure needs no store that answers.
#[test]
fn a_saved_closure_needs_no_daemon() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let dir = runs.own_dir();
    let file = dir.path().join("system.json");
    std::fs::write(&file, runs.fixture.program().arg("--dump-closure=json").run().stdout).unwrap();
    let real = format!("unix:///no/such/socket?real={}", runs.fixture.store.physical().display());
    let program = super::Program::new().args(["run", "--chdir", "/", "--store", &real, "--from"]).arg(&file);
    let done = runs.as_user(program.args(["--", "ls", "-1", "/nix/store"])).run();
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), runs.fixture.members(), "{done:?}");
}

/// Nothing of a run is written to a disk.
#[test]
fn a_full_disk_is_no_obstacle() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let full = crate::util::scratch();
        let script = format!(
            "mount -t tmpfs -o size=4k,mode=1777 none {0} && dd if=/dev/zero of={0}/fill bs=4096 count=8 2>/dev/null; exec \"$@\"",
            full.path().display()
        );
        let program = runs.with(&[], &["cat", &format!("{}/text", runs.fixture.data.path)]);
        let program = program.env("TMPDIR", full.path()).env("XDG_RUNTIME_DIR", full.path());
        let wrapped = program.further_inside(["unshare", "-m", "sh", "-c", &script, "sh"]);
        assert_eq!(wrapped.run().stdout, "hello\n", "{who:?}");
    }
}

/// What the kernel does not have is said of a view that is served, and not before each command.
#[test]
fn a_kernel_without_landlock_is_not_spoken_of() {
    need!(Root, Fuse, Nix, UserNamespaces, NixDirectory);
    let runs = Runs::by(Who::Root);
    let dir = crate::util::scratch();
    let refuse = crate::util::compile("refuse.c", dir.path()).display().to_string();
    let not_implemented = rustix::io::Errno::NOSYS.raw_os_error().to_string();
    for options in [&[][..], &["--nix"]] {
        let program = runs.with(options, &["cat", &format!("{}/text", runs.fixture.data.path)]);
        let done = program.inside([&*refuse, &*not_implemented, "landlock_create_ruleset"]).run();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("hello\n", ""), "{options:?}");
    }
}

/// What keeps mounts from being made is named, not guessed.
#[test]
fn what_is_missing_around_the_command_is_named() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let dir = crate::util::scratch();
    let no_mount_point = format!(
        "cd {} && for f in /*; do if [ -d $f ] && [ ! -L $f ]; then mkdir .$f && mount --rbind $f .$f; else cp -a $f .; fi; done && \
         exec chroot . \"$@\"",
        dir.path().display()
    );
    for (who, before, said) in [
        (Who::Root, "umount -l /proc && exec \"$@\"", "/proc is not mounted"),
        (Who::Nobody, "umount -l /proc && exec \"$@\"", "/proc is not mounted"),
        (Who::Root, "exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"", "user 0 without CAP_SETFCAP"),
        (Who::Root, &no_mount_point, "the root directory is no mount point"),
    ] {
        let runs = Runs::by(who);
        let program = runs.with(&[], &["true"]);
        refused(&program.further_inside(["unshare", "-m", "sh", "-c", before, "sh"]).run(), said);
        nothing_is_left(runs.fixture.store.root());
    }
}

/// A file system that never answers is looked into by nobody who was not asked to: not by who hides it, nor by who shows it.
#[test]
fn a_file_system_that_never_answers_holds_up_nobody() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Root);
    for kind in ["fuse.nix-store-fs", "fuse"] {
        let dir = crate::util::scratch();
        let at = dir.path().display();
        let _silent = crate::util::mounts::Silent::mount_as(kind, "none", dir.path(), 0);
        let bind = format!("mount --bind {at} /mnt && exec \"$@\"");
        for options in [&[][..], &["--tmpfs", "/nsf-none"], &["--ro-bind", "/etc", "/nsf-none"]] {
            let program = runs.with(options, &["cat", &format!("{}/text", runs.fixture.data.path)]);
            let deadline = ["timeout", "-s", "KILL", "60", "unshare", "-m", "sh", "-c", &bind, "sh"];
            let done = program.further_inside(deadline).run();
            assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("hello\n", ""), "{kind} {options:?}");
        }
    }
    nothing_is_left(runs.fixture.store.root());
}
