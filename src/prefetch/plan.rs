//! What to ask for ahead, and in which order: a profile and today's members as steps.
//!
//! Invariants:
//! - a plan is a function of what it is made of, so a number of steps tells which were done;
//! - no step lies outside the members;
//! - each name that was used and is there is brought by exactly one step: the listing of its directory if there is one, else its own. A link or a
//!   directory that is itself listed has a step for that besides where its name comes with a listing.
//!
//! Hard points:
//! 1. A listing does not tell the kernel which names are absent. Those are looked up one by one. Absences directly in a member are left out: they expire
//!    in a second.
//! 2. Marked names have steps as others have, so that one can tell whether they would have been ready. Bytes of a marked file have none.

use std::collections::{BTreeMap, BTreeSet};

use super::profile::ranges::Ranges;
use super::profile::{Asked, Profile, Use};
use crate::protocol::task::Prefetch;
use crate::values::StorePath;
use crate::view::trace::Marks;
use crate::view::trace::records::PAGE;

/// From so many used names on a directory is listed.
const MANY: usize = 8;
/// A listing may bring so many times what was used of it.
const SPARE: usize = 4;
/// A listing may always bring so much.
const LISTED_AT_LEAST: usize = 64;
/// A listing that a program made may bring so much.
const LISTED_AT_MOST: usize = 100_000;
/// Bytes that were first asked for after so many milliseconds can wait.
const SOON: u32 = 60_000;
/// Ranges with fewer pages between them are one question.
const GAP: u64 = 32;

/// One question to the view. Paths lie below the store directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// List a directory, but no more entries of it than these.
    List {
        /// The directory.
        dir: Vec<u8>,
        /// After so many entries it is enough.
        at_most: usize,
    },
    /// Look a name up, whether it is there or not.
    Look {
        /// The name.
        path: Vec<u8>,
    },
    /// Read a link.
    Follow {
        /// The link.
        path: Vec<u8>,
    },
    /// Read parts of a file.
    Read {
        /// The file.
        path: Vec<u8>,
        /// Which pages; none: it was opened, and nobody knows how much of it was read.
        ranges: Ranges,
    },
}

impl Step {
    /// Of what.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match self {
            Self::List { dir: path, .. }
            | Self::Look { path }
            | Self::Follow { path }
            | Self::Read { path, .. } => path,
        }
    }

    /// Bytes of a file that it brings into the page cache.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { ranges, .. } => ranges.pages().saturating_mul(PAGE),
            Self::List { .. } | Self::Look { .. } | Self::Follow { .. } => 0,
        }
    }
}

/// What follows when all steps are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Nothing,
    /// All names of all members, if that does not take long.
    NamesInShort,
    /// All names of all members.
    Names,
    /// All names, then all bytes.
    Bytes,
}

/// What to ask for ahead, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the store itself is asked for the attributes of: paths that are there, below the store directory, each once.
    pub blocks: Vec<Vec<u8>>,
    /// Names, listings and links.
    pub names: Vec<Step>,
    /// Parts of files.
    pub bytes: Vec<Step>,
    /// All members: first those of which something is known, in the order of their first use.
    pub members: Vec<StorePath>,
    /// What is asked of all of them when the steps are done.
    pub rest: Rest,
}

impl Plan {
    /// What of `profile`, which is mapped to them, concerns `members`.
    #[must_use]
    pub fn new<'a>(
        profile: &Profile,
        members: impl IntoIterator<Item = &'a StorePath>,
        marks: Marks,
        prefetch: Prefetch,
    ) -> Self {
        let today: BTreeSet<&StorePath> = members.into_iter().collect();
        let used: Vec<Used<'_>> = profile
            .in_order()
            .into_iter()
            .filter(|(member, _, _)| today.contains(member))
            .map(|(member, below, of)| Used { path: joined(member, below), of })
            .collect();
        let first: BTreeMap<&str, usize> =
            used.iter().enumerate().rev().map(|(at, used)| (used.member(), at)).collect();
        let mut members: Vec<StorePath> = today.into_iter().cloned().collect();
        members.sort_by_key(|member| first.get(member.as_str()).copied().unwrap_or(usize::MAX));
        let rest = match prefetch {
            Prefetch::Auto if used.is_empty() => Rest::NamesInShort,
            // With the first nobody plays.
            Prefetch::Off | Prefetch::Auto => Rest::Nothing,
            Prefetch::Names => Rest::Names,
            Prefetch::All => Rest::Bytes,
        };
        let (blocks, names) = (blocks(&used), names(&used));
        Self { blocks, names, bytes: bytes(&used, marks), members, rest }
    }
}

/// A use of today.
#[derive(Debug)]
struct Used<'a> {
    path: Vec<u8>,
    of: &'a Use,
}

