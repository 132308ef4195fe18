//! Few roots for what is needed: those paths that no other one brings in.

use std::collections::BTreeSet;

use super::Closure;
use super::graph::{Graph, Node};
use crate::values::StorePath;

/// Of the paths `needed`, those that are in the closure of no other one of them, sorted. Their closures hold all of `needed`, and
/// those of no part of them do. `closure` holds them; what is no member of it is left out.
#[must_use]
pub fn enough(closure: &Closure, needed: &BTreeSet<StorePath>) -> Vec<StorePath> {
    let graph = Graph::new(closure);
    let needed: Vec<Node> = needed.iter().filter_map(|path| graph.node(path)).collect();
    let below = |node: &Node| graph.references(*node).iter().copied();
    let mut brought: BTreeSet<Node> = BTreeSet::new();
    let mut next: Vec<Node> = needed.iter().flat_map(below).collect();
    while let Some(node) = next.pop() {
        if brought.insert(node) {
            next.extend(below(&node));
        }
    }
    let roots = needed.into_iter().filter(|node| !brought.contains(node));
    roots.filter_map(|node| Some(graph.info(node)?.path.clone())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::made::{self, path};
    use super::*;

    /// References of each path to those after it, as a store has no circles but of a path with itself.
    fn closure(references: &[Vec<usize>]) -> Closure {
        let infos = references
            .iter()
            .enumerate()
            .map(|(n, to)| made::info(path(n), 1, to.iter().map(|to| path(*to)).collect()));
        Closure::new((0..references.len()).map(path).collect(), infos).unwrap()
    }

    fn reached(references: &[Vec<usize>], from: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([from]);
        for (n, to) in references.iter().enumerate().skip(from) {
            if reached.contains(&n) {
                reached.extend(to);
            }
        }
        reached
    }

    proptest! {
        #[test]
        fn roots_are_enough_and_none_is_too_many(
            references in (1usize..12).prop_flat_map(|count| {
                let of = |n: usize| proptest::collection::vec(n..count, 0..4);
                (0..count).map(of).collect::<Vec<_>>()
            }),
            bits in any::<u16>(),
        ) {
            let needed: BTreeSet<usize> = (0..references.len()).filter(|n| bits >> n & 1 == 1).collect();
            let paths = needed.iter().map(|n| path(*n)).collect();
            let roots = enough(&closure(&references), &paths);
            let roots: Vec<usize> = (0..references.len()).filter(|n| roots.contains(&path(*n))).collect();
            let all = |roots: &[usize]| -> BTreeSet<usize> {
                roots.iter().flat_map(|root| reached(&references, *root)).collect()
            };
            prop_assert!(needed.is_subset(&all(&roots)));
            for left_out in &roots {
                let others: Vec<usize> = roots.iter().copied().filter(|root| root != left_out).collect();
                prop_assert!(!needed.is_subset(&all(&others)));
            }
        }
    }

    #[test]
    fn what_is_no_member_is_left_out() {
        let needed = BTreeSet::from([path(0), path(7)]);
        assert_eq!(enough(&closure(&[vec![0]]), &needed), [path(0)]);
        assert!(enough(&closure(&[vec![]]), &BTreeSet::new()).is_empty());
    }
}
