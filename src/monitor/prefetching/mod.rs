//! What is learnt of the view's use and asked for ahead, as the monitor has it: when ([`schedule`]), where it is kept ([`profiles`]), and
//! who does it ([`worker`]).
//!
//! Invariants:
//! - Only a mount of this monitor's own is learnt from and played: of one that was taken over the beginning is not known, and one that
//!   others have mounted cannot be looked into.
//! - Nothing here is waited for but at the end ([`Prefetching::finish`]), and nothing else fails because of it.
//! - The monitor reads neither trace nor profile.
//!
//! Hard point: who plays may ask until it has ended, which may be long after it was killed. So its thread stays known in the trace until it has been
//! reaped, and nothing else is begun before.

mod looking;
mod profiles;
mod schedule;
mod worker;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::child::Program;
use super::settings;
use crate::error;
use crate::log::{LogSettings, Sink};
use crate::protocol::control::status;
use crate::protocol::task::{
    Common, Done, Given, Known, Learn, Learnt, Play, Played, Prefetch, Stopped, Task, Told,
};
use crate::sandbox::Sandbox;
use crate::values::View;
use crate::view::trace;
use looking::Looking;
use profiles::{Profiles, ProfilesError};
use schedule::{Abilities, Schedule, Wish, Work};
use worker::{End, Worker};

/// How long the end of who plays is waited for before the view is unmounted, which it has in use.
const KILL_GRACE: Duration = Duration::from_millis(50);
/// How long the last learning may take, while the view ends.
const LEARN_GRACE: Duration = Duration::from_millis(500);

/// What a process is started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct With<'a> {
    pub(super) program: &'a Program,
    pub(super) sandbox: Sandbox,
    pub(super) log: LogSettings,
    /// What is shown now.
    pub(super) view: &'a View,
    /// The store directory.
    pub(super) store: &'a OwnedFd,
    /// Where the view is mounted, and the number of its connection.
    pub(super) at: Option<(&'a Path, u64)>,
    /// Whether bytes are read through the view.
    pub(super) bytes: bool,
}

/// What is under way.
#[derive(Debug)]
enum Running {
    /// The view is being opened for who is to play.
    Looking(Looking),
    /// A process.
    Task(Work, Worker),
}

/// What was asked of the view ahead of its users.
#[derive(Debug)]
enum Asked {
    Nothing,
    /// Something, and nobody has told how far it came.
    Untold,
    /// As told.
    Played(Played),
}

/// See above.
#[derive(Debug)]
pub(super) struct Prefetching {
    prefetch: Prefetch,
    /// None: there is no place for a profile.
    profiles: Option<Profiles>,
    /// What servers record. None: nothing is.
    trace: Option<OwnedFd>,
    /// The profile as it was when the view was mounted: it is played, and learnt from each time.
    last: Option<OwnedFd>,
    schedule: Schedule,
    running: Option<Running>,
    asked: Asked,
    /// What the view showed when its first server served it.
    view: Option<View>,
    /// When the last learning is no longer waited for.
    until: Option<Instant>,
    learnt: Option<Learnt>,
    failed: Option<String>,
}

impl Asked {
    fn played(&self) -> Option<&Played> {
        match self {
            Self::Played(played) => Some(played),
            Self::Nothing | Self::Untold => None,
        }
    }

    /// How much of the plan may be ready.
    fn done(&self) -> Done {
        match self {
            Self::Nothing => Done::default(),
            // Killed, perhaps at its end.
            Self::Untold => Done { names: usize::MAX, bytes: usize::MAX },
            Self::Played(played) => played.done,
        }
    }
}

impl Prefetching {
    /// With profiles in `dir`, for the view `name`.
    pub(super) fn new(prefetch: Prefetch, place: Option<&settings::Profiles>, name: &str) -> Self {
        const LOST: &str = "what is used of the view is not remembered for its next start";
        let profiles = match place.filter(|_| prefetch != Prefetch::Off) {
            Some(settings::Profiles::Asked(dir)) => Profiles::open(dir, name)
                .inspect_err(|error| tracing::warn!(error = error as &dyn std::error::Error, "{LOST}")),
            Some(settings::Profiles::Default(dir)) => Profiles::open(dir, name)
                .inspect_err(|error| tracing::debug!(error = error as &dyn std::error::Error, "{LOST}")),
            None => Err(ProfilesError::Nowhere),
        };
        let failed = match &profiles {
            Ok(_) | Err(ProfilesError::Nowhere) => None,
            Err(error) => Some(format!("{LOST}: {}", error::chain(error))),
        };
        Self {
            prefetch,
            profiles: profiles.ok(),
            trace: None,
            last: None,
            schedule: Schedule::new(Abilities { plays: false, learns: false }),
            running: None,
            asked: Asked::Nothing,
            view: None,
            until: None,
            learnt: None,
            failed,
        }
    }

