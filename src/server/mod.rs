//! The server: one FUSE session, fed with closures by the monitor, from a mount or a resumption to its end.
//!
//! Invariants:
//! - It needs `/dev/fuse`, the store directory and the names that the monitor sends, and nothing else of the
//!   system: it never calls Nix.
//! - It answers INIT never: that was the monitor's. So every start is a resumption ([`session`]).
//!
//! Hard points:
//! 1. A server may be killed at any moment, and no reader may notice. What it had taken is in the ledger ([`crate::fuse::ledger`]),
//!    what the kernel knows in the journal.
//! 2. What the kernel has cached is invalidated only from threads that answer no request: the kernel waits for
//!    locks that a request in flight may hold.
//! 3. When the monitor dies the server continues, and what is mounted stays readable; unless a service manager
//!    keeps the device: then the next monitor starts a server, and two that read one device would give one id
//!    to two names. The lock keeps a server from beginning before the last one has ended.
//! 4. To invalidate a name the kernel waits, and no signal ends it, for whoever looks at the directory; and they wait
//!    for an answer. A server that is killed then does not end before another answers them. So what the next one
//!    waits for, the lock and the monitor's socket, is not held by a thread that notifies: see [`forgetting`].

pub mod counts;
mod forgetting;
pub mod fuse;
pub mod idle;
pub mod missed;
mod process;
pub mod registrar;
pub mod root_names;
mod session;
pub mod stops;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::process::Resource;

use crate::fuse::{Device, Ledger};
use crate::protocol::handshake::{Io, Lifetime, Promised};
use crate::protocol::task::Task;
use crate::protocol::wire::{self, Carried, Cause, Order, Received, Report, Start};
use crate::values::{StorePath, View};
use crate::view::ahead::{Bringer, ReadAhead};
use crate::view::backing::{Backing, Identity};
use crate::view::journal::{Home, Journal, JournalError, Record};
use crate::view::trace::Trace;
use crate::view::trie::{NodeId, PathTrie, ROOT};
use crate::view::usage::Usage;
use crate::view::{MemberWatch, Registrations, ServedView};
use crate::{log, sandbox, sys};
use counts::Counts;
use forgetting::{Invalidator, Owed};
use fuse::StoreFs;
use idle::{Flow, When};
use missed::Missed;
use registrar::AskingMonitor;
use root_names::RootNames;
use session::{Earlier, Session};
use stops::Stop;

pub use process::main;

/// How long a server that ends waits for whoever reads its log, less than the monitor waits: its successor waits for it.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Why a server ends before its mount.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The monitor did not say what to serve.
    #[error("the monitor sent nothing to serve; this mode is for the monitor to start")]
    NoOrder(#[source] Option<io::Error>),
    /// What an earlier server left cannot be gone on from.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The lock that keeps servers apart cannot be had.
    #[error("cannot take the lock of the server")]
    Lock(#[source] io::Error),
    /// The monitor ended before the server began.
    #[error("the monitor has ended")]
    Orphaned,
    /// It cannot give up its rights, and is to.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Missing),
    /// Nothing in the store can be opened.
    #[error(
        "the store directory cannot be opened with openat2(2); Linux 5.10 or newer is needed, and no system call filter that refuses the call, as RestrictSUIDSGID= in a unit does"
    )]
    Store(#[source] io::Error),
    /// The session could not be set up, or broke.
    #[error("the FUSE session failed while {doing}")]
    Session {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ServeError {
    /// Whether the same start may succeed later.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Journal(JournalError::Foreign(_) | JournalError::Version { .. }) => Cause::Leftovers,
            // Somebody has removed them, or the directory that they are in.
            Self::Journal(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Cause::Leftovers
            }
            Self::Store(error) if is_refusal(error) => Cause::Unsupported,
            Self::Sandbox(_) => Cause::Unsupported,
            Self::Journal(_)
            | Self::Store(_)
            | Self::NoOrder(_)
            | Self::Lock(_)
            | Self::Orphaned
            | Self::Session { .. } => Cause::Passing,
        }
    }
}

/// Whether a system call is unknown, or refused by a filter.
fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSYS | Errno::PERM))
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::Session { doing, source }
}

/// What the monitor hands to a server beside what to serve: see [`Carried`].
#[derive(Debug)]
pub struct Descriptors {
    device: OwnedFd,
    store: OwnedFd,
    journal: Option<OwnedFd>,
    lock: Option<OwnedFd>,
    /// None: a new one, which ends with this process.
    ledger: Option<OwnedFd>,
    /// None: what is asked is counted by this process for itself.
    usage: Option<OwnedFd>,
    /// None: that is not to be asked for.
    idle: Option<(OwnedFd, When)>,
    /// None: nobody wants to know.
    missed: Option<OwnedFd>,
    /// None: nobody has the kernel read files by itself.
    registrar: Option<OwnedFd>,
    /// None: nobody learns from what is asked, and nobody plays.
    trace: Option<OwnedFd>,
}

