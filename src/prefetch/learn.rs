//! The next profile: what a run's trace tells, and what was asked for ahead and so is in no trace.
//!
//! Rules, for a use of the last profile:
//! - It was seen: it stays, seen in one run more.
//! - It was not seen, and was played, and its name is not marked: it stays. The kernel may have answered.
//! - It was not seen, and was not played or is marked: it goes. Whoever had used it would have been seen. But what was used later than this run has
//!   lasted stays: it may still have come.
//!
//! The same holds for what was asked of it: pages and listings that were neither played nor seen go. What is new is added.
//!
//! A member's own name is never cached for long. So where a trace tells of members' names (it has one at least), it tells of all that were used, and a member
//! of which there is nothing in it was idle. Nothing else tells whether a use of a member itself, not below it, has ended.
//!
//! Invariants:
//! - nothing is in a profile that no trace told of;
//! - whatever a hostile server recorded, the profile keeps its bounds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::plan::{self, Plan, Step};
use super::profile::{Asked, BYTES, IDLE, Member, Profile, USES, Use, is_below};
use crate::protocol::task::{Done, Prefetch};
use crate::values::StorePath;
use crate::view::trace::Marks;
use crate::view::trace::records::{Kind, Record};

/// So many marked uses tell how much was used. Where it is less than three of four, nothing is played at the next start.
const SAMPLE: u32 = 24;

/// What is known of a run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// What its trace has.
    pub records: &'a [Record],
    /// How many steps of the plan for the last profile were done.
    pub done: Done,
    /// Those of its trace.
    pub marks: Marks,
    /// For how long after its first record it was recorded.
    pub lasted: Duration,
}

/// What marks tell of what was played: an estimate of how much of it was of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judged {
    /// Uses that were played and are marked.
    pub marked: u32,
    /// How many of those were seen.
    pub used: u32,
}

/// The next profile of a view that had these `members` when it was played, and shows those of `later` as well by now. `run` tells what
/// was seen.
///
/// `last` is the profile that was read when the run began, also if this run was learnt from before.
#[must_use]
pub fn learn<'a>(
    last: Option<&Profile>,
    members: impl IntoIterator<Item = &'a StorePath>,
    later: impl IntoIterator<Item = &'a StorePath>,
    run: &Run<'_>,
) -> (Profile, Judged) {
    let members: BTreeSet<&StorePath> = members.into_iter().collect();
    let last = last.map(|last| last.mapped(members.iter().copied())).unwrap_or_default();
    let Run { records, done, marks, lasted } = run;
    let mut seen = Seen::of(records, &members.iter().copied().chain(later).collect());
    let plan = Plan::new(&last, members.iter().copied(), *marks, Prefetch::Auto);
    let ready = Ready::of(&plan, *done);

    let mut judged = Judged::default();
    let mut next = Profile { runs: last.runs.saturating_add(1), ..Profile::default() };
    for (path, member) in last.members {
        if !members.contains(&path) {
            next.members.insert(path, member);
            continue;
        }
        let idle = seen.idle(&path, member.idle);
        if idle >= IDLE {
            continue;
        }
        let mut uses = BTreeMap::new();
        for (below, old) in member.uses {
            let full = plan::joined(&path, &below);
            let new = seen.take(&full);
            let was_ready = ready.has_name(&full, &old.asked);
            let is_marked = marks.is_marked(&full);
            let was_used = new.is_some() || seen.is_on_the_way(&full);
            // Whoever lists a directory is told its names for ever, and asks for none of them.
            // What came later the last time may still come.
            let is_over = Duration::from_millis(old.after.into()) < *lasted;
            let is_judged = is_marked && is_over && !seen.is_listed(&full);
            if was_ready && is_judged {
                judged.marked = judged.marked.saturating_add(1);
                judged.used = judged.used.saturating_add(was_used.into());
            }
            let stays = if is_judged { was_used } else { was_used || was_ready || !is_over };
            if stays {
                uses.insert(below, next_use(old, new, &full, &ready, was_used));
            }
        }
        next.members.insert(path, Member { idle, uses });
    }
    // One start without it, and what is left is what is used.
    next.relearn = judged.marked >= SAMPLE && judged.used.saturating_mul(4) < judged.marked.saturating_mul(3);
    seen.add_to(&mut next);
    next.bound();
    (next, judged)
}

/// `old`, with what was seen of it in this run.
fn next_use(old: Use, new: Option<Use>, full: &[u8], ready: &Ready<'_>, was_used: bool) -> Use {
    let mut asked = if ready.has_content(full, &old.asked) { old.asked } else { Asked::Name };
    let seen = if was_used { old.seen.saturating_add(1) } else { old.seen };
    // Where all is ready, the first record comes late. So the first time that was told stays.
    if let Some(new) = new {
        asked.add(new.asked);
    }
    Use { after: old.after, seen, asked }
}

/// What was ready in the kernel's caches.
#[derive(Debug, Default)]
struct Ready<'a> {
    /// What a step went to, and all on the way to it.
    walked: HashSet<&'a [u8]>,
    listed: HashSet<&'a [u8]>,
    followed: HashSet<&'a [u8]>,
    read: HashSet<&'a [u8]>,
}

