//! The mount: its place, its options, its beginning and its end.
//!
//! Responsibility: prepare a mount point, attach a FUSE file system there as root or through `fusermount3`, read
//! the mount table, unmount.
//!
//! Invariants: nothing of somebody else is ever unmounted or mounted over; a mount point that was made here is
//! removed here.

mod fusermount;
mod table;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

pub use table::{Mount, mounts};

/// The file system type in the mount table.
pub const TYPE: &str = "fuse.nix-store-fs";
const DEVICE: &str = "/dev/fuse";
/// Threads that look for users of a view: one more than processes that are likely to hang at once.
const LOOKERS: usize = 8;

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
    /// There is no FUSE device.
    #[error(
        "/dev/fuse does not exist; load the kernel module with 'modprobe fuse', or pass the device into this container"
    )]
    NoDevice,
    /// The FUSE device may not be opened.
    #[error("/dev/fuse may not be opened; run as root, or allow this user or container to use the device")]
    Device(#[source] io::Error),
    /// The kernel refused the mount.
    #[error("the kernel refuses to mount on '{}'; mounting needs CAP_SYS_ADMIN", at.display())]
    Refused {
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
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
    #[error("cannot read the mount table")]
    Table(#[source] io::Error),
}

/// A mounted view.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    source: String,
    created: bool,
}

/// The source of a view called `name` in the mount table.
#[must_use]
pub fn source(name: &str) -> String {
    format!("nix-store-fs:{name}")
}

/// The name of the view that is mounted at `at`.
///
/// # Errors
/// [`MountError::Table`].
pub fn view_at(at: &Path) -> Result<Option<String>, MountError> {
    let at = std::path::absolute(at).unwrap_or_else(|_| at.to_owned());
    let found = mounts()?.into_iter().rfind(|mount| mount.at == at && mount.kind == TYPE);
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

/// A mount point that is fit for use.
#[derive(Debug)]
pub struct Point {
    at: PathBuf,
    created: bool,
}

impl Point {
    /// Makes `at` ready: an existing empty directory, or one made now and removed again if it is not used. A
    /// dead mount of a view called `name` is cleared away.
    ///
    /// # Errors
    /// [`MountError`] names what is in the way.
    pub fn prepare(at: &Path, name: &str) -> Result<Self, MountError> {
        let fail = |doing| move |source| MountError::Point { doing, at: at.to_owned(), source };
        let parent = at.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            if parent.exists() && !parent.is_dir() {
                return Err(MountError::NotADirectory(parent.to_owned()));
            }
            std::fs::create_dir_all(parent).map_err(fail("create the directories above"))?;
        }
        if at.is_symlink() && !at.exists() && !is_dead(at) {
            return Err(MountError::Dangling(at.to_owned()));
        }
        clear_dead(at, name)?;
        let created = match std::fs::create_dir(at) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(fail("create")(error)),
        };
        let point = Self { at: at.canonicalize().map_err(fail("resolve"))?, created };
        point.check()?;
        Ok(point)
    }

    fn check(&self) -> Result<(), MountError> {
        let fail = |doing| move |source| MountError::Point { doing, at: self.at.clone(), source };
        if !self.at.metadata().map_err(fail("examine"))?.is_dir() {
            return Err(MountError::NotADirectory(self.at.clone()));
        }
        if let Some(mount) = mounts()?.into_iter().rfind(|mount| mount.at == self.at) {
            let by = format!("'{}' ({})", mount.source, mount.kind);
            return Err(MountError::Mounted { at: self.at.clone(), by });
        }
        match std::fs::read_dir(&self.at).map_err(fail("read"))?.next() {
            None => Ok(()),
            Some(_) => Err(MountError::NotEmpty(self.at.clone())),
        }
    }

    /// Mounts an empty FUSE connection here; returns it with its device.
    ///
    /// # Errors
    /// [`MountError`]; the mount point is removed again if it was made.
    pub fn mount(mut self, name: &str) -> Result<(Mounted, OwnedFd), MountError> {
        let source = source(name);
        let device = if rustix::process::geteuid().is_root() {
            mount_as_root(&self.at, &source)?
        } else {
            fusermount::mount(&self.at, &source)?
        };
        let created = std::mem::take(&mut self.created);
        Ok((Mounted { at: std::mem::take(&mut self.at), source, created }, device))
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if self.created {
            let _ = std::fs::remove_dir(&self.at);
        }
    }
}

/// Whether the server of what is mounted at `at` is gone.
fn is_dead(at: &Path) -> bool {
    matches!(rustix::fs::stat(at), Err(Errno::NOTCONN))
}

fn clear_dead(at: &Path, name: &str) -> Result<(), MountError> {
    if !is_dead(at) {
        return Ok(());
    }
    let top = mounts()?.into_iter().rfind(|mount| mount.at == at);
    match top {
        Some(mount) if mount.kind == TYPE && mount.source == source(name) => {
            tracing::warn!(mountpoint = %at.display(), "clearing away the dead mount of an earlier run");
            detach(at)
        }
        Some(mount) => {
            let by = format!("'{}' ({}), whose server is dead", mount.source, mount.kind);
            Err(MountError::Mounted { at: at.to_owned(), by })
        }
        None => Ok(()),
    }
}

