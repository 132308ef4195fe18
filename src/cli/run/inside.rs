//! What `--nix` needs before there is a view: a database of Nix's with the closure in it, and a lock on the layer.
//!
//! A process of its own asks Nix and makes it, as Nix's library makes threads, and this one is to become the command. Without
//! `--overlay` it is made on a file system that nobody else sees, which ends with its descriptors: nothing is left, whoever is killed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::super::closures::{Known, Resolved};
use super::super::exit::Failure;
use super::{FAILED, left, settings};
use crate::background;
use crate::closure::inside::{Inside, InsideError};
use crate::closure::profile::StoreDirs;
use crate::closure::resolve::{closure, follow};
use crate::closure::source::Source;
use crate::run::{LOG_DIR, Nix, Place, STATE_DIR, UPPER, WORK};
use crate::sandbox::{Missing, Sandbox};
use crate::store::Store;
use crate::sys::{lock, memory};
use crate::{log, run, sandbox, startup, sys};

/// How long a layer may still be used by a command that has ended.
const PATIENCE: Duration = Duration::from_secs(2);
/// Settings that Nix needs in there: one user, and no daemon.
const SETTINGS: &str = "store = local\nbuild-users-group =\n";

/// Why there is no place for Nix.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Another command uses the layer.
    #[error("'{}' is in use by another 'nix-store-fs run'; wait until that has ended, or give another directory with --overlay", .0.display())]
    Used(PathBuf),
    /// A directory or file of it cannot be made.
    #[error("cannot make '{}' for --nix; give another directory with --overlay", path.display())]
    Make {
        /// What cannot be made.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no file system in memory.
    #[error("no place in memory for the database of --nix; give a directory with --overlay")]
    Memory(#[source] io::Error),
    /// Something in the layer is not what a run leaves there.
    #[error("'{}' {what}, so the layer is not used: a command may have changed it; remove it, or give another directory with --overlay", path.display())]
    Odd {
        /// What is there.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The process that changes the layer may change too much.
    #[error(transparent)]
    Rights(Missing),
    /// The database, or what the layer holds.
    #[error(transparent)]
    Inside(#[from] InsideError),
}

/// A place for Nix, and the roots of the closure that its database has.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) nix: Nix,
    pub(super) roots: Vec<PathBuf>,
}

/// Makes a place for Nix with the closure of `source`. The process that does so says itself what is wrong.
pub(super) fn prepare(source: &Source, store: Option<&str>, overlay: Option<&Path>) -> Option<Prepared> {
    let parent = rustix::process::getpid();
    let begun = background::pair().and_then(|sockets| Ok((sockets, sys::fork()?)));
    let ((ours, theirs), child) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            log::say(&format!("nix-store-fs: cannot start the process that asks Nix: {error}"));
            return None;
        }
    };
    let Some(child) = child else {
        drop(ours);
        if !matches!(sys::die_with(Some(parent)), Ok(true)) {
            sys::exit_now(FAILED);
        }
        startup::begin_helper();
        sys::exit_now(match make(source, store, overlay).and_then(|made| made.give(&theirs)) {
            Ok(()) => 0,
            Err(failure) => {
                log::say_error(&failure);
                FAILED
            }
        });
    };
    drop(theirs);
    let taken = background::take(&ours);
    let status = sys::wait_for(child).ok().flatten();
    if let Some(signal) = status.and_then(|status| status.terminating_signal()) {
        log::say(&format!(
            "nix-store-fs: the process that asks Nix was ended by signal {signal}; the log of the system may say why"
        ));
        return None;
    }
    let mut given = taken?.1.into_iter();
    let (made, list, lock) = (given.next()?, given.next()?, given.next());
    let mut text = String::new();
    let mut list = File::from(list);
    list.rewind().and_then(|()| list.read_to_string(&mut text)).ok()?;
    let place = match overlay {
        None => Place::Memory,
        Some(given) => match path_of(given, &made) {
            Ok(path) => Place::Directory(path),
            Err(error) => {
                log::say_error(&error);
                return None;
            }
        },
    };
    let roots = text.lines().map(PathBuf::from).collect();
    Some(Prepared { nix: Nix { made, place, lock }, roots })
}

/// The path of the layer `made` at `given`, as this process sees it. Who made it has opened a store, and is in a mount namespace of its own as
/// root: what its descriptor is called leads nowhere here.
fn path_of(given: &Path, made: &OwnedFd) -> Result<PathBuf, PlaceError> {
    let failed = |source: io::Error| PlaceError::Make { path: given.to_owned(), source };
    let path = given.canonicalize().map_err(failed)?;
    let stats = rustix::fs::stat(&path).and_then(|found| Ok((found, rustix::fs::fstat(made)?)));
    let (found, wanted) = stats.map_err(|error| failed(error.into()))?;
    if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
        return Err(failed(io::Error::other("another directory is there by now")));
    }
    Ok(path)
}