impl<'a> Ready<'a> {
    fn of(plan: &'a Plan, played: Done) -> Self {
        let mut ready = Self::default();
        let (names, bytes) = (plan.names.iter().take(played.names), plan.bytes.iter().take(played.bytes));
        for step in names.chain(bytes) {
            match step {
                Step::List { dir, .. } => ready.listed.insert(dir),
                Step::Look { .. } => true,
                Step::Follow { path } => ready.followed.insert(path),
                Step::Read { path, .. } => ready.read.insert(path),
            };
            let mut way = Some(step.path());
            while let Some(path) = way.filter(|path| ready.walked.insert(path)) {
                way = plan::parent(path);
            }
        }
        ready
    }

    fn has_name(&self, path: &[u8], asked: &Asked) -> bool {
        let is_there = *asked != Asked::Absent;
        let is_listed = || plan::parent(path).is_some_and(|dir| self.listed.contains(dir));
        self.walked.contains(path) || is_there && is_listed()
    }

    /// More than the name.
    fn has_content(&self, path: &[u8], asked: &Asked) -> bool {
        match asked {
            Asked::Absent | Asked::Name => true,
            Asked::Listed => self.listed.contains(path),
            Asked::Link => self.followed.contains(path),
            Asked::File(_) => self.read.contains(path),
        }
    }
}

/// What a trace tells.
#[derive(Debug, Default)]
struct Seen {
    /// By path below the store directory, with the length of the member's name.
    uses: HashMap<Vec<u8>, Use>,
    /// Directories in which something was seen.
    ways: HashSet<Vec<u8>>,
    /// Directories that were listed.
    listed: HashSet<Vec<u8>>,
    /// Whether members' own names are told.
    tells_members: bool,
    /// Members of which anything was seen.
    members: BTreeSet<StorePath>,
}

impl Seen {
    fn of(records: &[Record], members: &BTreeSet<&StorePath>) -> Self {
        let mut seen = Self::default();
        let mut bytes = 0_usize;
        for record in records {
            let Some((member, below)) = taken_to_pieces(&record.path) else { continue };
            if !members.contains(&member) || !is_below(below) {
                continue;
            }
            let is_member = below.is_empty();
            seen.tells_members |= is_member && record.kind == Kind::Name;
            seen.members.insert(member);
            let asked = match record.kind {
                // It says that something in the member is used, or that the member is looked at: both ask for it once a run anyway.
                Kind::Name if is_member => continue,
                Kind::Name => Asked::Name,
                Kind::Absent => Asked::Absent,
                Kind::Listed => {
                    seen.listed.insert(record.path.clone());
                    Asked::Listed
                }
                Kind::Link => Asked::Link,
                Kind::Read | Kind::Opened => Asked::File(record.pages.into_iter().collect()),
            };
            if let Some(known) = seen.uses.get_mut(&record.path) {
                known.asked.add(asked);
                continue;
            }
            bytes = bytes.saturating_add(record.path.len());
            if seen.uses.len() >= USES || bytes > BYTES {
                // What comes later would be dropped, and what is in use is more than can be kept.
                break;
            }
            let after = u32::try_from(record.after.as_millis()).unwrap_or(u32::MAX);
            seen.uses.insert(record.path.clone(), Use { after, seen: 1, asked });
            let mut path = record.path.as_slice();
            while let Some(dir) = plan::parent(path).filter(|dir| !seen.ways.contains(*dir)) {
                bytes = bytes.saturating_add(dir.len());
                seen.ways.insert(dir.to_vec());
                path = dir;
                if bytes > 2 * BYTES {
                    break;
                }
            }
        }
        seen
    }

    /// For how many runs in a row the member was idle, after it was for `before`.
    fn idle(&self, member: &StorePath, before: u8) -> u8 {
        match self.members.contains(member) {
            true => 0,
            false if self.tells_members => before.saturating_add(1),
            false => before,
        }
    }

    fn take(&mut self, path: &[u8]) -> Option<Use> {
        self.uses.remove(path)
    }

    /// Whether the directory of `path` was.
    fn is_listed(&self, path: &[u8]) -> bool {
        plan::parent(path).is_some_and(|dir| self.listed.contains(dir))
    }

    fn is_on_the_way(&self, path: &[u8]) -> bool {
        self.ways.contains(path)
    }

    /// Adds what was not known.
    fn add_to(self, profile: &mut Profile) {
        for (path, new) in self.uses {
            if let Some((member, below)) = taken_to_pieces(&path) {
                profile.members.entry(member).or_default().uses.insert(below.to_vec(), new);
            }
        }
    }
}

/// The member and what lies below it.
fn taken_to_pieces(path: &[u8]) -> Option<(StorePath, &[u8])> {
    let mut pieces = path.splitn(2, |byte| *byte == b'/');
    let member = pieces.next()?;
    let member = StorePath::new(std::str::from_utf8(member).ok()?).ok()?;
    Some((member, pieces.next().unwrap_or_default()))
}

#[cfg(test)]
#[path = "learn_tests.rs"]
mod tests;