impl Descriptors {
    /// Those that came with an order, by their kinds. None: one that is needed is not among them.
    fn sort(kinds: &[Carried], descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut all: Vec<_> = kinds.iter().copied().zip(descriptors).collect();
        let mut take = |kind| {
            let at = all.iter().position(|(found, _)| *found == kind)?;
            Some(all.swap_remove(at).1)
        };
        Some(Self {
            device: take(Carried::Device)?,
            store: take(Carried::Store)?,
            journal: take(Carried::Journal),
            lock: take(Carried::Lock),
            ledger: take(Carried::Ledger),
            usage: take(Carried::Usage),
            idle: take(Carried::Idle)
                .map(|device| (device, When::Always))
                .or_else(|| Some((take(Carried::IdleTrial)?, When::Tried))),
            missed: take(Carried::Missed),
            registrar: take(Carried::Registrar),
            trace: take(Carried::Trace),
        })
    }
}

/// The first order that a process gets.
#[derive(Debug)]
pub enum First {
    /// To serve.
    Serve(Box<Start>, Descriptors),
    /// To do something else, with these descriptors.
    Do(Box<Task>, Vec<OwnedFd>),
}

/// Receives what to do over `monitor`.
///
/// # Errors
/// [`ServeError::NoOrder`].
pub fn receive_first(monitor: impl AsFd) -> Result<First, ServeError> {
    match wire::receive_order(monitor) {
        Ok(Received::Message((Order::Start(start), descriptors))) => {
            let sorted = Descriptors::sort(&start.carries, descriptors);
            sorted.map(|descriptors| First::Serve(start, descriptors)).ok_or(ServeError::NoOrder(None))
        }
        Ok(Received::Message((Order::Do(task), descriptors))) => Ok(First::Do(task, descriptors)),
        Ok(_) => Err(ServeError::NoOrder(None)),
        Err(error) => Err(ServeError::NoOrder(Some(error))),
    }
}

