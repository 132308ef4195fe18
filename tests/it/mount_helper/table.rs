//! Lines of fstab(5), and several views.

use std::collections::BTreeSet;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use super::host::Host;
use super::{names, options, stderr};
use crate::util::fixture::Fixture;
use crate::util::program::unique_name;
use crate::util::store::{Daemon, NixStore, as_user};
use crate::util::user::{NOBODY, User};

/// A line of fstab, with a source that `mount -a` knows again, and a value with a comma and a space.
#[test]
fn a_line_of_fstab_is_mounted_once() {
    need!(Root, Fuse, Nix);
    let (host, name) = (Host::new(), unique_name());
    let odd = host.place("a, b");
    let fixture = Fixture::in_store(NixStore::below(&odd));
    let at = host.place("the view");
    let escape = |text: String| text.replace(' ', "\\040");
    let line = |more: &str| {
        let options = format!(
            "store=\"{}\",system={},x-systemd.automount{more}",
            fixture.store.uri(),
            fixture.system.path
        );
        let at = escape(at.display().to_string());
        format!("nix-store-fs:{name} {at} fuse.nix-store-fs {} 0 0", escape(options))
    };
    let fstab = host.fstab(&line(",noauto"));
    host.run(&format!("mount -T {fstab} -a"));
    assert_eq!(host.mounts(), Vec::<String>::new(), "noauto");
    host.run(&format!("mount -T {fstab} '{}'", at.display()));
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
    let fstab = host.fstab(&line(""));
    host.run(&format!("mount -T {fstab} -a"));
    assert_eq!(host.mounts().len(), 1);
    // Options for others than the kernel are kept by libmount, which knows the mount by its source.
    let found = host.run(&format!("findmnt --mtab -n -o OPTIONS '{}'", at.display()));
    assert!(found.contains("x-systemd.automount"), "{found}");
    host.run(&format!("mount -T {fstab} -o remount '{}'", at.display()));
    host.run(&format!("umount '{}'", at.display()));
    host.assert_nothing_left(&[&name]);
    // And it comes back.
    host.run(&format!("mount -T {fstab} -a && umount '{}'", at.display()));
    host.assert_nothing_left(&[&name]);
}

/// With a path as source `mount -a` does not know that it is mounted, as docs/mount.md says.
#[test]
fn a_line_with_a_path_is_not_known_again() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let line =
        format!("{} {} fuse.nix-store-fs {}", fixture.system.path, at.display(), options(&fixture, &name));
    let fstab = host.fstab(&line);
    host.run(&format!("mount -T {fstab} -a"));
    host.run(&format!("mount -T {fstab} -o remount {}", at.display()));
    let again = host.try_run(&format!("mount -T {fstab} -a"));
    assert_eq!(again.status.code(), Some(32), "{again:?}");
    assert!(stderr(&again).contains("already"), "{again:?}");
    assert_eq!(host.mounts().len(), 1);
}

/// Ten at once.
#[test]
fn ten_are_mounted_at_once() {
    need!(Root, Fuse, Nix);
    let (fixture, host) = (Fixture::new(), Host::new());
    let all: Vec<String> = (0..10).map(|_| unique_name()).collect();
    let lines = all.iter().map(|name| {
        let at = host.place(name);
        format!(
            "nix-store-fs:{name} {} fuse.nix-store-fs store={},system={}",
            at.display(),
            fixture.store.uri(),
            fixture.system.path
        )
    });
    let fstab = host.fstab(&lines.collect::<Vec<_>>().join("\n"));
    host.run(&format!("mount -T {fstab} -a -F"));
    assert_eq!(host.mounts().len(), 10);
    let members: BTreeSet<String> = fixture.members().into_iter().collect();
    for name in &all {
        assert_eq!(names(&host.inside(&host.dir.path().join(name))), members);
    }
    host.run("umount -a -t fuse.nix-store-fs");
    host.assert_nothing_left(&all.iter().map(String::as_str).collect::<Vec<_>>());
}

