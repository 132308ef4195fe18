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
//! 2. The end of a server is not the end of the mount, and the end of the connection is neither: the mount table is looked
//!    at each time ([`Action::LookAtMount`]).
//! 3. A late event of something that is over must do no harm: it finds no state that waits for it.

mod content;
mod events;
mod reloads;
mod server_life;

#[cfg(test)]
mod orders;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod world;

use std::time::{Duration, Instant};

use super::error::MonitorError;
use crate::protocol::control::Outcome;

pub(super) use content::{Content, Found};
pub(super) use events::{
    Action, ClientId, Event, Links, MountEnd, Note, Notice, Now, Plan, Refusal, Seen, Slow, Unresolved,
    Verdict,
};
use reloads::{Cause, First, Reloads, Stage, Waiting};
use server_life::{Backoff, Past, START_ATTEMPTS, Starting};
pub(super) use server_life::{ServerLife, Successor};

/// How long the end of a killed server is waited for, so that it can be logged.
const REAP_GRACE: Duration = Duration::from_millis(250);
/// How long an unmount by somebody else may take after the connection has ended: `umount -f` ends it first.
const UNMOUNT_BY_OTHERS: Duration = Duration::from_millis(200);
/// The least pause before a process is started again that could not be.
const SPAWN_PAUSE: Duration = Duration::from_secs(1);
/// The pause before a probe is tried again for which no thread could be made.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// After this, what is waited for is logged.
const SLOW: Duration = Duration::from_secs(10);
/// How often the service manager is told that the start goes on: more often than it waits, and than it is asked to wait.
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
    /// It was in the mount table when it was last looked at.
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
    /// When the service manager is told next that the start goes on.
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
            Readiness::Probe(at) => Some(at.min(self.extend)),
            Readiness::Told => None,
            Readiness::Unasked | Readiness::Asked | Readiness::Answering => Some(self.extend),
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
            Event::HandOver => self.hand_over(),
            Event::Reload(client) => {
                self.reloads.queue(client, Cause::Asked);
                self.reload(now);
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
            Event::Exited(how) => self.exited(how),
            Event::NotStarted(why) => self.not_started(why, now.monotonic),
            Event::MountIs(seen) => self.mount_is(seen, now.monotonic),
            Event::Answers => self.answers(),
            Event::NotProbed => {
                if self.readiness == Readiness::Asked {
                    self.readiness = Readiness::Probe(now.monotonic + PROBE_PAUSE);
                }
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
                self.exited("killed while it waits for a reader".to_owned());
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

    // ---- the server ---------------------------------------------------------------------------------------------

    fn start_server(&mut self, now: Instant) {
        let resume = self.successor.resumes();
        let starting = Starting { since: now, resume, answered: false, refusal: None, logged: false };
        self.server = ServerLife::Starting(starting);
        self.actions.push(Action::StartServer { resume });
        // It may answer before it reports: from now on the kernel may know what it said.
        if self.successor == Successor::Fresh {
            self.successor = if self.journal { Successor::Journalled } else { Successor::Lost };
        }
    }

    fn serving(&mut self, epoch: u32, restored: usize, now: Now) {
        let ServerLife::Starting(Starting { answered, since, .. }) = self.server else { return };
        if self.served == Served::Once {
            self.note(Note::TakenOver { restored });
        }
        self.served = Served::Once;
        if self.successor == Successor::Inherited {
            self.successor = Successor::Journalled;
        }
        self.server = ServerLife::Up { answered, epoch, since };
        if self.readiness == Readiness::Unasked {
            self.readiness = Readiness::Asked;
            self.actions.push(Action::Probe);
        }
        self.settle_if_shown(now);
    }

    fn switched(&mut self, shown: u32, now: Now) {
        if let ServerLife::Up { epoch, .. } = &mut self.server {
            *epoch = shown;
            self.settle_if_shown(now);
        }
    }

    fn refused(&mut self, refusal: Refusal) {
        let ServerLife::Starting(starting) = &mut self.server else { return };
        let why = match refusal {
            Refusal::Passing(why) => {
                starting.refusal = Some(why);
                return;
            }
            Refusal::Leftovers(why) | Refusal::Unsupported(why) if self.served == Served::Once => {
                return self.end(Verdict::failed(MonitorError::Lost(why)), MountEnd::Unmount, Links::None);
            }
            Refusal::Leftovers(why) => MonitorError::Leftovers(why),
            Refusal::Unsupported(why) => MonitorError::Unsupported(why),
        };
        self.end_unserved(why);
    }

    /// No server can serve. A new view is unmounted again; one that was taken over is left to who understands it.
    fn end_unserved(&mut self, why: MonitorError) {
        match self.successor {
            Successor::Inherited => self.end(Verdict::failed(why), MountEnd::Leave, Links::Earlier),
            _ => self.end(Verdict::failed(why), MountEnd::Unmount, Links::None),
        }
    }

    fn hung_up(&mut self, why: Option<String>, now: Instant) {
        if !self.server.listens() {
            return;
        }
        let past = match (self.server.past(), why) {
            (Past::Useless(None), Some(why)) => Past::Useless(Some(why)),
            (past, Some(why)) => {
                self.note(Note::Misunderstood(why));
                past
            }
            (past, None) => past,
        };
        self.kill_server(past, now);
    }

    fn kill_server(&mut self, past: Past, now: Instant) {
        let since = self.server.since().unwrap_or(now);
        self.server = ServerLife::Ending { until: now + REAP_GRACE, past, since };
        self.actions.push(Action::KillServer);
    }

    /// The store's files are in another directory, which a server gets when it starts.
    fn replace_server(&mut self, now: Instant) {
        // Without a journal it would be the last one.
        if self.server.listens() && self.successor != Successor::Lost {
            self.kill_server(Past::Useful, now);
        }
    }

    fn exited(&mut self, how: String) {
        let (past, Some(since)) = (self.server.past(), self.server.since()) else { return };
        if let ServerLife::Ended { .. } = self.server {
            return;
        }
        self.server = ServerLife::Ended { how, past, since };
        self.actions.push(Action::LookAtMount);
    }

    fn mount_is(&mut self, seen: Seen, now: Instant) {
        let ended = match (self.mount, &self.server) {
            (MountLife::Ours, ServerLife::Ended { how, past, since }) => {
                Some((how.clone(), past.clone(), *since))
            }
            (MountLife::Dead(_), _) => None,
            _ => return,
        };
        match (seen, ended) {
            (Seen::Alive, Some((how, _, _))) if self.successor == Successor::Lost => {
                self.end(Verdict::failed(MonitorError::Lost(how)), MountEnd::Unmount, Links::None);
            }
            (Seen::Alive, Some((how, past, since))) => {
                self.died(how, past, now.saturating_duration_since(since), Duration::ZERO, now);
            }
            (Seen::Dead, Some(_)) => {
                self.server = ServerLife::Down(None);
                self.mount = MountLife::Dead(now + UNMOUNT_BY_OTHERS);
            }
            // A connection does not come to life again: whatever was seen, it is cleared away.
            (Seen::Dead | Seen::Alive, None) => {
                self.end(Verdict::failed(MonitorError::Aborted), MountEnd::Unmount, Links::None);
            }
            (Seen::Gone, _) => {
                self.note(Note::Unmounted);
                self.end(Verdict::Unmounted, MountEnd::Gone, Links::None);
            }
        }
    }

    fn not_started(&mut self, why: String, now: Instant) {
        if let ServerLife::Starting(Starting { resume, .. }) = self.server {
            if !resume {
                // The device was given to nobody.
                self.successor = Successor::Fresh;
            }
            self.died(why.clone(), Past::Useless(Some(why)), Duration::ZERO, SPAWN_PAUSE, now);
        }
    }

    /// A server that `lived` for so long is no more, and its mount is. The next one starts after at least `pause`.
    fn died(&mut self, how: String, past: Past, lived: Duration, pause: Duration, now: Instant) {
        let said = match &past {
            Past::Useless(Some(why)) if *why != how => format!("{how}: {why}"),
            _ => how,
        };
        let pause = self.backoff.death(&past, lived).max(pause);
        let is_new = self.served == Served::NotYet && self.successor != Successor::Inherited;
        if is_new && self.backoff.in_vain() >= START_ATTEMPTS {
            return self.end_unserved(MonitorError::Server(said));
        }
        self.server = ServerLife::Down(Some(now + pause));
        self.note(Note::Died { how: said.clone(), pause });
        if !pause.is_zero() {
            let clients = self.reloads.take_switching();
            let why = format!("no server answers now ({said}); the new closure is shown when one does");
            self.answer(clients, &Outcome::Error(why));
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

    fn hand_over(&mut self) {
        if !self.policy.can_hand_over {
            return self.note(Note::NoSuccessor);
        }
        match self.mount {
            // Nobody uses a view that nobody was told of.
            MountLife::Absent => self.end(Verdict::HandedOver, MountEnd::Nothing, Links::Earlier),
            MountLife::Mounting => self.end(Verdict::HandedOver, MountEnd::Unmount, Links::Earlier),
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

    // ---- reloads ------------------------------------------------------------------------------------------------

    /// Begins the reload that somebody wants, unless one is under way: what changed since it began counts.
    fn reload(&mut self, now: Now) {
        let announce = self.readiness == Readiness::Told;
        if self.mount == MountLife::Ours && self.reloads.begin(announce, now.monotonic) {
            if announce {
                self.actions.push(Action::Notify(Notice::Reloading));
            }
            self.actions.push(Action::Resolve);
        }
    }

    fn resolved(&mut self, found: &Found, now: Now) {
        let stage = std::mem::replace(&mut self.reloads.stage, Stage::Settled);
        let mut waiting = match stage {
            Stage::Resolving(waiting) => waiting,
            other => {
                self.reloads.stage = other;
                return;
            }
        };
        self.reloads.succeeded();
        waiting.since = now.monotonic;
        waiting.logged = false;
        let cause = waiting.cause;
        self.reloads.stage = Stage::Switching { waiting, number: found.number };
        let Some(content) = &mut self.content else {
            self.content = Some(Content::new(found, now.wall));
            self.mount = MountLife::Mounting;
            self.actions.push(Action::Mount);
            return;
        };
        let change = content.show(found, self.policy.prune);
        // Also to the same view: the server then examines its members, of which some may have been repaired. At the start
        // it does that by itself.
        let switches = cause != Cause::Start || !change.is_none() || !content.unsettled.is_empty();
        if switches {
            content.number(now.wall);
        }
        if !change.is_none() {
            self.note(Note::Switching(change));
        }
        if switches || change.roots {
            self.actions.push(Action::WriteState);
        }
        if switches && self.server.listens() {
            self.actions.push(Action::Switch);
        }
        self.settle_if_shown(now);
    }

    fn unresolved(&mut self, error: Unresolved, now: Now) {
        let stage = std::mem::replace(&mut self.reloads.stage, Stage::Settled);
        let waiting = match stage {
            Stage::Resolving(waiting) => waiting,
            other => {
                self.reloads.stage = other;
                return;
            }
        };
        let Unresolved { error, may_pass } = error;
        if self.mount == MountLife::Absent {
            self.reloads.stage = Stage::Resolving(waiting);
            return self.end(Verdict::Failed(error), MountEnd::Nothing, Links::Earlier);
        }
        let why = crate::error::chain(&*error);
        let retry = self.reloads.failed(waiting.cause, may_pass, now.monotonic);
        self.note(Note::Unresolved { why: why.clone(), first: waiting.cause == Cause::Start, retry });
        self.over(waiting, &Outcome::Error(why), now);
    }

    /// Ends a switch if a server shows what it was told to show.
    fn settle_if_shown(&mut self, now: Now) {
        let Some(content) = &mut self.content else { return };
        if !matches!(self.server, ServerLife::Up { epoch, .. } if epoch == content.epoch) {
            return;
        }
        if !content.unsettled.is_empty() {
            content.unsettled.clear();
            self.actions.push(Action::WriteState);
        }
        let status = content.status();
        match std::mem::replace(&mut self.reloads.stage, Stage::Settled) {
            Stage::Switching { waiting, number } => {
                self.actions.push(Action::Settle { number, only: self.policy.prune });
                self.over(waiting, &Outcome::Ok(status), now);
            }
            other => self.reloads.stage = other,
        }
    }

    /// A reload is over.
    fn over(&mut self, waiting: Waiting, outcome: &Outcome, now: Now) {
        self.answer(waiting.clients, outcome);
        match (self.readiness, &self.content) {
            (Readiness::Told, Some(content)) if waiting.announced => {
                self.actions.push(Action::Notify(Notice::Ready(content.status())));
            }
            (Readiness::Told, Some(content)) => {
                self.actions.push(Action::Notify(Notice::Status(content.status())));
            }
            (Readiness::Answering, _) => self.tell_ready(),
            _ => {}
        }
        self.reloads.first = First::Over;
        self.reload(now);
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

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }
}
