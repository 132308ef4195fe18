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

mod profiles;
mod schedule;
mod worker;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::child::Program;
use super::settings;
use crate::log::{LogSettings, Sink};
use crate::protocol::control::status;
use crate::protocol::task::{
    Common, Done, Given, Known, Learn, Learnt, Play, Played, Prefetch, Stopped, Task, Told,
};
use crate::sandbox::Sandbox;
use crate::values::View;
use crate::view::trace;
use profiles::{Profiles, ProfilesError};
use schedule::{Abilities, Schedule, Wish, Work};
use worker::Worker;

/// How long the end of who plays is waited for before the view is unmounted, which it has in use.
const KILL_GRACE: Duration = Duration::from_millis(50);
/// How long the last learning may take.
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
    running: Option<(Work, Worker)>,
    /// What the view showed when its first server served it.
    view: Option<View>,
    played: Option<Played>,
    learnt: Option<Learnt>,
    failed: Option<String>,
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
        }
        .ok();
        Self {
            prefetch,
            profiles,
            trace: None,
            last: None,
            schedule: Schedule::new(Abilities { plays: false, learns: false }),
            running: None,
            view: None,
            played: None,
            learnt: None,
            failed: None,
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
                    |error| tracing::warn!(%error, "the profile of use cannot be read, and is replaced"),
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
        self.running.as_ref().map(|(_, worker)| worker.end())
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
        let wishes = self.schedule.switched();
        self.fulfil(wishes, with);
    }

    /// It is time to look.
    pub(super) fn time(&mut self, now: Instant, with: With<'_>) {
        let used = self.is_used();
        let wishes = self.schedule.time(now, used);
        self.fulfil(wishes, with);
    }

    /// What was begun has ended.
    pub(super) fn ended(&mut self, with: With<'_>) {
        if self.take_end() {
            let wishes = self.schedule.ended();
            self.fulfil(wishes, with);
        }
    }

    /// Kills who plays, as the view ends, and begins to learn for the last time. [`Self::finish`] waits for it.
    pub(super) fn begin_end(&mut self, with: Option<With<'_>>) {
        let used = self.is_used();
        let learns = self.schedule.end(used);
        if let Some((work, mut worker)) = self.running.take() {
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
            self.begin(Work::Learn, with);
        }
    }

    /// Waits for the last learning.
    pub(super) fn finish(&mut self) {
        if let Some((_, worker)) = &mut self.running {
            if worker.ends_before(Instant::now() + LEARN_GRACE) {
                self.take_end();
            } else {
                tracing::warn!("what was used since the last time is not remembered, as that took too long");
            }
        }
        if let Some((_, worker)) = self.running.take() {
            worker.reap_later();
            self.profiles.iter().for_each(Profiles::drop_next);
        }
    }

    /// What it has done, for people.
    pub(super) fn status(&self) -> Option<status::Prefetch> {
        (self.prefetch != Prefetch::Off).then(|| status::Prefetch {
            mode: self.prefetch,
            playing: matches!(self.running, Some((Work::Play, _))),
            remembers: self.profiles.is_some() && self.trace.is_some(),
            played: self.played.clone(),
            learnt: self.learnt,
            failed: self.failed.clone(),
        })
    }

    fn is_used(&self) -> bool {
        self.trace.as_ref().is_some_and(trace::has_begun)
    }

    fn stop(&mut self, wishes: &[Wish]) {
        if wishes.contains(&Wish::StopPlay)
            && let Some((Work::Play, worker)) = &mut self.running
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
        match self.start(work, with) {
            Ok(worker) => self.running = Some((work, worker)),
            Err(error) => self.fail(format!("cannot start the process for it: {error}")),
        }
    }

    fn start(&self, work: Work, with: With<'_>) -> std::io::Result<Worker> {
        let trace = self.trace.as_ref();
        let next = match (work, &self.profiles) {
            (Work::Learn, Some(profiles)) => Some(profiles.begin_next()?),
            _ => None,
        };
        let all = [
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
                let done = self.played.as_ref().map_or_else(Done::default, |played| played.done);
                Task::Learn(Box::new(Learn { common, later: with.view.clone(), done }))
            }
        };
        let sink: Sink = with.log.sink;
        Worker::start(with.program, sink, task, &descriptors, |process| {
            if work == Work::Play
                && let Some(trace) = trace
                && let Err(error) = trace::set_player(trace, process)
            {
                tracing::debug!(%error, "what is asked ahead counts as use");
            }
        })
    }

    /// Takes what the process has told that has ended; returns whether it has.
    fn take_end(&mut self) -> bool {
        let Some((work, worker)) = &mut self.running else { return false };
        let Some(told) = worker.told() else { return false };
        let work = *work;
        self.running = None;
        if work == Work::Play
            && let Some(trace) = &self.trace
        {
            let _ = trace::set_player(trace, 0);
        }
        match told {
            Told::Played(played) if work == Work::Play => self.take_played(played),
            Told::Learnt(learnt) if work == Work::Learn => {
                match self.profiles.as_ref().map(Profiles::keep_next) {
                    Some(Ok(())) => {
                        tracing::debug!(?learnt, "the profile of use is written");
                        self.learnt = Some(learnt);
                    }
                    Some(Err(error)) => self.fail(format!("the profile of use cannot be replaced: {error}")),
                    None => {}
                }
            }
            Told::Failed(why) => self.fail(why),
            Told::Played(_) | Told::Learnt(_) => self.fail("it has told of something else".to_owned()),
        }
        if work == Work::Learn {
            self.profiles.iter().for_each(Profiles::drop_next);
        }
        true
    }

    fn take_played(&mut self, played: Played) {
        if let Known::Unusable(why) = &played.known {
            tracing::warn!("the profile of use is not used, and is replaced: {why}");
        }
        match played.stopped {
            Stopped::Memory => tracing::info!("asking ahead has stopped, as memory is short"),
            Stopped::Time => tracing::info!("asking ahead has stopped, as it takes too long"),
            Stopped::View => tracing::debug!("asking ahead has stopped, as the view does not answer"),
            Stopped::Done => tracing::debug!(?played, "asked ahead"),
        }
        self.played = Some(played);
    }

    fn fail(&mut self, why: String) {
        tracing::warn!("what is used of the view is not asked for ahead or not remembered: {why}");
        self.failed = Some(why);
    }
}
