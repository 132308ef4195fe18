//! The backing store on real files.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use super::objects::is_settled_by;
use super::*;

/// Gives everything in `dir` the time of a store object.
pub(crate) fn settle(dir: &Path) {
    if dir.symlink_metadata().unwrap().is_dir() {
        std::fs::read_dir(dir).unwrap().for_each(|entry| settle(&entry.unwrap().path()));
    }
    let one = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: one, last_modification: one };
    rustix::fs::utimensat(CWD, dir, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// No such name, and there will be none; and not now.
const ABSENT: BackingError = BackingError::Absent { settled: true };
const ABSENT_NOW: BackingError = BackingError::Absent { settled: false };

pub(super) fn backing(dir: &Path) -> Backing {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Backing::new(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
}

pub(super) fn place<'a>(dir: &'a [u8], name: &'a [u8]) -> Place<'a> {
    Place { parent: NodeId(2), dir, name }
}

/// What is called `name` in the store directory.
fn top(name: &[u8]) -> Place<'_> {
    Place { parent: NodeId(1), dir: b"", name }
}

/// The names from the position `from` on, of which `at` is told each, and whether the listing can be believed.
fn listed(backing: &Backing, id: u64, dir: &[u8], from: u64, at: &dyn Fn(&str)) -> (String, bool) {
    let mut names = Vec::new();
    let each = |entry: DirEntry<'_>| {
        let name = String::from_utf8_lossy(entry.name).into_owned();
        at(&name);
        names.push(name);
        true
    };
    let complete = backing.list(NodeId(id), dir, from, each).unwrap();
    (names.join(" "), complete)
}

#[test]
fn attributes_are_those_of_the_object_and_not_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"five!").unwrap();
    std::fs::set_permissions(dir.path().join("d/f"), std::fs::Permissions::from_mode(0o555)).unwrap();
    std::fs::hard_link(dir.path().join("d/f"), dir.path().join("other")).unwrap();
    symlink("/nowhere", dir.path().join("d/l")).unwrap();
    settle(dir.path());
    let backing = backing(dir.path());
    let file = backing.stat(place(b"d", b"f")).unwrap();
    assert_eq!((file.kind, file.perm, file.size, file.nlink), (Kind::File, 0o555, 5, 1));
    let link = backing.stat(place(b"d", b"l")).unwrap();
    assert_eq!((link.kind, link.size), (Kind::Symlink, 8));
    assert_eq!(backing.readlink(place(b"d", b"l")).unwrap().target, b"/nowhere");
    assert_eq!(backing.stat(place(b"d", b"absent")), Err(ABSENT));
    assert_eq!(backing.stat(top(b"absent")), Err(ABSENT_NOW), "a member may come back");
}

/// A file that has a further name can be told from others, on the file system of the store only.
#[test]
fn names_of_one_file_are_known_by_what_they_share() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"").unwrap();
    std::fs::write(dir.path().join("d/single"), b"").unwrap();
    std::fs::hard_link(dir.path().join("d/f"), dir.path().join("d/e/again")).unwrap();
    symlink("/nowhere", dir.path().join("d/l")).unwrap();
    std::fs::hard_link(dir.path().join("d/l"), dir.path().join("d/m")).unwrap();
    let mut backing = backing(dir.path());
    let linked = |backing: &Backing, name: &[u8]| backing.stat(place(b"d", name)).unwrap().linked;
    assert!(linked(&backing, b"f").is_some());
    assert_eq!(linked(&backing, b"f"), backing.stat(top(b"d/e/again")).unwrap().linked);
    for name in [&b"single"[..], b"e", b"l", b"m"] {
        assert_eq!(linked(&backing, name), None, "{name:?}");
    }
    for elsewhere in [None, Some((0, 0))] {
        backing.device = elsewhere;
        assert_eq!(linked(&backing, b"f"), None);
    }
}

/// The first call says whether the host has openat2(2) at all.
#[test]
fn a_host_that_cannot_open_is_found_out_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let backing = backing(dir.path());
    assert_eq!(backing.check(), Ok(()));
    assert_eq!(faults::during(0..1, Errno::NOSYS, || backing.check()).0, Err(Errno::NOSYS));
    std::fs::write(dir.path().join("f"), b"").unwrap();
    let file = Backing::new(std::fs::File::open(dir.path().join("f")).unwrap().into());
    assert_eq!(file.check(), Err(Errno::NOTDIR), "it is to be a directory");
}

