//! The counters against a model, under threads, after servers that died, and after hostile ones.

use std::collections::{BTreeMap, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::values::StorePath;

/// Store paths whose keys have few first words, of which some also have the same second word.
fn path(number: usize) -> StorePath {
    let (first, second) = (number % 3, number / 3);
    StorePath::new(&format!("{first:08}{second:08}{number:016}-name")).unwrap()
}

fn key(path: &StorePath) -> [u8; KEY] {
    *path.as_str().as_bytes().first_chunk().unwrap()
}

/// What another server of the same mount has, with fewer slots.
fn server(file: &OwnedFd, slots: usize) -> Usage {
    fewer(slots, Usage::open(Some(file.try_clone().unwrap())))
}

/// In three levels, if there are so many slots.
fn fewer(slots: usize, usage: Usage) -> Usage {
    Usage { slots, first: if slots == SLOTS { FIRST } else { slots.div_ceil(4) }, ..usage }
}

/// What a server leaves that is killed between the two words of a key.
fn half(usage: &Usage, path: &StorePath) {
    let key = Key::of(path.as_str().as_bytes()).unwrap();
    let words = usage.words.as_ref().unwrap();
    usage.try_slots(key, |at| {
        let [first, second] = [at, at + WORD].map(|at| words.get(at).unwrap());
        let found = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        if found.0 == 0 {
            first.store(key.first, Ordering::Relaxed);
        }
        (found.0 == 0 || found == (key.first, 0) || found == (key.first, key.second)).then_some(())
    });
}

/// What happens to a view.
#[derive(Debug, Clone)]
enum Step {
    Touch(usize),
    Read(usize, u64, u16),
    Opened(usize),
    /// Also of what lies in it.
    Below(usize),
    Half(usize),
    Died,
}

fn steps(members: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..members).prop_map(Step::Touch),
        (0..members, 0_u64..3, any::<u16>()).prop_map(|(member, at, bytes)| Step::Read(member, at, bytes)),
        (0..members).prop_map(Step::Opened),
        (0..members).prop_map(Step::Below),
        (0..members).prop_map(Step::Half),
        Just(Step::Died),
    ]
}

/// The same, kept in a map with room for so many members.
#[derive(Debug, Default)]
struct Model {
    uses: HashMap<[u8; KEY], Uses>,
    unknown: u64,
    bytes: u64,
}

impl Model {
    fn of(&mut self, member: usize, slots: usize) -> Option<&mut Uses> {
        let key = key(&path(member));
        if self.uses.len() == slots && !self.uses.contains_key(&key) {
            self.unknown += 1;
            return None;
        }
        Some(self.uses.entry(key).or_default())
    }
}

