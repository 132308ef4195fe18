//! The mount: its place, its options, its beginning and its end.
//!
//! Responsibility: prepare a mount point ([`Point`]), attach a FUSE file system there as root or through `fusermount3`, read
//! the mount table, unmount.
//!
//! Invariants: nothing of somebody else is ever unmounted or mounted over; a directory that was made here is removed
//! here.

mod connection;
mod earlier;
mod fusermount;
mod place;
mod point;
mod processes;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::fuse::attach::AttachError;
use crate::mounts::{Mount, TableError, mounts};

pub use connection::{Connection, Number};
pub use earlier::{Served, refuse_served};
pub use place::place;
pub use point::Point;
pub(super) use processes::command;
pub use processes::{named, users};

/// How many ways of each kind to a view that cannot be seen are tried.
const WAYS: usize = 8;

/// Why a view cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is something else than a directory.
    #[error("'{}' is not a directory, so nothing can be mounted there; give another mount point", .0.display())]
    NotADirectory(PathBuf),
    /// The mount point is a link to nothing.
    #[error("the mount point '{}' is a link that leads nowhere; make what it leads to, or give another one", .0.display())]
    Dangling(PathBuf),
    /// The mount point holds something.
    #[error("the mount point '{}' is not empty; empty it or give another one", .0.display())]
    NotEmpty(PathBuf),
    /// Something is mounted there.
    #[error("'{}' is already a mount point, of {by}; unmount it or give another one", at.display())]
    Mounted {
        /// The mount point.
        at: PathBuf,
        /// Source and type of what is mounted.
        by: String,
    },
    /// A server of this view is still alive.
    #[error("{0}")]
    Served(Box<Served>),
    /// It cannot be found out whether one is.
    #[error("cannot take the lock '{}' of the view's server", path.display())]
    ServerLock {
        /// The lock.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another mount lies on top of the view's.
    #[error("cannot unmount the view, because {by} is mounted over it on '{}'; unmount that, then 'umount -l {}'", at.display(), at.display())]
    Covered {
        /// The mount point.
        at: PathBuf,
        /// Source and type of what is mounted over it.
        by: String,
    },
    /// The mount point cannot be used.
    #[error("cannot {doing} the mount point '{}'; give another one", at.display())]
    Point {
        /// What was tried.
        doing: &'static str,
        /// The mount point.
        at: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The read-ahead cannot be set.
    #[error("cannot set the read-ahead of '{}' in sysfs", at.display())]
    ReadAhead {
        /// The mount point.
        at: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// FUSE cannot be used.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// `fusermount3` is not installed.
    #[error(
        "ordinary users mount through fusermount3, which is not installed; install fuse3, or run as root"
    )]
    NoFusermount,
    /// `fusermount3` failed.
    #[error(
        "fusermount3 cannot mount for an ordinary user: {0}; ask the administrator for access to /dev/fuse and the mount point, or run as root"
    )]
    Fusermount(String),
    /// The mount table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// In whose mount table a view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Own,
    /// In that of others, who mount and unmount it.
    Others,
}

/// A mounted view.
#[derive(Debug, Clone)]
pub struct Mounted {
    table: Table,
    at: PathBuf,
    source: String,
    /// Its number in the mount table: it may be moved, or covered by another mount.
    id: Option<u64>,
    /// The number of its connection.
    connection: Option<Number>,
    /// Directories that were made for it, outermost first.
    made: Vec<PathBuf>,
}

/// How a view is unmounted, and detached if it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Its connection lives as long as somebody uses it.
    Gently,
    /// Its connection ends at once, if the kernel allows it.
    Forcibly,
}

/// The source of a view called `name` in the mount table.
#[must_use]
pub fn source(name: &str) -> String {
    format!("nix-store-fs:{name}")
}

/// The name of the view that is mounted at `at`, by the effective user: anybody else may have chosen it.
///
/// # Errors
/// [`MountError::Table`].
pub fn view_at(at: &Path) -> Result<Option<String>, MountError> {
    let Ok(at) = place(at) else { return Ok(None) };
    let found = top(&at)?.filter(Mount::is_own_view);
    Ok(found.and_then(|mount| mount.source.strip_prefix("nix-store-fs:").map(str::to_owned)))
}

/// Whether the connection of `device` has ended: it was unmounted everywhere, or aborted. The kernel reports an error
/// for such a device at once (`fuse_dev_poll` of Linux `fs/fuse/dev.c`).
#[must_use]
pub fn has_ended(device: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&device, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok()
        && polled.iter().any(|polled| polled.revents().contains(PollFlags::ERR))
}

/// What is mounted at `at`, the topmost if several are.
fn top(at: &Path) -> Result<Option<Mount>, MountError> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.at == at))
}

fn detach(at: &Path) -> Result<(), MountError> {
    if !rustix::process::geteuid().is_root() {
        return fusermount::unmount(at, true);
    }
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(at, flags).map_err(|error| MountError::Point {
        doing: "unmount",
        at: at.to_owned(),
        source: error.into(),
    })
}

impl Mounted {
    /// A mount that an earlier process made, if it is still there.
    ///
    /// # Errors
    /// [`MountError::Table`].
    pub fn found(at: &Path, name: &str, made: Vec<PathBuf>) -> Result<Option<Self>, MountError> {
        let mut mounted = Self {
            table: Table::Own,
            at: at.to_owned(),
            source: source(name),
            id: None,
            connection: None,
            made,
        };
        let Some(found) = mounted.find()? else { return Ok(None) };
        mounted.connection = Number::of(&found.device);
        Ok(Some(mounted))
    }

