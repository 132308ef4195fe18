use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::view::trace::records::Pages;

fn member(n: u32) -> StorePath {
    StorePath::new(&format!("{n:032}-p{n}")).unwrap()
}

fn record(kind: Kind, path: &[u8], after: u64) -> Record {
    let pages = (kind == Kind::Read).then_some(Pages { first: 1, count: 2 });
    Record { kind, after: Duration::from_millis(after), path: path.to_vec(), pages }
}

fn full(n: u32, below: &str) -> Vec<u8> {
    plan::joined(&member(n), below.as_bytes())
}

/// What is asked of which path.
type Asking = (Kind, Vec<u8>);

const LONG: Duration = Duration::MAX;
const ALL: Done = Done { names: usize::MAX, bytes: usize::MAX };

/// What a kernel and a server do in a run in which `used` is used, in this order: what was played and is not marked is answered from caches.
fn run(
    last: Option<&Profile>,
    members: &[StorePath],
    played: &Done,
    used: &[Asking],
    marks: Marks,
) -> Vec<Record> {
    let mapped = last.map(|last| last.mapped(members)).unwrap_or_default();
    let plan = Plan::new(&mapped, members, marks, Prefetch::Auto);
    let has = |step: &dyn Fn(&Step) -> bool| {
        plan.names.iter().take(played.names).chain(plan.bytes.iter().take(played.bytes)).any(step)
    };
    let mut records = Vec::new();
    let mut asked = HashSet::new();
    let mut ask = |kind, path: &[u8], is_ready: bool| {
        if asked.insert((kind, path.to_vec())) && !is_ready {
            records.push(record(kind, path, records.len() as u64));
        }
    };
    for (kind, path) in used {
        let ways: Vec<&[u8]> =
            std::iter::successors(Some(path.as_slice()), |path| plan::parent(path)).collect();
        for (at, way) in ways.iter().enumerate().rev() {
            let is_absent = at == 0 && *kind == Kind::Absent;
            let walked = |step: &Step| {
                step.path() == *way
                    || !is_absent && step.path().starts_with(&[way, &b"/"[..]].concat())
                    || !is_absent
                        && matches!(step, Step::List { dir, .. } if Some(dir.as_slice()) == plan::parent(way))
            };
            let is_member = plan::parent(way).is_none();
            let is_ready = !is_member && !marks.is_marked(way) && has(&walked);
            ask(if is_absent { Kind::Absent } else { Kind::Name }, way, is_ready);
        }
        let is_there = |step: &Step| match (kind, step) {
            (Kind::Listed, Step::List { dir, .. }) => dir == path,
            (Kind::Link, Step::Follow { path: link }) => link == path,
            (Kind::Read, Step::Read { path: file, .. }) => file == path,
            _ => false,
        };
        if !matches!(kind, Kind::Name | Kind::Absent) {
            ask(*kind, path, has(&is_there));
        }
    }
    records
}

fn paths(profile: &Profile) -> BTreeSet<Vec<u8>> {
    profile.uses().map(|(member, below, _)| plan::joined(member, below)).collect()
}

fn asked(profile: &Profile, path: &[u8]) -> Option<Asked> {
    let (member, below) = taken_to_pieces(path)?;
    profile.members.get(&member)?.uses.get(below).map(|of| of.asked.clone())
}

/// What is marked of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    Nothing,
    Name,
    NameAndBytes,
}

/// A seed with which so much of this path is marked.
fn marks(path: &[u8], marked: Marked) -> Marks {
    let of = |marks: &Marks| match (marks.is_marked(path), marks.are_bytes_marked(path)) {
        (false, _) => Marked::Nothing,
        (true, false) => Marked::Name,
        (true, true) => Marked::NameAndBytes,
    };
    (0..).map(|seed| Marks::new(seed, 0)).find(|marks| of(marks) == marked).unwrap()
}

