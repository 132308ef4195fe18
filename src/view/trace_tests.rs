use std::os::fd::AsFd;

use proptest::prelude::*;

use super::records::{Record, parse, read};
use super::*;

fn traced() -> (OwnedFd, Trace) {
    let memory = create().unwrap();
    let trace = Trace::open(Some(memory.try_clone().unwrap()));
    (memory, trace)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Name),
        Just(Kind::Absent),
        Just(Kind::Listed),
        Just(Kind::Link),
        Just(Kind::Read),
        Just(Kind::Opened)
    ]
}

fn told(records: &[Record]) -> Vec<(Kind, Vec<u8>, Option<Pages>)> {
    records.iter().map(|record| (record.kind, record.path.clone(), record.pages)).collect()
}

proptest! {
    /// What is noted is read again, in order, whichever servers have noted it.
    #[test]
    fn what_is_noted_is_read(
        all in proptest::collection::vec((kind(), "[ab/]{0,4}", "[^/]{0,20}", 0u64..1 << 39, 0u32..1 << 23), 0..60),
        next_server in 0usize..60,
    ) {
        let (memory, mut trace) = traced();
        let mut noted = Vec::new();
        for (number, (kind, dir, name, first, count)) in all.into_iter().enumerate() {
            if number == next_server {
                trace = Trace::open(Some(memory.try_clone().unwrap()));
            }
            let pages = (kind == Kind::Read).then_some(Pages { first, count });
            let path = format!("{dir}/{name}").into_bytes();
            trace.note(kind, pages, || Some(path.clone()));
            noted.push((kind, path, pages));
        }
        let records = read(&memory).unwrap();
        prop_assert!(records.is_sorted_by_key(|record| record.after));
        prop_assert_eq!(told(&records), noted);
    }

    /// Whatever a hostile server has written, it is read, and the next server writes.
    #[test]
    fn whatever_is_there_is_read(garbage in proptest::collection::vec(any::<u8>(), 0..400), end: u64, first: u64) {
        let (memory, trace) = traced();
        rustix::io::pwrite(&memory, &garbage, HEAD as u64).unwrap();
        write(&memory, END_AT, end).unwrap();
        write(&memory, FIRST_AT, first).unwrap();
        let before = read(&memory).unwrap();
        prop_assert!(before.len() <= BYTES / WORD);
        trace.note(Kind::Name, None, || Some(b"x/y".to_vec()));
        read(&memory).unwrap();
        prop_assert!(parse(&garbage).len() <= garbage.len());
    }
}

#[test]
fn a_full_trace_takes_no_more_and_no_path_is_too_long_for_it() {
    let (memory, trace) = traced();
    let long = vec![b'x'; 4096];
    trace.note(Kind::Name, None, || Some(long));
    assert!(!has_begun(&memory) && read(&memory).unwrap().is_empty());
    // Nothing in common, so that each takes all of its bytes.
    let path = |number: u16| [&number.to_le_bytes()[..], &[b'x'; 3999]].concat();
    (0..2000).for_each(|number| trace.note(Kind::Name, None, || Some(path(number))));
    let records = read(&memory).unwrap();
    assert_eq!(records.len(), (BYTES - HEAD) / 4016);
    assert!((0..).zip(&records).all(|(number, record)| record.path == path(number)));
    assert!(has_begun(&memory));
}

#[test]
fn what_is_closed_takes_no_memory_and_no_record() {
    let (memory, trace) = traced();
    (0..2000).for_each(|number| trace.note(Kind::Name, None, || Some(format!("{number}/x").into_bytes())));
    let blocks = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_blocks;
    let before = blocks(&memory);
    close(&memory).unwrap();
    assert!(before > 64 && blocks(&memory) <= 8, "{before}, then {}", blocks(&memory));
    trace.note(Kind::Name, None, || panic!("nobody needs it"));
    assert!(read(&memory).unwrap().is_empty());
}

#[test]
fn who_plays_is_known_by_its_thread() {
    let (memory, trace) = traced();
    assert!(!trace.is_player(0) && !trace.is_player(7), "nobody does");
    begin_play(&memory, 7, 0).unwrap();
    assert!(!trace.is_player(0) && trace.is_player(7) && !trace.is_player(8));
    end_play(&memory).unwrap();
    assert!(!trace.is_player(7));
    assert!(!Trace::none().is_player(7) && Trace::none().marks().is_none());
}

#[test]
fn server_and_reader_mark_the_same_names_and_about_one_of_64() {
    let (memory, trace) = traced();
    let (marks, same) = (trace.marks().unwrap(), Marks::of(memory.as_fd()).unwrap());
    assert_eq!(marks, same);
    let marked = |marks: Marks| (0..64_000).filter(move |n| marks.is_marked(format!("m/{n}").as_bytes()));
    let all = marked(marks).count();
    assert!((700..1300).contains(&all), "{all} of 64,000");
    let other = Marks { seed: marks.seed.wrapping_add(1), ..marks };
    let both = marked(other).filter(|n| marks.is_marked(format!("m/{n}").as_bytes())).count();
    assert!(both < 200, "another mount marks others: {both}");
    assert!((0..1000).all(|n| !marks.is_marked(format!("{n}").as_bytes())), "no member is");
    let bytes = (0..64_000).filter(|n| marks.are_bytes_marked(format!("m/{n}").as_bytes())).count();
    assert!((60..220).contains(&bytes), "of {all} marked files {bytes}");
}

#[test]
fn of_a_large_profile_no_more_is_marked_than_a_sample_takes() {
    for (uses, about) in [(0, 64), (100, 64), (4_095, 64), (4_200, 128), (10_000, 256), (80_000, 2048)] {
        let (memory, trace) = traced();
        begin_play(&memory, 7, uses).unwrap();
        let marks = trace.marks().unwrap();
        assert_eq!((marks.apart, Marks::of(&memory)), (about, Some(marks)), "{uses} uses");
        if uses > 4_096 {
            assert!((SAMPLE..=2 * SAMPLE).contains(&(uses / marks.apart)), "{uses} uses");
        }
    }
    // A hostile server may write anything.
    let (memory, trace) = traced();
    for apart in [0, 1, u64::MAX] {
        write(&memory, APART_AT, apart).unwrap();
        let marks = trace.marks().unwrap();
        assert_eq!(marks.is_marked(b"m/n"), marks.is_marked(b"m/n"));
        assert!(apart != 1 || marks.is_marked(b"m/n"));
        assert!(!marks.are_bytes_marked(b"m/n") || marks.is_marked(b"m/n"));
    }
    assert!(Marks::new(0, u64::MAX).apart.is_power_of_two());
}

#[test]
fn another_file_is_no_trace() {
    let other = memory::memory_file_of("other", BYTES as u64).unwrap();
    assert!(read(&other).is_err());
    assert!(Trace::open(Some(other.into())).marks().is_none());
    let short = memory::memory_file_of("short", 4096).unwrap();
    assert!(Trace::open(Some(short.into())).marks().is_none());
    assert!(read(tempfile::tempfile().unwrap()).is_err());
}
