//! Reloads that are cut short: whoever is killed, at whatever moment of one, the old view stays readable, and
//! the next reload does what this one was to do.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::collector::Collector;
use crate::util::load::{self, Load, say};
use crate::util::random::{Random, seed};
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::threads::waits_in_kernel;
use crate::util::{DEADLINE, tree};

/// Systems with many members of their own, and one program that is in all of them.
struct Systems {
    store: NixStore,
    busybox: Member,
    systems: Vec<(Member, Vec<Member>)>,
    link: PathBuf,
}

impl Systems {
    fn new(count: usize, members: usize) -> Self {
        let store = NixStore::new();
        let busybox = load::add_busybox(&store);
        let systems: Vec<_> = (0..count)
            .map(|number| {
                let own = store.add_files(&format!("own-{number}"), members);
                let references: Vec<&Member> = own.iter().chain([&busybox]).collect();
                let system = store.add(&format!("system-{number}"), &references, |path| {
                    fs::write(path, format!("{number}\n")).unwrap();
                });
                (system, own)
            })
            .collect();
        let link = store.profile("web/system", &systems[0].0.path);
        Self { store, busybox, systems, link }
    }

    fn select(&self, number: usize) {
        let next = self.link.with_extension("next");
        symlink(&self.systems[number].0.path, &next).unwrap();
        fs::rename(&next, &self.link).unwrap();
    }

    fn names(&self, number: usize) -> BTreeSet<PathBuf> {
        let (system, own) = &self.systems[number];
        own.iter().chain([system, &self.busybox]).map(|member| PathBuf::from(&member.base)).collect()
    }

    fn load(&self, service: &Service) -> Load {
        Load::start(service.path(), &self.store, [self.busybox.base.as_str()], Some(&self.busybox), 3)
    }

    /// Each of these can be read, and Nix says that it is valid: the collector has left it alone.
    fn assert_held(&self, service: &Service, names: &BTreeSet<PathBuf>) {
        for name in names {
            let seen = tree::entry(&service.path().join(name));
            let real = tree::entry(&self.store.physical().join(name));
            assert_eq!(seen.unwrap(), real.unwrap(), "{}", name.display());
        }
        let paths = names.iter().map(|name| format!("/nix/store/{}", name.display()));
        let arguments = ["--check-validity", "--print-invalid"].map(str::to_owned).into_iter().chain(paths);
        assert_eq!(self.store.nix("nix-store", arguments, b""), "", "served, and collected");
    }
}

/// Threads that list the root without a pause: names are invalidated in between, so a switch takes long.
struct Listers {
    enough: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listers {
    fn start(service: &Service) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let list = |_| {
            let (enough, view) = (enough.clone(), service.path().to_owned());
            std::thread::spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    tree::list(&view).unwrap();
                }
            })
        };
        let threads = (0..3).map(list).collect();
        Self { enough, threads }
    }

    fn finish(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("every listing succeeds"));
    }
}

fn listed(service: &Service) -> BTreeSet<PathBuf> {
    tree::list(service.path()).unwrap().into_iter().collect()
}

/// To invalidate a name, as in a view that an earlier version has served, the kernel waits for whoever looks at the root, and
/// they wait for an answer: whoever is killed at that moment, the next server answers.
#[test]
fn killed_while_a_name_is_invalidated() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2, 300);
    let mut service =
        Service::new(&systems.store).with([Path::new("--system"), &systems.link]).with(["--prune"]);
    service.set("NSF_WAITS", "yes");
    service.start_ready();
    let running = systems.load(&service);
    let listers = Listers::start(&service);
    let mut waited = 0;
    for round in 1..=15 {
        // Long enough for the server to count as one that works, whose successor comes at once.
        std::thread::sleep(Duration::from_millis(150));
        let number = round % 2;
        let server = service.server();
        systems.select(number);
        let from = service.heard();
        service.signal(Signal::HUP);
        let over = || service.messages()[from..].iter().any(|message| message.contains_key("READY"));
        let until = Instant::now() + DEADLINE;
        while !waits_in_kernel(server, "invalidate") && !over() {
            assert!(Instant::now() < until, "{}", service.log());
        }
        waited += u32::from(!over());
        let victim = [Victim::Server, Victim::Both, Victim::Monitor][round % 3];
        service.kill_unwaited(victim);
        if victim == Victim::Server {
            service.wait_ready(from);
        } else {
            service.start_ready();
        }
        assert_eq!(listed(&service), systems.names(number), "round {round}, {victim:?}: {}", service.log());
    }
    listers.finish();
    running.finish().judge(&format!("killed {waited} times while a name was invalidated"));
    assert!(waited > 0, "no server was ever seen to wait for a reader");
    service.stop();
}

/// Whoever is killed while a reload is resolved or switched, under readers and a collector that never rests, and
/// though the profile then leads elsewhere: what was served is served on, all that is served is valid and stays so,
/// and the next reload does its work.
#[test]
fn killed_at_any_moment_of_a_reload() {
    need!(Root, Fuse, Nix, Busybox);
    const ROUNDS: usize = 12;
    let systems = Arc::new(Systems::new(ROUNDS + 1, 15));
    let roots = crate::util::scratch();
    let holders: Vec<PathBuf> = systems.systems[1..]
        .iter()
        .map(|(system, _)| systems.store.profile(&format!("holders/{}", system.base), &system.path))
        .collect();
    let mut service = Service::new(&systems.store).with([
        Path::new("--system"),
        &systems.link,
        Path::new("--gc-root"),
        roots.path(),
    ]);
    service.start_ready();
    let running = systems.load(&service);
    let listers = Listers::start(&service);
    let collector = Collector::start({
        let systems = systems.clone();
        move || systems.store.collect_garbage()
    });
    let mut random = Random::new(seed("reloads cut short"));
    let mut served = listed(&service);
    let mut shown = 0;
    for round in 1..=ROUNDS {
        std::thread::sleep(Duration::from_millis(150));
        let (resolved, moves_on) = (round % 2 == 0, round % 4 < 2);
        let victim = [Victim::Monitor, Victim::Both, Victim::Server][round % 3];
        systems.select(round);
        let (from, switches) = (service.heard(), service.logged("switching the view"));
        service.signal(Signal::HUP);
        service.wait(from, "RELOADING");
        let until = Instant::now() + DEADLINE;
        while resolved && service.logged("switching the view") == switches {
            assert!(Instant::now() < until, "no switch: {}", service.log());
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(random.below(4000) as u64));
        service.kill_unwaited(victim);
        if moves_on {
            systems.select(0);
            fs::remove_file(&holders[round - 1]).unwrap();
            collector.wait();
        }
        if victim == Victim::Server {
            service.wait_ready(from);
        } else {
            service.start_ready();
        }
        if !moves_on {
            service.reload_well();
            fs::remove_file(&holders[round - 1]).unwrap();
            assert!(listed(&service).is_superset(&systems.names(round)), "round {round}: {}", service.log());
        }
        collector.wait();
        let now = listed(&service);
        assert!(now.is_superset(&served), "round {round}, {victim:?}: {}", service.log());
        shown += usize::from(now.is_superset(&systems.names(round)));
        systems.assert_held(&service, &now);
        assert_eq!(service.logged("gone from disk"), 0, "round {round}, {victim:?}: {}", service.log());
        served = now;
    }
    listers.finish();
    say(&format!("reloads cut short: {ROUNDS}, {shown} of them done all the same"));
    running.finish().judge("reloads cut short");
    service.stop();
    say(&format!("collector: {} rounds in it", collector.finish()));
    assert!(tree::list(roots.path()).unwrap().is_empty(), "links are left behind");
}
