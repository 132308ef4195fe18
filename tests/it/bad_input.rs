//! Bad input: one clear line that names the thing and the next step, the right exit code, nothing left behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::util::fixture::Fixture;
use crate::util::program::{Finished, Program, unique_name};
use crate::util::store::NixStore;
use crate::util::user::{NOBODY, User};
use crate::util::{mounts, scratch};

/// Mounts, which has to fail with this code and one line, and to leave nothing behind.
pub(crate) fn refused(program: Program, code: i32) -> Finished {
    let name = unique_name();
    refused_as(program.args(["--name", &name]), &name, code)
}

fn refused_as(program: Program, name: &str, code: i32) -> Finished {
    let finished = program.run();
    let said = crate::util::snapshot::render(&finished);
    assert_eq!(finished.status.code(), Some(code), "{said}");
    assert_eq!(finished.stdout, "", "{said}");
    assert_eq!(finished.stderr.lines().count(), 1, "{said}");
    assert!(!finished.stderr.contains('\u{1b}'), "colour codes: {said}");
    let source = format!("nix-store-fs:{name}");
    assert!(mounts::all().iter().all(|mount| mount.source != source), "left mounted: {said}");
    for left in [Path::new("/run/nix-store-fs").join(name), Path::new("/run/nix-store-fs/.state").join(name)]
    {
        assert!(!left.exists(), "{} is left behind: {said}", left.display());
    }
    finished
}

#[test]
fn path_does_not_exist() {
    need!(Nix);
    let store = NixStore::new();
    let path = store.root().join("no/such/system");
    assert_run!("path-does-not-exist", &refused(Program::on(&store).arg("--system").arg(path), 3));
}

#[test]
fn profile_link_dangles() {
    need!(Nix);
    let store = NixStore::new();
    let link = store.profile("system", "system-1-link");
    assert_run!("profile-link-dangles", &refused(Program::on(&store).arg("--system").arg(link), 3));
}

/// The generation is there, the store path it names has been collected.
#[test]
fn profile_of_a_collected_system() {
    need!(Nix);
    let store = NixStore::new();
    let link = store.profile("system", NixStore::name("collected").path);
    assert_run!("profile-of-a-collected-system", &refused(Program::on(&store).arg("--system").arg(link), 4));
}

#[test]
fn path_is_not_in_the_store() {
    need!(Nix);
    let store = NixStore::new();
    let file = store.root().join("a-file");
    fs::write(&file, "").unwrap();
    assert_run!("path-is-not-in-the-store", &refused(Program::on(&store).arg("--system").arg(file), 3));
    assert_run!("the-store-itself", &refused(Program::on(&store).args(["--system", "/nix/store"]), 3));
}

#[test]
fn store_path_is_not_valid() {
    need!(Nix);
    let store = NixStore::new();
    let unregistered = NixStore::name("unregistered");
    fs::create_dir(store.physical().join(&unregistered.base)).unwrap();
    let run = refused(Program::on(&store).args(["--system", &unregistered.path]), 4);
    assert_run!("store-path-is-not-valid", &run);
    let run = refused(Program::on(&store).args(["--system", &NixStore::name("absent").base]), 4);
    assert_run!("store-path-is-absent", &run);
}

#[test]
fn further_root_is_not_valid() {
    need!(Nix);
    let fixture = Fixture::new();
    let run = refused(fixture.program().args(["--root", &NixStore::name("absent").path]), 4);
    assert_run!("further-root-is-not-valid", &run);
}

/// The message says that declarative containers want the path of their system.
#[test]
fn directory_of_profiles_without_system() {
    need!(Nix);
    let store = NixStore::new();
    let directory = store.profiles().join("per-container/web");
    fs::create_dir_all(&directory).unwrap();
    let run = refused(Program::on(&store).arg("--system").arg(directory), 3);
    assert!(run.stderr.contains("store path of their system"), "{}", run.stderr);
    assert_run!("directory-of-profiles-without-system", &run);
}

#[test]
fn store_directory_does_not_exist() {
    let dir = scratch();
    let root = dir.path().join("mistyped");
    let program = Program::new().arg("--store").arg(format!("local?root={}", root.display()));
    let run = refused(program.args(["--system", &NixStore::name("x").path]), 5);
    assert!(!root.exists(), "a store was made at a mistyped root");
    assert_run!("store-directory-does-not-exist", &run);
}

#[test]
fn store_daemon_is_down() {
    let dir = scratch();
    let socket = dir.path().join("socket");
    let program = Program::new().arg("--store").arg(format!("unix://{}", socket.display()));
    let run = refused(program.args(["--system", &NixStore::name("x").path]), 5);
    assert_run!("store-daemon-is-down", &run);
}

