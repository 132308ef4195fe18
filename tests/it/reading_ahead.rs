//! A walk through a view of a store that is on disk: the next files are brought, with the same answers, and do not stay.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::util;
use crate::util::cached::{evict, resident};
use crate::util::faulty::{Cache, Call, Disk, Fault};
use crate::util::load;
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::store::NixStore;

const FILES: usize = 60;
/// After that long without it something does not happen any more.
const LIMIT: Duration = Duration::from_secs(60);

/// How many of `files` have pages in the store's cache.
fn cached(helper: &Path, files: impl Iterator<Item = std::path::PathBuf>) -> usize {
    files.filter(|file| resident(helper, file).0 > 0).count()
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}");
    }
}

/// The filter of system calls ends a server of a build for tests that makes a call which is not in its table.
#[test]
fn the_next_files_of_a_walk_are_brought_and_do_not_stay() {
    need!(Root, Fuse, Nix, Disk, DontCache);
    let _undisturbed = load::keep_caches();
    let scratch = util::scratch();
    let helper = util::compile("resident.c", scratch.path());
    let store = NixStore::new();
    let bytes = |number: usize| vec![number as u8; 3000 * number + 1];
    let system = store.add("walked", &[], |path| {
        fs::create_dir_all(path).unwrap();
        (0..FILES).for_each(|number| fs::write(path.join(format!("{number:03}")), bytes(number)).unwrap());
    });
    let below = store.physical().join(&system.base);
    let host = |number: usize| below.join(format!("{number:03}"));
    let view = Program::on(&store).args(["--system", &system.path, "--prefetch", "off"]).mount();
    (0..FILES).for_each(|number| evict(&host(number)));
    let read = |number: usize| {
        let seen = fs::read(view.path().join(&system.base).join(format!("{number:03}"))).unwrap();
        assert!(seen == bytes(number), "{number}");
    };
    (0..3).for_each(read);
    eventually("nothing was brought behind the third file", || cached(&helper, (3..FILES).map(host)) > 0);
    (3..FILES).for_each(read);
    eventually("what was brought stays", || cached(&helper, (0..FILES).map(host)) == 0);
}

/// A disk that does not answer who reads ahead: only it lists directories here. A reload, the next server and the end of the
/// view wait for nothing of it, though no signal ends a call that the disk has begun.
#[test]
fn nobody_waits_for_a_disk_that_hangs_under_who_reads_ahead() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let system = store.add_in_place("walked", &[], |path| {
        fs::create_dir_all(path).unwrap();
        (0..FILES).for_each(|number| fs::write(path.join(format!("{number:03}")), [number as u8]).unwrap());
    });
    let disk = Disk::new(&store.physical(), Cache::Pages);
    let uri = format!("{}&real={}", store.uri(), disk.path().display());
    let mut service = Service::on(&uri).with(["--system", &system.path, "--prefetch", "off"]);
    for end in ["SIGTERM", "umount"] {
        service.start_ready();
        let read = |service: &Service, number: usize| {
            let file = service.path().join(&system.base).join(format!("{number:03}"));
            assert_eq!(fs::read(file).unwrap(), [number as u8], "{}", service.log());
        };
        disk.fail(Fault::hang(Call::Readdir));
        (0..3).for_each(|number| read(&service, number));
        eventually("nothing is read ahead", || disk.failed() == 1);
        service.reload_well();
        // Listings of the root need no disk. Names in the directory that is being listed would wait for it: the kernel lists and
        // looks up one after the other in a directory of this disk.
        service.kill_unwaited(Victim::Server);
        assert_eq!(fs::read_dir(service.path()).unwrap().count(), 1, "{}", service.log());
        service.kill_unwaited(Victim::Both);
        service.start_ready();
        assert_eq!(fs::read_dir(service.path()).unwrap().count(), 1, "{}", service.log());
        if end == "SIGTERM" {
            service.stop();
        } else {
            rustix::mount::unmount(service.path(), rustix::mount::UnmountFlags::empty()).unwrap();
            assert_eq!(service.ended().code(), Some(0), "{}", service.log());
        }
        disk.recover();
    }
}
