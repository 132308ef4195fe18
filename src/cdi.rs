//! The file that tells container engines of views, as the Container Device Interface (CDI) asks for it: one device for each view,
//! which is a bind of the view's mount at the store's directory. Source of each rule: `SPEC.md` of
//! cncf-tags/container-device-interface, and what its library refuses (`pkg/parser`, `pkg/cdi`).
//!
//! Responsibility: what may be in such a file ([`Entry`]), and how it is changed ([`SpecFile`]). Which views run is others' knowledge.
//!
//! Invariants:
//! - A file that is not this program's, or not this user's, is neither replaced nor removed.
//! - A reader finds an earlier file, a later one or none: it is replaced as a whole.
//! - No two views are the same device.
//! - There is no file without a device: engines take one for damaged.
//!
//! Hard points:
//! 1. Whoever changes the file holds a lock, as more than one may: commands, and monitors that end. It is a file beside it, open to
//!    its user only, so that nobody else can hold it; engines read names that end in `.json` or `.yaml`. Who has the lock removes
//!    it, so that nothing stays behind, and who gets the lock looks whether it is still there.
//! 2. To ask views takes seconds if one does not answer, too long to hold the lock meanwhile. So they are asked before, and again if
//!    the file has been changed by then ([`Stamp`]). A view that has ended meanwhile removes its entry after it was unmounted,
//!    and whoever writes looks at the mount table under the lock: one of both sees the other.
//! 3. Engines read JSON as YAML, which forbids in strings what JSON allows, and has no pairs of surrogates.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::sys::lock;

/// Vendor and class of a view.
pub const KIND: &str = "nix-store-fs/view";
/// The oldest version of the specification whose names of devices may begin with a digit. Podman 4.3 knows none that is newer.
const VERSION: &str = "0.5.0";
/// What follows a view's name in that of its device for containers with a user namespace: there, root of the container owns the store.
const IDMAP: &str = ":idmap";
/// The file in a directory of such files.
const FILE: &str = "nix-store-fs.json";
/// Bytes of a file that can be this program's.
const LIMIT: u64 = 16 << 20;

/// Why a view has no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDevice {
    /// Its name is none for a device.
    #[error(
        "the name of a CDI device has letters, digits, '_', '-' and '.', and begins and ends with a letter or a digit; give the view \
         such a name with --name"
    )]
    Name,
    /// One of its directories is no text.
    #[error("'{}' is not UTF-8, and JSON has text only; mount the view elsewhere", .0.display())]
    NotText(PathBuf),
}

/// Why the file cannot be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// It is another's.
    #[error("'{}' is left as it is, because {why}; move it away, or choose another file with --output", path.display())]
    NotOwn {
        /// The file.
        path: PathBuf,
        /// What shows that.
        why: &'static str,
    },
    /// Another process holds the lock.
    #[error("another process has been changing '{}' for too long; try again", .0.display())]
    Locked(PathBuf),
    /// A step failed.
    #[error("cannot {doing} '{}'", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A view as devices. One that exists can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    view: String,
    at: String,
    store: String,
}

impl Entry {
    /// The view called `view`, mounted at `at`, of a store whose paths begin with `store`.
    ///
    /// # Errors
    /// [`NoDevice`].
    pub fn new(view: &str, at: &Path, store: &Path) -> Result<Self, NoDevice> {
        let text =
            |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| NoDevice::NotText(path.to_owned()));
        if is_device(view) {
            Ok(Self { view: view.to_owned(), at: text(at)?, store: text(store)? })
        } else {
            Err(NoDevice::Name)
        }
    }

    /// The view.
    #[must_use]
    pub fn view(&self) -> &str {
        &self.view
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        Path::new(&self.at)
    }

    /// What `--device` takes: for containers with the host's users, and for those with a user namespace.
    #[must_use]
    pub fn devices(&self) -> [String; 2] {
        ["", IDMAP].map(|suffix| format!("{KIND}={}{suffix}", self.view))
    }

    /// The objects of the file. Nothing below the view is bound with it, and no mount arrives in it later.
    fn values(&self) -> [Value; 2] {
        let options = ["ro", "bind", "private", "nosuid", "nodev"].as_slice();
        [("", options.to_vec()), (IDMAP, [options, &["idmap"]].concat())].map(|(suffix, options)| {
            json!({
                "name": format!("{}{suffix}", self.view),
                "containerEdits": {
                    "mounts": [{ "hostPath": self.at, "containerPath": self.store, "options": options }],
                },
            })
        })
    }
}

