//! The monitor: resolves, holds roots, watches, answers systemd and `--reload`, and keeps a server alive.
//!
//! Invariants:
//! - Nothing is mounted before the roots have led to a closure.
//! - What a server is told to show is held by roots and written to the state directory first. The thread of the
//!   [`resolver`] is told only afterwards that older roots may go: when a server shows the new view.
//! - The monitor never looks into its own mount but from a thread that may hang: it is the one who would have to
//!   start the server that answers.
//!
//! Hard points:
//! 1. One thread waits for everything (signals, server, resolver, clients, links) and does nothing that takes
//!    long; the store has a thread of its own.
//! 2. A server may die in the middle of a switch. Its successor starts with the new view and takes back what the
//!    kernel may remember of the old one, so the switch is complete when it serves.
//! 3. The descriptor of `/dev/fuse` is the mount's life. The service manager's descriptor store keeps it beyond
//!    this process; [`state`] keeps what else a successor has to know.

pub mod child;
pub mod mount;
mod resolver;
mod setup;
pub mod state;
mod systemd;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::closure::resolve::{ResolveError, Roots};
use crate::protocol::control::{Client, Control, Outcome};
use crate::protocol::handshake::{Agreement, HandshakeError, Io};
use crate::protocol::wire::{LogSettings, Order, Report, Start};
use crate::server::idle::IdlePolling;
use crate::values::{StorePath, View};
use child::{Backoff, End, Server};
use mount::{MountError, Mounted};
use resolver::{Answer, Left, Resolver};
use state::{State, StateDir, StateError};
use watch::Watch;

/// How long a server has to notice that its mount is gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// Everything that a view is made from.
#[derive(Debug)]
pub struct Settings {
    /// What the view is called.
    pub name: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What it shows.
    pub roots: Roots,
    /// The store's address; without one, the store that Nix's commands open.
    pub store: Option<String>,
    /// Threads that answer requests.
    pub threads: usize,
    /// How files are read.
    pub io: Io,
    /// Whether processors are kept awake while requests flow.
    pub idle_polling: IdlePolling,
    /// Whether changed links are followed without being asked to.
    pub watch: bool,
    /// Whether what is no longer reachable goes.
    pub prune: bool,
    /// Whether the log tells what was asked for, and is on the host alone.
    pub report: bool,
    /// Where links that hold the roots beyond this process are made.
    pub gc_root: Option<PathBuf>,
    /// The state directory.
    pub state: PathBuf,
    /// How to log.
    pub log: LogSettings,
}

/// How a view ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Somebody unmounted it, or a signal asked for its end.
    Unmounted,
    /// It is still there, and a successor is to take it over.
    HandedOver,
}

/// Why a view could not be served.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The roots do not give a closure.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The mount point, or FUSE, cannot be used.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel did not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store directory cannot be opened.
    #[error("cannot open the store directory '{}'", path.display())]
    Store {
        /// The physical directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Links cannot be watched.
    #[error("cannot watch links{}", watch::limit(.0))]
    Watch(#[source] io::Error),
    /// The first server could not begin.
    #[error("the server failed to start: {0}")]
    Server(String),
    /// A server died and left nothing to go on from.
    #[error(
        "the server exited ({0}); no journal to resume from, so the view was unmounted. Free space in the state directory and start again"
    )]
    Lost(End),
    /// The operating system refused something that always works.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> MonitorError {
    move |error| MonitorError::System { doing, source: error.into() }
}

/// Mounts a view, or takes over one that is mounted, and serves it to its end.
///
/// # Errors
/// [`MonitorError`]; what was mounted here is unmounted again, what was taken over is left to a successor.
pub fn run(settings: Settings) -> Result<Ending, MonitorError> {
    let signals = signals()?;
    match setup::set_up(settings, signals)? {
        Some(mut monitor) => monitor.serve(),
        None => Ok(Ending::Unmounted),
    }
}

