//! A container that boots a systemd out of its private store.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Signal;

use super::machine::Machine;
use super::nixos::{Closure, Kind};
use crate::util::mounts;
use crate::util::program::{Program, unique_name};
use crate::util::store::Member;

/// What the container's service says to somebody who connects from outside.
fn asked(root: &Path) -> String {
    let mut answer = String::new();
    UnixStream::connect(root.join("var/lib/answer")).unwrap().read_to_string(&mut answer).unwrap();
    answer
}

/// What every container with a private store promises.
pub(super) fn assert_private(machine: &Machine, closure: &Closure, members: &[&Member]) {
    assert_eq!(machine.run("systemctl is-active multi-user.target"), "active\n", "{}", machine.console());

    let mut expected: Vec<&str> = members.iter().map(|member| member.base.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(machine.run("ls /nix/store").lines().collect::<Vec<_>>(), expected);
    let outside = &closure.outside.path;
    assert!(closure.store.physical().join(&closure.outside.base).exists());
    let said = machine.refuse(&format!("cat {outside}"));
    assert!(said.contains("No such file or directory"), "{said}");

    // Neither the database nor the daemon's socket, though the host has both.
    let host = closure.store.root().join("nix/var/nix");
    assert!(host.join("db/db.sqlite").exists() && host.join("daemon-socket/socket").exists());
    assert_eq!(machine.run("ls /nix/var/nix"), "gcroots\nprofiles\n");

    // Nothing lies below the view: root may unmount it, as often as he can, and finds an empty directory. A root of
    // private users may not. In a copy of the mount table, since without the view the container has no programs.
    let below = machine.run(
        "exec unshare --mount --propagation private /bin/sh -c '
            while umount -l /nix/store 2>/dev/null; do echo unmounted; done
            cd /nix/store && for name in * .[!.]*; do [ ! -e \"$name\" ] || echo \"$name\"; done'",
    );
    let mut left = vec!["unmounted"];
    if machine.has_private_users() {
        left = expected;
    }
    assert_eq!(below.lines().collect::<Vec<_>>(), left);
}

/// Powers off, ends the view, and looks for what is left.
pub(super) fn assert_ends_clean(
    mut machine: Machine,
    mut view: crate::util::program::Mounted,
    root: &Path,
    name: &str,
) {
    assert_eq!(machine.power_off().code(), Some(0), "{}", machine.console());
    drop(machine);
    let mounted = |below: &Path| mounts::all().into_iter().find(|mount| mount.at.starts_with(below));
    assert!(mounted(root).is_none(), "{:?}", mounted(root));
    assert!(mounts::at(view.path()).is_some(), "the view outlives its container");
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(!view.stderr().contains("still"), "{}", view.stderr());
    let views = Path::new("/run/nix-store-fs");
    assert!(!views.join(name).exists() && !views.join(".state").join(name).exists());
}

fn boots(private_users: Option<&str>, also: impl FnOnce(&Machine, &Closure)) {
    let closure = Closure::new();
    let system = closure.system("declared");
    let name = unique_name();
    let scratch = crate::util::scratch();
    let root = scratch.path().join("root");
    closure.root_directory(&root);
    let view = Program::on(&closure.store)
        .args(["--root", &system.path, "--root", &closure.init.path, "--name", &name])
        .mount_at(Path::new("/run/nix-store-fs").join(&name));
    let machine = Kind { private_users, system: Some(&system), ..Kind::default() }.boot(
        &closure,
        &name,
        &root,
        scratch.path(),
    );
    assert_eq!(asked(&root), "declared\n", "{}", machine.console());
    assert_private(&machine, &closure, &[&system, &closure.init, &closure.usr]);
    also(&machine, &closure);
    assert_ends_clean(machine, view, &root, &name);
}

/// systemd boots out of the view to multi-user.target, with the nspawn flags of the rewritten start script; a service
/// of the closure answers; the rest of the store, the database and the daemon's socket are not there.
#[test]
fn a_system_boots_out_of_the_view() {
    need_systemd!();
    boots(None, |machine, closure| {
        let said = machine.refuse(&format!("touch {}/new", closure.usr.path));
        assert!(said.contains("Read-only file system"), "{said}");
    });
}

/// The same with a range of users of the container's own: what the store holds belongs to the container's root.
#[test]
fn a_system_with_private_users_boots_out_of_the_view() {
    need_systemd!(Idmap);
    boots(Some("pick"), |machine, closure| {
        let owners =
            machine.run(&format!("stat -c %u:%g /nix/store {} {}", closure.usr.path, closure.init.path));
        assert_eq!(owners, "0:0\n0:0\n0:0\n");
        assert!(machine.has_private_users());
    });
}
