//! What is asked of a view ahead of its users: what was used is there, nobody sees it but by its being there, and nothing fails with it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::util::fixture::Fixture;
use crate::util::program::{Mounted, Program, unique_name};
use crate::util::store::{Member, NixStore};
use crate::util::{DEADLINE, locked, mounts, scratch, threads, tree};

/// Views of one name, one after the other, with a directory for their profile.
struct Views {
    name: String,
    cache: TempDir,
}

impl Views {
    fn new() -> Self {
        let cache = scratch();
        fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self { name: unique_name(), cache }
    }

    fn start(&self, program: Program, mode: &str) -> (Mounted, TempDir) {
        let dir = scratch();
        let program = program.args(["-v", "--name", &self.name, "--prefetch", mode, "--cache-dir"]);
        (program.arg(self.cache.path()).arg(dir.path()).mount_at(dir.path()), dir)
    }

    /// The same, with who plays, who waits until the first is dropped.
    fn start_held(&self, program: Program, mode: &str) -> (File, Mounted, TempDir, Pid) {
        let held = locked(self.cache.path());
        let (view, dir) = self.start(program, mode);
        let player = threads::player(view.pid());
        (held, view, dir, player)
    }

    /// Does `work` over a view with the profile that there is, once what was learnt has been asked for.
    fn run<T>(&self, program: Program, work: impl FnOnce(&Mounted) -> T) -> T {
        let when_played = |view: &Mounted| {
            if self.profile().exists() {
                self.until_played();
            }
            work(view)
        };
        self.run_as_it_is(program, when_played).0
    }

    /// The same, whatever is played; and what the program said.
    fn run_as_it_is<T>(&self, program: Program, work: impl FnOnce(&Mounted) -> T) -> (T, String) {
        let (mut view, _dir) = self.start(program, "auto");
        let answer = work(&view);
        view.signal(Signal::TERM);
        assert!(view.end().success(), "{}", view.stderr());
        (answer, view.stderr())
    }

    fn profile(&self) -> PathBuf {
        self.cache.path().join(&self.name)
    }

    fn ask(&self, what: &str) -> Value {
        let finished = Program::new().args([what, &self.name, "--json"]).run();
        assert!(finished.status.success(), "{finished:?}");
        let answer: Value = serde_json::from_str(&finished.stdout).unwrap();
        if what == "status" { answer["views"][0].clone() } else { answer }
    }

    fn requests(&self) -> u64 {
        let status = self.ask("status");
        let kinds = ["lookup", "readlink", "read", "readdirplus", "open"];
        kinds.into_iter().map(|kind| status["usage"]["requests"][kind].as_u64().unwrap()).sum()
    }

    /// What was played, once it is over.
    fn until_played(&self) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            let ahead = self.ask("status")["prefetch"].clone();
            if !ahead["played"].is_null() && ahead["playing"] == false {
                return ahead["played"].clone();
            }
            assert!(Instant::now() < until, "{ahead}");
            std::thread::yield_now();
        }
    }
}

/// A bind mount, for a moment.
struct Bound(PathBuf);

