//! What is served is held against the collector, and what disappears all the same harms nothing else.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::util::fixture::Fixture;
use crate::util::load::{self, Load, say};
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::tree;

/// Systems in a store, all of them garbage but the one that the profile leads to.
#[derive(Debug)]
pub(crate) struct Garbage {
    pub(crate) store: NixStore,
    /// A system, and what it refers to.
    pub(crate) systems: Vec<(Member, Member)>,
    /// What the view's profile is: it leads to the first system.
    pub(crate) link: PathBuf,
}

impl Garbage {
    pub(crate) fn new(count: usize) -> Self {
        let store = NixStore::new();
        let systems: Vec<_> = (0..count)
            .map(|number| {
                let part = store.add(&format!("part-{number}"), &[], |path| {
                    fs::create_dir(path).unwrap();
                    for file in 0..20 {
                        fs::write(path.join(format!("file-{file}")), format!("{number} {file}\n")).unwrap();
                    }
                });
                let system = store.add(&format!("system-{number}"), &[&part], |path| {
                    symlink(&part.path, path).unwrap();
                });
                (system, part)
            })
            .collect();
        let link = store.profile("web/system", &systems[0].0.path);
        Self { store, systems, link }
    }

    pub(crate) fn select(&self, number: usize) {
        let next = self.link.with_extension("next");
        symlink(&self.systems[number].0.path, &next).unwrap();
        fs::rename(&next, &self.link).unwrap();
    }

    pub(crate) fn collect(&self) {
        self.store.collect_garbage();
    }

    pub(crate) fn is_valid(&self, number: usize) -> bool {
        let (system, part) = &self.systems[number];
        let there = [system, part].map(|member| {
            self.store.physical().join(&member.base).symlink_metadata().is_ok()
                && self
                    .store
                    .nix("nix-store", ["--check-validity", "--print-invalid", &member.path], b"")
                    .is_empty()
        });
        assert_eq!(there[0], there[1], "half a system");
        there[0]
    }

    pub(crate) fn assert_served(&self, service: &Service, number: usize) {
        let part = &self.systems[number].1.base;
        let real = tree::walk(&self.store.physical(), part);
        assert_eq!(real.len(), 21);
        tree::assert_same(&real, &tree::walk(service.path(), part));
        assert!(self.is_valid(number), "{number}");
    }
}

