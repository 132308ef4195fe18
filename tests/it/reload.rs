//! Changing what a view shows while it is looked at.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::util::collecting::Collecting;
use crate::util::load::say;
use crate::util::mounts;
use crate::util::program::{Program, unique_name};
use crate::util::service::Service;
use crate::util::store::NixStore;
use crate::util::systems::Systems;
use crate::util::tree;
use crate::util::user::NOBODY;

/// How many reloads each of the two ways does; `scripts/stress` does more. Each waits for what was just asked for to expire.
fn reloads() -> usize {
    std::env::var("NSF_RELOADS").map_or(15, |text| text.parse().expect("a number"))
}

fn count(service: &Service, key: &str) -> usize {
    service.messages().iter().filter(|message| message.contains_key(key)).count()
}

/// The view grows: nothing that was seen goes, and what is new is there when `reload` returns, though it was
/// asked for, and missed, before.
#[test]
fn many_reloads_that_grow() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(10);
    let mut service = systems.service();
    service.start_ready();
    let running = systems.load(&service);
    let mut seen = systems.names(0);
    for round in 1..=reloads() {
        let number = round % systems.systems.len();
        let own = service.path().join(&systems.systems[number].1.base).join("number");
        let known = seen.contains(Path::new(&systems.systems[number].1.base));
        assert_eq!(own.exists(), known, "{}", own.display());
        systems.select(number);
        service.reload_well();
        assert_eq!(fs::read(&own).unwrap(), format!("{number}\n").repeat(5000).into_bytes());
        seen.extend(systems.names(number));
        let listed: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();
        assert_eq!(listed, seen, "round {round}");
    }
    say(&format!("reloads that grow: {}", reloads()));
    running.finish().judge("reloads that grow");
    service.stop();
}

/// With `--prune` what is gone answers ENOENT at once, open files of it stay readable, and a listing shows the old
/// set or the new one and never a mixture.
#[test]
fn many_reloads_that_prune() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service().with(["--prune"]);
    service.start_ready();
    let running = systems.load(&service);
    let enough = Arc::new(AtomicBool::new(false));
    let lister = std::thread::spawn({
        let (enough, view) = (enough.clone(), service.path().to_owned());
        let sets = [systems.names(0), systems.names(1)].map(|set| set.into_iter().collect::<Vec<_>>());
        move || {
            let mut listings = 0_u64;
            while !enough.load(Ordering::Relaxed) {
                let listed = tree::list(&view).unwrap();
                assert!(sets.contains(&listed), "neither the old set nor the new one: {listed:?}");
                listings += 1;
            }
            listings
        }
    });
    for round in 1..=reloads() {
        let (gone, new) = (&systems.systems[(round + 1) % 2], &systems.systems[round % 2]);
        let [gone_file, new_file] =
            [gone, new].map(|system| service.path().join(&system.1.base).join("number"));
        let held = File::open(&gone_file).unwrap();
        assert_eq!(new_file.symlink_metadata().unwrap_err().kind(), std::io::ErrorKind::NotFound);
        systems.select(round % 2);
        service.reload_well();
        let listed: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();
        assert_eq!(listed, systems.names(round % 2), "round {round}");
        assert!(new_file.exists(), "round {round}: the new name is not there");
        for path in [&gone_file, gone_file.parent().unwrap(), &service.path().join(&gone.0.base)] {
            let error = path.symlink_metadata().expect_err("a name that is gone");
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "round {round}: {}", path.display());
        }
        let mut bytes = vec![0; 10_000];
        held.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, format!("{}\n", (round + 1) % 2).repeat(5000).into_bytes());
    }
    enough.store(true, Ordering::Relaxed);
    let listings = lister.join().expect("every listing is the old set or the new one");
    say(&format!("reloads that prune: {}, with {listings} listings of the old set or the new", reloads()));
    running.finish().judge("reloads that prune");
    service.stop();
}

