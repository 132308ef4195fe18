//! What is learnt of a view's use, and played ahead of it: the monitor's order to a process that does one of the two, and what that
//! process tells. See docs/design.md, "What a view has learnt".
//!
//! An order and a report are packets as in [`super::wire`]. There is one of each: the process ends then.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::log::LogSettings;
use crate::sandbox::Sandbox;
use crate::values::{View, lossless};

/// What is asked for ahead of who uses a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// What was used at the last starts, as the profile of use tells; where none can be kept, all names, for half a second
    #[default]
    Auto,
    /// The same, and then all names of the closure
    Names,
    /// The same, and then all bytes of the closure
    All,
    /// Nothing, and nothing is learnt
    Off,
}

/// A descriptor that comes with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Given {
    /// The view, open in a mount namespace of its own. Without it the process makes one, as an ordinary user can.
    View,
    /// The store directory.
    Store,
    /// The directory of profiles: locked, so that views play one after the other.
    Profiles,
    /// The profile of use.
    Profile,
    /// What was asked of the mount ([`super::wire::Carried::Trace`]).
    Trace,
    /// An empty file for the next profile.
    Next,
}

/// An order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// Ask the view for what will be asked of it.
    Play(Box<Play>),
    /// Write the next profile.
    Learn(Box<Learn>),
}

/// What both need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Common {
    /// What each of the descriptors is that come with it, in their order.
    pub given: Vec<Given>,
    /// What the view showed when it was mounted.
    pub view: View,
    /// What is asked for ahead.
    pub prefetch: Prefetch,
    /// The monitor's process id: it ends with that.
    pub monitor: u32,
    /// Whether it gives up its rights.
    pub sandbox: Sandbox,
    /// How to log.
    pub log: LogSettings,
}

/// See [`Task::Play`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Play {
    /// What both need.
    pub common: Common,
    /// Where the view is mounted.
    #[serde(with = "lossless")]
    pub at: PathBuf,
    /// The number of its connection, which is that of its device.
    pub connection: u64,
    /// Whether bytes are read through the view: with `--io passthrough` the kernel reads the store's.
    pub bytes: bool,
}

/// See [`Task::Learn`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Learn {
    /// What both need.
    pub common: Common,
    /// What was shown since as well: what was asked of it counts.
    pub later: View,
    /// What was played of the last profile.
    pub done: Done,
}

/// How far it came in a plan: so many steps from the beginning were done, or left to users who asked for the same meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// Of those for names.
    pub names: usize,
    /// Of those for bytes.
    pub bytes: usize,
}

/// What was known when it played.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Known {
    /// Nothing: there is no profile yet.
    Nothing,
    /// A profile that was learnt from so many runs.
    Profile(u32),
    /// A profile that cannot be used, for this reason.
    Unusable(String),
}

/// Why it plays no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stopped {
    /// Everything was asked for.
    Done,
    /// Memory is short, or would be.
    Memory,
    /// It has taken as long as it may.
    Time,
    /// The view does not answer, or is not there.
    View,
    /// There were no more descriptors for it, or the kernel had no memory for a call.
    Resources,
}

/// What was played.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Played {
    /// What was known.
    pub known: Known,
    /// How far it came in the plan.
    pub done: Done,
    /// Names that were asked for or listed.
    pub names: u64,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// Processor time of the process that played, in milliseconds.
    pub processor: u64,
    /// Why it plays no more.
    pub stopped: Stopped,
}

/// What was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Learnt {
    /// Runs that the profile was learnt from.
    pub runs: u32,
    /// Uses that it has.
    pub uses: u64,
    /// What was played and marked: a use of it is seen.
    pub marked: u32,
    /// How much of that was used.
    pub used: u32,
}

/// What the process tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// See [`Task::Play`].
    Played(Played),
    /// See [`Task::Learn`].
    Learnt(Learnt),
    /// It could not, for this reason.
    Failed(String),
}
