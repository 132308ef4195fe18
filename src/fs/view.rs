//! What each file system operation answers, in terms of trie and backing store: tested without a kernel.
//!
//! Invariants:
//! - Whatever names a node to the kernel has been written to the journal first.
//! - An answer says nothing of the host: the root is made up from the closure, and a name outside it is
//!   answered before the disk is asked.
//!
//! Hard points:
//! 1. What may be cached. A name that is absent below a store path stays absent, as store paths never change;
//!    one that is absent at the root stays so until a reload, which takes it back; a member that is gone from
//!    disk may come back by a repair, so that answer is never cached.
//! 2. The kernel asks once more after the last entry of a directory, to be told that there is none: where a
//!    listing ended is remembered for a moment, so that this costs no look at the disk.
//! 3. Names of one file below share a node, so that its bytes are cached once: see [`super::links`]. Such a node has
//!    the path of the name that came first.
//! 4. A root listing that spans a reload goes on with the set that it began with: see [`root_offset`].

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Registrations;
use super::links::Links;
use crate::backing::{Backing, DirEntry, Kind, Place, Stat};
use crate::journal::{Journal, Record};
use crate::store::StorePath;
use crate::sys;
use crate::trie::{Entered, Members, NodeId, NodeRecord, PathTrie, ROOT};

/// Listings whose end is remembered: more than there are threads that list at once.
const ENDS: usize = 16;

/// Nodes forgotten between two times that memory is given back: 300 KiB at least, and a pause of a millisecond.
const TRIM_EVERY: u64 = 4096;

/// Why an operation is not answered with what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The kernel named a node that it was never told of, or that a journal lost.
    #[error("no such node")]
    UnknownNode,
    /// Nothing has this name, and nothing ever will: the kernel may remember it.
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

/// A node with its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its id, which is its inode number as well.
    pub id: NodeId,
    /// Its attributes.
    pub stat: Stat,
}

