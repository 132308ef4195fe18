use proptest::prelude::*;

use super::ranges::RANGES;
use super::text::ProfileError;
use super::*;
use crate::view::trace::records::Pages;

fn store_path(n: u32) -> StorePath {
    StorePath::new(&format!("{n:032}-p-{n}")).unwrap()
}

/// Names with whatever a file name may hold: newlines, escape sequences, quotes, bytes that are no UTF-8.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z]{1,4}".prop_map(String::into_bytes),
        Just(b"\x1b[31m\n\"\\".to_vec()),
        Just(b"\xff\xfe'".to_vec()),
        proptest::collection::vec(1u8.., 1..5),
    ]
    .prop_filter("a name", |name| !name.contains(&b'/') && name != b"." && name != b"..")
}

fn below() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(name(), 0..4).prop_map(|names| names.join(&b'/'))
}

fn pages() -> impl Strategy<Value = Pages> {
    (0u64..300, 0u32..4).prop_map(|(first, count)| Pages { first, count })
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        Just(Asked::Absent),
        Just(Asked::Name),
        Just(Asked::Listed),
        Just(Asked::Link),
        proptest::collection::vec(pages(), 0..90).prop_map(|pages| Asked::File(pages.into_iter().collect())),
    ]
}

fn one_use() -> impl Strategy<Value = Use> {
    (any::<u32>(), any::<u8>(), asked()).prop_map(|(after, seen, asked)| Use { after, seen, asked })
}

fn profile() -> impl Strategy<Value = Profile> {
    let uses = proptest::collection::btree_map(below(), one_use(), 1..6);
    let member = (any::<u8>(), uses).prop_map(|(idle, uses)| Member { idle, uses });
    let members = proptest::collection::btree_map((0u32..9).prop_map(store_path), member, 0..4);
    (any::<u32>(), any::<bool>(), members).prop_map(|(runs, relearn, members)| Profile {
        runs,
        relearn,
        members,
    })
}

fn is_within_bounds(profile: &Profile) -> bool {
    let is_sound = |(_, below, of): (&StorePath, &[u8], &Use)| {
        let ranges = if let Asked::File(ranges) = &of.asked { ranges.clone() } else { Ranges::default() };
        is_below(below) && ranges.iter().len() <= RANGES
    };
    profile.len() <= USES && profile.uses().all(is_sound) && profile.write().len() <= BYTES
}

proptest! {
    #[test]
    fn what_is_written_is_read(profile in profile()) {
        let text = profile.write();
        prop_assert_eq!(Profile::read(&text).unwrap(), profile);
        prop_assert!(text.iter().all(|byte| *byte == b'\n' || *byte >= b' '));
    }

    /// A profile that is cut short or has one byte changed is an error, or one within the bounds.
    #[test]
    fn a_damaged_one_does_no_harm(profile in profile(), at: prop::sample::Index, byte: u8) {
        let text = profile.write();
        let at = at.index(text.len());
        if let Ok(cut) = Profile::read(&text[..at]) {
            prop_assert!(at == text.len() - 1, "only the last newline is not needed");
            prop_assert_eq!(cut, profile);
        }
        let mut changed = text;
        changed[at] = byte;
        match Profile::read(&changed) {
            Ok(profile) => prop_assert!(is_within_bounds(&profile)),
            Err(error) => prop_assert!(!error.to_string().contains(|c: char| c.is_control())),
        }
    }

    /// Compared with the set of all pages.
    #[test]
    fn ranges_are_those_that_were_read(read in proptest::collection::vec(pages(), 0..200)) {
        let set = |pages: &mut dyn Iterator<Item = Pages>| {
            pages.flat_map(|one| one.first..one.first + u64::from(one.count)).collect::<std::collections::BTreeSet<u64>>()
        };
        let all = set(&mut read.iter().copied());
        let ranges: Ranges = read.iter().copied().collect();
        let has = set(&mut ranges.iter());
        prop_assert!(ranges.iter().len() <= RANGES);
        prop_assert!(has.is_superset(&all));
        prop_assert_eq!(ranges.pages(), has.len() as u64, "they do not overlap");
        let groups = all.iter().filter(|page| !all.contains(&(**page + 1))).count();
        if groups <= RANGES {
            prop_assert_eq!(has, all, "nothing is joined that need not be");
            prop_assert_eq!(ranges.iter().len(), groups);
        }
    }
}