proptest! {
    #[test]
    fn what_is_counted_is_what_a_map_would_hold(
        (slots, all) in prop_oneof![
            // More members than slots; nothing is half done, as that takes a slot that a map would not take.
            (Just(8_usize), vec(steps(12).prop_filter("whole", |step| !matches!(step, Step::Half(_))), 0..80)),
            (Just(64_usize), vec(steps(12), 0..40)),
            (Just(SLOTS), vec(steps(300), 0..300)),
        ]
    ) {
        let file = create(true).unwrap();
        let (mut usage, mut model) = (server(&file, slots), Model::default());
        for step in all {
            match step {
                Step::Touch(member) => {
                    usage.touch(path(member).as_str().as_bytes());
                    model.of(member, slots);
                }
                Step::Below(member) => {
                    usage.touch(format!("{}/bin/tool", path(member)).as_bytes());
                    model.of(member, slots);
                }
                Step::Read(member, offset, bytes) => {
                    usage.read(format!("{}/file", path(member)).as_bytes(), offset, bytes.into());
                    model.bytes += u64::from(bytes);
                    if let Some(uses) = model.of(member, slots) {
                        uses.opens += u64::from(offset == 0);
                        uses.bytes += u64::from(bytes);
                    }
                }
                Step::Opened(member) => {
                    usage.opened(path(member).as_str().as_bytes());
                    model.of(member, slots).into_iter().for_each(|uses| uses.opens += 1);
                }
                Step::Half(member) => half(&usage, &path(member)),
                Step::Died => usage = server(&file, slots),
            }
        }
        let seen = Snapshot::read(&file).unwrap();
        prop_assert_eq!((seen.unknown, seen.bytes, seen.whole), (model.unknown, model.bytes, true));
        let members: HashMap<_, _> = seen.members().map(|(key, uses)| (*key, *uses)).collect();
        prop_assert_eq!(&members, &model.uses);
        for member in 0..300 {
            let expected = match model.uses.get(&key(&path(member))) {
                Some(uses) => Asked::For(*uses),
                None if model.unknown > 0 => Asked::Unknown,
                None => Asked::Never,
            };
            prop_assert_eq!(seen.of(&path(member)), expected);
        }
    }

    /// Whatever a server wrote into it: it is read within bounds, can be printed, and the next server counts in it.
    #[test]
    fn garbage_does_no_harm(
        all in vec((prop_oneof![0..HEAD, 0..BYTES], vec(any::<u8>(), 1..200)), 0..40),
        marked in prop::bool::weighted(0.9),
    ) {
        let file = create(true).unwrap();
        let writer = File::from(file.try_clone().unwrap());
        for (at, bytes) in all {
            let room = bytes.len().min(BYTES - at);
            writer.write_all_at(&bytes[..room], at as u64).unwrap();
        }
        if marked {
            writer.write_all_at(&MARK.to_ne_bytes(), MARK_AT as u64).unwrap();
        }
        let usage = server(&file, SLOTS);
        exercise(&usage);
        let _ = token(&file);
        if let Ok(seen) = Snapshot::read(&file) {
            check(&seen);
        }
    }
}

fn exercise(usage: &Usage) {
    for member in 0..40 {
        let path = path(member);
        usage.touch(path.as_str().as_bytes());
        usage.read(path.as_str().as_bytes(), 0, usize::MAX);
        usage.opened(path.as_str().as_bytes());
    }
    Kind::ALL.iter().for_each(|kind| usage.add(*kind));
    usage.panicked();
    usage.set_nodes(usize::MAX);
    let _ = Kind::ALL.map(|kind| usage.requests(kind));
}

fn check(seen: &Snapshot) {
    assert!(seen.members().len() <= SLOTS);
    for (key, _) in seen.members() {
        assert!(StorePath::new(&format!("{0}{0}-x", String::from_utf8_lossy(key))).is_ok(), "{key:?}");
    }
    // What humantime cannot print panics.
    let _ = seen.since.map(|since| humantime::format_rfc3339(since).to_string());
    let _ = seen.of(&path(1));
}

/// Every byte of it, and every slot taken.
#[test]
fn memory_full_of_garbage_is_read_and_written_without_harm() {
    for byte in [0_u8, 1, b'0', 0xff] {
        let file = create(true).unwrap();
        let writer = File::from(file.try_clone().unwrap());
        writer.write_all_at(&vec![byte; BYTES], 0).unwrap();
        assert!(Snapshot::read(&file).is_err() && token(&file).is_none());
        writer.write_all_at(&MARK.to_ne_bytes(), MARK_AT as u64).unwrap();
        exercise(&server(&file, SLOTS));
        let seen = Snapshot::read(&file).unwrap();
        check(&seen);
        if byte == 0xff {
            assert_eq!((seen.since, seen.members().len()), (None, 0));
            assert!(!seen.whole && seen.bytes == u64::MAX, "sums saturate: {}", seen.bytes);
        }
    }
}

