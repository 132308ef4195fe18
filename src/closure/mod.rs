//! From a path that a person types to a closure: [`profile`] follows links and returns what that depended on
//! ([`dependency`]) where nobody else decides ([`trust`]) or makes up who does ([`mounter`]), [`resolve`] asks the store and holds what it answers, [`roots`]
//! are the links that hold it beyond this process, in a [`directory`] that nobody else chooses, [`dump`] prints it,
//! and [`saved`] reads what was printed. [`source`] tells where the closure that is served comes from.
//!
//! [`graph`] tells who refers to whom and what goes with it, [`why`] which chains lead to a path, [`occurrences`] where in its
//! files one path names another, [`diff`] in what two closures differ.
//!
//! [`inside`] has a Nix that runs in a view find the closure registered.
//!
//! [`Closure`] itself is a plain value: roots, everything they refer to, and what that weighs. Its members are sorted and
//! unique, and every root is a member.

pub mod dependency;
pub mod diff;
mod directory;
pub mod dump;
pub mod enough;
pub mod graph;
pub mod inside;
#[cfg(test)]
mod made;
pub mod mounter;
pub mod occurrences;
pub mod profile;
pub mod resolve;
pub mod roots;
pub mod saved;
pub mod source;
pub mod trust;
pub mod why;

use std::collections::BTreeMap;

use crate::values::{PathInfo, StorePath, View, total};

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
        self.members.values().map(|info| (info.path.clone(), info.nar_size)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::made::path;
    use super::*;

    fn info(n: usize, nar_size: u64) -> PathInfo {
        made::info(path(n), nar_size, Vec::new())
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
}
