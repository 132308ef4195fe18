//! A process of a container can keep a directory of its view locked in the kernel for as long as it likes: it lists it into memory
//! whose page fault never ends. Nobody else waits for it: neither a reload nor whoever looks at the view.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::repair::{self, Damaged, Repair};
use crate::util::locker::{By, Locker};
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::systems::Systems;
use crate::util::{DEADLINE, threads, tree};

/// Far longer than what is asked takes, and less than a test may: what hangs has to be released.
const PATIENCE: Duration = Duration::from_secs(25);

/// Does `work` on a thread of its own, as it may hang.
fn within<T: Send + 'static>(what: &str, service: &Service, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(work()));
    told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} hangs: {}", service.log()))
}

fn reload(service: &Service) {
    let name = service.name.clone();
    let finished = within("the reload", service, move || Program::new().args(["reload", &name]).run());
    assert_eq!(finished.status.code(), Some(0), "{finished:?}\n{}", service.log());
}

fn is_there(service: &Service, path: PathBuf) -> bool {
    let shown = path.display().to_string();
    match within(&shown, service, move || path.symlink_metadata()) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => panic!("{shown}: {error}"),
    }
}

fn names(service: &Service) -> BTreeSet<PathBuf> {
    let view = service.path().to_owned();
    within("a listing", service, move || tree::list(&view)).unwrap().into_iter().collect()
}

/// Names are added and withdrawn while the root is locked, and others look up and list all the while.
#[test]
fn a_locked_root_holds_up_no_reload_and_no_reader() {
    need!(Root, Fuse, Nix, Busybox);
    for by in By::ALL {
        let systems = Systems::new(2);
        let mut service = systems.service().with(["--prune"]);
        service.start_ready();
        let [first, second] = [0, 1].map(|number| service.path().join(&systems.systems[number].1.base));
        assert!(first.exists() && !second.exists());
        assert_eq!(names(&service), systems.names(0));
        let locker = Locker::lock(service.path(), by);
        for number in [1, 0, 1] {
            systems.select(number);
            reload(&service);
            assert_eq!(is_there(&service, first.clone()), number == 0, "{by:?}");
            assert_eq!(is_there(&service, second.clone()), number == 1, "{by:?}");
            assert_eq!(names(&service), systems.names(number), "{by:?}");
            // One that nobody has asked for yet.
            assert!(is_there(&service, service.path().join(&systems.shared[number + 2].base)));
            assert!(!is_there(&service, service.path().join(format!("absent-{number}"))));
        }
        drop(locker);
        assert_eq!(names(&service), systems.names(1), "{by:?}");
        service.stop();
    }
}

/// A view was started without `--prune`, so the kernel may have cached names for ever: with it, they are forgotten under the lock.
/// A reload that waits for it ends with an error that names the process, as does the next one; when that process has ended, the
/// new closure is shown.
#[test]
fn a_reload_that_has_to_wait_for_the_lock_names_who_has_it() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service();
    service.start_ready();
    let [first, second] = [0, 1].map(|number| service.path().join(&systems.systems[number].1.base));
    assert!(first.exists());
    service.kill(Victim::Both);
    service.add(["--prune"]);
    service.start_ready();
    // Without a process that has it, it is forgotten.
    systems.select(1);
    reload(&service);
    assert!(!first.exists() && second.exists());
    let locker = Locker::lock(service.path(), By::Userfault);
    systems.select(0);
    for _ in 0..2 {
        let finished = service.reload();
        assert_eq!(finished.status.code(), Some(8), "{finished:?}");
        let named = format!("lists ({})", locker.pid().as_raw_nonzero());
        assert!(finished.stderr.contains(&named), "{finished:?}");
    }
    drop(locker);
    reload(&service);
    assert!(first.exists() && !second.exists());
    service.stop();
}

/// A view of a damaged store path, of which the kernel has cached everything.
fn damaged() -> (Arc<Damaged>, Service, PathBuf) {
    let damaged = Damaged::seriously();
    let roots = damaged.store.root().join("roots");
    fs::write(&roots, format!("{}\n", damaged.member.path)).unwrap();
    let mut service = Service::new(&damaged.store).with([Path::new("--roots-file"), &roots]);
    service.start_ready();
    tree::walk(service.path(), &damaged.member.base);
    let _held = repair::cache(&service.path().join(&damaged.member.base));
    (Arc::new(damaged), service, roots)
}

/// A store path is repaired while its view's root is locked: that is shown, and nobody waits at the root.
#[test]
fn a_repair_does_not_wait_for_the_root() {
    need!(Root, Fuse, Nix);
    for by in By::ALL {
        let (damaged, mut service, _) = damaged();
        let locker = Locker::lock(service.path(), by);
        damaged.repair(Repair::InPlace);
        let (shown, view) = (damaged.clone(), service.path().to_owned());
        within("the repaired path", &service, move || shown.wait_until_shown(&view));
        assert_eq!(names(&service).len(), 1);
        assert!(!is_there(&service, service.path().join("absent")));
        reload(&service);
        drop(locker);
        service.stop();
    }
}

/// The same while a directory of the store path is locked: what was repaired is shown when it is let go, and reloads do not
/// wait for that.
#[test]
fn a_repair_that_waits_for_a_lock_holds_up_no_reload() {
    need!(Root, Fuse, Nix);
    for (by, below) in [(By::Userfault, ""), (By::Fuse, "d")] {
        let (damaged, mut service, roots) = damaged();
        let locker = Locker::lock(&service.path().join(&damaged.member.base).join(below), by);
        damaged.repair(Repair::InPlace);
        let server = service.server();
        let until = Instant::now() + DEADLINE;
        while !threads::waits_in_kernel(server, "repair") {
            assert!(Instant::now() < until, "the repair does not wait: {}", service.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        let added = damaged.store.add("added", &[], |path| fs::write(path, "added").unwrap());
        fs::write(&roots, format!("{}\n{}\n", damaged.member.path, added.path)).unwrap();
        assert!(!is_there(&service, service.path().join(&added.base)));
        reload(&service);
        assert!(is_there(&service, service.path().join(&added.base)));
        assert_eq!(names(&service).len(), 2);
        drop(locker);
        damaged.wait_until_shown(service.path());
        service.stop();
    }
}