/// No descriptor outlives an exec, and what is opened is of the kind that was meant, at once.
#[test]
fn what_is_opened_is_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"").unwrap();
    symlink("f", dir.path().join("d/l")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("d/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let store = std::fs::File::open(dir.path()).unwrap();
    let own = calls::open(&store, b"d", DIRECTORY).unwrap();
    let all = [
        calls::reopen(&own).unwrap(),
        calls::open(&store, b"d", ON_THE_WAY).unwrap(),
        calls::open(&store, b"d/f", FILE).unwrap(),
        own,
    ];
    for fd in all {
        assert_eq!(rustix::io::fcntl_getfd(&fd), Ok(rustix::io::FdFlags::CLOEXEC));
    }
    for flags in [DIRECTORY, ON_THE_WAY] {
        assert_eq!(calls::open(&store, b"d/f", flags).unwrap_err(), Errno::NOTDIR);
    }
    assert_eq!(calls::open(&store, b"d/l", FILE).unwrap_err(), Errno::LOOP);
    let reading = calls::open(&store, b"d/pipe", FILE);
    assert!(reading.is_ok(), "nobody writes, and nobody is waited for");
}

/// As many descriptors are kept as there is room for.
#[test]
fn what_is_kept_open_follows_the_room() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"").unwrap();
    let kept = |room: Option<usize>| {
        let backing = backing(dir.path());
        if let Some(room) = room {
            backing.set_room(room, 2);
        }
        for id in 0..1000 {
            backing.stat(Place { parent: NodeId(id), dir: b"d", name: b"f" }).unwrap();
        }
        backing.kept.count()
    };
    assert_eq!(kept(Some(20)), 0);
    assert!((16..=100).contains(&kept(Some(200))));
    assert!(kept(None) > 200);
}

/// What has the time of a store object is finished, and what was changed a moment ago is not.
#[test]
fn what_is_being_written_is_not_settled() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"half").unwrap();
    let backing = backing(dir.path());
    let facts = || {
        let read = backing.read(NodeId(3), place(b"d", b"f"), 0, &mut [0; 8]).unwrap();
        (
            backing.stat(place(b"d", b"f")).unwrap().settled,
            backing.stat(top(b"d")).unwrap().settled,
            backing.stat(place(b"d", b"absent")) == Err(ABSENT),
            backing.list(NodeId(2), b"d", 0, |_| true).unwrap(),
            read.settled,
        )
    };
    assert_eq!(facts(), (false, false, false, false, false));
    settle(dir.path());
    assert_eq!(facts(), (true, true, true, true, true));
    std::fs::remove_dir(dir.path().join("d/e")).unwrap();
    assert_eq!(facts(), (true, false, false, false, true), "somebody removes it");
}

/// The time of a store object, or a day without a change; never what is removed, and no clock that runs backwards.
#[test]
fn finished_is_what_nix_has_finished_or_nobody_has_touched_for_a_day() {
    const NOW: i64 = 2_000_000_000;
    const DAY: i64 = 86_400;
    for (modified, changed, links, settled) in [
        (1, NOW, 1, true),
        (0, NOW, 2, true),
        (1, NOW, 0, false),
        (2, NOW, 1, false),
        (-1, NOW, 1, false),
        (NOW, NOW, 1, false),
        (NOW - DAY, NOW - DAY, 1, false),
        (NOW - DAY - 1, NOW - DAY - 1, 1, true),
        (NOW - DAY - 1, NOW - 70, 1, false),
        (NOW - 70, NOW - DAY - 1, 1, false),
        (NOW - DAY - 1, NOW - DAY - 1, 0, false),
        (NOW + 5, NOW + 5, 1, false),
        (i64::MAX, i64::MAX, 1, false),
    ] {
        assert_eq!(is_settled_by(modified, changed, links, NOW), settled, "{modified} {changed} {links}");
    }
}

#[test]
fn no_link_leads_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    std::fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
    symlink("../outside", store.join("up")).unwrap();
    symlink(dir.path().join("outside"), store.join("absolute")).unwrap();
    symlink("../outside/secret", store.join("file")).unwrap();
    std::fs::create_dir_all(store.join("real/sub")).unwrap();
    std::fs::write(store.join("real/sub/secret"), b"not secret, but not here").unwrap();
    symlink("real", store.join("inside")).unwrap();
    let backing = backing(&store);
    for (id, dir) in [&b"up"[..], b"absolute", b"..", b"../outside", b"/", b"inside", b"inside/sub"]
        .into_iter()
        .enumerate()
    {
        let place = Place { parent: NodeId(id as u64 + 10), dir, name: b"secret" };
        assert!(backing.stat(place).is_err(), "{dir:?}");
        assert!(backing.list(NodeId(id as u64 + 20), dir, 0, |_| true).is_err(), "{dir:?}");
    }
    for (id, path) in [&b"file"[..], b"up/secret", b"../outside/secret"].into_iter().enumerate() {
        assert!(backing.read(NodeId(id as u64 + 30), top(path), 0, &mut [0; 8]).is_err(), "{path:?}");
    }
}

