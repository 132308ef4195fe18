//! The state of a view is its user's own: what somebody else has put in its place is refused, and never written through.
//! Without XDG_RUNTIME_DIR the state of an ordinary user is below /tmp, under a name that everybody can guess.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::util::faulty::{Cache, Disk};
use crate::util::mounts::Own;
use crate::util::program::{Finished, Program, unique_name};
use crate::util::store::NixStore;
use crate::util::user::{NOBODY, User};

/// Who plants things.
const OTHER: u32 = 65533;
const FILES: [&str; 6] = ["lock", "state", "state.new", "journal/nodes", "journal/nodes.2", "server"];

/// A user without XDG_RUNTIME_DIR, and the `/tmp` of that user.
struct Homeless {
    user: User,
    tmp: TempDir,
    name: String,
}

impl Homeless {
    fn new() -> Self {
        let tmp = crate::util::scratch();
        fs::set_permissions(tmp.path(), Permissions::from_mode(0o1777)).unwrap();
        Self { user: User::new(), tmp, name: unique_name() }
    }

    fn base(&self) -> PathBuf {
        self.tmp.path().join(format!("nix-store-fs-{NOBODY}"))
    }

    fn state(&self) -> PathBuf {
        self.base().join(".state").join(&self.name)
    }

    /// Directories as the program makes them.
    fn make(&self) {
        for (path, mode) in [(self.base(), 0o755), (self.base().join(".state"), 0o700), (self.state(), 0o700)]
        {
            make(&path, NOBODY, mode);
        }
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let program = Program::new().args(arguments);
        self.user.plain(program).env("XDG_RUNTIME_DIR", "").env("TMPDIR", self.tmp.path()).run()
    }

    fn start(&self) -> Finished {
        self.run(&[
            "--system",
            &NixStore::name("any").path,
            "--name",
            &self.name,
            "--store",
            "local?root=/nowhere",
        ])
    }

    fn reload(&self) -> Finished {
        self.run(&["reload", &self.name])
    }

    /// Both a start and a reload end with code 6, and name this.
    fn assert_refused(&self, path: &Path) {
        for finished in [self.start(), self.reload()] {
            assert_eq!(finished.status.code(), Some(6), "{finished:?}");
            assert!(
                finished.stderr.starts_with(&format!("nix-store-fs: '{}' ", path.display())),
                "{finished:?}"
            );
            assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        }
    }
}

fn make(path: &Path, owner: u32, mode: u32) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
}

/// A name below /tmp that somebody else took first.
#[test]
fn a_directory_of_somebody_else_is_refused() {
    need!(Root);
    let homeless = Homeless::new();
    make(&homeless.base(), OTHER, 0o777);
    make(&homeless.base().join(".state"), OTHER, 0o777);
    make(&homeless.state(), OTHER, 0o777);
    let socket = UnixListener::bind(homeless.state().join("control")).unwrap();
    socket.set_nonblocking(true).unwrap();
    fs::set_permissions(homeless.state().join("control"), Permissions::from_mode(0o777)).unwrap();
    homeless.assert_refused(&homeless.base());
    assert!(socket.accept().is_err(), "it spoke to somebody else's socket");
    assert!(!homeless.state().join("lock").exists(), "it wrote into somebody else's directory");
}

/// The same with a link that leads into a directory of the user's own.
#[test]
fn a_link_to_an_own_directory_is_refused() {
    need!(Root);
    for level in 0..3 {
        let homeless = Homeless::new();
        homeless.make();
        let path = [homeless.base(), homeless.base().join(".state"), homeless.state()][level].clone();
        let real = homeless.tmp.path().join("real");
        fs::rename(&path, &real).unwrap();
        symlink(&real, &path).unwrap();
        homeless.assert_refused(&path);
    }
}

/// A directory of the user's own into which others can put something.
#[test]
fn an_own_directory_that_is_open_to_others_is_refused() {
    need!(Root);
    for (level, mode) in [(0, 0o775), (0, 0o1777), (1, 0o750), (2, 0o705)] {
        let homeless = Homeless::new();
        homeless.make();
        let path = [homeless.base(), homeless.base().join(".state"), homeless.state()][level].clone();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        homeless.assert_refused(&path);
    }
}

/// A FUSE file system of somebody else's over a directory of theirs: it says that everything in it is the user's own.
#[test]
fn an_owner_that_somebody_else_makes_up_is_refused() {
    need!(Root, Fuse);
    let homeless = Homeless::new();
    homeless.make();
    let disk = Disk::mounted_by(OTHER, &homeless.base(), Cache::Nothing);
    let planted = Homeless { tmp: crate::util::scratch(), ..homeless };
    fs::set_permissions(planted.tmp.path(), Permissions::from_mode(0o1777)).unwrap();
    make(&planted.base(), OTHER, 0o777);
    rustix::mount::mount_bind(disk.path(), planted.base()).unwrap();
    let _over = Own::adopt(&planted.base());
    planted.assert_refused(&planted.base());
}

/// A link in the place of any file: what it leads to is the user's own, and stays as it is.
#[test]
fn nothing_is_written_through_a_planted_link() {
    need!(Root);
    let homeless = Homeless::new();
    homeless.make();
    make(&homeless.state().join("journal"), NOBODY, 0o700);
    let victim = homeless.tmp.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    chown(&victim, Some(NOBODY), Some(NOBODY)).unwrap();
    for file in FILES {
        let link = homeless.state().join(file);
        symlink(&victim, &link).unwrap();
        let finished = homeless.start();
        assert_eq!(finished.status.code(), Some(6), "{file}: {finished:?}");
        assert!(finished.stderr.contains(&link.display().to_string()), "{file}: {finished:?}");
        assert_eq!(fs::read(&victim).unwrap(), b"precious", "{file}");
        fs::remove_file(link).unwrap();
    }
}

/// What the user has made is used: the start fails only because there is no such store.
#[test]
fn an_own_directory_is_used() {
    need!(Root);
    let homeless = Homeless::new();
    for _ in 0..2 {
        let finished = homeless.start();
        assert_eq!(finished.status.code(), Some(5), "{finished:?}");
        assert_eq!(homeless.reload().status.code(), Some(8));
        assert!(homeless.base().join(".state").exists());
    }
}

/// Root's own directory is examined as well.
#[test]
fn the_directory_of_root_is_examined() {
    need!(Root);
    let script =
        "mkdir -p /run/nix-store-fs && mount -t tmpfs -o mode=777 none /run/nix-store-fs && exec \"$@\"";
    let program = Program::new().inside(["unshare", "-m", "sh", "-c", script, "sh"]);
    let finished = program.args(["--system", &NixStore::name("any").path, "--name", &unique_name()]).run();
    assert_eq!(finished.status.code(), Some(6), "{finished:?}");
    assert!(finished.stderr.contains("'/run/nix-store-fs' is open to others"), "{finished:?}");
}
