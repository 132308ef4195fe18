//! The monitor: resolves, holds roots, watches, answers systemd and `--reload`, and keeps a server alive.
//!
//! Deciding is the [`supervisor`]'s, which is pure. Here are what it decides about: [`events`] turns descriptors into
//! events, [`actions`] performs what it returns, [`ending`] ends. See docs/design.md.
//!
//! Invariants:
//! - Nothing is mounted before the roots have led to a closure.
//! - The loop's thread waits for its descriptors and for nothing else. What can take long has a thread or a process of
//!   its own: the Nix store ([`resolver`]), mounting ([`mounting`]), asking the view ([`probe`]).
//! - The monitor never looks into its own mount but from a process that may hang: it is the one who would have to
//!   start the server that answers.
//!
//! Hard points:
//! 1. The descriptor of `/dev/fuse` is the mount's life. The service manager's descriptor store keeps it beyond
//!    this process; [`state`] keeps what else a successor has to know.
//! 2. Servers are started by the loop's thread alone: the kernel kills a server when the *thread* that started it ends
//!    (PR_SET_PDEATHSIG(2const)).

mod actions;
pub mod child;
mod clients;
mod debounce;
mod ending;
mod error;
mod events;
mod inherit;
pub mod mount;
mod mounting;
mod poll;
mod probe;
mod resolver;
pub mod state;
mod supervisor;
mod systemd;
mod watch;

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::closure::resolve::Roots;
use crate::protocol::handshake::{Agreement, Io};
use crate::protocol::wire::LogSettings;
use crate::server::idle::IdlePolling;
use actions::Performed;
use child::Server;
use clients::Clients;
use error::system;
use inherit::Begin;
use mount::Mounted;
use mounting::MountThread;
use probe::Probe;
use resolver::Resolver;
use state::StateDir;
use supervisor::{Event, Now, Policy, Supervisor};
use watch::Watch;

pub use error::MonitorError;

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

/// What the monitor has in its hands. The [`Supervisor`] decides what becomes of it.
#[derive(Debug)]
struct Runtime {
    settings: Settings,
    signals: SignalFd,
    resolver: Resolver,
    state: Option<StateDir>,
    /// Whether what a successor would find is what is shown.
    written: bool,
    clients: Clients,
    watch: Option<Watch>,
    mounting: Option<MountThread>,
    mounted: Option<Mounted>,
    device: Option<OwnedFd>,
    agreement: Option<Agreement>,
    /// The physical store directory.
    store_path: PathBuf,
    /// The same, opened.
    store: Option<OwnedFd>,
    /// Directories in which links of this view may be.
    link_dirs: BTreeSet<PathBuf>,
    server: Option<Server>,
    /// Started while the roots are being resolved: loading the program takes longer than that.
    spare: Option<Server>,
    probe: Option<Probe>,
}

/// Mounts a view, or takes over one that is mounted, and serves it to its end.
///
/// # Errors
/// [`MonitorError`]; what was mounted here is unmounted again, what was taken over is left to a successor.
pub fn run(settings: Settings) -> Result<Ending, MonitorError> {
    let signals = signals()?;
    let Begin { mut runtime, inherited } = inherit::begin(settings, signals)?;
    let policy = Policy {
        prune: runtime.settings.prune,
        can_hand_over: systemd::is_there() && runtime.state.is_some(),
    };
    let (mut supervisor, actions) = Supervisor::new(policy, inherited, now());
    let mut events = VecDeque::new();
    for action in actions {
        match runtime.perform(action, &supervisor) {
            Performed::Done => {}
            Performed::Event(event) => events.push_back(event),
            Performed::Ended(result) => return result,
        }
    }
    loop {
        while let Some(event) = events.pop_front() {
            for action in supervisor.handle(now(), event) {
                match runtime.perform(action, &supervisor) {
                    Performed::Done => {}
                    Performed::Event(event) => events.push_back(event),
                    Performed::Ended(result) => return result,
                }
            }
        }
        events.extend(runtime.wait(supervisor.next()));
        events.push_back(Event::Time);
    }
}

fn now() -> Now {
    Now { monotonic: Instant::now(), wall: SystemTime::now() }
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
