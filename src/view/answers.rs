//! What each file system operation answers, in terms of trie and backing store: tested without a kernel.
//!
//! Invariants:
//! - Whatever names a node to the kernel has been written to the journal first.
//! - An answer says nothing of the host: the root is made up from the closure, and a name outside it is
//!   answered before the disk is asked.
//! - What was asked for is counted ([`super::usage`]) wherever a request names a member or something in it; what this program examines
//!   by itself, lists at the root or is asked the attributes of is not.
//!
//! Hard points:
//! 1. What may be cached. A name that is absent below a store path stays absent, as store paths never change;
//!    one that is absent at the root stays so until a reload, so the kernel may cache that for a moment only
//!    (`server::root_names`); a member that is gone from disk may
//!    come back by a repair, so that answer is never cached. Nor is anything of an object that is not settled
//!    ([`Stat::settled`]): it is served as it is, and [`Stale`] says what to drop from the kernel's caches afterwards.
//! 2. A member that is repaired is another one: what the kernel has cached of the damaged one is invalidated. Whoever
//!    examines a member's top compares its identity with the last one seen ([`ServedView::check_member`]).
//! 3. Names of one file below share a node, so that its bytes are cached once: see [`super::links`]. Such a node has
//!    the path of the name that came first, which the trie keeps as long as the kernel holds the node.

mod listing;
mod recorded;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use rustix::io::Errno;

use super::Registrations;
use super::ahead::ReadAhead;
use super::links::Links;
use super::members::{MembersOnDisk, Seen};
use super::passthrough::Way;
use super::root;
use super::usage::{self, Usage};
use crate::fuse::Ledger;
use crate::sys;
use crate::view::backing::{Backing, BackingError, Identity, Place, Read, Stat, Target};
use crate::view::journal::{Journal, Record};
use crate::view::trie::{Entered, NodeId, PathTrie, ROOT, is_name};
pub use listing::{Entry, Told};

/// How often a look-up begins again because its store path was replaced meanwhile.
const ATTEMPTS: usize = 3;

/// Nodes forgotten between two times that memory is given back: 300 KiB at least, and a pause of a millisecond.
const TRIM_EVERY: u64 = 4096;

/// Why an operation is not answered with what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The kernel named a node that it was never told of, or that a journal lost.
    #[error("no such node")]
    UnknownNode,
    /// Nothing has this name, and nothing ever will, but for a reload at the root: the kernel may cache it.
    #[error("no such name")]
    Absent,
    /// Nothing has this name now.
    #[error("no such name at the moment")]
    AbsentNow,
    /// The name is none that a directory entry can have.
    #[error("not the name of an entry")]
    BadName,
    /// It would change something.
    #[error("the view is read-only")]
    ReadOnly,
    /// The kernel need not ask this again.
    #[error("not supported")]
    Unsupported,
    /// The backing store failed.
    #[error("the backing store failed")]
    Backing(#[from] Errno),
}

impl From<BackingError> for FsError {
    fn from(error: BackingError) -> Self {
        match error {
            BackingError::Absent { settled: true } => Self::Absent,
            BackingError::Absent { settled: false } => Self::AbsentNow,
            BackingError::Host(error) => Self::Backing(error),
        }
    }
}

/// What the kernel may have cached and is not to have, for a thread that answers no request to invalidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The pages or the listing of a node.
    Pages(NodeId),
    /// Everything about a member: another object is in its place.
    Member(NodeId),
}

/// A node with its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its id, which is its inode number as well.
    pub id: NodeId,
    /// Its attributes.
    pub stat: Stat,
}

/// Sizes of the view for statfs(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Store paths served.
    pub paths: u64,
    /// Sum of their NAR sizes in bytes.
    pub bytes: u64,
}

/// The view: everything that is served, and how.
#[derive(Debug)]
pub struct ServedView {
    trie: Arc<PathTrie>,
    backing: Backing,
    journal: Option<Arc<Journal>>,
    /// What the kernel reads by itself, if it may.
    registrations: Option<Arc<Registrations>>,
    /// Nodes forgotten so far.
    forgotten: AtomicU64,
    /// Which nodes stand for files with several names.
    links: Links,
    /// What each member was when it was last examined.
    on_disk: MembersOnDisk,
    /// Where a successor looks up which ids were given, whatever has become of the journal.
    ledger: Option<Ledger>,
    /// Who invalidates what the kernel has cached.
    stale: Option<Sender<Stale>>,
    /// Where it is counted what was asked for.
    usage: Usage,
    /// Who brings files ahead of whoever walks.
    ahead: Option<Arc<ReadAhead>>,
}

