//! What was asked of a running view, as values: the answer to `report 1`. What [`status`](super::status) says of keys, versions
//! and text of others holds here too.

use serde::{Deserialize, Serialize};

use super::status::{Asked, Prefetch, Seconds, Store};
use crate::values::StorePath;

/// The version of a [`Report`], and of the question for it.
pub const VERSION: u32 = 1;

/// What was missed and what was used, and what it is measured against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// What the view is called.
    pub name: String,
    /// The store.
    pub store: Store,
    /// What was asked to be served.
    pub asked: Asked,
    /// The roots whose closures are served, resolved, sorted.
    pub roots: Vec<StorePath>,
    /// What is served, sorted by name. What a member refers to is the store's to tell.
    pub members: Vec<Member>,
    /// What was missed; absent if that is not recorded, as the view is served without `--report`.
    pub missed: Option<Missed>,
    /// What was used; absent where that is not counted.
    pub used: Option<Used>,
    /// What was asked for ahead of its users, and is in none of these numbers; absent where nothing is.
    #[serde(default)]
    pub prefetch: Option<Prefetch>,
}

/// A store path that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its base name.
    pub path: StorePath,
    /// The size of its NAR, in bytes; 0 where Nix does not know it.
    pub nar_size: u64,
}

/// What was asked for in vain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// Since when it is recorded: the start of the monitor. Its servers may have died meanwhile.
    pub since: Seconds,
    /// The names, sorted.
    pub names: Vec<MissedName>,
    /// What is not among them.
    pub left_out: LeftOut,
    /// Questions that are still being looked into; 0 also where nobody knows.
    #[serde(default)]
    pub pending: u64,
}

/// A store path that the host had and the view had not, when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissedName {
    /// Its base name.
    pub path: StorePath,
    /// How often the kernel asked the view for it. Programs may have asked more often: the kernel caches absences.
    pub count: u64,
    /// When that was for the first time.
    pub first: Seconds,
    /// When that was for the last time.
    pub last: Seconds,
    /// Who asked for it first.
    pub first_asker: Asker,
    /// Who asked for it last.
    pub last_asker: Asker,
    /// Whether the view has it now, as a reload has brought it since: then nobody misses it any more.
    pub served: bool,
}

/// A process, as far as it was known when it asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asker {
    /// Its id, as the host knows it.
    pub pid: Option<u32>,
    /// What it calls itself (proc_pid_comm(5)), which is its own choice. What is not UTF-8 in it is U+FFFD.
    pub command: Option<String>,
}

/// What the record of missed names had no room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// Names that had to make room for others; one that was asked for again counts each time.
    pub names: u64,
    /// How often those were asked for.
    pub questions: u64,
    /// Questions that were not looked into, as too many came at once. Nobody knows whether the host has those names.
    pub not_examined: u64,
}

/// What was used: the word of the view's servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Used {
    /// Since when it is counted; absent: nobody knows.
    pub since: Option<Seconds>,
    /// Whether what is not among the members was not used since the view was mounted. Otherwise nobody knows: the counting began later,
    /// or had no room for all.
    pub complete: bool,
    /// The members that were used, sorted by name.
    pub members: Vec<UsedMember>,
}

/// A member that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsedMember {
    /// Its base name.
    pub path: StorePath,
    /// How often the beginning of a file in it was read from the store, or a file opened that the kernel reads itself. What the
    /// kernel has cached is read without the server being asked.
    pub opens: u64,
    /// Bytes of its files that servers have read for readers.
    pub bytes_read: u64,
}
