//! What is served: names and their sizes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{StorePath, total};

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

    /// The names served with their NAR sizes, sorted.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&StorePath, u64)> {
        self.members.iter().map(|(path, size)| (path, *size))
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
