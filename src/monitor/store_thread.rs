//! The store thread: the one thread that owns the Nix store and all garbage collector roots, or reads the file that has the closure.
//!
//! Opening a store may put the thread into a mount namespace of its own ([`Store::open`]), and Nix's calls may
//! take long: so the store lives on a thread that does nothing else, and temporary roots last as long as it. Links of the
//! roots are followed in the same mount namespace, so this thread adds the watches for them as well.
//!
//! Invariants:
//! - What a resolution depended on is watched before it is answered, whether it succeeded or not. If the store cannot be
//!   opened, nothing is followed and the watches stay as they are.
//! - A resolution is answered when it is held: by temporary roots, and by links if links were asked for. What is from a file is
//!   held by nobody, and each member of it was there a moment ago; no store is opened then.
//! - Once the store is open it changes nothing but Nix's state and the links ([`sandbox::StoreThread`]). Before it needs more: a mount
//!   namespace, and to make a read-only store writable in it.
//! - Links are made and removed by this thread alone, unless it does not answer at the end.
//! - The end waits for this thread for a limited time: it may hang in a call of Nix. Then the ending thread forbids
//!   further links and removes the existing ones itself ([`StoreThread::end`]).

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::error::MonitorError;
use super::{opening, poll};
use crate::closure::profile::StoreDirs;
use crate::closure::resolve::{self, ResolveError, Roots};
use crate::closure::roots::{Ledger, RootLinks};
use crate::closure::source::{Located, SavedFile, Source};
use crate::sandbox::{self, Sandbox};
use crate::server::stops::{self, Stop};
use crate::store::{Place, Store};
use crate::sys;
use crate::values::{StorePath, View};

use super::watch::Arming;

/// How long the end waits for a thread that may hang in a call of Nix.
const END_GRACE: Duration = Duration::from_millis(1800);

/// What the thread is asked.
#[derive(Debug)]
enum Question {
    Resolve,
    /// The resolution of this number is served; with `only`, nothing older is.
    Settle {
        number: u64,
        only: bool,
    },
    /// The last question.
    End(Left, Sender<()>),
}

/// What is left at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// No view: no link of it may be left.
    Nothing,
    /// Whatever was served before this process: only what it added without serving it goes.
    Earlier,
}

