//! An ordinary user mounts through fusermount3: for themselves alone, which the program says.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::{Signal, kill_process};

use crate::util::fixture::Fixture;
use crate::util::program::{Mounted, unique_name};
use crate::util::store::NixStore;
use crate::util::user::{NOBODY, User};
use crate::util::{locked, threads, tree};

#[test]
fn an_ordinary_user_mounts() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let (mut view, name) = user.mount(fixture.program());
    let at = view.path().to_owned();

    let data = at.join(&fixture.data.base);
    let text = data.join("text").display().to_string();
    let read = User::beside(view.pid(), NOBODY, &["cat", &text]);
    assert_eq!(read.stdout, b"hello\n", "{read:?}");
    let listed = User::beside(view.pid(), NOBODY, &["ls", "-1", &at.display().to_string()]);
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().collect::<Vec<_>>(), fixture.members());
    let outside = at.join(&fixture.outside.base).display().to_string();
    let outside = User::beside(view.pid(), NOBODY, &["ls", "-d", &outside]);
    assert!(String::from_utf8_lossy(&outside.stderr).contains("No such file"), "{outside:?}");
    let other = User::beside(view.pid(), 65533, &["cat", &text]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("Permission denied"), "{other:?}");

    // What is in /proc of a process that is not dumpable belongs to root (proc(5)): nobody of its own user can trace it.
    let server = view.server_now().expect("a server").as_raw_nonzero();
    let owner = |file: &str| fs::metadata(format!("/proc/{server}/{file}")).unwrap().uid();
    assert_eq!(owner("environ"), 0, "the server can be traced by its user");

    let table = User::beside(view.pid(), NOBODY, &["cat", "/proc/self/mountinfo"]);
    // Mount points of others need not be text.
    let table = String::from_utf8_lossy(&table.stdout);
    let line = table.lines().find(|line| line.contains(&name)).expect("the mount is in the table");
    assert!(line.contains(&format!(" - fuse.nix-store-fs nix-store-fs:{name} ")), "{line}");
    assert!(line.contains("default_permissions") && !line.contains("allow_other"), "{line}");
    assert!(line.contains("nosuid,nodev") && line.contains(" ro,"), "{line}");

    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(
        view.stderr().contains("only you can see the view"),
        "it says that others cannot see the view: {}",
        view.stderr()
    );
    assert_eq!(user.left_behind(), [] as [std::path::PathBuf; 0]);
}

/// Where mounts of the host cannot be taken away one by one: in a user namespace of theirs.
#[test]
fn what_an_ordinary_user_used_is_asked_ahead_and_keeps_nobody_from_unmounting() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let (user, name) = (User::new(), unique_name());
    let (at, cache) = (user.runtime().join("nix-store-fs").join(&name), user.runtime().join("cache"));
    let start = || {
        let program = fixture.program().args(["-v", "--name", &name, "--prefetch", "auto", "--cache-dir"]);
        user.with_device(program.arg(&cache), "0666", "/usr/bin:/bin").mount_at(&at)
    };
    let run = |view: &Mounted, command: &[&str]| {
        let done = User::beside(view.pid(), NOBODY, &[command, &[&at.display().to_string()]].concat());
        assert!(done.status.success(), "{done:?}; {}", view.stderr());
    };
    let mut view = start();
    run(&view, &["ls", "-lR"]);
    view.signal(Signal::TERM);
    assert!(view.end().success(), "{}", view.stderr());

    let view = start();
    view.said_soon("ahead");
    let log = view.stderr();
    assert!(log.contains("known: Profile(1)") && log.contains("stopped: Done"), "{log}");
    drop(view);

    // While it waits for an answer of a server that was stopped.
    let held = locked(&cache);
    let mut view = start();
    let player = threads::player(view.pid());
    let server = view.server_now().unwrap();
    kill_process(server, Signal::STOP).unwrap();
    drop(held);
    threads::until_asking(player);
    run(&view, &["fusermount3", "-u"]);
    kill_process(server, Signal::CONT).unwrap();
    assert!(view.end().success(), "{}", view.stderr());
    threads::until_gone(player);
}

/// What they own themselves is theirs to keep links of the collector in; what somebody else could replace is not.
#[test]
fn an_ordinary_user_keeps_roots_in_a_directory_of_their_own() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let (own, others) = (user.runtime().join("own/roots"), user.runtime().join("others"));
    fs::create_dir(&others).unwrap();
    chown(&others, Some(65533), Some(65533)).unwrap();
    let program = |name: &str, roots: &Path| {
        let program = fixture.program().arg("--gc-root").arg(roots).args(["--name", name]);
        user.with_device(program, "0666", "/usr/bin:/bin")
    };
    let said = program(&unique_name(), &others).run();
    assert_eq!(said.status.code(), Some(9), "{said:?}");
    assert!(said.stderr.contains("uid 65533 owns it"), "{said:?}");
    let name = unique_name();
    let mut view = program(&name, &own).mount_at(user.runtime().join("nix-store-fs").join(&name));
    assert!(!tree::list(&own).unwrap().is_empty());
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert_eq!(tree::list(&own).unwrap(), [] as [PathBuf; 0]);
}

/// Passing reads through takes a right that an ordinary user has not got: it is said, and the files are the same.
#[test]
fn passthrough_falls_back_without_the_right_to_it() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let (mut view, _) = user.mount(fixture.program().args(["--io", "passthrough"]));
    let text = view.path().join(&fixture.data.base).join("text").display().to_string();
    let read = User::beside(view.pid(), NOBODY, &["cat", &text]);
    assert_eq!(read.stdout, b"hello\n", "{read:?}");
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(view.stderr().contains("falling back to --io cached"), "{}", view.stderr());
}
