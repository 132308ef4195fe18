//! In what two closures differ, by package. Pure.
//!
//! A package is what [`Package`] makes of a name, its outputs together. It has *changed* if its versions are others, is
//! *rebuilt* if only its paths are, and otherwise was *added*, *removed*, or is not mentioned.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::closure::graph::{Graph, Node};
use crate::values::package::Package;
use crate::values::total;

/// What became of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It has other versions.
    Changed,
    /// It is new.
    Added,
    /// It is not there any more.
    Removed,
    /// It has the same versions, and other paths.
    Rebuilt,
}

/// A package that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<'a> {
    /// What became of it.
    pub kind: Kind,
    /// The package.
    pub name: &'a str,
    /// What it was.
    pub old: Side<'a>,
    /// What it is.
    pub new: Side<'a>,
}

/// A package in one of the closures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Side<'a> {
    /// Its versions, sorted as texts; the empty one for paths without.
    pub versions: BTreeSet<&'a str>,
    /// Its paths, sorted.
    pub paths: Vec<Node>,
    /// The sum of their NAR sizes in bytes.
    pub nar_size: u64,
}

impl Change<'_> {
    /// Bytes that it takes more than before.
    #[must_use]
    pub fn growth(&self) -> i128 {
        i128::from(self.new.nar_size) - i128::from(self.old.nar_size)
    }

    /// The paths that the other closure has not, of the new one, or of the old one where it is gone.
    #[must_use]
    pub fn paths(&self) -> &[Node] {
        if self.kind == Kind::Removed { &self.old.paths } else { &self.new.paths }
    }
}

/// Every package that is not the same in `new` as in `old`: by what became of it, and then by name.
#[must_use]
pub fn diff<'a>(old: &Graph<'a>, new: &Graph<'a>) -> Vec<Change<'a>> {
    let (mut before, mut after) = (packages(old), packages(new));
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let changes = names.into_iter().filter_map(|name| {
        let (mut was, mut is) =
            (before.remove(name).unwrap_or_default(), after.remove(name).unwrap_or_default());
        let kind = match (was.paths.is_empty(), is.paths.is_empty()) {
            (true, _) => Kind::Added,
            (_, true) => Kind::Removed,
            _ if was.versions != is.versions => Kind::Changed,
            _ => Kind::Rebuilt,
        };
        let same = |of: &Graph<'_>, node: &Node, other: &Graph<'_>| {
            of.info(*node).is_some_and(|info| other.node(&info.path).is_some())
        };
        was.paths.retain(|node| !same(old, node, new));
        is.paths.retain(|node| !same(new, node, old));
        let is_same = was.paths.is_empty() && is.paths.is_empty();
        (!is_same).then_some(Change { kind, name, old: was, new: is })
    });
    let mut changes: Vec<_> = changes.collect();
    changes.sort_by_key(|change| change.kind);
    changes
}

fn packages<'a>(graph: &Graph<'a>) -> BTreeMap<&'a str, Side<'a>> {
    let mut packages: BTreeMap<&str, Side<'_>> = BTreeMap::new();
    for (node, info) in graph.nodes().filter_map(|node| Some((node, graph.info(node)?))) {
        let package = Package::parse(info.path.name());
        let side = packages.entry(package.name).or_default();
        side.versions.insert(package.version);
        side.paths.push(node);
        side.nar_size = total([side.nar_size, info.nar_size].into_iter());
    }
    packages
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
