//! The Nix store, asked through Nix's own C++ library.
//!
//! Invariants: no C++ type and no borrowed C++ memory leaves this module; every answer is copied into plain
//! values. Opening a store changes nothing that anybody else can see: no store is created, no mount outside the
//! calling thread's own mount namespace changes, no signal handler is installed, nothing is printed.
//!
//! Hard points:
//! 1. Opening a local store as root makes its read-only mount writable, in the mount namespace of the calling
//!    thread. So [`Store::open`] gives that thread a namespace of its own first: call it on a thread that does
//!    nothing else.
//! 2. Nix creates a store where there is none. So an address is taken apart here before Nix sees it (`uri`), and
//!    what every store has must be there.
//! 3. `auto` is decided here, by Nix's rule, because Nix's own last resort for an ordinary user is to create a
//!    store in the home directory.
//! 4. Which store Nix's commands open without `--store` is a setting, `store`, and `NIX_REMOTE` is its default: so
//!    nix.conf overrides the environment. Nix is asked for it ([`Store::open_configured`]), so that it stays Nix's rule.
//! 5. Before 2.34, Nix's static objects look for the home directory before `main`. A user whom no passwd entry
//!    knows and who owns no `HOME` cannot start the program at all, whatever it is asked to do, unless
//!    `NIX_USER_CONF_FILES` is set (`/dev/null` will do).
//! 6. Nix's library answers path by path, in a transaction each. What is served of a local store is read by one statement from the
//!    tables that Nix keeps (`cpp/tables.hh`), through a connection that writes nothing and ends with it. Whatever is in the way
//!    (other tables, a lock, damage) leads back to Nix's library, which waits, or says what is wrong. Facts that are not served, such as
//!    a hash, are not examined on this way.

mod database;
mod error;
mod ffi;
mod namespace;
mod place;
mod uri;

#[cfg(test)]
mod sanitize_tests;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cxx::UniquePtr;
use rustix::fs::{Access, StatVfsMountFlags};

use crate::values::{PathInfo, StorePath, View};
pub use database::{Database, DatabaseError};
pub use error::StoreError;
use ffi::{Failure, Kind, bridge};
pub use place::Place;
use uri::StoreUri;

/// The Nix that `cpp/store.cc` was compiled with.
const BUILT_VERSION: &str = env!("NIX_STORE_FS_NIX_VERSION");
/// Nix's store directory unless `NIX_STORE_DIR` or the address says otherwise.
const BUILT_STORE_DIR: &str = env!("NIX_STORE_FS_STORE_DIR");

/// The address that means the local store or the daemon, whichever this process can use.
const AUTO: &str = "auto";

/// The version of the Nix store library that is loaded. Initialises nothing.
#[must_use]
pub fn nix_version() -> String {
    bridge::nix_version()
}

/// An open Nix store with files on this machine. It remembers nothing of paths: what others have added or collected is seen at once.
///
/// Any one thread at a time may use it. Temporary roots last until it is dropped, and a daemon's restart loses them.
///
/// Hold one `Store` of a place at a time if it has temporary roots: Nix names the file with the temporary roots of a
/// local store by process, so a second one's first root replaces all those of the first.
pub struct Store {
    handle: UniquePtr<bridge::Handle>,
    uri: String,
    dir: PathBuf,
    real_dir: PathBuf,
    /// None: it is asked through a daemon.
    state_dir: Option<PathBuf>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .field("real_dir", &self.real_dir)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `uri`, or without one the store that Nix's own commands open: see [`Store::open`] and
    /// [`Store::open_configured`].
    ///
    /// # Errors
    /// Those of the two.
    pub fn open_given(uri: Option<&str>) -> Result<Self, StoreError> {
        uri.map_or_else(Self::open_configured, Self::open)
    }