impl ServedView {
    /// A view of what `trie` shows, with the contents of `backing`. Without a journal, node ids die with the
    /// process; without registrations, every byte is read through it.
    #[must_use]
    pub fn new(
        trie: Arc<PathTrie>,
        backing: Backing,
        journal: Option<Arc<Journal>>,
        registrations: Option<Arc<Registrations>>,
    ) -> Self {
        Self {
            trie,
            backing,
            journal,
            registrations,
            forgotten: AtomicU64::new(0),
            links: Links::default(),
            on_disk: MembersOnDisk::default(),
            ledger: None,
            stale: None,
            usage: Usage::none(),
            ahead: None,
        }
    }

    /// Counts in `usage` what is asked for.
    #[must_use]
    pub fn counting(self, usage: Usage) -> Self {
        usage.set_nodes(self.trie.len());
        Self { usage, ..self }
    }

    /// Tells `ahead` of what is read.
    #[must_use]
    pub fn reading_ahead(self, ahead: Arc<ReadAhead>) -> Self {
        Self { ahead: Some(ahead), ..self }
    }

    /// Writes into `ledger` which ids are given.
    #[must_use]
    pub fn noting(self, ledger: Ledger) -> Self {
        Self { ledger: Some(ledger), ..self }
    }

    /// Sends what is to be invalidated to `stale`.
    #[must_use]
    pub fn invalidating(self, stale: Sender<Stale>) -> Self {
        Self { stale: Some(stale), ..self }
    }

    /// Has the kernel's cache invalidated, by a thread that answers no request.
    pub fn invalidate(&self, stale: Stale) {
        if let Some(all) = &self.stale {
            // Nobody listens only while the session ends.
            let _ = all.send(stale);
        }
    }

    /// Takes over from an earlier server what a member was.
    pub fn restore_member(&self, id: NodeId, identity: Identity) {
        self.on_disk.restore(id, identity);
    }

    /// The kernel has cached nothing of what `member` was before.
    pub fn invalidated(&self, member: NodeId) {
        if let Some(identity) = self.on_disk.is_cached(member) {
            self.record(&[Record::Member(member, identity)]);
        }
    }

    /// What the kernel reads by itself, if it may.
    #[must_use]
    pub fn registrations(&self) -> Option<&Arc<Registrations>> {
        self.registrations.as_ref()
    }

    /// The plain file `id`, open for reading.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's.
    pub fn file(&self, id: NodeId) -> Result<Arc<OwnedFd>, FsError> {
        self.at(id, |place, path| {
            self.usage.touch(path);
            Ok(self.backing.file(id, place)?)
        })
    }

    /// The file `id` was opened, to be read in this way.
    pub(crate) fn opened(&self, id: NodeId, way: &Way) {
        // Reads through this process are seen.
        if way.number().is_some()
            && let Some(path) = self.trie.path(id)
        {
            self.usage.opened(&path);
        }
    }

    /// Does `work` where `id` lies, with its path below the store directory.
    fn at<T>(
        &self,
        id: NodeId,
        work: impl FnOnce(Place<'_>, &[u8]) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let path = self.trie.path(id).ok_or(FsError::UnknownNode)?;
        let parent = self.trie.parent(id).ok_or(FsError::UnknownNode)?;
        let (dir, name) = split(&path);
        work(Place { parent, dir, name }, &path)
    }

    /// The trie.
    #[must_use]
    pub fn trie(&self) -> &PathTrie {
        &self.trie
    }

    /// The backing store.
    #[must_use]
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The node called `name` in `parent`.
    ///
    /// # Errors
    /// [`FsError::Absent`], [`FsError::AbsentNow`], [`FsError::UnknownNode`], or the backing store's.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Node, FsError> {
        if !is_name(name) {
            return Err(FsError::BadName);
        }
        if parent == ROOT {
            let id = self.trie.members().find(name).ok_or(FsError::Absent)?;
            self.usage.touch(name);
            let stat = self.member(id, name)?;
            return Ok(Node { id, stat });
        }
        let dir = self.trie.path(parent).ok_or(FsError::UnknownNode)?;
        if !self.trie.is_shown(parent) {
            return Err(FsError::AbsentNow);
        }
        self.usage.touch(&dir);
        let stat = self.stat_below(parent, &dir, name)?;
        let entered = self.enter(parent, name, stat).ok_or(FsError::UnknownNode)?;
        if entered.unrecorded
            && let Some(node) = self.trie.record(entered.id)
        {
            self.record(&[Record::Node(node)]);
        }
        Ok(Node { id: entered.id, stat })
    }