/// What a resolution led to, and where the store's files are.
#[derive(Debug)]
pub(super) struct Answer {
    /// Later resolutions have greater numbers.
    pub(super) number: u64,
    /// The closure, as servers know it.
    pub(super) view: View,
    /// Its roots; each member, where it is not known which of them were.
    pub(super) roots: BTreeSet<StorePath>,
    /// The directory that store paths begin with.
    pub(super) store_dir: PathBuf,
    /// The physical store directory.
    pub(super) store: PathBuf,
    /// The same, opened here: the disk may not answer.
    pub(super) opened: Result<Arc<OwnedFd>, MonitorError>,
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Task {
    /// The store's address; without one, the store that Nix's commands open, or that of a saved closure.
    pub(super) uri: Option<String>,
    /// What is to be served.
    pub(super) source: Source,
    /// What is hidden of a store from those who use the view; none: nothing is to be.
    pub(super) hidden: Option<Place>,
    /// Served already by an earlier process: to be held as well.
    pub(super) held: View,
    /// Links that hold the roots beyond this process.
    pub(super) links: Option<RootLinks>,
    /// Those of an earlier process in other directories: to be removed when something newer is served.
    pub(super) former: Vec<RootLinks>,
    /// Watches what the roots depend on.
    pub(super) watch: Option<Arming>,
    /// Whether the thread gives up its rights.
    pub(super) sandbox: Sandbox,
}

/// A resolution that nobody has asked for yet.
#[derive(Debug, Clone, Copy)]
struct Begun;

/// The store thread, as the monitor has it.
#[derive(Debug)]
pub(super) struct StoreThread {
    questions: Sender<Question>,
    answers: Receiver<Result<Answer, MonitorError>>,
    ready: Arc<OwnedFd>,
    /// What the thread has begun with, until it is asked for.
    begun: Cell<Option<Begun>>,
    /// Of [`Task::links`].
    links: Option<Ledger>,
    /// Of [`Task::former`].
    former: Vec<Ledger>,
    /// What the thread may wait for, in words.
    awaited: &'static str,
}

impl StoreThread {
    /// Starts the thread; it opens the store with the first question.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(task: Task) -> std::io::Result<Self> {
        let ready = Arc::new(poll::event()?);
        let signal = ready.clone();
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        let links = task.links.as_ref().map(RootLinks::ledger);
        let former = task.former.iter().map(RootLinks::ledger).collect();
        let awaited = match &task.source {
            Source::Roots(_) => "the Nix store",
            Source::Saved(_) => "the file of --from, or the store directory,",
        };
        let worker = Worker { task, answerer: None, confined: false, inherited: false, number: 0 };
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.work(&asked, &answer, &signal))?;
        let _ = questions.send(Question::Resolve);
        let begun = Cell::new(Some(Begun));
        Ok(Self { questions, answers, ready, begun, links, former, awaited })
    }

    /// Asks for a resolution; the answer comes later. For the first one the thread does not wait to be asked.
    pub(super) fn ask(&self) {
        if self.begun.take().is_none() {
            let _ = self.questions.send(Question::Resolve);
        }
    }

    /// Says that the resolution of this number is served now; with `only`, that nothing older is.
    pub(super) fn settle(&self, number: u64, only: bool) {
        let _ = self.questions.send(Question::Settle { number, only });
    }

    /// Removes links as `left` says and ends the thread. If it does not answer, no further link is made, and the links
    /// are removed here; the log names a link that cannot be removed or that the hanging call may still create.
    pub(super) fn end(&self, left: Left) {
        let (done, is_done) = channel();
        if self.questions.send(Question::End(left, done)).is_ok() && is_done.recv_timeout(END_GRACE).is_ok() {
            return;
        }
        tracing::warn!("{} does not answer; ending without waiting for it", self.awaited);
        // None but `links` ever makes a link.
        let making = match left {
            Left::Nothing => {
                for former in &self.former {
                    former.release();
                }
                self.links.as_ref().and_then(Ledger::release)
            }
            Left::Earlier => self.links.as_ref().and_then(Ledger::abandon),
        };
        if let Some(link) = making {
            tracing::warn!(
                link = %link.display(),
                "a call of Nix in progress may still create this garbage collector root; if it exists, remove it by hand"
            );
        }
    }

    /// Readable when there is an answer.
    #[must_use]
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// The answer, if there is one.
    pub(super) fn answer(&self) -> Option<Result<Answer, MonitorError>> {
        let answer = self.answers.try_recv().ok();
        if answer.is_some() {
            poll::lower(&self.ready);
        }
        answer
    }
}

/// What the thread asks.
#[derive(Debug)]
enum Answerer {
    Store(Store, Roots),
    File(Place, SavedFile),
}

impl Answerer {
    fn open(task: &Task) -> Result<Self, ResolveError> {
        let uri = task.uri.as_deref();
        Ok(match &task.source {
            Source::Roots(roots) => Self::Store(Store::open_given(uri)?, roots.clone()),
            Source::Saved(file) => Self::File(Place::of(uri)?, file.clone()),
        })
    }
}

/// The thread's own.
#[derive(Debug)]
struct Worker {
    task: Task,
    answerer: Option<Answerer>,
    /// Whether the thread has given up its rights.
    confined: bool,
    /// Whether what an earlier process served has temporary roots.
    inherited: bool,
    /// Of the last resolution.
    number: u64,
}

impl Worker {
    fn work(
        mut self,
        asked: &Receiver<Question>,
        answer: &Sender<Result<Answer, MonitorError>>,
        signal: &OwnedFd,
    ) {
        // So that whoever cannot wait for this thread knows what is there. It is tried again with each question.
        for links in self.task.links.iter_mut().chain(&mut self.task.former) {
            let _ = links.examine();
        }
        for question in asked {
            match question {
                Question::Resolve => {
                    stops::at(Stop::Resolving);
                    if answer.send(self.resolve()).is_err() {
                        break;
                    }
                    poll::raise(signal);
                }
                Question::Settle { number, only } => {
                    self.task.links.iter_mut().for_each(|links| links.settle(number, only));
                    self.task.former.drain(..).for_each(|mut links| links.release());
                    // The loop has handed the closure on by now, as well: it is not needed again until the next question.
                    sys::give_memory_back();
                }
                Question::End(left, done) => {
                    let Task { links, former, .. } = &mut self.task;
                    match left {
                        Left::Nothing => links.iter_mut().chain(former).for_each(RootLinks::release),
                        Left::Earlier => links.iter_mut().for_each(RootLinks::abandon),
                    }
                    // Nix's exit handlers must not run beside a store that is being closed: closed before the
                    // answer, as the process ends after it.
                    drop(self.answerer.take());
                    let _ = done.send(());
                    break;
                }
            }
        }
    }

