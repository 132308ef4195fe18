use proptest::prelude::*;

use super::*;
use crate::prefetch::profile::Member;
use crate::view::trace::records::Pages;

fn member(n: u32) -> StorePath {
    StorePath::new(&format!("{n:032}-p{n}")).unwrap()
}

fn profile(uses: impl IntoIterator<Item = (u32, &'static str, u32, Asked)>) -> Profile {
    let mut profile = Profile::default();
    for (n, path, after, asked) in uses {
        let of = Use { after, seen: 1, asked };
        profile.members.entry(member(n)).or_insert_with(Member::default).uses.insert(path.into(), of);
    }
    profile
}

fn file(pages: &[(u64, u32)]) -> Asked {
    Asked::File(pages.iter().map(|(first, count)| Pages { first: *first, count: *count }).collect())
}

/// Steps in short: what, and the path without the hash.
fn shown(steps: &[Step]) -> Vec<String> {
    let short = |step: &Step| String::from_utf8_lossy(&step.path()[33..]).into_owned();
    let one = |step: &Step| match step {
        Step::List { at_most, .. } => format!("list {} {at_most}", short(step)),
        Step::Look { .. } => format!("look {}", short(step)),
        Step::Follow { .. } => format!("follow {}", short(step)),
        Step::Read { ranges, .. } => {
            let ranges: Vec<String> =
                ranges.iter().map(|pages| format!("{}+{}", pages.first, pages.count)).collect();
            format!("read {} {}", short(step), ranges.join(","))
        }
    };
    steps.iter().map(one).collect()
}

/// A seed with which none of these paths is marked.
fn unmarked(profile: &Profile) -> Marks {
    let mut seeds = (0..).map(|seed| Marks::new(seed, 0));
    seeds
        .find(|marks| !profile.uses().any(|(member, below, _)| marks.is_marked(&joined(member, below))))
        .unwrap()
}

fn plan(profile: &Profile, members: &[StorePath], mode: Prefetch) -> Plan {
    Plan::new(profile, members, unmarked(profile), mode)
}

#[test]
fn steps_come_in_the_order_of_first_use() {
    let few = [("bin/a", 30), ("bin/b", 10), ("lib/c", 20), ("lib", 25)];
    let few = profile(few.map(|(path, after)| (1, path, after, Asked::Name)));
    let made = plan(&few, &[member(1)], Prefetch::Auto);
    assert_eq!(shown(&made.names), ["look p1/bin/b", "look p1/lib", "look p1/lib/c", "look p1/bin/a"]);

    let all = profile([
        (1, "lib/link", 5, Asked::Link),
        (1, "lib/none", 6, Asked::Absent),
        (1, "none", 1, Asked::Absent),
        (1, "etc/listed", 9, Asked::Listed),
        (1, "etc/listed/x", 12, Asked::Name),
        (1, "etc/listed/none", 13, Asked::Absent),
        (1, "etc/listed/link", 14, Asked::Link),
        (2, "", 7, file(&[(0, 2), (33, 1), (66, 1)])),
        (2, "late", SOON, file(&[(0, 1)])),
        (1, "opened", 8, file(&[])),
        (3, "gone", 0, Asked::Name),
    ]);
    let today = [member(1), member(2), member(4)];
    let made = plan(&all, &today, Prefetch::Names);
    assert_eq!(
        shown(&made.names),
        [
            "follow p1/lib/link",
            "look p1/lib/none",
            "look p2",
            "look p1/opened",
            "list p1/etc/listed 100000",
            "look p1/etc/listed/none",
            "follow p1/etc/listed/link",
            "look p2/late",
        ]
    );
    assert_eq!(
        shown(&made.bytes),
        ["read p2 0+34,66+1", "read p1/opened "],
        "32 pages are a gap, and 31 none"
    );
    assert_eq!(made.bytes.iter().map(Step::bytes).collect::<Vec<_>>(), [35 * PAGE, 0]);
    assert_eq!(made.members, today);
    let blocks: Vec<_> =
        made.blocks.iter().map(|path| String::from_utf8_lossy(&path[33..]).into_owned()).collect();
    assert_eq!(blocks[..4], ["p1", "p1/lib/link", "p1/lib", "p2"], "of an absence it is the directory");
}

#[test]
fn a_directory_is_listed_from_eight_names_on() {
    let paths = ["d/1", "d/2", "d/3", "d/4", "d/5", "d/6", "d/7", "d/8/deep", "d/9"];
    let used = |count: usize| profile(paths.into_iter().take(count).map(|path| (1, path, 7, Asked::Name)));
    let seven = plan(&used(7), &[member(1)], Prefetch::Auto);
    assert!(seven.names.iter().all(|step| matches!(step, Step::Look { .. })));
    let eight = plan(&used(8), &[member(1)], Prefetch::Auto);
    assert_eq!(shown(&eight.names), ["list p1/d 64", "look p1/d/8/deep"]);
    let absent = profile(paths.map(|path| (1, path, 7, Asked::Absent)));
    assert_eq!(plan(&absent, &[member(1)], Prefetch::Auto).names.len(), 9, "a listing tells no absence");
}

#[test]
fn the_rest_is_what_the_mode_says() {
    let (one, empty) = (profile([(1, "a", 1, Asked::Name)]), Profile::default());
    for (profile, mode, rest) in [
        (&one, Prefetch::Auto, Rest::Nothing),
        (&empty, Prefetch::Auto, Rest::NamesInShort),
        (&one, Prefetch::Names, Rest::Names),
        (&one, Prefetch::All, Rest::Bytes),
        (&empty, Prefetch::All, Rest::Bytes),
    ] {
        assert_eq!(plan(profile, &[member(1)], mode).rest, rest);
    }
    let of_another = plan(&one, &[member(2)], Prefetch::Auto);
    assert_eq!((of_another.rest, of_another.names), (Rest::NamesInShort, vec![]));
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        Just(Asked::Absent),
        Just(Asked::Name),
        Just(Asked::Listed),
        Just(Asked::Link),
        Just(file(&[(0, 1)]))
    ]
}

