//! A model of everything that a supervisor decides about: a kernel, servers, a store thread, a service manager, clients.
//! It checks the invariants of docs/design.md after each action.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use super::server_life::START_ATTEMPTS;
use super::*;
use crate::monitor::history::History;
use crate::values::{StorePath, View};

/// Names of the closures that a store can resolve to.
pub(super) fn names(which: u8) -> View {
    (0..6u8)
        .filter(|bit| which & (1 << bit) != 0)
        .map(|bit| (StorePath::new(&format!("{bit:032}-n")).unwrap(), 1))
        .collect()
}

pub(super) fn found(number: u64, which: u8) -> Found {
    let view = names(which);
    Found { number, roots: view.names().cloned().collect(), view }
}

/// A server, as its process is.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) started: Instant,
    /// What it was told to show, in order, and has not reported.
    pub(super) orders: VecDeque<(u32, View)>,
    /// What it shows: nothing before it serves.
    pub(super) shows: Option<(u32, View)>,
    pub(super) killed: bool,
    pub(super) answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    None,
    Alive,
    Ended,
}

/// The world.
#[derive(Debug)]
pub(super) struct World {
    pub(super) supervisor: Supervisor,
    pub(super) now: Now,
    pub(super) policy: Policy,
    pub(super) connection: Connection,
    pub(super) in_table: bool,
    pub(super) process: Option<Process>,
    /// Processes that the monitor no longer waits for. They read nothing.
    pub(super) reaped: usize,
    pub(super) resolving: usize,
    pub(super) mounting: bool,
    pub(super) journal: bool,
    pub(super) probing: bool,
    /// Whether processes are looked for that keep a switch from its end.
    searching: bool,
    /// Whether the service manager keeps the device, as it said at the last hand-over.
    pub(super) kept: bool,
    pub(super) resolutions: u64,
    /// What is held: by resolution, and what an earlier monitor's links or roots hold.
    pub(super) held: BTreeMap<u64, View>,
    pub(super) earlier: View,
    pub(super) written: Option<(u32, View)>,
    pub(super) waiting: BTreeMap<ClientId, u64>,
    pub(super) answered: BTreeSet<ClientId>,
    pub(super) ready: usize,
    /// Whether the view has ever answered a probe.
    view_answered: bool,
    /// Whether a server has ever reported that it serves.
    served: bool,
    inherited: bool,
    /// Starts that have led to no service, before the first that did.
    in_vain: u32,
    /// When the last server ended, and how many have ended in a row without an answer.
    last_death: Option<Instant>,
    useless: u32,
    /// When the resolution under way began, and how much was logged then.
    resolving_since: Option<(Instant, usize)>,
    pub(super) reloading: bool,
    pub(super) deaths: Vec<Duration>,
    pub(super) notes: Vec<Note>,
    /// What the supervisor has recorded.
    pub(super) history: History,
    /// Resolutions that were settled, and whether the first resolution of all succeeded.
    settled: u64,
    first: Option<bool>,
    pub(super) plan: Option<Plan>,
    next_client: u64,
    pub(super) starts: usize,
    fail_spawn: bool,
    /// Whether the monitor has killed a server to replace it.
    replaced: bool,
}

impl World {
    pub(super) fn new(policy: Policy, inherited: Option<u8>) -> Self {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let content = inherited.map(|which| Content {
            view: names(which),
            roots: names(which).names().cloned().collect(),
            epoch: 7,
            unsettled: BTreeSet::new(),
            since: now.wall,
        });
        let earlier = inherited.map(names).unwrap_or_default();
        let there = content.is_some();
        let (supervisor, actions) = Supervisor::new(policy, content, now);
        let mut world = Self {
            supervisor,
            now,
            policy,
            connection: if there { Connection::Alive } else { Connection::None },
            in_table: there,
            process: None,
            reaped: 0,
            resolving: 0,
            mounting: false,
            journal: there,
            probing: false,
            searching: false,
            kept: false,
            resolutions: 0,
            held: BTreeMap::new(),
            earlier,
            written: None,
            waiting: BTreeMap::new(),
            answered: BTreeSet::new(),
            ready: 0,
            view_answered: false,
            served: false,
            inherited: there,
            in_vain: 0,
            last_death: None,
            useless: 0,
            resolving_since: None,
            reloading: false,
            deaths: Vec::new(),
            notes: Vec::new(),
            history: History::default(),
            settled: 0,
            first: None,
            plan: None,
            next_client: 0,
            starts: 0,
            fail_spawn: false,
            replaced: false,
        };
        world.perform(actions);
        world.check();
        world
    }

