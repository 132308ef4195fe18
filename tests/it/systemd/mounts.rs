//! A view as a mount of systemd's: a unit that was written by hand, and one that systemd makes of a line of fstab(5).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::host::{AUTOFS, Host, system};
use super::machine::eventually;
use crate::util::gate::not_run;
use crate::util::store::{Member, NixStore};

const WHERE: &str = "/srv/web";
const UNIT: &str = "srv-web.mount";

/// A machine with the helper, and a profile that leads to the first of two systems.
fn host() -> (Host, [Member; 2]) {
    let host = Host::boot("web");
    let systems = ["one", "two"].map(|name| system(&host.store, name));
    host.store.profile("web", &systems[0].path);
    let program = NixStore::name("nix-store-fs-0.1.0").path;
    host.machine.run(&format!("ln -s {program}/bin/nix-store-fs /sbin/mount.fuse.nix-store-fs"));
    (host, systems)
}

/// Lets the profile lead to another system.
fn switch(host: &Host, to: &str) {
    let profile = host.store.profiles().join("web");
    fs::remove_file(&profile).unwrap();
    symlink(to, &profile).unwrap();
}

fn unit(options: &str) -> String {
    format!(
        "[Unit]\nRequiresMountsFor=/nix/store\n[Mount]\nWhat=nix-store-fs:web\nWhere={WHERE}\nType=fuse.nix-store-fs\nOptions={options}\n"
    )
}

const PROFILE: &str = "system=/nix/var/nix/profiles/web";

/// Processes of the unit.
fn processes(host: &Host) -> String {
    host.machine.run(&format!(
        "cat /sys/fs/cgroup$(systemctl show --value -p ControlGroup {UNIT})/cgroup.procs 2>/dev/null || true"
    ))
}

fn shows(host: &Host, member: &Member) -> bool {
    host.machine.path(WHERE).join(&member.base).exists()
}

fn state(host: &Host) -> String {
    host.systemctl(&format!("show --value --property ActiveState {UNIT}")).trim().to_owned()
}

/// Nothing of the view is left.
fn assert_nothing_left(host: &Host) {
    assert!(
        eventually(|| host.mounts().is_empty() && processes(host).is_empty()),
        "{:?} {}",
        host.mounts(),
        processes(host)
    );
    let state = host.machine.path("/run/nix-store-fs/.state/web");
    assert!(eventually(|| !state.exists()), "the state is left");
}

fn journal(host: &Host) -> String {
    host.machine.run(&format!("journalctl --no-pager --output cat --unit {UNIT}"))
}

/// Start, reload and stop, with the log of the view in the journal of the unit.
#[test]
fn a_mount_unit_starts_reloads_and_stops() {
    need_systemd!();
    let (host, [one, two]) = host();
    host.write_unit(UNIT, &unit(PROFILE));
    for _ in 0..2 {
        switch(&host, &one.path);
        host.systemctl(&format!("start {UNIT}"));
        assert!(shows(&host, &one) && !shows(&host, &two));
        // What asks ahead of its users is there for a moment.
        assert!(eventually(|| processes(&host).lines().count() == 2), "{}", processes(&host));
        switch(&host, &two.path);
        host.systemctl(&format!("reload {UNIT}"));
        assert!(shows(&host, &two), "{}", journal(&host));
        host.systemctl(&format!("stop {UNIT}"));
        assert_nothing_left(&host);
        assert_eq!(state(&host), "inactive");
    }
    let logged = |what: &str| eventually(|| journal(&host).matches(what).count() == 2);
    for what in ["INFO the view answers", "INFO switching the view", "INFO the view was unmounted"] {
        assert!(logged(what), "{what}: {}", journal(&host));
    }
}

