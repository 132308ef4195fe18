//! Which store paths of the host were asked for in vain: told to the host's log ([`log`]), and to whoever may ask the monitor
//! ([`record`]). Nobody else learns it.
//!
//! A server tells what its view has not ([`crate::protocol::missed`]). One thread for each server looks up who asked, at once, as
//! it may be about to end; one thread asks the disk, later; one keeps the record.
//!
//! Invariants:
//! - What is done before an answer, or soon after it, is the same for every name outside the closure. Whether the host has the
//!   name is asked of the disk after a random delay ([`DELAY_MAX`]), at idle priority: it shows neither in the time of the
//!   answer nor in that of the next ones.
//! - Its threads can only look: [`Looker`].
//! - Memory and log are bounded, whatever is asked for: [`QUEUE`], [`log`], [`record`].
//! - A lock is never held while a disk or a process is looked at.
//!
//! Hard points:
//! 1. The kernel remembers that a name is absent, so what is counted is what reached the server, and not what
//!    programs did.
//! 2. The kernel gives the id of a thread as the process namespace knows it that the view was mounted in, and 0
//!    if it has none there. The log names the process.
//! 3. Whoever asked gets its answer at once, and may have ended before it is looked at: then an id is all there
//!    is. What it calls itself is its own choice, so the log gets it as a quoted value.
//! 4. A thread at idle priority may not run for seconds. So it locks nothing that the monitor's loop locks, but for the time that a
//!    reference is copied, and another thread keeps the record. That one runs at full priority: it is told of every question, missed or
//!    not, and looks the name up, so that no name wakes it that others would not.

mod log;
mod record;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::AtFlags;

use super::mount::command;
use crate::protocol::control::report::{LeftOut, Missed};
use crate::protocol::control::status;
use crate::protocol::missed::{self, Question};
use crate::sandbox::{Looker, Missing, Sandbox};
use crate::sys;
use crate::values::{StorePath, View};
use log::{Line, Told};
use record::Record;

/// Names that wait to be looked into; more are dropped, and counted.
const QUEUE: usize = 1024;
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
    fn elsewhere(&self, path: &StorePath) -> Option<&OwnedFd> {
        self.store.as_deref().filter(|_| !self.view.contains(path))
    }
}