#[test]
fn store_uri_is_unknown() {
    let program = Program::new().args(["--store", "gopher://example"]);
    let run = refused(program.args(["--system", &NixStore::name("x").path]), 5);
    assert_run!("store-uri-is-unknown", &run);
}

/// As an ordinary user, on a store that only root may read.
#[test]
fn store_without_permission() {
    need!(Root, Nix);
    let fixture = Fixture::new();
    let database = fixture.store.root().join("nix/var/nix/db");
    fs::set_permissions(&database, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let user = User::new();
    let run = refused(user.plain(fixture.program()), 5);
    assert_run!("store-without-permission", &run);
}

#[test]
fn mount_point_is_a_file() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let file = fixture.store.root().join("a-file");
    fs::write(&file, "").unwrap();
    assert_run!("mount-point-is-a-file", &refused(fixture.program().arg(file), 6));
}

#[test]
fn mount_point_is_not_empty() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    fs::write(dir.path().join("something"), "").unwrap();
    assert_run!("mount-point-is-not-empty", &refused(fixture.program().arg(dir.path()), 6));
    assert!(dir.path().join("something").exists());
}

#[test]
fn mount_point_is_a_mount() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let _mount = mounts::Own::mount("tmpfs", dir.path(), "");
    assert_run!("mount-point-is-a-mount", &refused(fixture.program().arg(dir.path()), 6));
    let view = fixture.mount();
    assert_run!("mount-point-is-a-view", &refused(fixture.program().arg(view.path()), 6));
    assert!(view.path().join(&fixture.data.base).exists(), "the view that was there is still served");
}

#[test]
fn mount_point_cannot_be_made() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let path = fixture.store.root().join("a-file");
    fs::write(&path, "").unwrap();
    assert_run!("mount-point-cannot-be-made", &refused(fixture.program().arg(path.join("below")), 6));
}

/// Roots of the collector cannot be links in a file.
#[test]
fn gc_root_is_a_file() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let file = fixture.store.root().join("a-file");
    fs::write(&file, "").unwrap();
    assert_run!("gc-root-is-a-file", &refused(fixture.program().arg("--gc-root").arg(&file), 9));
    assert_eq!(fs::read(&file).unwrap(), b"", "the file is left alone");
}

/// The same below a file: the file is named, and not what was to be made below it.
#[test]
fn gc_root_is_below_a_file() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let file = fixture.store.root().join("a-file");
    fs::write(&file, "").unwrap();
    let program = fixture.program().arg("--gc-root").arg(file.join("below/it"));
    assert_run!("gc-root-is-a-file", &refused(program, 9));
}

/// A link is followed by nobody: a mount point is a directory.
#[test]
fn mount_point_is_a_dangling_link() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let link = fixture.store.root().join("a-link");
    symlink("nowhere", &link).unwrap();
    assert_run!("mount-point-is-a-dangling-link", &refused(fixture.program().arg(&link), 6));
}

/// A `/dev` without `fuse`, in a mount namespace of its own.
#[test]
fn fuse_device_is_absent() {
    need!(Root, Nix);
    let fixture = Fixture::new();
    let script =
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec \"$@\"";
    let program = fixture.program().inside(["unshare", "-m", "sh", "-c", script, "sh"]);
    assert_run!("fuse-device-is-absent", &refused(program, 7));
}

/// A plain file, or another device, in the place of `/dev/fuse`.
#[test]
fn fuse_device_is_another() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let file = fixture.store.root().join("a-file");
    fs::write(&file, "").unwrap();
    for other in [&file, Path::new("/dev/null")] {
        let script = format!("mount --bind {} /dev/fuse && exec \"$@\"", other.display());
        let program = fixture.program().inside(["unshare", "-m", "sh", "-c", &script, "sh"]);
        assert_run!("fuse-device-is-another", &refused(program, 7));
    }
}

/// Neither the mount table nor the program itself can be found without `/proc`.
#[test]
fn proc_is_not_mounted() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let script = "mount -t tmpfs none /proc && exec \"$@\"";
    let inside = |program: Program| program.inside(["unshare", "-m", "sh", "-c", script, "sh"]);
    assert_run!("proc-is-not-mounted", &refused(inside(fixture.program()), 1));
    let reload = inside(Program::new().args(["reload", "/nowhere"])).run();
    assert_eq!(reload.status.code(), Some(1), "{reload:?}");
    assert!(reload.stderr.contains("/proc is not mounted"), "{reload:?}");
}