impl Used<'_> {
    fn is_absent(&self) -> bool {
        self.of.asked == Asked::Absent
    }

    fn member(&self) -> &str {
        let end = self.path.iter().position(|byte| *byte == b'/').unwrap_or(self.path.len());
        self.path.get(..end).and_then(|member| std::str::from_utf8(member).ok()).unwrap_or_default()
    }
}

/// The path of something in a member, below the store directory.
pub(super) fn joined(member: &StorePath, below: &[u8]) -> Vec<u8> {
    let member = member.as_str().as_bytes();
    if below.is_empty() { member.to_vec() } else { [member, b"/", below].concat() }
}

/// The directory of a path, if it is a member's or lies in one.
pub(super) fn parent(path: &[u8]) -> Option<&[u8]> {
    let slash = memchr::memrchr(b'/', path)?;
    path.get(..slash)
}

/// An absence that expires: it is one directly in a member, or of one.
fn expires(path: &[u8]) -> bool {
    parent(path).and_then(parent).is_none()
}

fn blocks(used: &[Used<'_>]) -> Vec<Vec<u8>> {
    let mut known = BTreeSet::new();
    let there =
        used.iter().filter_map(|used| if used.is_absent() { parent(&used.path) } else { Some(&*used.path) });
    there.filter(|path| known.insert(*path)).map(<[u8]>::to_vec).collect()
}

/// What was used of a directory, itself or on the way to something.
#[derive(Debug, Default)]
struct Directory<'a> {
    names: BTreeSet<&'a [u8]>,
    /// When the first of them was, and when the first of anything below.
    first: Option<u32>,
    below: Option<u32>,
    is_listed: bool,
}

impl Directory<'_> {
    fn at_most(&self) -> Option<usize> {
        match self.names.len() {
            _ if self.is_listed => Some(LISTED_AT_MOST),
            used if used >= MANY => Some((used * SPARE).max(LISTED_AT_LEAST)),
            _ => None,
        }
    }
}

/// `used` is in order, so what comes first is the first.
fn directories<'a>(used: &'a [Used<'_>]) -> BTreeMap<&'a [u8], Directory<'a>> {
    let mut all: BTreeMap<&[u8], Directory<'_>> = BTreeMap::new();
    for one in used {
        if one.of.asked == Asked::Listed {
            let directory = all.entry(&one.path).or_default();
            directory.is_listed = true;
            directory.first.get_or_insert(one.of.after);
        }
        let (mut path, mut is_there) = (one.path.as_slice(), !one.is_absent());
        while let Some(dir) = parent(path) {
            let directory = all.entry(dir).or_default();
            directory.below.get_or_insert(one.of.after);
            // Known already, and so is all above it.
            if is_there && !directory.names.insert(path) {
                break;
            }
            if is_there {
                directory.first.get_or_insert(one.of.after);
            }
            (path, is_there) = (dir, true);
        }
    }
    all
}

fn names(used: &[Used<'_>]) -> Vec<Step> {
    let directories = directories(used);
    let listed = |dir: &[u8]| directories.get(dir).and_then(Directory::at_most);
    let mut steps: Vec<(u32, u8, Step)> = Vec::new();
    for (dir, directory) in &directories {
        if let Some((at_most, first)) = directory.at_most().zip(directory.first) {
            steps.push((first, 1, Step::List { dir: dir.to_vec(), at_most }));
        }
    }
    for one in used {
        let path = one.path.clone();
        let is_brought = !one.is_absent() && parent(&path).is_some_and(|dir| listed(dir).is_some());
        let below = directories.get(&*path).and_then(|directory| directory.below);
        let when = below.map_or(one.of.after, |below| below.min(one.of.after));
        let step = match one.of.asked {
            Asked::Absent => (!expires(&path)).then_some(Step::Look { path }),
            Asked::Link => Some(Step::Follow { path }),
            // Its own listing brings its name.
            Asked::Name | Asked::Listed | Asked::File(_) if is_brought || listed(&path).is_some() => None,
            Asked::Name | Asked::Listed | Asked::File(_) => Some(Step::Look { path }),
        };
        steps.extend(step.map(|step| (when, 0, step)));
    }
    // What leads to something comes before it, also at the same time: its path is shorter.
    steps.sort_by(|(one, kind, step), (other, of, next)| {
        (one, step.path(), kind).cmp(&(other, next.path(), of))
    });
    steps.into_iter().map(|(_, _, step)| step).collect()
}

fn bytes(used: &[Used<'_>], marks: Marks) -> Vec<Step> {
    let soon = used.iter().filter(|used| used.of.after < SOON && !marks.are_bytes_marked(&used.path));
    soon.filter_map(|used| match &used.of.asked {
        Asked::File(ranges) => Some(Step::Read { path: used.path.clone(), ranges: ranges.joined(GAP - 1) }),
        Asked::Absent | Asked::Name | Asked::Listed | Asked::Link => None,
    })
    .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
