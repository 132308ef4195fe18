//! Actions become calls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::child::{Program, Server};
use super::ending::Ending;
use super::error::{MonitorError, system};
use super::history::Fact;
use super::listers::{Search, overdue};
use super::missed::Inquiry;
use super::mount::{self, Mounted};
use super::mounting::{self, MountThread, New};
use super::poll;
use super::probe::Probe;
use super::runtime::{Place, Runtime};
use super::state::{self, State, StateDir, StateError};
use super::supervisor::{Action, Content, Event, Note, Notice, Refusal, Seen, Slow, Supervisor};
use super::systemd;
use crate::closure::source::Source;
use crate::error;
use crate::fuse::ledger;
use crate::log::Sink;
use crate::protocol::control::Outcome;
use crate::protocol::handshake::{Io, Promised};
use crate::protocol::wire::{self, Carried, Order, Start};
use crate::server::idle::IdlePolling;
use crate::view::usage;

/// How long ways to a view are looked for that cannot be seen, and how long it may take to answer what is asked there.
const SEARCH: Duration = Duration::from_secs(1);
const KNOCK: Duration = Duration::from_secs(10);

/// What came of an action.
#[derive(Debug)]
pub(super) enum Performed {
    Done,
    /// The supervisor has to know.
    Event(Event),
    /// The monitor ends.
    Ended(Result<Ending, MonitorError>),
}

impl Runtime {
    /// Performs `action`, decided by `supervisor`.
    pub(super) fn perform(&mut self, action: Action, supervisor: &Supervisor) -> Performed {
        let event = match action {
            Action::Resolve => {
                self.store_thread.ask();
                None
            }
            Action::Settle { number, only } => {
                self.settle(number, only);
                None
            }
            Action::Mount => self.mount(),
            Action::StoreDevice => {
                // The device first: where there is room for one only, there is no view without it.
                self.device.iter().for_each(systemd::store_device);
                self.ledger.iter().for_each(systemd::store_ledger);
                self.usage.iter().for_each(systemd::store_usage);
                None
            }
            Action::WriteState => {
                supervisor.content().into_iter().for_each(|content| self.write_state(content));
                None
            }
            Action::StartServer { resume } => self.start_server(supervisor, resume).err(),
            Action::Switch => self.switch(supervisor.content()),
            Action::KillServer => {
                self.kill_server();
                None
            }
            Action::ReapLater => {
                self.server.take().into_iter().for_each(Server::reap_later);
                None
            }
            Action::LookAtMount => Some(Event::MountIs(self.look_at_mount())),
            Action::Probe => self.start_probe(),
            Action::Answer(client, outcome) => {
                let outcome = self.surviving(outcome, supervisor.content());
                self.clients.answer(client, &outcome);
                None
            }
            Action::FindListers => self.find_listers(),
            Action::Notify(notice) => {
                match notice {
                    Notice::Reloading => systemd::reloading(),
                    Notice::Ready(status) => {
                        systemd::ready(&status);
                        self.tell_caller();
                        self.ask_ahead_when_ready(supervisor);
                    }
                    Notice::Status(status) => systemd::status(&status),
                    Notice::Starting(slow) => systemd::starting(waits_for(slow, &self.settings.source)),
                }
                None
            }
            Action::Note(note) => {
                self.log(note, supervisor);
                None
            }
            Action::Record(fact) => {
                self.ask_ahead_after(&fact, supervisor);
                self.history.record(fact, SystemTime::now());
                None
            }
            Action::End(plan) => {
                self.end_asking_ahead(supervisor);
                return Performed::Ended(self.end(plan));
            }
        };
        event.map_or(Performed::Done, Performed::Event)
    }

    /// What came of a reload, told to whoever asked for it: it is not done while a successor would show something else.
    fn surviving(&mut self, outcome: Outcome, content: Option<&Content>) -> Outcome {
        let Some(state) = &self.state else { return outcome };
        let at = state.path().to_owned();
        if matches!(outcome, Outcome::Ok(_)) && !self.written && self.mounted.is_some() {
            // There may be room again.
            content.into_iter().for_each(|content| self.write_state(content));
            if !self.written {
                return Outcome::Error(format!(
                    "the new closure is visible, but it would not survive a crash of its monitor, as the state of the view cannot be \
                     written; free space in '{}', and reload again",
                    at.display()
                ));
            }
        }
        outcome
    }

    fn settle(&mut self, number: u64, only: bool) {
        // What a successor would serve stays held as well.
        self.store_thread.settle(number, only && self.written);
        // The thread empties the other directories now. A state that still lists them does no harm.
        self.link_dirs = self.settings.gc_root.iter().cloned().collect();
    }