/// Serves until the view is unmounted.
///
/// # Errors
/// [`ServeError`]; the mount is still there, and another server may take over.
pub fn serve(start: Start, descriptors: Descriptors, monitor: &Arc<OwnedFd>) -> Result<(), ServeError> {
    let Descriptors { device, store, journal, lock, ledger, usage, idle, missed, registrar, trace } =
        descriptors;
    if let Some(monitor) = start.end_with {
        end_with(monitor)?;
    }
    // Held until the process ends.
    let _lock = lock.map(take_lock).transpose()?;
    // The device is one open file of all servers, and the one before may have been a container's by its end. It is read without
    // asking first whether there is something (F_SETFL of fcntl(2): O_NONBLOCK, O_ASYNC).
    rustix::fs::fcntl_setfl(&device, OFlags::empty())
        .map_err(|error| failed("making the device blocking")(error.into()))?;
    let device = Arc::new(Device::from(device));
    // Nobody else uses it from here on.
    let (ledger, slots) = Ledger::open(ledger).map_err(failed("mapping the ledger"))?;
    let usage = Usage::open(usage);
    let trace = Trace::open(trace);
    let watch = MemberWatch::new(&store);
    let room = descriptors_left();
    let home = journal.zip(start.journal.as_deref()).map(|(dir, path)| Home::new(dir, path));
    let files = home.as_ref().map(Home::files).unwrap_or_default();
    sandbox::Server { store: store.as_fd(), journal: &files }.confine(start.sandbox)?;
    drop(files);
    log::start();

    // From here on it parses what others have written.
    let trie = Arc::new(PathTrie::new());
    let backing = Backing::new(store);
    backing.check().map_err(|error| ServeError::Store(error.into()))?;
    let registrations = (start.agreement.io == Io::Passthrough).then(|| {
        let all = Registrations::new(std::process::id());
        Arc::new(match registrar {
            Some(monitor) => all.asking(Arc::new(AskingMonitor::new(monitor))),
            None => all,
        })
    });
    let mut members = Vec::new();
    let journal = home.map(|home| open_journal(home, &trie, registrations.as_deref(), &mut members));
    let journal = journal.transpose()?;
    // A journal that somebody has shortened, or put an older one in the place of, does not know of its own losses.
    let highest = NodeId(ledger.highest());
    let is_shorter = highest >= trie.next();
    trie.restore_next(NodeId(highest.0 + 1));
    let has_losses =
        start.resume && journal.as_ref().is_some_and(|journal| is_shorter || journal.has_losses());
    if has_losses {
        // The kernel may know nodes that nobody knows: it has to ask again for all names, and gets others.
        if registrations.is_some() {
            // It may also have nodes open of which nobody knows how, and refuses to open those in another way.
            trie.detach_all();
        }
    }
    let restored = trie.len();
    let (stale, stale_nodes) = mpsc::channel();
    let view = ServedView::new(trie.clone(), backing, journal, registrations);
    let view = view.noting(ledger.clone()).counting(usage.clone()).invalidating(stale);
    let view = read_ahead(view, trie.clone());
    let view = Arc::new(view);
    members.into_iter().for_each(|(member, identity)| view.restore_member(member, identity));
    let fresh = trie.prepare(&start.view);
    view.record(&fresh.into_iter().map(Record::Node).collect::<Vec<_>>());
    trie.switch(&start.view, start.epoch);

    let (first, answered) = mpsc::channel();
    let mut counts = Counts::new(usage, first);
    let (begun, begins) = mpsc::channel();
    if let Some((idle, when)) = idle {
        let (flow, keeper) = Flow::new(idle);
        counts = counts.showing(flow);
        spawn("idle", move || {
            if let Err(error) = keeper.run(when, &begins) {
                tracing::debug!(%error, "processors are not kept awake while requests flow");
            }
        })?;
    }
    let counts = Arc::new(counts);
    let root = Arc::new(RootNames::new(start.promise, start.resume));
    let mut fs = StoreFs::new(view.clone(), counts.clone(), ledger.clone(), root.clone()).tracing(trace);
    if let Some(missed) = missed {
        fs = fs.reporting(Missed::new(missed));
    }
    let session = Session::new(device.clone(), fs, ledger.clone());

    let before = start.agreement.promised;
    let mut renewed = false;
    if has_losses || before.absences == Lifetime::Endless {
        // Before anything is answered or reported. It waits for nothing; by their names, names may be forgotten long after that.
        let forgotten = if stops::renews() { device.forget_all_names() } else { Err(Errno::INVAL.into()) };
        match forgotten {
            Ok(()) => renewed = true,
            Err(error) => {
                tracing::debug!(%error, "what the kernel knows by an earlier server is forgotten by name");
            }
        }
    }
    let promised = match (stops::waits(), renewed) {
        (true, _) => Promised::default(),
        (false, true) => start.promise,
        (false, false) => before,
    };
    let serving = Report::Serving { epoch: start.epoch, restored, renewed };
    let earlier = match (start.resume, start.whole) {
        (false, _) => Earlier::Nobody,
        (true, true) => Earlier::Known { crashed: start.crashed },
        (true, false) => Earlier::Unknown { crashed: start.crashed },
    };
    let owed = Owed::find(&ledger, &trie, matches!(earlier, Earlier::Unknown { .. }));
    let invalidator = forgetting::start(device.clone(), ledger, owed, view.clone(), stale_nodes, promised)?;
    let reporter = Reporter(monitor.clone());
    spawn("answered", {
        let reporter = reporter.clone();
        move || {
            if answered.recv().is_ok() {
                reporter.report(&Report::Answered);
            }
            drop(begun);
        }
    })?;
    spawn("orders", {
        let (view, monitor) = (view.clone(), monitor.clone());
        move || {
            let (lost, listing) = (has_losses && !renewed, before.absences == Lifetime::Endless);
            let all = invalidator.names(start.view.names().filter(|_| lost), start.resume && listing);
            let switch = Switcher { device, view, root, invalidator };
            let (added, removed) = start.invalidate.iter().partition(|name| start.view.contains(name));
            switch.settle(added, removed);
            let _ = all.recv();
            reporter.report(&serving);
            if let Err(error) = follow_orders(&*monitor, &reporter, &switch) {
                tracing::error!(%error, "cannot follow the monitor; ending, so that it starts another server");
                log::flush(LAST_WORDS);
                sys::exit_now(1);
            }
        }
    })?;
    tracing::debug!(room, "descriptors for the store");
    view.backing().set_room(room, start.threads);
    spawn("members", move || watch.run(&view))?;
    let answer = session.run(start.threads, slots, earlier);
    let answer = answer.map_err(failed("answering requests"));
    tracing::debug!(requests = %counts, nodes = trie.len(), "the session has ended");
    answer
}

/// Brings files ahead of whoever walks the `view`, in a thread that may wait for the disk: who waits for this server to end does not wait
/// for that. Files that the kernel reads by itself are not seen.
fn read_ahead(view: ServedView, trie: Arc<PathTrie>) -> ServedView {
    if view.registrations().is_some() {
        return view;
    }
    let ahead = Arc::new(ReadAhead::default());
    let files = view.backing().ahead();
    let bringer = Bringer::new(files, trie);
    let own = ahead.clone();
    let begun = spawn("ahead", move || match sys::keep_descriptor(bringer.descriptor()) {
        Ok(()) => own.work(bringer),
        Err(error) => tracing::debug!(%error, "nothing is read ahead of who walks"),
    });
    match begun {
        Ok(()) => view.reading_ahead(ahead),
        // No answer depends on it.
        Err(error) => {
            tracing::debug!(error = %crate::error::chain(&error), "nothing is read ahead of who walks");
            view
        }
    }
}

