//! A container made with `nixos-container create`: it boots through its profile, and is updated as it runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::container::{assert_ends_clean, assert_private};
use super::nixos::{Closure, Kind};
use crate::util::program::{Program, unique_name};

/// The profile is switched and the view reloaded: a program of the new system runs in the container as it is. It had
/// been asked for, and missed, before.
#[test]
fn a_switched_profile_shows_after_a_reload() {
    need_systemd!();
    let closure = Closure::new();
    let (old, new) = (closure.system("old"), closure.system("new"));
    let name = unique_name();
    let scratch = crate::util::scratch();
    let root = scratch.path().join("root");
    closure.root_directory(&root);
    let link = closure.profile(&name, &old);
    let roots = scratch.path().join("roots");
    fs::write(&roots, format!("# beside the system\n{}\n", closure.init.path)).unwrap();
    let view = Program::on(&closure.store)
        .arg("--system")
        .arg(link.parent().unwrap())
        .arg("--roots-file")
        .arg(&roots)
        .args(["--name", &name])
        .mount_at(Path::new("/run/nix-store-fs").join(&name));

    let machine = Kind::default().boot(&closure, &name, &root, scratch.path());
    assert_private(&machine, &closure, &[&old, &closure.init, &closure.usr]);
    let answer = "/nix/var/nix/profiles/system/bin/answer";
    assert_eq!(machine.run(answer), "old\n");
    let new_answer = format!("{}/bin/answer", new.path);
    machine.refuse(&new_answer);
    let (leader, started) = (machine.leader(), machine.run("systemctl show -P UserspaceTimestampMonotonic"));

    // As `nix-env --profile … --set` does it.
    closure.store.profile(&format!("per-container/{name}/system-2-link"), &new.path);
    symlink("system-2-link", link.with_file_name("system.new")).unwrap();
    fs::rename(link.with_file_name("system.new"), &link).unwrap();
    // For the container nothing has changed yet.
    assert_eq!(machine.run(answer), "old\n");
    let reload = Program::new().args(["reload", &name]).run();
    assert_eq!(reload.status.code(), Some(0), "{}", reload.stderr);

    assert_eq!(machine.run(&new_answer), "new\n");
    closure.show_profile(&name);
    assert_eq!(machine.run(answer), "new\n");
    // What was there stays, and the container never noticed.
    assert_eq!(machine.run(&format!("{}/bin/answer", old.path)), "old\n");
    assert_eq!(machine.leader(), leader);
    assert_eq!(machine.run("systemctl show -P UserspaceTimestampMonotonic"), started);
    assert_private(&machine, &closure, &[&old, &new, &closure.init, &closure.usr]);
    assert_ends_clean(machine, view, &root, &name);
}
