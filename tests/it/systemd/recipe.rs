//! The recipe for a systemd service in docs/recipes.md: its unit, above the unit of a view in docs/operation.md, on a real systemd.

use std::fs;
use std::os::unix::fs::symlink;

use super::host::Host;
use super::machine::eventually;
use crate::recipes::{Probed, section};
use crate::told::documents::blocks;
use crate::util::store::{Member, NixStore};

const PROFILE: &str = "per-container/web/system";

/// A machine whose view has the unit of the document.
fn host() -> (Host, Probed) {
    let host = Host::boot("web");
    let probed = Probed::add_to(&host.store);
    host.store.profile(PROFILE, &probed.probe.path);
    let units = blocks("operation.md", "ini");
    let view = units.iter().find(|unit| unit.contains("Type=notify")).unwrap();
    let program = NixStore::name("nix-store-fs-0.1.0").path;
    host.machine.run(&format!("ln -s {program}/bin/nix-store-fs /usr/bin/nix-store-fs"));
    host.write_unit("view-web.service", view);
    (host, probed)
}

/// The document's unit with this command.
fn app(command: &str) -> String {
    let [unit] = section("A systemd service without NixOS");
    unit.replace("COMMAND", command)
}

fn property(host: &Host, name: &str) -> String {
    host.systemctl(&format!("show --value --property {name} app.service")).trim().to_owned()
}

/// What the service sees of a store path, by its own root directory.
fn sees(host: &Host, member: &Member) -> Result<(), String> {
    let path = format!("/proc/{}/root{}", property(host, "MainPID"), member.path);
    let output = host.machine.try_run(&format!("ls {path}"));
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_service_without_nixos_sees_the_closure_alone() {
    need_systemd!(Busybox);
    let (host, probed) = host();
    host.write_unit("app.service", &app(&probed.command()));
    // It starts the view too, and is started when that answers.
    host.systemctl("start app.service");
    assert!(eventually(|| property(&host, "ActiveState") == "inactive"));
    let printed = host.machine.run("journalctl --output cat --no-pager --unit app.service");
    probed.assert_private(&printed);
    host.systemctl("stop view-web.service");
    assert_eq!(host.mounts(), Vec::<String>::new());
}

/// What the document's table says of the service when something happens to the unit of the view.
#[test]
fn a_service_without_nixos_and_the_unit_of_its_view() {
    need_systemd!(Busybox);
    let (host, probed) = host();
    let next = host.store.add("next", &[&probed.probe], |path| {
        fs::create_dir(path).unwrap();
        symlink(&probed.probe.path, path.join("probe")).unwrap();
    });
    let stays = app(&format!("{}/bin/busybox sleep infinity", NixStore::name("busybox").path));
    host.write_unit("app.service", &stays);
    host.systemctl("start app.service");
    let first = property(&host, "MainPID");
    assert_eq!(sees(&host, &probed.probe), Ok(()));

    let view = || host.systemctl("show --value --property MainPID view-web.service");
    for signal in ["KILL", "USR2"] {
        let before = view();
        host.systemctl(&format!("kill --signal {signal} --kill-whom main view-web.service"));
        assert!(eventually(|| ![before.as_str(), "0\n"].contains(&view().as_str())), "{signal}");
        assert_eq!(sees(&host, &probed.probe), Ok(()), "{signal}");
    }

    assert!(sees(&host, &next).unwrap_err().contains("No such file"));
    let link = host.store.profiles().join(PROFILE);
    fs::remove_file(&link).unwrap();
    symlink(&next.path, &link).unwrap();
    host.systemctl("reload view-web.service");
    assert_eq!(sees(&host, &next), Ok(()));
    assert_eq!(property(&host, "MainPID"), first);

    host.systemctl("restart view-web.service");
    assert!(eventually(|| ![first.as_str(), "0"].contains(&property(&host, "MainPID").as_str())));
    assert_eq!(sees(&host, &next), Ok(()));

    host.systemctl("stop view-web.service");
    assert_eq!(property(&host, "ActiveState"), "inactive");
    assert_eq!(host.mounts(), Vec::<String>::new());

    host.write_unit("app.service", &stays.replace("Requires=", "Wants="));
    host.systemctl("start app.service");
    let wants = property(&host, "MainPID");
    host.systemctl("restart view-web.service");
    assert_eq!(property(&host, "MainPID"), wants);
    let said = sees(&host, &next).unwrap_err();
    assert!(said.contains("Transport endpoint is not connected"), "{said}");
}
