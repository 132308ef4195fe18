//! Which step is next: somewhere else than where users are. Pure.
//!
//! A user and a player who ask for the same names in the same order ask for each at the same time: neither has anything of the other, and each takes
//! the other's processor. So when a user asks for what the player has not done and is about to do, the player continues some steps ahead of that,
//! and the user finds them done when he gets there.
//!
//! Invariants:
//! - no step is done twice, and each is either done or left to a user who asked for it himself: for all of it, or for any bytes of a file, whose rest is
//!   his as well;
//! - what was jumped over is done when nothing is left ahead.
//!
//! Hard points:
//! 1. How far ahead: twice as far with each jump, so that even a user who is as fast as the player meets it a few times only. The first jump is short, since
//!    a user who is slow, as most are who do something with what they ask for, has to do by himself what lies between. And never behind more than
//!    half of what is left, as both are done with their halves at the same time then.
//! 2. A user who waits for a name because the player is about to have it is seen by nobody, as he does not ask himself. But he does for members' names and those that are
//!    marked, also when they are done. So whoever asks for one that was done just now is at the player's heels, and it jumps as well.
//! 3. The learner is told one number ([`Course::reach`]): a use of a step before that may have been answered by the kernel, and stays in the profile though nobody
//!    saw it. A gap that was left when the play was stopped counts as well: what users do there is in the trace, and what they do not do stays
//!    for a run more than it had to. To stop at the first gap would be worse: what was played behind it, and was used, would be
//!    forgotten, as the kernel answered for it.

use std::collections::HashMap;

use super::plan::{self, Plan, Step};
use crate::view::trace::records::{Kind, Record};

/// How far ahead of a user the first jump leads, in steps.
const LEAP: usize = 8;
/// A user who is so many steps behind waits for each of them.
const HEELS: usize = 4;

/// The order in which steps of one list are done.
#[derive(Debug)]
pub(super) struct Course {
    /// Those that are done, or left to a user.
    done: Vec<bool>,
    left: usize,
    /// Where it continues: with the first from here on that is not done, then from the beginning.
    front: usize,
    leap: usize,
    /// The last step at which a user was in the way since the last turn.
    user: Option<usize>,
    reach: usize,
}

impl Course {
    /// For a list of so many steps.
    pub(super) fn new(steps: usize) -> Self {
        Self { done: vec![false; steps], left: steps, front: 0, leap: LEAP, user: None, reach: 0 }
    }

    /// A user was at this step, and did all of it, or a part that nobody knows. Returns whether it is left to him.
    pub(super) fn asked(&mut self, at: usize, all: bool) -> bool {
        let Some(done) = self.done.get_mut(at) else { return false };
        let (was_done, is_ahead) = (*done, at >= self.front);
        if all && !was_done {
            *done = true;
            self.left -= 1;
        }
        if is_ahead && !was_done || !is_ahead && at + HEELS >= self.front {
            self.user = Some(at);
        }
        all && !was_done
    }

    /// Goes out of the way of a user. Returns where it continues, if that is elsewhere.
    pub(super) fn turn(&mut self) -> Option<usize> {
        let user = self.user.take()?;
        let ahead = self.done.get(user + 1..).unwrap_or_default();
        let left = ahead.iter().filter(|done| !**done).count();
        let mut open = ahead.iter().enumerate().filter(|(_, done)| !**done);
        let (jump, _) = open.nth(self.leap.min(left.div_ceil(2)))?;
        self.leap = self.leap.saturating_mul(2);
        self.front = user + 1 + jump;
        Some(self.front)
    }

    /// Whether every step is done, or left to a user.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The step that is to be done now.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        let open = |from: usize| {
            let rest = self.done.get(from..).unwrap_or_default();
            rest.iter().position(|done| !*done).map(|at| from + at)
        };
        let at = open(self.front).or_else(|| open(0))?;
        if let Some(done) = self.done.get_mut(at) {
            *done = true;
            self.left -= 1;
        }
        self.front = at + 1;
        self.reach = self.reach.max(self.front);
        Some(at)
    }

    /// Behind the last step that was done: before it there may be some that were left to users.
    pub(super) fn reach(&self) -> usize {
        if self.left == 0 { self.done.len() } else { self.reach }
    }
}

/// The steps of a plan, by what is asked for.
#[derive(Debug)]
pub(super) struct Steps<'a> {
    names: HashMap<&'a [u8], (usize, bool)>,
    bytes: HashMap<&'a [u8], usize>,
}

/// Both lists of a plan.
#[derive(Debug)]
pub(super) struct Courses {
    pub(super) names: Course,
    pub(super) bytes: Course,
}

impl<'a> Steps<'a> {
    /// Those of `plan`.
    pub(super) fn of(plan: &'a Plan) -> Self {
        let names = plan.names.iter().enumerate();
        let names = names.map(|(at, step)| (step.path(), (at, matches!(step, Step::List { .. }))));
        let bytes = plan.bytes.iter().enumerate().map(|(at, step)| (step.path(), at));
        Self { names: names.collect(), bytes: bytes.collect() }
    }

    /// Tells `courses` of what a user asked for. Returns the step for bytes that it leaves to him.
    pub(super) fn tell(&self, courses: &mut Courses, record: &Record) -> Option<usize> {
        match record.kind {
            Kind::Read | Kind::Opened => {
                let at = *self.bytes.get(&*record.path)?;
                return courses.bytes.asked(at, true).then_some(at);
            }
            Kind::Name | Kind::Absent | Kind::Link | Kind::Listed => {
                let own = self.names.get(&*record.path);
                let listing = || plan::parent(&record.path).and_then(|dir| self.names.get(dir));
                match own {
                    Some((at, lists)) if *lists == (record.kind == Kind::Listed) => {
                        courses.names.asked(*at, true);
                    }
                    // What is in a directory that is listed comes with that.
                    _ => {
                        if let Some((at, true)) = listing().or(own) {
                            courses.names.asked(*at, false);
                        }
                    }
                }
            }
        }
        None
    }
}

impl Courses {
    /// For `plan`.
    pub(super) fn new(plan: &Plan) -> Self {
        Self { names: Course::new(plan.names.len()), bytes: Course::new(plan.bytes.len()) }
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