impl Bound {
    fn new(source: &Path, at: PathBuf) -> Self {
        rustix::mount::mount_bind(source, &at).unwrap();
        Self(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // It may be gone with the name.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A use of everything in `member`: listings, names that are there and that are not, links, bytes.
fn use_all(view: &Path, member: &Member) {
    for path in tree::walk(view, &member.base).into_keys() {
        let path = view.join(path);
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            assert!(!path.join("absent").exists());
            fs::read_dir(&path).unwrap().for_each(|entry| drop(entry.unwrap()));
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap();
        } else {
            fs::read(&path).unwrap();
        }
    }
}

#[test]
fn what_was_used_is_there_at_the_next_start() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let work = |view: &Mounted| {
        use_all(view.path(), &fixture.data);
        views.requests()
    };
    let first = views.run(fixture.program(), work);
    let profile = fs::metadata(views.profile()).unwrap();
    assert_eq!(profile.mode() & 0o777, 0o600);
    let second = views.run(fixture.program(), work);
    // The member's own name, what is marked, and absences directly in the member.
    assert!(second * 3 < first, "{first} requests, then {second}");
    let third = views.run(fixture.program(), work);
    assert!(third * 3 < first, "{first} requests, then {second}, then {third}");
    let left: BTreeSet<_> = tree::list(views.cache.path()).unwrap().into_iter().collect();
    assert_eq!(left, BTreeSet::from([PathBuf::from(&views.name)]), "nothing else is left");
}

#[test]
fn what_users_have_asked_for_meanwhile_is_left_to_them_and_remembered() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let work = |view: &Mounted| use_all(view.path(), &fixture.data);
    views.run(fixture.program(), work);
    let played = |meanwhile: &dyn Fn(&Mounted)| {
        let (held, mut view, _dir, _) = views.start_held(fixture.program(), "auto");
        meanwhile(&view);
        drop(held);
        let played = views.until_played();
        assert_eq!(played["stopped"], "done", "{played}");
        work(&view);
        view.signal(Signal::TERM);
        assert!(view.end().success(), "{}", view.stderr());
        played
    };
    let count = |played: &Value, what: &str| played[what].as_u64().unwrap();
    let (all, none) = (played(&|_| ()), played(&work));
    assert!(count(&all, "files") > 10 && count(&all, "names") > 10, "{all}");
    assert_eq!((count(&none, "files"), count(&none, "names")), (0, 0), "{none}");
    // One file in 64 is marked, each time another one.
    assert_eq!(none["done"]["names"], all["done"]["names"], "what was left to users is done");
    assert!(none["done"]["bytes"].as_u64().unwrap() > 10, "{none}");
    let next = played(&|_| ());
    assert!(count(&next, "files") * 2 > count(&all, "files"), "{all}, then {next}");
}

#[test]
fn uses_of_members_are_told_as_without() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| {
        [&fixture.data, &fixture.system].into_iter().for_each(|member| use_all(view.path(), member));
        fs::read(view.path().join(&fixture.file.base)).unwrap();
    });
    views.run(fixture.program(), |view| {
        let used = || -> Vec<String> {
            let report = views.ask("report");
            let used = report["usage"]["used"].as_array().unwrap();
            used.iter().map(|member| member["path"].as_str().unwrap().to_owned()).collect()
        };
        assert!(used().is_empty(), "what was asked ahead is no use: {:?}", used());
        assert_eq!(views.ask("status")["usage"]["bytesRead"], 0, "nobody has read anything");
        fs::read(view.path().join(&fixture.file.base)).unwrap();
        assert_eq!(used(), std::slice::from_ref(&fixture.file.base));
        fs::metadata(view.path().join(&fixture.data.base).join("deep/er/still")).unwrap();
        assert_eq!(used().len(), 2);
    });
}

#[test]
fn nobody_sees_that_a_view_was_asked_ahead() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let (view, _dir) = views.start(fixture.program(), "all");
    let played = views.until_played();
    assert_eq!(played["stopped"], "done", "{played}");
    assert!(
        played["files"].as_u64().unwrap() > 10 && played["bytes"].as_u64().unwrap() > 1 << 20,
        "{played}"
    );
    for member in [&fixture.data, &fixture.system, &fixture.file, &fixture.link] {
        let real = tree::walk(&fixture.store.physical(), &member.base);
        tree::assert_same(&real, &tree::walk(view.path(), &member.base));
    }
    let shown: BTreeSet<_> = tree::list(view.path()).unwrap().into_iter().collect();
    let members: BTreeSet<_> = fixture.members().into_iter().map(PathBuf::from).collect();
    assert_eq!(shown, members);
}