    /// Lets the supervisor handle an event and performs what it decides, with what comes of that.
    pub(super) fn event(&mut self, event: Event) {
        if self.plan.is_some() {
            return;
        }
        let actions = self.supervisor.handle(self.now, event);
        self.perform(actions);
        self.check();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut events = Vec::new();
        for action in actions {
            assert!(self.plan.is_none(), "{action:?} after the end");
            self.act(action, &mut events);
        }
        for event in events {
            self.event(event);
        }
    }

    fn act(&mut self, action: Action, events: &mut Vec<Event>) {
        match action {
            Action::Resolve => {
                self.resolving += 1;
                self.resolving_since = Some((self.now.monotonic, self.notes.len()));
            }
            Action::Settle { number, only } => self.settle(number, only),
            Action::Mount => {
                assert_eq!((self.connection, self.mounting), (Connection::None, false));
                assert!(!self.held.is_empty(), "mounted before a closure is held");
                self.mounting = true;
            }
            Action::StoreDevice => assert_eq!(self.connection, Connection::Alive),
            Action::WriteState => {
                let content = self.supervisor.content().expect("something to write");
                self.written = Some((content.epoch, content.view.clone()));
            }
            Action::StartServer { resume } => self.start(resume, events),
            Action::Switch => {
                let order = self.order();
                let process = self.process.as_mut().expect("somebody to order");
                assert!(process.orders.len() < 2, "orders pile up");
                process.orders.push_back(order);
            }
            Action::KillServer => self.process.as_mut().expect("a server to kill").killed = true,
            Action::ReapLater => {
                let process = self.process.take().expect("a server to reap");
                assert!(process.killed);
                self.reaped += 1;
                self.ended(&process);
            }
            Action::LookAtMount => {
                assert!(self.process.is_none(), "looked while a server lives");
                events.push(Event::MountIs(match (self.connection, self.in_table) {
                    (Connection::Alive, _) => Seen::Alive,
                    (_, true) => Seen::Dead,
                    (_, false) => Seen::Gone,
                }));
            }
            Action::Probe => {
                assert!(!self.probing, "two probes");
                self.probing = true;
            }
            Action::Answer(client, outcome) => self.answer(client, &outcome),
            Action::FindListers => {
                assert!(!self.searching, "two searches");
                assert!(!self.waiting.is_empty(), "a search for nobody");
                self.searching = true;
            }
            Action::Notify(Notice::Reloading) => {
                assert!(self.ready > 0 && !self.reloading, "RELOADING=1 out of place");
                self.reloading = true;
            }
            Action::Notify(Notice::Ready(status)) => {
                assert!(status.starts_with("serving "), "{status}");
                if self.ready == 0 {
                    assert!(self.view_answered, "READY=1 before the view has answered");
                } else {
                    assert!(self.reloading, "READY=1 twice");
                }
                self.ready += 1;
                self.reloading = false;
            }
            Action::Notify(Notice::Status(_)) => assert!(self.ready > 0 && !self.reloading),
            Action::Notify(Notice::Starting(_)) => assert_eq!(self.ready, 0),
            Action::Note(note) => self.notes.push(note),
            Action::Record(fact) => self.history.record(fact, self.now.wall),
            Action::End(plan) => {
                // What the runtime does then.
                match plan.mount {
                    MountEnd::Unmount => {
                        assert!(self.mounting || self.connection != Connection::None, "nothing to unmount");
                        self.in_table = false;
                        self.mounting = false;
                    }
                    MountEnd::Gone => assert!(!self.in_table, "left in the table"),
                    MountEnd::Nothing => {
                        assert!(self.connection == Connection::None && !self.mounting, "left mounted");
                    }
                    MountEnd::Leave => {
                        // One that has ended meanwhile is found out and cleared away by the successor.
                        assert_ne!(self.connection, Connection::None);
                        let handed_over = matches!(plan.verdict, Verdict::HandedOver);
                        assert!(!handed_over || self.kept && self.policy.can_hand_over, "left to nobody");
                        assert!(self.journal, "left to a successor who has nothing to resume from");
                        assert!(self.written.is_some());
                    }
                }
                self.plan = Some(plan);
            }
        }
    }