    /// Attributes of `name` in the directory `parent` at `dir`. It is absent for good only if the directory is that of
    /// the store path that is in place.
    fn stat_below(&self, parent: NodeId, dir: &[u8], name: &[u8]) -> Result<Stat, FsError> {
        for _ in 0..ATTEMPTS {
            let replaced = self.on_disk.replaced();
            let error = match self.backing.stat(Place { parent, dir, name }) {
                Ok(stat) => return Ok(self.steady(replaced, stat)),
                Err(error @ BackingError::Host(_)) => return Err(error.into()),
                Err(error @ BackingError::Absent { .. }) => error,
            };
            match self.top(dir)? {
                Seen::Same if self.on_disk.replaced() == replaced => return Err(error.into()),
                Seen::First => return Err(FsError::AbsentNow),
                Seen::Same | Seen::Back | Seen::Replaced => {}
            }
        }
        Err(FsError::AbsentNow)
    }

    /// `stat`, not to be cached if a member has been replaced since there were `replaced`.
    fn steady(&self, replaced: u64, stat: Stat) -> Stat {
        Stat { settled: stat.settled && self.on_disk.replaced() == replaced, ..stat }
    }

    /// Counts one look-up of `name` in `parent`, giving it the node of another name of the same file if there is one.
    fn enter(&self, parent: NodeId, name: &[u8], stat: Stat) -> Option<Entered> {
        let Some(file) = stat.linked else { return self.trie.enter(parent, name) };
        let member = self.trie.member(parent)?;
        if self.trie.find(parent, name).is_none()
            && let Some(other) = self.links.find(member, file)
            && self.trie.member(other) == Some(member)
            && self
                .at(other, |place, _| Ok(self.backing.stat(place)?))
                .is_ok_and(|it| it.linked == stat.linked)
            && let Some(entered) = self.trie.count(other)
        {
            return Some(entered);
        }
        let entered = self.trie.enter(parent, name)?;
        self.links.insert(member, file, entered.id, &self.trie);
        Some(entered)
    }

    /// Examines the member in which the directory `dir` lies.
    fn top(&self, dir: &[u8]) -> Result<Seen, FsError> {
        let name = dir.split(|b| *b == b'/').next().unwrap_or_default();
        let id = self.trie.find(ROOT, name).ok_or(FsError::UnknownNode)?;
        self.examine(id, name).map(|(_, seen)| seen)
    }

    /// Attributes of a member.
    fn member(&self, id: NodeId, name: &[u8]) -> Result<Stat, FsError> {
        self.examine(id, name).map(|(stat, _)| stat)
    }

