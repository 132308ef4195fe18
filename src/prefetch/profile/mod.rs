//! The profile: what is known of a view's use, as plain values, and as a file by way of [`text`].
//!
//! A *use* is a path below a member, what was asked of it, when, and in how many runs. A path has one use: what lies at it in a store path
//! never changes, so it is absent, or a directory, a link or a file, and that is what can be asked of it ([`Asked`]).
//!
//! Invariants of a [`Profile`], wherever it comes from:
//! - paths have no empty component, no `.` or `..`, no NUL, and at most [`PATH_MAX`] bytes, so nothing in it leads out of its member;
//! - there are at most [`USES`] uses, and at most [`BYTES`] bytes of paths;
//! - a member in it has uses.
//!
//! Hard point: it comes from what a server wrote, which may be hostile. Whoever follows a profile does so within the view, and within limits.

mod mapped;
pub mod ranges;
pub mod text;

use std::collections::BTreeMap;

use crate::values::StorePath;
use ranges::Ranges;

/// Most uses in a profile.
pub const USES: usize = 100_000;
/// Most bytes of a profile as text.
pub const BYTES: usize = 16 << 20;
/// Longest path below a member, in bytes.
pub const PATH_MAX: usize = 4095;
/// For so many runs a member is kept of which nothing is used.
pub const IDLE: u8 = 8;

/// What is known of a view's use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    pub(super) runs: u32,
    /// Whether too little of it was used: nothing is played at the next start, so that all that is used is seen.
    pub(super) relearn: bool,
    pub(super) members: BTreeMap<StorePath, Member>,
}

/// What is known of a member's use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// For how many runs in a row nothing of it was used.
    pub(super) idle: u8,
    /// By path below the member; empty: the member itself.
    pub(super) uses: BTreeMap<Vec<u8>, Use>,
}

/// What is known of one path's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Milliseconds from a run's first record to the first use.
    pub after: u32,
    /// In how many runs it was seen; 255 also for more.
    pub seen: u8,
    /// What was asked.
    pub asked: Asked,
}

/// What was asked of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Its name, and there is none.
    Absent,
    /// Its name and no more.
    Name,
    /// Its entries.
    Listed,
    /// Where it leads.
    Link,
    /// These pages; none: it was opened, and nobody knows how much of it was read.
    File(Ranges),
}

impl Asked {
    /// Adds what was asked later. Where the two cannot both be true of one path, the later one is.
    pub(super) fn add(&mut self, later: Self) {
        match (self, later) {
            (Self::File(ranges), Self::File(more)) => ranges.extend(more.iter()),
            (Self::Listed | Self::Link | Self::File(_), Self::Name) => {}
            (asked, later) => *asked = later,
        }
    }
}

impl Profile {
    /// In how many runs it was learnt.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// Whether nothing of it is to be played, as too little of it was used.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.relearn
    }

    /// How many uses there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.values().map(|member| member.uses.len()).sum()
    }

    /// Whether it has no use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Members, paths below them and what is known of their use, sorted by path.
    pub fn uses(&self) -> impl Iterator<Item = (&StorePath, &[u8], &Use)> {
        self.members.iter().flat_map(|(path, member)| {
            member.uses.iter().map(move |(below, of)| (path, below.as_slice(), of))
        })
    }

    /// The same, from the first use to the last.
    pub(super) fn in_order(&self) -> Vec<(&StorePath, &[u8], &Use)> {
        let mut all: Vec<_> = self.uses().collect();
        // Stable: paths stay sorted where the time is the same.
        all.sort_by_key(|(_, _, of)| of.after);
        all
    }

    /// Drops what is too much, latest first.
    pub(super) fn bound(&mut self) {
        let mut bytes = 0_usize;
        let kept = self.in_order().into_iter().take(USES).take_while(|(member, below, _)| {
            bytes += member.as_str().len() + below.len();
            bytes <= BYTES
        });
        let kept = kept.count();
        if kept < self.len() {
            let late: Vec<(StorePath, Vec<u8>)> = self
                .in_order()
                .into_iter()
                .skip(kept)
                .map(|(member, below, _)| (member.clone(), below.to_vec()))
                .collect();
            for (member, below) in late {
                self.members.entry(member).and_modify(|member| drop(member.uses.remove(&below)));
            }
        }
        self.members.retain(|_, member| !member.uses.is_empty());
    }
}

/// Whether a use may have this path below its member.
#[must_use]
pub fn is_below(path: &[u8]) -> bool {
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    path.is_empty() || path.len() <= PATH_MAX && path.split(|byte| *byte == b'/').all(is_name)
}

#[cfg(test)]
#[path = "../profile_tests.rs"]
mod tests;