    fn mount(&mut self) -> Option<Event> {
        let given = match &mut self.place {
            Place::Path => None,
            Place::Given(given, _) => given.take(),
        };
        let begun = match self.store.clone() {
            Some(store) => MountThread::start(mounting::Task {
                name: self.settings.name.clone(),
                mountpoint: self.settings.mountpoint.clone(),
                given,
                io: self.settings.io,
                store,
                journal: self.state.as_ref().map(StateDir::journal),
                state: self.settings.state.clone(),
                promise: Promised::new(self.settings.prune),
            }),
            None => Err(system("mount")(std::io::Error::other("internal error: no store is open"))),
        };
        match begun {
            Ok(thread) => {
                self.mounting = Some(thread);
                None
            }
            Err(error) => Some(Event::Mounted(Err(Box::new(error)))),
        }
    }

    /// Keeps a new mount; returns whether there is a node journal.
    pub(super) fn keep_mount(&mut self, new: Result<New, MonitorError>) -> Result<bool, MonitorError> {
        let New { mounted, device, ledger, usage, agreement, journal } = new?;
        // Before anybody keeps the device.
        self.state.iter().for_each(StateDir::forget);
        self.ledger = ledger;
        self.usage = usage;
        if matches!(self.place, Place::Path) {
            self.prefetching.mounted();
        }
        self.mounted = Some(mounted);
        self.device = Some(device);
        self.agreement = Some(agreement);
        Ok(journal)
    }

    fn write_state(&mut self, content: &Content) {
        let (Some(dir), Some(mounted), Some(agreement)) = (&self.state, &self.mounted, &self.agreement)
        else {
            return;
        };
        let state = State {
            version: state::VERSION,
            mountpoint: mounted.at().to_owned(),
            created: mounted.made().iter().any(|made| made == mounted.at()),
            made: mounted.made().to_vec(),
            mount_id: mounted.id(),
            connection: mounted.connection().map(|number| number.0),
            agreement: agreement.clone(),
            ledger: self.ledger.as_ref().and_then(ledger::token),
            usage: self.usage.as_ref().and_then(usage::token),
            view: content.view.clone(),
            roots: content.roots.clone(),
            link_dirs: self.link_dirs.clone(),
            epoch: content.epoch,
            unsettled: content.unsettled.iter().cloned().collect(),
            store: self.store_path.clone(),
            store_dir: self.store_dir.clone(),
        };
        let written = dir.write(&state);
        self.written = written.is_ok();
        if let Err(error) = written {
            let why = format!("the view would not survive a crash of its monitor: {}", error::chain(&error));
            self.history.record(Fact::Error(why), SystemTime::now());
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the view is served, but would not survive a crash of its monitor");
        }
    }