#[test]
fn what_is_mounted_on_a_name_stays_when_its_directory_is_listed_ahead() {
    need!(Root, Fuse, Nix);
    const NAMES: usize = 200;
    let (store, views) = (NixStore::new(), Views::new());
    let many = store.add("many", &[], |path| {
        fs::create_dir_all(path.join("in")).unwrap();
        (0..NAMES).for_each(|number| fs::write(path.join(format!("in/{number}")), "x").unwrap());
    });
    let program = || Program::on(&store).arg("--system").arg(&many.path);
    views.run(program(), |view| use_all(view.path(), &many));
    let (held, view, _dir, _) = views.start_held(program(), "auto");
    let (dir, source) = (view.path().join(&many.base).join("in"), scratch());
    let file = source.path().join("mounted");
    fs::write(&file, "mounted").unwrap();
    let on: Vec<Bound> = (0..NAMES).map(|number| Bound::new(&file, dir.join(number.to_string()))).collect();
    drop(held);
    views.until_played();
    // Whoever asks for a name again that was told without a lifetime is told that it is gone.
    let real = store.physical().join(&many.base);
    fs::rename(real.join("in"), real.join("gone")).unwrap();
    let lost = (0..NAMES)
        .filter(|number| fs::read(dir.join(number.to_string())).ok().as_deref() != Some(b"mounted"));
    assert_eq!(lost.collect::<Vec<_>>(), Vec::<usize>::new(), "mounts are gone");
    fs::rename(real.join("gone"), real.join("in")).unwrap();
    drop(on);
}

#[test]
fn a_profile_that_cannot_be_used_is_said_and_replaced() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    let good = fs::read_to_string(views.profile()).unwrap();
    let other = good.replacen("\"version\":1", "\"version\":99", 1);
    let cut = good[..good.len() / 2].to_owned();
    for (bad, said) in
        [(String::new(), "replaced"), (other, "99"), (cut, "replaced"), ("[".repeat(100_000), "replaced")]
    {
        fs::write(views.profile(), &bad).unwrap();
        views.run(fixture.program(), |view| {
            let line = "the profile of use is not used, and is replaced";
            view.said_soon(line);
            let stderr = view.stderr();
            assert!(stderr.lines().any(|told| told.contains(line) && told.contains(said)), "{stderr}");
            // What is played now would hide what is used.
            assert_eq!(views.until_played()["names"], 0);
            use_all(view.path(), &fixture.data);
        });
        let new: Value = serde_json::from_slice(&fs::read(views.profile()).unwrap()).unwrap();
        assert_eq!(new["version"], 1);
        assert!(!new["members"].as_array().unwrap().is_empty());
    }
    // An empty one, and that of another closure, are nothing to say anything about.
    let mut empty: Value = serde_json::from_str(&good).unwrap();
    empty["members"] = Value::Array(Vec::new());
    fs::write(views.profile(), empty.to_string()).unwrap();
    views.run(fixture.program(), |view| {
        assert_eq!(views.until_played()["names"], 0);
        use_all(view.path(), &fixture.data);
        assert!(!view.stderr().contains("WARN"), "{}", view.stderr());
    });
    let new: Value = serde_json::from_slice(&fs::read(views.profile()).unwrap()).unwrap();
    assert!(!new["members"].as_array().unwrap().is_empty());
    let store = NixStore::new();
    let lone = store.add("lone", &[], |path| fs::write(path, "lone").unwrap());
    views.run(Program::on(&store).arg("--system").arg(&lone.path), |view| {
        assert_eq!(fs::read(view.path().join(&lone.base)).unwrap(), b"lone");
        assert!(!view.stderr().contains("WARN"), "{}", view.stderr());
    });
}

#[test]
fn most_of_a_profile_survives_an_update() {
    need!(Root, Fuse, Nix);
    let (store, views) = (NixStore::new(), Views::new());
    let fill = |version: &'static str| {
        move |path: &Path| {
            fs::create_dir_all(path.join("lib")).unwrap();
            (0..40).for_each(|number| fs::write(path.join(format!("lib/{number}.so")), version).unwrap());
        }
    };
    let [old, new] = ["1.0", "1.1"].map(|version| {
        let package = store.add(&format!("package-{version}"), &[], fill(version));
        let system =
            store.add(&format!("system-{version}"), &[&package], |path| fs::write(path, version).unwrap());
        (package, system)
    });
    let program = |system: &Member| Program::on(&store).arg("--system").arg(&system.path);
    let work = |package: &Member, view: &Mounted| {
        use_all(view.path(), package);
        views.requests()
    };
    let first = views.run(program(&old.1), |view| work(&old.0, view));
    let second = views.run(program(&new.1), |view| work(&new.0, view));
    assert!(second * 3 < first, "{first} requests, then {second} after the update");
}

