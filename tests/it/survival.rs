//! A view outlives its processes: whoever is killed, readers see a pause and nothing else.
//!
//! `NSF_KILLS` says how often something is killed in each of the two ways of reading; `scripts/stress` runs the
//! slow forms.

use std::fs;
use std::time::{Duration, Instant};

use nix_store_fs::view::journal::{Home, Journal, Record};
use nix_store_fs::view::trie::{NodeId, NodeRecord, ROOT};

use crate::util::fixture::Fixture;
use crate::util::load::{self, Load, say};
use crate::util::mounts;
use crate::util::program::{Program, unique_name};
use crate::util::random::{Random, seed};
use crate::util::service::{Service, Victim};
use crate::util::store::NixStore;
use crate::util::{DEADLINE, number, tree};

/// How often in each of the two ways of reading, if nobody says otherwise.
const KILLS: u64 = 44;

fn kill_again_and_again(io: &str) {
    let fixture = Fixture::new();
    let busybox = load::add_busybox(&fixture.store);
    let many = load::add_many(&fixture.store, 2000);
    let mut service = Service::new(&fixture.store).with([
        "--system",
        &fixture.system.path,
        "--root",
        &busybox.path,
        "--root",
        &many.path,
        "--io",
        io,
    ]);
    service.start_ready();
    let members: Vec<String> =
        tree::list(service.path()).unwrap().iter().map(|b| b.display().to_string()).collect();
    let members = members.iter().map(String::as_str);
    let mut running = Load::holding(service.path(), &fixture.store, members, &busybox, 4);

    let mut failed = Vec::new();
    let mut random = Random::new(seed(&format!("survival, --io {io}")));
    let mut kills = [0_u64; 4];
    for round in 0..number("NSF_KILLS", KILLS) {
        let (pause, begun) = (random.below(300) as u64, random.below(60) as u64);
        std::thread::sleep(Duration::from_millis(100 + pause));
        let victim = [Victim::Server, Victim::Both, Victim::Monitor][usize::try_from(round % 3).unwrap()];
        service.kill(victim);
        kills[usize::try_from(round % 3).unwrap()] += 1;
        if victim != Victim::Server {
            if round % 4 == 0 {
                // One that has hardly begun is killed as well: whatever it was at must do no harm.
                service.start();
                std::thread::sleep(Duration::from_millis(begun));
                service.kill(Victim::Both);
                kills[3] += 1;
            }
            service.start_ready();
        }
        failed.extend(running.check(round).into_iter().map(|why| format!("after {victim:?}: {why}")));
    }
    let mut found = running.finish();
    found.failed.extend(failed);
    say(&format!(
        "survival, --io {io}: killed {} servers, {} times both, {} monitors, {} that had hardly begun",
        kills[0], kills[1], kills[2], kills[3]
    ));
    found.judge(&format!("survival, --io {io}"));
    assert_eq!(service.logged("the session failed"), 0, "{}", service.log());
    service.stop();
}

/// Whoever is killed at whatever moment: not one call fails, and every byte is right.
#[test]
fn killed_again_and_again_with_io_cached() {
    need!(Root, Fuse, Nix, Busybox);
    kill_again_and_again("cached");
}

/// The same when the kernel reads the files by itself.
#[test]
fn killed_again_and_again_with_io_passthrough() {
    need!(Root, Fuse, Nix, Busybox, Passthrough);
    kill_again_and_again("passthrough");
}

/// A server that resumes with a million nodes: said how long it takes, with the server and with all of the start.
#[test]
fn a_million_nodes() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let text = service.path().join(&fixture.data.base).join("text");
    let known = text.symlink_metadata().unwrap();
    service.kill(Victim::Both);

    let mut parent = ROOT;
    let journal = Journal::resume(Home::open(&service.state().join("journal/nodes")).unwrap(), |record| {
        if let Record::Node(NodeRecord { id, name, .. }) = record
            && *name == *fixture.data.base.as_bytes()
        {
            parent = id;
        }
    })
    .unwrap();
    assert_ne!(parent, ROOT, "the journal has the member");
    let nodes = number("NSF_NODES", 1_000_000);
    let dirs = nodes / 1000;
    let mut records = Vec::new();
    for number in 0..nodes {
        let id = NodeId(1_000_000 + number);
        let parent = if number < dirs { parent } else { NodeId(1_000_000 + number % dirs) };
        let name = format!("some-file-name-{number}").into_bytes().into();
        records.push(Record::Node(NodeRecord { id, parent, name }));
        if records.len() == 1000 {
            journal.append(&records).unwrap();
            records.clear();
        }
    }
    drop(journal);

    let begun = Instant::now();
    service.start_ready();
    let ready = begun.elapsed();
    let again = text.symlink_metadata().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&again), std::os::unix::fs::MetadataExt::ino(&known));

    service.kill(Victim::Server);
    let begun = Instant::now();
    // A name that nobody asked for yet, so that a server has to answer.
    let fresh = service.path().join(&fixture.data.base).join("names").join("a space");
    assert_eq!(fs::read(&fresh).unwrap(), b"a space");
    say(&format!(
        "resume with {nodes} nodes: READY=1 of a new monitor after {} ms, an answer of a new server after {} ms",
        ready.as_millis(),
        begun.elapsed().as_millis()
    ));
    service.stop();
}

