//! Why a path is in a closure: which member a person means, and what leads to it. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::closure::graph::{Graph, Node};
use crate::values::StorePath;
use crate::values::package::Package;

/// How alike two names are at least, from 0 to 1, so that one is offered for the other.
const ALIKE: f64 = 0.8;

/// Characters of a hash that name a member, at least.
const HASH_MIN: usize = 7;

/// The members that `asked` names, in the order of their names. What names any counts, of these, in this order: a base name; a name without
/// the hash; all versions and outputs of a package; the beginning of names, up to a dash or point (`openssl-3`); the beginning of a hash.
#[must_use]
pub fn named(graph: &Graph<'_>, asked: &str) -> Vec<Node> {
    if let Some(node) = StorePath::new(asked).ok().and_then(|path| graph.node(&path)) {
        return vec![node];
    }
    let begins = |name: &str| {
        name.strip_prefix(asked).is_some_and(|rest| !asked.is_empty() && rest.starts_with(['-', '.']))
    };
    let ways: [&dyn Fn(&StorePath) -> bool; 4] = [
        &|path| path.name() == asked,
        &|path| Package::parse(path.name()).name == asked,
        &|path| begins(path.name()),
        &|path| asked.len() >= HASH_MIN && path.hash_part().starts_with(asked),
    ];
    let of = |is: &dyn Fn(&StorePath) -> bool| -> Vec<Node> {
        graph.nodes().filter(|node| graph.info(*node).is_some_and(|info| is(&info.path))).collect()
    };
    ways.into_iter().map(of).find(|found| !found.is_empty()).unwrap_or_default()
}

/// The member that comes closest by name to one that is not there: another build or version of the same package, or else the
/// name that is most alike, if any is.
#[must_use]
pub fn nearest(graph: &Graph<'_>, asked: &str) -> Option<Node> {
    let name = StorePath::new(asked).ok();
    let name = name.as_ref().map_or(asked, StorePath::name);
    let package = Package::parse(name);
    let likeness = |node: &Node| {
        let member = graph.info(*node)?.path.name();
        let found = Package::parse(member);
        let names = strsim::jaro_winkler(package.name, found.name);
        let is_same = package.name == found.name;
        let whole = strsim::jaro_winkler(name, member);
        (is_same || names >= ALIKE).then_some((is_same, if is_same { whole } else { names }, whole))
    };
    // The first of those that are equally alike.
    graph
        .nodes()
        .rev()
        .filter_map(|node| Some((likeness(&node)?, node)))
        .max_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2)))
        .map(|(_, node)| node)
}

/// A line of what leads to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// References between it and a root.
    pub depth: usize,
    /// The member.
    pub node: Node,
    /// Who refers to it here; none: it is a root.
    pub from: Option<Node>,
    /// Whether what it refers to on the way is shown under another one.
    pub elsewhere: bool,
}

/// The shortest chain to `target`, from a root on. Empty: no root reaches it.
#[must_use]
pub fn chain(graph: &Graph<'_>, target: Node) -> Vec<Step> {
    let chain = graph.chain(target);
    let from = std::iter::once(None).chain(chain.iter().copied().map(Some));
    chain
        .iter()
        .zip(from)
        .enumerate()
        .map(|(depth, (node, from))| Step { depth, node: *node, from, elsewhere: false })
        .collect()
}

/// Everything through which `target` is reached, as a tree from the roots: each member once, under whoever refers to it on its shortest
/// chain that does not pass `target`, and `target` under each of them that refers to it. What is reached by `target` alone does not lead to it,
/// though it may refer to it.
#[must_use]
pub fn all(graph: &Graph<'_>, target: Node) -> Vec<Step> {
    let mut leading = BTreeSet::from([target]);
    let mut next = vec![target];
    while let Some(node) = next.pop() {
        next.extend(graph.referrers(node).iter().copied().filter(|from| leading.insert(*from)));
    }
    let mut parents: BTreeMap<Node, Option<Node>> = BTreeMap::new();
    let roots = graph.roots().iter().filter(|root| leading.contains(root));
    let mut queue: VecDeque<(Node, Option<Node>)> = roots.map(|root| (*root, None)).collect();
    while let Some((node, from)) = queue.pop_front() {
        if let Entry::Vacant(parent) = parents.entry(node) {
            parent.insert(from);
            if node != target {
                let below = graph.references(node).iter().filter(|to| leading.contains(to));
                queue.extend(below.map(|to| (*to, Some(node))));
            }
        }
    }
    let mut steps = Vec::new();
    // What is to come, the next one last: a chain may be longer than a stack is deep.
    let roots = parents.iter().rev().filter(|(_, from)| from.is_none());
    let mut next: Vec<(usize, Node, Option<Node>)> = roots.map(|(root, _)| (0, *root, None)).collect();
    while let Some((depth, node, from)) = next.pop() {
        let belongs = |to: &&Node| **to == target || parents.get(*to) == Some(&Some(node));
        let before = next.len();
        if node != target {
            let below = graph.references(node).iter().rev().filter(belongs);
            next.extend(below.map(|to| (depth + 1, *to, Some(node))));
        }
        let elsewhere = node != target && next.len() == before;
        steps.push(Step { depth, node, from, elsewhere });
    }
    steps
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
