//! What a running view tells of itself, as values: the answer to `status 1`.
//!
//! In JSON the keys are written as here, in camel case. A key that comes later does not change [`VERSION`]; one that goes or
//! changes its meaning does. Text of others is in it as it was: a command, an error. Whoever prints it makes it harmless.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::protocol::handshake::Io;
use crate::protocol::task;
use crate::values::{StorePath, lossless};

/// The version of a [`Status`], and of the question for it.
pub const VERSION: u32 = 1;

/// A time, in seconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

impl From<SystemTime> for Seconds {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

/// A view, as its monitor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// What the view is called.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// The reload under way, if there is one.
    pub reload: Option<Stage>,
    /// Where it was mounted.
    #[serde(with = "lossless")]
    pub mount_point: PathBuf,
    /// The store.
    pub store: Store,
    /// What was asked to be served.
    pub asked: Asked,
    /// The roots whose closures are served, resolved: base names of store paths, sorted. Without `--prune` also those of
    /// earlier reloads.
    pub roots: Vec<StorePath>,
    /// Number of store paths served.
    pub paths: u64,
    /// Sum of their NAR sizes, in bytes.
    pub nar_size: u64,
    /// How it is served.
    pub settings: Settings,
    /// The monitor's process.
    pub monitor: Process,
    /// The server's process, if there is one.
    pub server: Option<Process>,
    /// The version of the program that both are of.
    pub program_version: String,
    /// Since when this monitor's servers have served it; absent before the first does.
    pub served_since: Option<Seconds>,
    /// When its members last changed; absent if they are those that an earlier monitor served.
    pub content_changed: Option<Seconds>,
    /// Number of the switch that made the content what it is. It counts reloads also where they change no member.
    pub epoch: u32,
    /// Reloads of this monitor.
    pub reloads: Reloads,
    /// Servers of this monitor.
    pub servers: Servers,
    /// The last thing that went wrong under this monitor. It stays until another one does.
    pub last_error: Option<Incident>,
    /// What was asked for in vain, in numbers; absent if that is not recorded, or cannot be told now.
    pub missed: Option<Missed>,
    /// What was asked of it; absent where that is not counted.
    pub usage: Option<Usage>,
    /// What was asked for ahead of its users; absent where nothing is.
    #[serde(default)]
    pub prefetch: Option<Prefetch>,
}

/// What was asked for ahead of who uses a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prefetch {
    /// As it was asked for.
    pub mode: task::Prefetch,
    /// Whether something is asked for at the moment.
    pub playing: bool,
    /// Whether what is used is remembered for the next start.
    pub remembers: bool,
    /// What was asked for; absent: nothing yet.
    pub played: Option<task::Played>,
    /// What was learnt last; absent: nothing yet.
    pub learnt: Option<task::Learnt>,
    /// The last thing that went wrong with it.
    pub failed: Option<String>,
}

/// Where a view stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It has not been served by this monitor yet.
    Starting,
    /// A server answers.
    Serving,
    /// A server has ended, and the next one does not answer yet: readers wait.
    Replacing,
    /// Its connection to the kernel has ended, and so does the monitor.
    Ending,
}

/// Where a reload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The Nix store resolves the roots.
    Resolving,
    /// The new content is ordered, and is not visible yet.
    Switching,
}

/// A store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// Its address as it was given; absent: the store that Nix's commands open.
    pub address: Option<String>,
    /// The directory that its files are read from; absent until that is known.
    #[serde(with = "lossless::optional")]
    pub directory: Option<PathBuf>,
    /// The directory that its paths begin with, wherever their files are; absent until that is known.
    #[serde(default, with = "lossless::optional")]
    pub logical_directory: Option<PathBuf>,
}

/// What was asked to be served, as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// `--system`.
    #[serde(with = "lossless::optional")]
    pub system: Option<PathBuf>,
    /// Each `--root`.
    #[serde(with = "lossless::many")]
    pub roots: Vec<PathBuf>,
    /// `--roots-file`.
    #[serde(with = "lossless::optional")]
    pub roots_file: Option<PathBuf>,
    /// `--from`.
    #[serde(default, with = "lossless::optional")]
    pub from: Option<PathBuf>,
}

/// How a view is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// How files are read: what was agreed on with the kernel, or what was asked for before that.
    pub io: Io,
    /// `--report`.
    pub report: bool,
    /// `--watch`.
    pub watch: bool,
    /// `--prune`.
    pub prune: bool,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Memory that it alone takes, in bytes: `RssAnon` and `RssShmem` of proc_pid_status(5), so its own and what it shares with
    /// other processes of the view. Pages of programs and libraries are left out: all views share them, and the kernel takes them
    /// back when it needs to. Absent if it is not known.
    pub memory: Option<u64>,
}

/// Reloads. The resolution with which a monitor starts is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reloads {
    /// Those whose content has become visible.
    pub done: u64,
    /// Those that have changed nothing, as the roots could not be resolved. Also each further try.
    pub failed: u64,
}

/// Servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Servers {
    /// Those that have ended while the view was to be served, whatever the reason.
    pub replaced: u64,
    /// Those of them that a signal has ended which nobody sends to stop a process: SIGSEGV, SIGABRT after a panic, SIGSYS, ...
    pub crashed: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// When.
    pub at: Seconds,
    /// What, in words; 1,024 bytes at most. Names in it may be hostile.
    pub message: String,
}

/// What was asked for in vain. The names are in a [`Report`](super::report::Report).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// Names in the record.
    pub names: u64,
    /// How often the kernel asked for names that were missed, also for those that are not in the record any more.
    pub questions: u64,
    /// Questions that were not looked into, as too many came at once.
    pub not_examined: u64,
}

/// What was asked of a view: its servers' word, all of which have counted in the same memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Since when it is counted; absent: nobody knows.
    pub since: Option<Seconds>,
    /// Whether that was when the view was mounted: otherwise there was more before.
    pub whole: bool,
    /// Requests of the kernel by kind, as fuse(4) names them, in lower case: `lookup`, `read`, ...
    pub requests: BTreeMap<String, u64>,
    /// Bytes of files that servers have read for readers.
    pub bytes_read: u64,
    /// Names that the kernel may know now.
    pub names_known: u64,
    /// Requests that ended with an error because of a defect of the server.
    pub panics: u64,
}