fn with(member: &str, uses: &str) -> String {
    format!(r#"{{"version":1,"runs":1,"members":[{{"path":"{member}","idle":0,"uses":[{uses}]}}]}}"#)
}

#[test]
fn what_breaks_the_form_or_a_bound_is_refused() {
    let member = store_path(1).to_string();
    let text =
        |path: &str, rest: &str| with(&member, &format!(r#"{{"path":{path},"ms":1,"seen":1,{rest}}}"#));
    let of = |path: &str| text(path, r#""kind":"name""#);
    let file = |pages: &str| text(r#""a""#, &format!(r#""kind":"file","pages":[{pages}]"#));
    assert_eq!(Profile::read(of(r#""bin/a""#).as_bytes()).unwrap().len(), 1);
    assert!(Profile::read(of("[97,255]").as_bytes()).is_ok());
    assert!(Profile::read(file("[0,2],[3,1]").as_bytes()).is_ok());
    let long = format!("\"{}\"", "x".repeat(PATH_MAX + 1));
    for path in [r#""/a""#, r#""a/""#, r#""a//b""#, r#"".""#, r#""a/../b""#, r#""a\u0000""#, "[97,0]", &long]
    {
        assert!(matches!(Profile::read(of(path).as_bytes()), Err(ProfileError::Bounds(_))), "{path}");
    }
    let many: Vec<String> = (0..=RANGES).map(|n| format!("[{},1]", n * 2)).collect();
    for pages in ["[3,1],[0,1]", "[0,1],[1,1]", "[0,0]", "[1099511627776,1]", &many.join(",")] {
        assert!(matches!(Profile::read(file(pages).as_bytes()), Err(ProfileError::Bounds(_))), "{pages}");
    }
    let twice = r#"{"path":"a","ms":1,"seen":1,"kind":"name"},{"path":"a","ms":1,"seen":1,"kind":"name"}"#;
    for text in [
        text(r#""a""#, r#""kind":"link","pages":[[0,1]]"#),
        with(&member, twice),
        with(&member, ""),
        with("../../etc", r#"{"path":"a","ms":1,"seen":1,"kind":"name"}"#),
        " ".repeat(BYTES + 1),
    ] {
        assert!(matches!(Profile::read(text.as_bytes()), Err(ProfileError::Bounds(_))));
    }
    for text in [
        "",
        "null",
        "[]",
        r#"{"version":"1"}"#,
        r#"{"version":1}"#,
        &text(r#""a""#, r#""kind":"door""#),
        &text(r#""a""#, r#""kind":"name","\u001b[31m":1"#),
        &"[".repeat(1 << 20),
    ] {
        let Err(error @ ProfileError::Form { .. }) = Profile::read(text.as_bytes()) else { panic!() };
        assert!(!error.to_string().contains('\x1b'));
    }
}

#[test]
fn another_version_is_refused_with_its_number() {
    let text = br#"{"version":2,"who":"knows","members":{}}"#;
    assert_eq!(Profile::read(text), Err(ProfileError::Version(2)));
    assert_eq!(
        ProfileError::Version(2).to_string(),
        "the profile has version 2; this program reads version 1"
    );
}

#[test]
fn what_is_too_much_is_left_out_latest_first() {
    let of = |after| Use { after, seen: 1, asked: Asked::Name };
    let many = |count: u32, path: &dyn Fn(u32) -> Vec<u8>| {
        let uses = (0..count).map(|n| (path(n), of(count - n))).collect();
        Profile { runs: 1, relearn: false, members: [(store_path(1), Member { idle: 0, uses })].into() }
    };
    let mut profile = many(USES as u32 + 10, &|n| format!("{n}").into_bytes());
    profile.bound();
    assert_eq!(profile.len(), USES);
    assert!(profile.uses().all(|(_, _, of)| of.after <= USES as u32), "those that stay are the first");
    assert_eq!(Profile::read(&profile.write()).unwrap(), profile);

    // Each byte takes six as text.
    let profile = many(2000, &|n| [n.to_string().into_bytes(), vec![1; 4000]].concat());
    let text = profile.write();
    assert!(text.len() <= BYTES && text.len() > BYTES - (30 << 10), "{}", text.len());
    let read = Profile::read(&text).unwrap();
    let last = read.uses().map(|(_, _, of)| of.after).max().unwrap();
    assert_eq!(read.len(), last as usize, "all up to the last");
}