    /// Opens the store that Nix's own commands open if they are given none: that of the setting `store`, else that
    /// of `NIX_REMOTE`, else `auto`. What [`Store::open`] says of threads holds here as well.
    ///
    /// # Errors
    /// Those of [`Store::open`], within [`StoreError::Configured`] if the address is not `auto`.
    pub fn open_configured() -> Result<Self, StoreError> {
        initialise()?;
        let uri = bridge::configured_store()
            .map_err(|e| StoreError::Initialise { cause: Failure::from(e).text })?;
        let uri = String::from_utf8_lossy(&uri);
        Self::open(&uri).map_err(|error| match uri.as_ref() {
            "" | AUTO => error,
            _ => StoreError::Configured(Box::new(error)),
        })
    }

    /// Opens the store at `uri`, spelt as for Nix: `auto`, `local`, `daemon`, `unix://SOCKET`, `local?root=DIR`,
    /// or the root directory of a store.
    ///
    /// As root, and unless a daemon is asked, this puts the calling thread into a mount namespace of its own, into
    /// which later mounts and unmounts of the machine still come, and out of which nothing goes. Threads started
    /// from this one inherit it. So call it on a thread of its own, never on one that mounts or serves.
    ///
    /// # Errors
    /// Each variant of [`StoreError`] up to `Initialise`, but for `Configured`.
    pub fn open(uri: &str) -> Result<Self, StoreError> {
        let parsed = StoreUri::parse(uri)?;
        initialise()?;
        let state = parsed.state_dir(&default_state_dir()?);
        let open = |cause: Failure| StoreError::Open { uri: uri.to_owned(), cause: cause.text };
        let daemon = daemon_address(&parsed.kind, &state);
        let handle = match &daemon {
            Some(base) => {
                let daemon = |cause: Failure| StoreError::Daemon { uri: uri.to_owned(), cause: cause.text };
                let handle = open_handle(base, &parsed).map_err(open)?;
                // Otherwise the first question would find out, and its error would be about something else.
                handle.connect().map_err(|e| daemon(e.into()))?;
                handle
            }
            None => {
                let real = parsed.real_dir(&default_store_dir());
                require(uri, &state.join("db/db.sqlite"))?;
                require(uri, &real)?;
                protect_mount(uri, &state, &real)?;
                open_handle("local", &parsed).map_err(|cause| read_only(uri, &state, &real, cause))?
            }
        };
        let unsupported = |e: cxx::Exception| {
            let Failure { kind, text } = e.into();
            match kind {
                Kind::Unsupported => StoreError::Unsupported { uri: uri.to_owned(), why: text },
                Kind::Other => StoreError::Open { uri: uri.to_owned(), cause: text },
            }
        };
        let dir = path_from(handle.logical_dir().map_err(unsupported)?);
        let real_dir = path_from(handle.physical_dir().map_err(unsupported)?);
        let uri = if uri.is_empty() { AUTO } else { uri }.to_owned();
        let state_dir = daemon.is_none().then_some(state);
        Ok(Self { handle, uri, dir, real_dir, state_dir })
    }