    /// Attributes of a member, and whether it is the object that it was. If it is not, nothing that was opened of the
    /// last one is used any more, and the kernel's caches are invalidated.
    fn examine(&self, id: NodeId, name: &[u8]) -> Result<(Stat, Seen), FsError> {
        match self.backing.stat(Place { parent: ROOT, dir: b"", name }) {
            Ok(stat) => {
                let seen = self.on_disk.found(id, stat.identity);
                match seen {
                    Seen::Same => return Ok((stat, seen)),
                    Seen::First => {
                        self.invalidated(id);
                        return Ok((stat, seen));
                    }
                    Seen::Back => {
                        tracing::info!(path = %String::from_utf8_lossy(name), "a store path of the closure is back")
                    }
                    Seen::Replaced => {
                        tracing::info!(path = %String::from_utf8_lossy(name), "a store path was replaced on disk; invalidating what is cached of it")
                    }
                }
                self.backing.close_all();
                self.invalidate(Stale::Member(id));
                Ok((stat, seen))
            }
            Err(BackingError::Absent { .. }) => {
                if self.on_disk.is_gone(id) && self.trie.members().find(name).is_some() {
                    tracing::warn!(
                        "store path '{}' of the closure is registered but gone from disk; it answers ENOENT until \
                         'nix-store --repair-path' brings it back",
                        String::from_utf8_lossy(name)
                    );
                }
                Err(FsError::AbsentNow)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Examines every member, and warns once of those gone from disk; returns how many there are.
    pub fn check_members(&self) -> usize {
        let members = self.trie.members();
        let (mut gone, mut first) = (0, false);
        for (name, id) in &members.entries {
            match self.examine(*id, name.as_str().as_bytes()) {
                Ok((_, seen)) => first |= seen == Seen::First,
                Err(FsError::AbsentNow) => gone += 1,
                // For whoever asks.
                Err(_) => {}
            }
        }
        if first {
            // What was opened before may belong to another object than the one that is known from now on.
            self.backing.close_all();
        }
        gone
    }

    /// Something happened to `name` in the store directory, and if `put`, something was put there: if it is a member, or
    /// was one, examines it.
    pub fn check_member(&self, name: &[u8], put: bool) {
        if let Some(id) = self.trie.find(ROOT, name) {
            if put {
                self.on_disk.put(id);
            }
            // An error is for whoever asks next.
            let _ = self.examine(id, name);
        }
    }

    /// Attributes of `id`.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's.
    pub fn getattr(&self, id: NodeId) -> Result<Node, FsError> {
        if id == ROOT {
            return Ok(Node { id, stat: root::stat(&self.trie.members()) });
        }
        let replaced = self.on_disk.replaced();
        self.at(id, |place, _| Ok(Node { id, stat: self.steady(replaced, self.backing.stat(place)?) }))
    }

    /// Target of the symbolic link `id`.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's.
    pub fn readlink(&self, id: NodeId) -> Result<Target, FsError> {
        self.at(id, |place, path| {
            self.usage.touch(path);
            Ok(self.backing.readlink(place)?)
        })
    }

    /// Reads from the file `id` at `offset` into `buffer`.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's; then no byte counts.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<Read, FsError> {
        self.at(id, |place, path| {
            // Who plays brings for itself what it reads.
            if offset == 0
                && !usage::is_unseen()
                && let Some(ahead) = &self.ahead
            {
                ahead.reads(path);
            }
            let read = self.backing.read(id, place, offset, buffer);
            match &read {
                Ok(read) => self.usage.read(path, offset, read.len),
                Err(_) => self.usage.touch(path),
            }
            Ok(read?)
        })
    }

    /// The next data or hole of the file `id` from `offset` on.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's; `ENXIO` past the end.
    pub fn seek(&self, id: NodeId, offset: u64, hole: bool) -> Result<u64, FsError> {
        self.at(id, |place, path| {
            self.usage.touch(path);
            Ok(self.backing.seek(id, place, offset, hole)?)
        })
    }

    /// The kernel dropped `count` references to `id`.
    pub fn forget(&self, id: NodeId, count: u64) {
        let gone = self.trie.forget(id, count);
        if gone.is_empty() {
            return;
        }
        self.usage.set_nodes(self.trie.len());
        self.end_idle(&gone);
        for gone in gone {
            self.backing.close(gone);
            if self.forgotten.fetch_add(1, Ordering::Relaxed) % TRIM_EVERY == TRIM_EVERY - 1 {
                self.links.forgot(TRIM_EVERY as usize, &self.trie);
                sys::give_memory_back();
            }
        }
    }

    /// What statfs(2) tells.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let members = self.trie.members();
        Totals { paths: members.entries.len() as u64, bytes: members.nar_size }
    }
}

/// Directory and name of a path below the store directory.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/').and_then(|at| path.split_at_checked(at)) {
        Some((dir, name)) => (dir, name.get(1..).unwrap_or_default()),
        None => (b"", path),
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "fault_tests.rs"]
mod fault_tests;

#[cfg(test)]
#[path = "uses_tests.rs"]
mod uses_tests;