/// A line of fstab(5) becomes a unit, which is wanted by others as the line says, after what it needs.
#[test]
fn a_line_of_fstab_is_a_unit() {
    need_systemd!();
    let (host, [one, two]) = host();
    let line = format!(
        "nix-store-fs:web {WHERE} fuse.nix-store-fs {PROFILE},nofail,x-systemd.requires-mounts-for=/nix/store,x-systemd.requires-mounts-for=/nix/var 0 0\n"
    );
    fs::write(host.machine.path("/etc/fstab"), line).unwrap();
    host.systemctl("daemon-reload");
    let property = |name: &str| host.systemctl(&format!("show --value --property {name} {UNIT}"));
    assert!(property("RequiresMountsFor").contains("/nix/store"), "{}", property("RequiresMountsFor"));
    assert!(property("WantedBy").contains("local-fs.target"), "{}", property("WantedBy"));
    host.systemctl("start local-fs.target");
    host.systemctl(&format!("start {UNIT}"));
    assert!(shows(&host, &one));
    let options = property("Options");
    assert!(!options.contains("system="), "systemd shows what the kernel does: {options}");
    switch(&host, &two.path);
    host.systemctl(&format!("reload {UNIT}"));
    assert!(shows(&host, &two), "{}", journal(&host));
    // As mount(8) has it.
    host.machine.run(&format!("mount -a && mount -o remount {WHERE} && umount {WHERE}"));
    assert_nothing_left(&host);
    assert!(eventually(|| state(&host) == "inactive"), "{}", state(&host));
    host.machine.run("mount -a");
    assert!(shows(&host, &two) && eventually(|| state(&host) == "active"), "{}", state(&host));
    host.systemctl(&format!("stop {UNIT}"));
    assert_nothing_left(&host);
}

/// A view whose store is not there when the machine boots keeps nothing else from starting, with `nofail`; it can be started later.
#[test]
fn a_store_that_is_absent_at_the_boot() {
    need_systemd!();
    let (host, [one, _]) = host();
    let line = |more: &str| {
        format!("nix-store-fs:web {WHERE} fuse.nix-store-fs {PROFILE},store=unix:///absent{more} 0 0\n")
    };
    let target = |line: String| {
        fs::write(host.machine.path("/etc/fstab"), line).unwrap();
        host.systemctl("daemon-reload");
        // What a boot does: everything that the target wants is started again.
        host.systemctl("stop local-fs.target");
        host.machine.try_run("systemctl start local-fs.target").status.success()
    };
    assert!(target(line(",nofail")), "{}", journal(&host));
    assert!(eventually(|| state(&host) == "failed"), "{}", state(&host));
    assert!(!target(line("")), "without nofail it is waited for");
    assert!(target(line(",nofail").replace(",store=unix:///absent", "")));
    assert!(eventually(|| state(&host) == "active"), "{}", journal(&host));
    assert!(shows(&host, &one));
    host.systemctl(&format!("stop {UNIT}"));
    assert_nothing_left(&host);
}

/// A start that fails, and a reload, say why in the status of the unit.
#[test]
fn a_failure_says_why_in_the_status() {
    need_systemd!();
    let (host, [one, _]) = host();
    let status = || host.machine.run(&format!("systemctl --no-pager --full status {UNIT} || true"));
    for (options, why) in [
        (format!("{PROFILE},watc"), "mount.fuse.nix-store-fs: unknown mount option 'watc'"),
        ("system=/nosuch".to_owned(), "mount.fuse.nix-store-fs: '/nosuch'"),
        (format!("{PROFILE},store=unix:///nosuch"), "mount.fuse.nix-store-fs: the Nix daemon of the store"),
    ] {
        host.write_unit(UNIT, &unit(&options));
        host.machine.refuse(&format!("systemctl start {UNIT}"));
        assert_eq!(state(&host), "failed");
        assert!(eventually(|| status().contains(why)), "{options}: {}", status());
        assert_nothing_left(&host);
        host.systemctl(&format!("reset-failed {UNIT}"));
    }
    host.write_unit(UNIT, &unit(PROFILE));
    host.systemctl(&format!("start {UNIT}"));
    let profile = host.store.profiles().join("web");
    fs::remove_file(&profile).unwrap();
    host.machine.refuse(&format!("systemctl reload {UNIT}"));
    assert!(eventually(|| status().contains("mount.fuse.nix-store-fs: ")), "{}", status());
    assert!(shows(&host, &one) && state(&host) == "active", "{}", state(&host));
    host.systemctl(&format!("stop {UNIT}"));
    assert_nothing_left(&host);
}