#[test]
fn what_a_nar_cannot_hold_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let backing = backing(dir.path());
    settle(dir.path());
    assert_eq!(backing.stat(place(b".", b"socket")), Err(ABSENT));
    let mut names = Vec::new();
    backing
        .list(NodeId(1), b".", 0, |entry| {
            names.push(entry.name.to_vec());
            true
        })
        .unwrap();
    assert!(!names.contains(&b"socket".to_vec()));
}

#[test]
fn a_listing_can_be_gone_on_from_at_every_entry() {
    let dir = tempfile::tempdir().unwrap();
    let names: BTreeSet<_> = (0..700).map(|n| format!("name-{n}").into_bytes()).collect();
    for name in &names {
        std::fs::write(dir.path().join(String::from_utf8_lossy(name).as_ref()), b"").unwrap();
    }
    let backing = backing(dir.path());
    let mut seen = Vec::new();
    let mut from = 0;
    loop {
        let mut taken = 0;
        backing
            .list(NodeId(1), b".", from, |entry| {
                if taken == 13 {
                    return false;
                }
                taken += 1;
                from = entry.next;
                if entry.at != At::Dot {
                    seen.push(entry.name.to_vec())
                }
                true
            })
            .unwrap();
        if taken == 0 {
            break;
        }
    }
    assert_eq!(seen.len(), names.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
}

/// On ext4 an open directory that is moved to its end, read, and moved back reads as empty: a listing that somebody goes
/// on with must not spoil the next one.
#[test]
fn a_listing_gone_on_from_its_end_leaves_the_next_one_whole() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("name"), b"").unwrap();
    let list = |backing: &Backing, from| {
        let (mut count, mut end) = (0, 0);
        let each = |entry: DirEntry<'_>| {
            (count, end) = (count + 1, entry.next);
            true
        };
        backing.list(NodeId(1), b".", from, each).unwrap();
        (count, end)
    };
    let (all, end) = list(&backing(dir.path()), 0);
    assert_eq!(all, 3);
    let another = backing(dir.path());
    assert_eq!(list(&another, end).0, 0);
    assert_eq!(list(&another, 0).0, all);
}

/// Whoever lists a directory that somebody else lists at the moment sees all of it as well.
#[test]
fn listings_of_one_directory_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..700 {
        std::fs::write(dir.path().join(format!("name-{n}")), b"").unwrap();
    }
    let backing = backing(dir.path());
    let count = |inner: &dyn Fn()| {
        let mut names = BTreeSet::new();
        let each = |entry: DirEntry<'_>| {
            inner();
            names.insert(entry.name.to_vec())
        };
        backing.list(NodeId(1), b".", 0, each).unwrap();
        names.len()
    };
    let all = 702;
    let turn = std::cell::Cell::new(0);
    let other = || {
        turn.set(turn.get() + 1);
        if turn.get() % 37 == 1 {
            assert_eq!(count(&|| {}), all);
        }
    };
    assert_eq!(count(&other), all);
    assert_eq!(turn.get(), all);
    assert_eq!(count(&|| {}), all);
}

/// A directory that is kept open is removed, and another is in its place: `nix-store --repair-path` does that.
#[test]
fn a_directory_that_was_replaced_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let make = |text: &str| {
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        for name in ["d/known", "d/unknown", "d/e/listed"] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        symlink("/nowhere", dir.path().join("d/link")).unwrap();
    };
    let backing = backing(dir.path());
    let list = || {
        let mut names = BTreeSet::new();
        let each = |entry: DirEntry<'_>| names.insert(String::from_utf8_lossy(entry.name).into_owned());
        backing.list(NodeId(3), b"d/e", 0, each).map(|_| names.contains("listed"))
    };
    make("old");
    assert_eq!(backing.stat(place(b"d", b"known")).unwrap().size, 3);
    assert_eq!(list(), Ok(true));
    std::fs::remove_dir_all(dir.path().join("d")).unwrap();
    assert_eq!(backing.stat(place(b"d", b"known")), Err(ABSENT_NOW));
    assert_eq!(list(), Err(ABSENT_NOW));
    make("newer");
    settle(dir.path());
    assert_eq!(list(), Ok(true));
    assert_eq!(backing.stat(place(b"d", b"unknown")).unwrap().size, 5);
    assert_eq!(backing.readlink(place(b"d", b"link")).unwrap().target, b"/nowhere");
    let mut buffer = [0; 8];
    assert_eq!(backing.read(NodeId(9), place(b"d", b"unknown"), 0, &mut buffer).unwrap().len, 5);
    assert_eq!(backing.stat(place(b"d", b"absent")), Err(ABSENT));
}

