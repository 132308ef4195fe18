//! A machine whose systemd runs the real unit of the service: the whole Debian, `/dev/fuse`, and a Nix store at `/nix`
//! with the program in it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::machine::{Boot, Machine, eventually};
use super::{guest, nixos};
use crate::util::program::{Program, unique_name};
use crate::util::store::{Member, NixStore};

/// What automount units need of the kernel (autofs(5)).
pub(super) const AUTOFS: &str = "/dev/autofs";

#[derive(Debug)]
pub(super) struct Host {
    pub(super) machine: Machine,
    pub(super) store: NixStore,
    /// What the view is called.
    view: String,
    root: PathBuf,
    _scratch: TempDir,
}

impl Host {
    /// Boots it, with the unit that the module gives for the view of this name.
    pub(super) fn boot(view: &str) -> Self {
        let store = NixStore::new();
        let scratch = crate::util::scratch();
        let root = scratch.path().join("root");
        guest::unpack(&root, &["."]);
        for dir in ["nix", "etc/nix-store-fs"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        install(&store, &root);

        let name = unique_name();
        let nix = store.root().join("nix");
        let mut command = Command::new("systemd-nspawn");
        command
            .args([
                "--register=no",
                "--keep-unit",
                "--notify-ready=yes",
                "--kill-signal=SIGRTMIN+3",
                // Without it systemd makes no network namespace for a service.
                "--capability=CAP_NET_ADMIN",
                // As on a machine: nspawn would refuse these.
                "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
                "--boot",
            ])
            .args(["--machine", &name, "--bind=/nix", "--bind=/dev/fuse", "--link-journal=no"])
            // Without it systemd has no automount units.
            .args(Path::new(AUTOFS).exists().then(|| format!("--bind={AUTOFS}")))
            .arg("-D")
            .arg(&root);
        let machine = Boot { name: &name, nix: &nix, command }.start();
        let host = Self { machine, store, view: view.to_owned(), root, _scratch: scratch };
        host.write_unit(&host.unit(), &host.unit_text());
        host
    }

    /// The service that serves the view.
    pub(super) fn unit(&self) -> String {
        format!("nix-store-fs@{}.service", self.view)
    }

    /// Where the view is mounted.
    pub(super) fn mount_point(&self) -> String {
        format!("/run/nix-store-fs/{}", self.view)
    }

    /// The text of its unit as the module evaluates to it, with the store paths of this store.
    pub(super) fn unit_text(&self) -> String {
        let path = nixos::file("tests/eval/expected").join(self.unit());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        ["nix-store-fs-0.1.0", "nix-store-fs-succeed", "nix-store-fs-ended"].iter().fold(
            text,
            |text, package| {
                text.replace(&format!("/nix/store/HASH-{package}"), &NixStore::name(package).path)
            },
        )
    }

    /// Writes a unit of the machine, and tells its systemd.
    pub(super) fn write_unit(&self, name: &str, text: &str) {
        let path = self.root.join("etc/systemd/system").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.systemctl("daemon-reload");
    }

    /// Makes the view show these, from its next start or reload on.
    pub(super) fn set_roots(&self, roots: &[&str]) {
        let file = self.root.join(format!("etc/nix-store-fs/{}.roots", self.view));
        fs::write(file, format!("{}\n", roots.join("\n"))).unwrap();
    }

    /// Puts a file of this text and mode in the place of the program; whoever runs from the real one continues to run.
    pub(super) fn replace_program(&self, text: &str, mode: u32) {
        let (program, real) = self.program();
        if !real.exists() {
            fs::rename(&program, &real).unwrap();
        }
        let new = program.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, &program).unwrap();
    }

    /// Puts the program back in its place.
    pub(super) fn restore_program(&self) {
        let (program, real) = self.program();
        fs::rename(&real, &program).unwrap();
    }

    /// Where the program is, and where it is while another takes its place.
    fn program(&self) -> (PathBuf, PathBuf) {
        let package = self.store.physical().join(NixStore::name("nix-store-fs-0.1.0").base);
        (package.join("bin/nix-store-fs"), package.join("bin/real"))
    }

    /// `systemctl` inside, for what has to succeed.
    pub(super) fn systemctl(&self, arguments: &str) -> String {
        self.machine.run(&format!("systemctl {arguments} || {{ journalctl --no-pager -n 40 >&2; exit 1; }}"))
    }

    /// A property of the service.
    pub(super) fn property(&self, name: &str) -> String {
        let [value] = self.properties([name]);
        value
    }

