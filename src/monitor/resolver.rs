//! The resolver: the one thread that owns the Nix store.
//!
//! Opening a store may put the thread into a mount namespace of its own ([`Store::open`]), and Nix's calls may
//! take long: so the store lives on a thread that does nothing else, and temporary roots last as long as it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::EventfdFlags;

use crate::closure::View;
use crate::resolve::{self, Resolution, ResolveError, RootLinks, Roots};
use crate::store::{Store, StorePath};

/// What the thread is asked.
#[derive(Debug)]
enum Question {
    Resolve,
    /// What was found in the last resolution is about to be served, and later ones as soon as they are answered.
    Hold(Sender<()>),
    /// Everything that was found in the last resolution is served; with `only`, nothing else is.
    Keep {
        only: bool,
    },
}

/// A resolution, and where the store's files are.
#[derive(Debug)]
pub(super) struct Answer {
    /// The closure and what it depends on.
    pub(super) resolution: Resolution,
    /// The physical store directory.
    pub(super) store: PathBuf,
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Task {
    /// The store's address; without one, the store that Nix's commands open.
    pub(super) uri: Option<String>,
    /// What is to be served.
    pub(super) roots: Roots,
    /// Served already by an earlier process: to be held as well.
    pub(super) held: View,
    /// Links that hold the roots beyond this process.
    pub(super) links: Option<RootLinks>,
}

/// The resolver thread.
#[derive(Debug)]
pub(super) struct Resolver {
    questions: Sender<Question>,
    answers: Receiver<Result<Answer, ResolveError>>,
    ready: OwnedFd,
}

impl Resolver {
    /// Starts the thread; it opens the store with the first question.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(task: Task) -> std::io::Result<Self> {
        let ready = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let signal = ready.try_clone()?;
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work(&task, &asked, &answer, &signal))?;
        Ok(Self { questions, answers, ready })
    }

    /// Asks for a resolution; the answer comes later.
    pub(super) fn ask(&self) {
        let _ = self.questions.send(Question::Resolve);
    }

    /// Returns when the last resolution is held beyond this process, if it is to be: so that a name which somebody
    /// has seen outlives a monitor that is killed in the next moment. From now on resolutions are answered held.
    pub(super) fn hold(&self) {
        let (held, is_held) = channel();
        let _ = self.questions.send(Question::Hold(held));
        let _ = is_held.recv();
    }

    /// Says that the last resolution is served now.
    pub(super) fn keep(&self, only: bool) {
        let _ = self.questions.send(Question::Keep { only });
    }

    /// Readable when there is an answer.
    #[must_use]
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// The answer, if there is one.
    pub(super) fn answer(&self) -> Option<Result<Answer, ResolveError>> {
        let answer = self.answers.try_recv().ok();
        if answer.is_some() {
            let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        }
        answer
    }
}

fn work(
    task: &Task,
    asked: &Receiver<Question>,
    answer: &Sender<Result<Answer, ResolveError>>,
    signal: &OwnedFd,
) {
    let mut store = None;
    let mut roots = Vec::new();
    let mut held = false;
    let link = |store: &Option<Store>, roots: &[StorePath], only| {
        if let (Some(store), Some(links)) = (store, &task.links)
            && let Err(error) = links.update(store, roots, only)
        {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "what is served is held only as long as this process lives");
        }
    };
    for question in asked {
        match question {
            Question::Resolve => {
                let found = resolve(task, &mut store);
                if let Ok(found) = &found {
                    found.resolution.closure.roots().clone_into(&mut roots);
                    if held {
                        link(&store, &roots, false);
                    }
                }
                if answer.send(found).is_err() {
                    break;
                }
                let _ = rustix::io::write(signal, &1u64.to_ne_bytes());
            }
            Question::Hold(done) => {
                link(&store, &roots, false);
                held = true;
                let _ = done.send(());
            }
            Question::Keep { only } => link(&store, &roots, only),
        }
    }
}

fn resolve(task: &Task, kept: &mut Option<Store>) -> Result<Answer, ResolveError> {
    let store = match kept {
        Some(store) => store,
        None => {
            let store = Store::open_given(task.uri.as_deref())?;
            resolve::hold(&store, &task.held)?;
            kept.insert(store)
        }
    };
    let resolution = resolve::resolve(store, &task.roots)?;
    Ok(Answer { resolution, store: store.real_dir().to_owned() })
}
