//! The backing store on real files.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};

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

fn backing(dir: &Path) -> Backing {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Backing::new(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
}

fn place<'a>(dir: &'a [u8], name: &'a [u8]) -> Place<'a> {
    Place { parent: NodeId(2), dir, name }
}

/// What is called `name` in the store directory.
fn top(name: &[u8]) -> Place<'_> {
    Place { parent: NodeId(1), dir: b"", name }
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
    let backing = backing(&store);
    for (id, dir) in [&b"up"[..], b"absolute", b"..", b"../outside", b"/"].into_iter().enumerate() {
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
                if entry.stat.is_some() {
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
    assert_eq!(count(&|| assert_eq!(count(&|| {}), all)), all);
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