/// What the variables of the command are for Nix.
pub(super) fn set_variables(variables: &mut Vec<(OsString, OsString)>) {
    let own = variables.iter().rfind(|(name, _)| name == "NIX_CONFIG").map(|(_, value)| value.clone());
    let mut config = own.unwrap_or_default();
    if !config.is_empty() {
        config.push("\n");
    }
    config.push(SETTINGS);
    for (name, value) in [
        ("NIX_REMOTE", OsString::from("local")),
        ("NIX_STATE_DIR", "/nix/var/nix".into()),
        ("NIX_LOG_DIR", "/nix/var/log/nix".into()),
        ("NIX_CONFIG", config),
    ] {
        settings::set(variables, name.into(), value);
    }
}

/// What was made, open.
struct Made {
    dir: OwnedFd,
    roots: File,
    lock: Option<OwnedFd>,
}

impl Made {
    fn give(&self, to: &OwnedFd) -> Result<(), Failure> {
        let all = [Some(self.dir.as_fd()), Some(self.roots.as_fd()), self.lock.as_ref().map(AsFd::as_fd)];
        let all: Vec<_> = all.into_iter().flatten().collect();
        background::give(to, 0, &all).map_err(|error| PlaceError::Memory(error).into())
    }
}

fn make(source: &Source, store: Option<&str>, overlay: Option<&Path>) -> Result<Made, Failure> {
    let Resolved { closure, dir, real_dir } = resolve(source, store)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PlaceError::Make { path, source }
    };
    let (place, lock) = match overlay {
        None => (own_memory().map_err(PlaceError::Memory)?, None),
        Some(given) => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(given).map_err(failed(given))?;
            let place = given.canonicalize().map_err(failed(given))?;
            let lock = take(&place)?;
            (place, Some(lock))
        }
    };
    for name in [UPPER, WORK, STATE_DIR, LOG_DIR] {
        let path = place.join(name);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&path)(error).into());
            }
            _ => {}
        }
    }
    if lock.is_some() {
        left::examine(&place)?;
        // Whatever changes there now: nothing is changed anywhere else.
        let confined = sandbox::StoreThread { written: std::slice::from_ref(&place), links: &[] };
        confined.confine(Sandbox::Best).map_err(PlaceError::Rights)?;
    }
    let (state, upper) = (place.join(STATE_DIR), place.join(UPPER));
    let layer = overlay.is_some().then_some(upper.as_path());
    let inside = Inside { store_dir: &dir, files: &real_dir, state: &state, layer };
    inside.bring_up_to(&closure).map_err(PlaceError::from)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        rustix::fs::open(&place, flags, Mode::empty()).map_err(|error| failed(&place)(error.into()))?;
    let mut list = memory::memory_file("roots").map_err(PlaceError::Memory)?;
    for root in closure.roots() {
        writeln!(list, "{}", dir.join(root.as_str()).display()).map_err(PlaceError::Memory)?;
    }
    Ok(Made { dir: open, roots: list, lock })
}

/// The closure, with roots that a view would have as well.
fn resolve(source: &Source, store: Option<&str>) -> Result<Resolved, Failure> {
    match source {
        Source::Saved(_) => {
            Ok(Known::from(source.clone(), store.map(str::to_owned))?
                .closure("what Nix knows in the view")?)
        }
        Source::Roots(roots) => {
            let store = Store::open_given(store)?;
            let followed = follow(roots, StoreDirs::of(&store)).result.map_err(Failure::from)?;
            let closure = closure(&store, followed)?;
            Ok(Resolved { closure, dir: store.dir().to_owned(), real_dir: store.real_dir().to_owned() })
        }
    }
}

/// A directory on a file system of this process's own. Nix's library wants real paths.
fn own_memory() -> io::Result<PathBuf> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        run::map((user, user), (group, group))?;
    }
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)?;
    // Any directory will do. Nix writes what is temporary to the first.
    let known = [std::env::temp_dir(), "/tmp".into(), "/run".into(), "/dev".into()];
    let is_dir = |dir: &PathBuf| dir.is_absolute() && dir.is_dir();
    let at = known.into_iter().find(is_dir).unwrap_or_default().canonicalize()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("nix-store-fs:made", &at, "tmpfs", flags, c"mode=0700")?;
    Ok(at)
}

/// The lock is the directory itself: a file in it could be removed.
fn take(place: &Path) -> Result<OwnedFd, PlaceError> {
    let failed = |source: io::Error| PlaceError::Make { path: place.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(place, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let dir = File::from(dir);
    // Whoever serves the view of the command before ends a moment after it.
    match lock::take_within(&dir, PATIENCE) {
        Ok(true) => Ok(dir.into()),
        Ok(false) => Err(PlaceError::Used(place.to_owned())),
        Err(source) => Err(failed(source)),
    }
}