/// Several threads on few names: nothing is counted twice, nothing is lost, and a name has one slot. More threads than lines, so that
/// those are shared as well.
#[test]
fn threads_that_race_lose_nothing() {
    const THREADS: u64 = LINES as u64 + 8;
    const TIMES: u64 = 600;
    for _ in 0..10 {
        let file = create(true).unwrap();
        let begin = std::sync::Barrier::new(THREADS as usize);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (file, begin) = (&file, &begin);
                scope.spawn(move || {
                    let usage = server(file, 16);
                    begin.wait();
                    for time in 0..TIMES {
                        let member = path(((time + thread) % 6) as usize);
                        usage.add(Kind::Read);
                        usage.read(member.as_str().as_bytes(), time % 2, 3);
                    }
                });
            }
        });
        let seen = Snapshot::read(&file).unwrap();
        let all = THREADS * TIMES;
        assert_eq!((seen.bytes, seen.unknown), (3 * all, 0));
        assert_eq!(seen.requests[Kind::Read as usize], (Kind::Read, all));
        let sum = |of: fn(&Uses) -> u64| seen.members().map(|(_, uses)| of(uses)).sum::<u64>();
        assert_eq!((sum(|uses| uses.bytes), sum(|uses| uses.opens)), (3 * all, all / 2));
        let expected: BTreeMap<_, _> = (0..6).map(|n| (key(&path(n)), ())).collect();
        assert_eq!(
            seen.members().map(|(key, _)| *key).collect::<Vec<_>>(),
            Vec::from_iter(expected.into_keys())
        );
        assert_eq!(taken(&file), 6, "a name has two slots");
    }
}

/// Two threads come to a free slot at once, with one key or with two that begin alike.
#[test]
fn threads_that_race_for_a_slot_have_one_each() {
    const ROUNDS: usize = 2_000;
    let all: Vec<_> = (0..ROUNDS).map(|_| fewer(2, Usage::open(None))).collect();
    let there = AtomicUsize::new(0);
    let keys = |round: usize| [path(0), path(if round.is_multiple_of(4) { 0 } else { 3 })];
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (all, there) = (&all, &there);
            scope.spawn(move || {
                for (round, usage) in all.iter().enumerate() {
                    let mine = &keys(round)[thread];
                    there.fetch_add(1, Ordering::SeqCst);
                    // So close together that no blocking barrier would do.
                    while there.load(Ordering::SeqCst) < 2 * (round + 1) {
                        std::hint::spin_loop();
                    }
                    usage.read(mine.as_str().as_bytes(), 0, 1);
                }
            });
        }
    });
    for (round, usage) in all.iter().enumerate() {
        let words = usage.words.as_ref().unwrap();
        let word =
            |slot: usize, at: usize| words.get(HEAD + slot * SLOT + at).unwrap().load(Ordering::Relaxed);
        let slots = (0..2).map(|slot| ((word(slot, 0), word(slot, WORD)), word(slot, BYTES_IN_SLOT)));
        let found: BTreeMap<_, _> = slots.filter(|(key, _)| *key != (0, 0)).collect();
        let mut expected = BTreeMap::new();
        for path in keys(round) {
            let key = Key::of(path.as_str().as_bytes()).unwrap();
            *expected.entry((key.first, key.second)).or_default() += 1;
        }
        assert_eq!(found, expected, "round {round}");
    }
}

/// Slots of which a word is taken.
fn taken(file: &OwnedFd) -> usize {
    let mut all = vec![0; BYTES];
    File::from(file.try_clone().unwrap()).read_exact_at(&mut all, 0).unwrap();
    all[HEAD..].chunks_exact(SLOT).filter(|slot| slot[..KEY].iter().any(|byte| *byte != 0)).count()
}

/// A server is killed between the two words of a key; the next one is asked for it again, and for another one that begins alike.
#[test]
fn a_key_of_which_half_was_written_is_completed() {
    let file = create(true).unwrap();
    let (mine, alike) = (path(0), path(3));
    assert_eq!(mine.as_str()[..8], alike.as_str()[..8]);
    half(&server(&file, 1), &mine);
    assert_eq!(Snapshot::read(&file).unwrap().of(&mine), Asked::Never, "what is half there names nobody");
    // Of one slot there is only the half one.
    server(&file, 1).touch(alike.as_str().as_bytes());
    server(&file, 1).touch(mine.as_str().as_bytes());
    let seen = Snapshot::read(&file).unwrap();
    assert_eq!((seen.of(&alike), seen.of(&mine)), (Asked::For(Uses::default()), Asked::Unknown));
    assert_eq!((seen.unknown, taken(&file)), (1, 1));
}

