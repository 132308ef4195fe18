//! A closure: roots, everything they refer to, and what that weighs. Plain values, no I/O.
//!
//! Invariants: members are sorted and unique, and every root is a member.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::store::{PathInfo, StorePath};

/// The roots asked for and the facts of every path reachable from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    roots: Vec<StorePath>,
    members: BTreeMap<StorePath, PathInfo>,
}

/// A root that is not among the members: the answer of the store was not a closure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store's answer is not a closure: it lacks the root '{0}'")]
pub struct NotAClosure(pub StorePath);

impl Closure {
    /// Puts together what the store answered for `roots`.
    ///
    /// # Errors
    /// [`NotAClosure`] when a root is missing from `infos`.
    pub fn new(
        mut roots: Vec<StorePath>,
        infos: impl IntoIterator<Item = PathInfo>,
    ) -> Result<Self, NotAClosure> {
        let members: BTreeMap<_, _> = infos.into_iter().map(|info| (info.path.clone(), info)).collect();
        roots.sort();
        roots.dedup();
        match roots.iter().find(|root| !members.contains_key(*root)) {
            Some(root) => Err(NotAClosure(root.clone())),
            None => Ok(Self { roots, members }),
        }
    }

    /// The roots, sorted.
    #[must_use]
    pub fn roots(&self) -> &[StorePath] {
        &self.roots
    }

    /// Every member with its facts, in the order of their names.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &PathInfo> {
        self.members.values()
    }

    /// Number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether the closure has no member, as that of no roots has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Sum of the members' NAR sizes in bytes.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        total(self.members.values().map(|info| info.nar_size))
    }

    /// What a server has to know of this closure.
    #[must_use]
    pub fn view(&self) -> View {
        View { members: self.members.values().map(|info| (info.path.clone(), info.nar_size)).collect() }
    }
}

/// The names to serve with their NAR sizes: all of a closure that crosses to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    members: BTreeMap<StorePath, u64>,
}

impl View {
    /// The names served, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &StorePath> {
        self.members.keys()
    }

    /// Whether `name` is served.
    #[must_use]
    pub fn contains(&self, name: &StorePath) -> bool {
        self.members.contains_key(name)
    }

    /// Number of names served.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nothing is served.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Sum of the members' NAR sizes in bytes.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        total(self.members.values().copied())
    }

    /// Everything that is in one of the two: how a view grows.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut members = self.members.clone();
        members.extend(other.members.iter().map(|(path, size)| (path.clone(), *size)));
        Self { members }
    }

    /// The names that are here and not in `other`.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a StorePath> {
        self.members.keys().filter(|path| !other.contains(path))
    }
}

/// Sizes come from a database: their sum may be wrong, but never wraps.
fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

impl FromIterator<(StorePath, u64)> for View {
    fn from_iter<I: IntoIterator<Item = (StorePath, u64)>>(members: I) -> Self {
        Self { members: members.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn path(n: u32) -> StorePath {
        StorePath::new(&format!("{n:032}-p{n}").replace(['e', 'o', 't', 'u'], "a")).unwrap()
    }

    fn info(n: u32, nar_size: u64) -> PathInfo {
        PathInfo {
            path: path(n),
            nar_hash: String::new(),
            nar_size,
            references: Vec::new(),
            deriver: None,
            registration_time: 0,
            signatures: Vec::new(),
            ca: None,
            ultimate: false,
        }
    }

    #[test]
    fn a_root_that_the_store_left_out_is_refused() {
        let answer = Closure::new(vec![path(1), path(2)], [info(1, 1)]);
        assert_eq!(answer, Err(NotAClosure(path(2))));
    }

    #[test]
    fn roots_are_sorted_and_unique() {
        let closure = Closure::new(vec![path(2), path(1), path(2)], [info(2, 1), info(1, 1)]).unwrap();
        assert_eq!(closure.roots(), [path(1), path(2)]);
    }

    #[test]
    fn sizes_saturate_instead_of_wrapping() {
        let closure = Closure::new(vec![], [info(1, u64::MAX), info(2, 2)]).unwrap();
        assert_eq!((closure.nar_size(), closure.view().nar_size()), (u64::MAX, u64::MAX));
    }

    proptest! {
        /// Views are sets: union, difference and sizes agree with std's, whatever the members.
        #[test]
        fn views_agree_with_sets(left in proptest::collection::btree_map(0u32..60, 0u64..1000, 0..40),
                                 right in proptest::collection::btree_set(0u32..60, 0..40)) {
            let view = |m: &BTreeMap<u32, u64>| m.iter().map(|(n, s)| (path(*n), *s)).collect::<View>();
            let right: BTreeMap<u32, u64> = right.into_iter().map(|n| (n, left.get(&n).copied().unwrap_or(7))).collect();
            let (a, b) = (view(&left), view(&right));
            let keys = |m: &BTreeMap<u32, u64>| m.keys().copied().collect::<BTreeSet<_>>();
            let names = |s: BTreeSet<u32>| s.into_iter().map(path).collect::<BTreeSet<_>>();
            let union = a.union(&b);
            prop_assert_eq!(union.names().cloned().collect::<BTreeSet<_>>(), names(&keys(&left) | &keys(&right)));
            prop_assert_eq!(a.difference(&b).cloned().collect::<BTreeSet<_>>(), names(&keys(&left) - &keys(&right)));
            let both: BTreeMap<u32, u64> = left.iter().chain(&right).map(|(n, s)| (*n, *s)).collect();
            prop_assert_eq!(union.nar_size(), both.values().sum::<u64>());
            let wire = serde_json::to_vec(&a).unwrap();
            prop_assert_eq!(serde_json::from_slice::<View>(&wire).unwrap(), a);
        }
    }
}