    /// Its address, as it was given or configured.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.uri
    }

    /// What that says of where it is.
    #[must_use]
    pub fn place(&self) -> Place {
        // It has been read before.
        Place::of(Some(&self.uri)).unwrap_or_default()
    }

    /// The directory that store paths begin with, wherever their files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory that the files are in.
    #[must_use]
    pub fn real_dir(&self) -> &Path {
        &self.real_dir
    }

    /// Directories in which Nix's library writes once the store is open: nowhere, where a daemon does it. Not in the store: it is
    /// only asked.
    #[must_use]
    pub fn written_dirs(&self) -> Vec<PathBuf> {
        // Each may be a link to another place, or to another disk.
        const WITHIN: [&str; 5] = ["", "db", "temproots", "gcroots", "gcroots/auto"];
        self.state_dir.iter().flat_map(|state| WITHIN.map(|below| state.join(below))).collect()
    }

    /// Whether the store holds `path`, complete with all that it refers to.
    ///
    /// # Errors
    /// [`StoreError::Query`] if Nix cannot tell.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool, StoreError> {
        self.handle.is_valid(path.as_str()).map_err(|e| query("ask for the validity", path, e))
    }

    /// `roots` and all that they refer to, directly or not: sorted by path, each path once.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] names the first root that the store does not hold.
    pub fn closure(&self, roots: &[StorePath]) -> Result<Vec<PathInfo>, StoreError> {
        let found = self.walk(roots, |names| self.handle.closure(names))?;
        let names = found.iter().map(|info| StorePath::new(&info.path)).collect::<Result<Vec<_>, _>>()?;
        let infos = names.iter().zip(found).map(|(path, info)| path_info(path, info, &names));
        let mut members = infos.collect::<Result<Vec<_>, _>>()?;
        members.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(members)
    }

    /// The names of the same paths, with their NAR sizes: all that is served, in less time.
    ///
    /// # Errors
    /// Those of [`Store::closure`].
    pub fn view(&self, roots: &[StorePath]) -> Result<View, StoreError> {
        let found = self.walk(roots, |names| self.sizes(names))?;
        let mut members: Vec<(StorePath, u64)> = Vec::with_capacity(found.len());
        for bridge::Size { path, nar_size } in found {
            members.push((StorePath::new(&path)?, nar_size));
        }
        Ok(members.into_iter().collect())
    }

    /// By one statement, if the database is this process's to read: see the sixth hard point.
    fn sizes(&self, roots: &[String]) -> Result<Vec<bridge::Size>, cxx::Exception> {
        self.handle.sizes_at_once(roots).or_else(|error| {
            let Failure { kind, text } = error.into();
            if kind != Kind::Unsupported {
                tracing::debug!("cannot read the closure at once, asking path by path: {text}");
            }
            self.handle.sizes(roots)
        })
    }

    /// What `walk` finds from `roots`, each of which the store has to hold.
    fn walk<T>(
        &self,
        roots: &[StorePath],
        walk: impl FnOnce(&[String]) -> Result<Vec<T>, cxx::Exception>,
    ) -> Result<Vec<T>, StoreError> {
        let Some(first) = roots.first() else {
            return Ok(Vec::new());
        };
        for root in roots {
            if !self.is_valid(root)? {
                return Err(StoreError::Invalid { store: self.uri.clone(), path: root.clone() });
            }
        }
        let names: Vec<String> = roots.iter().map(|root| root.as_str().to_owned()).collect();
        walk(&names).map_err(|e| query("ask for the closure", first, e))
    }

    /// Keeps the garbage collector away from `path` and its closure while this store is open. Do this before
    /// asking for the closure: what is collected between question and use is lost.
    ///
    /// # Errors
    /// [`StoreError::TempRoot`].
    pub fn add_temp_root(&self, path: &StorePath) -> Result<(), StoreError> {
        self.handle
            .add_temp_root(path.as_str())
            .map_err(|e| StoreError::TempRoot { path: path.clone(), cause: Failure::from(e).text })
    }

    /// Makes `link` a symbolic link to `path`, and keeps the garbage collector away from `path` and its closure
    /// for as long as the link is there.
    ///
    /// # Errors
    /// [`StoreError::IndirectRoot`], among others if something else is at `link`.
    pub fn add_indirect_root(&self, path: &StorePath, link: &Path) -> Result<(), StoreError> {
        self.handle.add_indirect_root(path.as_str(), link.as_os_str().as_bytes()).map_err(|e| {
            StoreError::IndirectRoot {
                path: path.clone(),
                link: link.to_owned(),
                cause: Failure::from(e).text,
            }
        })
    }
}

/// Once in the life of the process, whichever thread comes first.
fn initialise() -> Result<(), StoreError> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let loaded = nix_version();
    if major_minor(&loaded) != major_minor(BUILT_VERSION) {
        return Err(StoreError::Version { built: BUILT_VERSION, loaded });
    }
    DONE.get_or_init(|| bridge::initialise(ffi::verbosity()).map_err(|e| Failure::from(e).text))
        .clone()
        .map_err(|cause| StoreError::Initialise { cause })
}

/// `2.36` of `2.36.0pre20260101`.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn default_state_dir() -> Result<PathBuf, StoreError> {
    bridge::default_state_dir()
        .map(path_from)
        .map_err(|e| StoreError::Initialise { cause: Failure::from(e).text })
}

/// As Nix decides it; it has had no function for that which all its releases share.
fn default_store_dir() -> PathBuf {
    ["NIX_STORE_DIR", "NIX_STORE"]
        .into_iter()
        .find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
        .map_or_else(|| PathBuf::from(BUILT_STORE_DIR), PathBuf::from)
}

