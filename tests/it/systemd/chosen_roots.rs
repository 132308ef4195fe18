//! A container that wants to see more than its system: what it makes of its profile is for itself alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::container::{assert_ends_clean, assert_private};
use super::machine::Machine;
use super::nixos::{Closure, Kind};
use crate::bad_input::refused;
use crate::util::program::{Mounted, Program, unique_name};
use crate::util::store::Member;
use crate::util::tree;

/// As root of a container can: a read-only mount is made writable first, which the kernel refuses to private users alone.
fn attack(path: &str) -> String {
    format!(
        "mount -o remount,bind,rw /nix/var/nix/profiles; mount -o remount,bind,rw /nix/var/nix/gcroots
         ln -sfn {path} /nix/var/nix/profiles/system
         ln -sfn {path} /nix/var/nix/gcroots/kept"
    )
}

/// The container lets its profile lead to a path of the host's store, asks for it by a reload of its view, and is
/// started again: it has its own system, the host's profile is as it was, and the collector knows of no new root.
fn chooses_nothing(private_users: Option<&str>) {
    let closure = Closure::new();
    let system = closure.system("own");
    let name = unique_name();
    let scratch = crate::util::scratch();
    let root = scratch.path().join("root");
    closure.root_directory(&root);
    let link = closure.profile(&name, &system);
    let view = Program::on(&closure.store)
        .arg("--system")
        .arg(link.parent().unwrap())
        .args(["--root", &closure.init.path, "--name", &name])
        .mount_at(Path::new("/run/nix-store-fs").join(&name));
    let boot = |time: &str| {
        let scratch = scratch.path().join(time);
        Kind { private_users, ..Kind::default() }.boot(&closure, &name, &root, &scratch)
    };

    let mut machine = boot("first");
    assert_private(&machine, &closure, &[&system, &closure.init, &closure.usr]);
    let _may_be_refused = machine.try_run(&attack(&closure.outside.path));
    let reload = Program::new().args(["reload", &name]).run();
    assert_eq!(reload.status.code(), Some(0), "{}", reload.stderr);
    assert!(!view.path().join(&closure.outside.base).exists(), "the container has chosen a root");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("system-1-link"));
    let roots = closure.store.root().join("nix/var/nix/gcroots/per-container").join(&name);
    assert_eq!(tree::list(&roots).unwrap(), [] as [PathBuf; 0]);
    assert_eq!(machine.power_off().code(), Some(0), "{}", machine.console());
    drop(machine);

    let machine = boot("second");
    assert_private(&machine, &closure, &[&system, &closure.init, &closure.usr]);
    assert_eq!(machine.run("/nix/var/nix/profiles/system/bin/answer"), "own\n");
    assert_ends_clean(machine, view, &root, &name);
}

/// A container and a view of it, one root of which is waited for in a directory that the container can write.
struct Writable {
    closure: Closure,
    name: String,
    scratch: tempfile::TempDir,
}