/// The monitor's ear.
#[derive(Clone)]
struct Reporter(Arc<OwnedFd>);

impl Reporter {
    fn report(&self, report: &Report) {
        // A monitor that has died needs no report.
        let _ = wire::send_report(&*self.0, report);
    }
}

/// Lets the kernel end this process when `monitor` ends.
fn end_with(monitor: u32) -> Result<(), ServeError> {
    let monitor = i32::try_from(monitor).ok().and_then(rustix::process::Pid::from_raw);
    let lives = monitor.map(|monitor| sys::die_with(Some(monitor)));
    match lives.transpose().map_err(failed("tying it to the monitor"))? {
        Some(true) => Ok(()),
        Some(false) | None => Err(ServeError::Orphaned),
    }
}

/// Waits until no other server of this view lives.
fn take_lock(lock: OwnedFd) -> Result<File, ServeError> {
    let file = File::from(lock);
    let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive);
    locked.map_err(|error| ServeError::Lock(error.into()))?;
    Ok(file)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed("starting a thread"))?;
    Ok(())
}

/// How many more files this process may open.
fn descriptors_left() -> usize {
    /// Where it cannot be counted: more than a server has open besides the store's files.
    const OPEN: usize = 24;
    /// What is opened later besides them.
    const LATER: usize = 6;
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // The directory itself is open while it is read.
    let open = std::fs::read_dir("/proc/self/fd").map_or(OPEN, |all| all.count().saturating_sub(1));
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(open + LATER)
}

/// Restores what the journal in `home` holds: the nodes of `trie`, which has none yet, how they are read, and what the members were.
///
/// # Errors
/// [`JournalError`].
pub fn open_journal(
    home: Home,
    trie: &PathTrie,
    registrations: Option<&Registrations>,
    members: &mut Vec<(NodeId, Identity)>,
) -> Result<Arc<Journal>, ServeError> {
    let journal = Journal::resume(home, |record| match record {
        Record::Node(node) => trie.restore(&node),
        Record::Next(id) => trie.restore_next(id),
        Record::Member(member, identity) => members.push((member, identity)),
        Record::Replaced(member) => drop(trie.detach(member)),
        record => {
            registrations.inspect(|all| all.restore(&record));
        }
    })?;
    trie.skip(journal.lost_ids());
    Ok(Arc::new(journal))
}

/// Does what the monitor orders until it orders no more.
///
/// # Errors
/// What cannot be understood: another server has to serve what is ordered.
fn follow_orders(monitor: impl AsFd, reporter: &Reporter, switcher: &Switcher) -> io::Result<()> {
    loop {
        match wire::receive_order(&monitor)? {
            Received::Message((Order::Switch { view: next, epoch }, _)) => {
                switcher.switch(&next, epoch);
                reporter.report(&Report::Switched { epoch });
            }
            Received::Message((Order::Start(_) | Order::Do(_), _)) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "received a second order to start"));
            }
            Received::Nothing => {}
            Received::Closed => {
                tracing::debug!("the monitor is gone; the view stays as it is");
                return Ok(());
            }
        }
    }
}

/// What a switch works on.
struct Switcher {
    device: Arc<Device>,
    view: Arc<ServedView>,
    root: Arc<RootNames>,
    invalidator: Invalidator,
}

impl Switcher {
    fn switch(&self, next: &View, epoch: u32) {
        let view = &self.view;
        let fresh = view.trie().prepare(next);
        view.record(&fresh.into_iter().map(Record::Node).collect::<Vec<_>>());
        let switch = view.trie().switch(next, epoch);
        stops::at(Stop::Switched);
        self.settle(switch.added.iter().collect(), switch.removed.iter().collect());
        view.check_members();
    }

    /// Returns when the kernel shows these names as they are.
    fn settle(&self, added: Vec<&StorePath>, removed: Vec<&StorePath>) {
        if added.is_empty() && removed.is_empty() {
            return;
        }
        let is_done = self.invalidator.changed(added.iter().copied(), removed.iter().copied());
        // The root's size and number of links.
        if let Err(error) = self.device.forget_attributes(ROOT.0) {
            tracing::debug!(%error, "the kernel shows the attributes that the root had");
        }
        self.root.expire(!added.is_empty(), !removed.is_empty());
        let _ = is_done.recv();
    }
}