#[test]
fn paths_longer_than_path_max_are_reached() {
    let dir = tempfile::tempdir().unwrap();
    let part = "x".repeat(250);
    let mut at = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, &part, Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, &part, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let file =
        rustix::fs::openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    let deep = vec![part; 40].join("/").into_bytes();
    let backing = backing(dir.path());
    assert_eq!(backing.stat(place(&deep, b"f")).unwrap().size, 4);
    let mut buffer = [0; 8];
    assert_eq!(backing.read(NodeId(9), place(&deep, b"f"), 0, &mut buffer).unwrap().len, 4);
    assert_eq!(&buffer[..4], b"deep");
}

#[test]
fn reads_agree_with_and_without_dontcache() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(dir.path().join("f"), &bytes).unwrap();
    for plain in [false, true] {
        let backing = backing(dir.path());
        if plain {
            backing.without_dontcache();
        }
        let mut buffer = vec![0; 400_000];
        assert_eq!(backing.read(NodeId(2), top(b"f"), 0, &mut buffer).unwrap().len, bytes.len());
        assert_eq!(buffer[..bytes.len()], bytes);
        assert_eq!(backing.read(NodeId(2), top(b"f"), 299_999, &mut buffer).unwrap().len, 1);
        assert_eq!(backing.read(NodeId(2), top(b"f"), 300_000, &mut buffer).unwrap().len, 0);
    }
}

/// Holes are where the store's file has them, and nothing is past its end.
#[test]
fn holes_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("f")).unwrap();
    file.write_all_at(b"data", 0).unwrap();
    file.write_all_at(b"more", 1 << 20).unwrap();
    file.set_len(3 << 20).unwrap();
    let backing = backing(dir.path());
    for offset in [0, 1, 5000, 1 << 20, 2 << 20, (3 << 20) - 1, 3 << 20, 1 << 40] {
        for hole in [false, true] {
            let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
            let expected = rustix::fs::seek(&file, from).map_err(BackingError::Host);
            assert_eq!(backing.seek(NodeId(2), top(b"f"), offset, hole), expected, "{offset} {hole}");
            assert_eq!(backing.kept.count(), 1, "an end is no failure");
        }
    }
}

/// A file is opened once, and again when another one has its name or everything was closed.
#[test]
fn a_file_that_was_replaced_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), b"old").unwrap();
    std::fs::write(dir.path().join("g"), b"newer").unwrap();
    settle(dir.path());
    let backing = backing(dir.path());
    backing.without_dontcache();
    let read = || {
        let mut buffer = [0; 8];
        let read = || backing.read(NodeId(2), top(b"f"), 0, &mut buffer).unwrap().len;
        let (read, calls, _) = faults::during(0..0, Errno::IO, read);
        (String::from_utf8_lossy(&buffer[..read]).into_owned(), calls)
    };
    let (opened, first) = read();
    let (kept, second) = read();
    assert_eq!((opened.as_str(), kept.as_str(), second), ("old", "old", first - 2));
    std::fs::rename(dir.path().join("g"), dir.path().join("f")).unwrap();
    assert_eq!(read().0, "newer");
    assert_eq!(read(), ("newer".to_owned(), second));
    backing.close(NodeId(2));
    assert_eq!((backing.kept.count(), read().1), (0, first));
    backing.close_all();
    assert_eq!((backing.kept.count(), read().1), (0, first));
}

