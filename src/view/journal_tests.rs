//! Tests of the journal.

use proptest::prelude::*;

use super::*;

fn node(id: u64, name: &[u8]) -> Record {
    Record::Node(NodeRecord { id: NodeId(id), parent: NodeId(id / 2), name: name.into() })
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

/// Whoever names a file in the store writes into the journal. No name, which has no NUL, is read as a record.
#[test]
fn no_name_is_a_record() {
    let id = NodeId(u64::from_le_bytes([1; 8]));
    for length in 0..600 {
        let mut forged = Vec::new();
        encode(&Record::Node(NodeRecord { id, parent: id, name: vec![b'x'; length].into() }), &mut forged);
        let (head, crc) = (&forged[4..], &forged[..4]);
        assert!(head.contains(&0) || crc.contains(&0) || matches!(parse(&forged), Parsed::Bad), "{length}");
    }
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
        assert_eq!(journal.size.load(Ordering::Relaxed), path.metadata().unwrap().len());
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
        journal.count_loss();
        check(&journal, losses);
    }
    // A successor of a loss counts one more: it began where another one may have been before.
    check(&resume(), 4);
    check(&resume(), 5);
    journal.rewrite(|put| records.iter().take(3).for_each(put)).unwrap();
    assert!(resume().has_losses(), "a new file tells of them too");
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
    std::fs::create_dir(path.with_extension("new")).unwrap();
    journal.size.store(REWRITE_MIN + 1, Ordering::Relaxed);
    assert!(journal.claim_rewrite(0));
    journal.rewrite(|_| ()).unwrap_err();
    assert!(!journal.claim_rewrite(0));
    journal.size.store(3 * REWRITE_MIN, Ordering::Relaxed);
    assert!(journal.claim_rewrite(0), "once it is twice as large");
}

/// What cannot be the beginning of a record does not hold up those behind it.
#[test]
fn a_length_that_no_record_has_is_no_record() {
    let head = |kind, mark, len: usize| {
        let [low, high] = (len as u16).to_le_bytes();
        [0, 0, 0, 0, kind, mark, low, high]
    };
    for (head, short) in [
        (head(KIND_NODE, MARK, PAYLOAD_MAX), true),
        (head(KIND_REPLACED, MARK, 12), true),
        (head(KIND_NODE, MARK, 16 + 1024 + 1), false),
        (head(KIND_NODE, MARK ^ 1, 20), false),
        (head(KIND_NODE - 1, MARK, 20), false),
        (head(KIND_REPLACED + 1, MARK, 20), false),
    ] {
        assert_eq!(matches!(parse(&head), Parsed::Short), short, "{head:?}");
        assert_eq!(matches!(parse(&head), Parsed::Bad), !short, "{head:?}");
    }
}

/// A server without a journal counts another loss before it reaches the end of the ids that are given up for it.
#[test]
fn a_server_without_a_journal_never_hands_out_what_its_successor_will() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes");
    Journal::create(&path).unwrap().append(&[node(2, b"a")]).unwrap();
    let broken = Journal::over(
        Home::open(&path).unwrap(),
        File::options().append(true).open("/dev/full").unwrap(),
        0,
        0,
    );
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
    let journal = Journal::over(Home::open(&path).unwrap(), full, 0, 0);
    assert!(matches!(journal.append(&[node(3, b"b")]), Err(JournalError::Io { doing: "write", .. })));
    assert!(journal.append(&[node(4, b"c")]).is_ok());
    assert_eq!(read(&path), [node(2, b"a")]);
    let lost = |_| Journal::resume(Home::open(&path).unwrap(), |_| ()).unwrap().lost_ids();
    let lost: Vec<_> = (0..3).map(lost).collect();
    assert!(lost.is_sorted_by(|a, b| b - a >= LOST_IDS) && lost[0] >= LOST_IDS, "{lost:?}");
}
