//! A Nix database of the caller's own: made where there is none, filled, and corrected, by Nix's library.
//!
//! It is for a Nix that runs where the store is a view: valid in it is what the view shows, and what that Nix has built.
//!
//! Invariants: nothing is written but below the state directory; no file of a store object is examined, but for derivations, of which Nix
//! registers the outputs. What is valid refers to nothing that is not, also if the process ends in the middle.
//!
//! Hard points:
//! 1. A local store's constructor wants to write to the store's directory (`.links`, and its owner, for a group of build users), and
//!    as root makes its mount writable. So it gets another one, empty but for what it reads: derivations, and the names of
//!    what is to stay valid.
//! 2. It refuses a store's directory below a symbolic link, and `SQLite` resolves the links in the path of a database by their text. The text of
//!    a link in `/proc/PID/fd` is a path as seen from the root of that mount, or of another namespace: it may lead to the
//!    database of the host. So a state directory must be its own real path.
//! 3. Nix reserves 8 MiB of disk for the day when there is no space left to open the database. On a tmpfs that is memory. A file that
//!    has the size already is left alone, so it is made without any contents.
//! 4. Nix sorts what is registered at once, and goes from what is dropped to what refers to it, by functions that call themselves. A
//!    chain may be as long as whoever fills the store likes. So both are done in parts, and each part ends a chain.
//! 5. Nix takes 60 µs for each path. An empty database, which is what most sandboxes begin with, is filled by statements of our own: where
//!    Nix has made the tables that we know, without derivations, in which only Nix finds the outputs, and without cycles, which only
//!    Nix refuses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cxx::UniquePtr;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::ffi::{Failure, bridge};
use super::{StoreError, initialise, path_info};
use crate::sys::lock;
use crate::values::{PathInfo, StorePath};

/// How many paths are registered or dropped at once: see the fourth hard point.
const AT_ONCE: usize = 1000;
/// The store's directory for Nix, below the state directory. It is removed at the end.
const STAND_IN: &str = "registering";
/// What Nix's setting `gc-reserved-space` is by default, in bytes.
const RESERVED: u64 = 8 << 20;
/// What the name of a derivation ends with.
const DERIVATION: &str = ".drv";

/// Why a database cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Nix's library does not start.
    #[error(transparent)]
    Library(StoreError),
    /// Nix would write to another place than the one that was meant.
    #[error("cannot keep Nix's database in '{}', which is another place by its real name, '{}': give that one", .given.display(), .real.display())]
    Indirect {
        /// The directory as given.
        given: PathBuf,
        /// What it resolves to.
        real: PathBuf,
    },
    /// Two processes would write to it at once.
    #[error("Nix's database in '{}' is being written to by another process: use another directory, or wait for it to end", .state.display())]
    InUse {
        /// The state directory.
        state: PathBuf,
    },
    /// A file or directory cannot be made, read or removed.
    #[error("cannot {action} '{}', which Nix's database needs: check permissions and free space", .path.display())]
    File {
        /// What was to be done, as in "cannot read".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it cannot.
        #[source]
        source: io::Error,
    },
    /// Nix refuses.
    #[error("cannot {operation} Nix's database in '{}': {cause}; remove the directory to begin with a new one", .state.display())]
    Nix {
        /// What was to be done, as in "cannot open".
        operation: &'static str,
        /// The state directory.
        state: PathBuf,
        /// Nix's reason.
        cause: String,
    },
    /// The database names a path that no store can hold, or not all that it refers to.
    #[error("Nix's database in '{}' is damaged: remove the directory to begin with a new one", .state.display())]
    Damaged {
        /// The state directory.
        state: PathBuf,
        /// What is wrong with it.
        #[source]
        source: StoreError,
    },
}

/// An open database. While it is open no other process may open it through this module.
#[derive(Debug)]
pub struct Database {
    handle: Handle,
    state: PathBuf,
    /// The store's directory for Nix.
    stand_in: PathBuf,
    /// The state directory, locked.
    _locked: File,
}

