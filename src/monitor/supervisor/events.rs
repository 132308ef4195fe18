//! What the supervisor is told, and what it tells: plain values.

use std::time::{Duration, Instant, SystemTime};

use super::content::{Change, Found};
use crate::monitor::error::MonitorError;
use crate::monitor::history::Fact;
use crate::protocol::control::Outcome;

/// The time, as it is when an event is handled.
#[derive(Debug, Clone, Copy)]
pub(in crate::monitor) struct Now {
    /// For waits.
    pub(in crate::monitor) monotonic: Instant,
    /// For people.
    pub(in crate::monitor) wall: SystemTime,
}

/// Somebody who asked for a reload and has no answer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::monitor) struct ClientId(pub(in crate::monitor) u64);

/// What happened.
#[derive(Debug)]
pub(in crate::monitor) enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGUSR2.
    HandOver {
        /// Whether the service manager keeps the device.
        kept: bool,
    },
    /// SIGHUP, or a client.
    Reload(Option<ClientId>),
    /// A link or file that the roots depend on has changed.
    Changed,
    /// The store thread has answered [`Action::Resolve`].
    Resolved(Result<Found, Unresolved>),
    /// The store's files are in another directory than those that servers were given. Comes before [`Event::Resolved`].
    Moved,
    /// The mount thread has answered [`Action::Mount`]; with whether there is a node journal.
    Mounted(Result<bool, Box<MonitorError>>),
    /// The server answers requests.
    Serving {
        /// The epoch that it began with.
        epoch: u32,
        /// Nodes taken over from an earlier server.
        restored: usize,
    },
    /// The server has answered a request.
    Answered,
    /// The server shows this epoch.
    Switched {
        /// Number of the switch.
        epoch: u32,
    },
    /// The server cannot begin.
    Refused(Refusal),
    /// The server's socket is closed, or cannot be used, for this reason.
    HungUp(Option<String>),
    /// The server's process has ended, in these words.
    Exited {
        /// How, in words.
        how: String,
        /// Whether a signal ended it that nobody has sent: a fault of its own.
        faulted: bool,
    },
    /// [`Action::StartServer`] was not possible.
    NotStarted(String),
    /// The answer to [`Action::LookAtMount`].
    MountIs(Seen),
    /// The view has answered [`Action::Probe`].
    Answers,
    /// There was no thread for [`Action::Probe`].
    NotProbed,
    /// The answer to [`Action::FindListers`]: why the switch takes too long, and what to do about it.
    Overdue(String),
    /// The time of [`super::Supervisor::next`] has come.
    Time,
}

/// What there is of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Seen {
    /// Its connection to the kernel lives: it is mounted somewhere, or open.
    Alive,
    /// Its connection has ended, and it is in the mount table.
    Dead,
    /// Its connection has ended, and it is not in the mount table.
    Gone,
}

/// Why the roots could not be resolved.
#[derive(Debug)]
pub(in crate::monitor) struct Unresolved {
    /// The error.
    pub(in crate::monitor) error: Box<MonitorError>,
    /// Whether the same may succeed later.
    pub(in crate::monitor) may_pass: bool,
}

/// Why a server cannot begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) enum Refusal {
    /// What earlier servers left cannot be read.
    Leftovers(String),
    /// The kernel does not offer what is needed.
    Unsupported(String),
    /// The same may succeed later.
    Passing(String),
}