    fn order(&self) -> (u32, View) {
        let content = self.supervisor.content().expect("something to show");
        let order = (content.epoch, content.view.clone());
        assert_eq!(self.written.as_ref(), Some(&order), "shown before it was written");
        assert!(order.1.difference(&self.all_held()).next().is_none(), "shown, and not held");
        order
    }

    fn all_held(&self) -> View {
        self.held.values().fold(self.earlier.clone(), |all, view| all.union(view))
    }

    fn start(&mut self, resume: bool, events: &mut Vec<Event>) {
        assert!(self.process.is_none(), "two servers");
        assert_ne!(self.connection, Connection::None, "a server without a mount");
        assert!(self.journal || !resume, "resumed without a journal");
        assert_eq!(self.supervisor.has_journal(), self.journal);
        self.starts += 1;
        self.check_pause();
        if !self.served && !self.inherited {
            self.in_vain += 1;
            assert!(self.in_vain <= START_ATTEMPTS, "started for ever");
        }
        if std::mem::take(&mut self.fail_spawn) {
            self.last_death = Some(self.now.monotonic);
            self.useless += 1;
            return events.push(Event::NotStarted("no memory".into()));
        }
        let orders = VecDeque::from([self.order()]);
        let started = self.now.monotonic;
        self.process = Some(Process { started, orders, shows: None, killed: false, answered: false });
    }

    /// Each start but the first follows a death that was logged, after a pause that grows from the fourth in a row on.
    fn check_pause(&self) {
        let logged = self.notes.iter().filter(|note| matches!(note, Note::Died { .. })).count();
        assert_eq!(logged, self.starts - 1, "a death that was not logged");
        let Some(death) = self.last_death else { return };
        let least = match self.useless {
            0..=3 => 0,
            many => (50 << (many - 4).min(10)).min(5000),
        };
        let pause = self.now.monotonic - death;
        assert!(pause >= Duration::from_millis(least), "{} in a row, and a pause of {pause:?}", self.useless);
    }

    fn ended(&mut self, process: &Process) {
        self.deaths.push(self.now.monotonic - process.started);
        self.last_death = Some(self.now.monotonic);
        // One that the monitor replaces counts as useful.
        self.useless = if process.answered || self.replaced { 0 } else { self.useless + 1 };
        self.replaced = false;
    }

    fn settle(&mut self, number: u64, only: bool) {
        self.settled += 1;
        assert_eq!(only, self.policy.prune);
        let shown = self.process.as_ref().and_then(|process| process.shows.clone());
        let (epoch, view) = shown.expect("settled, and nobody shows it");
        assert_eq!(Some(epoch), self.supervisor.content().map(|content| content.epoch));
        if only {
            self.held.retain(|held, _| *held >= number);
            self.earlier = View::default();
        }
        let left = self.all_held();
        assert!(view.difference(&left).next().is_none(), "what is shown was released");
    }

