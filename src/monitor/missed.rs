//! Which store paths of the host were asked for in vain: told to the host's log, and to nobody else.
//!
//! A server tells what its view has not ([`crate::protocol::missed`]). One thread for each server looks up who asked, at once, as
//! it may be about to end; one thread asks the disk, later.
//!
//! Invariants:
//! - What is done before an answer, or soon after it, is the same for every name outside the closure. Whether the host has the
//!   name is asked of the disk after a random delay ([`DELAY_MAX`]), at idle priority: it shows neither in the time of the
//!   answer nor in that of the next ones.
//! - Its threads can only look: [`Looker`].
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
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::AtFlags;

use super::mount::command;
use crate::protocol::missed::{self, Question};
use crate::sandbox::{Looker, Missing, Sandbox};
use crate::sys;
use crate::values::{StorePath, View};

/// Names that wait to be looked into; more are dropped, and counted.
const QUEUE: usize = 1024;
/// Paths remembered as told: the one that nobody asked for for longest makes room.
const PATHS_MAX: usize = 512;
/// Paths told for the first time in one [`INTERVAL`]; more are counted.
const LINES_MAX: usize = 256;
/// Time from one line about a path to the next.
const INTERVAL: Duration = Duration::from_secs(600);
/// How long after a question the disk is asked, at most: many times as long as an answer takes.
const DELAY_MAX: Duration = Duration::from_millis(50);

/// What is served, and from where.
#[derive(Debug, Default)]
struct Subject {
    view: View,
    store: Option<Arc<OwnedFd>>,
}

impl Subject {
    /// Where `path` may be, if it is not in the view.
    fn elsewhere(&self, path: &StorePath) -> Option<Arc<OwnedFd>> {
        self.store.clone().filter(|_| !self.view.contains(path))
    }
}

/// Whether `path` is on the host and not in the view. The disk may take for ever to answer, and the monitor's loop does not wait
/// for it.
fn is_missed(subject: &Mutex<Subject>, path: &StorePath) -> bool {
    let store = subject.lock().elsewhere(path);
    store.is_some_and(|store| rustix::fs::statat(store, path.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// Listens to servers, one after the other, and tells the log.
#[derive(Debug)]
pub(super) struct Inquiry {
    subject: Arc<Mutex<Subject>>,
    queue: SyncSender<Asked>,
    dropped: Arc<AtomicU64>,
    /// Whether its threads give up their rights.
    sandbox: Sandbox,
}

/// Whether a thread must not begin.
fn is_refused(confined: Result<(), Missing>) -> bool {
    let error = confined.err();
    if let Some(error) = &error {
        tracing::error!(error = error as &dyn std::error::Error, "nothing is reported of what is asked for");
    }
    error.is_some()
}

/// A question, and when the disk is to be asked.
#[derive(Debug)]
struct Asked {
    path: StorePath,
    asker: Asker,
    at: Instant,
}

impl Inquiry {
    /// Begins to look into what servers tell.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub(super) fn start(sandbox: Sandbox) -> io::Result<Self> {
        let (queue, questions) = mpsc::sync_channel(QUEUE);
        let inquiry = Self { subject: Arc::default(), queue, dropped: Arc::default(), sandbox };
        let (subject, dropped) = (inquiry.subject.clone(), inquiry.dropped.clone());
        let work = move || {
            if is_refused(Looker::Store.confine(sandbox)) {
                return;
            }
            if let Err(error) = sys::run_when_idle() {
                tracing::debug!(%error, "what was asked for in vain is looked into at full priority");
            }
            look_into(&questions, &subject, &dropped);
        };
        thread::Builder::new().name("missed".to_owned()).spawn(work)?;
        Ok(inquiry)
    }

    /// What is shown from now on, of which store.
    pub(super) fn shows(&self, view: View, store: Arc<OwnedFd>) {
        *self.subject.lock() = Subject { view, store: Some(store) };
    }

    /// Listens to the server at the other end of `socket` until it ends.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub(super) fn listen(&self, socket: OwnedFd) -> io::Result<()> {
        let (queue, dropped, sandbox) = (self.queue.clone(), self.dropped.clone(), self.sandbox);
        let work = move || {
            if is_refused(Looker::Processes.confine(sandbox)) {
                return;
            }
            while let Ok(Some(Question { path, thread, dropped: before })) = missed::receive(&socket) {
                dropped.fetch_add(before.into(), Ordering::Relaxed);
                let asked = Asked { path, asker: Asker::of(thread), at: Instant::now() + delay() };
                if let Err(TrySendError::Full(_)) = queue.try_send(asked) {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        thread::Builder::new().name("asked".to_owned()).spawn(work)?;
        Ok(())
    }
}

/// A random time up to [`DELAY_MAX`]; all of it where there is nothing random.
fn delay() -> Duration {
    let mut byte = [u8::MAX];
    let _ = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::NONBLOCK);
    let [share] = byte;
    DELAY_MAX.saturating_mul(share.into()) / u32::from(u8::MAX)
}

/// Tells the log what was asked for, in the order of the questions, until no more can come.
fn look_into(questions: &Receiver<Asked>, subject: &Mutex<Subject>, dropped: &AtomicU64) {
    let is_missed = |path: &StorePath| is_missed(subject, path);
    let mut told = Told::new(Instant::now());
    loop {
        let question = match told.due(dropped.load(Ordering::Relaxed) > 0) {
            Some(at) => questions.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => questions.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        told.again(is_missed, Instant::now(), dropped).iter().for_each(Line::write);
        match question {
            Ok(Asked { path, asker, at }) => {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                told.first(is_missed, Instant::now(), path, asker).iter().for_each(Line::write);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
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
        Self { pid: Some(process), command: command(Path::new(&format!("/proc/{process}"))) }
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
    fn again(
        &mut self,
        is_missed: impl Fn(&StorePath) -> bool,
        now: Instant,
        dropped: &AtomicU64,
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