/// A kill may tear the last record: it is dropped, and nothing else, neither before it nor behind it.
#[test]
fn a_torn_record_is_dropped() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let data = service.path().join(&fixture.data.base);
    // The kernel learns with the first close that closing needs no server: what is held open here is closed in the
    // processes that this one starts, also while there is no server.
    drop(fs::read(data.join("empty")).unwrap());
    let before = fs::File::open(data.join("deep/er/still/leaf")).unwrap();
    service.kill(Victim::Both);
    let journal = service.state().join("journal/nodes");
    let mut bytes = fs::read(&journal).unwrap();
    bytes.extend_from_slice(&[0x12, 0x34, 0x56, 0x78, 1, 0xA5, 0x40, 0, 9, 9]);
    fs::write(&journal, bytes).unwrap();
    service.start_ready();
    let behind = fs::File::open(data.join("text")).unwrap();
    service.kill(Victim::Server);
    for (file, contents) in [(before, "leaf\n"), (behind, "hello\n")] {
        let mut seen = String::new();
        std::io::Read::read_to_string(&mut &file, &mut seen).expect("the node is known");
        assert_eq!(seen, contents);
    }
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}

/// Whoever may write there has shortened the journal, damaged its end, or put an older one in its place. No id that the kernel knows is
/// given again: what is lost is looked up again.
#[test]
fn a_journal_that_lost_its_end_gives_no_file_the_contents_of_another() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let many = store.add("many", &[], |path| {
        fs::create_dir(path).unwrap();
        (0..90).for_each(|number| fs::write(path.join(format!("f{number}")), format!("{number}\n")).unwrap());
    });
    let mut service = Service::new(&store).with(["--system", &many.path]);
    service.start_ready();
    let files = service.path().join(&many.base);
    let journal = service.state().join("journal/nodes");
    let read = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            let contents = fs::read_to_string(files.join(format!("f{number}"))).unwrap();
            assert_eq!(contents, format!("{number}\n"));
        }
    };
    let mut older = Vec::new();
    for (round, way) in ["cut", "damaged", "older"].into_iter().enumerate() {
        let from = round * 30;
        read(0..from + 10);
        older = if older.is_empty() { fs::read(&journal).unwrap() } else { older };
        read(0..from + 20);
        service.kill(Victim::Both);
        let mut bytes = fs::read(&journal).unwrap();
        let len = bytes.len();
        match way {
            "cut" => bytes.truncate(len - 100),
            "damaged" => bytes[len - 100..].fill(7),
            _ => bytes.clone_from(&older),
        }
        fs::write(&journal, bytes).unwrap();
        service.start_ready();
        read(from + 20..from + 30);
        read(0..from + 30);
    }
    service.stop();
}

/// Where nobody keeps the descriptor, the death of both leaves a dead mount, and the next start cleans it up.
#[test]
fn a_dead_mount_is_cleaned_and_used_again() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    service.kill(Victim::Both);
    service.lose_descriptors();
    let dead = fs::read_dir(service.path()).unwrap_err();
    assert_eq!(rustix::io::Errno::from_io_error(&dead), Some(rustix::io::Errno::NOTCONN));

    // Another view is not to touch it.
    let mut other = Program::on(&fixture.store).args(["--system", &fixture.system.path, "--name"]);
    other = other.arg(unique_name()).arg(service.path());
    let refused = other.run();
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(refused.stderr.contains("whose server is dead"), "{refused:?}");
    assert!(mounts::at(service.path()).is_some(), "somebody else's dead mount was unmounted");

    service.start_ready();
    assert_eq!(service.logged_soon("clearing away the dead mount", 1), 1, "{}", service.log());
    assert_eq!(mounts::all().iter().filter(|mount| mount.at == service.path()).count(), 1);
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}