/// `reload` finds a view by its name or by where it is mounted, and says what it cannot find.
#[test]
fn a_view_is_reloaded_by_name_or_by_place() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(3);
    let mut service = systems.service();
    service.start_ready();
    for (number, view) in [(1, Path::new(&service.name)), (2, service.path())] {
        let own = service.path().join(&systems.systems[number].1.base);
        assert!(!own.exists());
        systems.select(number);
        let finished = Program::new().arg("reload").arg(view).run();
        assert_eq!(finished.status.code(), Some(0), "{}: {finished:?}", view.display());
        assert!(finished.stdout.starts_with("serving "), "{finished:?}");
        assert!(own.exists());
    }
    for (view, code) in [(Path::new("no-such-view"), 8), (systems.store.root(), 8)] {
        let finished = Program::new().arg("reload").arg(view).run();
        assert_eq!(finished.status.code(), Some(code), "{}: {finished:?}", view.display());
        assert!(finished.stderr.contains(&view.display().to_string()), "{finished:?}");
    }
    service.stop();
}

/// A user can mount with any type and source (fusermount3(1)): what is no view's name, or was mounted by somebody else, is
/// no view.
#[test]
fn a_view_is_not_looked_for_where_somebody_else_says() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service();
    service.start_ready();
    let scratch = crate::util::scratch();
    let (at, states) = (scratch.path().join("at"), scratch.path().join("states"));
    fs::create_dir(&at).unwrap();
    // As private as the state of a view.
    let decoy = states.join("decoy");
    for dir in [&states, &decoy] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let listening = UnixListener::bind(decoy.join("control")).unwrap();
    let asked = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let asked = asked.clone();
        move || listening.incoming().for_each(|_closed| asked.store(true, Ordering::SeqCst))
    });
    let up = format!("../../..{}", decoy.display());
    systems.select(1);
    for (name, user) in
        [(up.as_str(), 0), (up.as_str(), NOBODY), (service.name.as_str(), NOBODY), ("", 0), (".", 0)]
    {
        let source = format!("nix-store-fs:{name}");
        let _mount = mounts::Silent::mount_as("fuse.nix-store-fs", &source, &at, user);
        let finished = Program::new().arg("reload").arg(&at).run();
        assert!(!asked.load(Ordering::SeqCst), "{name} of {user}: {finished:?}");
        let expected = format!("no view that this user serves is mounted on '{}'", at.display());
        assert!(finished.stderr.contains(&expected), "{name} of {user}: {finished:?}");
        assert_eq!(finished.status.code(), Some(8), "{name} of {user}: {finished:?}");
    }
    assert!(!service.path().join(&systems.systems[1].1.base).exists(), "a reload was asked for");
    service.stop();
}

/// SIGHUP is a reload that the service manager can follow.
#[test]
fn sighup_tells_the_service_manager() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service();
    let ready = service.start_ready();
    let paths = systems.names(0).len();
    assert!(ready["STATUS"].starts_with(&format!("serving {paths} store paths since 20")), "{ready:?}");
    let own = service.path().join(&systems.systems[1].1.base);
    assert!(!own.exists());
    systems.select(1);
    let from = service.heard();
    service.signal(Signal::HUP);
    let reloading = service.wait(from, "RELOADING");
    assert_eq!(reloading["RELOADING"], "1");
    let since: u64 = reloading["MONOTONIC_USEC"].parse().unwrap();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    assert!(
        since <= u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
    );
    let ready = service.wait_ready(from);
    assert!(own.exists(), "READY=1 before the new name was there");
    assert!(ready["STATUS"].starts_with(&format!("serving {} store paths since", paths + 2)), "{ready:?}");
    let keys: Vec<_> =
        service.messages()[from..].iter().flat_map(|message| message.keys().cloned()).collect();
    let place = |key: &str| keys.iter().position(|found| found == key).unwrap();
    assert!(place("RELOADING") < place("READY"), "{keys:?}");
    service.stop();
    assert_eq!(count(&service, "STOPPING"), 1);
}

