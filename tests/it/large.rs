//! Cost in proportion: a store of many paths and entries works like a small one, and its names cost what they should.
//!
//! `NSF_PATHS` and `NSF_ENTRIES` say how many; `scripts/stress --large` makes 10,000 and 1,000,000.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::util::load::{drop_kernel_caches, say};
use crate::util::service::Service;
use crate::util::store::{Member, NixStore};
use crate::util::tree;
use crate::util::{DEADLINE, number};

/// Bytes of the server's memory for each name that the kernel knows.
const ENTRY_MAX: u64 = 120;
/// One part in so many of that may stay when all names are forgotten.
const KEPT: u64 = 4;
/// Bytes by which one forgotten name is told (`struct fuse_forget_one`): the slots of the ledger keep the pages that such messages
/// were read into.
const FORGETTING: u64 = 16;
/// What the server may have open, however many names are known: see `Backing`.
const DESCRIPTORS_MAX: usize = 600;

/// Bytes that a process has written and shares with no other (proc_pid_smaps_rollup(5)). Those of its program's file, which is
/// mapped by the servers of other tests as well, count as its own when these have ended.
fn private(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let kibibytes = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    1024 * text.lines().filter(|line| line.starts_with("Private_Dirty")).filter_map(kibibytes).sum::<u64>()
}

fn make(store: &NixStore, paths: u64, entries: u64) -> Member {
    let each = entries / paths;
    let members: Vec<Member> = (0..paths)
        .map(|path| {
            store.put_in_place(&format!("package-{path}"), |at| {
                for file in 0..each {
                    let dir = at.join(format!("share-{}", file / 50));
                    if file % 50 == 0 {
                        fs::create_dir_all(&dir).unwrap();
                    }
                    File::create(dir.join(format!("a-file-of-the-package-{file}"))).unwrap();
                }
            })
        })
        .collect();
    let all: Vec<&Member> = members.iter().collect();
    let top = store.put_in_place("top", |at| fs::create_dir(at).unwrap());
    let alone: Vec<(&Member, &[&Member])> = all.iter().map(|member| (*member, &[][..])).collect();
    store.register(&alone);
    store.register(&[(&top, &all)]);
    top
}

/// Entries at and below `dir`, each with its attributes looked at.
fn count(dir: &Path) -> u64 {
    let mut found = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap_or_else(|error| panic!("{}: {error}", entry.path().display()));
            found += 1;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn many_paths_and_entries() {
    need!(Root, Fuse, Nix);
    let (paths, entries) = (number("NSF_PATHS", 1_000), number("NSF_ENTRIES", 40_000));
    let store = NixStore::new();
    let top = make(&store, paths, entries);

    let begun = Instant::now();
    let dumped =
        crate::util::program::Program::on(&store).args(["--system", &top.path, "--dump-closure"]).run();
    let dump = begun.elapsed();
    assert_eq!(dumped.stdout.lines().count() as u64, paths + 1, "{}", dumped.stderr);

    let mut service = Service::new(&store).with(["--system", &top.path]);
    let begun = Instant::now();
    service.start_ready();
    let ready = begun.elapsed();
    let server = service.server().as_raw_nonzero().get().cast_unsigned();
    let at_first = private(server);

    assert_eq!(tree::list(service.path()).unwrap().len() as u64, paths + 1);
    let begun = Instant::now();
    let found = count(service.path());
    let walked = begun.elapsed();
    assert_eq!(found, count(&store.physical()) - u64::from(store.physical().join(".links").exists()));
    let known = private(server);
    let open = fs::read_dir(format!("/proc/{server}/fd")).unwrap().count();
    say(&format!(
        "{paths} paths, {found} entries: --dump-closure {} ms, start to READY {} ms, walk {} ms; private memory {} KiB \
         at READY, {} KiB after the walk, {} bytes an entry; {open} descriptors",
        dump.as_millis(),
        ready.as_millis(),
        walked.as_millis(),
        at_first / 1024,
        known / 1024,
        known.saturating_sub(at_first) / found,
    ));
    assert!(known.saturating_sub(at_first) <= ENTRY_MAX * found, "{at_first} bytes grew to {known}");
    assert!(open <= DESCRIPTORS_MAX, "{open} descriptors are open");

    // What the kernel forgets the server forgets too, and gives back.
    let until = Instant::now() + DEADLINE;
    let grown = known.saturating_sub(at_first);
    let may_keep = grown / KEPT + FORGETTING * found;
    let mut kept = grown;
    while kept > may_keep && Instant::now() < until {
        drop_kernel_caches();
        std::thread::sleep(Duration::from_millis(100));
        kept = private(server).saturating_sub(at_first);
    }
    say(&format!("{} KiB more than at READY once all names were forgotten", kept / 1024));
    assert!(kept <= may_keep, "{kept} of {grown} bytes are kept");
    service.stop();
}

/// Memory of the allocator for threads of a process, beside that of the whole process: each begins at a multiple of its greatest length, which
/// is reserved (glibc, `arena.c`; see `proc_pid_maps(5)`).
#[cfg(target_env = "gnu")]
fn arenas(process: u32) -> Vec<String> {
    const LONGEST: u64 = 64 << 20;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let lines: Vec<(u64, u64, &str, &str)> = maps
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (begin, end) = words.next().unwrap().split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(begin), number(end), words.next().unwrap(), line)
        })
        .collect();
    let is_arena = |pair: &&[(u64, u64, &str, &str)]| {
        let [(begin, used, rights, _), (unused, end, none, _)] = **pair else { return false };
        begin % LONGEST == 0 && used == unused && end % LONGEST == 0 && (rights, none) == ("rw-p", "---p")
    };
    lines.windows(2).filter(is_arena).map(|pair| pair[0].3.to_owned()).collect()
}

/// What one thread of a monitor has freed another one can use.
#[cfg(target_env = "gnu")]
#[test]
fn the_threads_of_a_monitor_share_their_memory() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let top = make(&store, 10, 10);
    let mut service = Service::new(&store).with(["--system", &top.path]);
    service.start_ready();
    let [monitor, server] =
        [service.monitor(), service.server()].map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    // Of threads that answer requests all the time, as they do not share it: this finds what it looks for.
    assert_ne!(arenas(server), Vec::<String>::new());
    assert_eq!(arenas(monitor), Vec::<String>::new());
    service.stop();
}