/// Whether a device can be called so (`ValidateDeviceName`): a colon, which is allowed, stays ours.
fn is_device(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    ends(name.chars().next()) && ends(name.chars().next_back()) && name.chars().all(fits)
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spec {
    /// Version and kind, and what a later version of this program may have written.
    #[serde(flatten)]
    fields: Map<String, Value>,
    devices: Vec<Value>,
}

impl Spec {
    /// Devices of these views.
    #[must_use]
    pub fn of(views: &[Entry]) -> Self {
        let fields = [("cdiVersion", VERSION), ("kind", KIND)];
        let fields = fields.map(|(key, value)| (key.to_owned(), value.into())).into_iter().collect();
        Self { fields, devices: views.iter().flat_map(Entry::values).collect() }
    }

    /// What a file has, if it is this program's.
    fn parse(text: &[u8]) -> Option<Self> {
        let Value::Object(mut fields) = serde_json::from_slice(text).ok()? else { return None };
        let Some(Value::Array(devices)) = fields.remove("devices") else { return None };
        let is_own = fields.get("kind").and_then(Value::as_str) == Some(KIND);
        is_own.then_some(Self { fields, devices })
    }

    /// Whether there is no device.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The view called `view` as it is in here.
    #[must_use]
    pub fn entry(&self, view: &str) -> Option<Entry> {
        let device = self.devices.iter().find(|device| device_name(device) == Some(view))?;
        let path = |key| Some(Path::new(mount(device)?.get(key)?.as_str()?));
        Entry::new(view, path("hostPath")?, path("containerPath")?).ok()
    }

    /// The same without the view called `view` that is mounted at `at`. `None`: it is not in here.
    fn without(&self, view: &str, at: &Path) -> Option<Self> {
        let is_it = |device: &Value| {
            let name = device_name(device).map(|name| name.strip_suffix(IDMAP).unwrap_or(name));
            let place = mount(device).and_then(|mount| mount.get("hostPath")?.as_str());
            name == Some(view) && place.map(Path::new) == Some(at)
        };
        let left: Vec<Value> = self.devices.iter().filter(|device| !is_it(device)).cloned().collect();
        (left.len() < self.devices.len()).then(|| Self { devices: left, ..self.clone() })
    }

    /// The file's text: both JSON and YAML.
    #[must_use]
    pub fn text(&self) -> String {
        // A value with keys of text can be written.
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        let mut text = String::with_capacity(json.len() + 1);
        for c in json.chars() {
            match c {
                // Beyond the basic plane everything may stand for itself; JSON would need a pair of surrogates.
                '\n' | ' '..='~' | '\u{10000}'.. => text.push(c),
                // A string takes whatever is written.
                _ => drop(write!(text, "\\u{:04x}", u32::from(c))),
            }
        }
        text.push('\n');
        text
    }
}

fn device_name(device: &Value) -> Option<&str> {
    device.get("name")?.as_str()
}

fn mount(device: &Value) -> Option<&Value> {
    device.get("containerEdits")?.get("mounts")?.get(0)
}

/// Which file it was that somebody has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, i64, i64)>);

/// A file in a directory of such files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFile {
    path: PathBuf,
    /// Whether its directory is made where it is absent.
    usual: bool,
}

impl SpecFile {
    /// Where engines look: `/run/cdi` for root's views. Those of an ordinary user are in their runtime directory, which an engine
    /// has to be told. `None`: the user has none.
    #[must_use]
    pub fn usual() -> Option<Self> {
        let dir = if rustix::process::geteuid().is_root() {
            PathBuf::from("/run/cdi")
        } else {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            runtime.filter(|dir| dir.is_absolute())?.join("cdi")
        };
        Some(Self { path: dir.join(FILE), usual: true })
    }

