//! The unit of the service on a real systemd: start, reload, stop, and what `systemctl status` shows.

use std::fs;

use super::host::{Host, system};
use super::machine::eventually;
use crate::util::store::{Member, NixStore};
use crate::util::tree;

/// `systemctl start` returns when the view answers, with a status; `systemctl stop` leaves nothing.
#[test]
fn start_status_stop() {
    need_systemd!();
    let host = Host::boot("small");
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);

    let verified =
        host.machine.try_run(&format!("systemd-analyze verify --man=no /etc/systemd/system/{}", host.unit()));
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(said.is_empty(), "systemd-analyze verify: {said}");

    host.tell("start");
    // At once, with no waiting: started means that it answers.
    assert_eq!(fs::read_to_string(host.view().join(&one.base).join("name")).unwrap(), "one\n");
    assert_eq!(host.mounts().len(), 1, "{:?}", host.mounts());
    let status = host.machine.run(&format!("systemctl --no-pager --full status {}", host.unit()));
    assert!(status.contains("Status: \"serving 1 store path since "), "{status}");
    assert!(status.contains("Active: active (running)"), "{status}");

    host.tell("stop");
    assert_eq!(host.mounts(), Vec::<String>::new());
    assert_eq!(host.property("Result"), "success", "{}", host.log());
    let left = host.machine.run("find /run/nix-store-fs -mindepth 1 ! -name .state");
    assert_eq!(left, "", "left behind");
    assert_eq!(host.property("NFileDescriptorStore"), "0");
}

/// `systemctl reload` returns when the new closure is visible, to names that were missed before as well; a reload that
/// cannot be done fails, and changes nothing.
#[test]
fn reload() {
    need_systemd!();
    let host = Host::boot("small");
    let (one, two) = (system(&host.store, "one"), system(&host.store, "two"));
    host.set_roots(&[&one.path]);
    host.tell("start");
    let main = host.property("MainPID");
    let name_of_two = host.view().join(&two.base).join("name");
    assert!(!name_of_two.exists());

    host.set_roots(&[&one.path, &two.path]);
    host.tell("reload");
    assert_eq!(fs::read_to_string(&name_of_two).unwrap(), "two\n");
    assert!(host.log().contains("Status: \"serving 2 store paths since "), "{}", host.log());

    let file_system = host.file_system();
    host.set_roots(&["/nix/store/00000000000000000000000000000000-absent"]);
    let said = host.machine.refuse(&format!("systemctl reload {}", host.unit()));
    assert!(said.contains("Job for"), "{said}");
    assert!(host.log().contains("00000000000000000000000000000000-absent"), "{}", host.log());
    assert_eq!(host.property("ActiveState"), "active");
    assert_eq!(tree::list(&host.view()).unwrap().len(), 2);

    // The same process on the same mount all the time, also after a signal in place of the client.
    let three = system(&host.store, "three");
    host.set_roots(&[&one.path, &two.path, &three.path]);
    host.tell("kill --signal HUP --kill-whom main");
    assert!(eventually(|| host.view().join(&three.base).exists()), "{}", host.log());
    assert_eq!(host.property("MainPID"), main);
    assert_eq!(host.file_system(), file_system);
    host.tell("stop");
    assert_eq!(host.mounts(), Vec::<String>::new());
}

/// A unit that was changed is reloaded, as a configuration switch does it: the server hands its mount to a successor
/// with the new command line.
#[test]
fn a_changed_command_line_is_taken_over_by_a_reload() {
    need_systemd!();
    let host = Host::boot("small");
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);
    host.tell("start");
    let (main, file_system) = (host.property("MainPID"), host.file_system());

    host.tell("reload");
    assert_eq!(host.property("MainPID"), main, "nothing was changed: {}", host.log());

    let (text, end) = (host.unit_text(), host.mount_point());
    let changed = text.replace(&format!(" {end}\n"), &format!(" --threads 3 {end}\n"));
    assert!(changed != text);
    host.write_unit(&host.unit(), &changed);
    host.tell("reload");
    host.wait_for_successor(&main);
    assert!(
        host.machine
            .run(&format!("tr '\\0' ' ' </proc/{}/cmdline", host.property("MainPID")))
            .contains("--threads 3")
    );
    assert_eq!(host.file_system(), file_system, "mounted again");
    assert_eq!(fs::read_to_string(host.view().join(&one.base).join("name")).unwrap(), "one\n");
    host.tell("stop");
    assert_eq!(host.mounts(), Vec::<String>::new());
}

/// What uses the view as a container does (`Requires=`, `After=`) brings it up, and takes it down with itself; a
/// restart of one is none of the other.
#[test]
fn a_view_on_demand() {
    need_systemd!();
    let host = Host::boot("web");
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);
    host.write_unit("user.service", &user_of(&host));
    host.systemctl("start user.service");
    let file_system = host.file_system();
    assert_eq!(fs::read_to_string(host.view().join(&one.base).join("name")).unwrap(), "one\n");

    let main = host.property("MainPID");
    host.systemctl("restart user.service");
    assert_eq!(host.property("MainPID"), main, "{}", host.log());
    assert_eq!(host.file_system(), file_system);

    host.systemctl("stop user.service");
    assert!(eventually(|| host.property("ActiveState") == "inactive"), "{}", host.log());
    assert_eq!(host.mounts(), Vec::<String>::new());
}