    fn resolve(&mut self) -> Result<Answer, MonitorError> {
        let Self { task, answerer: kept, confined, inherited, number } = self;
        let answerer = match kept {
            Some(answerer) => answerer,
            None => kept.insert(Answerer::open(task)?),
        };
        if !*confined {
            confine(task, answerer)?;
            *confined = true;
        }
        Ok(match answerer {
            Answerer::Store(store, roots) => {
                check_hidden(task, || store.address().to_owned(), |hidden| hidden.covers(&store.place()))?;
                Self::ask(task, store, roots, inherited, number)?
            }
            Answerer::File(place, file) => Self::read(task, place, file, number)?,
        })
    }

    fn read(
        task: &mut Task,
        place: &Place,
        file: &SavedFile,
        number: &mut u64,
    ) -> Result<Answer, MonitorError> {
        let read = || file.read(place, &file.trust(place));
        let found = match &mut task.watch {
            Some(watch) => watch.follow(read),
            None => read(),
        };
        let Located { saved, real_dir } = file.locate(&found.result?, place)?;
        let dir = saved.store_dir();
        let is_covered = |hidden: &Place| hidden.usual_dir() == dir && hidden.real_dir(dir) == real_dir;
        check_hidden(task, || format!("local?store={}", dir.display()), is_covered)?;
        saved.check_present(&real_dir).map_err(ResolveError::from)?;
        *number += 1;
        if *number == 1 {
            tracing::warn!(
                file = %file.path.display(),
                "nothing keeps the garbage collector away from a closure that is read from a file; make roots of it, or do not collect while it is served"
            );
        }
        Ok(Answer {
            number: *number,
            view: saved.view(),
            roots: saved.roots().into_iter().cloned().collect(),
            opened: opening::open(&real_dir),
            store_dir: saved.store_dir().to_owned(),
            store: real_dir,
        })
    }

    fn ask(
        task: &mut Task,
        store: &Store,
        roots: &Roots,
        inherited: &mut bool,
        number: &mut u64,
    ) -> Result<Answer, ResolveError> {
        // First, so that it is watched even if what comes next fails.
        let dirs = StoreDirs::of(store);
        let follow = || resolve::follow(roots, dirs);
        let found = match &mut task.watch {
            Some(watch) => watch.follow(follow),
            None => follow(),
        };
        if !*inherited {
            resolve::hold(store, &task.held)?;
            *inherited = true;
        }
        let make = |root: &StorePath, link: &Path| {
            let valid = store.is_valid(root)?;
            if valid {
                store.add_indirect_root(root, link)?;
            }
            Ok(valid)
        };
        if let Some(links) = &mut task.links {
            links.examine()?;
            links.complete(make)?;
        }
        let (roots, view) = resolve::view(store, found.result?)?;
        *number += 1;
        if let Some(links) = &mut task.links {
            links.announce(*number, &roots, make)?;
        }
        let (store_dir, store) = (store.dir().to_owned(), store.real_dir().to_owned());
        Ok(Answer {
            number: *number,
            view,
            roots: roots.into_iter().collect(),
            opened: opening::open(&store),
            store_dir,
            store,
        })
    }
}

/// A store is not served of which somebody who uses the view would see other parts: what is hidden was found by an address, and Nix
/// or a file may name another one.
fn check_hidden(
    task: &Task,
    address: impl Fn() -> String,
    covers: impl Fn(&Place) -> bool,
) -> Result<(), MonitorError> {
    match &task.hidden {
        Some(hidden) if !covers(hidden) => Err(MonitorError::NotHidden(address())),
        _ => Ok(()),
    }
}

/// Gives up what this thread needed to open a store.
fn confine(task: &mut Task, answerer: &Answerer) -> Result<(), MonitorError> {
    let Task { links, former, sandbox, .. } = task;
    let (trust, written) = match answerer {
        Answerer::Store(store, roots) => (resolve::trust(roots, StoreDirs::of(store)), store.written_dirs()),
        Answerer::File(place, file) => (file.trust(place), Vec::new()),
    };
    links.iter_mut().chain(&mut *former).for_each(|links| links.set_trust(trust.clone()));
    // What is not there cannot be allowed.
    links.iter_mut().try_for_each(RootLinks::prepare).map_err(ResolveError::from)?;
    let links: Vec<_> = links.iter().chain(&*former).map(|links| links.dir().to_owned()).collect();
    sandbox::StoreThread { written: &written, links: &links }.confine(*sandbox)?;
    Ok(())
}