/// A store on a read-only mount: what is advised is what works.
#[test]
fn store_is_on_a_read_only_mount() {
    need!(Root, Nix);
    let fixture = Fixture::new();
    // The library that the program links with brings the database up to date, which Nix's commands may be too old for.
    assert_eq!(fixture.program().arg("--dump-closure").run().status.code(), Some(0));
    let root = fixture.store.root().display().to_string();
    let script = format!("mount --bind {root} {root} && mount -o remount,bind,ro {root} && exec \"$@\"");
    let inside = |program: Program| program.inside(["unshare", "-m", "sh", "-c", &script, "sh"]);
    let refused = refused(inside(fixture.program()), 5);
    assert_run!("store-is-on-a-read-only-mount", &refused);
    let advised =
        refused.stderr.split('\'').find(|part| part.ends_with("read-only=true")).expect("an address");
    let program =
        Program::new().args(["--store", advised, "--system", &fixture.system.path, "--dump-closure"]);
    let feature = "build-users-group =\nextra-experimental-features = read-only-local-store\n";
    let finished = inside(program).env("NIX_CONFIG", feature).run();
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    assert_eq!(finished.stdout.lines().count(), fixture.members().len());
}

/// What is wrong with a line of a roots file is said with its number, whether a link or the store refuses it.
#[test]
fn a_line_of_a_roots_file_is_named_with_its_number() {
    need!(Fuse, Nix);
    let fixture = Fixture::new();
    let at = scratch();
    let file = at.path().join("roots");
    let absent = at.path().join("absent");
    let good = &fixture.system.path;
    let unknown = NixStore::name("unknown");
    let program = || fixture.program().arg("--roots-file").arg(&file);
    let cases = [
        (format!("# all\n{good}\n\n  {}  # it\n", absent.display()), 4, 3, absent.display().to_string()),
        (format!("{good}\n{0}\n{0}\n", unknown.path), 2, 4, unknown.base.clone()),
        (format!("\n{good}\n{}/\n", at.path().display()), 3, 3, at.path().display().to_string()),
    ];
    for (text, line, code, path) in cases {
        fs::write(&file, text).unwrap();
        let said = refused(program(), code).stderr;
        assert!(said.contains(&format!("line {line} of the roots file '{}': ", file.display())), "{said}");
        assert!(said.contains(&path), "{said}");
    }
    fs::write(&file, format!("{good}\n?{}\n", absent.display())).unwrap();
    let dump = program().arg("--dump-closure").run();
    assert_eq!(dump.status.code(), Some(0), "{dump:?}");
    assert!(dump.stderr.contains("line=2") && dump.stderr.contains("not there yet"), "{dump:?}");
    // What an option names is in no file.
    let said = refused(Program::on(&fixture.store).arg("--root").arg(&absent), 3).stderr;
    assert!(!said.contains("roots file"), "{said}");
}

/// A roots file in which everything is a comment serves nothing, which is said.
#[test]
fn roots_file_names_no_root() {
    need!(Nix);
    let store = NixStore::new();
    let file = store.root().join("roots");
    fs::write(&file, "# /nix/store/later\n\n").unwrap();
    let finished = Program::on(&store).arg("--roots-file").arg(&file).arg("--dump-closure").run();
    assert_eq!((finished.status.code(), &*finished.stdout), (Some(0), ""), "{finished:?}");
    assert!(finished.stderr.contains("names no root"), "{finished:?}");
    assert!(finished.stderr.contains(&file.display().to_string()), "{finished:?}");
    fs::write(&file, "?/absent\n").unwrap();
    let finished = Program::on(&store).arg("--roots-file").arg(&file).arg("--dump-closure").run();
    assert!(!finished.stderr.contains("names no root"), "{finished:?}");
}

/// An ordinary user, a `/dev/fuse` for root alone.
#[test]
fn fuse_device_is_not_allowed() {
    need!(Root, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let run = refused(user.with_device(fixture.program(), "0600", "/usr/bin:/bin"), 7);
    assert_eq!(user.left_behind(), [] as [std::path::PathBuf; 0]);
    assert_run!("fuse-device-is-not-allowed", &run);
}

#[test]
fn fusermount_is_absent() {
    need!(Root, Nix, Fuse);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let run = refused(user.with_device(fixture.program(), "0666", "/var/empty"), 7);
    assert_eq!(user.left_behind(), [] as [std::path::PathBuf; 0]);
    assert_run!("fusermount-is-absent", &run);
}