/// `--watch` follows a profile by itself.
#[test]
fn a_watched_profile_is_followed() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(6);
    let mut service = systems.service().with(["--watch"]);
    service.start_ready();
    for number in 1..4 {
        let own = service.path().join(&systems.systems[number].1.base);
        assert!(!own.exists());
        let from = service.heard();
        systems.select(number);
        service.wait(from, "RELOADING");
        service.wait_ready(from);
        assert!(own.exists(), "number {number}");
    }
    // A chain of links: the profile leads to another link, which then changes.
    let chain = systems.link.with_file_name("system-7-link");
    symlink(&systems.systems[3].0.path, &chain).unwrap();
    let from = service.heard();
    systems.switch("system-7-link");
    service.wait_ready(from);
    let from = service.heard();
    let next = chain.with_extension("next");
    symlink(&systems.systems[4].0.path, &next).unwrap();
    fs::rename(&next, &chain).unwrap();
    service.wait_ready(from);
    assert!(service.path().join(&systems.systems[4].1.base).exists(), "the end of the chain");
    // One that leads nowhere for a while changes nothing, and is followed when it leads somewhere again.
    let from = service.heard();
    systems.switch("/nowhere");
    service.wait_ready(from);
    assert_eq!(service.logged_soon("the reload failed and nothing has changed", 1), 1, "{}", service.log());
    let from = service.heard();
    systems.select(5);
    service.wait_ready(from);
    assert!(service.path().join(&systems.systems[5].1.base).exists(), "after a profile that led nowhere");
    service.stop();
}

/// Several changes in a row make one reload: those that the monitor finds when it looks.
#[test]
fn changes_in_a_row_make_one_reload() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service().with(["--watch"]);
    service.start_ready();
    let before = count(&service, "RELOADING");
    let from = service.heard();
    // It sees none of them before all are made, however slow the machine is.
    service.signal(Signal::STOP);
    for round in 0..10 {
        systems.select(round % 2);
    }
    service.signal(Signal::CONT);
    service.wait(from, "RELOADING");
    service.wait_ready(from);
    let from = service.heard();
    service.reload_well();
    // The client may be told before the service manager.
    service.wait_ready(from);
    assert_eq!(count(&service, "RELOADING") - before, 2, "ten changes and one reload by hand");
    service.stop();
}

/// A reload that fails changes nothing, says why once, and the next one works.
#[test]
fn a_reload_that_fails_changes_nothing() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let dir = crate::util::scratch();
    let roots = dir.path().join("roots");
    fs::write(&roots, "# nothing more\n").unwrap();
    let mut service = systems.service().with([Path::new("--roots-file"), &roots]);
    service.start_ready();
    let running = systems.load(&service);
    let before: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();

    let unregistered = NixStore::name("unregistered");
    fs::write(systems.store.physical().join(&unregistered.base), "not registered\n").unwrap();
    let own = service.path().join(&systems.systems[1].1.base);
    assert!(!own.exists());
    let dangling = || systems.switch("/nix/var/nix/profiles/nowhere");
    let invalid = || systems.switch(&unregistered.path);
    let outside = || systems.switch("/etc");
    let broken_file = || fs::write(&roots, b"/nix/store/\xff\xfe\n").unwrap();
    let wrong_file = || fs::write(&roots, "/nowhere/at/all\n").unwrap();
    let no_file = || fs::remove_file(&roots).unwrap();
    let breaks: [(&str, &dyn Fn()); 6] = [
        ("a dangling profile", &dangling),
        ("a path that is not valid", &invalid),
        ("a path outside the store", &outside),
        ("a roots file that is no text", &broken_file),
        ("a roots file with a wrong root", &wrong_file),
        ("no roots file", &no_file),
    ];
    for (what, breaks) in breaks {
        breaks();
        let (from, failures) = (service.heard(), service.logged("the reload failed"));
        let finished = service.reload();
        assert_eq!(finished.status.code(), Some(8), "{what}: {finished:?}");
        assert!(
            finished.stderr.starts_with("nix-store-fs: ") && finished.stderr.len() > 30,
            "{what}: {finished:?}"
        );
        assert!(finished.stdout.is_empty(), "{what}: {finished:?}");
        assert_eq!(
            service.logged_soon("the reload failed", failures + 1) - failures,
            1,
            "{what}: {}",
            service.log()
        );
        let listed: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();
        assert_eq!(listed, before, "{what}");
        // The service manager hears that the reload is over, and that it still serves.
        let ready = service.wait_ready(from);
        assert!(ready["STATUS"].contains(&format!("{} store paths", before.len())), "{what}: {ready:?}");
        systems.select(0);
        fs::write(&roots, "# nothing more\n").unwrap();
        service.reload_well();
    }
    assert!(!own.exists());
    systems.select(1);
    service.reload_well();
    assert!(own.exists());
    running.finish().judge("reloads that fail");
    service.stop();
    let finished = service.reload();
    assert_eq!(finished.status.code(), Some(8), "a view that has ended: {finished:?}");
}

