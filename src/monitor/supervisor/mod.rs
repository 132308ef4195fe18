//! What the monitor decides: events in, actions out, time as a value. Nothing here knows a descriptor or a process.
//!
//! The drawing is in docs/design.md, "The monitor: states, events, actions"; its tables are the tests of this module.
//!
//! Invariants: see there. Each is checked after every step of `orders`, which runs random orders of events against a
//! model of the world.
//!
//! Hard points:
//! 1. A server may die in the middle of a switch. Its successor starts with the new view and invalidates what the kernel
//!    may have cached of the old one, so the switch is complete when it serves.
//! 2. The end of a server is not the end of the mount, and the end of the connection is neither: device and mount table
//!    are looked at each time ([`Action::LookAtMount`]).
//! 3. A late event of something that is over must do no harm: it finds no state that waits for it.

mod content;
mod events;
mod reloads;
mod server_life;
mod servers;
mod switches;

#[cfg(test)]
mod orders;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod world;

use std::time::{Duration, Instant};

use super::error::MonitorError;
use super::history::Fact;
use crate::protocol::control::{Outcome, status};

pub(super) use content::{Content, Found};
pub(super) use events::{
    Action, ClientId, Event, Links, MountEnd, Note, Notice, Now, Plan, Refusal, Seen, Slow, Unresolved,
    Verdict,
};
use reloads::{Cause, First, Reloads, Stage, Waiting};
use server_life::{Backoff, Past, Starting};
use server_life::{ServerLife, Successor};

/// The pause before a probe is tried again for which no thread could be made.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// After this, what is waited for is logged.
const SLOW: Duration = Duration::from_secs(10);
/// How often the service manager is told that the start continues: more often than it waits, and than it is asked to wait.
const EXTEND: Duration = Duration::from_secs(20);

/// What is decided before the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Whether what is no longer reachable goes at a reload.
    pub(super) prune: bool,
    /// Whether somebody keeps the device for a successor, and a state directory tells it the rest.
    pub(super) can_hand_over: bool,
}

/// What there is of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountLife {
    /// Nothing is mounted.
    Absent,
    /// The mount thread works.
    Mounting,
    /// Its connection lived when it was last looked at.
    Ours,
    /// Its connection has ended. It is looked up in the mount table at this time.
    Dead(Instant),
    /// The monitor ends.
    Over,
}

/// Whether the start is over for the service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Nobody has served yet.
    Unasked,
    /// A probe is to be sent at this time: there was no thread for one.
    Probe(Instant),
    /// A probe waits for its answer.
    Asked,
    /// The view has answered. The first resolution is not shown.
    Answering,
    /// READY=1 was sent.
    Told,
}

/// Whether a server of this monitor has served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    NotYet,
    Once,
}

/// The monitor's state.
#[derive(Debug)]
pub(super) struct Supervisor {
    policy: Policy,
    mount: MountLife,
    server: ServerLife,
    successor: Successor,
    backoff: Backoff,
    /// Whether a server of this monitor has served.
    served: Served,
    /// None before the first resolution of a new view.
    content: Option<Content>,
    /// Whether the view has a node journal.
    journal: bool,
    reloads: Reloads,
    readiness: Readiness,
    /// When the service manager is told next that the start continues.
    extend: Instant,
    actions: Vec<Action>,
}

impl Supervisor {
    /// The state at the start: with what an earlier monitor left, or with nothing.
    pub(super) fn new(policy: Policy, inherited: Option<Content>, now: Now) -> (Self, Vec<Action>) {
        let mut new = Self {
            policy,
            mount: MountLife::Absent,
            server: ServerLife::Down(None),
            successor: Successor::Fresh,
            backoff: Backoff::default(),
            served: Served::NotYet,
            content: None,
            journal: false,
            reloads: Reloads::new(now.monotonic),
            readiness: Readiness::Unasked,
            extend: now.monotonic + EXTEND,
            actions: vec![Action::Resolve],
        };
        if let Some(mut content) = inherited {
            content.epoch = content.epoch.wrapping_add(1);
            new.content = Some(content);
            new.mount = MountLife::Ours;
            new.successor = Successor::Inherited;
            new.journal = true;
            new.actions.push(Action::WriteState);
            new.start_server(now.monotonic);
        }
        let actions = std::mem::take(&mut new.actions);
        (new, actions)
    }

    /// What the next server is to show.
    pub(super) fn content(&self) -> Option<&Content> {
        self.content.as_ref()
    }

