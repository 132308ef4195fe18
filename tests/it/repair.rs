//! A store path that is replaced in place, as `nix-store --repair-path` does it: the new tree is put in the place of the
//! old one by renaming, and the old one deleted afterwards (Nix, `replaceValidPath`).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::util::DEADLINE;
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::tree;

/// Files in each of the directories `d` and `e/f`.
const FILES: usize = 40;
/// Repairs of one view.
const ROUNDS: usize = 8;
/// The file that is held open in each of them.
const HELD: usize = 1;

/// The tree of a store path, whose files hold `text`: of one length in all copies, since the kernel may keep a size.
fn build(path: &Path, text: &str) {
    for dir in ["d", "e/f"] {
        fs::create_dir_all(path.join(dir)).unwrap();
        for number in 0..FILES {
            fs::write(path.join(dir).join(format!("file-{number}")), format!("{text} {number}\n")).unwrap();
        }
    }
}

/// A store with a store path to repair.
pub(crate) struct Damaged {
    pub(crate) store: NixStore,
    pub(crate) member: Member,
}

impl Damaged {
    fn new() -> Self {
        let store = NixStore::new();
        let member = store.add("damaged", &[], |path| build(path, "old copy of"));
        Self { store, member }
    }

    fn real(&self) -> PathBuf {
        self.store.physical().join(&self.member.base)
    }

    fn old(&self) -> PathBuf {
        self.store.physical().join(".old-damaged")
    }

    /// A tree with the contents `text`, and the modes and times that Nix gives, beside the store path.
    fn new_copy(&self, text: &str) -> PathBuf {
        let path = self.store.physical().join(".new-damaged");
        build(&path, text);
        let made = self.store.put_in_place("damaged-new", |place| fs::rename(&path, place).unwrap());
        let place = self.store.physical().join(made.base);
        writable(&place);
        fs::rename(&place, &path).unwrap();
        path
    }

    fn set_aside(&self) {
        writable(&self.real());
        fs::rename(self.real(), self.old()).unwrap();
    }

    fn put_in_place(&self, copy: &Path) {
        fs::rename(copy, self.real()).unwrap();
        fs::set_permissions(self.real(), fs::Permissions::from_mode(0o555)).unwrap();
    }

    /// Deletes the old copy entry by entry, with `between` after each.
    fn delete_old(&self, mut between: impl FnMut()) {
        for dir in ["d", "e/f"] {
            let dir = self.old().join(dir);
            writable(&dir);
            for name in tree::list(&dir).unwrap() {
                fs::remove_file(dir.join(name)).unwrap();
                between();
            }
        }
        writable(&self.old().join("e"));
        fs::remove_dir_all(self.old()).unwrap();
        between();
    }
}