    /// A new mount of this monitor's own.
    pub(super) fn mounted(&mut self) {
        if self.prefetch == Prefetch::Off {
            return;
        }
        let create = || trace::create().inspect_err(|error| tracing::debug!(%error, "nothing is learnt"));
        self.trace = create().ok();
        self.last = self.profiles.as_ref().and_then(|profiles| {
            profiles
                .last()
                .inspect_err(
                    |error| tracing::warn!(%error, path = %profiles.path().display(), "the profile of use cannot be read, and is replaced if it can be"),
                )
                .ok()
                .flatten()
        });
        let plays = match self.prefetch {
            // What is played at the first start would hide what is used.
            Prefetch::Auto => self.last.is_some() || self.profiles.is_none(),
            Prefetch::Names | Prefetch::All => true,
            Prefetch::Off => false,
        };
        let traced = self.trace.is_some();
        self.schedule =
            Schedule::new(Abilities { plays: plays && traced, learns: traced && self.profiles.is_some() });
    }

    /// The memory that servers record in.
    pub(super) fn trace(&self) -> Option<&OwnedFd> {
        self.trace.as_ref()
    }

    /// Readable when what was begun has ended.
    pub(super) fn end(&self) -> Option<BorrowedFd<'_>> {
        Some(match self.running.as_ref()? {
            Running::Looking(looking) => looking.ready(),
            Running::Task(_, worker) => worker.end(),
        })
    }

    /// When [`Self::time`] is to come.
    pub(super) fn due(&self) -> Option<Instant> {
        self.schedule.due()
    }

    /// The first server of the view serves.
    pub(super) fn served(&mut self, now: Instant, with: With<'_>) {
        if self.trace.is_some() && self.view.is_none() {
            self.view = Some(with.view.clone());
            let wishes = self.schedule.served(now);
            self.fulfil(wishes, with);
        }
    }

    /// A server has ended.
    pub(super) fn server_ended(&mut self) {
        let wishes = self.schedule.server_ended();
        self.stop(&wishes);
    }

    /// Other members may be shown.
    pub(super) fn switched(&mut self, with: With<'_>) {
        let (used, others) = (self.is_used(), self.view.as_ref() != Some(with.view));
        let wishes = self.schedule.switched(others, used);
        self.fulfil(wishes, with);
    }

    /// It is time to look.
    pub(super) fn time(&mut self, now: Instant, with: With<'_>) {
        let used = self.is_used();
        let wishes = self.schedule.time(now, used);
        self.fulfil(wishes, with);
    }

    /// What was begun has ended, and nothing can follow.
    pub(super) fn over(&mut self) {
        self.running = None;
    }

    /// What was begun has ended.
    pub(super) fn ended(&mut self, with: With<'_>) {
        if self.take_end(Some(with)) {
            let wishes = self.schedule.ended();
            self.fulfil(wishes, with);
        }
    }

    /// Kills who plays, as the view ends, and begins to learn for the last time. [`Self::finish`] waits for it.
    pub(super) fn begin_end(&mut self, with: Option<With<'_>>) {
        let used = self.is_used();
        let learns = self.schedule.end(used);
        if let Some(Running::Task(work, mut worker)) = self.running.take() {
            worker.kill();
            let ended = worker.ends_before(Instant::now() + KILL_GRACE);
            worker.reap_later();
            if work == Work::Play && !ended {
                tracing::debug!(
                    "who asks ahead of the view's users waits for an answer, and ends with the view"
                );
            }
        }
        if let Some(with) = with.filter(|_| learns) {
            self.until = Some(Instant::now() + LEARN_GRACE);
            self.begin(Work::Learn, with);
        }
    }

    /// Waits for the last learning.
    pub(super) fn finish(&mut self) {
        if let (Some(Running::Task(_, worker)), Some(until)) = (&mut self.running, self.until) {
            if worker.ends_before(until) {
                self.take_end(None);
            } else {
                tracing::warn!("what was used since the last time is not remembered, as that took too long");
            }
        }
        if let Some(Running::Task(_, worker)) = self.running.take() {
            worker.reap_later();
            self.profiles.iter().for_each(Profiles::drop_next);
        }
    }

    /// What it has done, for people.
    pub(super) fn status(&self) -> Option<status::Prefetch> {
        (self.prefetch != Prefetch::Off).then(|| status::Prefetch {
            mode: self.prefetch,
            playing: matches!(self.running, Some(Running::Looking(_) | Running::Task(Work::Play, _))),
            remembers: self.profiles.is_some() && self.trace.is_some(),
            played: self.asked.played().cloned(),
            learnt: self.learnt,
            failed: self.failed.clone(),
        })
    }

    fn is_used(&self) -> bool {
        self.trace.as_ref().is_some_and(trace::has_begun)
    }

    fn stop(&mut self, wishes: &[Wish]) {
        if wishes.contains(&Wish::StopPlay)
            && let Some(Running::Task(Work::Play, worker)) = &mut self.running
        {
            worker.kill();
        }
    }

    fn fulfil(&mut self, wishes: Vec<Wish>, with: With<'_>) {
        self.stop(&wishes);
        let mut wishes = wishes;
        while let Some(wish) = wishes.pop() {
            match wish {
                Wish::StopPlay => {}
                Wish::Begin(work) => {
                    self.begin(work, with);
                    if self.running.is_none() {
                        wishes.extend(self.schedule.ended());
                    }
                }
                Wish::Close => {
                    if let Some(trace) = &self.trace
                        && let Err(error) = trace::close(trace)
                    {
                        tracing::debug!(%error, "the memory of what was recorded is kept");
                    }
                }
            }
        }
    }

    fn begin(&mut self, work: Work, with: With<'_>) {
        let looks = work == Work::Play && rustix::process::geteuid().is_root();
        match with.at.filter(|_| looks) {
            Some((at, _)) => match Looking::start(at.to_owned()) {
                Ok(looking) => self.running = Some(Running::Looking(looking)),
                Err(error) => self.not_asked(error.to_string()),
            },
            None => self.begin_task(work, with, None),
        }
    }

    fn begin_task(&mut self, work: Work, with: With<'_>, view: Option<&OwnedFd>) {
        match self.start(work, with, view) {
            Ok(worker) => {
                if work == Work::Play {
                    self.asked = Asked::Untold;
                }
                self.running = Some(Running::Task(work, worker));
            }
            Err(error) if work == Work::Play => self.not_asked(error.to_string()),
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn start(&self, work: Work, with: With<'_>, view: Option<&OwnedFd>) -> std::io::Result<Worker> {
        let trace = self.trace.as_ref();
        let next = match (work, &self.profiles) {
            (Work::Learn, Some(profiles)) => Some(profiles.begin_next()?),
            _ => None,
        };
        let all = [
            (Given::View, view.map(AsFd::as_fd)),
            (Given::Store, (work == Work::Play).then(|| with.store.as_fd())),
            (Given::Profiles, self.profiles.as_ref().filter(|_| work == Work::Play).map(Profiles::dir)),
            (Given::Profile, self.last.as_ref().map(AsFd::as_fd)),
            (Given::Trace, trace.map(AsFd::as_fd)),
            (Given::Next, next.as_ref().map(AsFd::as_fd)),
        ];
        let (given, descriptors): (Vec<_>, Vec<_>) =
            all.into_iter().filter_map(|(kind, given)| Some((kind, given?))).unzip();
        let common = Common {
            given,
            view: self.view.clone().unwrap_or_default(),
            prefetch: self.prefetch,
            monitor: std::process::id(),
            sandbox: with.sandbox,
            log: with.log,
        };
        let task = match (work, with.at) {
            (Work::Play, Some((at, connection))) => {
                Task::Play(Box::new(Play { common, at: at.to_owned(), connection, bytes: with.bytes }))
            }
            (Work::Play, None) => return Err(std::io::Error::other("the view cannot be seen from here")),
            (Work::Learn, _) => {
                Task::Learn(Box::new(Learn { common, later: with.view.clone(), done: self.asked.done() }))
            }
        };
        let sink: Sink = with.log.sink;
        let uses = self.last.as_ref().map_or(0, profiles::about_uses);
        Worker::start(with.program, sink, task, &descriptors, |process| {
            if work == Work::Play
                && let Some(trace) = trace
                && let Err(error) = trace::begin_play(trace, process, uses)
            {
                tracing::debug!(%error, "what is asked ahead counts as use");
            }
        })
        .map_err(|error| {
            std::io::Error::new(error.kind(), format!("cannot start the process for it: {error}"))
        })
    }

    /// Takes what has come of what was begun; returns whether it is over. `with`: what comes next can be begun.
    fn take_end(&mut self, with: Option<With<'_>>) -> bool {
        let (work, end) = match &mut self.running {
            None => return false,
            Some(Running::Looking(looking)) => {
                let Some(opened) = looking.result() else { return false };
                self.running = None;
                match (opened, with) {
                    (Ok(view), Some(with)) if self.schedule.plays() => {
                        self.begin_task(Work::Play, with, Some(&view))
                    }
                    (Ok(_), _) => {}
                    (Err(error), _) => {
                        self.not_asked(format!(
                            "the view cannot be opened in a mount namespace of its own: {error}"
                        ));
                    }
                }
                return self.running.is_none();
            }
            Some(Running::Task(work, worker)) => match worker.ended() {
                Some(end) => (*work, end),
                None => return false,
            },
        };
        self.running = None;
        if work == Work::Play
            && let Some(trace) = &self.trace
        {
            let _ = trace::end_play(trace);
        }
        match (work, end) {
            (Work::Play, End::Told(Told::Played(played))) => self.take_played(played),
            (Work::Play, End::Told(Told::Failed(why))) => {
                self.asked = Asked::Nothing;
                self.not_asked(why);
            }
            (Work::Learn, End::Told(Told::Learnt(learnt))) => {
                match self.profiles.as_ref().map(|profiles| (profiles.path(), profiles.keep_next())) {
                    Some((_, Ok(()))) => {
                        tracing::debug!(?learnt, "the profile of use is written");
                        self.learnt = Some(learnt);
                    }
                    Some((path, Err(error))) => {
                        self.fail(format!("'{}' cannot be replaced: {error}; remove it", path.display()));
                    }
                    None => {}
                }
            }
            (Work::Learn, End::Told(Told::Failed(why)) | End::Silent(why)) => self.fail(why),
            (Work::Play, End::Silent(why)) => {
                let why = format!("asking ahead has ended early: {why}");
                tracing::warn!("{why}");
                self.failed = Some(why);
            }
            (_, End::Told(_)) => self.fail("it has told of something else".to_owned()),
            (_, End::Killed) => tracing::debug!("what was asked ahead or learnt was ended"),
        }
        if work == Work::Learn {
            self.profiles.iter().for_each(Profiles::drop_next);
        }
        true
    }

    fn not_asked(&mut self, why: String) {
        tracing::info!("nothing is asked of the view ahead of its users: {why}");
        self.failed = Some(why);
    }

    fn take_played(&mut self, played: Played) {
        if let Known::Unusable(why) = &played.known {
            tracing::warn!("the profile of use is not used, and is replaced: {why}");
        }
        match played.stopped {
            Stopped::Memory => tracing::info!("asking ahead has stopped, as memory is short"),
            Stopped::Time => tracing::info!("asking ahead has stopped, as its time was over"),
            Stopped::View => tracing::debug!("asking ahead has stopped, as the view does not answer"),
            Stopped::Resources => tracing::info!(
                "asking ahead has stopped, as there are too few descriptors or no memory for a call: see ulimit -n, or LimitNOFILE= of the unit"
            ),
            Stopped::Done => tracing::debug!(?played, "asked ahead"),
        }
        self.asked = Asked::Played(played);
    }

    fn fail(&mut self, why: String) {
        tracing::warn!("what is used of the view is not remembered for its next start: {why}");
        self.failed = Some(why);
    }
}