/// A store that is not there is a failure that `nofail` is for: the mount point stays as it was, and it can be mounted later.
#[test]
fn a_store_that_comes_later() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let socket = host.dir.path().join("socket");
    let line = format!(
        "nix-store-fs:{name} {} fuse.nix-store-fs store=unix://{}?root={},system={},nofail",
        at.display(),
        socket.display(),
        fixture.store.root().display(),
        fixture.system.path
    );
    let fstab = host.fstab(&line);
    let output = host.try_run(&format!("mount -T {fstab} -a"));
    assert!(!output.status.success(), "{output:?}");
    host.assert_nothing_left(&[&name]);
    let daemon = Daemon::start(&fixture.store);
    let real = daemon.uri().strip_prefix("unix://").unwrap().split('?').next().unwrap();
    symlink(real, &socket).unwrap();
    host.run(&format!("mount -T {fstab} -a"));
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
}

/// With `user` in fstab(5) the view is that user's own; what `user` implies and only root can do is an error.
#[test]
fn a_user_whom_fstab_allows_mounts() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let (user, host, name) = (User::new(), Host::new(), unique_name());
    let at = host.place("view");
    chown(&at, Some(NOBODY), Some(NOBODY)).unwrap();
    let programs = user.runtime().parent().unwrap().to_owned();
    symlink("nix-store-fs", programs.join("mount.fuse.nix-store-fs")).unwrap();
    let programs = programs.display();
    // mount(8) is set-user-ID, so the loader takes the variable away.
    host.run(&format!(
        "rm /sbin/mount.fuse.nix-store-fs
        printf '#!/bin/sh\nLD_LIBRARY_PATH={programs} exec {programs}/mount.fuse.nix-store-fs \"$@\"\n' >/sbin/mount.fuse.nix-store-fs
        chmod 755 /sbin/mount.fuse.nix-store-fs
        mount -t tmpfs none {programs}/dev
        mknod {programs}/dev/fuse c 10 229 && chmod 666 {programs}/dev/fuse
        mount --bind {programs}/dev/fuse /dev/fuse
        mkdir {layers}/etc {layers}/etc-work
        mount -t overlay none -o lowerdir=/etc,upperdir={layers}/etc,workdir={layers}/etc-work /etc",
        layers = host.dir.path().join("layers").display()
    ));
    let options = format!("store={},system={},user", fixture.store.uri(), fixture.system.path);
    let as_user = |script: &str| {
        let runtime = user.runtime();
        let words = as_user(NOBODY).join(" ");
        let script = format!("exec setpriv {words} env XDG_RUNTIME_DIR={} {script}", runtime.display());
        host.try_run(&script)
    };
    let mount = |options: &str| {
        let fstab =
            host.fstab(&format!("nix-store-fs:{name} {} fuse.nix-store-fs {options} 0 0", at.display()));
        host.run(&format!("cp {fstab} /etc/fstab"));
        as_user(&format!("mount {}", at.display()))
    };
    let refused = mount(&options);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("add exec"), "{refused:?}");
    let mounted = mount(&format!("{options},exec"));
    assert!(mounted.status.success(), "{mounted:?}");
    let listed = as_user(&format!("ls -1 {}", at.display()));
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().collect::<Vec<_>>(), fixture.members());
    assert!(host.mounts()[0].contains(&format!("user_id={NOBODY}")), "{:?}", host.mounts());
    let unmounted = as_user(&format!("fusermount3 -u {}", at.display()));
    assert!(unmounted.status.success(), "{unmounted:?}");
    host.assert_nothing_left(&[]);
    assert_eq!(user.left_behind(), [] as [PathBuf; 0]);
}

/// The place of a view is taken, and so is its name.
#[test]
fn a_place_and_a_name_are_used_once() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let (at, other) = (host.place("view"), host.place("other"));
    let mount = |at: &Path, name: &str| {
        let options = options(&fixture, name);
        host.try_run(&format!(
            "mount -t fuse.nix-store-fs {} {} -o {options}",
            fixture.system.path,
            at.display()
        ))
    };
    assert!(mount(&at, &name).status.success());
    for (at, name, said) in
        [(&at, unique_name(), "already a mount point"), (&other, name.clone(), "already being served")]
    {
        let output = mount(at, &name);
        assert_eq!(output.status.code(), Some(32), "{output:?}");
        assert!(stderr(&output).contains(said), "{output:?}");
    }
    let second = unique_name();
    assert!(mount(&other, &second).status.success());
    host.run(&format!("umount {}", at.display()));
    assert_eq!(names(&host.inside(&other)), fixture.members().into_iter().collect());
    assert_eq!(host.mounts().len(), 1);
    host.run(&format!("umount {}", other.display()));
    host.assert_nothing_left(&[&name, &second]);
}
