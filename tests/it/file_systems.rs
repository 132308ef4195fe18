//! Stores on different file systems: a listing is complete and each byte right on each of them, also when the server is
//! killed in the middle.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::util::fixture::Fixture;
use crate::util::image::{self, Image};
use crate::util::load::add_many;
use crate::util::mounts::Own;
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::{self, tree};

/// Entries of the large directory.
const ENTRIES: usize = 20_000;

fn entry(number: usize) -> String {
    format!("an entry with a name of some length, number {number:06}")
}

/// The closure that is served, in a store on the file system of the test.
struct Closure {
    fixture: Fixture,
    many: Member,
    wide: Member,
}

impl Closure {
    fn new(dir: &Path, entries: usize) -> Self {
        let fixture = Fixture::in_store(NixStore::below(dir));
        let many = add_many(&fixture.store, 600);
        let wide = fixture.store.add_in_place("wide", &[], |path| {
            fs::create_dir(path).unwrap();
            for number in 0..entries {
                File::create(path.join(entry(number))).unwrap();
            }
        });
        Self { fixture, many, wide }
    }

    /// Serves it from the store at `root`, and looks at everything.
    fn check(&self, root: &Path) {
        let physical = root.join("nix/store");
        let mut service = Service::on(&format!("local?root={}", root.display())).with([
            "--system",
            &self.fixture.system.path,
            "--root",
            &self.many.path,
            "--root",
            &self.wide.path,
        ]);
        service.start_ready();
        let directory = service.path().join(&self.wide.base);

        // Killed before the listing, in the middle, and near the end.
        let mut listed = Vec::new();
        for (at, name) in fs::read_dir(&directory).unwrap().enumerate() {
            listed.push(name.unwrap_or_else(|error| panic!("entry {at}: {error}")).file_name());
            if at == 0 || at == ENTRIES / 2 || at == ENTRIES * 9 / 10 {
                service.kill(Victim::Server);
            }
        }
        assert_eq!(listed.len(), ENTRIES, "in the listing with killed servers");
        let once: BTreeSet<_> = listed.iter().collect();
        assert_eq!(once.len(), ENTRIES, "some entry is listed twice");
        assert!((0..ENTRIES).all(|number| once.contains(&std::ffi::OsString::from(entry(number)))));
        assert_eq!(tree::list(&directory).unwrap(), tree::list(&physical.join(&self.wide.base)).unwrap());

        let mut members = self.fixture.members();
        members.push(self.many.base.clone());
        let entries: Vec<(PathBuf, tree::Entry)> =
            members.iter().flat_map(|base| tree::walk(&physical, base)).collect();
        for (at, (path, real)) in entries.iter().enumerate() {
            if at % (entries.len() / 3) == 5 {
                service.kill(Victim::Server);
            }
            let seen = tree::entry(&service.path().join(path))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(*real, seen, "{} differs", path.display());
        }
        service.stop();
    }
}

fn check_on(dir: &Path) {
    let closure = Closure::new(dir, ENTRIES);
    closure.check(closure.fixture.store.root());
}

#[test]
fn a_store_on_tmpfs() {
    need!(Root, Fuse, Nix);
    let dir = util::scratch();
    let _mount = Own::mount("tmpfs", dir.path(), "mode=0755");
    check_on(dir.path());
}

#[test]
fn a_store_on_ext4() {
    need!(Root, Fuse, Nix, Ext4);
    match image::ext4() {
        Some(image) => check_on(image.path()),
        None => check_on(&std::env::temp_dir()),
    }
}

#[test]
fn a_store_on_btrfs() {
    need!(Root, Fuse, Nix, LoopDevice, Btrfs);
    check_on(Image::new("btrfs").path());
}

#[test]
fn a_store_on_xfs() {
    need!(Root, Fuse, Nix, LoopDevice, Xfs);
    check_on(Image::new("xfs").path());
}

/// With half of the large directory in the lower layer and half in the upper one.
#[test]
fn a_store_on_an_overlay() {
    need!(Root, Fuse, Nix);
    let dir = util::scratch();
    // A file system of its own, since the scratch directory may itself be on an overlay.
    let _layers = Own::mount("tmpfs", dir.path(), "mode=0755");
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| dir.path().join(name));
    for path in [&lower, &upper, &work, &merged] {
        fs::create_dir(path).unwrap();
    }
    let closure = Closure::new(&lower, ENTRIES / 2);
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let _overlay = Own::mount("overlay", &merged, &options);
    let root = merged.join(closure.fixture.store.root().file_name().unwrap());
    let wide = root.join("nix/store").join(&closure.wide.base);
    for number in ENTRIES / 2..ENTRIES {
        File::create(wide.join(entry(number))).unwrap();
    }
    closure.check(&root);
}