/// What fails through a descriptor that was kept is tried once more through a new one, but for a disk that fails; what
/// fails through a new one is not tried again; and nothing that failed is kept.
#[test]
fn a_failure_is_tried_again_only_where_that_may_help() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"hello").unwrap();
    settle(dir.path());
    let fresh = || {
        let backing = backing(dir.path());
        backing.without_dontcache();
        backing
    };
    let kept = || {
        let backing = fresh();
        backing.read(NodeId(3), place(b"d", b"f"), 0, &mut [0; 8]).unwrap();
        assert_eq!(backing.kept.count(), 2);
        backing
    };
    let read = |backing: &Backing, failing, errno| {
        let read = || backing.read(NodeId(3), place(b"d", b"f"), 0, &mut [0; 8]).map(|read| read.len);
        let (answer, calls, failed) = faults::during(failing, errno, read);
        assert!(failed);
        (answer, calls, backing.kept.count())
    };
    for call in [0, 1] {
        let once = call..call + 1;
        // The calls of a read: attributes, bytes. Again: look at the name, open, attributes, bytes.
        assert_eq!(read(&kept(), once.clone(), Errno::STALE), (Ok(5), call + 1 + 4, 2));
        assert_eq!(read(&kept(), once.clone(), Errno::IO), (Err(BackingError::Host(Errno::IO)), call + 1, 1));
        let backing = kept();
        let past = || backing.seek(NodeId(3), place(b"d", b"f"), 5, false);
        let (answer, calls, _) = faults::during(once, Errno::NXIO, past);
        assert_eq!((answer, calls), (Err(BackingError::Host(Errno::NXIO)), call + 1), "past the end");
    }
    // Open the directory, look at the name, open the file, attributes, bytes.
    for (call, left) in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)] {
        let failed = (Err(BackingError::Host(Errno::TIMEDOUT)), call + 1, left);
        assert_eq!(read(&fresh(), call..call + 1, Errno::TIMEDOUT), failed, "call {call}");
    }
}

/// The old tree is moved away, another one is put into its place, and the old one is deleted bit by bit: what is listed is
/// what has the name.
#[test]
fn a_directory_that_was_moved_away_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["d/a", "d/b"] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    settle(dir.path());
    let backing = backing(dir.path());
    let list = || listed(&backing, 2, b"d", 0, &|_| {});
    assert_eq!(list(), (". .. a b".to_owned(), true));
    std::fs::rename(dir.path().join("d"), dir.path().join("old")).unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["d/a", "d/b", "d/c"] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    settle(&dir.path().join("d"));
    std::fs::remove_file(dir.path().join("old/a")).unwrap();
    assert_eq!(list(), (". .. a b c".to_owned(), true));
    assert_eq!(backing.kept.count(), 1);
}

/// A file system may give less than it was asked for.
#[test]
fn reads_in_pieces_are_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..1000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(dir.path().join("f"), &bytes).unwrap();
    let backing = backing(dir.path());
    for length in [1, 7, 500, 999] {
        for offset in [0, 1, 990, 1000, 2000] {
            let mut buffer = vec![0; 2000];
            let read = || backing.read(NodeId(2), top(b"f"), offset as u64, &mut buffer).unwrap().len;
            let read = faults::reads_of(length, read);
            assert_eq!(&buffer[..read], bytes.get(offset..).unwrap_or_default(), "{offset} by {length}");
        }
    }
}

/// At the end of a file, within a page and between two.
#[test]
fn reads_end_where_the_file_does() {
    let dir = tempfile::tempdir().unwrap();
    let backing = backing(dir.path());
    for (id, length) in (10..).zip([0, 1, 4095, 4096, 4097, 8192, 70_000]) {
        let name = length.to_string();
        let bytes: Vec<u8> = (0..length).map(|n: usize| (n % 251) as u8).collect();
        std::fs::write(dir.path().join(&name), &bytes).unwrap();
        for room in [1, 4096, 65_536, 131_072] {
            let mut seen = Vec::new();
            let mut buffer = vec![0; room];
            loop {
                let place = top(name.as_bytes());
                let read = backing.read(NodeId(id), place, seen.len() as u64, &mut buffer).unwrap().len;
                seen.extend_from_slice(&buffer[..read]);
                assert_eq!(read, room.min(length - (seen.len() - read)));
                if read < room || seen.len() > 10_000 && room == 1 {
                    break;
                }
            }
            assert_eq!(seen, bytes[..seen.len()]);
            assert!(room == 1 || seen.len() == length);
        }
    }
}

