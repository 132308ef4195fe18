use proptest::prelude::*;

use super::*;
use crate::closure::Closure;
use crate::closure::made::{info, named};
use crate::values::StorePath;

/// A member: the number that its hash is made of, its name, its size, and the places of those that it refers to.
type Member = (u8, String, u64, Vec<usize>);

fn closure(members: &[Member]) -> Closure {
    let path = |n: usize| named(members[n].0.into(), &members[n].1);
    let infos = members.iter().enumerate().map(|(n, (_, _, nar_size, references))| {
        info(path(n), *nar_size, references.iter().copied().map(path).collect())
    });
    Closure::new(vec![path(0)], infos).unwrap()
}

fn member(hash: u8, name: &str, nar_size: u64, references: &[usize]) -> Member {
    (hash, name.to_owned(), nar_size, references.to_vec())
}

#[test]
fn packages_change_are_added_removed_and_rebuilt() {
    let old = closure(&[
        member(1, "system", 10, &[1, 2, 3, 4, 5]),
        member(2, "openssl-3.0", 100, &[]),
        member(3, "openssl-3.0-bin", 50, &[1]),
        member(4, "same-1", 7, &[]),
        member(5, "rebuilt-2.0", 20, &[]),
        member(6, "gone-1", 1000, &[]),
    ]);
    let new = closure(&[
        member(7, "system", 10, &[1, 2, 3, 4]),
        member(8, "openssl-3.1", 130, &[5]),
        member(4, "same-1", 7, &[]),
        member(9, "rebuilt-2.0", 25, &[]),
        member(3, "openssl-3.0-bin", 50, &[]),
        member(10, "fresh", 1, &[]),
    ]);
    let (old, new) = (Graph::new(&old), Graph::new(&new));
    let changes = diff(&old, &new);
    let told: Vec<_> = changes
        .iter()
        .map(|change| {
            let versions = |side: &Side<'_>| side.versions.iter().copied().collect::<Vec<_>>().join(", ");
            (
                change.kind,
                change.name,
                versions(&change.old),
                versions(&change.new),
                change.growth(),
                change.paths().len(),
            )
        })
        .collect();
    let text = str::to_owned;
    assert_eq!(
        told,
        [
            (Kind::Changed, "openssl", text("3.0"), text("3.0, 3.1"), 30, 1),
            (Kind::Added, "fresh", text(""), text(""), 1, 1),
            (Kind::Removed, "gone", text("1"), text(""), -1000, 1),
            (Kind::Rebuilt, "rebuilt", text("2.0"), text("2.0"), 5, 1),
            (Kind::Rebuilt, "system", text(""), text(""), 0, 1),
        ]
    );
    let named = |change: &Change<'_>| {
        let node = new.brought_by(*change.paths().first()?)?;
        Some(new.info(node)?.path.name().to_owned())
    };
    assert_eq!(named(&changes[1]).as_deref(), Some("openssl-3.1"), "what brought it in");
    assert_eq!(named(&changes[4]), None, "a root is asked for");
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    let name = prop::sample::select(vec!["a-1", "a-2", "a-1-bin", "b-1", "b", "c-1"]).prop_map(str::to_owned);
    proptest::collection::vec((0u8..4, name, 0u64..100, Just(Vec::new())), 1..8)
}

proptest! {
    /// Growth adds up to the difference of the sizes, every path that only one has is in one change, and the other way round is the
    /// opposite.
    #[test]
    fn changes_add_up_and_turn_round(old in members(), new in members()) {
        // What is the same path has the same size.
        let size = |(hash, name, ..): &Member| (*hash, name.clone(), u64::from(*hash) * 10 + name.len() as u64, Vec::new());
        let (old, new): (Vec<_>, Vec<_>) = (old.iter().map(size).collect(), new.iter().map(size).collect());
        let (old, new) = (closure(&old), closure(&new));
        let (before, after) = (Graph::new(&old), Graph::new(&new));
        let changes = diff(&before, &after);
        let grown: i128 = changes.iter().map(Change::growth).sum();
        prop_assert_eq!(grown, i128::from(new.nar_size()) - i128::from(old.nar_size()));
        let paths = |graph: &Graph<'_>, nodes: Vec<Node>| -> BTreeSet<StorePath> {
            nodes.into_iter().map(|node| graph.info(node).unwrap().path.clone()).collect()
        };
        let all = |graph: &Graph<'_>| paths(graph, graph.nodes().collect());
        let removed = paths(&before, changes.iter().flat_map(|change| change.old.paths.clone()).collect());
        let added = paths(&after, changes.iter().flat_map(|change| change.new.paths.clone()).collect());
        prop_assert_eq!(&removed, &(&all(&before) - &all(&after)));
        prop_assert_eq!(&added, &(&all(&after) - &all(&before)));
        let back: BTreeMap<&str, i128> = diff(&after, &before).iter().map(|change| (change.name, -change.growth())).collect();
        prop_assert_eq!(back, changes.iter().map(|change| (change.name, change.growth())).collect());
        prop_assert!(diff(&before, &before).is_empty());
    }
}