/// Whether `path` is on the host and not in the view. The disk may take for ever to answer, and the monitor's loop does not wait
/// for it.
fn is_missed(subject: &Mutex<Arc<Subject>>, path: &StorePath) -> bool {
    let subject = subject.lock().clone();
    subject
        .elsewhere(path)
        .is_some_and(|store| rustix::fs::statat(store, path.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// Questions that are not looked into, as there was no room for them.
#[derive(Debug, Default)]
struct Unexamined {
    all: AtomicU64,
    /// Those that the log was not told of.
    untold: AtomicU64,
}

impl Unexamined {
    fn add(&self, questions: u64) {
        self.all.fetch_add(questions, Ordering::Relaxed);
        self.untold.fetch_add(questions, Ordering::Relaxed);
    }

    fn is_told(&self) -> bool {
        self.untold.load(Ordering::Relaxed) == 0
    }

    fn take_untold(&self) -> u64 {
        self.untold.swap(0, Ordering::Relaxed)
    }
}

/// Listens to servers, one after the other, tells the log, and keeps the record.
#[derive(Debug)]
pub(super) struct Inquiry {
    subject: Arc<Mutex<Arc<Subject>>>,
    queue: SyncSender<Asked>,
    unexamined: Arc<Unexamined>,
    record: Arc<Mutex<Record>>,
    since: SystemTime,
    /// What servers had counted when this began ([`crate::view::usage::Usage::absent`]).
    before: OnceLock<u64>,
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
    asked: SystemTime,
    at: Instant,
}

/// A question that was looked into.
#[derive(Debug)]
struct Verdict {
    path: StorePath,
    asker: Asker,
    asked: SystemTime,
    /// Whether the host had it then, and the view had not.
    missed: bool,
}

impl Inquiry {
    /// Begins to look into what servers tell.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub(super) fn start(sandbox: Sandbox) -> io::Result<Self> {
        let (queue, questions) = mpsc::sync_channel(QUEUE);
        let inquiry = Self {
            subject: Arc::default(),
            queue,
            unexamined: Arc::default(),
            record: Arc::default(),
            since: SystemTime::now(),
            before: OnceLock::new(),
            sandbox,
        };
        let (subject, unexamined, record) =
            (inquiry.subject.clone(), inquiry.unexamined.clone(), inquiry.record.clone());
        let (verdicts, found) = mpsc::sync_channel::<Verdict>(QUEUE);
        let keep = move || found.into_iter().for_each(|verdict| record.lock().note(&verdict));
        thread::Builder::new().name("record".to_owned()).spawn(keep)?;
        let work = move || {
            if is_refused(Looker::Store.confine(sandbox)) {
                return;
            }
            if let Err(error) = sys::run_when_idle() {
                tracing::debug!(%error, "what was asked for in vain is looked into at full priority");
            }
            look_into(&questions, &subject, &unexamined, &verdicts);
        };
        thread::Builder::new().name("missed".to_owned()).spawn(work)?;
        Ok(inquiry)
    }

    /// What is shown from now on, of which store.
    pub(super) fn shows(&self, view: View, store: Arc<OwnedFd>) {
        let subject = Arc::new(Subject { view, store: Some(store) });
        // The former one is dropped without the lock.
        let _former = std::mem::replace(&mut *self.subject.lock(), subject);
    }

    /// What was missed so far, with whether a name is `served` now; none if the record is not to be had within `patience`. Servers
    /// have counted `asked` questions, if that is known.
    pub(super) fn missed(
        &self,
        served: impl Fn(&StorePath) -> bool,
        asked: Option<u64>,
        patience: Duration,
    ) -> Option<Missed> {
        let record = self.record.try_lock_for(patience)?;
        let not_examined = self.unexamined.all.load(Ordering::Relaxed);
        let left_out = LeftOut { not_examined, ..record.left_out() };
        let since_then = asked.and_then(|asked| Some(asked.saturating_sub(*self.before.get()?)));
        let known = record.looked_into().saturating_add(not_examined);
        let pending = since_then.map_or(0, |asked| asked.saturating_sub(known));
        Some(Missed { since: self.since.into(), names: record.names(served), left_out, pending })
    }

    /// The same in numbers.
    pub(super) fn counts(&self, patience: Duration) -> Option<status::Missed> {
        let (names, questions) = self.record.try_lock_for(patience)?.counts();
        let not_examined = self.unexamined.all.load(Ordering::Relaxed);
        Some(status::Missed { names, questions, not_examined })
    }

    /// Listens to the server at the other end of `socket` until it ends. Servers before it have counted `asked` questions.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub(super) fn listen(&self, socket: OwnedFd, asked: Option<u64>) -> io::Result<()> {
        if let Some(asked) = asked {
            self.before.get_or_init(|| asked);
        }
        let (queue, unexamined, sandbox) = (self.queue.clone(), self.unexamined.clone(), self.sandbox);
        let work = move || {
            if is_refused(Looker::Processes.confine(sandbox)) {
                return;
            }
            while let Ok(Some(Question { path, thread, dropped: before })) = missed::receive(&socket) {
                unexamined.add(before.into());
                let (asked, at) = (SystemTime::now(), Instant::now() + delay());
                let asked = Asked { path, asker: Asker::of(thread), asked, at };
                if let Err(TrySendError::Full(_)) = queue.try_send(asked) {
                    unexamined.add(1);
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

/// Tells the log what was asked for, in the order of the questions, until no more can come; and for each question, whether it
/// was for something missed.
fn look_into(
    questions: &Receiver<Asked>,
    subject: &Mutex<Arc<Subject>>,
    unexamined: &Unexamined,
    verdicts: &SyncSender<Verdict>,
) {
    let mut told = Told::new(Instant::now());
    loop {
        let question = match told.due(!unexamined.is_told()) {
            Some(at) => questions.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => questions.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let is_missed = |path: &StorePath| is_missed(subject, path);
        told.again(is_missed, Instant::now(), unexamined).iter().for_each(Line::write);
        match question {
            Ok(Asked { path, asker, asked, at }) => {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                let missed = is_missed(&path);
                let verdict = Verdict { path: path.clone(), asker: asker.clone(), asked, missed };
                let _ = verdicts.send(verdict);
                told.first(|_| missed, Instant::now(), path, asker).iter().for_each(Line::write);
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