/// A collector that never rests.
pub(crate) struct Collector {
    enough: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Collector {
    pub(crate) fn start(collect: impl Fn() + Send + 'static) -> Self {
        let (enough, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let thread = thread::spawn({
            let (enough, rounds) = (enough.clone(), rounds.clone());
            move || {
                while !enough.load(Ordering::Relaxed) {
                    collect();
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { enough, rounds, thread: Some(thread) }
    }

    /// Until it has gone through the store once more, from beginning to end.
    pub(crate) fn wait(&self) {
        let from = self.rounds.load(Ordering::Relaxed);
        while self.rounds.load(Ordering::Relaxed) < from + 2 {
            assert!(!self.thread.as_ref().unwrap().is_finished(), "the collector failed");
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub(crate) fn finish(mut self) -> u32 {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the collector");
        self.rounds.load(Ordering::Relaxed)
    }
}

/// Nothing served is collected, at any time; when the view has ended it is.
#[test]
fn nothing_served_is_collected() {
    need!(Root, Fuse, Nix);
    let garbage = Arc::new(Garbage::new(4));
    let roots = crate::util::scratch();
    // Only the view holds systems once the profile has gone on: keep the later ones until it does.
    let holders: Vec<PathBuf> = (1..4)
        .map(|number| garbage.store.profile(&format!("holder-{number}"), &garbage.systems[number].0.path))
        .collect();
    let collector = Collector::start({
        let garbage = garbage.clone();
        move || garbage.collect()
    });
    let mut service = Service::new(&garbage.store)
        .with([Path::new("--system"), &garbage.link])
        .with([Path::new("--gc-root"), roots.path()]);
    service.start_ready();
    collector.wait();
    garbage.assert_served(&service, 0);
    for number in 1..4 {
        garbage.select(number);
        service.reload_well();
        fs::remove_file(&holders[number - 1]).unwrap();
        collector.wait();
        (0..=number).for_each(|served| garbage.assert_served(&service, served));
        for victim in [Victim::Server, Victim::Both, Victim::Monitor] {
            service.kill(victim);
            if victim != Victim::Server {
                collector.wait();
                service.start_ready();
            }
            collector.wait();
            (0..=number).for_each(|served| garbage.assert_served(&service, served));
        }
    }
    let links = tree::list(roots.path()).unwrap();
    assert_eq!(links.len(), 4, "{links:?}");
    for (system, _) in &garbage.systems {
        let link = roots.path().join(format!("{}--{}", service.name, system.base));
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(&system.path));
    }
    service.stop();
    assert!(tree::list(roots.path()).unwrap().is_empty(), "links are left behind");
    collector.wait();
    say(&format!("collector: {} rounds, nothing served was collected", collector.finish()));
    assert_eq!([0, 1, 2, 3].map(|number| garbage.is_valid(number)), [false, false, false, true]);
}

/// Without links it is the living process that holds what it serves.
#[test]
fn a_process_holds_what_it_serves() {
    need!(Root, Fuse, Nix);
    let garbage = Arc::new(Garbage::new(2));
    let holder = garbage.store.profile("holder", &garbage.systems[1].0.path);
    let mut service = Service::new(&garbage.store).with([Path::new("--system"), &garbage.link]);
    service.start_ready();
    garbage.select(1);
    service.reload_well();
    fs::remove_file(holder).unwrap();
    fs::remove_file(&garbage.link).unwrap();
    garbage.collect();
    garbage.assert_served(&service, 0);
    garbage.assert_served(&service, 1);
    service.kill(Victim::Server);
    garbage.collect();
    garbage.assert_served(&service, 0);
    garbage.assert_served(&service, 1);
    service.stop();
    garbage.collect();
    assert!(!garbage.is_valid(0) && !garbage.is_valid(1));
}

/// With `--prune`, what is no longer served is no longer held by a link.
#[test]
fn links_of_what_is_pruned_go() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(2);
    let roots = crate::util::scratch();
    let mut service = Service::new(&garbage.store)
        .with([Path::new("--system"), &garbage.link, Path::new("--gc-root"), roots.path()])
        .with(["--prune"]);
    service.start_ready();
    let link = |number: usize| format!("{}--{}", service.name, garbage.systems[number].0.base);
    let (first, second) = (PathBuf::from(link(0)), PathBuf::from(link(1)));
    let until = |expected: &[PathBuf]| {
        // They are written after the answer, by the thread that owns the store.
        let end = std::time::Instant::now() + crate::util::DEADLINE;
        while tree::list(roots.path()).unwrap() != expected {
            assert!(std::time::Instant::now() < end, "{:?}", tree::list(roots.path()));
            thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    until(&[first]);
    garbage.select(1);
    service.reload_well();
    until(&[second]);
    service.stop();
    assert!(tree::list(roots.path()).unwrap().is_empty());
}

/// A store path that is removed under the mount: ENOENT or EIO for it, one line that names it, and nothing else.
#[test]
fn a_store_path_that_disappears() {
    need!(Root, Fuse, Nix, Busybox);
    let fixture = Fixture::new();
    let busybox = load::add_busybox(&fixture.store);
    let victims: Vec<Member> = ["never-seen", "seen", "open"]
        .map(|name| {
            fixture.store.add(name, &[], |path| {
                fs::create_dir(path).unwrap();
                fs::write(path.join("file"), name).unwrap();
                fs::write(path.join("unread"), vec![b'x'; 100_000]).unwrap();
            })
        })
        .into();
    let mut service =
        Service::new(&fixture.store).with(["--system", &fixture.system.path, "--root", &busybox.path]);
    for victim in &victims {
        service.add(["--root", &victim.path]);
    }
    service.start_ready();
    let members = [&fixture.data, &fixture.file, &busybox].map(|member| member.base.as_str());
    let running = Load::start(service.path(), &fixture.store, members, Some(&busybox), 3);
    let view = service.path().to_owned();
    let path = |number: usize, name: &str| view.join(&victims[number].base).join(name);
    assert_eq!(fs::read(path(1, "file")).unwrap(), b"seen");
    let mut open = File::open(path(2, "file")).unwrap();

    for victim in &victims {
        fs::remove_dir_all(fixture.store.physical().join(&victim.base)).unwrap();
    }
    let gone = |answer: std::io::Result<Vec<u8>>| {
        let error = answer.expect_err("it is gone");
        assert!(matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::IO)), "{error}");
    };
    for _ in 0..3 {
        gone(fs::read(path(0, "file")));
        gone(fs::read(path(1, "unread")));
        gone(fs::read(path(2, "unread")));
        load::drop_kernel_caches();
    }
    gone(fs::read(path(1, "file")));
    // What is open may stay readable or fail, but it does not give something else.
    let mut bytes = Vec::new();
    if open.read_to_end(&mut bytes).is_ok() {
        assert_eq!(bytes, b"open");
    }
    tree::list(service.path()).unwrap();
    for victim in &victims {
        assert_eq!(service.logged_soon(&victim.base, 1), 1, "{}: {}", victim.base, service.log());
    }
    running.finish().judge("a store path that disappears");
    // A reload, a new server and an end are not disturbed either.
    service.signal(Signal::HUP);
    service.kill(Victim::Server);
    gone(fs::read(path(0, "file")));
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}