/// What is to be done.
#[derive(Debug)]
pub(in crate::monitor) enum Action {
    /// Ask the store thread to resolve the roots.
    Resolve,
    /// Tell the store thread that this resolution is shown, and with `only` that nothing older is.
    Settle {
        /// The resolution.
        number: u64,
        /// Whether older ones may go.
        only: bool,
    },
    /// Ask the mount thread for a new mount.
    Mount,
    /// Give the device to the service manager to keep.
    StoreDevice,
    /// Write the content to the state directory.
    WriteState,
    /// Start a server with the content.
    StartServer {
        /// Whether an earlier server may have taken requests.
        resume: bool,
    },
    /// Order the server to show the content.
    Switch,
    /// Kill the server.
    KillServer,
    /// Leave the killed server to a thread that waits for its end.
    ReapLater,
    /// Look whether the connection lives, and whether the view is in the mount table.
    LookAtMount,
    /// Ask the view something, from a thread that may wait for ever.
    Probe,
    /// Tell a client what became of its reload.
    Answer(ClientId, Outcome),
    /// Look for processes that keep a switch from its end, from a thread that may wait for them.
    FindListers,
    /// Tell the service manager.
    Notify(Notice),
    /// Log.
    Note(Note),
    /// Add this to what is known of the view's history.
    Record(Fact),
    /// End, as planned.
    End(Plan),
}

/// What the service manager is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) enum Notice {
    /// RELOADING=1.
    Reloading,
    /// READY=1 with this status.
    Ready(String),
    /// This status.
    Status(String),
    /// The start continues, and waits for this: EXTEND_TIMEOUT_USEC=.
    Starting(Slow),
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) enum Note {
    /// The view answers.
    Answers,
    /// A new server has taken over from one of this monitor.
    TakenOver {
        /// Nodes taken over.
        restored: usize,
    },
    /// The view changes.
    Switching(Change),
    /// A watched link has changed.
    LinkChanged,
    /// The roots could not be resolved, and the view stays as it is.
    Unresolved {
        /// Why not.
        why: String,
        /// Whether it was the resolution of the start.
        first: bool,
        /// When it is tried again, if it is.
        retry: Option<Duration>,
    },
    /// A server is no more, and another one is started.
    Died {
        /// How it ended.
        how: String,
        /// When the next one starts.
        pause: Duration,
    },
    /// A server has sent what is no message, or takes none.
    Misunderstood(String),
    /// Somebody unmounted the view.
    Unmounted,
    /// There is nobody to hand over to.
    NoSuccessor,
    /// There is no journal from which a successor could resume.
    NoJournal,
    /// Something takes long.
    Slow(Slow),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Slow {
    /// The Nix store resolves the roots.
    Store,
    /// The mount thread works.
    Mount,
    /// The server begins.
    Server,
    /// The server switches, or a server to do it.
    Switch,
    /// The view answers.
    Answer,
}

/// How the monitor ends.
#[derive(Debug)]
pub(in crate::monitor) struct Plan {
    /// The result.
    pub(in crate::monitor) verdict: Verdict,
    /// What becomes of the mount.
    pub(in crate::monitor) mount: MountEnd,
    /// What becomes of garbage collector roots.
    pub(in crate::monitor) links: Links,
}

/// The result.
#[derive(Debug)]
pub(in crate::monitor) enum Verdict {
    /// The view was unmounted, by a signal or by somebody else.
    Unmounted,
    /// A successor takes over.
    HandedOver,
    /// It cannot be served.
    Failed(Box<MonitorError>),
}

impl Verdict {
    pub(super) fn failed(error: MonitorError) -> Self {
        Self::Failed(Box::new(error))
    }

    /// What clients are told who wait for a reload.
    pub(in crate::monitor) fn why(&self) -> &'static str {
        match self {
            Self::Unmounted => "the view was unmounted before the reload was done",
            Self::HandedOver => {
                "the view was handed over to another process before the reload was done; ask again"
            }
            Self::Failed(_) => "the view failed before the reload was done; its log has the reason",
        }
    }
}

/// What becomes of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum MountEnd {
    /// There is none.
    Nothing,
    /// It is unmounted, once the mount thread is done if it works.
    Unmount,
    /// Somebody has unmounted it: what belonged to it goes.
    Gone,
    /// It is left to a successor, with everything that belongs to it.
    Leave,
}

/// What becomes of links that are garbage collector roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Links {
    /// None is left.
    None,
    /// Those of earlier monitors are left.
    Earlier,
    /// All are left.
    Keep,
}
