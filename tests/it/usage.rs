//! What was asked of a view is counted, whoever serves it: compared with what the test itself has asked for.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix_store_fs::values::StorePath;
use nix_store_fs::view::usage::{self, Asked, Kind, Snapshot, Uses};
use rustix::process::Pid;

use crate::util::fixture::Fixture;
use crate::util::load::{self, Load};
use crate::util::random::{Random, seed};
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::{threads, tree};

/// Store paths in directories of which each has two files, and a root that refers to them.
fn closure(store: &NixStore, count: usize) -> (Member, Vec<Member>) {
    let build = |number: usize| {
        move |path: &Path| {
            fs::create_dir_all(path.join("bin")).unwrap();
            fs::write(path.join("bin/tool"), number.to_string().repeat(1000)).unwrap();
            fs::write(path.join("long"), vec![b'x'; 40_000 * number]).unwrap();
        }
    };
    let all: Vec<_> = (1..=count).map(|n| store.add(&format!("part-{n}"), &[], build(n))).collect();
    let root = store.add("whole", &all.iter().collect::<Vec<_>>(), |path| fs::create_dir(path).unwrap());
    (root, all)
}

fn name(member: &Member) -> StorePath {
    StorePath::new(&member.base).unwrap()
}

/// Those of `all` that were asked for.
fn used<'a>(seen: &Snapshot, all: impl IntoIterator<Item = &'a Member>) -> BTreeSet<&'a str> {
    let used = all.into_iter().filter(|member| matches!(seen.of(&name(member)), Asked::For(_)));
    used.map(|member| member.base.as_str()).collect()
}

fn uses(seen: &Snapshot, member: &Member) -> Uses {
    match seen.of(&name(member)) {
        Asked::For(uses) => uses,
        other => panic!("{} is {other:?}", member.base),
    }
}

/// The memory of a view, by what its monitor has open.
fn of_monitor(process: Pid) -> Option<OwnedFd> {
    let open = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).unwrap();
    let mut found = open.map(|fd| fd.unwrap().path()).filter(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:usage"))
    });
    found.next().map(|path| fs::File::open(path).unwrap().into())
}

/// Servers and monitors are killed while some members are read. All of it is there afterwards, and nothing else.
#[test]
fn what_is_used_is_known_whoever_was_killed() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let (root, all) = closure(&store, 24);
    let mut service = Service::new(&store).with(["--system", &root.path]);
    service.start_ready();
    let memory = service.kept("usage");
    let read = || Snapshot::read(&memory).unwrap();
    let expect = |expected: &BTreeSet<&str>, seen: &Snapshot, when: &str, log: String| {
        assert_eq!(&used(seen, all.iter().chain([&root])), expected, "{when}\n{log}");
        assert_eq!(seen.members().len(), expected.len(), "{when}: somebody else's");
        assert!(seen.whole && seen.unknown == 0, "{when}: {seen:?}");
    };
    assert_eq!(fs::read_dir(service.path()).unwrap().count(), 25);
    expect(&BTreeSet::new(), &read(), "the root was listed", service.log());
    assert!(read().requests.contains(&(Kind::Read, 0)), "{:?}", read().requests);

    let mut random = Random::new(seed("usage"));
    let [first, others @ ..] = &all[..] else { panic!("no members") };
    let chosen: Vec<&Member> = others.iter().filter(|_| random.below(3) == 0).chain([first]).collect();
    let expected: BTreeSet<&str> = chosen.iter().map(|member| member.base.as_str()).collect();
    let load = Load::start(service.path(), &store, expected.iter().copied(), None, 3);
    let mut last = read();
    for round in 0..9 {
        std::thread::sleep(std::time::Duration::from_millis(50 + random.below(100) as u64));
        let victim = [Victim::Server, Victim::Both, Victim::Monitor][round % 3];
        service.kill(victim);
        if victim != Victim::Server {
            service.start_ready();
        }
        let now = read();
        assert!(now.bytes >= last.bytes && now.since == last.since, "{last:?}\n{now:?}");
        for ((kind, before), (_, after)) in last.requests.iter().zip(now.requests) {
            assert!(after >= *before, "round {round}: {kind:?} {before} {after}");
        }
        last = now;
    }
    load.finish().judge("usage");
    // Each of them at least once, however short the load was.
    for member in &chosen {
        tree::assert_same(
            &tree::walk(&store.physical(), &member.base),
            &tree::walk(service.path(), &member.base),
        );
    }
    expect(&expected, &read(), "after the load", service.log());

    // Once, and nothing of it is in the kernel.
    let before = read();
    load::drop_kernel_caches();
    for member in &chosen {
        tree::walk(service.path(), &member.base);
    }
    let after = read();
    let mut sum = 0;
    for member in &chosen {
        let files = ["bin/tool", "long"].map(|file| store.physical().join(&member.base).join(file));
        let size: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        let (before, after) = (uses(&before, member), uses(&after, member));
        assert!(after.bytes - before.bytes >= size, "{}: {before:?} {after:?} {size}", member.base);
        assert!(after.opens - before.opens >= 2, "{}: {before:?} {after:?}", member.base);
        sum += after.bytes - before.bytes;
    }
    assert_eq!(after.bytes - before.bytes, sum);
    expect(&expected, &after, "in the end", service.log());

    // The descriptor is lost with both processes: from now on it is only known who is asked for. A server that is killed before
    // it marks its last answer has the next one answer again, and count that.
    threads::until_asleep(service.server());
    service.kill(Victim::Both);
    service.lose_descriptor("usage");
    service.start_ready();
    let later = Snapshot::read(service.kept("usage")).unwrap();
    assert!(!later.whole && later.since >= after.since, "{later:?}");
    assert!(all.iter().all(|member| later.of(&name(member)) == Asked::Unknown), "{later:?}");
    assert_eq!(
        service.logged_soon("FileDescriptorStoreMax= has to be 3 at least", 1),
        1,
        "{}",
        service.log()
    );
    load::drop_kernel_caches();
    let tool = service.path().join(&all[0].base).join("bin/tool");
    assert_eq!(fs::read(tool).unwrap().len(), 1000);
    let later = Snapshot::read(service.kept("usage")).unwrap();
    assert_eq!(
        (uses(&later, &all[0]), later.of(&name(&all[1]))),
        (Uses { opens: 1, bytes: 1000 }, Asked::Unknown)
    );
    service.stop();
    assert!(service.stored().is_empty(), "what is counted is given up with the view: {:?}", service.stored());
}