/// As many members as the largest systems have find a slot: no long run of slots is taken.
#[test]
fn twelve_thousand_members_are_all_known() {
    let file = create(true).unwrap();
    let usage = server(&file, SLOTS);
    let alphabet = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    println!("seed {state}");
    for _ in 0..12_000 {
        let mut name = Vec::new();
        while name.len() < 32 {
            // xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            name.push(alphabet[(state >> 32) as usize % alphabet.len()]);
        }
        usage.touch(&name);
    }
    let seen = Snapshot::read(&file).unwrap();
    assert_eq!((seen.members().len(), seen.unknown), (12_000, 0));
}

#[test]
fn what_is_not_whole_says_of_nobody_that_it_was_never_asked_for() {
    for whole in [true, false] {
        let file = create(whole).unwrap();
        let before = SystemTime::now();
        let usage = server(&file, SLOTS);
        usage.touch(path(1).as_str().as_bytes());
        usage.set_nodes(7);
        let seen = Snapshot::read(&file).unwrap();
        assert_eq!((seen.whole, seen.nodes), (whole, 7));
        assert_eq!(seen.of(&path(1)), Asked::For(Uses::default()));
        assert_eq!(seen.of(&path(2)), if whole { Asked::Never } else { Asked::Unknown });
        assert!(seen.since.is_some_and(|since| since <= before), "{seen:?}");
    }
}

#[test]
fn what_lies_in_no_member_is_nobodys() {
    let file = create(true).unwrap();
    let usage = server(&file, SLOTS);
    for path in [&b""[..], b"short", b"0123456789abcde"] {
        usage.touch(path);
        usage.read(path, 0, 1);
    }
    let seen = Snapshot::read(&file).unwrap();
    assert_eq!((seen.members().len(), seen.unknown, seen.bytes), (0, 0, 3));
}

#[test]
fn what_is_no_memory_of_this_layout_is_left_alone() {
    let (one, other) = (create(true).unwrap(), create(true).unwrap());
    assert!(token(&one).is_some() && token(&one) != token(&other));
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let (pipe, _end) = std::io::pipe().unwrap();
    let short: OwnedFd = memory::memory_file_of("short", 64).unwrap().into();
    // A file of the right content, which somebody could make shorter.
    let plain = tempfile::tempfile().unwrap();
    plain.set_len(BYTES as u64).unwrap();
    plain.write_all_at(&MARK.to_ne_bytes(), 0).unwrap();
    assert!(Snapshot::read(&plain).is_ok() && token(&plain).is_none());
    for file in [null, pipe.into(), short] {
        assert!(Snapshot::read(&file).is_err() && token(&file).is_none());
        let usage = Usage::open(Some(file));
        usage.add(Kind::Lookup);
        assert_eq!(usage.requests(Kind::Lookup), 1, "it counts for itself");
    }
    let usage = Usage::open(Some(plain.try_clone().unwrap().into()));
    usage.add(Kind::Lookup);
    assert_eq!(Snapshot::read(&plain).unwrap().requests[0], (Kind::Lookup, 0));
    exercise(&Usage::none());
    assert_eq!(Usage::none().requests(Kind::Lookup), 0);
}

/// What was never counted takes no memory, also when it is read.
#[test]
fn reading_makes_no_pages() {
    let file = create(true).unwrap();
    let pages = || rustix::fs::fstat(&file).unwrap().st_blocks * 512 / PAGE as i64;
    let usage = server(&file, SLOTS);
    usage.touch(path(1).as_str().as_bytes());
    usage.add(Kind::Lookup);
    let before = pages();
    Snapshot::read(&file).unwrap();
    assert_eq!((before, pages()), (3, 3));
}

/// A small container's closure is not scattered over all of it.
#[test]
fn few_members_take_little_memory() {
    let file = create(true).unwrap();
    let usage = server(&file, SLOTS);
    (0..400).for_each(|n| usage.touch(path(n).as_str().as_bytes()));
    usage.add(Kind::Lookup);
    let pages = rustix::fs::fstat(&file).unwrap().st_blocks * 512 / PAGE as i64;
    assert!(pages <= 12, "{pages}");
}

#[test]
fn kinds_are_in_the_order_in_which_they_are_counted() {
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, number, "{}", kind.name());
    }
}
