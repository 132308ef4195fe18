//! Who chooses the roots: nobody but root, the user and the owner of the store. What another one could change is refused by
//! its name, at a start and at a reload.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::bad_input::refused;
use crate::util::faulty::{Cache, Disk};
use crate::util::fixture::Fixture;
use crate::util::program::Program;
use crate::util::service::Service;
use crate::util::store::{NixStore, as_user};
use crate::util::user::{NOBODY, User};

/// An ordinary user of the host, or root of a container with users of its own.
const STRANGER: u32 = 4242;

/// A directory of profiles with a system, and below a directory that a case makes unsafe.
struct Profiles {
    fixture: Fixture,
    dir: TempDir,
}

impl Profiles {
    fn new() -> Self {
        let fixture = Fixture::new();
        let dir = crate::util::scratch();
        let profiles = Self { fixture, dir };
        fs::create_dir_all(profiles.at("shared/web")).unwrap();
        symlink(&profiles.fixture.system.path, profiles.at("shared/web/system")).unwrap();
        symlink("shared/web", profiles.at("web")).unwrap();
        fs::write(profiles.at("roots"), format!("{}\n", profiles.fixture.system.path)).unwrap();
        profiles
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The program with roots that lead through everything here.
    fn program(&self) -> Program {
        Program::on(&self.fixture.store)
            .arg("--system")
            .arg(self.at("web"))
            .arg("--roots-file")
            .arg(self.at("roots"))
    }

    fn service(&self) -> Service {
        Service::new(&self.fixture.store).with([Path::new("--system"), &self.at("web")])
    }
}

/// Lets a stranger change something.
type Spoil<'a> = &'a dyn Fn(&Profiles);

fn give(path: &Path) {
    lchown(path, Some(STRANGER), Some(STRANGER)).unwrap();
}

fn run(command: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(command).args(arguments).arg(path).status();
    assert!(status.unwrap_or_else(|error| panic!("{command}: {error}")).success(), "{command} {arguments:?}");
}

/// What a stranger could change is named, with who that is and what to do, and nothing is mounted.
#[test]
fn a_start_refuses_what_a_stranger_could_change() {
    need!(Root, Fuse, Nix);
    let cases: [(&str, &str, Spoil<'_>); 11] = [
        ("a link", "shared/web/system", &|p| give(&p.at("shared/web/system"))),
        ("a link to a directory", "web", &|p| give(&p.at("web"))),
        ("a directory", "shared/web", &|p| give(&p.at("shared/web"))),
        ("a directory above", "shared", &|p| give(&p.at("shared"))),
        ("a directory for all", "shared", &|p| p.mode("shared", 0o777)),
        ("a directory for a group", "shared", &|p| {
            chown(p.at("shared"), None, Some(STRANGER)).unwrap();
            p.mode("shared", 0o770);
        }),
        ("a directory with a list", "shared", &|p| {
            run("setfacl", &["-m", &format!("u:{STRANGER}:rwx")], &p.at("shared"));
        }),
        ("a stranger's link where anybody may put one", "shared/web/system", &|p| {
            p.mode("shared/web", 0o1777);
            give(&p.at("shared/web/system"));
        }),
        ("a file of roots", "roots", &|p| give(&p.at("roots"))),
        ("a file of roots for all", "roots", &|p| p.mode("roots", 0o646)),
        ("a link to a file of roots", "roots", &|p| {
            fs::rename(p.at("roots"), p.at("others")).unwrap();
            symlink("others", p.at("roots")).unwrap();
            give(&p.at("roots"));
        }),
    ];
    for (what, entry, spoil) in cases {
        let profiles = Profiles::new();
        if what.contains("list") && crate::util::gate::find("setfacl").is_none() {
            crate::util::gate::not_run("access control lists need setfacl");
            continue;
        }
        spoil(&profiles);
        let said = refused(profiles.program(), 3).stderr;
        let entry = format!("'{}'", profiles.at(entry).display());
        assert!(said.contains(&entry) && said.contains("give the store path itself"), "{what}: {said}");
        assert!(said.contains("could choose what is served"), "{what}: {said}");

        // Nothing is served, so it is a warning, and the answer is that of Nix.
        let dump = profiles.program().arg("--dump-closure").run();
        assert_eq!(dump.status.code(), Some(0), "{what}: {dump:?}");
        assert!(dump.stderr.contains("would be refused") && dump.stderr.contains(&entry), "{what}: {dump:?}");
        assert_eq!(dump.stdout.lines().count(), profiles.fixture.members().len(), "{what}");
    }
}

/// Moves something as a stranger, who owns the directory that it is in. Returns whether the kernel lets them.
fn stranger_moves(from: &Path, to: &Path) -> bool {
    let mut command = Command::new("setpriv");
    let moved = command.args(as_user(STRANGER)).args(["mv", "-nT"]).args([from, to]).output().unwrap();
    assert_eq!(moved.status.success(), !from.exists() && !from.is_symlink(), "{moved:?}");
    moved.status.success()
}

/// A stranger owns a directory in which root has made something, and moves it to where a root is looked for. What they can
/// move is refused by name; what they cannot is followed where others may put things, too.
#[test]
fn what_a_stranger_has_moved_is_no_root() {
    need!(Root, Fuse, Nix);
    let profiles = Profiles::new();
    let outside = &profiles.fixture.outside;
    let (theirs, public) = (profiles.at("theirs"), profiles.at("public"));
    for dir in [&theirs, &public, &theirs.join("open"), &theirs.join("closed")] {
        fs::create_dir(dir).unwrap();
    }
    for link in ["link", "open/system", "closed/system"] {
        symlink(&outside.path, theirs.join(link)).unwrap();
    }
    fs::write(theirs.join("roots"), format!("{}\n", outside.path)).unwrap();
    for dir in ["public", "theirs/open"] {
        profiles.mode(dir, 0o1777);
    }
    chown(&theirs, Some(STRANGER), Some(STRANGER)).unwrap();
    let awaited = public.join("awaited");
    let roots = format!("{}\n?{}\n", profiles.fixture.system.path, awaited.display());
    fs::write(profiles.at("roots"), roots).unwrap();
    let mut service = profiles.service().with([Path::new("--roots-file"), &profiles.at("roots")]);
    service.start_ready();

    for name in ["link", "open"] {
        assert!(stranger_moves(&theirs.join(name), &awaited), "{name}");
        let reload = service.reload();
        assert!(!service.path().join(&outside.base).exists(), "a stranger has chosen a root: {name}");
        assert_eq!(reload.status.code(), Some(8), "{name}: {reload:?}");
        let expected = format!("'{}': others can write '{}'", awaited.display(), public.display());
        assert!(reload.stderr.contains(&expected), "{name}: {reload:?}");
        assert!(reload.stderr.contains("mode 1777"), "{name}: {reload:?}");
        fs::rename(&awaited, profiles.at(&format!("{name}.away"))).unwrap();
    }
    assert!(stranger_moves(&theirs.join("roots"), &awaited));
    let said = refused(profiles.fixture.program().arg("--roots-file").arg(&awaited), 3).stderr;
    assert!(
        said.contains(&format!("'{}': others can write '{}'", awaited.display(), public.display())),
        "{said}"
    );
    fs::remove_file(&awaited).unwrap();

    assert!(
        !stranger_moves(&theirs.join("closed"), &awaited),
        "the kernel lets a stranger move root's directory"
    );
    fs::rename(theirs.join("closed"), &awaited).unwrap();
    service.reload_well();
    assert!(service.path().join(&outside.base).exists());
    service.stop();
}

/// What root alone can change is followed: also root's directory where others may put things of their own, and what its own
/// group may write.
#[test]
fn a_start_follows_what_root_alone_can_change() {
    need!(Root, Fuse, Nix);
    let profiles = Profiles::new();
    profiles.mode("shared", 0o1777);
    profiles.mode("shared/web", 0o775);
    profiles.mode("roots", 0o664);
    let view = profiles.program().mount();
    assert!(view.path().join(&profiles.fixture.system.base).exists());
    let dump = profiles.program().arg("--dump-closure").run();
    assert_eq!((dump.status.code(), dump.stderr.as_str()), (Some(0), ""));
}

/// A root that is waited for may be put in its place by a stranger: then the reload fails, by name, and the view stays.
#[test]
fn a_reload_refuses_what_a_stranger_has_put_there() {
    need!(Root, Fuse, Nix);
    let profiles = Profiles::new();
    let outside = &profiles.fixture.outside;
    let awaited = profiles.at("shared/awaited");
    profiles.mode("shared", 0o1777);
    let roots = format!("{}\n?{}\n", profiles.fixture.system.path, awaited.display());
    fs::write(profiles.at("roots"), roots).unwrap();
    let mut service = profiles.service().with([Path::new("--roots-file"), &profiles.at("roots")]);
    service.start_ready();
    symlink(&outside.path, &awaited).unwrap();
    give(&awaited);
    let reload = service.reload();
    assert_eq!(reload.status.code(), Some(8), "{reload:?}");
    assert!(reload.stderr.contains(&format!("'{}'", awaited.display())), "{reload:?}");
    assert!(!service.path().join(&outside.base).exists());
    assert!(service.path().join(&profiles.fixture.system.base).exists());
    // Root's own is refused as well while others could have moved it there.
    lchown(&awaited, Some(0), Some(0)).unwrap();
    assert_eq!(service.reload().status.code(), Some(8));
    profiles.mode("shared", 0o755);
    service.reload_well();
    assert!(service.path().join(&outside.base).exists());
    service.stop();
}

/// A change of owner or mode is a change that is watched.
#[test]
fn a_watch_notices_who_can_change_the_roots() {
    need!(Root, Fuse, Nix);
    const FAILED: &str = "the reload failed";
    let profiles = Profiles::new();
    let mut service = profiles.service().with(["--watch"]);
    service.start_ready();
    profiles.mode("shared", 0o777);
    service.wait_logged(FAILED, 1);
    assert!(service.log().contains("mode 0777"), "{}", service.log());
    // Now there is something to be seen when the right is taken away.
    let link = profiles.at("shared/web/system");
    fs::remove_file(&link).unwrap();
    symlink(&profiles.fixture.outside.path, &link).unwrap();
    let outside = service.path().join(&profiles.fixture.outside.base);
    assert!(!outside.exists());
    profiles.mode("shared", 0o755);
    service.wait_for(&outside);
    service.stop();
}

/// What is named is refused although root owns it, by its name and by another one of the same directory.
#[test]
fn what_the_caller_does_not_trust_is_refused() {
    need!(Root, Fuse, Nix);
    let profiles = Profiles::new();
    let untrusted = |dir: &Path| profiles.program().arg("--untrusted").arg(dir);
    let says = |program: Program, entry: &Path| {
        let said = refused(program, 3).stderr;
        assert!(said.contains(&format!("'{}'", entry.display())), "{said}");
        assert!(said.contains("which --untrusted names"), "{said}");
    };
    let shared = profiles.at("shared");
    says(untrusted(&shared), &shared);
    says(untrusted(&profiles.at("shared/web")), &profiles.at("shared/web"));
    says(untrusted(&profiles.at("roots")), &profiles.at("roots"));
    symlink("shared", profiles.at("link")).unwrap();
    says(untrusted(&profiles.at("link")), &shared);
    let other = profiles.at("other");
    fs::create_dir(&other).unwrap();
    let script = format!("mount --bind {} {} && exec \"$@\"", shared.display(), other.display());
    says(untrusted(&other).inside(["unshare", "-m", "sh", "-c", &script, "sh"]), &shared);
    let dump = untrusted(&shared).arg("--dump-closure").run();
    assert_eq!(dump.status.code(), Some(0), "{dump:?}");
    assert!(dump.stderr.contains("which --untrusted names"), "{dump:?}");

    // Not what is next to it, and a store path by its own name has nothing to do with any of it.
    let view = untrusted(&profiles.at("absent")).arg("--untrusted").arg(&other).mount();
    assert!(view.path().join(&profiles.fixture.system.base).exists());
    drop(profiles.fixture.program().arg("--untrusted").arg(profiles.fixture.store.root()).mount());
    // A link that leads into the store stays root's, though what it leads to is bound elsewhere.
    let linked = profiles.at("driver");
    symlink(&profiles.fixture.system.path, &linked).unwrap();
    let program = Program::on(&profiles.fixture.store).arg("--root").arg(&linked);
    drop(program.arg("--untrusted").arg(&linked).mount());
}

/// In a user namespace, root of the host shows as the overflow user. An ordinary user has a group of their own.
#[test]
fn an_ordinary_user_trusts_root_and_themselves() {
    need!(Root, Nix);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let own = user.runtime().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o775)).unwrap();
    symlink(&fixture.system.path, own.join("system")).unwrap();
    lchown(own.join("system"), Some(NOBODY), Some(NOBODY)).unwrap();
    let dump = || Program::on(&fixture.store).arg("--system").arg(&own).arg("--dump-closure");
    let alone = || user.plain(dump()).run();
    let namespace: Vec<String> = ["setpriv".to_owned()]
        .into_iter()
        .chain(as_user(NOBODY))
        .chain(["unshare", "--user", "--map-root-user"].map(str::to_owned))
        .collect();
    let mapped = || user.plain(dump()).inside(&namespace).run();
    for finished in [alone(), mapped()] {
        assert_eq!((finished.status.code(), finished.stderr.as_str()), (Some(0), ""));
        assert_eq!(finished.stdout.lines().count(), fixture.members().len());
    }
    chown(&own, None, Some(STRANGER)).unwrap();
    for finished in [alone(), mapped()] {
        assert!(finished.stderr.contains("others than its owner can write it"), "{finished:?}");
    }
    chown(&own, Some(STRANGER), Some(NOBODY)).unwrap();
    let finished = alone();
    assert!(finished.stderr.contains("uid 4242 owns it"), "{finished:?}");
}