/// A store that is busy: the reload takes as long, the old view is served meanwhile, and the end can be asked for.
#[test]
fn a_reload_waits_for_a_busy_store() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service();
    service.start_ready();
    let running = systems.load(&service);
    let own = service.path().join(&systems.systems[1].1.base);
    assert!(!own.exists());
    // As the collector does for all of its work, and a build for a moment.
    let collecting = Collecting::begin(&systems.store);
    systems.select(1);
    let from = service.heard();
    service.signal(Signal::HUP);
    service.wait(from, "RELOADING");
    let waits = collecting.wait_for_root();
    assert!(!own.exists(), "it did not wait for the store");
    drop((collecting, waits));
    service.wait_ready(from);
    assert!(own.exists());
    running.finish().judge("a busy store");
    let collecting = Collecting::begin(&systems.store);
    service.signal(Signal::HUP);
    let _waits = collecting.wait_for_root();
    service.stop();
}

/// A roots file is read again, and a root that is waited for is served once it is there.
#[test]
fn a_roots_file_is_read_again() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(3);
    let dir = crate::util::scratch();
    let (roots, awaited) = (dir.path().join("roots"), dir.path().join("driver"));
    fs::write(&roots, format!("? {}\n", awaited.display())).unwrap();
    let mut service = systems.service().with([Path::new("--roots-file"), &roots]).with(["--watch"]);
    service.start_ready();
    let owns = [1, 2].map(|number| service.path().join(&systems.systems[number].1.base));
    assert!(owns.iter().all(|own| !own.exists()));
    symlink(&systems.systems[1].0.path, &awaited).unwrap();
    service.wait_for(&owns[0]);
    fs::write(&roots, format!("{}\n", systems.systems[2].0.path)).unwrap();
    service.wait_for(&owns[1]);
    service.stop();
}

/// A view may begin with nothing, and follow what it waits for later: here a link to a file in a store path, as
/// whoever installs units one by one makes it.
#[test]
fn a_view_that_begins_with_nothing() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let needed = store.add("needed", &[], |path| fs::write(path, "needed\n").unwrap());
    let unit = store.add("unit", &[&needed], |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("job.service"), format!("ExecStart={}\n", needed.path)).unwrap();
    });
    let dir = crate::util::scratch();
    let (roots, link) = (dir.path().join("roots"), dir.path().join("job.service"));
    fs::write(&roots, format!("?{}\n?{}/absent/too\n", link.display(), dir.path().display())).unwrap();
    let mut service = Service::new(&store).with([Path::new("--roots-file"), &roots]);
    service.start_ready();
    assert!(tree::list(service.path()).unwrap().is_empty());
    symlink(format!("{}/job.service", unit.path), &link).unwrap();
    service.reload_well();
    let seen: BTreeSet<_> = tree::list(service.path()).unwrap().into_iter().collect();
    assert_eq!(seen, [&needed, &unit].map(|member| PathBuf::from(&member.base)).into());
    service.stop();
}