/// The daemon's address if a daemon is to be asked, by Nix's rule for `auto`.
fn daemon_address(kind: &uri::Kind, state: &Path) -> Option<String> {
    match kind {
        uri::Kind::Daemon(base) => Some(base.clone()),
        uri::Kind::Local => None,
        uri::Kind::Auto if rustix::fs::access(state, Access::READ_OK | Access::WRITE_OK).is_ok() => None,
        uri::Kind::Auto => {
            let socket = std::env::var_os("NIX_DAEMON_SOCKET_PATH")
                .filter(|path| !path.is_empty())
                .map_or_else(|| state.join("daemon-socket/socket"), PathBuf::from);
            socket.exists().then(|| "daemon".to_owned())
        }
    }
}

fn open_handle(base: &str, uri: &StoreUri) -> Result<UniquePtr<bridge::Handle>, Failure> {
    let params: Vec<_> = uri
        .params
        .iter()
        .map(|(key, value)| bridge::Param { key: key.clone(), value: value.clone() })
        .collect();
    Ok(bridge::open_store(base, &params)?)
}

/// Nix creates what is missing; we want it to be there.
fn require(uri: &str, path: &Path) -> Result<(), StoreError> {
    match rustix::fs::stat(path) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            Err(StoreError::NoSuchStore { uri: uri.to_owned(), missing: path.to_owned() })
        }
        Err(e) => Err(StoreError::Examine { uri: uri.to_owned(), path: path.to_owned(), source: e.into() }),
    }
}

/// Why a local store cannot be opened: its mount may be read-only.
fn read_only(uri: &str, state: &Path, real: &Path, cause: Failure) -> StoreError {
    let is_read_only = |path: &&Path| {
        rustix::fs::statvfs(*path).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
    };
    // On NixOS the store itself is on a read-only mount, which Nix remounts for itself: that is no reason to fail.
    match Some(state).filter(is_read_only) {
        Some(_) => StoreError::ReadOnly {
            uri: uri.to_owned(),
            cause: cause.text,
            place: Some(real).filter(is_read_only).unwrap_or(state).to_owned(),
            address: uri::read_only(uri),
        },
        None => StoreError::Open { uri: uri.to_owned(), cause: cause.text },
    }
}

/// Sees to it that Nix, run as root, can only make its own copy of a read-only mount writable.
fn protect_mount(uri: &str, state: &Path, real: &Path) -> Result<(), StoreError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(()); // Nix does not try
    }
    let Err(source) = namespace::enter(&[state, real]) else {
        return Ok(());
    };
    let read_only =
        rustix::fs::statvfs(real).is_ok_and(|status| status.f_flag.contains(StatVfsMountFlags::RDONLY));
    if read_only {
        return Err(StoreError::ReadOnlyMount { uri: uri.to_owned(), real: real.to_owned(), source });
    }
    Ok(()) // Nix leaves a writable mount alone
}

fn query(operation: &'static str, path: &StorePath, exception: cxx::Exception) -> StoreError {
    StoreError::Query { operation, path: path.clone(), cause: Failure::from(exception).text }
}

fn path_from(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// `info` as plain values. `names` are the paths of the answer that it is in, by place.
fn path_info(path: &StorePath, info: bridge::Info, names: &[StorePath]) -> Result<PathInfo, StoreError> {
    let present = |text: String| if text.is_empty() { None } else { Some(text) };
    let name = |place: &u32| usize::try_from(*place).ok().and_then(|place| names.get(place)).cloned();
    let references: Option<Vec<_>> = info.references.iter().map(name).collect();
    let mut references = references.ok_or_else(|| StoreError::Incomplete { path: path.clone() })?;
    references.sort_unstable();
    Ok(PathInfo {
        path: path.clone(),
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references,
        deriver: present(info.deriver).map(|name| StorePath::new(&name)).transpose()?,
        registration_time: info.registration_time,
        signatures: info.signatures,
        ca: present(info.ca),
        ultimate: info.ultimate,
    })
}