#[test]
fn it_stops_when_memory_is_short() {
    need!(Root, Fuse, Nix);
    let (store, views, scratch) = (NixStore::new(), Views::new(), scratch());
    let many = store.add("many", &[], |path| {
        for dir in 0..400 {
            fs::create_dir_all(path.join(format!("{dir}/of"))).unwrap();
            (0..8).for_each(|file| fs::write(path.join(format!("{dir}/of/{file}")), "x").unwrap());
        }
    });
    let pressure = scratch.path().join("pressure");
    let file = File::create(&pressure).unwrap();
    let write = |total: u64| {
        let line = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total:020}\n");
        // In place, as it is read at any time.
        file.write_all_at(line.as_bytes(), 0).unwrap();
    };
    write(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each time that it looks, somebody has waited for another second.
        scope.spawn(|| {
            let until = Instant::now() + DEADLINE;
            (1..)
                .take_while(|_| !over.load(Ordering::Relaxed) && Instant::now() < until)
                .for_each(|seconds| write(seconds * 1_000_000));
        });
        let program = Program::on(&store).env("NSF_PRESSURE", &pressure).arg("--system").arg(&many.path);
        let (view, _dir) = views.start(program, "all");
        let played = views.until_played();
        over.store(true, Ordering::Relaxed);
        assert_eq!(played["stopped"], "memory", "{played}");
        assert!(view.stderr().contains("asking ahead has stopped, as memory is short"), "{}", view.stderr());
    });
}

#[test]
fn it_stops_when_descriptors_are_short_and_says_so() {
    need!(Root, Fuse, Nix);
    let (store, views) = (NixStore::new(), Views::new());
    let many = store.add("many", &[], |path| {
        for dir in 0..100 {
            let dir = path.join(dir.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), "x").unwrap();
        }
    });
    let program = || Program::on(&store).arg("--system").arg(&many.path);
    views.run(program(), |view| use_all(view.path(), &many));
    let (held, mut view, _dir, player) = views.start_held(program(), "auto");
    let few = rustix::process::Rlimit { current: Some(40), maximum: Some(40) };
    rustix::process::prlimit(Some(player), rustix::process::Resource::Nofile, few).unwrap();
    drop(held);
    let played = views.until_played();
    assert_eq!(played["stopped"], "resources", "{played}");
    let status = Program::new().args(["status", &views.name]).run().stdout;
    assert!(status.contains("stopped as there were too few descriptors"), "{status}");
    assert!(view.stderr().contains("LimitNOFILE="), "{}", view.stderr());
    use_all(view.path(), &many);
    view.signal(Signal::TERM);
    assert!(view.end().success(), "{}", view.stderr());
    views.run(program(), |_| assert_eq!(views.until_played()["stopped"], "done"));
}

#[test]
fn a_view_ends_in_the_middle_of_it_and_nothing_is_left() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    // Before it asks the view, and while it waits for an answer of a server that was stopped.
    for stopped in [false, true] {
        let (held, mut view, dir, player) = views.start_held(fixture.program(), "auto");
        let server = view.server_now().unwrap();
        if stopped {
            kill_process(server, Signal::STOP).unwrap();
            drop(held);
            threads::until_asking(player);
            let status = fs::read_to_string(format!("/proc/{}/status", player.as_raw_nonzero())).unwrap();
            for line in
                ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
            {
                assert!(status.contains(line), "{line} in {status}");
            }
        }
        view.signal(Signal::TERM);
        assert!(view.end().success(), "{}", view.stderr());
        for process in [player, server] {
            threads::until_gone(process);
        }
        assert!(mounts::at(dir.path()).is_none());
    }
    // A server that is killed takes it along, and the next one serves.
    let (held, view, _dir, player) = views.start_held(fixture.program(), "auto");
    kill_process(view.server_now().unwrap(), Signal::KILL).unwrap();
    threads::until_gone(player);
    drop(held);
    use_all(view.path(), &fixture.data);
    assert_eq!(views.ask("status")["prefetch"]["playing"], false);
}