fn mount_as_root(at: &Path, source: &str) -> Result<OwnedFd, MountError> {
    let device: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoDevice,
            // A device node for which no driver is loaded.
            _ if matches!(error.raw_os_error(), Some(n) if n == Errno::NODEV.raw_os_error() || n == Errno::NXIO.raw_os_error()) => {
                MountError::NoDevice
            }
            _ => MountError::Device(error),
        })?
        .into();
    // rootmode has only to be a directory; the root's real mode comes with its attributes.
    let options = format!(
        "fd={},rootmode=40555,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_fd().as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(source, at, TYPE, flags, &*options)
        .map_err(|error| MountError::Refused { at: at.to_owned(), source: error.into() })?;
    Ok(device)
}

fn detach(at: &Path) -> Result<(), MountError> {
    let fail = |source| MountError::Point { doing: "unmount", at: at.to_owned(), source };
    if rustix::process::geteuid().is_root() {
        rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| fail(e.into()))
    } else {
        fusermount::unmount(at, true)
    }
}

impl Mounted {
    /// A mount that an earlier process made, if it is still there.
    ///
    /// # Errors
    /// [`MountError::Table`].
    pub fn found(at: &Path, name: &str, created: bool) -> Result<Option<Self>, MountError> {
        let mounted = Self { at: at.to_owned(), source: source(name), created };
        Ok(mounted.is_there()?.then_some(mounted))
    }

    /// Lets the kernel read ahead by `bytes`, in place of the 128 KiB that FUSE begins with. Needs root and a
    /// writable sysfs; without, files are read in smaller pieces.
    ///
    /// # Errors
    /// [`MountError::Table`], [`MountError::ReadAhead`].
    pub fn set_read_ahead(&self, bytes: u32) -> Result<(), MountError> {
        let found = mounts()?.into_iter().rfind(|mount| mount.at == self.at);
        let Some(Mount { device, .. }) = found else { return Ok(()) };
        // The mount's own queue: Documentation/ABI/testing/sysfs-class-bdi.
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), (bytes / 1024).to_string())
            .map_err(|source| MountError::ReadAhead { at: self.at.clone(), source })
    }

    /// Where it is.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Whether the mount point was made for it, and goes with it.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }

    /// Whether it is still in the mount table.
    ///
    /// # Errors
    /// [`MountError::Table`].
    pub fn is_there(&self) -> Result<bool, MountError> {
        let top = mounts()?.into_iter().rfind(|mount| mount.at == self.at);
        Ok(top.is_some_and(|mount| mount.kind == TYPE && mount.source == self.source))
    }

    /// Unmounts, lazily if it is in use, and removes a mount point that was made for it. `in_use` is called before it
    /// is detached, while one can still see who uses it.
    ///
    /// # Errors
    /// [`MountError::Point`].
    pub fn unmount(&self, in_use: impl FnOnce(&Path)) -> Result<(), MountError> {
        if self.is_there()? && !self.unmount_unused()? {
            in_use(&self.at);
            detach(&self.at)?;
        }
        self.remove_place();
        Ok(())
    }

    /// Removes a mount point that was made for the view, which is not mounted there any more.
    pub fn remove_place(&self) {
        if self.created {
            // Somebody may have mounted or put something there since: that stays.
            let _ = std::fs::remove_dir(&self.at);
        }
    }

    /// Whether it could be unmounted; not while somebody uses it.
    fn unmount_unused(&self) -> Result<bool, MountError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(fusermount::unmount(&self.at, false).is_ok());
        }
        match rustix::mount::unmount(&self.at, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(error) => {
                Err(MountError::Point { doing: "unmount", at: self.at.clone(), source: error.into() })
            }
        }
    }
}

/// Processes that have something below `at` open, run it or stand in it: `name (pid)`, a few at most. What could not
/// be found out within `patience` is left out: looking at a process that hangs, hangs. So several look.
#[must_use]
pub fn users(at: &Path, patience: Duration) -> Vec<String> {
    const MOST: usize = 8;
    let deadline = Instant::now() + patience;
    let processes: Vec<PathBuf> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path())
        .collect();
    let processes = Arc::new(Mutex::new(processes));
    let (tell, told) = std::sync::mpsc::channel();
    for _ in 0..LOOKERS {
        let (at, processes, tell) = (at.to_owned(), processes.clone(), tell.clone());
        let look = move || {
            loop {
                let Some(dir) = processes.lock().pop() else { break };
                if uses(&dir, &at) && tell.send(describe(&dir)).is_err() {
                    break;
                }
            }
        };
        if std::thread::Builder::new().name("users".to_owned()).spawn(look).is_err() {
            break;
        }
    }
    drop(tell);
    let left = || deadline.saturating_duration_since(Instant::now());
    std::iter::from_fn(|| told.recv_timeout(left()).ok()).take(MOST).collect()
}

fn uses(process: &Path, at: &Path) -> bool {
    let leads_there = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(at));
    ["cwd", "root", "exe"].iter().any(|link| leads_there(&process.join(link)))
        || std::fs::read_dir(process.join("fd"))
            .is_ok_and(|fds| fds.flatten().any(|fd| leads_there(&fd.path())))
}

fn describe(process: &Path) -> String {
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("{} ({})", name.trim_end(), process.file_name().unwrap_or_default().display())
}