    fn start_server(&mut self, supervisor: &Supervisor, resume: bool) -> Result<(), Event> {
        let failed = |why: &str| Event::NotStarted(why.to_owned());
        let Some(store) = self.store() else {
            return Err(failed("the store directory cannot be opened"));
        };
        let (Some(content), Some(device), Some(agreement)) =
            (supervisor.content(), &self.device, &self.agreement)
        else {
            return Err(failed("internal error: there is no mount to serve"));
        };
        // Somebody has removed them, or the directory that they are in; or what others have open for a moment leaves no room.
        let gone = |error: StateError| match error.lacks_descriptors() {
            true => Event::NotStarted(error::chain(&error)),
            false => Event::Refused(Refusal::Leftovers(error::chain(&error))),
        };
        let lock = self.state.as_ref().map(StateDir::open_server_lock).transpose().map_err(gone)?;
        let journalled = self.state.as_ref().filter(|_| supervisor.has_journal());
        let journal = journalled.map(StateDir::open_journal_dir).transpose().map_err(gone)?;
        // Opened again for each server, and kept by none but it: what one has asked for ends with it.
        let idle = open_idle(self.settings.idle_polling);
        let missed = self.inquiry.as_ref().and_then(|inquiry| {
            inquiry.shows(content.view.clone(), store.clone());
            listen(inquiry, self.counted().map(|counted| counted.absent))
        });
        let registrar = (agreement.io == Io::Passthrough).then(|| self.registrar.serve(device, &store));
        let registrar = registrar.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "this server has no files registered with the kernel");
            None
        });
        let all = [
            (Carried::Device, Some(device)),
            (Carried::Store, Some(&*store)),
            (Carried::Journal, journal.as_ref()),
            (Carried::Lock, lock.as_ref()),
            (Carried::Ledger, self.ledger.as_ref()),
            (Carried::Usage, self.usage.as_ref()),
            (self.settings.idle_polling.carried(), idle.as_ref()),
            (Carried::Missed, missed.as_ref()),
            (Carried::Registrar, registrar.as_ref()),
            (Carried::Trace, self.prefetching.trace()),
        ];
        let given = all.into_iter().filter_map(|(kind, given)| Some((kind, given?.as_fd())));
        let (carries, descriptors): (Vec<_>, Vec<_>) = given.unzip();
        let start = Start {
            carries,
            view: content.view.clone(),
            epoch: content.epoch,
            agreement: agreement.clone(),
            promise: Promised::new(self.settings.prune),
            threads: self.settings.threads,
            journal: journalled.map(StateDir::journal),
            resume,
            whole: self.is_whole(),
            crashed: self.crashed,
            invalidate: content.unsettled.iter().cloned().collect(),
            end_with: systemd::is_there().then(std::process::id),
            outlasts: self.settings.outlasts,
            sandbox: self.settings.sandbox,
            log: self.settings.log,
        };
        let order = Order::Start(Box::new(start));
        let server =
            begin_server(self.spare.take(), (&self.program, self.settings.log.sink), &order, &descriptors);
        let server = server.map_err(Event::NotStarted)?;
        tracing::debug!(pid = server.id(), "started a server");
        self.state.iter().for_each(|state| state.name_server(server.id()));
        self.server = Some(server);
        if resume && !self.is_whole() {
            self.knock();
        }
        Ok(())
    }

    /// Whether all that earlier servers had taken is in the ledger. A hostile server may write the opposite: once is enough.
    fn is_whole(&self) -> bool {
        let whole = self.whole.get() || self.ledger.as_ref().is_some_and(ledger::is_whole);
        self.whole.set(whole);
        whole
    }

    /// Readers of what earlier servers had taken may be the only ones there are, and wait until a request is read.
    fn knock(&mut self) {
        let Some(mounted) = &self.mounted else { return };
        let begun = match mounted.seen_at() {
            Ok(Some(at)) => Probe::start(&at).map(|probe| self.knock = Some(probe)),
            _ => knock_elsewhere(mounted.clone()),
        };
        if let Err(error) = begun {
            tracing::debug!(%error, "the server finds out what was lost with the next request");
        }
    }

    fn switch(&mut self, content: Option<&Content>) -> Option<Event> {
        let (Some(server), Some(content)) = (&mut self.server, content) else { return None };
        if let (Some(inquiry), Some(store)) = (&self.inquiry, &self.store) {
            inquiry.shows(content.view.clone(), store.clone());
        }
        let order = Order::Switch { view: content.view.clone(), epoch: content.epoch };
        server.order(&order).err().map(|error| Event::HungUp(Some(format!("takes no orders: {error}"))))
    }

    /// Asks the device first: a view that somebody unmounted is served as long as a container has it.
    pub(super) fn look_at_mount(&self) -> Seen {
        if !self.device.as_ref().is_some_and(mount::has_ended) {
            return Seen::Alive;
        }
        match self.mounted.as_ref().map(Mounted::is_there) {
            Some(Ok(true)) => Seen::Dead,
            Some(Ok(false)) | None => Seen::Gone,
            Some(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look the view up");
                Seen::Dead
            }
        }
    }

    fn start_probe(&mut self) -> Option<Event> {
        let at = match self.mounted.as_ref()?.seen_at() {
            Ok(Some(at)) => at,
            // It was taken over, and nobody can ask it from here: the server's report has to do.
            Ok(None) => return Some(Event::Answers),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot look the view up; trying again"
                );
                return Some(Event::NotProbed);
            }
        };
        match Probe::start(&at) {
            Ok(probe) => {
                self.probe = Some(probe);
                None
            }
            Err(error) => {
                tracing::warn!(%error, "cannot check whether the view answers; trying again");
                Some(Event::NotProbed)
            }
        }
    }

    fn find_listers(&mut self) -> Option<Event> {
        let nobody = || Some(Event::Overdue(overdue(&[])));
        let Some(mounted) = self.mounted.clone() else { return nobody() };
        match Search::start(mounted) {
            Ok(search) => {
                self.search = Some(search);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "cannot look for processes that list the view");
                nobody()
            }
        }
    }

    fn log(&self, note: Note, supervisor: &Supervisor) {
        match note {
            Note::Answers => {
                let mountpoint = self.mounted.as_ref().map_or(Path::new(""), Mounted::at);
                let paths = supervisor.content().map_or(0, |content| content.view.len());
                tracing::info!(mountpoint = %mountpoint.display(), paths, "the view answers");
            }
            Note::TakenOver { restored } => tracing::info!(restored, "a new server has taken over"),
            Note::Switching(change) => {
                tracing::info!(added = change.added, removed = change.removed, "switching the view");
            }
            Note::LinkChanged => tracing::info!("something that the roots depend on has changed"),
            Note::Unresolved { why, first: true, .. } => {
                tracing::error!("keeping the closure of the earlier monitor until a reload succeeds: {why}");
            }
            Note::Unresolved { why, first: false, retry: None } => {
                tracing::error!("the reload failed and nothing has changed: {why}");
            }
            Note::Unresolved { why, first: false, retry: Some(pause) } => {
                tracing::error!(
                    "the reload failed and nothing has changed; trying again in {pause:?}: {why}"
                );
            }
            Note::Died { how, pause } if pause.is_zero() => {
                tracing::warn!("the server exited ({how}); restarting it");
            }
            Note::Died { how, pause } => {
                tracing::error!(
                    "the server keeps exiting before it answers ({how}); restarting in {pause:?}"
                );
            }
            Note::Misunderstood(why) => tracing::error!("killing the server: {why}"),
            Note::Unmounted => tracing::info!("the view was unmounted"),
            Note::NoSuccessor => tracing::error!(
                "cannot hand over: no service manager keeps the FUSE device (NOTIFY_SOCKET, FileDescriptorStoreMax=), or there is no state directory; the view is still served"
            ),
            Note::NoJournal => {
                tracing::error!("cannot hand over: there is no node journal for a successor to resume from");
            }
            Note::Slow(slow) => {
                tracing::warn!("still waiting: {}", waits_for(slow, &self.settings.source));
            }
        }
    }
}

