//! How far the unit confines the service, and that everything works within that.

use std::fs;

use super::host::{Host, system};
use super::machine::eventually;
use crate::util::{locked, tree};

/// The exposure that `systemd-analyze security` gives the unit, in tenths. All that is left needs a mount namespace of its own
/// (half of it), is what the service does, or refuses openat2(2): `nixos/unit.nix`. One of them is for setpriority(2) and ioprio_set(2), which
/// without CAP_SYS_NICE let others go first and nothing else.
const EXPOSURE: u32 = 38;

#[test]
fn the_unit_is_as_confined_as_it_was() {
    need_systemd!();
    let host = Host::boot("web");
    let unit = format!("/etc/systemd/system/{}", host.unit());
    let analyze = "systemd-analyze security --no-pager --offline=yes";
    host.machine.run(&format!("{analyze} --threshold={EXPOSURE} {unit}"));
    // If this is not refused, the constant can be lowered.
    host.machine.refuse(&format!("{analyze} --threshold={} {unit}", EXPOSURE - 1));
}

/// The unit allows the calls by which who asks ahead of users lets others go first.
#[test]
fn who_asks_ahead_lets_others_go_first() {
    need_systemd!();
    let host = Host::boot("small");
    host.set_roots(&[&system(&host.store, "one").path]);
    host.tell("start");
    host.machine.run(&format!("ls -lR {}", host.mount_point()));
    host.tell("stop");
    // Nobody plays as long as this is locked.
    let _held = locked(&host.machine.path("/var/cache/nix-store-fs"));
    host.tell("start");
    let player = || {
        host.machine.run(
            "for at in /proc/[0-9]*; do [ \"$(cat $at/comm 2>&1)\" != nix-store-ahead ] || \
             echo $(cut -d' ' -f19 $at/stat) $(ionice -p ${at#/proc/}); done",
        )
    };
    let last = "5 best-effort: prio 7\n";
    assert!(eventually(|| player() == last), "{:?}; {}", player(), host.log());
}

/// With every option: the mount is in the host's mount namespace, for containers with private users as well, the kernel reads
/// files by itself, what is missed is reported, roots are held, and neither a reload, a hand-over, a crash nor an end in use
/// needs a right that the unit takes away.
#[test]
fn everything_works_in_the_confined_unit() {
    need_systemd!(Passthrough);
    let host = Host::boot("small");
    let (one, two, stray) =
        (system(&host.store, "one"), system(&host.store, "two"), system(&host.store, "stray"));
    host.set_roots(&[&one.path]);
    let roots = "/nix/var/nix/gcroots/nix-store-fs";
    let options = format!(" --io passthrough --watch --prune --report --gc-root {roots}");
    let text = host.unit_text();
    let changed = text.replace(" --io cached", &options);
    assert!(changed != text);
    host.write_unit(&host.unit(), &changed);
    host.tell("start");
    assert_eq!(host.mounts().len(), 1, "{:?}", host.mounts());
    let namespace =
        |process: &str, kind: &str| host.machine.run(&format!("readlink /proc/{process}/ns/{kind}"));
    let main = host.property("MainPID");
    assert_eq!(namespace(&main, "mnt"), namespace("1", "mnt"));
    assert_ne!(namespace(&main, "net"), namespace("1", "net"), "the unit is not as confined as it could be");
    let view = host.mount_point();
    let name_of = |member: &str| format!("cat {view}/{member}/name");
    assert_eq!(host.machine.run(&name_of(&one.base)), "one\n");
    for users in ["no", "yes"] {
        let seen = host.machine.run(&format!(
            "systemd-run --quiet --wait --pipe -p PrivateUsers={users} -p BindReadOnlyPaths={view}:/mnt cat /mnt/{}/name",
            one.base
        ));
        assert_eq!(seen, "one\n", "with private users: {users}");
    }
    let links = host.store.root().join("nix/var/nix/gcroots/nix-store-fs");
    assert_eq!(tree::list(&links).unwrap().len(), 1);
    host.machine.run(&format!("! test -e {view}/{}", stray.base));
    let log = || host.machine.run(&format!("journalctl --no-pager -o cat -u {}", host.unit()));
    assert!(eventually(|| log().contains(&format!("path=\"{}\"", stray.base))), "{}", log());

    let main = host.property("MainPID");
    host.set_roots(&[&one.path, &two.path]);
    assert!(eventually(|| host.view().join(&two.base).exists()), "{}", log());
    assert_eq!(host.property("MainPID"), main, "{}", log());
    let file_system = host.file_system();
    for signal in ["USR2", "KILL"] {
        let main = host.property("MainPID");
        host.tell(&format!("kill --signal {signal} --kill-whom main"));
        host.wait_for_successor(&main);
        assert_eq!(host.machine.run(&name_of(&two.base)), "two\n");
    }
    host.tell("reload");
    assert_eq!(host.file_system(), file_system, "mounted again");
    for complaint in [" WARN ", " ERROR "] {
        let lines: Vec<_> =
            log().lines().filter(|line| line.contains(complaint)).map(str::to_owned).collect();
        assert_eq!(lines, [""; 0]);
    }

    // In use at its end.
    host.machine.run(&format!(
        "systemd-run --quiet --unit user.service -p Type=exec -p WorkingDirectory={view} sleep infinity"
    ));
    host.tell("stop");
    assert_eq!(host.mounts(), Vec::<String>::new());
    assert_eq!(host.property("Result"), "success", "{}", log());
    assert!(log().contains("still in use by"), "{}", log());
    assert!(fs::read_dir(&links).map_or(0, Iterator::count) == 0, "roots are left");
}