    /// The file at `path`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, usual: false }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there now, for [`Locked::is_changed`].
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let seen = std::fs::symlink_metadata(&self.path).ok();
        Stamp(seen.map(|file| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec())))
    }

    /// Locks it, at the latest after `patience`.
    ///
    /// # Errors
    /// [`CdiError`]. Another's file is none: that is [`Locked::read`]'s.
    pub fn lock(&self, patience: Duration) -> Result<Locked<'_>, CdiError> {
        if self.usual
            && let Some(dir) = self.path.parent()
            && let Err(error) = rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755))
            && error != Errno::EXIST
        {
            return Err(CdiError::File { doing: "make", path: dir.to_owned(), source: error.into() });
        }
        let path = self.beside("lock");
        let fail = |source| CdiError::File { doing: "lock", path: path.clone(), source };
        let until = Instant::now() + patience;
        loop {
            let file = open(&path, OFlags::CREATE | OFlags::RDWR, Mode::RUSR | Mode::WUSR).map_err(fail)?;
            let left = until.saturating_duration_since(Instant::now());
            if !lock::take_within(&file, left).map_err(fail)? {
                return Err(CdiError::Locked(self.path.clone()));
            }
            // Otherwise whoever had it has removed it.
            if is_at(&file, &path) {
                return Ok(Locked { file: self, path, _lock: file });
            }
            if Instant::now() >= until {
                return Err(CdiError::Locked(self.path.clone()));
            }
        }
    }

    /// What is in it; `None`: there is no file.
    ///
    /// # Errors
    /// [`CdiError::NotOwn`], [`CdiError::File`].
    pub fn read(&self) -> Result<Option<Spec>, CdiError> {
        let not_own = |why| Err(CdiError::NotOwn { path: self.path.clone(), why });
        let fail = |source| CdiError::File { doing: "read", path: self.path.clone(), source };
        let file = match open(&self.path, OFlags::RDONLY, Mode::empty()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
                return not_own("it is a symbolic link");
            }
            Err(error) => return Err(fail(error)),
        };
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return not_own("it is no regular file");
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return not_own("another user owns it");
        }
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text).map_err(fail)?;
        Spec::parse(&text).map_or_else(|| not_own("this program has not written it"), |spec| Ok(Some(spec)))
    }

    /// A hidden file in the same directory, which no engine reads.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".");
        name.push(suffix);
        self.path.with_file_name(name)
    }
}

/// A file that nobody else changes as long as this exists.
#[derive(Debug)]
pub struct Locked<'a> {
    file: &'a SpecFile,
    path: PathBuf,
    _lock: File,
}

impl Locked<'_> {
    /// Whether somebody has changed it since it was seen.
    #[must_use]
    pub fn is_changed(&self, since: Stamp) -> bool {
        self.file.stamp() != since
    }

    /// What is in it; `None`: there is no file.
    ///
    /// # Errors
    /// [`CdiError::NotOwn`], [`CdiError::File`].
    pub fn read(&self) -> Result<Option<Spec>, CdiError> {
        self.file.read()
    }

    /// Puts `spec` there, or removes the file where that has no device.
    ///
    /// # Errors
    /// [`CdiError::NotOwn`], [`CdiError::File`].
    pub fn replace(&self, spec: &Spec) -> Result<(), CdiError> {
        let there = self.read()?;
        if spec.is_empty() {
            return there.map_or(Ok(()), |_| self.remove());
        }
        let next = self.file.beside("new");
        let fail = |source| CdiError::File { doing: "write", path: self.file.path.clone(), source };
        // Of somebody who was killed.
        let _ = std::fs::remove_file(&next);
        // Whoever starts a container reads it, and that need not be this user.
        let mode = Mode::from_raw_mode(0o644);
        let written = open(&next, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, mode)
            .and_then(|mut file| file.write_all(spec.text().as_bytes()))
            .and_then(|()| std::fs::rename(&next, &self.file.path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&next);
            fail(error)
        })
    }

    fn remove(&self) -> Result<(), CdiError> {
        let path = &self.file.path;
        std::fs::remove_file(path).map_err(|source| CdiError::File {
            doing: "remove",
            path: path.clone(),
            source,
        })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The view called `view` is not mounted at `at` any more: removes its entry from the usual file, if it is there.
///
/// # Errors
/// [`CdiError::Locked`] after `patience`, [`CdiError::File`]. Another's file has no entry.
pub fn withdraw(view: &str, at: &Path, patience: Duration) -> Result<(), CdiError> {
    let Some(file) = SpecFile::usual() else { return Ok(()) };
    file.withdraw(view, at, patience)
}

impl SpecFile {
    fn withdraw(&self, view: &str, at: &Path, patience: Duration) -> Result<(), CdiError> {
        let left = |read: Result<Option<Spec>, CdiError>| match read {
            Ok(there) => Ok(there.and_then(|spec| spec.without(view, at))),
            Err(CdiError::NotOwn { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        // Where there is no such file, as nearly everywhere, nothing is locked or made. Who writes just now may be about to write
        // the entry, and then looks at the mount table first.
        if !self.beside("lock").exists() && left(self.read())?.is_none() {
            return Ok(());
        }
        let locked = self.lock(patience)?;
        left(locked.read())?.map_or(Ok(()), |spec| locked.replace(&spec))
    }
}

/// Opens a file that is no link; it waits for nobody.
fn open(path: &Path, flags: OFlags, mode: Mode) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::openat(CWD, path, flags, mode)?.into())
}

/// Whether this file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    matches!((file.metadata(), std::fs::symlink_metadata(path)), (Ok(open), Ok(there)) if same(&open, &there))
}

#[cfg(test)]
#[path = "cdi_tests.rs"]
mod tests;
