//! What a view is made from, as plain values.

use std::path::PathBuf;

use crate::closure::source::Source;
use crate::log::LogSettings;
use crate::protocol::handshake::Io;
use crate::sandbox::Sandbox;
use crate::server::idle::IdlePolling;

/// Everything that a view is made from.
#[derive(Debug)]
pub struct Settings {
    /// What the view is called.
    pub name: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What it shows.
    pub source: Source,
    /// The store's address; without one, the store that Nix's commands open, or that of a saved closure.
    pub store: Option<String>,
    /// Threads that answer requests.
    pub threads: usize,
    /// How files are read.
    pub io: Io,
    /// Whether processors are kept awake while requests flow.
    pub idle_polling: IdlePolling,
    /// Whether changed links are followed without being asked to.
    pub watch: bool,
    /// Whether what is no longer reachable goes.
    pub prune: bool,
    /// Whether the log tells what was asked for, and is on the host alone.
    pub report: bool,
    /// Where links that hold the roots beyond this process are made.
    pub gc_root: Option<PathBuf>,
    /// The state directory.
    pub state: PathBuf,
    /// Whether servers give up their rights.
    pub sandbox: Sandbox,
    /// How to log.
    pub log: LogSettings,
}
