//! What the log is told of missed names: each once, and again after a while, and not too much of all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Asker, Unexamined};
use crate::values::StorePath;

/// Paths remembered as told: the one that nobody asked for for longest makes room.
const PATHS_MAX: usize = 512;
/// Paths told for the first time in one [`INTERVAL`]; more are counted.
const LINES_MAX: usize = 256;
/// Time from one line about a path to the next.
const INTERVAL: Duration = Duration::from_secs(600);

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A path was asked for, `count` times so far, and by `asker` first.
    Path { path: StorePath, asker: Asker, count: u64 },
    /// So much is not told.
    LeftOut { unnamed: u64, dropped: u64 },
}

impl Line {
    pub(super) fn write(&self) {
        match self {
            Self::Path { path, asker: Asker { pid, command }, count } => tracing::info!(
                path = path.as_str(),
                pid,
                command = command.as_deref(),
                count,
                "a store path was asked for that the host has and the view has not"
            ),
            Self::LeftOut { unnamed, dropped } => tracing::warn!(
                unnamed,
                dropped,
                "more was asked for than is reported: so often for further paths that the host has, and so often for \
                 names that were not looked into"
            ),
        }
    }
}

/// What was told, and when.
#[derive(Debug)]
pub(super) struct Told {
    paths: BTreeMap<StorePath, Known>,
    /// Questions so far, to find the path that nobody asked for for longest.
    clock: u64,
    /// Paths that may still be told for the first time before `refill`.
    lines_left: usize,
    refill: Instant,
    /// Questions for paths that could not be told since the last refill.
    unnamed: u64,
}

#[derive(Debug)]
struct Known {
    asker: Asker,
    count: u64,
    /// The count last told, and when that was.
    told: u64,
    told_at: Instant,
    /// When somebody last asked for it, by [`Told::clock`].
    asked: u64,
}

impl Known {
    /// When it is to be told again; never, if it was not asked for since.
    fn due(&self) -> Option<Instant> {
        (self.count > self.told).then(|| self.told_at + INTERVAL)
    }
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        let paths = BTreeMap::new();
        Self { paths, clock: 0, lines_left: LINES_MAX, refill: now + INTERVAL, unnamed: 0 }
    }

    /// When there will be something to tell without being asked anything.
    pub(super) fn due(&self, dropped: bool) -> Option<Instant> {
        let refill = (dropped || self.unnamed > 0).then_some(self.refill);
        self.paths.values().filter_map(Known::due).chain(refill).min()
    }

    /// What is to be told of one more question.
    pub(super) fn first(
        &mut self,
        is_missed: impl Fn(&StorePath) -> bool,
        now: Instant,
        path: StorePath,
        asker: Asker,
    ) -> Option<Line> {
        self.clock += 1;
        if let Some(known) = self.paths.get_mut(&path) {
            known.count += 1;
            known.asked = self.clock;
            return None;
        }
        if !is_missed(&path) {
            return None;
        }
        let Some(left) = self.lines_left.checked_sub(1) else {
            self.unnamed += 1;
            return None;
        };
        self.lines_left = left;
        if self.paths.len() >= PATHS_MAX {
            let oldest = self.paths.iter().min_by_key(|(_, known)| known.asked).map(|(path, _)| path.clone());
            oldest.and_then(|path| self.paths.remove(&path));
        }
        let known = Known { asker: asker.clone(), count: 1, told: 1, told_at: now, asked: self.clock };
        self.paths.insert(path.clone(), known);
        Some(Line::Path { path, asker, count: 1 })
    }

    /// What was asked for again, and is due.
    pub(super) fn again(
        &mut self,
        is_missed: impl Fn(&StorePath) -> bool,
        now: Instant,
        unexamined: &Unexamined,
    ) -> Vec<Line> {
        let mut lines = Vec::new();
        self.paths.retain(|path, known| {
            if known.due().is_none_or(|due| due > now) {
                return true;
            }
            // A reload may have brought it, or the collector taken it away.
            let missed = is_missed(path);
            if missed {
                (known.told, known.told_at) = (known.count, now);
                lines.push(Line::Path { path: path.clone(), asker: known.asker.clone(), count: known.count });
            }
            missed
        });
        if self.refill <= now {
            (self.lines_left, self.refill) = (LINES_MAX, now + INTERVAL);
            let (unnamed, dropped) = (std::mem::take(&mut self.unnamed), unexamined.take_untold());
            if unnamed + dropped > 0 {
                lines.push(Line::LeftOut { unnamed, dropped });
            }
        }
        lines
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