/// The process of the view's user.
const USER: &str = "show --value --property MainPID user.service";

/// A view of one system, which is returned as well, with a user that runs.
fn with_user() -> (Host, Member) {
    let host = Host::boot("web");
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);
    host.write_unit("user.service", &user_of(&host));
    host.systemctl("start user.service");
    (host, one)
}

/// A crash of the view's service is none of its user's.
#[test]
fn a_crash_leaves_the_user_alone() {
    need_systemd!();
    let (host, _) = with_user();
    let (before, file_system) = (host.systemctl(USER), host.file_system());
    for whom in ["main", "all"] {
        let main = host.property("MainPID");
        host.tell(&format!("kill --signal KILL --kill-whom {whom}"));
        host.wait_for_successor(&main);
    }
    assert_eq!(host.systemctl(USER), before);
    assert_eq!(host.file_system(), file_system);
}

/// Root without private users can abort any connection of the machine, by mounting fusectl. That is a failure of the view: it is
/// cleared away and mounted again, and its user, whose mount is dead, is started again with it.
#[test]
fn an_aborted_view_is_mounted_again_and_so_is_its_user() {
    need_systemd!();
    let (host, one) = with_user();
    let (main, before) = (host.property("MainPID"), host.systemctl(USER));
    let connection = rustix::fs::minor(host.file_system());
    host.machine.run(&format!(
        "exec unshare --mount /bin/sh -c 'mount -t fusectl fusectl /mnt && echo 1 >/mnt/{connection}/abort'"
    ));
    host.wait_for_successor(&main);
    assert_eq!(fs::read_to_string(host.view().join(&one.base).join("name")).unwrap(), "one\n");
    assert_eq!(host.mounts().len(), 1, "{:?}", host.mounts());
    let log = host.machine.run(&format!("journalctl --no-pager --unit {}", host.unit()));
    assert!(log.contains("the FUSE connection was aborted"), "{log}");
    assert!(log.contains("status=11/"), "{log}");
    let restarted = eventually(|| ![before.as_str(), "0\n"].contains(&host.systemctl(USER).as_str()));
    assert!(restarted, "its user has the dead mount: {}", host.log());
    host.systemctl("stop user.service");
    assert!(eventually(|| host.property("ActiveState") == "inactive"), "{}", host.log());
    assert_eq!(host.mounts(), Vec::<String>::new());
}

/// docs/containers.md: with its line in the unit, container engines are told of the view when the start is complete. It stays while
/// processes are replaced, and goes with the view.
#[test]
fn a_unit_tells_container_engines() {
    need_systemd!();
    let host = Host::boot("small");
    let one = system(&host.store, "one");
    host.set_roots(&[&one.path]);
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/containers.md");
    let document = fs::read_to_string(document).unwrap();
    let lines = document.split("```ini\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let program = format!("{}/bin", NixStore::name("nix-store-fs-0.1.0").path);
    let lines = lines.replace("/usr/bin", &program);
    host.write_unit(&format!("{}.d/cdi.conf", host.unit()), &lines);
    let file = host.machine.path("/run/cdi/nix-store-fs.json");
    let mount_point = || {
        let spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).ok()?).unwrap();
        Some(spec["devices"][0]["containerEdits"]["mounts"][0]["hostPath"].as_str().unwrap().to_owned())
    };

    host.tell("start");
    assert_eq!(mount_point(), Some(host.mount_point()), "{}", host.log());
    let before = host.property("MainPID");
    host.tell("kill --signal KILL");
    host.wait_for_successor(&before);
    assert_eq!(mount_point(), Some(host.mount_point()), "{}", host.log());
    host.tell("stop");
    assert_eq!(mount_point(), None, "{}", host.log());
    assert_eq!(host.property("Result"), "success", "{}", host.log());

    // A file that cannot be written keeps no view from starting.
    fs::write(&file, "{}").unwrap();
    host.tell("start");
    assert_eq!(host.property("ActiveState"), "active");
    host.tell("stop");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{}");
}

/// The dependencies that the module gives a container.
pub(super) fn user_of(host: &Host) -> String {
    let container =
        fs::read_to_string(super::nixos::file("tests/eval/expected/container@web.service")).unwrap();
    let unit = host.unit();
    let dependencies: Vec<&str> =
        container.lines().filter(|line| line.ends_with(&format!("={unit}"))).collect();
    assert_eq!(dependencies, [format!("After={unit}"), format!("Requires={unit}")]);
    format!("[Unit]\n{}\n[Service]\nExecStart=sleep infinity\n", dependencies.join("\n"))
}