    fn answer(&mut self, client: ClientId, outcome: &Outcome) {
        let asked = self.waiting.remove(&client).unwrap_or_else(|| panic!("{client:?} is answered twice"));
        self.answered.insert(client);
        if let Outcome::Ok(_) = outcome {
            let content = self.supervisor.content().unwrap();
            let shown = self.process.as_ref().and_then(|process| process.shows.as_ref());
            assert_eq!(shown.map(|(epoch, _)| *epoch), Some(content.epoch), "ok before it is visible");
            assert!(self.resolutions > asked, "ok without a resolution of its own");
        }
    }

    /// What must hold after each event.
    fn check(&self) {
        if let Some(plan) = &self.plan {
            assert!(self.waiting.is_empty(), "no answer for {:?}", self.waiting);
            if plan.mount != MountEnd::Leave {
                assert!(!self.in_table && !self.mounting, "a mount is left by {plan:?}");
            }
            return;
        }
        self.check_told();
        let next = self.supervisor.due();
        let may_come = self.process.is_some() || self.resolving > 0 || self.mounting || next.is_some();
        assert!(may_come, "nothing will ever happen: {:?}", self.supervisor);
        assert!(self.resolving <= 1, "two resolutions at once");
        // While it is mounted there is a server, or a time at which there will be one or the end is decided.
        if self.connection != Connection::None && self.process.is_none() {
            assert!(next.is_some(), "no server will ever be started: {:?}", self.supervisor);
        }
        // A client waits for something: the store, the mount thread, or a server that is or will be.
        if !self.waiting.is_empty() {
            assert!(self.resolving > 0 || self.mounting || self.connection != Connection::None);
        }
    }

    /// What people are told agrees with what has happened.
    fn check_told(&self) {
        let serves = self.process.as_ref().is_some_and(|process| process.shows.is_some() && !process.killed);
        assert_eq!(self.supervisor.state() == status::State::Serving, serves, "{:?}", self.supervisor);
        let served_before = self.history.served_since().is_some();
        assert_eq!(served_before, self.served, "served, and nobody is told");
        let is_starting = self.supervisor.state() == status::State::Starting;
        assert!(!(served_before && is_starting), "it starts again");
        assert_eq!(self.history.servers().replaced, self.deaths.len() as u64);
        let reloads = self.history.reloads();
        // The resolution of the start is no reload.
        assert_eq!(reloads.done, self.settled.saturating_sub(u64::from(self.first == Some(true))));
        let failed = |note: &&Note| matches!(note, Note::Unresolved { first: false, .. });
        assert_eq!(reloads.failed, self.notes.iter().filter(failed).count() as u64);
        let wrong = |note: &Note| matches!(note, Note::Unresolved { .. } | Note::Died { .. });
        assert_eq!(self.history.last_error().is_some(), self.notes.iter().any(wrong));
    }

    // ---- what may happen in it ----------------------------------------------------------------------------------

    pub(super) fn client(&mut self) {
        if self.plan.is_some() {
            return;
        }
        let client = ClientId(self.next_client);
        self.next_client += 1;
        // A resolution under way began before: it does not count.
        self.waiting.insert(client, self.resolutions + self.resolving as u64);
        self.event(Event::Reload(Some(client)));
    }

    pub(super) fn resolve(&mut self, result: Result<u8, bool>) {
        if self.resolving == 0 || self.plan.is_some() {
            return;
        }
        self.resolving -= 1;
        self.resolutions += 1;
        let number = self.resolutions;
        self.first.get_or_insert(result.is_ok());
        match result {
            Ok(which) => {
                self.held.insert(number, names(which));
                self.event(Event::Resolved(Ok(found(number, which))));
            }
            Err(may_pass) => {
                let error = Box::new(MonitorError::Server("no".into()));
                self.event(Event::Resolved(Err(Unresolved { error, may_pass })));
            }
        }
    }

    pub(super) fn mount(&mut self, succeeds: bool, journal: bool) {
        if !self.mounting || self.plan.is_some() {
            return;
        }
        self.mounting = false;
        if succeeds {
            self.connection = Connection::Alive;
            self.in_table = true;
            self.journal = journal;
            self.event(Event::Mounted(Ok(journal)));
        } else {
            self.event(Event::Mounted(Err(Box::new(MonitorError::Aborted))));
        }
    }