    /// Properties of the service at one moment.
    pub(super) fn properties<const N: usize>(&self, names: [&str; N]) -> [String; N] {
        // systemctl has an order of its own for them.
        let shown = self.systemctl(&format!("show --property {} {}", names.join(","), self.unit()));
        names.map(|name| {
            let value = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {shown}")).to_owned()
        })
    }

    /// Tells the service's systemd to do something with it.
    pub(super) fn tell(&self, verb: &str) -> String {
        self.systemctl(&format!("{verb} {}", self.unit()))
    }

    /// The service has ended whatever it was at, and another main process than `before` says that the view answers.
    pub(super) fn wait_for_successor(&self, before: &str) {
        let succeeded = eventually(|| {
            let [main, state, sub] = self.properties(["MainPID", "ActiveState", "SubState"]);
            main != before && main != "0" && state == "active" && sub == "running"
        });
        assert!(succeeded, "no successor: {}", self.log());
    }

    /// What the service said.
    pub(super) fn log(&self) -> String {
        self.machine.run(&format!("systemctl --no-pager --full --lines 60 status {} || true", self.unit()))
    }

    /// The view, as a path for this side.
    pub(super) fn view(&self) -> PathBuf {
        self.machine.path(&self.mount_point())
    }

    /// Which file system the view is; another number means that it was mounted again.
    pub(super) fn file_system(&self) -> u64 {
        fs::metadata(self.view()).unwrap().dev()
    }

    /// What the mount table inside has of the program's.
    pub(super) fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mounts", self.machine.leader())).unwrap();
        table.lines().filter(|line| line.contains("fuse.nix-store-fs")).map(str::to_owned).collect()
    }
}

/// The program as a package of the store, and the libraries it needs where the guest's loader looks for what it has not
/// found elsewhere.
fn install(store: &NixStore, root: &Path) {
    store.add_in_place("nix-store-fs-0.1.0", &[], |path| {
        fs::create_dir_all(path.join("bin")).unwrap();
        Program::install(&path.join("bin"));
    });
    // With the words behind the script, in place of which its text is evaluated.
    for (name, command, rest) in [
        ("nix-store-fs-succeed", "builtins.elemAt unit.ExecReload 1", " /package/"),
        ("nix-store-fs-ended", "unit.ExecStopPost", " %n"),
    ] {
        let script = script(store, command, rest);
        store.add(name, &[], |path| nixos::program(path, &format!("#!/bin/bash\n{script}")));
    }

    let libraries = root.join("usr/lib/of-the-program");
    fs::create_dir_all(&libraries).unwrap();
    fs::write(root.join("etc/ld.so.conf.d/zz-last.conf"), "/usr/lib/of-the-program\n").unwrap();
    let output = Command::new("ldd").arg(Program::PATH).output().unwrap();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The C library belongs with the loader, which is the guest's.
        let of_loader =
            |name: &str| ["libc.so", "libm.so", "ld-linux"].iter().any(|own| name.starts_with(own));
        if let [name, "=>", file, ..] = words[..]
            && !of_loader(name)
        {
            fs::copy(file, libraries.join(name)).unwrap();
        }
    }
    let status = Command::new("ldconfig").arg("-r").arg(root).status().unwrap();
    assert!(status.success(), "ldconfig");
}

/// The text of a script of the module: what comes before `rest` in a command of the unit.
fn script(store: &NixStore, command: &str, rest: &str) -> String {
    let expression = format!(
        "let unit = (import {unit} {{
            lib = import {lib};
            pkgs = {{ writeShellScript = name: text: text; systemd = \"/usr\"; }};
            package = \"/package\";
        }} {{ name = \"\"; mountPoint = \"\"; description = \"\"; roots = [ ]; }}).serviceConfig; in {command}",
        unit = nixos::file("unit.nix").display(),
        lib = nixos::file("tests/eval/stand-ins/lib.nix").display(),
    );
    let value = store.nix("nix-instantiate", ["--eval", "--strict", "--json", "--expr", &expression], b"");
    let command: String = serde_json::from_str(&value).unwrap();
    let (text, _arguments) = command.rsplit_once(rest).unwrap();
    text.to_owned()
}

/// Adds a system with a file `name`, which holds `text`, and some more to read.
pub(super) fn system(store: &NixStore, name: &str) -> Member {
    store.add(name, &[], |path| {
        fs::create_dir_all(path.join("deep/er")).unwrap();
        fs::write(path.join("name"), format!("{name}\n")).unwrap();
        for number in 0..20 {
            let file = path.join(format!("deep/er/{number}"));
            fs::write(&file, format!("{name} {number}\n").repeat(1 + number * 500)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        }
    })
}
