//! The mount thread: checks the place, mounts, and answers the kernel's first request.
//!
//! It has a thread of its own because a path may lead into a file system that does not answer. The monitor does not wait
//! for it but at the end, and then not for long.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::error::{MonitorError, system};
use super::mount::{Detach, Mounted, Number, Point, refuse_served};
use super::poll;
use super::settings::Given;
use super::state;
use crate::fuse::ledger;
use crate::protocol::handshake::{self, Agreement, Io, Passthrough, Promised, Wishes};
use crate::view::journal::Journal;
use crate::view::usage;

/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAYFS: u32 = 0x794c_7630;

/// What is to be mounted.
#[derive(Debug)]
pub(super) struct Task {
    /// What the view is called.
    pub(super) name: String,
    /// Where it is to be mounted.
    pub(super) mountpoint: PathBuf,
    /// What others have mounted there, in a mount namespace of theirs.
    pub(super) given: Option<Given>,
    /// How files are to be read.
    pub(super) io: Io,
    /// The store directory.
    pub(super) store: Arc<OwnedFd>,
    /// The state directory of the name, which may be another view's no more.
    pub(super) state: PathBuf,
    /// Where the node journal is to be, if there is a place for it.
    pub(super) journal: Option<PathBuf>,
    /// How long what servers tell may be cached.
    pub(super) promise: Promised,
}

/// A new mount.
#[derive(Debug)]
pub(super) struct New {
    pub(super) mounted: Mounted,
    pub(super) device: OwnedFd,
    /// None: there is no memory for one.
    pub(super) ledger: Option<OwnedFd>,
    pub(super) usage: Option<OwnedFd>,
    pub(super) agreement: Agreement,
    /// Whether there is a node journal.
    pub(super) journal: bool,
}

/// The thread.
#[derive(Debug)]
pub(super) struct MountThread {
    result: Receiver<Result<New, MonitorError>>,
    ready: Arc<OwnedFd>,
}

impl MountThread {
    /// Begins with `task`.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(task: Task) -> Result<Self, MonitorError> {
        let ready = Arc::new(poll::event().map_err(system("make an event"))?);
        let signal = ready.clone();
        let (tell, result) = channel();
        let work = move || {
            let _ = tell.send(mount(task));
            poll::raise(&signal);
        };
        thread::Builder::new().name("mount".to_owned()).spawn(work).map_err(system("start a thread"))?;
        Ok(Self { result, ready })
    }

    /// Readable when it is done.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// What came of it, once it is done.
    pub(super) fn result(&self) -> Option<Result<New, MonitorError>> {
        self.result.try_recv().ok()
    }

    /// What came of it, if it is done by `deadline`.
    pub(super) fn result_before(&self, deadline: Instant) -> Option<Result<New, MonitorError>> {
        let left: Duration = deadline.saturating_duration_since(Instant::now());
        self.result.recv_timeout(left).ok()
    }
}

/// A failure leaves nothing mounted.
fn mount(mut task: Task) -> Result<New, MonitorError> {
    let (mounted, device) = match task.given.take() {
        Some(Given { device, connection, .. }) => {
            (Mounted::elsewhere(&task.mountpoint, &task.name, connection), device)
        }
        None => mount_here(&task)?,
    };
    let agreement = match agree(&task, &mounted, &device) {
        Ok(agreement) => agreement,
        Err(error) => {
            if let Err(error) = mounted.unmount(Detach::Gently, |_| ()) {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount the view again");
            }
            return Err(error);
        }
    };
    let journal = task.journal.as_deref().is_some_and(begin_journal);
    let (ledger, usage) = (begin_ledger(false), begin_usage(true));
    Ok(New { mounted, device, ledger, usage, agreement, journal })
}

fn mount_here(task: &Task) -> Result<(Mounted, OwnedFd), MonitorError> {
    refuse_served(&state::server_lock(&task.state), &task.name)?;
    let earlier = state::earlier(&task.state);
    let number = earlier.as_ref().and_then(|state| state.connection).map(Number);
    let made = earlier.map(|state| state.made).unwrap_or_default();
    let point = Point::prepare(&task.mountpoint, &task.name, number)?;
    let mounted = point.inheriting(&made).mount(&task.name)?;
    if !rustix::process::geteuid().is_root() {
        tracing::warn!(
            "mounted as an ordinary user: only you can see the view, not root and no container of another user"
        );
    }
    Ok(mounted)
}

/// The memory of what servers have taken; see [`ledger::create`].
pub(super) fn begin_ledger(before: bool) -> Option<OwnedFd> {
    ledger::create(before)
        .inspect_err(|error| {
            tracing::warn!(%error, "no ledger: on kernels before 6.9, what a server that is killed had taken is lost");
        })
        .ok()
}

/// The memory in which servers count; see [`usage::create`].
pub(super) fn begin_usage(whole: bool) -> Option<OwnedFd> {
    usage::create(whole)
        .inspect_err(|error| {
            tracing::warn!(%error, "no memory to count in: what is asked of the view is not known");
        })
        .ok()
}

/// The journal exists before anything can be known by the kernel: so a mount without one was served without one.
fn begin_journal(path: &std::path::Path) -> bool {
    Journal::create(path)
        .inspect_err(|error| {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "the view would not survive a crash of its server"
            );
        })
        .is_ok()
}

fn agree(task: &Task, mounted: &Mounted, device: &OwnedFd) -> Result<Agreement, MonitorError> {
    let root = rustix::process::geteuid().is_root();
    let stacked = rustix::fs::fstatfs(&task.store).is_ok_and(|fs| u32::try_from(fs.f_type) == Ok(OVERLAYFS));
    let passthrough = match task.io {
        Io::Passthrough if root => Passthrough::Required,
        Io::Passthrough | Io::Cached => Passthrough::Unwanted,
    };
    let wishes = Wishes { passthrough, idmap: root, store_depth: u32::from(stacked), promised: task.promise };
    let agreement = handshake::answer(device, wishes)?;
    if root && let Err(error) = mounted.set_read_ahead(handshake::READ_MAX) {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "cannot raise the read-ahead; files are read in smaller requests"
        );
    }
    if root && !agreement.idmap {
        tracing::info!(
            "this kernel cannot map the owners of a view (Linux 6.12 can): private users see files of nobody"
        );
    }
    if agreement.io != task.io {
        tracing::warn!(
            "falling back to --io cached: passthrough needs CAP_SYS_ADMIN, and a store that is not on a nested overlayfs"
        );
    }
    Ok(agreement)
}