    /// The server reports that it has done its next order.
    pub(super) fn report(&mut self) {
        let Some(process) = self.process.as_mut().filter(|process| !process.killed) else { return };
        let Some((epoch, view)) = process.orders.pop_front() else { return };
        let first = process.shows.replace((epoch, view)).is_none();
        self.served = true;
        self.event(if first { Event::Serving { epoch, restored: 0 } } else { Event::Switched { epoch } });
    }

    pub(super) fn answered_one(&mut self) {
        if let Some(process) = self.process.as_mut().filter(|process| !process.killed) {
            process.answered = true;
            self.event(Event::Answered);
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        let begins = |process: &Process| process.shows.is_none() && !process.killed;
        if self.plan.is_none() && self.process.as_ref().is_some_and(begins) {
            let may_pass = matches!(refusal, Refusal::Passing(_));
            self.event(Event::Refused(refusal));
            if !may_pass {
                let plan = self.plan.as_ref().expect("a permanent failure is the end");
                assert!(matches!(plan.verdict, Verdict::Failed(_)), "{plan:?}");
                assert_eq!(plan.mount == MountEnd::Leave, self.inherited && !self.served, "{plan:?}");
            }
        }
    }

    pub(super) fn hang_up(&mut self, why: Option<&str>) {
        if self.process.is_some() {
            self.event(Event::HungUp(why.map(str::to_owned)));
        }
    }

    /// The server ends: killed, crashed, or because its connection has ended.
    pub(super) fn exit(&mut self) {
        if let Some(process) = self.process.take() {
            self.ended(&process);
            self.event(Event::Exited { how: "exit status: 1".into(), faulted: false });
        }
    }

    pub(super) fn unmounted_by_others(&mut self, everywhere: bool) {
        if self.connection == Connection::Alive {
            self.in_table = false;
            if everywhere {
                self.connection = Connection::Ended;
            }
        }
    }

    pub(super) fn abort(&mut self) {
        if self.connection == Connection::Alive {
            self.connection = Connection::Ended;
        }
    }

    pub(super) fn probe(&mut self, answers: bool) {
        let serves = self.process.as_ref().is_some_and(|process| process.shows.is_some() && !process.killed);
        if self.probing && self.plan.is_none() && (serves || !answers) {
            self.probing = false;
            self.view_answered |= answers;
            self.event(if answers { Event::Answers } else { Event::NotProbed });
        }
    }

    /// The search is over.
    pub(super) fn listers(&mut self) {
        if std::mem::take(&mut self.searching) {
            self.event(Event::Overdue("a listing does not end".into()));
        }
    }

    pub(super) fn fail_next_spawn(&mut self) {
        self.fail_spawn = true;
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += time;
        self.event(Event::Time);
        self.check_slow();
    }

    /// Whatever takes ten seconds was logged.
    fn check_slow(&self) {
        let logged = |from: usize| self.notes[from..].iter().any(|note| matches!(note, Note::Slow(_)));
        if self.plan.is_some() {
            return;
        }
        if let Some((since, notes)) = self.resolving_since.filter(|_| self.resolving > 0) {
            assert!(since + SLOW > self.now.monotonic || logged(notes), "a slow store was not logged");
        }
        let begins = self.process.as_ref().filter(|process| process.shows.is_none() && !process.killed);
        if let Some(process) = begins {
            assert!(process.started + SLOW > self.now.monotonic || logged(0), "a slow server was not logged");
        }
    }

    pub(super) fn moved(&mut self) {
        self.replaced |= self.process.as_ref().is_some_and(|process| !process.killed);
        self.event(Event::Moved);
    }

    /// Lets time pass until the supervisor wants to be woken.
    pub(super) fn wake(&mut self) {
        if let Some(next) = self.supervisor.next() {
            self.pass(next.saturating_duration_since(self.now.monotonic));
        }
    }
}
