use proptest::prelude::*;

use super::*;
use crate::closure::Closure;
use crate::closure::made::{info, named as path};

/// A member by its number, its name and the numbers of those that it refers to.
type Member<'a> = (&'a str, &'a [usize]);

fn closure(members: &[Member<'_>], roots: &[usize]) -> Closure {
    let paths = |numbers: &[usize]| numbers.iter().map(|n| path(*n, members[*n].0)).collect::<Vec<_>>();
    let infos =
        members.iter().enumerate().map(|(n, (name, references))| info(path(n, name), 1, paths(references)));
    Closure::new(paths(roots), infos).unwrap()
}

fn numbers(nodes: &[Node]) -> Vec<usize> {
    nodes.iter().map(|node| node.place()).collect()
}

const SYSTEM: [Member<'_>; 7] = [
    ("nixos-system-web", &[1, 2, 3]),
    ("nginx-1.27.0", &[4, 6]),
    ("curl-8.1-bin", &[5, 2]),
    ("openssl-env", &[]),
    ("openssl-3.0.14", &[6]),
    ("openssl-3.0.14-bin", &[4]),
    ("glibc-2.40", &[]),
];

#[test]
fn a_member_is_meant_by_its_base_name_its_name_or_its_package() {
    let closure = closure(&SYSTEM, &[0]);
    let graph = Graph::new(&closure);
    let meant = |asked: &str| numbers(&named(&graph, asked));
    assert_eq!(meant(path(4, "openssl-3.0.14").as_str()), [4]);
    assert_eq!(meant("openssl-3.0.14"), [4]);
    assert_eq!(meant("openssl"), [4, 5]);
    assert_eq!(meant("openssl-env"), [3]);
    assert_eq!(meant("openssl-3"), [4, 5]);
    assert_eq!(meant("nginx-1.27"), [1]);
    assert_eq!(meant("nixos-system"), [0]);
    // Of a hash, as the page shows it.
    assert_eq!(meant(&path(4, "x").as_str()[..32]), [4]);
    assert_eq!(meant("0000000").len(), SYSTEM.len());
    assert!(["", "open", "000000", "nixos-sys"].into_iter().all(|nothing| meant(nothing).is_empty()));
    assert!(meant(path(9, "openssl-3.0.14").as_str()).is_empty());
}

#[test]
fn what_is_not_there_has_something_near() {
    let closure = closure(&SYSTEM, &[0]);
    let graph = Graph::new(&closure);
    let near = |asked: &str| nearest(&graph, asked).map(|node| node.place());
    assert_eq!(near(path(9, "openssl-1.1.1").as_str()), Some(4));
    assert_eq!(near(path(9, "openssl-1.1.1-bin").as_str()), Some(5));
    assert_eq!(near("opnessl"), Some(4));
    assert_eq!(near("glibc-2.39"), Some(6));
    assert_eq!(near("zzz"), None);
}

#[test]
fn everything_that_leads_to_a_member_is_shown_once() {
    let closure = closure(&SYSTEM, &[0]);
    let graph = Graph::new(&closure);
    let target = graph.node(&path(4, "openssl-3.0.14")).unwrap();
    let steps = all(&graph, target);
    let shown: Vec<(usize, usize)> = steps.iter().map(|step| (step.depth, step.node.place())).collect();
    assert_eq!(shown, [(0, 0), (1, 1), (2, 4), (1, 2), (2, 5), (3, 4)]);
    assert!(steps.iter().all(|step| !step.elsewhere));
    // The bin output needs the main one, which nginx has brought already.
    let glibc = graph.node(&path(6, "glibc-2.40")).unwrap();
    let steps = all(&graph, glibc);
    let shown: Vec<_> = steps.iter().map(|step| (step.depth, step.node.place(), step.elsewhere)).collect();
    assert_eq!(
        shown,
        [
            (0, 0, false),
            (1, 1, false),
            (2, 4, false),
            (3, 6, false),
            (2, 6, false),
            (1, 2, false),
            (2, 5, true)
        ]
    );
    let shortest = chain(&graph, target);
    assert_eq!(
        shortest.iter().map(|step| (step.depth, step.node.place())).collect::<Vec<_>>(),
        [(0, 0), (1, 1), (2, 4)]
    );
    assert_eq!((shortest[0].from, shortest[2].from), (None, Some(shortest[1].node)));
}

proptest! {
    /// Whatever refers to whatever: the tree has exactly the members from which the target is reached, each once, and all
    /// references to the target; each line hangs from one above it that refers to it.
    #[test]
    fn the_tree_is_complete_and_has_nothing_twice(
        (references, roots, target) in (1usize..12).prop_flat_map(|count| (
            proptest::collection::vec(proptest::collection::vec(0..count, 0..4), count),
            proptest::collection::btree_set(0..count, 1..4),
            0..count,
        ))
    ) {
        let members: Vec<Member<'_>> = references.iter().map(|to| ("name", to.as_slice())).collect();
        let roots: Vec<usize> = roots.into_iter().collect();
        let closure = closure(&members, &roots);
        let graph = Graph::new(&closure);
        let goal = graph.node(&path(target, "name")).unwrap();
        let leads = |from: usize, past_target: bool| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(node) = next.pop() {
                if seen.insert(node) && (past_target || node != target) {
                    next.extend(&references[node]);
                }
            }
            seen
        };
        let reached: BTreeSet<usize> = roots.iter().flat_map(|root| leads(*root, false)).collect();
        let expected: BTreeSet<usize> =
            reached.iter().copied().filter(|node| leads(*node, true).contains(&target)).collect();
        let steps = all(&graph, goal);
        let shown: BTreeSet<usize> = steps.iter().map(|step| step.node.place()).collect();
        prop_assert_eq!(&shown, &expected);
        // A root that is the target stands at the top as well.
        let others = steps.iter().filter(|step| step.node != goal).count();
        prop_assert_eq!(others, expected.iter().filter(|node| **node != target).count(), "one is shown twice");
        let direct: BTreeSet<usize> = steps.iter().filter(|step| step.node == goal).filter_map(|step| Some(step.from?.place())).collect();
        let referrers: BTreeSet<usize> =
            expected.iter().copied().filter(|from| *from != target && references[*from].contains(&target)).collect();
        prop_assert_eq!(direct, referrers);
        let mut above: Vec<Node> = Vec::new();
        for step in steps {
            above.truncate(step.depth);
            prop_assert_eq!(above.len(), step.depth);
            prop_assert_eq!(step.from, above.last().copied());
            if let Some(from) = step.from {
                prop_assert!(graph.references(from).contains(&step.node));
            }
            above.push(step.node);
        }
    }
}