impl Writable {
    fn new() -> Self {
        let (closure, scratch) = (Closure::new(), crate::util::scratch());
        fs::create_dir(scratch.path().join("shared")).unwrap();
        fs::set_permissions(scratch.path().join("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
        Self { closure, name: unique_name(), scratch }
    }

    fn shared(&self) -> PathBuf {
        self.scratch.path().join("shared")
    }

    fn chosen(&self) -> PathBuf {
        self.shared().join("chosen")
    }

    fn program(&self, system: &Member) -> Program {
        let roots = self.scratch.path().join("roots");
        fs::write(&roots, format!("{}\n?{}\n", self.closure.init.path, self.chosen().display())).unwrap();
        Program::on(&self.closure.store).args(["--root", &system.path]).arg("--roots-file").arg(roots)
    }

    /// The view where the container has it.
    fn mount(&self, program: Program) -> Mounted {
        program.args(["--name", &self.name]).mount_at(Path::new("/run/nix-store-fs").join(&self.name))
    }

    /// Boots the container, which puts a link to the secret where the root is waited for.
    fn boot(&self, system: &Member, private_users: Option<&str>) -> Machine {
        let root = self.scratch.path().join("root");
        self.closure.root_directory(&root);
        let flags = format!("--bind={}:/srv/shared", self.shared().display());
        let kind = Kind { private_users, system: Some(system), flags: &flags };
        let machine = kind.boot(&self.closure, &self.name, &root, self.scratch.path());
        machine.run(&format!("ln -s {} /srv/shared/chosen", self.closure.outside.path));
        machine
    }
}

/// The link of a container with users of its own is refused by its owner, and the view stays as it was.
#[test]
fn a_link_that_a_container_with_private_users_makes_is_no_root() {
    need_systemd!(Idmap);
    let writable = Writable::new();
    let system = writable.closure.system("own");
    let view = writable.mount(writable.program(&system));
    let machine = writable.boot(&system, Some("pick"));
    let reload = Program::new().args(["reload", &writable.name]).run();
    assert_eq!(reload.status.code(), Some(8), "{}", reload.stderr);
    let owner = fs::symlink_metadata(writable.chosen()).unwrap().uid();
    let expected = format!("'{}': uid {owner} owns it", writable.chosen().display());
    assert!(owner != 0 && reload.stderr.contains(&expected), "{}", reload.stderr);
    assert_private(&machine, &writable.closure, &[&system, &writable.closure.init, &writable.closure.usr]);
    drop(machine);
    drop(view);
}

/// That of a container without looks like root's of the host: the directory has to be named.
#[test]
fn a_link_that_a_container_makes_as_root_is_no_root_where_it_is_named() {
    need_systemd!();
    let writable = Writable::new();
    let system = writable.closure.system("own");
    // Root writes it all the same.
    fs::set_permissions(writable.shared(), fs::Permissions::from_mode(0o755)).unwrap();
    let view = writable.mount(writable.program(&system));
    let machine = writable.boot(&system, None);
    let unnamed = writable.program(&system).arg("--dump-closure").run();
    assert!(
        unnamed.stdout.contains(&writable.closure.outside.path) && unnamed.stderr.is_empty(),
        "{unnamed:?}"
    );
    let named = writable.program(&system).arg("--untrusted").arg(writable.shared());
    let said = refused(named, 3).stderr;
    let expected = format!("'{0}': it is in '{0}', which --untrusted names", writable.shared().display());
    assert!(said.contains(&expected), "{said}");
    drop(machine);
    drop(view);
}

/// Takes from what is in a directory what keeps it from being removed, also if the test fails before that.
struct Removable(PathBuf);

impl Drop for Removable {
    fn drop(&mut self) {
        // Of links and sockets it says that it cannot.
        let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(&self.0).status();
    }
}

/// Sets the flags of files and directories as ioctl_iflags(2) does: immutable, append only. The container has no chattr.
const FLAGS: &str = r#"
    sub flag { my ($value, @paths) = @_; for (@paths) { open(my $file, "<", $_) or die "$_: $!"; my $flags = pack("l!", $value);
        ioctl($file, 0x40086602, $flags) or die "$_: $!"; } }
    flag(0x10, "/nix/var/nix/profiles/deep/er/file", "/nix/var/nix/profiles/deep/er", "/nix/var/nix/profiles", "/nix/var/nix/gcroots");
    flag(0x20, "/nix/var/nix/profiles/deep");
"#;

/// A container makes what is its own immutable, which root of the host without private users can, and mounts something there. It
/// starts again all the same, with directories that are new, and nothing is left.
#[test]
fn what_a_container_leaves_keeps_it_from_no_start() {
    need_systemd!();
    let closure = Closure::new();
    let system = closure.system("own");
    let name = unique_name();
    let scratch = crate::util::scratch();
    let root = scratch.path().join("root");
    closure.root_directory(&root);
    closure.profile(&name, &system);
    let view = Program::on(&closure.store)
        .args(["--root", &system.path, "--root", &closure.init.path, "--name", &name])
        .mount_at(Path::new("/run/nix-store-fs").join(&name));
    let own = closure.store.root().join("nix/var/nix-store-fs");
    let _removable = Removable(own.clone());

    for time in ["first", "second", "third"] {
        let scratch = scratch.path().join(time);
        let mut machine = Kind::default().boot(&closure, &name, &root, &scratch);
        assert_private(&machine, &closure, &[&system, &closure.init, &closure.usr]);
        assert_eq!(
            machine.run("ls -A /nix/var/nix/profiles /nix/var/nix/gcroots"),
            "/nix/var/nix/gcroots:\n\n/nix/var/nix/profiles:\nsystem\n"
        );
        assert_eq!(tree::list(&own).unwrap(), [PathBuf::from(&name)], "{}", machine.console());
        machine.run(
            "mkdir -p /nix/var/nix/profiles/deep/er /nix/var/nix/gcroots/mount
             touch /nix/var/nix/profiles/deep/er/file
             mount -t tmpfs none /nix/var/nix/gcroots/mount",
        );
        machine.run(&format!("perl -e '{FLAGS}'"));
        machine.refuse("rm -rf /nix/var/nix/profiles/deep");
        assert_eq!(machine.power_off().code(), Some(0), "{}", machine.console());
    }
    drop(view);
}

#[test]
fn a_container_chooses_no_root() {
    need_systemd!();
    chooses_nothing(None);
}

#[test]
fn a_container_with_private_users_chooses_no_root() {
    need_systemd!(Idmap);
    chooses_nothing(Some("pick"));
}