/// Positions fit into what a 32-bit program has for them, are the same in every server, and tell nothing of the host.
#[test]
fn positions_are_numbers_in_the_order_of_the_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "a", "c", "B"] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    let listed = |from| {
        let mut all = Vec::new();
        let each = |entry: DirEntry<'_>| {
            all.push((String::from_utf8_lossy(entry.name).into_owned(), entry.next));
            true
        };
        backing(dir.path()).list(NodeId(1), b".", from, each).map(|_| all)
    };
    let all: Vec<_> = [".", "..", "B", "a", "b", "c"].map(str::to_owned).into_iter().zip(1..).collect();
    for (at, expected) in (0..).zip(0..all.len()) {
        assert_eq!(listed(at).unwrap(), all[expected..]);
    }
    assert_eq!(listed(6).unwrap(), []);
    assert_eq!(listed(POSITION_MAX).unwrap(), []);
    // The position of an earlier version, which passed on those of the host.
    assert_eq!(listed(POSITION_MAX + 1), Err(BackingError::Host(Errno::STALE)));
    assert_eq!(listed(u64::MAX), Err(BackingError::Host(Errno::STALE)));
}

/// Names that were read while a directory was being written serve until it is finished, and no longer.
#[test]
fn a_listing_begun_while_a_directory_is_written_goes_on_with_the_finished_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["d/a", "d/b"] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    let backing = backing(dir.path());
    let from = |from| {
        let list = || listed(&backing, 2, b"d", from, &|_| {});
        let ((names, complete), calls, _) = faults::during(0..0, Errno::IO, list);
        (names, complete, calls)
    };
    assert!(!from(0).1);
    let (names, complete, calls) = from(3);
    assert_eq!((names, complete), ("b".to_owned(), false));
    assert_eq!(calls, 2, "it was not read again");
    backing.close(NodeId(2));
    assert!(from(3).2 > calls, "nobody lists it any more");
    std::fs::write(dir.path().join("d/c"), b"").unwrap();
    settle(dir.path());
    let (names, complete, _) = from(3);
    assert_eq!((names, complete), ("b c".to_owned(), true));
}

/// A call that a signal interrupts is made again; one that is interrupted for ever is an error.
#[test]
fn what_was_interrupted_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"hello").unwrap();
    for errno in [Errno::INTR, Errno::AGAIN] {
        let mut call = 0;
        loop {
            let backing = backing(dir.path());
            let list = || {
                let mut names = Vec::new();
                let each = |entry: DirEntry<'_>| {
                    names.push(entry.name.to_vec());
                    true
                };
                backing.list(NodeId(2), b"d", 0, each).map(|_| names.len())
            };
            let (answer, _, failed) = faults::during(call..call + 10, errno, list);
            assert_eq!(answer, Ok(3), "call {call}");
            if !failed {
                break;
            }
            let lasting = faults::during(call..1_000_000, errno, || backing.names(NodeId(2), b"d"));
            assert!(lasting.0.is_err() || !lasting.2, "call {call}");
            call += 1;
        }
        assert!(call > 3);
    }
}

/// An empty directory has its two dots, and what loses a name while it is told is not whole.
#[test]
fn a_listing_that_misses_a_name_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("d/empty")).unwrap();
    for name in ["d/a", "d/b", "d/c"] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    settle(dir.path());
    let backing = backing(dir.path());
    let list = |id, path: &[u8], at: &dyn Fn(&str)| listed(&backing, id, path, 0, at);
    assert_eq!(list(3, b"d/empty", &|_| {}), (". ..".to_owned(), true));
    assert_eq!(list(2, b"d", &|_| {}), (". .. a b c empty".to_owned(), true));
    let remove = |name: &str| {
        if name == "a" {
            std::fs::remove_file(dir.path().join("d/b")).unwrap();
        }
    };
    assert_eq!(list(2, b"d", &remove), (". .. a c empty".to_owned(), false));
}

/// A large directory is read once for a listing in many pieces.
#[test]
fn a_listing_in_pieces_reads_the_directory_once() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..500 {
        std::fs::write(dir.path().join(format!("{n}")), b"").unwrap();
    }
    settle(dir.path());
    let backing = backing(dir.path());
    let (mut from, mut calls) = (0, 0);
    loop {
        let (mut told, mut last) = (0, from);
        let each = |entry: DirEntry<'_>| {
            let taken = told < 5;
            (told, last) = if taken { (told + 1, entry.next) } else { (told, last) };
            taken
        };
        let list = || backing.list(NodeId(1), b".", from, each).unwrap();
        calls += faults::during(0..0, Errno::IO, list).1;
        from = last;
        if told == 0 {
            break;
        }
    }
    assert!(calls < 502 + 101 + 20, "{calls} calls for 500 entries in 101 pieces");
    assert!(backing.listings.get(NodeId(1), 0).is_none(), "its end was told");
}
