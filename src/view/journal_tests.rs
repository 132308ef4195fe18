//! Tests of the journal.

use proptest::prelude::*;

use super::*;
use crate::view::backing::Identity;
use crate::view::trie::{NodeId, NodeRecord};

fn node(id: u64, name: &[u8]) -> Record {
    Record::Node(NodeRecord { id: NodeId(id), parent: NodeId(id / 2), name: name.into() })
}

fn header(losses: u32) -> Vec<u8> {
    Header { generation: 0, losses }.bytes().to_vec()
}

/// A journal whose file is another one.
fn over(path: &Path, file: File) -> Journal {
    Journal::over(Home::open(path).unwrap(), Used { half: Half::First, generation: 0, file }, 0, 0)
}

fn size_of(journal: &Journal) -> u64 {
    journal.home.path(journal.used.read().half).metadata().unwrap().len()
}

fn read(path: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    Journal::resume(Home::open(path).unwrap(), |record| records.push(record)).unwrap();
    records
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// What was appended comes back, also when the last record is torn at any byte, or when a torn one
    /// stands in the middle: then exactly the torn one is missing.
    #[test]
    fn torn_records_are_dropped_and_no_other(names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..256), 2..20),
                                             torn in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let records: Vec<_> = (0..).zip(&names).map(|(n, name)| match name.len() % 12 {
            0 => Record::Backing(NodeId(n), n as u32),
            1 => Record::BackingEnded(NodeId(n), n as u32),
            2 => Record::Cached(NodeId(n)),
            3 => Record::CachedEnded(NodeId(n)),
            4 => Record::Next(NodeId(n)),
            5 => Record::Member(NodeId(n), Identity::Born((-5, n as u32))),
            6 => Record::Member(NodeId(n), Identity::Inode(u64::MAX - n)),
            7 => Record::Replaced(NodeId(n)),
            _ => node(n, name),
        }).collect();
        let torn = torn.index(records.len());
        let mut bytes = header(0);
        for (n, record) in records.iter().enumerate() {
            let mut one = Vec::new();
            encode(record, &mut one);
            if n == torn {
                one.truncate(cut.index(one.len()));
            }
            bytes.extend(one);
        }
        std::fs::write(&path, bytes).unwrap();
        let mut expected = records;
        expected.remove(torn);
        prop_assert_eq!(read(&path), expected);
    }
}

/// The bytes that a torn record lacks may be those that the next one begins with.
#[test]
fn a_torn_record_does_not_take_the_next_one_with_it() {
    let bytes = |record: &Record| {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        bytes
    };
    let mut torn = bytes(&Record::Backing(NodeId(7), 7));
    let missing = torn.pop().unwrap();
    let next = (0..10_000).map(|n| node(n, b"next")).find(|next| bytes(next)[0] == missing).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let last = node(20_000, b"last");
    std::fs::write(&path, [header(0), torn, bytes(&next), bytes(&last)].concat()).unwrap();
    assert_eq!(read(&path), [next, last]);
}

#[test]
fn records_longer_than_a_window_come_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let records: Vec<_> = (0..20_000).map(|n| node(n, format!("name-{n}").as_bytes())).collect();
    let journal = Journal::create(&path).unwrap();
    for some in records.chunks(77) {
        journal.append(some).unwrap();
    }
    assert_eq!(read(&path), records);
    journal.rewrite(|put| records.iter().take(10).for_each(put)).unwrap();
    journal.append(&records[10..11]).unwrap();
    assert_eq!(read(&path), records[..11]);
}

#[test]
fn other_versions_and_other_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Journal::resume(Home::open(&path).unwrap(), |_| ()).map(|_| ()).unwrap_err()
    };
    assert!(matches!(refused(b""), JournalError::Foreign(_)));
    assert!(matches!(refused(b"something else entirely"), JournalError::Foreign(_)));
    assert!(matches!(refused(b"nsfsnode\x02\0\0\0\0\0\0\0"), JournalError::Version { found: 2, .. }));
}

/// Its size is known whoever opened it, and a loss is none before there was one.
#[test]
fn a_journal_knows_how_large_it_is_and_whether_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let check = |journal: &Journal, losses: u64| {
        assert_eq!(journal.size.load(Ordering::Relaxed), size_of(journal));
        assert_eq!((journal.has_losses(), journal.lost_ids()), (losses > 0, losses * LOST_IDS));
    };
    let journal = Journal::create(&path).unwrap();
    check(&journal, 0);
    let records: Vec<_> = (0..10_000).map(|n| node(n, b"some name or other of a file")).collect();
    records.chunks(999).for_each(|some| journal.append(some).unwrap());
    journal.append(&[]).unwrap();
    check(&journal, 0);
    let resume = || Journal::resume(Home::open(&path).unwrap(), |_| ()).unwrap();
    check(&resume(), 0);
    journal.rewrite(|put| records.iter().take(7).for_each(put)).unwrap();
    check(&journal, 0);
    for losses in 1..4 {
        journal.count_loss(journal.used.read().half);
        check(&journal, losses);
    }
    // A successor of a loss counts one more: it began where another one may have been before.
    check(&resume(), 4);
    check(&resume(), 5);
    journal.rewrite(|put| records.iter().take(3).for_each(put)).unwrap();
    assert!(resume().has_losses(), "a new file tells of them too");
}