/// A socket for a server, through which it tells what its view has not.
fn listen(inquiry: &Inquiry, asked: Option<u64>) -> Option<OwnedFd> {
    let listening = wire::pair().and_then(|(ours, theirs)| inquiry.listen(ours, asked).map(|()| theirs));
    listening.inspect_err(|error| tracing::warn!(%error, "this server does not report what was missed")).ok()
}

/// Gives `order` to the server that was started early, or to a new one.
fn begin_server(
    early: Option<Server>,
    (program, sink): (&Program, Sink),
    order: &Order,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Server, String> {
    // One that was started early may have ended since.
    if let Some(server) = early.filter(|server| server.begin(order, descriptors).is_ok()) {
        return Ok(server);
    }
    let mut server =
        Server::spawn(program, sink).map_err(|error| format!("cannot start the server: {error}"))?;
    match server.begin(order, descriptors) {
        // Its end is an event, as that of any other.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = server.kill();
            server.reap_later();
            Err(format!("cannot tell the server what to serve: {error}"))
        }
        _ => Ok(server),
    }
}

/// Asks a view that is covered, or mounted in other mount namespaces alone, by whatever way leads to it.
fn knock_elsewhere(mounted: Mounted) -> io::Result<()> {
    let work = move || {
        let ways = mounted.ways(SEARCH);
        let knocks: Vec<_> = ways.iter().filter_map(|way| Probe::start(way).ok()).collect();
        // Killed before it is read, a request is taken back.
        let until = Instant::now() + KNOCK;
        for knock in &knocks {
            let _ = poll::readable(&[knock.done()], Some(until));
        }
    };
    std::thread::Builder::new().name("knock".to_owned()).spawn(work).map(drop)
}

/// What a wait is for, in words.
fn waits_for(slow: Slow, source: &Source) -> &'static str {
    match slow {
        Slow::Store if matches!(source, Source::Saved(_)) => {
            "the file of --from has not been read yet, or the store directory does not answer; a pipe is read when somebody has written to it"
        }
        Slow::Store => "the Nix store has not resolved the roots yet; a garbage collection may hold its lock",
        Slow::Mount => "the mount point does not answer yet; its file system may hang",
        Slow::Server => {
            "the server has not begun to serve; an earlier server of this view may still end, or the store directory may hang"
        }
        Slow::Switch => {
            "the server does not show the new closure yet; a process that hangs while it lists the view may keep it from that"
        }
        Slow::Answer => "the view has not answered yet",
    }
}

fn open_idle(polling: IdlePolling) -> Option<std::os::fd::OwnedFd> {
    const WHAT: &str = "cannot keep idle CPUs polling; requests may have to wake a CPU";
    polling.open().unwrap_or_else(|error| {
        match polling {
            IdlePolling::Always => tracing::warn!(%error, "{WHAT}"),
            IdlePolling::Auto | IdlePolling::Never => tracing::debug!(%error, "{WHAT}"),
        }
        None
    })
}