/// SIGTERM to the unit unmounts. SIGKILL leaves a dead mount, which a stop takes away, and the next start serves again.
#[test]
fn signals_to_the_unit() {
    need_systemd!();
    let (host, [one, _]) = host();
    host.write_unit(UNIT, &unit(PROFILE));
    host.systemctl(&format!("start {UNIT}"));
    host.systemctl(&format!("kill {UNIT}"));
    assert_nothing_left(&host);
    assert!(eventually(|| state(&host) == "inactive"), "{}", state(&host));

    host.systemctl(&format!("start {UNIT}"));
    // One by one: after a kill of the whole group the kernel may kill what systemd starts in it to unmount.
    host.machine.run(&format!("kill -9 {}", processes(&host).replace('\n', " ")));
    assert!(eventually(|| processes(&host).is_empty()), "{}", processes(&host));
    assert_eq!((state(&host).as_str(), host.mounts().len()), ("active", 1));
    let refused = host.machine.refuse(&format!("ls {WHERE}"));
    assert!(refused.contains("not connected"), "{refused}");
    host.systemctl(&format!("stop {UNIT}"));
    assert_eq!(host.mounts(), Vec::<String>::new());
    host.systemctl(&format!("start {UNIT}"));
    assert!(shows(&host, &one));
    host.systemctl(&format!("stop {UNIT}"));
    assert_nothing_left(&host);
}

/// Somebody is in the view: the stop fails as for every mount, and the view is still served.
#[test]
fn a_view_in_use_is_not_stopped() {
    need_systemd!();
    let (host, [one, _]) = host();
    host.write_unit(UNIT, &unit(PROFILE));
    host.systemctl(&format!("start {UNIT}"));
    host.machine.run(&format!(
        "systemd-run --quiet --unit user --property Type=exec sh -c 'cd {WHERE} && exec sleep infinity'"
    ));
    assert!(eventually(|| host.machine.run("readlink /proc/*/cwd || true").lines().any(|cwd| cwd == WHERE)));
    host.machine.refuse(&format!("systemctl stop {UNIT}"));
    assert!(shows(&host, &one), "{}", journal(&host));
    host.systemctl("stop user.service");
    host.systemctl(&format!("stop {UNIT}"));
    assert_nothing_left(&host);
}

/// With `x-systemd.automount` the view is mounted by whoever looks, who waits for it and for nothing else.
#[test]
fn an_automount_mounts_the_view() {
    need_systemd!();
    if !Path::new(AUTOFS).exists() {
        return not_run("an automount unit needs /dev/autofs");
    }
    let (host, [one, two]) = host();
    let line = format!(
        "nix-store-fs:web {WHERE} fuse.nix-store-fs {PROFILE},noauto,x-systemd.automount,x-systemd.mount-timeout=20 0 0\n"
    );
    fs::write(host.machine.path("/etc/fstab"), line).unwrap();
    host.systemctl("daemon-reload");
    host.systemctl("start srv-web.automount");
    for _ in 0..2 {
        assert_eq!(host.mounts(), Vec::<String>::new());
        let listed = host.machine.run(&format!("timeout 60 ls {WHERE}"));
        assert_eq!(listed.trim(), one.base, "{}", journal(&host));
        assert_eq!(host.mounts().len(), 1);
        // Nothing of it is in the process group that systemd's own mounting is known by.
        let files: Vec<String> = processes(&host).lines().map(|pid| format!("/proc/{pid}/stat")).collect();
        let groups = host.machine.run(&format!("cut -d ' ' -f 5 {}", files.join(" ")));
        assert_eq!(groups.lines().count(), 2, "{groups}");
        assert!(groups.lines().all(|group| group != "1"), "{groups}");
        host.systemctl(&format!("stop {UNIT}"));
        assert_nothing_left(&host);
    }
    host.machine.run(&format!("timeout 60 ls {WHERE}"));
    switch(&host, &two.path);
    host.systemctl(&format!("reload {UNIT}"));
    assert!(host.machine.run(&format!("ls {WHERE}")).contains(&two.base));
    host.systemctl(&format!("stop srv-web.automount {UNIT}"));
    assert_nothing_left(&host);
}