/// Whenever a server is killed that replaces what it has written, one of the two files has all of it, and its successor uses that.
#[test]
fn a_kill_in_a_rewrite_leaves_one_file_in_use() {
    let bytes = |records: &[Record]| {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| encode(record, &mut bytes));
        bytes
    };
    let (before, after) = ([node(2, b"a"), node(3, b"b")], [node(3, b"b")]);
    let (old, new) = (bytes(&before), bytes(&after));
    let with =
        |generation: u16, records: &[u8]| [&Header { generation, losses: 0 }.bytes(), records].concat();
    let bare = |records: &[u8]| [&[0; HEADER], records].concat();
    for (used, other) in [(0, 1), (1, 2), (u16::MAX, 0), (i16::MAX as u16, 1 << 15)] {
        let steps = [
            (with(used, &old), vec![], &before[..]),
            (with(used, &old), bare(&[])[..7].to_vec(), &before[..]),
            (with(used, &old), bare(&new[..new.len() / 2]), &before[..]),
            (with(used, &old), bare(&new), &before[..]),
            (with(used, &old), with(other, &new), &after[..]),
            (vec![], with(other, &new), &after[..]),
        ];
        for (step, (one, two, expected)) in steps.iter().enumerate() {
            for swapped in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("nodes");
                let (one, two) = if swapped { (two, one) } else { (one, two) };
                std::fs::write(&path, one).unwrap();
                std::fs::write(path.with_extension("2"), two).unwrap();
                assert_eq!(read(&path), *expected, "step {step} from {used}, swapped {swapped}");
                let files = [path.clone(), path.with_extension("2")];
                let full = files.iter().filter(|file| file.metadata().unwrap().len() > 0).count();
                assert_eq!(full, 1, "step {step}: the other file gives back what it takes");
                let journal = Journal::resume(Home::open(&path).unwrap(), |_| ()).unwrap();
                journal.append(&[node(9, b"c")]).unwrap();
                drop(journal);
                assert_eq!(read(&path), [*expected, &[node(9, b"c")]].concat(), "step {step} from {used}");
            }
        }
    }
}

/// A journal makes no file after its beginning: a server may not.
#[test]
fn a_rewrite_uses_the_two_files_in_turn_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let journal = Journal::create(&path).unwrap();
    let inode = |half| std::os::unix::fs::MetadataExt::ino(&journal.home.path(half).metadata().unwrap());
    let inodes = [Half::First, Half::Second].map(inode);
    for round in 1..6_u64 {
        journal.append(&[node(round, b"appended")]).unwrap();
        journal.rewrite(|put| put(&node(100 + round, b"kept"))).unwrap();
        assert_eq!([Half::First, Half::Second].map(inode), inodes);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(journal.home.path(journal.used.read().half.other()).metadata().unwrap().len(), 0);
        journal.append(&[node(200 + round, b"behind")]).unwrap();
        assert_eq!(read(&path), [node(100 + round, b"kept"), node(200 + round, b"behind")]);
    }
}

/// A file that is in use and damaged is not replaced by what the other one has.
#[test]
fn a_damaged_file_is_refused_whatever_the_other_one_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    for damaged in [path.clone(), path.with_extension("2")] {
        drop(Journal::create(&path).unwrap());
        let whole = [path.clone(), path.with_extension("2")].into_iter().find(|p| *p != damaged).unwrap();
        std::fs::write(&whole, header(0)).unwrap();
        std::fs::write(&damaged, "something else altogether").unwrap();
        let refused = Journal::resume(Home::open(&path).unwrap(), |_| ()).unwrap_err();
        assert!(matches!(&refused, JournalError::Foreign(path) if *path == damaged), "{refused}");
    }
}