/// Signals come as data: blocked before any thread is made, so that no thread takes one otherwise.
fn signals() -> Result<SignalFd, MonitorError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2] {
        set.add(signal);
    }
    set.thread_block().map_err(system("block signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&set, flags).map_err(system("receive signals"))
}

fn next_signal(signals: &SignalFd) -> Option<Signal> {
    let info = signals.read_signal().ok().flatten()?;
    Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
}

/// Waits until one of `descriptors` is readable or `until` has come; tells which are.
fn wait(descriptors: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> =
        descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    // Rounded up: waking a little early would mean waking again and again.
    let timeout = left.and_then(|left| Timespec::try_from(left + Duration::from_micros(50)).ok());
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(vec![false; descriptors.len()]),
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Where a reload stands.
#[derive(Debug, Default)]
enum Reload {
    #[default]
    Idle,
    /// The resolver works for these.
    Resolving(Vec<Client>),
    /// The server changes the view for these.
    Switching(Vec<Client>),
}

#[derive(Debug)]
struct Monitor {
    settings: Settings,
    signals: SignalFd,
    resolver: Resolver,
    state: Option<StateDir>,
    control: Option<Control>,
    watch: Option<Watch>,
    mounted: Mounted,
    device: OwnedFd,
    store: OwnedFd,
    store_path: PathBuf,
    agreement: Agreement,
    view: View,
    /// The roots whose closures that is.
    roots: BTreeSet<StorePath>,
    /// Directories in which links of this view may be.
    link_dirs: BTreeSet<PathBuf>,
    /// The number of the resolution that the view is to show, if a server does not show it yet.
    resolution: Option<u64>,
    epoch: u32,
    /// Names that the kernel may remember otherwise than they are.
    unsettled: Vec<StorePath>,
    server: Option<Server>,
    /// Started while the roots were being resolved: loading the program takes longer than that.
    spare: Option<Server>,
    /// Whether a journal exists that the next server goes on from.
    resume: bool,
    /// Whether the last server that served had one.
    journal: bool,
    /// Whether any server of this monitor has served.
    served: bool,
    /// When the next server is to be started.
    restart: Option<Instant>,
    backoff: Backoff,
    /// Readable once the view has answered.
    probe: OwnedFd,
    ready: bool,
    since: SystemTime,
    reload: Reload,
    queue: Vec<Client>,
    again: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Signal,
    Resolved,
    Server,
    Client,
    Links,
    Answering,
}

impl Monitor {
    fn serve(&mut self) -> Result<Ending, MonitorError> {
        if let Err(error) = self.start_server() {
            return Err(self.give_up(crate::error::chain(&error)));
        }
        loop {
            for event in self.wait()? {
                let ending = match event {
                    Event::Signal => self.on_signal()?,
                    Event::Server => self.on_server()?,
                    Event::Resolved => {
                        self.on_resolved();
                        None
                    }
                    Event::Client => {
                        self.on_client();
                        None
                    }
                    Event::Links => {
                        self.watch.iter_mut().for_each(Watch::take);
                        None
                    }
                    Event::Answering => {
                        self.on_answering();
                        None
                    }
                };
                if let Some(ending) = ending {
                    return Ok(ending);
                }
            }
            if self.restart.is_some_and(|at| at <= Instant::now())
                && let Err(error) = self.start_server()
            {
                tracing::error!("{}; trying again", crate::error::chain(&error));
                self.restart = Some(Instant::now() + self.backoff.death(false).max(FAREWELL));
            }
            if self.watch.as_mut().is_some_and(Watch::is_due) {
                tracing::info!("a link of the roots has changed");
                self.begin_reload(None);
            }
        }
    }

    fn wait(&self) -> Result<Vec<Event>, MonitorError> {
        let mut sources: Vec<(Event, BorrowedFd<'_>)> =
            vec![(Event::Signal, self.signals.as_fd()), (Event::Resolved, self.resolver.ready())];
        sources.extend(self.server.as_ref().map(|server| (Event::Server, server.socket())));
        sources.extend(self.control.as_ref().map(|control| (Event::Client, control.socket())));
        sources.extend(self.watch.as_ref().map(|watch| (Event::Links, watch.events())));
        if !self.ready {
            sources.push((Event::Answering, self.probe.as_fd()));
        }
        let until = [self.restart, self.watch.as_ref().and_then(Watch::due)].into_iter().flatten().min();
        let descriptors: Vec<_> = sources.iter().map(|(_, fd)| *fd).collect();
        let readable = wait(&descriptors, until).map_err(system("wait for events"))?;
        Ok(sources.iter().zip(readable).filter(|(_, is)| *is).map(|((event, _), _)| *event).collect())
    }

    fn start_server(&mut self) -> Result<(), MonitorError> {
        self.restart = None;
        let start = Start {
            view: self.view.clone(),
            epoch: self.epoch,
            agreement: self.agreement.clone(),
            threads: self.settings.threads,
            journal: self.state.as_ref().map(StateDir::journal),
            resume: self.resume,
            invalidate: self.unsettled.clone(),
            lock: self.state.as_ref().map(StateDir::server_lock),
            end_with: systemd::is_there().then(std::process::id),
            report: self.settings.report,
            log: self.settings.log,
        };
        let server = match self.spare.take() {
            Some(server) => server,
            None => Server::spawn().map_err(system("start the server"))?,
        };
        // Opened anew for each server, and kept by none but it: what one has asked for ends with it.
        let polling = self.settings.idle_polling;
        let idle = polling.open().unwrap_or_else(|error| {
            const WHAT: &str = "cannot keep idle CPUs polling; requests may have to wake a CPU";
            match polling {
                IdlePolling::Always => tracing::warn!(%error, "{WHAT}"),
                IdlePolling::Auto | IdlePolling::Never => tracing::debug!(%error, "{WHAT}"),
            }
            None
        });
        server.begin(start, &self.device, &self.store, idle);
        tracing::debug!(pid = server.id(), "started a server");
        self.server = Some(server);
        Ok(())
    }

    fn on_signal(&mut self) -> Result<Option<Ending>, MonitorError> {
        match next_signal(&self.signals) {
            Some(Signal::SIGTERM | Signal::SIGINT) => self.stop().map(Some),
            Some(Signal::SIGHUP) => {
                self.begin_reload(None);
                Ok(None)
            }
            Some(Signal::SIGUSR2) => Ok(self.hand_over()),
            _ => Ok(None),
        }
    }

    fn on_server(&mut self) -> Result<Option<Ending>, MonitorError> {
        let Some(server) = &mut self.server else { return Ok(None) };
        match server.report() {
            Some(Report::Serving { epoch, restored, journal }) => {
                if self.served {
                    tracing::info!(restored, "a new server has taken over");
                }
                self.served = true;
                self.resume = true;
                self.journal = journal;
                // A switch ordered since it began is told of by itself.
                if epoch == self.epoch {
                    self.settle();
                }
                if !self.ready {
                    self.probe();
                }
                Ok(None)
            }
            Some(Report::Answered) => Ok(None),
            Some(Report::Switched { epoch }) => {
                if epoch == self.epoch {
                    self.settle();
                }
                Ok(None)
            }
            Some(Report::Failed(why)) if !self.served => Err(self.give_up(why)),
            Some(Report::Failed(why)) => {
                tracing::error!("the server failed to start: {why}");
                Ok(None)
            }
            None => self.on_death(),
        }
    }

    fn on_death(&mut self) -> Result<Option<Ending>, MonitorError> {
        let Some(server) = self.server.take() else { return Ok(None) };
        let (end, useful) = server.wait().map_err(system("wait for the server"))?;
        if end.success() || !self.mounted.is_there()? {
            tracing::info!("the view was unmounted");
            self.clean_up();
            return Ok(Some(Ending::Unmounted));
        }
        if self.served && !self.journal {
            // The kernel knows nodes that nobody can tell the meaning of.
            self.unmount_lost()?;
            return Err(MonitorError::Lost(end));
        }
        let wait = self.backoff.death(useful);
        if wait.is_zero() {
            tracing::warn!("the server exited ({end}); restarting it");
        } else {
            tracing::error!("the server keeps exiting before it answers ({end}); restarting in {wait:?}");
        }
        self.restart = Some(Instant::now() + wait);
        Ok(None)
    }

    /// Readers get errors instead of waiting for ever, and the next start finds the place free.
    fn unmount_lost(&mut self) -> Result<(), MonitorError> {
        let gone = self.mounted.unmount(|_| ());
        self.clean_up();
        Ok(gone?)
    }

    /// A fresh view is unmounted again; one taken over is left to whoever understands its journal.
    fn give_up(&mut self, why: String) -> MonitorError {
        self.server = None;
        if !self.resume {
            if let Err(error) = self.mounted.unmount(|_| ()) {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount the view");
            }
            self.clean_up();
        }
        MonitorError::Server(why)
    }

    /// Asks the view something, from a thread that may wait for ever for an answer.
    fn probe(&self) {
        let at = self.mounted.at().to_owned();
        let Ok(signal) = self.probe.try_clone() else { return };
        let asked = std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
            if rustix::fs::statfs(&at).is_ok() {
                let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
            }
        });
        if let Err(error) = asked {
            tracing::error!(%error, "cannot check whether the view answers");
        }
    }

    fn on_answering(&mut self) {
        let _ = rustix::io::read(&self.probe, &mut [0; 8]);
        self.ready = true;
        tracing::info!(mountpoint = %self.mounted.at().display(), paths = self.view.len(), "the view answers");
        systemd::ready(&self.status());
    }

    fn status(&self) -> String {
        let since = humantime::format_rfc3339_seconds(self.since);
        format!("serving {} store paths since {since}", self.view.len())
    }

    fn on_client(&mut self) {
        match self.control.as_ref().map(Control::accept) {
            Some(Ok(client)) => self.begin_reload(Some(client)),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(error)) => tracing::warn!(%error, "ignoring a malformed control request"),
            None => {}
        }
    }

    /// Reloads, or does so again once the reload under way is done: what changed since it began counts.
    fn begin_reload(&mut self, client: Option<Client>) {
        self.queue.extend(client);
        if !matches!(self.reload, Reload::Idle) {
            self.again = true;
            return;
        }
        if self.ready {
            systemd::reloading();
        }
        self.reload = Reload::Resolving(std::mem::take(&mut self.queue));
        self.resolver.ask();
    }

    fn on_resolved(&mut self) {
        let Some(answer) = self.resolver.answer() else { return };
        let Reload::Resolving(clients) = std::mem::take(&mut self.reload) else { return };
        match answer {
            Ok(answer) => self.switch(answer, clients),
            Err(error) => {
                let why = crate::error::chain(&error);
                tracing::error!("the reload failed and nothing has changed: {why}");
                self.finish(clients, &Outcome::Error(why));
            }
        }
    }

    fn switch(&mut self, answer: Answer, clients: Vec<Client>) {
        let Answer { number, resolution, .. } = answer;
        if let Some(watch) = &mut self.watch {
            watch.set(&resolution.depends_on);
        }
        let found = resolution.closure.view();
        let mut roots: BTreeSet<StorePath> = resolution.closure.roots().iter().cloned().collect();
        if !self.settings.prune {
            roots.extend(self.roots.iter().cloned());
        }
        let next = if self.settings.prune { found } else { self.view.union(&found) };
        let added = next.difference(&self.view).count();
        let removed = self.view.difference(&next).count();
        self.unsettled.extend(next.difference(&self.view).chain(self.view.difference(&next)).cloned());
        self.reload = Reload::Switching(clients);
        self.resolution = Some(number);
        let changes = next != self.view || !self.unsettled.is_empty();
        if changes {
            tracing::info!(added, removed, "switching the view");
            self.view = next;
            self.epoch = self.epoch.wrapping_add(1);
            self.since = SystemTime::now();
        }
        if changes || roots != self.roots {
            self.roots = roots;
            self.write_state();
        }
        // Also to the same view: the server then examines its members, of which some may have been repaired.
        if let Some(server) = &self.server {
            server.order(&Order::Switch { view: self.view.clone(), epoch: self.epoch });
        }
    }

    /// What the server shows is what it was told to show.
    fn settle(&mut self) {
        if !self.unsettled.is_empty() {
            self.unsettled.clear();
            self.write_state();
        }
        if let Some(number) = self.resolution.take() {
            self.resolver.settle(number, self.settings.prune);
            // The thread empties the others now. A state that still lists them does no harm.
            self.link_dirs = self.settings.gc_root.iter().cloned().collect();
        }
        match std::mem::take(&mut self.reload) {
            Reload::Switching(clients) => {
                self.finish(clients, &Outcome::Ok(self.status()));
            }
            other => self.reload = other,
        }
    }

    fn finish(&mut self, clients: Vec<Client>, outcome: &Outcome) {
        clients.into_iter().for_each(|client| client.tell(outcome));
        if self.ready {
            systemd::ready(&self.status());
        }
        if std::mem::take(&mut self.again) {
            self.begin_reload(None);
        }
    }

    fn write_state(&self) {
        let Some(dir) = &self.state else { return };
        let state = State {
            version: state::VERSION,
            mountpoint: self.mounted.at().to_owned(),
            created: self.mounted.created(),
            agreement: self.agreement.clone(),
            view: self.view.clone(),
            roots: self.roots.clone(),
            link_dirs: self.link_dirs.clone(),
            epoch: self.epoch,
            unsettled: self.unsettled.clone(),
            store: self.store_path.clone(),
        };
        if let Err(error) = dir.write(&state) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the view is served, but would not survive a crash of its monitor");
        }
    }

    fn stop(&mut self) -> Result<Ending, MonitorError> {
        systemd::stopping();
        unmount(&self.mounted)?;
        if let Some(server) = self.server.take()
            && !server.wait_until(Instant::now() + FAREWELL)
        {
            tracing::warn!("the view is still mounted or open elsewhere; access to it will fail there");
        }
        self.clean_up();
        Ok(Ending::Unmounted)
    }

    /// Leaves the mount to a successor, which the service manager starts on the exit code.
    fn hand_over(&mut self) -> Option<Ending> {
        if !systemd::is_there() || self.state.is_none() {
            tracing::error!(
                "cannot hand over: there is no service manager to keep the device, or no state directory"
            );
            return None;
        }
        tracing::info!("handing over");
        if let Some(server) = self.server.take()
            && let Err(error) = server.kill()
        {
            tracing::warn!(%error, "cannot kill the server");
        }
        Some(Ending::HandedOver)
    }

    fn clean_up(&mut self) {
        clean_up(&self.mounted, self.state.take(), &self.resolver);
    }
}

/// Unmounts; if the view is in use, it is detached, and the log names who used it.
fn unmount(mounted: &Mounted) -> Result<(), MountError> {
    mounted.unmount(|at| {
        let users = mount::users(at, FAREWELL);
        let users = if users.is_empty() { "unknown processes".to_owned() } else { users.join(", ") };
        tracing::warn!("the view is still in use by {users}; their open files will fail");
    })
}

/// The view has ended: what belonged to it goes.
fn clean_up(mounted: &Mounted, state: Option<StateDir>, resolver: &Resolver) {
    // A mount point that was made for the view goes with it, whoever unmounted it.
    if mounted.created() {
        let _ = std::fs::remove_dir(mounted.at());
    }
    systemd::forget_device();
    // While the state directory is locked nobody else makes links for this name.
    resolver.end(Left::Nothing);
    if let Some(state) = state {
        state.remove();
    }
}

/// An event descriptor that nobody has written to.
fn event() -> Result<OwnedFd, MonitorError> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system("make an event"))
}