/// The bridge's handle, which has no form for a person.
struct Handle(UniquePtr<bridge::Handle>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

/// How long a lock may take: whoever had it may just be ending.
const PATIENCE: Duration = Duration::from_secs(2);

impl Database {
    /// The file that Nix takes for reserved disk space. It has a size and no contents.
    pub const RESERVED: &str = "reserved";

    /// Opens the database in `state`, Nix's state directory, for the store whose paths begin with `store_dir`. Both it and the
    /// directory are made if they do not exist.
    ///
    /// # Errors
    /// Each variant of [`DatabaseError`] but `Damaged`.
    pub fn open(store_dir: &Path, state: &Path) -> Result<Self, DatabaseError> {
        initialise().map_err(DatabaseError::Library)?;
        fs::create_dir_all(state).map_err(failed("make", state))?;
        let real = fs::canonicalize(state).map_err(failed("examine", state))?;
        if real != state {
            return Err(DatabaseError::Indirect { given: state.to_owned(), real });
        }
        let locked = File::open(state).map_err(failed("open", state))?;
        if !lock::take_within(&locked, PATIENCE).map_err(failed("lock", state))? {
            return Err(DatabaseError::InUse { state: state.to_owned() });
        }
        let stand_in = state.join(STAND_IN);
        // A process that was killed may have left one.
        remove(&stand_in)?;
        fs::create_dir(&stand_in).map_err(failed("make", &stand_in))?;
        prepare(state)?;
        let directories = [
            ("store", store_dir),
            ("state", state),
            ("real", stand_in.as_path()),
            // Else Nix's own, which is not used here, but had better not be known either.
            ("log", state),
        ];
        let params = directories.map(|(key, dir)| bridge::Param {
            key: key.to_owned(),
            value: dir.as_os_str().as_bytes().to_owned(),
        });
        let handle =
            bridge::open_store("local", &params).map_err(|error| refused("open", state, error.into()))?;
        Ok(Self { handle: Handle(handle), state: state.to_owned(), stand_in, _locked: locked })
    }

    /// Everything that is valid, with its facts, sorted by path.
    ///
    /// # Errors
    /// [`DatabaseError::Nix`], [`DatabaseError::Damaged`].
    pub fn valid(&self) -> Result<Vec<PathInfo>, DatabaseError> {
        let refused = |error: cxx::Exception| refused("read", &self.state, error.into());
        let damaged = |source| DatabaseError::Damaged { state: self.state.clone(), source };
        let names = self.handle.0.valid_paths().map_err(refused)?;
        // All of them are a closure: what a valid path refers to is valid.
        let found = self.handle.0.closure(&names).map_err(refused)?;
        let names = found.iter().map(|info| StorePath::new(&info.path)).collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|error| damaged(error.into()))?;
        let infos = names.iter().zip(found).map(|(path, info)| path_info(path, info, &names));
        let mut infos = infos.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        infos.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(infos)
    }

    /// Makes those of `members` valid that `is_new` names, with all their facts; of what is valid already, size, hash, signatures, content
    /// address and trust are corrected. `members` is a closure, and what is not new in it is valid. The files of derivations are
    /// read in `files`, the store's directory on this machine.
    ///
    /// # Errors
    /// [`DatabaseError::File`] for a derivation that cannot be read, [`DatabaseError::Nix`] for facts that contradict each other, for
    /// example. What was registered before stays valid.
    pub fn register(
        &self,
        members: &[&PathInfo],
        is_new: impl Fn(&PathInfo) -> bool,
        files: &Path,
    ) -> Result<(), DatabaseError> {
        let new: Vec<&PathInfo> = members.iter().copied().filter(|info| is_new(info)).collect();
        if new.iter().any(|info| is_derivation(&info.path)) {
            // Nix hashes a derivation with all that it builds upon.
            self.bring(members.iter().map(|info| &info.path).filter(|path| is_derivation(path)), files)?;
        }
        let mut names: Vec<String> = Vec::new();
        let mut places: HashMap<&StorePath, u32> = HashMap::new();
        let mut place = |path| {
            *places.entry(path).or_insert_with(|| {
                names.push(path.as_str().to_owned());
                // A closure of more paths than that has no room in memory.
                u32::try_from(names.len() - 1).unwrap_or(u32::MAX)
            })
        };
        let order = references_first(&new);
        // So the place of each among the names is its place in the order.
        for info in &order {
            place(&info.path);
        }
        let infos: Vec<_> = order
            .into_iter()
            .map(|info| bridge::Info {
                path: info.path.as_str().to_owned(),
                nar_hash: info.nar_hash.clone(),
                nar_size: info.nar_size,
                references: info.references.iter().map(&mut place).collect(),
                deriver: info.deriver.as_ref().map_or_else(String::new, |path| path.as_str().to_owned()),
                registration_time: info.registration_time,
                signatures: info.signatures.clone(),
                ca: info.ca.clone().unwrap_or_default(),
                ultimate: info.ultimate,
            })
            .collect();
        if self.fill(&infos)? {
            return Ok(());
        }
        for part in infos.chunks(AT_ONCE) {
            self.handle
                .0
                .register_paths(&names, part)
                .map_err(|error| refused("write to", &self.state, error.into()))?;
        }
        Ok(())
    }

    /// Fills the database in one step, if it is empty and what is to be in it is simple: see the fifth hard point. References are
    /// places in `infos`. Whether it was done.
    fn fill(&self, infos: &[bridge::Info]) -> Result<bool, DatabaseError> {
        let refused = |error: cxx::Exception| refused("write to", &self.state, error.into());
        let is_simple = |(place, info): (usize, &bridge::Info)| {
            !info.path.ends_with(DERIVATION) && info.references.iter().all(|to| *to as usize <= place)
        };
        if !infos.iter().enumerate().all(is_simple)
            || !self.handle.0.valid_paths().map_err(refused)?.is_empty()
        {
            return Ok(false);
        }
        let database = self.state.join("db/db.sqlite");
        self.handle.0.fill(database.as_os_str().as_bytes(), infos).map_err(refused)
    }

    /// Makes every path invalid of `valid` that `stays` refuses, and all that refer to it. `valid` is what [`Database::valid`] returned.
    /// Returns what is no longer valid, sorted.
    ///
    /// # Errors
    /// [`DatabaseError::File`], [`DatabaseError::Nix`].
    pub fn keep<'a>(
        &self,
        valid: &'a [PathInfo],
        stays: impl Fn(&PathInfo) -> bool,
    ) -> Result<BTreeSet<&'a StorePath>, DatabaseError> {
        let mut dropped = BTreeSet::new();
        let mut order = Vec::new();
        let all: Vec<&PathInfo> = valid.iter().collect();
        for info in references_first(&all) {
            if !stays(info) || info.references.iter().any(|path| dropped.contains(path)) {
                dropped.insert(&info.path);
                order.push(&info.path);
            }
        }
        if order.is_empty() {
            return Ok(dropped);
        }
        // Nix takes for absent what has no name here.
        let place = |path: &StorePath| self.stand_in.join(path.as_str());
        for info in valid {
            let path = place(&info.path);
            File::create(&path).map_err(failed("make", &path))?;
        }
        order.reverse();
        for part in order.chunks(AT_ONCE) {
            for path in part.iter().map(|path| place(path)) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
            self.handle.0.drop_absent().map_err(|error| refused("correct", &self.state, error.into()))?;
        }
        Ok(dropped)
    }

    /// Copies files of the store to where Nix reads them.
    fn bring<'a>(
        &self,
        paths: impl Iterator<Item = &'a StorePath>,
        files: &Path,
    ) -> Result<(), DatabaseError> {
        for path in paths {
            let (from, to) = (files.join(path.as_str()), self.stand_in.join(path.as_str()));
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = openat(CWD, &from, flags, Mode::empty()).map_err(io::Error::from);
            let mut source = File::from(source.map_err(failed("read", &from))?);
            let mut copy = File::create(&to).map_err(failed("make", &to))?;
            io::copy(&mut source, &mut copy).map_err(failed("copy", &from))?;
        }
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.stand_in) {
            tracing::debug!("{error}");
        }
    }
}