    /// Where the view stands, for people.
    pub(super) fn state(&self) -> status::State {
        match (self.mount, &self.server) {
            (MountLife::Absent | MountLife::Mounting, _) => status::State::Starting,
            (MountLife::Dead(_) | MountLife::Over, _) => status::State::Ending,
            (MountLife::Ours, ServerLife::Up { .. }) => status::State::Serving,
            (MountLife::Ours, _) if self.served == Served::NotYet => status::State::Starting,
            (MountLife::Ours, _) => status::State::Replacing,
        }
    }

    /// Where the reload under way stands, for people. The resolution of a new view is none.
    pub(super) fn reload_stage(&self) -> Option<status::Stage> {
        match &self.reloads.stage {
            Stage::Resolving(waiting) | Stage::Switching { waiting, .. } if waiting.cause == Cause::Start => {
                None
            }
            Stage::Resolving(_) => Some(status::Stage::Resolving),
            Stage::Switching { .. } => Some(status::Stage::Switching),
            Stage::Settled => None,
        }
    }

    /// Whether the view has a node journal.
    pub(super) fn has_journal(&self) -> bool {
        self.journal
    }

    /// Takes an event; returns what is to be done, in this order. Nothing more comes after [`Action::End`].
    pub(super) fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        if self.mount != MountLife::Over {
            self.on(now, event);
        }
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Time`] is to come.
    pub(super) fn next(&self) -> Option<Instant> {
        let extend = (self.readiness != Readiness::Told).then_some(self.extend);
        self.due().into_iter().chain(extend).min()
    }

    /// When something happens by itself, but for what the service manager is told.
    fn due(&self) -> Option<Instant> {
        let server = match &self.server {
            ServerLife::Down(at) => at.filter(|_| self.mount == MountLife::Ours),
            ServerLife::Starting(starting) => (!starting.logged).then(|| starting.since + SLOW),
            ServerLife::Ending { until, .. } => Some(*until),
            ServerLife::Up { .. } | ServerLife::Ended { .. } => None,
        };
        let mount = match self.mount {
            MountLife::Dead(at) => Some(at),
            _ => None,
        };
        let ready = match self.readiness {
            Readiness::Probe(at) => Some(at),
            _ => None,
        };
        let slow = match &self.reloads.stage {
            Stage::Resolving(waiting) | Stage::Switching { waiting, .. } if !waiting.logged => {
                Some(waiting.since + SLOW)
            }
            _ => None,
        };
        [server, mount, ready, slow, self.reloads.due()].into_iter().flatten().min()
    }

    fn on(&mut self, now: Now, event: Event) {
        match event {
            Event::Stop => self.stop(),
            Event::HandOver { kept } => self.hand_over(kept),
            Event::Reload(client) => {
                self.reloads.queue(client, Cause::Asked);
                self.reload(now);
                self.find_listers();
            }
            Event::Changed => self.reloads.changed(now.monotonic),
            Event::Resolved(Ok(found)) => self.resolved(&found, now),
            Event::Resolved(Err(error)) => self.unresolved(error, now),
            Event::Moved => self.replace_server(now.monotonic),
            Event::Mounted(Ok(journal)) => self.mounted(journal, now),
            Event::Mounted(Err(error)) => {
                if self.mount == MountLife::Mounting {
                    self.end(Verdict::Failed(error), MountEnd::Nothing, Links::Earlier);
                }
            }
            Event::Serving { epoch, restored } => self.serving(epoch, restored, now),
            Event::Answered => match &mut self.server {
                ServerLife::Up { answered, .. } | ServerLife::Starting(Starting { answered, .. }) => {
                    *answered = true;
                }
                _ => {}
            },
            Event::Switched { epoch } => self.switched(epoch, now),
            Event::Refused(refusal) => self.refused(refusal),
            Event::HungUp(why) => self.hung_up(why, now.monotonic),
            Event::Exited { how, faulted } => self.exited(how, faulted),
            Event::NotStarted(why) => self.not_started(why, now.monotonic),
            Event::MountIs(seen) => self.mount_is(seen, now.monotonic),
            Event::Answers => self.answers(),
            Event::NotProbed => {
                if self.readiness == Readiness::Asked {
                    self.readiness = Readiness::Probe(now.monotonic + PROBE_PAUSE);
                }
            }
            Event::Overdue(why) => {
                let clients = self.reloads.end_search();
                self.answer(clients, &Outcome::Error(why));
            }
            Event::Time => self.on_time(now),
        }
    }

    fn on_time(&mut self, now: Now) {
        let time = now.monotonic;
        match &mut self.server {
            ServerLife::Down(Some(at)) if *at <= time && self.mount == MountLife::Ours => {
                self.start_server(time);
            }
            ServerLife::Starting(starting) if !starting.logged && starting.since + SLOW <= time => {
                starting.logged = true;
                self.note(Note::Slow(Slow::Server));
            }
            ServerLife::Ending { until, .. } if *until <= time => {
                self.actions.push(Action::ReapLater);
                self.exited("killed while it waits for a reader".to_owned(), false);
            }
            _ => {}
        }
        if let MountLife::Dead(at) = self.mount
            && at <= time
        {
            self.actions.push(Action::LookAtMount);
        }
        if let Readiness::Probe(at) = self.readiness
            && at <= time
        {
            self.readiness = Readiness::Asked;
            self.actions.push(Action::Probe);
        }
        let slow = self.waits_for();
        if self.readiness != Readiness::Told && self.extend <= time {
            self.extend = time + EXTEND;
            self.actions.push(Action::Notify(Notice::Starting(slow)));
        }
        if let Some(waiting) = self.reloads.waiting()
            && !waiting.logged
            && waiting.since + SLOW <= time
        {
            waiting.logged = true;
            self.note(Note::Slow(slow));
            self.find_listers();
        }
        if self.reloads.take_changed(time) {
            self.note(Note::LinkChanged);
            self.reloads.queue(None, Cause::Watched);
        }
        if self.reloads.take_retry(time) {
            self.reloads.queue(None, Cause::Watched);
        }
        self.reload(now);
    }

    /// What is waited for while something is under way.
    fn waits_for(&self) -> Slow {
        match (&self.reloads.stage, self.mount) {
            (Stage::Resolving(_), _) => Slow::Store,
            (_, MountLife::Mounting) => Slow::Mount,
            (Stage::Switching { .. }, _) => Slow::Switch,
            (Stage::Settled, _) if self.readiness == Readiness::Asked => Slow::Answer,
            (Stage::Settled, _) => Slow::Server,
        }
    }

    // ---- the mount ----------------------------------------------------------------------------------------------

    fn mounted(&mut self, journal: bool, now: Now) {
        if self.mount != MountLife::Mounting {
            return;
        }
        self.mount = MountLife::Ours;
        self.journal = journal;
        self.actions.extend([Action::StoreDevice, Action::WriteState]);
        self.start_server(now.monotonic);
    }

    fn stop(&mut self) {
        let (mount, links) = match self.mount {
            MountLife::Absent => (MountEnd::Nothing, Links::Earlier),
            _ => (MountEnd::Unmount, Links::None),
        };
        self.end(Verdict::Unmounted, mount, links);
    }

    fn hand_over(&mut self, kept: bool) {
        if !self.policy.can_hand_over {
            return self.note(Note::NoSuccessor);
        }
        match self.mount {
            // Nobody uses a view that nobody was told of.
            MountLife::Absent => self.end(Verdict::HandedOver, MountEnd::Nothing, Links::Earlier),
            MountLife::Mounting => self.end(Verdict::HandedOver, MountEnd::Unmount, Links::Earlier),
            MountLife::Ours if !kept => self.note(Note::NoSuccessor),
            MountLife::Ours if !self.journal => self.note(Note::NoJournal),
            MountLife::Ours => self.end(Verdict::HandedOver, MountEnd::Leave, Links::Keep),
            // There is nothing to hand over, and the end is near.
            MountLife::Dead(_) | MountLife::Over => {}
        }
    }

    fn end(&mut self, verdict: Verdict, mount: MountEnd, links: Links) {
        let clients = self.reloads.take_all();
        self.answer(clients, &Outcome::Error(verdict.why().to_owned()));
        self.mount = MountLife::Over;
        self.actions.push(Action::End(Plan { verdict, mount, links }));
    }

    /// Nobody waits for a switch that takes too long, nor for the reload after it, but for as long as it takes to say why.
    fn find_listers(&mut self) {
        if self.mount == MountLife::Ours && self.server.listens() && self.reloads.begin_search() {
            self.actions.push(Action::FindListers);
        }
    }

    fn answer(&mut self, clients: Vec<ClientId>, outcome: &Outcome) {
        self.actions.extend(clients.into_iter().map(|client| Action::Answer(client, outcome.clone())));
    }

    // ---- readiness ----------------------------------------------------------------------------------------------

    fn answers(&mut self) {
        if self.readiness != Readiness::Asked {
            return;
        }
        self.readiness = Readiness::Answering;
        if self.reloads.first == First::Over {
            self.tell_ready();
        }
    }

    fn tell_ready(&mut self) {
        self.readiness = Readiness::Told;
        self.note(Note::Answers);
        if let Some(content) = &self.content {
            self.actions.push(Action::Notify(Notice::Ready(content.status())));
        }
    }

    fn record(&mut self, fact: Fact) {
        self.actions.push(Action::Record(fact));
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }
}
