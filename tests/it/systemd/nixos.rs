//! What the NixOS module evaluates to, and a system for its containers to boot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::guest;
use super::machine::{Boot, Machine};
use crate::util::program::Program;
use crate::util::store::{Member, NixStore};

/// A file of the module.
pub(super) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("nixos").join(name)
}

/// Writes a program.
pub(super) fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A store with what every container of a test has in common.
#[derive(Debug)]
pub(super) struct Closure {
    pub(super) store: NixStore,
    /// `/usr` of the Debian that is booted.
    pub(super) usr: Member,
    /// What the start script has nspawn start.
    pub(super) init: Member,
    /// Valid, not part of any system.
    pub(super) outside: Member,
}

impl Closure {
    pub(super) fn new() -> Self {
        let store = NixStore::new();
        let usr = store.add_in_place("debian-usr", &[], |path| {
            let scratch = store.root().join("unpacked");
            guest::unpack(&scratch, &["./usr"]);
            fs::rename(scratch.join("usr"), path).unwrap();
        });
        let init = store.add("container-init", &[&usr], |path| {
            program(path, &format!("#!{}/bin/sh -e\nexec \"$1\"\n", usr.path));
        });
        let outside = store.add("outside", &[], |path| fs::write(path, "not for this container\n").unwrap());
        // What the container must not see has to be there to be seen.
        let daemon = store.root().join("nix/var/nix/daemon-socket");
        fs::create_dir(&daemon).unwrap();
        fs::write(daemon.join("socket"), "").unwrap();
        Self { store, usr, init, outside }
    }

    /// The profile of the container `name`, whose first generation is `system`: the link that it is switched by.
    pub(super) fn profile(&self, name: &str, system: &Member) -> PathBuf {
        let profile = format!("per-container/{name}");
        self.store.profile(&format!("{profile}/system-1-link"), &system.path);
        self.store.profile(&format!("{profile}/system"), "system-1-link")
    }

    /// A system with a service that answers `answer`, on a socket below `/var/lib`.
    pub(super) fn system(&self, answer: &str) -> Member {
        let name = format!("nixos-system-{answer}");
        let own = NixStore::name(&name);
        self.store.add(&name, &[&self.usr, &self.init], |path| {
            let usr = &self.usr.path;
            program(&path.join("bin/answer"), &format!("#!/bin/sh\necho {answer}\n"));
            program(
                &path.join("init"),
                &format!(
                    "#!{usr}/bin/sh -e\n\
                     PATH={usr}/bin:{usr}/sbin\n\
                     mount --bind {usr} /usr\n\
                     cp -r {own}/etc/. /etc/\n\
                     exec /usr/lib/systemd/systemd\n",
                    own = own.path
                ),
            );
            guest::unpack(path, &["./etc/passwd", "./etc/group", "./etc/nsswitch.conf"]);
            let units = path.join("etc/systemd/system");
            fs::create_dir_all(units.join("multi-user.target.wants")).unwrap();
            symlink("/usr/lib/systemd/system/multi-user.target", units.join("default.target")).unwrap();
            symlink("../answer.socket", units.join("multi-user.target.wants/answer.socket")).unwrap();
            fs::write(
                units.join("answer.socket"),
                "[Socket]\nListenStream=/var/lib/answer\nAccept=yes\nSocketMode=0666\n",
            )
            .unwrap();
            fs::write(
                units.join("answer@.service"),
                format!(
                    "[Service]\nExecStart={}/bin/answer\nStandardInput=socket\nStandardOutput=socket\n",
                    own.path
                ),
            )
            .unwrap();
        })
    }

    /// Shows a running container the present system of its profile, as a reload of its unit does after that of its view.
    pub(super) fn show_profile(&self, name: &str) {
        let mut printing = Command::new(file("tests/eval/start-script"));
        let script = stdout(printing.args([name, "--imperative", "--profile"]));
        let nix = self.store.root().join("nix");
        let inside = r#"mount --bind "$0" /nix && exec bash -e -c "$1""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", inside]).arg(nix).arg(script);
        stdout(command.env("INSTANCE", name));
    }

    /// A root directory for a container: no program and no library in it but by way of `/nix/store`.
    pub(super) fn root_directory(&self, root: &Path) {
        for dir in ["etc", "usr", "var/lib", "tmp", "root", "proc", "sys", "dev", "run", "nix/store"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("{}/{link}", self.usr.path), root.join(link)).unwrap();
        }
        let usr = self.store.physical().join(&self.usr.base);
        fs::copy(usr.join("lib/os-release"), root.join("etc/os-release")).unwrap();
        fs::write(root.join("etc/machine-id"), "6e69782d73746f72652d66732d697400\n").unwrap();
    }
}

/// What differs between the ways to have a container.
#[derive(Debug, Default)]
pub(super) struct Kind<'a> {
    /// `containers.<name>.privateUsers`.
    pub(super) private_users: Option<&'a str>,
    /// The system it is declared with; else it boots from its profile.
    pub(super) system: Option<&'a Member>,
    /// Flags in its file in `/etc`, which no evaluation sees.
    pub(super) flags: &'a str,
}

impl Kind<'_> {
    /// Boots a container the way `container@NAME.service` does, with the script that the module evaluates to.
    pub(super) fn boot(&self, closure: &Closure, name: &str, root: &Path, scratch: &Path) -> Machine {
        // What the script calls of systemd's. A reload of the view's service runs the client, as the unit does.
        let systemd = scratch.join("systemd");
        fs::create_dir_all(systemd.join("bin")).unwrap();
        let nspawn = crate::util::gate::find("systemd-nspawn").unwrap();
        symlink(nspawn, systemd.join("bin/systemd-nspawn")).unwrap();
        program(
            &systemd.join("bin/systemctl"),
            &format!(
                "#!/bin/sh\n[ \"$*\" = \"reload nix-store-fs@{name}.service\" ] || exit 1\n\
                 exec '{}' reload {name}\n",
                Program::PATH
            ),
        );
        let script = scratch.join("start");
        fs::write(&script, self.start_script(closure, name, &systemd)).unwrap();

        let mut command = Command::new("bash");
        command
            .arg("-e")
            .arg(script)
            .env("INSTANCE", name)
            .env("root", root)
            // nothing to register with, where systemd-machined is not
            .env("EXTRA_NSPAWN_FLAGS", format!("--register=no {}", self.flags))
            .env("PRIVATE_USERS", self.private_users.unwrap_or("no"));
        if let Some(system) = self.system {
            command.env("SYSTEM_PATH", &system.path);
        }
        Boot { name, nix: &closure.store.root().join("nix"), command }.start()
    }

    fn start_script(&self, closure: &Closure, name: &str, systemd: &Path) -> String {
        let mut command = Command::new(file("tests/eval/start-script"));
        command.arg(name).arg("--systemd").arg(systemd).args(["--container-init", &closure.init.path]);
        if self.private_users.is_some() {
            command.arg("--private-users");
        }
        if self.system.is_none() {
            command.arg("--imperative");
        }
        stdout(&mut command)
    }
}

/// What a command prints that has to succeed.
fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