/// One entry of a listing.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What it names.
    pub node: Node,
    /// Its name.
    pub name: &'a [u8],
    /// Where to go on after it.
    pub next: u64,
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
    /// Where listings of the last few directories ended.
    ends: [Mutex<(NodeId, u64)>; ENDS],
    /// Nodes forgotten so far.
    forgotten: AtomicU64,
    /// Which nodes stand for files with several names.
    links: Links,
    /// Members found to be gone from disk, each warned of once.
    gone: Mutex<HashSet<NodeId>>,
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
            ends: std::array::from_fn(|_| Mutex::new((ROOT, 0))),
            forgotten: AtomicU64::new(0),
            links: Links::default(),
            gone: Mutex::default(),
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
        self.at(id, |place| Ok(self.backing.file(id, place)?))
    }

    /// Does `work` where `id` lies.
    fn at<T>(&self, id: NodeId, work: impl FnOnce(Place<'_>) -> Result<T, FsError>) -> Result<T, FsError> {
        let path = self.trie.path(id).ok_or(FsError::UnknownNode)?;
        let parent = self.trie.parent(id).ok_or(FsError::UnknownNode)?;
        let (dir, name) = split(&path);
        work(Place { parent, dir, name })
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
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(FsError::BadName);
        }
        if parent == ROOT {
            let id = self.trie.members().find(name).ok_or(FsError::Absent)?;
            let stat = self.member(id, name)?;
            return Ok(Node { id, stat });
        }
        let dir = self.trie.path(parent).ok_or(FsError::UnknownNode)?;
        if !self.trie.is_shown(parent) {
            return Err(FsError::AbsentNow);
        }
        let stat = match self.backing.stat(Place { parent, dir: &dir, name }) {
            Ok(stat) => stat,
            // The directory itself may be what is gone; only a name can be absent for ever.
            Err(Errno::NOENT) => return Err(self.absent_below(parent, &dir)),
            Err(error) => return Err(error.into()),
        };
        let entered = self.enter(parent, name, stat).ok_or(FsError::UnknownNode)?;
        if entered.unrecorded
            && let Some(node) = self.trie.record(entered.id)
        {
            self.record(&[Record::Node(node)]);
        }
        Ok(Node { id: entered.id, stat })
    }

    /// Counts one look-up of `name` in `parent`, giving it the node of another name of the same file if there is one.
    fn enter(&self, parent: NodeId, name: &[u8], stat: Stat) -> Option<Entered> {
        let Some(inode) = stat.linked else { return self.trie.enter(parent, name) };
        let member = self.trie.member(parent)?;
        if self.trie.find(parent, name).is_none()
            && let Some(entered) = self.links.find(member, inode).and_then(|id| self.trie.count(id))
        {
            return Some(entered);
        }
        let entered = self.trie.enter(parent, name)?;
        self.links.insert(member, inode, entered.id, &self.trie);
        Some(entered)
    }

    fn absent_below(&self, parent: NodeId, dir: &[u8]) -> FsError {
        let top = dir.split(|b| *b == b'/').next().unwrap_or_default();
        match self.backing.stat(Place { parent: ROOT, dir: b"", name: top }) {
            Ok(_) => FsError::Absent,
            Err(_) => {
                self.backing.close(parent);
                self.warn_gone(top);
                FsError::AbsentNow
            }
        }
    }

    /// Attributes of a member.
    fn member(&self, id: NodeId, name: &[u8]) -> Result<Stat, FsError> {
        match self.backing.stat(Place { parent: ROOT, dir: b"", name }) {
            Ok(stat) => {
                if self.gone.lock().remove(&id) {
                    tracing::info!(path = %String::from_utf8_lossy(name), "a store path of the closure is back");
                }
                Ok(stat)
            }
            Err(Errno::NOENT) => {
                self.warn_gone(name);
                Err(FsError::AbsentNow)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn warn_gone(&self, name: &[u8]) {
        let Some(id) = self.trie.members().find(name) else {
            return;
        };
        if self.gone.lock().insert(id) {
            tracing::warn!(
                "store path '{}' of the closure is registered but gone from disk; it answers ENOENT until \
                 'nix-store --repair-path' brings it back",
                String::from_utf8_lossy(name)
            );
        }
    }

    /// Looks once at every member and warns of those gone from disk; returns how many there are.
    pub fn check_members(&self) -> usize {
        let members = self.trie.members();
        let gone = |(name, id): &&(StorePath, NodeId)| {
            matches!(self.member(*id, name.as_str().as_bytes()), Err(FsError::AbsentNow))
        };
        members.entries.iter().filter(gone).count()
    }

    /// Attributes of `id`.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's.
    pub fn getattr(&self, id: NodeId) -> Result<Node, FsError> {
        if id == ROOT {
            return Ok(Node { id, stat: root_stat(&self.trie.members()) });
        }
        self.at(id, |place| Ok(Node { id, stat: self.backing.stat(place)? }))
    }

    /// Target of the symbolic link `id`.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's.
    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>, FsError> {
        self.at(id, |place| Ok(self.backing.readlink(place)?))
    }

    /// Reads from the file `id` at `offset` into `buffer`.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, FsError> {
        self.at(id, |place| Ok(self.backing.read(id, place, offset, buffer)?))
    }

    /// The next data or hole of the file `id` from `offset` on.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`] or the backing store's; `ENXIO` past the end.
    pub fn seek(&self, id: NodeId, offset: u64, hole: bool) -> Result<u64, FsError> {
        self.at(id, |place| Ok(self.backing.seek(id, place, offset, hole)?))
    }

    /// Lists the directory `id` from `offset` on until `each` returns false: then the entry was not taken.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`], [`FsError::AbsentNow`] or the backing store's.
    pub fn list(
        &self,
        id: NodeId,
        offset: u64,
        mut each: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<(), FsError> {
        if id == ROOT {
            return self.list_root(offset, each);
        }
        let path = self.trie.path(id).ok_or(FsError::UnknownNode)?;
        let parent = self.trie.parent(id).ok_or(FsError::UnknownNode)?;
        if !self.trie.is_shown(id) {
            return Err(FsError::AbsentNow);
        }
        let end = self.ends.get(id.0 as usize % ENDS);
        if offset > 0 && end.is_some_and(|end| *end.lock() == (id, offset)) {
            return Ok(());
        }
        let mut records = Vec::new();
        let mut last = None;
        let (dir, name) = split(&path);
        let answer = self.backing.list(id, Place { parent, dir, name }, offset, |entry| {
            let taken = self.list_entry(id, parent, entry, &mut records, &mut each);
            last = if taken { Some(entry.next) } else { None };
            taken
        });
        if let (Some(end), Some(next), Ok(())) = (end, last, answer) {
            *end.lock() = (id, next);
        }
        self.record(&records);
        match answer {
            Err(Errno::NOENT) => Err(self.absent_below(id, &path)),
            answer => Ok(answer?),
        }
    }

    fn list_entry(
        &self,
        id: NodeId,
        parent: NodeId,
        entry: DirEntry<'_>,
        records: &mut Vec<Record>,
        each: &mut impl FnMut(Entry<'_>) -> bool,
    ) -> bool {
        let Some(stat) = entry.stat else {
            // `.` and `..`: their attributes are not looked at, only kind and inode number.
            let id = if entry.name == b"." { id } else { parent };
            return each(Entry { node: Node { id, stat: DOT }, name: entry.name, next: entry.next });
        };
        let Some(entered) = self.enter(id, entry.name, stat) else { return false };
        let node = Node { id: entered.id, stat };
        if !each(Entry { node, name: entry.name, next: entry.next }) {
            self.forget(entered.id, 1);
            return false;
        }
        if entered.unrecorded {
            records.extend(self.trie.record(entered.id).map(Record::Node));
        }
        true
    }

    fn list_root(&self, offset: u64, mut each: impl FnMut(Entry<'_>) -> bool) -> Result<(), FsError> {
        let (members, from) = self.root_position(offset);
        let dots = [&b"."[..], b".."].into_iter().map(|name| (name, ROOT));
        let names = members.entries.iter().map(|(name, id)| (name.as_str().as_bytes(), *id));
        for (at, (name, id)) in dots.chain(names).enumerate().skip(from) {
            let stat = if id == ROOT {
                DOT
            } else {
                match self.member(id, name) {
                    Ok(stat) => stat,
                    Err(FsError::AbsentNow) => continue,
                    Err(error) => return Err(error),
                }
            };
            let next = root_offset(members.epoch, at + 1);
            if !each(Entry { node: Node { id, stat }, name, next }) {
                break;
            }
        }
        Ok(())
    }

    fn root_position(&self, offset: u64) -> (Arc<Members>, usize) {
        let epoch = u32::try_from(offset >> 32).unwrap_or_default();
        let from = usize::try_from(offset & u64::from(u32::MAX)).unwrap_or_default();
        let begun = if offset == 0 { None } else { self.trie.members_of(epoch) };
        (begun.unwrap_or_else(|| self.trie.members()), from)
    }

    /// The kernel dropped `count` references to `id`.
    pub fn forget(&self, id: NodeId, count: u64) {
        if self.trie.forget(id, count) {
            self.backing.close(id);
            if self.forgotten.fetch_add(1, Ordering::Relaxed) % TRIM_EVERY == TRIM_EVERY - 1 {
                self.links.sweep(&self.trie);
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

    /// Makes nodes durable before the kernel is told of them.
    pub fn record(&self, records: &[Record]) {
        let Some(journal) = &self.journal else { return };
        if let Err(error) = journal.append(records) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the view goes on, but would not survive a crash of its server until it is mounted anew"
            );
        }
        for record in records {
            if let Record::Node(node) = record {
                self.trie.recorded(node.id);
            }
        }
        if journal.claim_rewrite(self.trie.len()) {
            let live = |put: &mut dyn FnMut(&Record)| {
                let _ = self.trie.for_each(|id, parent, name| {
                    put(&Record::Node(NodeRecord { id, parent, name: name.into() }));
                    Ok::<_, std::convert::Infallible>(())
                });
                if let Some(registrations) = &self.registrations {
                    registrations.for_each(|node, number| put(&Record::Backing(node, number)));
                }
            };
            if let Err(error) = journal.rewrite(live) {
                tracing::warn!(error = &error as &dyn std::error::Error, "the node journal keeps growing");
            }
        }
    }
}

/// Directory and name of a path below the store directory.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/').and_then(|at| path.split_at_checked(at)) {
        Some((dir, name)) => (dir, name.get(1..).unwrap_or_default()),
        None => (b"", path),
    }
}

/// Where a root listing goes on: the switch that made its set, and the number of the next entry.
fn root_offset(epoch: u32, next: usize) -> u64 {
    u64::from(epoch) << 32 | next as u64
}

/// Attributes of `.` and `..` in a listing, which nobody looks at.
const DOT: Stat = Stat {
    kind: Kind::Directory,
    perm: 0o555,
    uid: 0,
    gid: 0,
    size: 0,
    blocks: 0,
    mtime: (1, 0),
    nlink: 2,
    linked: None,
};

/// The root's attributes, made up from the closure: the host's store directory changes with every build.
fn root_stat(members: &Members) -> Stat {
    let entries = members.entries.len();
    Stat { size: entries as u64, nlink: u32::try_from(entries).unwrap_or(u32::MAX).saturating_add(2), ..DOT }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
