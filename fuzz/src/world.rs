//! A small store, made once.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix_store_fs::values::{StorePath, View};
use nix_store_fs::view::backing::Backing;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use tempfile::TempDir;

/// What can be served.
pub(crate) const MEMBERS: [&str; 4] = [
    "00000000000000000000000000000000-a",
    "00000000000000000000000000000000-b",
    "00000000000000000000000000000000-file",
    "00000000000000000000000000000000-link",
];
/// What is in the store and never in a view.
pub(crate) const OUTSIDE: &str = "00000000000000000000000000000000-outside";
/// Names that occur, and some that do not.
pub(crate) const NAMES: [&str; 14] =
    ["f", "g", "x", "sub", "link", "long", "wide", "1", "200", "absent", ".", "..", "", "a/b"];

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) store: PathBuf,
}

pub(crate) static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        // Not removed at the end: libFuzzer ends the process. scripts/fuzz does.
        let dir = tempfile::Builder::new().prefix("nsf-fuzz.").tempdir().unwrap();
        let store = dir.path().join("store");
        let [a, b, file, link] = MEMBERS.map(|name| store.join(name));
        for dir in [&a.join("sub/sub"), &a.join("wide"), &b.join("x"), &store.join(OUTSIDE)] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(a.join("f"), "contents").unwrap();
        for other in ["g", "sub/f", "sub/sub/f"] {
            fs::hard_link(a.join("f"), a.join(other)).unwrap();
        }
        fs::write(a.join("long"), (0..70_000_u32).map(|n| n as u8).collect::<Vec<_>>()).unwrap();
        (0..300).for_each(|n| fs::write(a.join(format!("wide/{n}")), n.to_string()).unwrap());
        symlink("sub/f", a.join("link")).unwrap();
        fs::write(b.join("x/f"), "").unwrap();
        fs::write(&file, "a file").unwrap();
        symlink(MEMBERS[0], link).unwrap();
        fs::write(store.join(OUTSIDE).join("f"), "secret").unwrap();
        settle(&store);
        Self { dir, store }
    }

    /// The file at `path` below the store directory, if it is there and no link leads to it.
    pub(crate) fn real(&self, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(str::from_utf8(path).ok()?);
        let leads = path.ancestors().skip(1).all(|above| !self.store.join(above).is_symlink());
        let real = self.store.join(path);
        (leads && real.symlink_metadata().is_ok()).then_some(real)
    }

    pub(crate) fn backing(&self) -> Backing {
        Backing::new(open(&self.store))
    }
}

fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

/// The view of those members whose bit is set.
pub(crate) fn view(bits: u8) -> View {
    let shown = MEMBERS.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1);
    shown.map(|(_, name)| (StorePath::new(name).unwrap(), 1)).collect()
}

/// Gives everything the modification time of store objects.
fn settle(at: &Path) {
    if at.symlink_metadata().unwrap().is_dir() {
        fs::read_dir(at).unwrap().for_each(|entry| settle(&entry.unwrap().path()));
    }
    let one = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: one, last_modification: one };
    rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
