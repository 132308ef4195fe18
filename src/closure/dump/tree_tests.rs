use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::closure::made::closure;

fn colored(closure: &Closure) -> String {
    let mut out = Vec::new();
    write(closure, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn print(closure: &Closure) -> String {
    anstream::adapter::strip_str(&colored(closure)).to_string()
}

/// The hash parts are long and say nothing here.
fn short(text: &str) -> String {
    text.lines().map(|line| line.replace(&"0".repeat(31), "")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_heaviest_comes_first_and_what_others_hold_has_no_size() {
    let members = [
        (2048, vec![0, 1, 2, 3]),
        (10, vec![3]),
        (3 << 20, vec![3, 4]),
        (500, vec![]),
        (1 << 20, vec![5]),
        (7, vec![]),
        // No root reaches these.
        (1, vec![7]),
        (2, vec![]),
    ];
    insta::assert_snapshot!(short(&print(&closure(&members, &[0, 5]))), @r"
      own size     brings in  path
       2.0 KiB       4.0 MiB  0-p0
       3.0 MiB       4.0 MiB  ├─ 2-p2
       1.0 MiB       1.0 MiB  │  └─ 4-p4
          10 B          10 B  ├─ 1-p1
         500 B     held by 3  └─ 3-p3
           7 B           7 B  5-p5

    reached from no root:
           2 B             -  7-p7
           1 B             -  6-p6

       4.0 MiB  8 paths
    ");
}

/// Roots stand out wherever they are, what says nothing does not, and nothing is left open at the end of a line.
#[test]
fn colors_say_what_a_root_is() {
    let members = [(2, vec![1, 2]), (1, vec![2]), (1, vec![]), (1, vec![])];
    let text = short(&colored(&closure(&members, &[0, 1]))).replace('\u{1b}', "^");
    insta::assert_snapshot!(text, @r"
    ^[2m  own size     brings in  path^[0m
           2 B           2 B  ^[1m0-p0^[0m
           1 B  ^[2m   held by 2^[0m  ^[2m└─ ^[0m2-p2
           1 B           1 B  ^[1m1-p1^[0m

    reached from no root:
           1 B  ^[2m           -^[0m  3-p3

           5 B  4 paths
    ");
    for line in text.lines() {
        let (on, off) =
            (line.matches("^[1m").count() + line.matches("^[2m").count(), line.matches("^[0m").count());
        assert_eq!(on, off, "{line}");
    }
}

#[test]
fn a_closure_of_nothing_is_a_total() {
    insta::assert_snapshot!(print(&closure(&[], &[])), @r"
      own size     brings in  path

           0 B  0 paths
    ");
}

/// A file that was edited may have a chain as long as it has members.
#[test]
fn a_chain_of_any_length_takes_neither_stack_nor_the_square_of_it() {
    let count = 30_000;
    let members: Vec<(u64, Vec<usize>)> = (0..count).map(|n| (1, vec![(n + 1) % count])).collect();
    let text = print(&closure(&members, &[0]));
    assert_eq!(text.lines().count(), count + 3);
    assert!(text.len() < count * 350, "{} bytes", text.len());
    let last = text.lines().find(|line| line.ends_with("-p29999")).unwrap();
    assert!(last.contains("└─ (29999 levels down) "), "{last}");
}

/// The number of a member, and the level that its line is drawn at.
fn placed(line: &str) -> Option<(usize, usize)> {
    let (before, number) = line.rsplit_once("-p")?;
    // Two columns with their gaps, then three characters a level, then the hash part.
    Some((number.parse().ok()?, (before.chars().count() - 26 - 32) / 3))
}

proptest! {
    /// Whatever refers to whatever: each member has one line, below one that refers to it, as deep as it is far from a root.
    #[test]
    fn each_member_stands_once_below_one_that_refers_to_it(
        (members, roots) in (1usize..14).prop_flat_map(|count| (
            proptest::collection::vec((0u64..3000, proptest::collection::vec(0..count, 0..4)), count),
            proptest::collection::vec(0..count, 0..4),
        ))
    ) {
        let closure = closure(&members, &roots);
        let graph = Graph::new(&closure);
        let text = print(&closure);
        let mut levels: BTreeMap<usize, usize> = BTreeMap::new();
        let mut above: Vec<usize> = Vec::new();
        for (member, level) in text.lines().filter_map(placed) {
            prop_assert!(level <= above.len(), "{}", text);
            above.truncate(level);
            if let Some(parent) = above.last() {
                prop_assert!(members[*parent].1.contains(&member), "{}", text);
            }
            above.push(member);
            prop_assert_eq!(levels.insert(member, level), None, "{}", text);
        }
        prop_assert_eq!(levels.len(), members.len());
        for node in graph.nodes() {
            prop_assert_eq!(levels[&node.place()], graph.distance(node).unwrap_or(0) as usize);
        }
    }
}