/// A journal is replaced once two thirds of a large one are outdated, by one caller at a time, and never once it is
/// broken.
#[test]
fn a_journal_is_replaced_when_that_is_worth_it() {
    const NODE: u64 = 48;
    let claimed = |size: u64, live: u64, broken: bool| {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("nodes")).unwrap();
        journal.size.store(size, Ordering::Relaxed);
        journal.broken.store(broken, Ordering::Relaxed);
        let first = journal.claim_rewrite(live as usize);
        assert!(!journal.claim_rewrite(live as usize) || !first, "by one only");
        let done = journal.rewrite(|_| ());
        assert!(done.is_ok());
        journal.size.store(size, Ordering::Relaxed);
        assert_eq!(journal.claim_rewrite(live as usize), first, "and again after that");
        first
    };
    let large = 64 << 20;
    let worth = large / 3 / NODE;
    for (size, live, broken, expected) in [
        (0, 0, false, false),
        (16 << 20, 0, false, false),
        ((16 << 20) + 1, 0, false, true),
        (large, 0, true, false),
        (large, 10, false, true),
        (large, worth - 1, false, true),
        (large, worth + 1, false, false),
        (3 * NODE * 200_000, 200_000, false, false),
        (large, 100 * worth, false, false),
    ] {
        assert_eq!(claimed(size, live, broken), expected, "{size} {live} {broken}");
    }
}

/// What rewrites write is bounded by what was appended, also with names so long that the file never looks worth keeping.
#[test]
fn rewrites_are_paid_for_by_what_was_appended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let journal = Journal::create(&path).unwrap();
    let live: Vec<_> = (0..70_000).map(|id| node(id, &[b'n'; 245])).collect();
    let (mut appended, mut rewritten, mut rewrites) = (0, 0, 0);
    let mut append = |records: &[Record], live: &[Record]| {
        let before = journal.size.load(Ordering::Relaxed);
        journal.append(records).unwrap();
        appended += journal.size.load(Ordering::Relaxed) - before;
        if journal.claim_rewrite(live.len()) {
            journal.rewrite(|put| live.iter().for_each(put)).unwrap();
            rewritten += journal.size.load(Ordering::Relaxed);
            rewrites += 1;
        }
        assert!(rewritten <= 2 * appended, "{rewrites} rewrites wrote {rewritten} for {appended} appended");
    };
    for (at, some) in live.chunks(1000).enumerate() {
        append(some, &live[..at * 1000 + some.len()]);
    }
    // Names that come and go, while the others stay.
    for some in live.chunks(1000).chain(live.chunks(1000)) {
        append(some, &live);
    }
    assert!(rewrites > 1, "what is outdated is dropped all the same");
}

/// A disk that is full for a new file is not tried again with each record.
#[test]
fn a_rewrite_that_failed_is_not_repeated_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    let journal = Journal::create(&path).unwrap();
    std::fs::remove_file(path.with_extension("2")).unwrap();
    std::fs::create_dir(path.with_extension("2")).unwrap();
    journal.size.store(REWRITE_MIN + 1, Ordering::Relaxed);
    assert!(journal.claim_rewrite(0));
    journal.rewrite(|_| ()).unwrap_err();
    assert!(!journal.claim_rewrite(0));
    journal.size.store(3 * REWRITE_MIN, Ordering::Relaxed);
    assert!(journal.claim_rewrite(0), "once it is twice as large");
}

/// A server without a journal counts another loss before it reaches the end of the ids that are given up for it.
#[test]
fn a_server_without_a_journal_never_hands_out_what_its_successor_will() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    Journal::create(&path).unwrap().append(&[node(2, b"a")]).unwrap();
    let broken = over(&path, File::options().append(true).open("/dev/full").unwrap());
    let mut id = 3;
    assert!(broken.append(&[node(id, b"b")]).is_err());
    for _ in 0..200 {
        id += LOST_MARGIN;
        broken.append(&[node(id, b"c"), node(id - 1, b"d")]).unwrap();
        // What other threads have handed out at this moment is behind what is given up, too.
        assert!(id + LOST_MARGIN < 2 + broken.lost_ids(), "{id}");
    }
    assert!(broken.lost_ids() < 2 * id, "not more is given up than has to be");
    broken.rewrite(|_| panic!("a broken journal is not replaced")).unwrap();
    assert!(Journal::resume(Home::open(&path).unwrap(), |_| ()).unwrap().lost_ids() > id);
}

#[test]
fn a_full_disk_breaks_the_journal_once_and_quietly_after_and_ids_are_not_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    Journal::create(&path).unwrap().append(&[node(2, b"a")]).unwrap();
    let full = File::options().append(true).open("/dev/full").unwrap();
    let journal = over(&path, full);
    assert!(matches!(journal.append(&[node(3, b"b")]), Err(JournalError::Io { doing: "write", .. })));
    assert!(journal.append(&[node(4, b"c")]).is_ok());
    assert_eq!(read(&path), [node(2, b"a")]);
    let lost = |_| Journal::resume(Home::open(&path).unwrap(), |_| ()).unwrap().lost_ids();
    let lost: Vec<_> = (0..3).map(lost).collect();
    assert!(lost.is_sorted_by(|a, b| b - a >= LOST_IDS) && lost[0] >= LOST_IDS, "{lost:?}");
}