/// Without a service manager a monitor alone replaces its server.
#[test]
fn without_a_service_manager_a_server_is_replaced() {
    need!(Root, Fuse, Nix, Busybox);
    let fixture = Fixture::new();
    let busybox = load::add_busybox(&fixture.store);
    let mut service =
        Service::new(&fixture.store).with(["--system", &fixture.system.path, "--root", &busybox.path]);
    service.start_alone();
    let until = Instant::now() + DEADLINE;
    while mounts::at(service.path()).is_none() {
        assert!(Instant::now() < until, "not mounted: {}", service.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    let members = [fixture.data.base.as_str(), &busybox.base];
    let running = Load::start(service.path(), &fixture.store, members, Some(&busybox), 2);
    for _ in 0..10 {
        // One that is killed as soon as it serves is held for broken, and its successor has to wait.
        std::thread::sleep(Duration::from_millis(250));
        service.kill(Victim::Server);
    }
    running.finish().judge("without a service manager");
    // Nobody would succeed it, so it does not let go.
    service.signal(rustix::process::Signal::USR2);
    service.signal(rustix::process::Signal::HUP);
    let until = Instant::now() + DEADLINE;
    while service.logged("cannot hand over") == 0 {
        assert!(Instant::now() < until, "{}", service.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(tree::list(service.path()).unwrap().len(), fixture.members().len() + 1);
    service.stop();
}

/// A server that a monitor left behind gives way to the next monitor's: two never answer at once.
#[test]
fn a_server_left_behind_gives_way() {
    need!(Root, Fuse, Nix, Busybox);
    let fixture = Fixture::new();
    let busybox = load::add_busybox(&fixture.store);
    let many = load::add_many(&fixture.store, 2000);
    let mut service = Service::new(&fixture.store).with([
        "--system",
        &fixture.system.path,
        "--root",
        &busybox.path,
        "--root",
        &many.path,
    ]);
    service.start_ready();
    let members = [&fixture.data, &busybox, &many].map(|member| member.base.as_str());
    let running = Load::start(service.path(), &fixture.store, members, Some(&busybox), 4);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(200));
        let server = service.server();
        service.kill_monitor_only();
        service.start_ready();
        assert_ne!(service.server(), server);
        let until = Instant::now() + DEADLINE;
        while is_running(server) {
            assert!(Instant::now() < until, "the old server still runs beside the new one");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    running.finish().judge("a server left behind");
    service.stop();
}

/// A server that dies again and again without answering is started at growing intervals, which is said; once one
/// answers, all is as before.
#[test]
fn servers_that_never_answer_are_started_more_and_more_rarely() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let data = service.path().join(&fixture.data.base);
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    let said = "the server keeps exiting before it answers";
    let deaths = |service: &Service| service.logged("the server exited") + service.logged(said);
    let until = Instant::now() + DEADLINE;
    let mut waits = Vec::new();
    while waits.len() < 3 {
        let before = deaths(&service);
        service.kill(Victim::Server);
        // What follows a death is said before the next server is started, and killed.
        while deaths(&service) == before {
            assert!(Instant::now() < until, "no back-off: {}", service.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        waits = waits_since_an_answer(&service.log(), said);
    }
    assert_eq!(waits, ["50ms", "100ms", "200ms"], "{}", service.log());
    // Whoever asks meanwhile waits, and is answered.
    assert_eq!(fs::read(data.join("text")).unwrap(), b"hello\n");
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.kill(Victim::Server);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    assert_eq!(waits_since_an_answer(&service.log(), said), [""; 0], "{}", service.log());
    service.stop();
}

/// The waits that were said after the last server that answered: on a slow machine one may answer before it is killed.
fn waits_since_an_answer(log: &str, said: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let answered = lines
        .iter()
        .rposition(|line| line.contains("the view answers") || line.contains("has taken over"))
        .unwrap_or_default();
    lines[answered..]
        .iter()
        .filter(|line| line.contains(said))
        .filter_map(|line| line.rsplit(" in ").next())
        .map(str::to_owned)
        .collect()
}

fn is_running(pid: rustix::process::Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