/// A read-only directory can be renamed and emptied by root alone; the tests may run as somebody else.
fn writable(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A name that is looked up for the first time while the old copy is being deleted, through a directory that the server
/// has open, is there: at the latest when the deletion is over, since nobody may remember it as absent.
#[test]
fn a_name_looked_up_during_a_repair_is_not_remembered_as_absent() {
    need!(Root, Fuse, Nix);
    let damaged = Damaged::new();
    let view = Program::on(&damaged.store).args(["--system", &damaged.member.path]).mount();
    let seen = view.path().join(&damaged.member.base);
    // The server opens the directories of the old copy.
    for name in ["d/file-0", "e/f/file-0"] {
        assert_eq!(fs::read_to_string(seen.join(name)).unwrap(), "old copy of 0\n");
    }
    let copy = damaged.new_copy("new copy of");
    damaged.set_aside();
    damaged.put_in_place(&copy);
    for dir in ["d", "e/f"] {
        writable(&damaged.old().join(dir));
        fs::remove_file(damaged.old().join(dir).join("file-7")).unwrap();
    }
    let _either = ["d", "e/f"].map(|dir| seen.join(dir).join("file-7").metadata());
    damaged.delete_old(|| ());
    for dir in ["d", "e/f"] {
        let file = seen.join(dir).join("file-7");
        let read = fs::read_to_string(&file);
        assert_eq!(read.map_err(|error| error.to_string()).as_deref(), Ok("new copy of 7\n"), "{dir}/file-7");
    }
    assert_eq!(names(&seen), names(&damaged.real()));
}

/// A directory that is listed while the old copy is being deleted is listed in full when that is over.
#[test]
fn a_listing_during_a_repair_is_not_remembered() {
    need!(Root, Fuse, Nix);
    let damaged = Damaged::new();
    let view = Program::on(&damaged.store).args(["--system", &damaged.member.path]).mount();
    let seen = view.path().join(&damaged.member.base);
    for dir in ["d", "e/f"] {
        assert!(seen.join(dir).join("file-0").exists());
    }
    let copy = damaged.new_copy("new copy of");
    damaged.set_aside();
    damaged.put_in_place(&copy);
    damaged.delete_old(|| {
        let _either = ["d", "e/f"].map(|dir| tree::list(&seen.join(dir)));
    });
    assert_eq!(names(&seen), names(&damaged.real()));
    tree::assert_same(
        &tree::walk(&damaged.store.physical(), &damaged.member.base),
        &tree::walk(view.path(), &damaged.member.base),
    );
}

/// A store path that is looked up between the two renames is absent at that moment and not for ever.
#[test]
fn a_store_path_looked_up_between_the_renames_is_back_afterwards() {
    need!(Root, Fuse, Nix);
    let damaged = Damaged::new();
    let view = Program::on(&damaged.store).args(["--system", &damaged.member.path]).mount();
    let seen = view.path().join(&damaged.member.base);
    assert!(seen.join("d/file-0").exists());
    let copy = damaged.new_copy("new copy of");
    damaged.set_aside();
    let _either = (seen.metadata(), seen.join("d/file-7").metadata(), seen.join("e/f/file-7").metadata());
    damaged.put_in_place(&copy);
    damaged.delete_old(|| ());
    for name in ["d/file-7", "e/f/file-7"] {
        assert_eq!(fs::read_to_string(seen.join(name)).unwrap(), "new copy of 7\n", "{name}");
    }
    tree::assert_same(
        &tree::walk(&damaged.store.physical(), &damaged.member.base),
        &tree::walk(view.path(), &damaged.member.base),
    );
}

/// Repairs under readers who look up names at every moment: afterwards every name is there, what nobody had cached has
/// its new bytes, and a file that is open keeps bytes of one copy.
#[test]
fn every_name_is_there_after_repairs_under_readers() {
    need!(Root, Fuse, Nix);
    let damaged = Damaged::new();
    let view = Program::on(&damaged.store).args(["--system", &damaged.member.path]).mount();
    let seen = view.path().join(&damaged.member.base);
    for round in 0..ROUNDS {
        let text = format!("copy - {round} of");
        let held = File::open(seen.join("d").join(format!("file-{HELD}"))).unwrap();
        crate::util::load::drop_kernel_caches();
        // The server opens both directories of the copy that is replaced.
        assert!(seen.join("d/file-0").exists() && seen.join("e/f/file-0").exists());
        let [replaced, enough] = [(); 2].map(|()| AtomicBool::new(false));
        let calls = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for (reader, dir) in ["d", "e/f"].into_iter().enumerate() {
                let (seen, replaced, enough, calls) = (&seen, &replaced, &enough, &calls);
                scope.spawn(move || {
                    let mut number = 0;
                    while !enough.load(Ordering::Relaxed) {
                        // Everything may be absent for a moment; each name is looked up for the first time while its
                        // old copy is there, or is not there any more.
                        let _either = seen.join(dir).metadata();
                        if replaced.load(Ordering::Relaxed) {
                            number = (number + 1 + reader) % FILES;
                            let _either = seen.join(dir).join(format!("file-{number}")).metadata();
                        }
                        if number + 3 > FILES {
                            let _either = tree::list(&seen.join(dir));
                        }
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let copy = damaged.new_copy(&text);
            damaged.set_aside();
            damaged.put_in_place(&copy);
            replaced.store(true, Ordering::Relaxed);
            damaged.delete_old(|| {
                let more = calls.load(Ordering::Relaxed) + 1;
                let until = Instant::now() + DEADLINE;
                while calls.load(Ordering::Relaxed) < more && Instant::now() < until {
                    std::thread::yield_now();
                }
            });
            enough.store(true, Ordering::Relaxed);
        });
        assert_eq!(names(&seen), names(&damaged.real()), "round {round}");
        for dir in ["d", "e/f"] {
            // Nobody has read these before; of the others the kernel or the server may keep the bytes.
            for number in (0..FILES).filter(|number| number % ROUNDS == round && *number != HELD) {
                let file = seen.join(dir).join(format!("file-{number}"));
                let read = fs::read_to_string(&file)
                    .unwrap_or_else(|error| panic!("round {round}: {}: {error}", file.display()));
                assert_eq!(read, format!("{text} {number}\n"), "round {round}: {}", file.display());
            }
        }
        let mut first = [0; 4];
        held.read_exact_at(&mut first, 0).unwrap_or_else(|error| panic!("round {round}: held: {error}"));
    }
}

/// How Nix repairs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Repair {
    /// A path that can be fetched or added: it is deleted and written in place (`LocalStore::addToStore`).
    InPlace,
    /// A path that is built again (`replaceValidPath`).
    Renaming,
}

impl Damaged {
    /// A store path that has lost a file and the end of another, in which everything looks finished.
    pub(crate) fn seriously() -> Self {
        let store = NixStore::new();
        let member = store.add("damaged", &[], |path| {
            build(path, "old copy of");
            fs::remove_file(path.join("d/file-3")).unwrap();
            fs::write(path.join("e/f/file-5"), "old").unwrap();
            std::os::unix::fs::symlink("old", path.join("link")).unwrap();
        });
        Self { store, member }
    }

    pub(crate) fn repair(&self, how: Repair) {
        let copy = self.new_copy("a longer and new copy of");
        match how {
            Repair::InPlace => {
                fs::remove_dir_all(self.real()).unwrap();
                let copied = std::process::Command::new("cp").arg("-a").args([&copy, &self.real()]).status();
                assert!(copied.unwrap().success());
                writable(&copy);
                fs::remove_dir_all(copy).unwrap();
            }
            Repair::Renaming => {
                self.set_aside();
                self.put_in_place(&copy);
                self.delete_old(|| ());
            }
        }
    }

    /// Until the view shows the store path as it is: nobody asks for a reload.
    pub(crate) fn wait_until_shown(&self, view: &Path) {
        let real = tree::walk(&self.store.physical(), &self.member.base);
        let until = Instant::now() + DEADLINE;
        // One part may be shown before another.
        while !tree::try_walk(view, &self.member.base).is_ok_and(|seen| seen == real) {
            if Instant::now() > until {
                tree::assert_same(&real, &tree::walk(view, &self.member.base));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Everything is in the kernel's caches, absences as well; a file and a directory are held, and the top is being listed.
pub(crate) fn cache(seen: &Path) -> ([File; 2], fs::ReadDir) {
    assert_eq!(fs::metadata(seen.join("d/file-3")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(fs::read_to_string(seen.join("e/f/file-5")).unwrap(), "old");
    assert_eq!(fs::read_link(seen.join("link")).unwrap(), Path::new("old"));
    let mut listing = fs::read_dir(seen).unwrap();
    listing.next().unwrap().unwrap();
    (["e/f/file-5", "d"].map(|name| File::open(seen.join(name)).unwrap()), listing)
}

fn damage_does_not_outlive_its_repair(io: &str) {
    for how in [Repair::InPlace, Repair::Renaming] {
        let damaged = Damaged::seriously();
        let arguments = ["--system", &damaged.member.path, "--io", io];
        let view = Program::on(&damaged.store).args(arguments).mount();
        let seen = view.path().join(&damaged.member.base);
        tree::assert_same(
            &tree::walk(&damaged.store.physical(), &damaged.member.base),
            &tree::walk(view.path(), &damaged.member.base),
        );
        let _held = cache(&seen);
        damaged.repair(how);
        damaged.wait_until_shown(view.path());
        assert_eq!(fs::read_to_string(seen.join("d/file-3")).unwrap(), "a longer and new copy of 3\n");
    }
}

/// What the kernel has cached of a damaged store path is dropped when it is repaired: names, sizes, bytes, absences,
/// listings, link targets.
#[test]
fn damage_does_not_outlive_its_repair_with_io_cached() {
    need!(Root, Fuse, Nix);
    damage_does_not_outlive_its_repair("cached");
}

/// The same with passthrough.
#[test]
fn damage_does_not_outlive_its_repair_with_io_passthrough() {
    need!(Root, Fuse, Nix, Passthrough);
    damage_does_not_outlive_its_repair("passthrough");
}

/// A repair that no server has seen is noticed by the next one.
#[test]
fn a_repair_between_two_servers_is_noticed() {
    need!(Root, Fuse, Nix);
    for how in [Repair::InPlace, Repair::Renaming] {
        let damaged = Damaged::seriously();
        let mut service = Service::new(&damaged.store).with(["--system", &damaged.member.path]);
        service.start_ready();
        let seen = service.path().join(&damaged.member.base);
        tree::walk(service.path(), &damaged.member.base);
        let _held = cache(&seen);
        service.kill(Victim::Both);
        damaged.repair(how);
        service.start_ready();
        damaged.wait_until_shown(service.path());
        service.stop();
    }
}

/// The names in each directory of the store path.
fn names(path: &Path) -> Vec<Result<Vec<PathBuf>, String>> {
    ["", "d", "e", "e/f"]
        .map(|dir| tree::list(&path.join(dir)).map_err(|error| format!("{dir}: {error}")))
        .into_iter()
        .collect()
}