fn is_derivation(path: &StorePath) -> bool {
    path.as_str().ends_with(DERIVATION)
}

/// `infos` in an order in which each comes after those of them that it refers to.
fn references_first<'a>(infos: &[&'a PathInfo]) -> Vec<&'a PathInfo> {
    let by_path: BTreeMap<&StorePath, &PathInfo> = infos.iter().map(|info| (&info.path, *info)).collect();
    let mut order = Vec::with_capacity(infos.len());
    let mut met = BTreeSet::new();
    for start in infos {
        if !met.insert(&start.path) {
            continue;
        }
        // Each with the references of it that are still to be followed.
        let mut chain = vec![(*start, start.references.iter())];
        while let Some((info, rest)) = chain.last_mut() {
            match rest.find_map(|path| by_path.get(path).filter(|_| met.insert(path))) {
                Some(next) => chain.push((*next, next.references.iter())),
                None => {
                    order.push(*info);
                    chain.pop();
                }
            }
        }
    }
    order
}

/// Makes what Nix would make otherwise: see the third hard point, and a link among the roots to where the profiles are now, which is
/// another place for whoever uses the database.
fn prepare(state: &Path) -> Result<(), DatabaseError> {
    for dir in ["db", "gcroots"].map(|name| state.join(name)) {
        fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
    }
    let path = state.join("db").join(Database::RESERVED);
    match File::create_new(&path) {
        Ok(file) => file.set_len(RESERVED).map_err(failed("make", &path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("make", &path)(error)),
    }
}

/// A directory that need not exist.
fn remove(dir: &Path) -> Result<(), DatabaseError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: impl AsRef<OsStr>) -> impl FnOnce(io::Error) -> DatabaseError {
    let path = PathBuf::from(path.as_ref());
    move |source| DatabaseError::File { action, path, source }
}

fn refused(operation: &'static str, state: &Path, failure: Failure) -> DatabaseError {
    DatabaseError::Nix { operation, state: state.to_owned(), cause: failure.text }
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