/// How far it came nobody knows: what was learnt before may be ready, and is no less true.
#[test]
fn what_was_learnt_stays_when_who_asks_ahead_is_killed() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let uses = || {
        let profile: Value = serde_json::from_slice(&fs::read(views.profile()).unwrap()).unwrap();
        profile["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| of["uses"].as_array().unwrap().len())
            .sum::<usize>()
    };
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    let before = uses();
    let (held, mut view, _dir, player) = views.start_held(fixture.program(), "auto");
    kill_process(player, Signal::STOP).unwrap();
    drop(held);
    fs::read(view.path().join(&fixture.file.base)).unwrap();
    view.signal(Signal::TERM);
    assert!(view.end().success());
    threads::until_gone(player);
    let log = view.stderr();
    assert!(!log.contains("WARN"), "{log}");
    let after = uses();
    // One in 64 is marked.
    assert!(after > before / 2, "{before} uses, then {after}: {log}");
}

/// As happens first where memory is short. What is used is remembered all the same, and nobody says otherwise.
#[test]
fn who_asks_ahead_is_killed_and_no_more_than_that_is_said() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    let (held, mut view, _dir, player) = views.start_held(fixture.program(), "auto");
    kill_process(player, Signal::KILL).unwrap();
    view.said_soon("asking ahead has ended early");
    drop(held);
    use_all(view.path(), &fixture.data);
    let told = views.ask("status")["prefetch"]["failed"].to_string();
    assert!(told.contains("SIGKILL"), "{told}");
    view.signal(Signal::TERM);
    assert!(view.end().success());
    let log = view.stderr();
    assert!(!log.contains("not remembered"), "{log}");
    let profile: Value = serde_json::from_slice(&fs::read(views.profile()).unwrap()).unwrap();
    assert_eq!(profile["runs"], 2);
}

/// Also where it cannot be replaced.
#[test]
fn what_is_in_the_way_of_a_profile_is_named() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let place = views.profile();
    let said = |work: &dyn Fn()| {
        views
            .run_as_it_is(fixture.program(), |view| {
                use_all(view.path(), &fixture.data);
                work();
            })
            .1
    };
    fs::create_dir(&place).unwrap();
    let log = said(&|| {});
    let named = |log: &str, what: &str, path: &Path| {
        let path = path.to_str().unwrap();
        assert!(log.lines().any(|line| line.contains(what) && line.contains(path)), "{what} {path}: {log}");
    };
    named(&log, "cannot be read", &place);
    named(&log, "no plain file", &place);
    named(&log, "cannot be replaced", &place);
    fs::remove_dir(&place).unwrap();
    let log = said(&|| fs::remove_dir(views.cache.path()).unwrap());
    named(&log, "cannot be created", &views.cache.path().join(format!(".{}.new", views.name)));
}

/// Nor does it keep a view that somebody has unmounted.
#[test]
fn who_asks_ahead_keeps_nobody_from_unmounting() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    let (held, mut view, _dir, player) = views.start_held(fixture.program(), "auto");
    let server = view.server_now().unwrap();
    kill_process(server, Signal::STOP).unwrap();
    drop(held);
    threads::until_asking(player);
    rustix::mount::unmount(view.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    kill_process(server, Signal::CONT).unwrap();
    assert!(view.end().success(), "{}", view.stderr());
    threads::until_gone(player);
}

