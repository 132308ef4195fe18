//! When to play and when to learn: facts in, wishes out, time as a value. No descriptor, no process.
//!
//! Invariants, each held by a property test:
//! - One thing is done at a time. The end comes before learning, learning before playing.
//! - Each mount is played once, when its first server serves it. What is played ends with that server, and at a switch to other
//!   members.
//! - Learnt is within a minute of the first use, nine minutes later, at each switch between, and at the end; then nothing more is
//!   recorded.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often it is looked whether there was a first use, from which it is learnt then, and how much later for the last time.
const EARLY: Duration = Duration::from_secs(60);
const LATE: Duration = Duration::from_secs(540);

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Whether anything is to be played.
    pub(super) plays: bool,
    /// Whether there is a trace and a place for a profile.
    pub(super) learns: bool,
}

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Learn,
    Play,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Begin.
    Begin(Work),
    /// Kill who plays. Its end comes as [`Schedule::ended`].
    StopPlay,
    /// Record nothing more.
    Close,
}

/// How much has been recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recording {
    /// Nobody has served yet, or nothing is recorded.
    Nothing,
    /// Nothing was used when it was last looked at.
    Waiting,
    /// It was learnt once on time.
    Begun,
    /// It is learnt for the last time, or was.
    Over,
}

/// See above.
#[derive(Debug)]
pub(super) struct Schedule {
    able: Abilities,
    recording: Recording,
    /// When it is looked again whether something was used, or learnt.
    due: Option<Instant>,
    running: Option<Work>,
    /// Whether who plays is to end.
    stopped: bool,
    next: BTreeSet<Work>,
}

impl Schedule {
    pub(super) fn new(able: Abilities) -> Self {
        Self {
            able,
            recording: Recording::Nothing,
            due: None,
            running: None,
            stopped: false,
            next: BTreeSet::new(),
        }
    }

    /// When [`Self::time`] is to come.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The first server of the mount serves.
    pub(super) fn served(&mut self, now: Instant) -> Vec<Wish> {
        if self.able.learns && self.recording == Recording::Nothing {
            self.recording = Recording::Waiting;
            self.due = Some(now + EARLY);
        }
        if self.able.plays {
            self.able.plays = false;
            self.next.insert(Work::Play);
        }
        self.go()
    }

    /// A server has ended.
    pub(super) fn server_ended(&mut self) -> Vec<Wish> {
        self.give_up_play()
    }

    /// Whether who is to play is still wanted: the server and what it shows are those of the beginning.
    pub(super) fn plays(&self) -> bool {
        self.running == Some(Work::Play) && !self.stopped
    }

    /// A reload is over. `others`: other members are shown than when the mount was served first; `used`: something was recorded.
    pub(super) fn switched(&mut self, others: bool, used: bool) -> Vec<Wish> {
        let mut wishes = if others { self.give_up_play() } else { Vec::new() };
        if used && matches!(self.recording, Recording::Waiting | Recording::Begun) {
            self.next.insert(Work::Learn);
        }
        wishes.extend(self.go());
        wishes
    }

    /// The time has come; `used`: something was recorded.
    pub(super) fn time(&mut self, now: Instant, used: bool) -> Vec<Wish> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let (recording, due) = match self.recording {
            Recording::Waiting if !used => (Recording::Waiting, Some(now + EARLY)),
            Recording::Waiting => (Recording::Begun, Some(now + LATE)),
            Recording::Begun => (Recording::Over, None),
            Recording::Nothing | Recording::Over => (self.recording, None),
        };
        if recording != self.recording {
            self.next.insert(Work::Learn);
        }
        (self.recording, self.due) = (recording, due);
        self.go()
    }

    /// What was begun has ended.
    pub(super) fn ended(&mut self) -> Vec<Wish> {
        let learnt = self.running.take() == Some(Work::Learn);
        let over = self.recording == Recording::Over && !self.next.contains(&Work::Learn);
        let mut wishes = Vec::new();
        if learnt && over {
            wishes.push(Wish::Close);
        }
        wishes.extend(self.go());
        wishes
    }

    /// The view ends. Whether it is to be learnt from now; what runs is to be killed first.
    pub(super) fn end(&mut self, used: bool) -> bool {
        let learns = match self.recording {
            Recording::Waiting | Recording::Begun => used,
            // It was about to be.
            Recording::Over => self.running == Some(Work::Learn) || self.next.contains(&Work::Learn),
            Recording::Nothing => false,
        };
        *self = Self::new(Abilities { plays: false, learns: false });
        learns
    }

    fn give_up_play(&mut self) -> Vec<Wish> {
        self.next.remove(&Work::Play);
        self.stopped = self.running == Some(Work::Play);
        if self.stopped { vec![Wish::StopPlay] } else { Vec::new() }
    }

    fn go(&mut self) -> Vec<Wish> {
        if self.running.is_none() {
            self.running = self.next.pop_first();
            return self.running.map(Wish::Begin).into_iter().collect();
        }
        Vec::new()
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