/// A server that is killed in the middle of a switch: its successor shows the new view.
#[test]
fn a_server_killed_while_it_switches() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let mut service = systems.service().with(["--prune"]);
    service.start_ready();
    let running = systems.load(&service);
    for round in 1..=20 {
        // Long enough for the server to count as one that works, whose successor comes at once.
        std::thread::sleep(Duration::from_millis(150));
        let number = round % 2;
        let new = service.path().join(&systems.systems[number].1.base);
        let gone = service.path().join(&systems.systems[1 - number].1.base);
        assert!(!new.exists() && gone.exists(), "round {round}");
        systems.select(number);
        let from = service.heard();
        service.signal(Signal::HUP);
        service.wait(from, "RELOADING");
        std::thread::sleep(Duration::from_millis(u64::try_from(round).unwrap()));
        service.kill(crate::util::service::Victim::Server);
        service.wait_ready(from);
        assert!(new.exists() && !gone.exists(), "round {round}: {}", service.log());
        let listed: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();
        assert_eq!(listed, systems.names(number), "round {round}");
    }
    running.finish().judge("servers killed while they switch");
    service.stop();
}

/// The place of a view may be spelled in any way, relative ones included; without one the name counts. A name that is served wins.
#[test]
fn a_view_is_found_however_it_is_named() {
    need!(Root, Fuse, Nix);
    let fixture = crate::util::fixture::Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let (name, at) = (service.name.clone(), service.path().to_owned());
    let dir = at.parent().unwrap();
    symlink("view", dir.join("link")).unwrap();
    let reload = |from: &Path, view: &str| {
        let program = Program::new().inside([Path::new("env"), Path::new("-C"), from]);
        program.args(["reload", view]).run()
    };
    let absolute = |path: &str| dir.join(path).display().to_string();
    let places = [&absolute("view"), &absolute("view/"), &absolute("link"), &absolute("view/../link/.")];
    for place in places.into_iter().map(String::as_str).chain([&*name, "view", "./view", "link", "view/.."]) {
        let finished = reload(dir, place);
        let code = if place == "view/.." { 8 } else { 0 };
        assert_eq!(finished.status.code(), Some(code), "{place}: {finished:?}");
    }
    assert_eq!(reload(&at, ".").status.code(), Some(0), "the working directory");
    let nosuch = unique_name();
    for view in [nosuch.clone(), format!("./{nosuch}"), absolute(&nosuch), absolute("no/such"), ".".into()] {
        let finished = reload(dir, &view);
        assert_eq!(finished.status.code(), Some(8), "{view}: {finished:?}");
        assert!(finished.stderr.starts_with("nix-store-fs: no view "), "{view}: {finished:?}");
        assert!(finished.stderr.contains(&format!("'{view}'")), "{view}: {finished:?}");
    }

    // A mount point with the name of another view: that one is meant.
    let other_at = crate::util::scratch();
    let other = unique_name();
    symlink("view", dir.join(&other)).unwrap();
    let served = |count: usize| format!("serving {count} store path");
    let finished = reload(dir, &other);
    assert!(finished.stdout.starts_with(&served(fixture.members().len())), "{finished:?}");
    let program = Program::on(&fixture.store).args(["--system", &fixture.file.path, "--name", &other]);
    let _other = program.arg(other_at.path()).mount_at(other_at.path());
    let finished = reload(dir, &other);
    assert!(finished.stdout.starts_with(&served(1)), "{finished:?}");
    service.stop();
}