/// A pipe of a stranger's in the place of the roots file, in a directory where others may put it, is refused by its owner, and not
/// waited for.
#[test]
fn a_pipe_of_a_stranger_is_not_waited_for() {
    need!(Root);
    let profiles = Profiles::new();
    fs::remove_file(profiles.at("roots")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, profiles.at("roots"), rustix::fs::Mode::RUSR).unwrap();
    chown(profiles.at("roots"), Some(STRANGER), Some(STRANGER)).unwrap();
    let finished = refused(profiles.program().arg(profiles.at("view")), 3);
    assert!(finished.stderr.contains(&format!("uid {STRANGER} owns it")), "{finished:?}");
}

/// Who mounts a FUSE file system makes up the owners and modes in it: the same that is accepted where root has mounted it is
/// refused by name where a stranger has, as a way to a root, as a roots file, and as a place for links.
#[test]
fn an_owner_that_a_stranger_makes_up_is_not_believed() {
    need!(Root, Fuse, Nix);
    let profiles = Profiles::new();
    let mirrored = |user| Disk::mounted_by(user, profiles.dir.path(), Cache::Nothing);
    let system = |disk: &Disk| profiles.fixture.program().arg("--root").arg(disk.path().join("web"));
    let file = |disk: &Disk| profiles.fixture.program().arg("--roots-file").arg(disk.path().join("roots"));
    let links = |disk: &Disk| profiles.fixture.program().arg("--gc-root").arg(disk.path().join("shared"));

    let theirs = mirrored(STRANGER);
    let said = format!("'{}'", theirs.path().display());
    for (program, code) in [(system(&theirs), 3), (file(&theirs), 3), (links(&theirs), 9)] {
        let stderr = refused(program, code).stderr;
        assert!(
            stderr.contains(&said) && stderr.contains(&format!("uid {STRANGER} has mounted")),
            "{stderr}"
        );
    }

    let roots = mirrored(0);
    for program in [system(&roots), file(&roots)] {
        let view = program.mount();
        assert!(view.path().join(&profiles.fixture.system.base).exists());
    }
}

/// A link that comes to lead through what a stranger has mounted is not followed at a reload, whoever is said to own it there.
#[test]
fn a_reload_refuses_what_a_stranger_has_mounted() {
    need!(Root, Fuse, Nix);
    let profiles = Profiles::new();
    let outside = &profiles.fixture.outside;
    let other = crate::util::scratch();
    symlink(&outside.path, other.path().join("system")).unwrap();
    let [theirs, own] = [STRANGER, 0].map(|user| Disk::mounted_by(user, other.path(), Cache::Nothing));
    let mut service = profiles.service();
    service.start_ready();
    let lead_through = |disk: &Disk| {
        fs::remove_file(profiles.at("web")).unwrap();
        symlink(disk.path(), profiles.at("web")).unwrap();
    };
    lead_through(&theirs);
    let reload = service.reload();
    assert!(!service.path().join(&outside.base).exists(), "a stranger has chosen a root");
    assert_eq!(reload.status.code(), Some(8), "{reload:?}");
    let said = format!("'{}': uid {STRANGER} has mounted", theirs.path().display());
    assert!(reload.stderr.contains(&said), "{reload:?}");
    lead_through(&own);
    service.reload_well();
    assert!(service.path().join(&outside.base).exists());
    service.stop();
}