proptest! {
    /// Whatever the profile says, also that there is something below a file.
    #[test]
    fn each_name_is_brought_once_and_after_what_leads_to_it(
        uses in proptest::collection::vec((0u32..3, "([ab]/){0,2}[0-9ab]", 0u32..50, asked()), 0..60),
        whole in proptest::collection::vec((0u32..3, 0u32..50, asked()), 0..2),
        today in proptest::collection::btree_set(0u32..3, 0..3),
        seed: u64,
    ) {
        let mut made = Profile::default();
        for (n, path, after, asked) in uses.into_iter().chain(whole.into_iter().map(|(n, at, of)| (n, String::new(), at, of))) {
            let of = Use { after, seen: 1, asked };
            made.members.entry(member(n)).or_insert_with(Member::default).uses.insert(path.into(), of);
        }
        let today: Vec<StorePath> = today.into_iter().map(member).collect();
        let marks = Marks::new(seed, 0);
        let plan = Plan::new(&made, &today, marks, Prefetch::Auto);
        let is_inside = |path: &[u8]| {
            today.iter().any(|member| path == member.as_str().as_bytes() || path.starts_with(format!("{member}/").as_bytes()))
        };
        prop_assert!(plan.names.iter().chain(&plan.bytes).all(|step| is_inside(step.path())));
        prop_assert!(plan.blocks.iter().all(|path| is_inside(path)));

        let listed = |path: &[u8]| plan.names.iter().filter(|step| matches!(step, Step::List { .. }) && step.path() == path).count();
        for (at, step) in plan.names.iter().enumerate() {
            prop_assert!(!plan.names[..at].contains(step), "twice: {:?}", step);
            let leads = |dir: &Step| matches!(dir, Step::List { .. }) && Some(dir.path()) == parent(step.path());
            // An absence comes with no listing, and need not wait for it.
            let is_absent = made.uses().any(|(of, below, one)| one.asked == Asked::Absent && joined(of, below) == step.path());
            prop_assert!(is_absent || !plan.names[at..].iter().any(leads), "{:?} comes before its directory", step);
        }
        for (of, below, one) in made.uses().filter(|(of, _, _)| today.contains(of)) {
            let path = joined(of, below);
            let own = plan.names.iter().filter(|step| !matches!(step, Step::List { .. }) && step.path() == path);
            let by_parent = parent(&path).map_or(0, listed);
            let own = own.count();
            match one.asked {
                Asked::Absent => prop_assert_eq!(own, usize::from(!expires(&path))),
                // Where it leads comes besides.
                Asked::Link => prop_assert_eq!(own, 1),
                Asked::Listed => prop_assert_eq!((own, listed(&path)), (0, 1)),
                Asked::Name | Asked::File(_) if by_parent > 0 => prop_assert_eq!((own, by_parent), (0, 1)),
                Asked::Name | Asked::File(_) => prop_assert_eq!(own + listed(&path), 1),
            }
            let read = plan.bytes.iter().filter(|step| step.path() == path).count();
            let is_read = matches!(one.asked, Asked::File(_)) && !marks.are_bytes_marked(&path);
            prop_assert_eq!(read, usize::from(is_read));
        }
    }
}
