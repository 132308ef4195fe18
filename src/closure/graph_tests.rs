use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::closure::made::{closure, path};

/// Members that are reached from `roots` without `member`, and without the reference `cut`.
fn reached(
    members: &[(u64, Vec<usize>)],
    roots: &[usize],
    member: Option<usize>,
    cut: Option<(usize, usize)>,
) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut next: Vec<usize> = roots.to_vec();
    while let Some(node) = next.pop() {
        if Some(node) == member || !found.insert(node) {
            continue;
        }
        next.extend(members[node].1.iter().filter(|to| cut != Some((node, **to))));
    }
    found
}

fn size(members: &[(u64, Vec<usize>)], which: &BTreeSet<usize>) -> u64 {
    which.iter().map(|member| members[*member].0).sum()
}

#[test]
fn a_shared_library_is_counted_where_it_would_go_and_nowhere_else() {
    // 0 -> 1, 2; 1 -> 3, 4; 2 -> 4; 4 -> 5.
    let members = [
        (1, vec![1, 2]),
        (10, vec![3, 4, 1]),
        (100, vec![4]),
        (1000, vec![]),
        (10_000, vec![5]),
        (100_000, vec![]),
    ];
    let closure = closure(&members, &[0]);
    let graph = Graph::new(&closure);
    let node = |n| graph.node(&path(n)).unwrap();
    let alone: Vec<u64> = (0..6).map(|n| graph.alone(node(n))).collect();
    assert_eq!(alone, [111_111, 1010, 100, 1000, 110_000, 100_000]);
    let with = |from, to| graph.reference_alone(node(from), node(to));
    assert_eq!([with(0, 1), with(1, 4), with(2, 4), with(4, 5), with(0, 5)], [1010, 0, 0, 100_000, 0]);
    assert_eq!(graph.chain(node(5)), [0, 1, 4, 5].map(node));
    assert_eq!([0, 1, 4].map(|n| graph.holders(node(n))), [1, 1, 2]);
    assert_eq!(graph.references(node(1)), [3, 4].map(node));
    assert_eq!(graph.referrers(node(4)), [1, 2].map(node));
}

#[test]
fn what_no_root_reaches_has_no_chain_and_holds_nothing() {
    let members = [(1, vec![]), (10, vec![0, 2]), (100, vec![1])];
    let closure = closure(&members, &[0]);
    let graph = Graph::new(&closure);
    let node = |n| graph.node(&path(n)).unwrap();
    assert_eq!((graph.chain(node(1)), graph.distance(node(1))), (vec![], None));
    assert_eq!((graph.alone(node(0)), graph.alone(node(1))), (1, 10));
    assert!(!graph.dominates(node(0), node(1)) && !graph.dominates(node(1), node(2)));
}

/// A file that was edited may have a chain as long as it has members.
#[test]
fn a_chain_of_any_length_needs_no_stack() {
    let members: Vec<(u64, Vec<usize>)> = (0..50_000).map(|n| (1, vec![(n + 1) % 50_000])).collect();
    let closure = closure(&members, &[0]);
    let graph = Graph::new(&closure);
    let last = graph.node(&path(49_999)).unwrap();
    assert_eq!((graph.chain(last).len(), graph.alone(graph.roots()[0])), (50_000, 50_000));
}

proptest! {
    /// Whatever refers to whatever, in circles or not: what goes with a path, and with a reference, is what is not reached
    /// without it, and a chain is as short as can be.
    #[test]
    fn what_goes_is_what_is_not_reached_any_more(
        (members, roots) in (1usize..14).prop_flat_map(|count| (
            proptest::collection::vec((1u64..1000, proptest::collection::vec(0..count, 0..4)), count),
            proptest::collection::vec(0..count, 0..4),
        ))
    ) {
        let roots: Vec<usize> = roots.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let closure = closure(&members, &roots);
        let graph = Graph::new(&closure);
        let all = reached(&members, &roots, None, None);
        let node = |n| graph.node(&path(n)).unwrap();
        for member in 0..members.len() {
            let gone = &all - &reached(&members, &roots, Some(member), None);
            let expected = if all.contains(&member) { size(&members, &gone) } else { members[member].0 };
            prop_assert_eq!(graph.alone(node(member)), expected, "without {}", member);
            for other in 0..members.len() {
                let both = all.contains(&member) && all.contains(&other);
                prop_assert_eq!(graph.dominates(node(member), node(other)), both && gone.contains(&other));
            }
            let dominators = || graph.nodes().filter(|by| *by != node(member) && graph.dominates(*by, node(member)));
            let nearest = dominators().find(|by| dominators().all(|other| graph.dominates(other, *by)));
            prop_assert_eq!(graph.dominator(node(member)), nearest);
            for to in &members[member].1 {
                let cut = reached(&members, &roots, None, Some((member, *to)));
                let expected = size(&members, &(&all - &cut));
                let is_real = all.contains(&member) && *to != member;
                let told = graph.reference_alone(node(member), node(*to));
                prop_assert_eq!(told, if is_real { expected } else { 0 }, "{} to {}", member, to);
            }
            let chain = graph.chain(node(member));
            prop_assert_eq!(chain.is_empty(), !all.contains(&member));
            prop_assert_eq!(graph.brought_by(node(member)), chain.get(1).copied());
            for pair in chain.windows(2) {
                prop_assert!(graph.references(pair[0]).contains(&pair[1]));
            }
            // Bellman's equation, which no longer chain satisfies everywhere.
            let nearest = graph.referrers(node(member)).iter().filter_map(|from| graph.distance(*from)).min();
            let expected = if roots.contains(&member) { Some(0) } else { nearest.map(|nearest| nearest + 1) };
            prop_assert_eq!(graph.distance(node(member)), expected);
            prop_assert_eq!(chain.len(), graph.distance(node(member)).map_or(0, |n| n as usize + 1));
        }
    }
}
