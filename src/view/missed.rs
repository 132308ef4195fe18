//! Which store paths of the host were asked for in vain: told to the host's log, and to nobody else.
//!
//! Invariants:
//! - A request does the same for every name outside the closure: it leaves name and thread in a queue. Whether
//!   the host has the name is asked of the disk by a thread that answers no request.
//! - Memory and log are bounded, whatever is asked for: [`QUEUE`], [`PATHS_MAX`], [`LINES_MAX`].
//!
//! Hard points:
//! 1. The kernel remembers that a name is absent, so what is counted is what reached the server, and not what
//!    programs did.
//! 2. The kernel gives the id of a thread as the process namespace knows it that the view was mounted in, and 0
//!    if it has none there. The log names the process.
//! 3. Whoever asked gets its answer at once, and may have ended before it is looked at: then an id is all there
//!    is. What it calls itself is its own choice, so the log gets it as a quoted value.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use super::ServedView;
use crate::values::StorePath;
use crate::view::backing::Place;
use crate::view::trie::ROOT;

/// Names that wait to be looked into; more are dropped, and counted.
const QUEUE: usize = 1024;
/// Paths remembered as told: the one that nobody asked for for longest makes room.
const PATHS_MAX: usize = 512;
/// Paths told for the first time in one [`INTERVAL`]; more are counted.
const LINES_MAX: usize = 256;
/// Time from one line about a path to the next.
const INTERVAL: Duration = Duration::from_secs(600);

/// Where requests leave the names that they did not find.
#[derive(Debug)]
pub struct Missed {
    queue: SyncSender<Question>,
    dropped: Arc<AtomicU64>,
}

/// What looks into them.
#[derive(Debug)]
pub struct Inquiry {
    queue: Receiver<Question>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Question {
    path: StorePath,
    thread: u32,
}

impl Missed {
    /// Both ends of a queue.
    #[must_use]
    pub fn queue() -> (Self, Inquiry) {
        let (into, from) = mpsc::sync_channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        (Self { queue: into, dropped: dropped.clone() }, Inquiry { queue: from, dropped })
    }

    /// `thread` asked for `name` in the root, and there is no such name. Never waits.
    pub fn note(&self, name: &[u8], thread: u32) {
        let Some(path) = str::from_utf8(name).ok().and_then(|name| StorePath::new(name).ok()) else { return };
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Question { path, thread }) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Inquiry {
    /// Tells the log what `view` was asked for and does not have, and its backing store has, until no request
    /// can come any more.
    pub fn run(self, view: &ServedView) {
        let mut told = Told::new(Instant::now());
        loop {
            let question = match told.due(self.dropped.load(Ordering::Relaxed) > 0) {
                Some(at) => self.queue.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            told.again(view, now, &self.dropped).iter().for_each(Line::write);
            match question {
                Ok(question) => told.first(view, now, question).iter().for_each(Line::write),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }
}

/// Whether `path` is on the host and not in the view.
fn is_missed(view: &ServedView, path: &StorePath) -> bool {
    let name = path.as_str().as_bytes();
    let place = Place { parent: ROOT, dir: b"", name };
    view.trie().members().find(name).is_none() && view.backing().stat(place).is_ok()
}

/// Who asked, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asker {
    pid: Option<u32>,
    command: Option<String>,
}

impl Asker {
    fn of(thread: u32) -> Self {
        if thread == 0 {
            return Self::default();
        }
        let process = process_of(thread).unwrap_or(thread);
        let command = fs::read(format!("/proc/{process}/comm")).ok().map(|text| {
            let name = text.strip_suffix(b"\n").unwrap_or(&text);
            String::from_utf8_lossy(name).into_owned()
        });
        Self { pid: Some(process), command }
    }
}

fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{thread}/status")).ok()?;
    let process = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Tgid:"))?;
    str::from_utf8(process).ok()?.trim().parse().ok()
}

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// A path was asked for, `count` times so far, and by `asker` first.
    Path { path: StorePath, asker: Asker, count: u64 },
    /// So much is not told.
    LeftOut { unnamed: u64, dropped: u64 },
}

impl Line {
    fn write(&self) {
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
struct Told {
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
    fn new(now: Instant) -> Self {
        let paths = BTreeMap::new();
        Self { paths, clock: 0, lines_left: LINES_MAX, refill: now + INTERVAL, unnamed: 0 }
    }

    /// When there will be something to tell without being asked anything.
    fn due(&self, dropped: bool) -> Option<Instant> {
        let refill = (dropped || self.unnamed > 0).then_some(self.refill);
        self.paths.values().filter_map(Known::due).chain(refill).min()
    }

    /// What is to be told of one more question.
    fn first(
        &mut self,
        view: &ServedView,
        now: Instant,
        Question { path, thread }: Question,
    ) -> Option<Line> {
        self.clock += 1;
        if let Some(known) = self.paths.get_mut(&path) {
            known.count += 1;
            known.asked = self.clock;
            return None;
        }
        // Before the disk is asked, as it may be about to end.
        let asker = Asker::of(thread);
        if !is_missed(view, &path) {
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
    fn again(&mut self, view: &ServedView, now: Instant, dropped: &AtomicU64) -> Vec<Line> {
        let mut lines = Vec::new();
        self.paths.retain(|path, known| {
            if known.due().is_none_or(|due| due > now) {
                return true;
            }
            // A reload may have brought it, or the collector taken it away.
            let missed = is_missed(view, path);
            if missed {
                (known.told, known.told_at) = (known.count, now);
                lines.push(Line::Path { path: path.clone(), asker: known.asker.clone(), count: known.count });
            }
            missed
        });
        if self.refill <= now {
            (self.lines_left, self.refill) = (LINES_MAX, now + INTERVAL);
            let (unnamed, dropped) = (std::mem::take(&mut self.unnamed), dropped.swap(0, Ordering::Relaxed));
            if unnamed + dropped > 0 {
                lines.push(Line::LeftOut { unnamed, dropped });
            }
        }
        lines
    }
}

#[cfg(test)]
#[path = "missed_tests.rs"]
mod tests;