#[test]
fn a_first_run_is_what_was_recorded() {
    let records = [
        record(Kind::Name, &full(1, ""), 0),
        record(Kind::Name, &full(1, "bin"), 3),
        record(Kind::Name, &full(1, "bin/a"), 4),
        record(Kind::Read, &full(1, "bin/a"), 90),
        record(Kind::Absent, &full(1, "bin/b"), 5),
        record(Kind::Listed, &full(2, ""), 6),
        record(Kind::Opened, &full(2, "c"), 7),
        record(Kind::Link, &full(2, "d"), 8),
        record(Kind::Name, &full(3, "x"), 9),
        record(Kind::Name, b"bin/sh", 9),
        record(Kind::Name, &full(1, "../x"), 9),
        record(Kind::Name, &full(1, "x//y"), 9),
        record(Kind::Name, &full(1, "x\0y"), 9),
    ];
    let (next, judged) = learn(
        None,
        &[member(1), member(2)],
        &[],
        &Run { records: &records, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    let of = |asked, after| Use { after, seen: 1, asked };
    let known: Vec<_> =
        next.uses().map(|(member, below, of)| (plan::joined(member, below), of.clone())).collect();
    assert_eq!(
        known,
        [
            (full(1, "bin"), of(Asked::Name, 3)),
            (full(1, "bin/a"), of(Asked::File([Pages { first: 1, count: 2 }].into_iter().collect()), 4)),
            (full(1, "bin/b"), of(Asked::Absent, 5)),
            (full(2, ""), of(Asked::Listed, 6)),
            (full(2, "c"), of(Asked::File([].into_iter().collect()), 7)),
            (full(2, "d"), of(Asked::Link, 8)),
        ]
    );
    assert_eq!((next.runs(), judged), (1, Judged::default()));
}

#[test]
fn what_was_played_stays_unless_it_is_marked_and_nobody_used_it() {
    let path = full(1, "bin/tool");
    let today = [member(1)];
    let first = [record(Kind::Name, &path, 4), record(Kind::Read, &path, 5)];
    let (last, _) = learn(
        None,
        &today,
        &[],
        &Run { records: &first, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    let none = Done::default();
    let names = Done { names: usize::MAX, bytes: 0 };
    let name = [record(Kind::Name, &path, 1)];
    let read = [record(Kind::Name, &path, 1), record(Kind::Read, &path, 2)];
    let file = asked(&last, &path);
    for (case, marked, played, records, expected, seen, used) in [
        ("played, and nothing says otherwise", Marked::Nothing, ALL, &[][..], file.clone(), 1, (0, 0)),
        ("marked, and not used", Marked::Name, ALL, &[], None, 0, (1, 0)),
        ("marked, and its name was used", Marked::Name, ALL, &name, file.clone(), 2, (1, 1)),
        (
            "marked, and its bytes were not used",
            Marked::NameAndBytes,
            ALL,
            &name,
            Some(Asked::Name),
            2,
            (1, 1),
        ),
        ("marked, and all of it was used", Marked::NameAndBytes, ALL, &read, file.clone(), 2, (1, 1)),
        ("not played, and not used", Marked::Nothing, none, &[], None, 0, (0, 0)),
        ("not played, and used", Marked::Nothing, none, &read, file.clone(), 2, (0, 0)),
        ("not played and marked, and not used", Marked::Name, none, &[], None, 0, (0, 0)),
        (
            "its bytes were not played, and not read",
            Marked::Nothing,
            names,
            &[],
            Some(Asked::Name),
            1,
            (0, 0),
        ),
        ("its bytes were not played, and read", Marked::Nothing, names, &read[1..], file.clone(), 2, (0, 0)),
        (
            "it is no more",
            Marked::Nothing,
            ALL,
            &[record(Kind::Absent, &path, 1)],
            Some(Asked::Absent),
            2,
            (0, 0),
        ),
    ] {
        let (next, judged) = learn(
            Some(&last),
            &today,
            &[],
            &Run { records, done: played, marks: marks(&path, marked), lasted: LONG },
        );
        assert_eq!(asked(&next, &path), expected, "{case}");
        assert_eq!(next.uses().map(|(_, _, of)| of.seen).max().unwrap_or_default(), seen, "{case}");
        assert_eq!((judged.marked, judged.used), used, "{case}");
        assert_eq!(next.runs(), 2);
    }
    let below = [record(Kind::Name, &full(1, "bin/tool/x"), 1)];
    let (next, judged) = learn(
        Some(&last),
        &today,
        &[],
        &Run { records: &below, done: ALL, marks: marks(&path, Marked::NameAndBytes), lasted: LONG },
    );
    assert_eq!((asked(&next, &path), judged.used), (Some(Asked::Name), 1), "what leads to a use is used");
    // Whoever listed the directory asks for none of its names.
    let listed = [record(Kind::Listed, &full(1, "bin"), 1)];
    let (next, judged) = learn(
        Some(&last),
        &today,
        &[],
        &Run { records: &listed, done: ALL, marks: marks(&path, Marked::NameAndBytes), lasted: LONG },
    );
    assert_eq!((asked(&next, &path), judged.marked), (Some(Asked::Name), 0), "it is not judged");
}

/// A container that ends at once tells nothing of what it would have used later.
#[test]
fn what_was_used_later_than_a_run_has_lasted_stays() {
    let path = full(1, "late");
    let (last, _) = learn(
        None,
        &[member(1)],
        &[],
        &Run {
            records: &[record(Kind::Name, &path, 5000)],
            done: Done::default(),
            marks: Marks::new(0, 0),
            lasted: LONG,
        },
    );
    for (seconds, stays) in [(2, true), (9, false)] {
        for marked in [Marked::Nothing, Marked::Name, Marked::NameAndBytes] {
            let lasted = Duration::from_secs(seconds);
            let run = Run { records: &[], done: Done::default(), marks: marks(&path, marked), lasted };
            let (next, judged) = learn(Some(&last), &[member(1)], &[], &run);
            assert_eq!((asked(&next, &path).is_some(), judged.marked), (stays, 0), "{seconds} s");
        }
    }
}

#[test]
fn a_profile_of_which_too_little_was_used_is_not_played_at_the_next_start() {
    // Some sixty of them are marked.
    let all: Vec<Vec<u8>> = (0..4000).map(|n| full(1, &format!("d/{n}"))).collect();
    let records: Vec<Record> = all.iter().map(|path| record(Kind::Name, path, 0)).collect();
    let run = |records, done| Run { records, done, marks: Marks::new(7, 0), lasted: LONG };
    let (last, _) = learn(None, &[member(1)], &[], &run(&records, Done::default()));
    for (used, is_doubtful) in [(4000, false), (3800, false), (2000, true), (0, true)] {
        let (next, judged) = learn(Some(&last), &[member(1)], &[], &run(&records[..used], ALL));
        assert!(judged.marked >= SAMPLE);
        assert_eq!(next.is_doubtful(), is_doubtful, "{used}: {judged:?}");
        // Nothing was played then, and what was not used is gone.
        let (after, _) = learn(Some(&next), &[member(1)], &[], &run(&records[..used], Done::default()));
        assert!(!after.is_doubtful() && after.len() == used, "{}", after.len());
    }
    let few = &records[..40];
    let (last, _) = learn(None, &[member(1)], &[], &run(few, Done::default()));
    assert!(!learn(Some(&last), &[member(1)], &[], &run(&[], ALL)).0.is_doubtful(), "too few to tell");
}

#[test]
fn a_large_profile_keeps_what_is_used_and_few_marks_tell_when_too_much_is_not() {
    const USES: usize = 10_000;
    let all: Vec<Vec<u8>> = (0..USES).map(|n| full(1, &format!("{}/{n}", n % 100))).collect();
    let start = u64::from(std::process::id());
    println!("the first seed is {start}");
    let seen = |paths: &[&Vec<u8>]| paths.iter().map(|path| record(Kind::Name, path, 0)).collect::<Vec<_>>();
    let every = seen(&all.iter().collect::<Vec<_>>());
    for percent in [100, 95, 50] {
        let used: Vec<&Vec<u8>> = all.iter().step_by(2).chain(all.iter().skip(1).step_by(2)).collect();
        let used = used.get(..USES * percent / 100).unwrap();
        let first = Run { records: &every, done: Done::default(), marks: Marks::new(start, 0), lasted: LONG };
        let (mut last, _) = learn(None, &[member(1)], &[], &first);
        let mut starts_without = 0;
        for number in 0..20 {
            let marks = Marks::new((start + number).wrapping_mul(0x9e37_79b9_7f4a_7c15), last.len() as u64);
            let plays = !last.is_doubtful();
            let records = match plays {
                true => seen(&used.iter().copied().filter(|path| marks.is_marked(path)).collect::<Vec<_>>()),
                false => seen(used),
            };
            starts_without += u32::from(!plays);
            let done = if plays { ALL } else { Done::default() };
            (last, _) =
                learn(Some(&last), &[member(1)], &[], &Run { records: &records, done, marks, lasted: LONG });
            let known = paths(&last);
            assert!(used.iter().all(|path| known.contains(*path)), "{percent} %, run {number}");
        }
        println!("{percent} % used: {} of {USES} are left, {starts_without} starts without", last.len());
        match percent {
            100 => assert_eq!((last.len(), starts_without), (USES, 0)),
            50 => assert!(last.len() == used.len() && starts_without >= 1, "{}", last.len()),
            _ => assert!((used.len()..=USES).contains(&last.len())),
        }
    }
}

#[test]
fn what_was_used_of_a_member_that_came_later_is_learnt() {
    let records = [record(Kind::Name, &full(2, "x"), 1), record(Kind::Name, &full(3, "x"), 2)];
    let (next, _) = learn(
        None,
        &[member(1)],
        &[member(2)],
        &Run { records: &records, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    assert_eq!(next.uses().map(|(member, _, _)| member.clone()).collect::<Vec<_>>(), [member(2)]);
}

#[test]
fn a_member_that_nobody_asks_for_is_dropped_after_some_runs() {
    let (kept, idle) = (member(1), member(2));
    let today = [kept.clone(), idle.clone()];
    let first = [record(Kind::Read, &full(1, ""), 0), record(Kind::Read, &full(2, ""), 0)];
    let (first, _) = learn(
        None,
        &today,
        &[],
        &Run { records: &first, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    let mut last = first.clone();
    for run in 1..=IDLE {
        last = learn(
            Some(&last),
            &today,
            &[],
            &Run {
                records: &[record(Kind::Name, &full(1, ""), 0)],
                done: ALL,
                marks: Marks::new(run.into(), 0),
                lasted: LONG,
            },
        )
        .0;
        assert_eq!(last.len(), if run == IDLE { 1 } else { 2 }, "run {run}");
    }
    // A trace that tells no member's name tells nothing of it.
    let mut last = first;
    for seed in 0..=u64::from(IDLE) {
        last = learn(
            Some(&last),
            &today,
            &[],
            &Run {
                records: &[record(Kind::Name, &full(1, "x"), 0)],
                done: ALL,
                marks: Marks::new(seed, 0),
                lasted: LONG,
            },
        )
        .0;
        assert!(paths(&last).contains(&full(2, "")));
    }
}

/// Names that are used in each run, and names that were in the first alone, in directories of their own and in the same.
fn names(count: u32) -> (Vec<Asking>, Vec<Asking>) {
    let kinds = [Kind::Name, Kind::Read, Kind::Link, Kind::Absent];
    let of = |what: &str, n: u32| {
        (kinds[n as usize % 4], full(n % 3, &format!("{}/d{}/{what}-{n}", n % 2, n % 7)))
    };
    ((0..count).map(|n| of("stays", n)).collect(), (0..count).map(|n| of("goes", n)).collect())
}

#[test]
fn what_is_used_in_each_run_stays_and_what_is_not_goes() {
    let today = [member(0), member(1), member(2)];
    let (stays, goes) = names(40);
    let both: Vec<_> = stays.iter().chain(&goes).cloned().collect();
    let start = u64::from(std::process::id());
    println!("the first seed is {start}");
    let records = run(None, &today, &Done::default(), &both, Marks::new(start, 0));
    let (mut last, _) = learn(
        None,
        &today,
        &[],
        &Run { records: &records, done: Done::default(), marks: Marks::new(start, 0), lasted: LONG },
    );
    let (mut gone_after, mut runs) = (Vec::new(), 0_u32);
    let (mut marked, mut used) = (0, 0);
    while gone_after.len() < goes.len() {
        runs += 1;
        // Spread over all words, as those of getrandom(2) are.
        let marks = Marks::new((start + u64::from(runs)).wrapping_mul(0x9e37_79b9_7f4a_7c15), 0);
        let records = run(Some(&last), &today, &ALL, &stays, marks);
        let judged;
        (last, judged) =
            learn(Some(&last), &today, &[], &Run { records: &records, done: ALL, marks, lasted: LONG });
        let known = paths(&last);
        assert!(stays.iter().all(|(_, path)| known.contains(path)), "run {runs}");
        let left = goes.iter().filter(|(_, path)| known.contains(path)).count();
        gone_after.resize(goes.len() - left, runs);
        (marked, used) = (marked + judged.marked, used + judged.used);
        assert!(runs < 4000, "one of 64 goes with each run");
    }
    let mean = gone_after.iter().sum::<u32>() / gone_after.len() as u32;
    println!(
        "gone after {mean} runs on average, the last after {runs}; of {marked} marked names {used} were used"
    );
    assert!((25..140).contains(&mean), "{mean}");
    assert!(runs > 100 && used < marked);
}

proptest! {
    /// Sets tell the same: in a run nothing appears that was not used, and all that was is there, whatever was played.
    #[test]
    fn profiles_agree_with_sets(
        runs in proptest::collection::vec((proptest::collection::vec(0usize..80, 0..60), 0usize..40, 0usize..20, any::<u64>()), 1..8),
    ) {
        let today = [member(0), member(1), member(2)];
        let (one, other) = names(40);
        let all: Vec<_> = one.into_iter().chain(other).collect();
        let mut last: Option<Profile> = None;
        let mut ever: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (used, names, bytes, seed) in runs {
            let used: Vec<_> = used.into_iter().map(|at| all[at].clone()).collect();
            let (played, marks) = (Done { names, bytes }, Marks::new(seed, 0));
            let records = run(last.as_ref(), &today, &played, &used, marks);
            let before = last.as_ref().map(paths).unwrap_or_default();
            let (next, judged) = learn(last.as_ref(), &today, &[], &Run { records: &records, done: played, marks, lasted: LONG });
            let now = paths(&next);
            for (_, path) in &used {
                ever.extend(std::iter::successors(Some(path.as_slice()), |path| plan::parent(path)).map(<[u8]>::to_vec));
                prop_assert!(now.contains(path), "it was used");
            }
            prop_assert!(now.is_subset(&ever), "nobody has used it");
            let is_new = |path: &Vec<u8>| !before.contains(path) && !records.iter().any(|record| record.path == *path);
            prop_assert!(!now.iter().any(is_new));
            prop_assert!(judged.used <= judged.marked);
            last = Some(next);
        }
    }

    /// Whatever a hostile server recorded.
    #[test]
    fn whatever_was_recorded_is_kept_within_bounds(
        records in proptest::collection::vec((0usize..6, 0u32..4, "[ab./\0]{0,6}", any::<u32>(), 0u64..1 << 40, 0u32..1 << 24), 0..80),
        names: usize, bytes: usize, seed: u64,
    ) {
        let kinds = [Kind::Name, Kind::Absent, Kind::Listed, Kind::Link, Kind::Read, Kind::Opened];
        let records: Vec<Record> = records.into_iter().map(|(kind, n, below, after, first, count)| {
            let pages = (kinds[kind] == Kind::Read).then_some(Pages { first, count });
            Record { pages, ..record(kinds[kind], &full(n, &below), after.into()) }
        }).collect();
        let today = [member(0), member(1), member(2)];
        let mut last: Option<Profile> = None;
        for _ in 0..3 {
            let (next, _) = learn(last.as_ref(), &today, &[], &Run { records: &records, done: Done { names, bytes }, marks: Marks::new(seed, 0), lasted: LONG });
            prop_assert_eq!(&Profile::read(&next.write()).unwrap(), &next);
            prop_assert!(next.uses().all(|(member, _, _)| today.contains(member)));
            last = Some(next);
        }
    }
}

#[test]
fn more_than_a_profile_holds_is_left_out() {
    let records: Vec<Record> =
        (0..USES as u64 + 50).map(|n| record(Kind::Name, &full(1, &n.to_string()), n)).collect();
    let (next, _) = learn(
        None,
        &[member(1)],
        &[],
        &Run { records: &records, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    assert_eq!(next.len(), USES);
    assert!(next.uses().all(|(_, _, of)| of.after < USES as u32), "the latest");
    let long = "x".repeat(4000);
    let records: Vec<Record> =
        (0..6000).map(|n| record(Kind::Name, &full(1, &format!("{n}{long}")), n)).collect();
    let (next, _) = learn(
        None,
        &[member(1)],
        &[],
        &Run { records: &records, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    assert!(next.len() > 4000 && next.write().len() <= BYTES, "{}", next.len());
}

#[test]
fn a_listing_makes_no_absence_ready() {
    let records = [record(Kind::Listed, &full(1, "lib"), 1), record(Kind::Absent, &full(1, "lib/none"), 2)];
    let today = [member(1)];
    let (last, _) = learn(
        None,
        &today,
        &[],
        &Run { records: &records, done: Done::default(), marks: Marks::new(0, 0), lasted: LONG },
    );
    let seed = marks(&full(1, "lib/none"), Marked::Nothing);
    let one = Done { names: 1, bytes: 0 };
    let (next, _) = learn(
        Some(&last),
        &today,
        &[],
        &Run { records: &[record(Kind::Name, &full(1, "lib"), 0)], done: one, marks: seed, lasted: LONG },
    );
    assert_eq!(paths(&next), [full(1, "lib")].into(), "it was not looked up, and nobody asked for it");
    let (next, _) = learn(
        Some(&last),
        &today,
        &[],
        &Run { records: &[record(Kind::Name, &full(1, "lib"), 0)], done: ALL, marks: seed, lasted: LONG },
    );
    assert_eq!(next.len(), 2);
}