/// Nor while it waits until others have been asked, which may take long.
#[test]
fn a_view_that_is_unmounted_before_it_is_asked_ahead_ends() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    let (held, mut view, _dir, player) = views.start_held(fixture.program(), "auto");
    rustix::mount::unmount(view.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(view.end().success(), "{}", view.stderr());
    let log = view.stderr();
    assert!(log.contains("the view was unmounted before"), "{log}");
    threads::until_gone(player);
    drop(held);
}

/// An activation reloads every view soon after the boot: where nothing has changed, what is asked ahead is not given up for it.
#[test]
fn a_reload_that_changes_nothing_does_not_end_it() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    views.run(fixture.program(), |view| use_all(view.path(), &fixture.data));
    let (held, view, _dir, player) = views.start_held(fixture.program(), "auto");
    let reloaded = Program::new().args(["reload", &views.name]).run();
    assert!(reloaded.status.success(), "{reloaded:?}");
    assert_eq!(threads::player(view.pid()), player);
    drop(held);
    assert_eq!(views.until_played()["stopped"], "done", "{}", view.stderr());
}

/// One after the other, and each of them.
#[test]
fn views_that_keep_their_profiles_in_one_place_are_all_asked_ahead() {
    need!(Root, Fuse, Nix);
    let (fixture, first) = (Fixture::new(), Views::new());
    let second = Views { name: unique_name(), cache: scratch() };
    let run = |views: &Views| {
        let dir = scratch();
        let program = fixture.program().args(["--name", &views.name, "--prefetch", "all", "--cache-dir"]);
        let view = program.arg(first.cache.path()).arg(dir.path()).mount_at(dir.path());
        assert_eq!(views.until_played()["stopped"], "done");
        (view, dir)
    };
    let _both = [run(&first), run(&second)];
}

#[test]
fn nothing_is_asked_or_remembered_where_nobody_wants_it() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let (mut view, _dir) = views.start(fixture.program(), "off");
    use_all(view.path(), &fixture.data);
    assert!(views.ask("status")["prefetch"].is_null());
    view.signal(Signal::TERM);
    assert!(view.end().success());
    assert_eq!(tree::list(views.cache.path()).unwrap().len(), 0);
}

#[test]
fn a_directory_that_others_can_read_is_refused_and_the_view_is_served() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    fs::set_permissions(views.cache.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = || {
        let ahead = views.ask("status")["prefetch"].clone();
        assert_eq!(ahead["remembers"], false);
        let status = Program::new().args(["status", &views.name]).run().stdout;
        assert!(status.contains("is not this user's alone; 'chmod 700' it"), "{status}");
    };
    let (view, _dir) = views.start(fixture.program(), "auto");
    use_all(view.path(), &fixture.data);
    assert!(view.stderr().contains("is not this user's alone"), "{}", view.stderr());
    refused();
    drop(view);
    // Where nobody has asked for it, no line of the log does.
    let program = fixture.program().env("CACHE_DIRECTORY", views.cache.path());
    let (program, dir) = (program.args(["--name", &views.name, "--prefetch", "auto"]), scratch());
    let view = program.arg(dir.path()).mount_at(dir.path());
    assert!(!view.stderr().contains("is not this user's alone"), "{}", view.stderr());
    refused();
}

#[test]
fn bytes_and_names_are_right_for_who_reads_beside_a_play() {
    need!(Root, Fuse, Nix);
    let (fixture, views) = (Fixture::new(), Views::new());
    let members = [&fixture.data, &fixture.system];
    views.run(fixture.program(), |view| {
        members.into_iter().for_each(|member| use_all(view.path(), member));
    });
    let real: Vec<_> =
        members.into_iter().map(|member| tree::walk(&fixture.store.physical(), &member.base)).collect();
    for mode in ["auto", "names", "all"] {
        let (held, view, _dir, _) = views.start_held(fixture.program(), mode);
        std::thread::scope(|scope| {
            for (member, real) in members.into_iter().zip(&real) {
                let at = view.path();
                scope.spawn(move || tree::assert_same(real, &tree::walk(at, &member.base)));
            }
            drop(held);
        });
        assert_eq!(views.until_played()["stopped"], "done", "{mode}");
    }
}