    /// The mount of an earlier process whose connection lives, wherever it is mounted now.
    #[must_use]
    pub fn inherited(
        at: &Path,
        name: &str,
        id: Option<u64>,
        connection: Option<Number>,
        made: Vec<PathBuf>,
    ) -> Self {
        let mut mounted =
            Self { table: Table::Own, at: at.to_owned(), source: source(name), id, connection, made };
        if connection.is_none() {
            mounted.connection = mounted.find().ok().flatten().and_then(|mount| Number::of(&mount.device));
        }
        mounted
    }

    /// A mount that others have made at `at`, in a mount namespace of theirs.
    #[must_use]
    pub fn elsewhere(at: &Path, name: &str, connection: Number) -> Self {
        Self {
            table: Table::Others,
            at: at.to_owned(),
            source: source(name),
            id: None,
            connection: Some(connection),
            made: Vec::new(),
        }
    }

    /// Its number in the mount table, if it is known.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// The number of its connection, if it is known.
    #[must_use]
    pub fn connection(&self) -> Option<Number> {
        self.connection
    }

    /// Lets the kernel read ahead by `bytes`, in place of the 128 KiB that FUSE begins with. Needs root and a
    /// writable sysfs; without, files are read in smaller pieces.
    ///
    /// # Errors
    /// [`MountError::Table`], [`MountError::ReadAhead`].
    pub fn set_read_ahead(&self, bytes: u32) -> Result<(), MountError> {
        let device = match (self.table, self.connection) {
            (Table::Others, Some(Number(minor))) => format!("0:{minor}"),
            _ => match top(&self.at)? {
                Some(Mount { device, .. }) => device,
                None => return Ok(()),
            },
        };
        // The mount's own queue: Documentation/ABI/testing/sysfs-class-bdi.
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), (bytes / 1024).to_string())
            .map_err(|source| MountError::ReadAhead { at: self.at.clone(), source })
    }

    /// Where it is.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Directories that were made for it and go with it, outermost first.
    #[must_use]
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// Removes the directories that were made for it, as far as nobody uses them.
    pub fn remove_made(&self) {
        place::remove_made(&self.made);
    }

    /// Whether it is still in the mount table.
    ///
    /// # Errors
    /// [`MountError::Table`].
    pub fn is_there(&self) -> Result<bool, MountError> {
        Ok(self.find()?.is_some())
    }

    /// Where it can be seen: nowhere if it is covered by another mount, or mounted in other mount namespaces alone.
    ///
    /// # Errors
    /// [`MountError::Table`].
    pub fn seen_at(&self) -> Result<Option<PathBuf>, MountError> {
        let Some(Mount { id, at, .. }) = self.find()? else { return Ok(None) };
        Ok(top(&at)?.filter(|top| top.id == id).map(|_| at))
    }

    /// Paths that lead to it where it cannot be seen: in other mount namespaces, and by what is open. They are other processes', so
    /// they may lead elsewhere by now, and whoever uses one may have to wait. They are looked for as long as `patience`; a few of each
    /// kind are enough.
    #[must_use]
    pub fn ways(&self, patience: Duration) -> Vec<PathBuf> {
        let at = self.find().ok().flatten().map_or_else(|| self.at.clone(), |mount| mount.at);
        let elsewhere = processes::holders(&self.source, patience / 2).into_iter().map(|holder| holder.way);
        elsewhere.take(WAYS).chain(processes::links(&at, patience / 2).into_iter().take(WAYS)).collect()
    }

    /// Processes that list a directory of the view and do not come to an end. What could not be found out within `patience` is left
    /// out.
    #[must_use]
    pub fn listers(&self, patience: Duration) -> Vec<String> {
        self.connection.map(|number| processes::listers(number, patience)).unwrap_or_default()
    }

    /// Its line in the mount table: by its number, or else the topmost at its place.
    fn find(&self) -> Result<Option<Mount>, MountError> {
        if self.table == Table::Others {
            return Ok(None);
        }
        let ours = |mount: &Mount| mount.is_own_view_from(&self.source);
        let known = |mount: &Mount| self.id == Some(mount.id) && ours(mount);
        let all = mounts()?;
        let placed = all.iter().rfind(|mount| mount.at == self.at).filter(|mount| ours(mount));
        Ok(all.iter().find(|mount| known(mount)).or(placed).cloned())
    }

    /// Unmounts, and if it is in use detaches it in this way; removes the directories that were made for it. `in_use` is
    /// called before it is detached, while one can still see who uses it.
    ///
    /// # Errors
    /// [`MountError::Point`], [`MountError::Covered`].
    pub fn unmount(&self, how: Detach, in_use: impl FnOnce(&Path)) -> Result<(), MountError> {
        if let Some(Mount { id, at, .. }) = self.find()? {
            if let Some(cover) = top(&at)?.filter(|top| top.id != id) {
                return Err(MountError::Covered { at, by: format!("'{}' ({})", cover.source, cover.kind) });
            }
            // By force first: whoever uses it elsewhere does not keep it from being unmounted here, and is to be freed.
            let forced = how == Detach::Forcibly && force(&at);
            if !forced && !unmount_unused(&at)? {
                in_use(&at);
                detach(&at)?;
            }
        }
        self.remove_made();
        Ok(())
    }
}

/// Ends the connection of the view at `at` if the kernel allows it (`fuse_umount_begin`), and unmounts it if nobody uses it here. Whether
/// it is unmounted.
fn force(at: &Path) -> bool {
    rustix::mount::unmount(at, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW).is_ok()
}

/// Whether what is mounted at `at` could be unmounted; not while somebody uses it.
fn unmount_unused(at: &Path) -> Result<bool, MountError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(fusermount::unmount(at, false).is_ok());
    }
    match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(error) => Err(MountError::Point { doing: "unmount", at: at.to_owned(), source: error.into() }),
    }
}