/// What is kept of another mount is not counted on, and does not take the place of this one's.
#[test]
fn what_was_counted_of_another_mount_is_not_believed() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut services =
        [(); 2].map(|()| Service::new(&fixture.store).with(["--system", &fixture.system.path]));
    services.iter_mut().for_each(|service| drop(service.start_ready()));
    let [mut one, mut other] = services;
    fs::read(one.path().join(&fixture.data.base).join("text")).unwrap();
    let (seen, token) = (Snapshot::read(one.kept("usage")).unwrap(), usage::token(other.kept("usage")));
    assert_ne!(seen.of(&name(&fixture.data)), Asked::Never);
    other.kill(Victim::Both);
    other.replace_kept("usage", one.kept("usage"));
    other.start_ready();
    let found = Snapshot::read(other.kept("usage")).unwrap();
    assert_eq!((found.whole, found.of(&name(&fixture.data))), (false, Asked::Unknown), "{}", other.log());
    assert!(![token, usage::token(one.kept("usage"))].contains(&usage::token(other.kept("usage"))));
    assert_eq!(
        Snapshot::read(one.kept("usage")).unwrap().of(&name(&fixture.data)),
        seen.of(&name(&fixture.data))
    );

    // The device is lost, so the view is mounted again.
    other.kill(Victim::Both);
    other.lose_descriptor("fuse");
    let from = other.heard();
    other.start_ready();
    let given_up = |name| {
        let all = other.messages();
        all.iter()
            .skip(from)
            .any(|m| m.contains_key("FDSTOREREMOVE") && m.get("FDNAME").is_some_and(|n| n == name))
    };
    assert!(given_up("usage") && given_up("ledger"), "{:?}", other.messages());
    let found = Snapshot::read(other.kept("usage")).unwrap();
    assert_eq!((found.whole, found.of(&name(&fixture.data))), (true, Asked::Never), "{}", other.log());
    one.stop();
    other.stop();
}

/// A view whose files the kernel reads itself: it is known how often they are opened.
#[test]
fn opens_are_counted_where_the_kernel_reads() {
    need!(Root, Fuse, Nix, Passthrough);
    let fixture = Fixture::new();
    let view = fixture.program().args(["--io", "passthrough"]).mount();
    for _ in 0..3 {
        assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    }
    let seen = Snapshot::read(of_monitor(view.pid()).unwrap()).unwrap();
    assert_eq!(uses(&seen, &fixture.data), Uses { opens: 3, bytes: 0 }, "{}", view.stderr());
    assert_eq!(seen.of(&name(&fixture.file)), Asked::Never);
}

/// No memory to count in, for the monitor or for the server: the view works, and the log has it once.
#[test]
fn a_view_works_without_memory_to_count_in() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let scratch = crate::util::scratch();
    let refuse = crate::util::compile("refuse.c", scratch.path()).display().to_string();
    let no_memory = rustix::io::Errno::NOMEM.raw_os_error().to_string();
    for (call, said) in
        [("ftruncate", "no memory to count in"), ("mmap", "is counted by this server for itself")]
    {
        let call = format!("{call}={}", usage::BYTES);
        let view = fixture.program().inside([&refuse, &no_memory, &call]).mount();
        for member in fixture.members() {
            tree::assert_same(
                &tree::walk(&fixture.store.physical(), &member),
                &tree::walk(view.path(), &member),
            );
        }
        assert_eq!(of_monitor(view.pid()).is_none(), call.starts_with("ftruncate"), "{call}");
        assert_eq!(view.said_soon(said), 1, "{call}: {}", view.stderr());
    }
}
