//! The kernel of the model: what it holds, and how that comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::host::{GROUPS, MEMBERS, make_tree};
use super::steps::Pick;
use crate::values::{StorePath, View};
use crate::view::backing::{Backing, Kind, faults};
use crate::view::journal::{Home, Journal, Record};
use crate::view::trie::{NodeId, PathTrie, ROOT};
use crate::view::{Node, ServedView, Stale};

/// What an id stands for: the member, and the path of the directory or link, or the first name of the file.
pub(super) type Meaning = (usize, PathBuf);

#[derive(Debug)]
pub(super) struct Inode {
    /// How often the kernel was told of it since it has this inode.
    pub(super) told: u64,
    /// Dentries, and files opened by handle.
    pub(super) users: usize,
    pub(super) meaning: Option<Meaning>,
}

#[derive(Debug, Clone)]
pub(super) struct Dentry {
    pub(super) parent: u32,
    pub(super) name: String,
    pub(super) inode: NodeId,
    /// Whether a path walk finds it.
    pub(super) hashed: bool,
    /// Dentries in it, files open of it, replies that will be put into it.
    pub(super) users: usize,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) dentry: u32,
    pub(super) offset: u64,
    pub(super) seen: Vec<String>,
    /// What a complete listing has to show, and what else it may: members that came or went meanwhile.
    pub(super) expected: BTreeSet<String>,
    pub(super) possible: BTreeSet<String>,
    /// Whether the kernel may cache all that it was told so far.
    pub(super) believed: bool,
    pub(super) done: bool,
}

impl Stream {
    pub(super) fn new(dentry: u32) -> Self {
        let (expected, possible) = Default::default();
        Self { dentry, offset: 0, seen: Vec::new(), expected, possible, believed: true, done: false }
    }
}

#[derive(Debug)]
pub(super) enum Open {
    File { dentry: u32 },
    Handle { inode: NodeId, path: (usize, PathBuf) },
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) dentry: u32,
    pub(super) name: String,
    pub(super) node: Node,
}

pub(super) struct Kernel {
    /// The tree as it should be.
    pub(super) intact: PathBuf,
    /// The one that is served.
    pub(super) store: PathBuf,
    pub(super) scratch: tempfile::TempDir,
    pub(super) view: ServedView,
    pub(super) stale: Receiver<Stale>,
    /// What fails in the next request.
    pub(super) fault: Option<(std::ops::Range<usize>, Errno)>,
    /// The repair under way: what has been done of it, and whether it renames.
    pub(super) repair: Option<(usize, bool)>,
    /// Whether something of the first member is not as it should be.
    pub(super) damaged: bool,
    /// Files that were lost before any repair: a directory that lacks one looks finished.
    pub(super) lost: BTreeSet<PathBuf>,
    /// Names that the kernel has cached as absent.
    pub(super) absent: BTreeSet<(u32, String)>,
    pub(super) shown: BTreeSet<usize>,
    pub(super) epoch: u32,
    pub(super) inodes: BTreeMap<NodeId, Inode>,
    pub(super) dentries: BTreeMap<u32, Dentry>,
    pub(super) next: u32,
    pub(super) streams: Vec<Stream>,
    pub(super) open: Vec<Open>,
    pub(super) pending: Vec<Pending>,
    pub(super) forgets: Vec<(NodeId, u64)>,
    /// Every id that was ever told, with what it meant.
    pub(super) ever: BTreeMap<NodeId, Meaning>,
    pub(super) killed: bool,
    /// Whether one file has one inode: no server had to begin without knowing which, and the host did not fail.
    pub(super) exact: bool,
}

pub(super) const TOP: u32 = 0;

pub(super) fn choose(pick: Pick, len: usize) -> Option<usize> {
    usize::from(pick).checked_rem(len)
}

impl Kernel {
    pub(super) fn new(intact: &Path, changes: bool) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = if changes { scratch.path().join("store") } else { intact.to_owned() };
        if changes {
            std::fs::create_dir(&store).unwrap();
            make_tree(&store);
        }
        let journal = Arc::new(Journal::create(&scratch.path().join("nodes")).unwrap());
        let (view, stale) = serve(&store, Arc::new(PathTrie::new()), journal);
        let mut kernel = Self {
            intact: intact.to_owned(),
            store,
            scratch,
            view,
            stale,
            fault: None,
            repair: None,
            damaged: false,
            lost: BTreeSet::new(),
            absent: BTreeSet::new(),
            shown: BTreeSet::new(),
            epoch: 0,
            inodes: BTreeMap::from([(ROOT, Inode { told: 1, users: 1, meaning: None })]),
            dentries: BTreeMap::new(),
            next: TOP,
            streams: Vec::new(),
            open: Vec::new(),
            pending: Vec::new(),
            forgets: Vec::new(),
            ever: BTreeMap::new(),
            killed: false,
            exact: true,
        };
        kernel.put(Dentry { parent: TOP, name: String::new(), inode: ROOT, hashed: true, users: 1 });
        kernel.switch((0..MEMBERS.len()).collect());
        kernel.view.check_members();
        kernel
    }

    /// Asks the server something, in which the host may fail. Returns whether it did.
    pub(super) fn ask<T>(&mut self, ask: impl FnOnce(&ServedView) -> T) -> (T, bool) {
        let Some((numbers, errno)) = self.fault.take() else { return (ask(&self.view), false) };
        let (answer, _, failed) = faults::during(numbers, errno, || ask(&self.view));
        // A name whose file could not be compared has got a node of its own.
        self.exact &= !failed;
        (answer, failed)
    }

    pub(super) fn put(&mut self, dentry: Dentry) -> u32 {
        let id = self.next;
        self.next += 1;
        self.dentries.insert(id, dentry);
        id
    }

    pub(super) fn switch(&mut self, shown: BTreeSet<usize>) {
        self.epoch += 1;
        let names: View = shown.iter().map(|n| (StorePath::new(MEMBERS[*n]).unwrap(), 1)).collect();
        let fresh = self.view.trie().prepare(&names);
        self.view.record(&fresh.into_iter().map(Record::Node).collect::<Vec<_>>());
        let switch = self.view.trie().switch(&names, self.epoch);
        for name in switch.added.into_iter().chain(switch.removed) {
            let of_name =
                |d: &&u32| self.dentries[*d].parent == TOP && self.dentries[*d].name == name.as_str();
            let found = self.dentries.keys().filter(|d| **d != TOP).find(of_name).copied();
            found.into_iter().for_each(|dentry| self.invalidate(dentry));
        }
        self.shown = shown;
        let shown = self.with_dots(TOP);
        for stream in self.streams.iter_mut().filter(|stream| stream.dentry == TOP && stream.offset > 0) {
            // The set that it began with is kept by the server that it began with.
            if self.killed {
                stream.expected = &stream.expected & &shown;
                stream.possible.extend(shown.iter().cloned());
            }
        }
    }

    pub(super) fn with_dots(&self, dir: u32) -> BTreeSet<String> {
        self.children(dir).into_iter().chain([".".to_owned(), "..".to_owned()]).collect()
    }

    /// Member and path in it of a dentry; none for the root.
    pub(super) fn path(&self, dentry: u32) -> Option<(usize, PathBuf)> {
        let mut parts = Vec::new();
        let mut at = dentry;
        while at != TOP {
            let found = &self.dentries[&at];
            parts.push(found.name.clone());
            at = found.parent;
        }
        let member = parts.pop()?;
        parts.reverse();
        Some((MEMBERS.iter().position(|name| *name == member).unwrap(), parts.iter().collect()))
    }

    pub(super) fn physical(&self, (member, path): &(usize, PathBuf)) -> PathBuf {
        let top = self.store.join(MEMBERS[*member]);
        if path.as_os_str().is_empty() { top } else { top.join(path) }
    }

    pub(super) fn meaning(&self, path: &(usize, PathBuf)) -> Meaning {
        let group = GROUPS
            .iter()
            .find(|names| names.iter().any(|n| (n.0, Path::new(n.1)) == (path.0, path.1.as_path())));
        match group.and_then(|names| names.iter().find(|n| n.0 == path.0)) {
            Some((member, first)) => (*member, first.into()),
            None => path.clone(),
        }
    }

    pub(super) fn intact(&self, (member, path): &(usize, PathBuf)) -> PathBuf {
        let top = self.intact.join(MEMBERS[*member]);
        if path.as_os_str().is_empty() { top } else { top.join(path) }
    }

    pub(super) fn is_dir(&self, dentry: u32) -> bool {
        dentry == TOP
            || self.path(dentry).is_some_and(|path| self.intact(&path).symlink_metadata().unwrap().is_dir())
    }

    /// The names that a directory should have.
    pub(super) fn children(&self, dentry: u32) -> Vec<String> {
        match self.path(dentry) {
            None => self.shown.iter().map(|n| MEMBERS[*n].to_owned()).collect(),
            Some(path) => {
                let entries = std::fs::read_dir(self.intact(&path)).unwrap();
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            }
        }
    }

    /// Whether the host has `name` in a directory now.
    pub(super) fn is_there(&self, dir: u32, name: &str) -> bool {
        let place = self.path(dir).map_or_else(|| self.store.clone(), |path| self.physical(&path));
        place.join(name).symlink_metadata().is_ok()
    }

    pub(super) fn child(&self, parent: u32, name: &str) -> Option<u32> {
        let is = |d: &Dentry| d.hashed && d.parent == parent && d.name == name;
        self.dentries.iter().find(|(id, d)| **id != TOP && is(d)).map(|(id, _)| *id)
    }

    pub(super) fn is_shown(&self, dentry: u32) -> bool {
        self.path(dentry).is_none_or(|(member, _)| self.shown.contains(&member))
    }

    pub(super) fn check(&self, node: Node, path: &(usize, PathBuf)) -> Result<(), TestCaseError> {
        let real = self.physical(path).symlink_metadata().unwrap();
        prop_assert!(node.stat.settled || self.damaged, "{path:?} is not to be cached");
        prop_assert_eq!(node.stat.settled, real.mtime() == 1, "{:?}", path);
        let kind = match node.stat.kind {
            Kind::File => real.is_file(),
            Kind::Directory => real.is_dir(),
            Kind::Symlink => real.is_symlink(),
        };
        prop_assert!(kind, "{path:?} is of another kind");
        prop_assert_eq!(node.stat.size, real.len(), "{:?} has another size", path);
        Ok(())
    }

    /// Takes a reply in: `fuse_iget`, then `d_splice_alias` or `fuse_direntplus_link`.
    pub(super) fn accept(&mut self, parent: u32, name: &str, node: Node) -> Result<(), TestCaseError> {
        let mut path = self
            .path(parent)
            .unwrap_or_else(|| (MEMBERS.iter().position(|member| *member == name).unwrap(), PathBuf::new()));
        if parent != TOP {
            path.1.push(name);
        }
        let meaning = self.meaning(&path);
        let before = self.ever.insert(node.id, meaning.clone());
        prop_assert!(before.is_none_or(|before| before == meaning), "{:?} means {:?} now", node.id, path);
        if self.exact {
            let other =
                self.inodes.iter().find(|(id, i)| **id != node.id && i.meaning.as_ref() == Some(&meaning));
            prop_assert!(other.is_none(), "{:?} has a second inode, {:?} beside {:?}", path, node.id, other);
        }
        let inode = self.inodes.entry(node.id).or_insert(Inode { told: 0, users: 0, meaning: Some(meaning) });
        inode.told += 1;
        if let Some(known) = self.child(parent, name) {
            if self.dentries[&known].inode == node.id {
                return Ok(());
            }
            self.invalidate(known);
        }
        let alias = self.dentries.iter().find(|(_, d)| d.inode == node.id).map(|(id, _)| *id);
        if let Some(alias) = alias.filter(|_| node.stat.kind == Kind::Directory) {
            let same = self.dentries[&alias].parent == parent && self.dentries[&alias].name == name;
            prop_assert!(same, "one directory at two places");
            self.dentries.get_mut(&alias).unwrap().hashed = true;
            return Ok(());
        }
        self.inodes.get_mut(&node.id).unwrap().users += 1;
        self.put(Dentry { parent, name: name.to_owned(), inode: node.id, hashed: true, users: 0 });
        self.dentries.get_mut(&parent).unwrap().users += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self, inode: NodeId) {
        let found = self.inodes.get_mut(&inode).unwrap();
        found.users -= 1;
        if found.users == 0 && inode != ROOT {
            let told = found.told;
            self.inodes.remove(&inode);
            self.forgets.push((inode, told));
        }
    }

    /// Frees a dentry that nobody uses.
    pub(super) fn shrink(&mut self, id: u32) {
        let dentry = self.dentries.remove(&id).unwrap();
        assert!(id != TOP && dentry.users == 0);
        self.absent.retain(|(parent, _)| *parent != id);
        self.leave(dentry.inode);
        self.dentries.get_mut(&dentry.parent).unwrap().users -= 1;
    }

    pub(super) fn unused(&self) -> Vec<u32> {
        self.dentries.iter().filter(|(id, d)| **id != TOP && d.users == 0).map(|(id, _)| *id).collect()
    }

    /// `d_invalidate`: what is unused below goes, the name is found no more.
    pub(super) fn invalidate(&mut self, dentry: u32) {
        self.absent.retain(|(parent, _)| {
            let mut at = *parent;
            while at != TOP && at != dentry {
                at = self.dentries[&at].parent;
            }
            at != dentry
        });
        loop {
            let below = |id: u32| {
                let mut at = id;
                while at != TOP && at != dentry {
                    at = self.dentries[&at].parent;
                }
                at == dentry
            };
            let Some(gone) = self.unused().into_iter().find(|id| *id != dentry && below(*id)) else { break };
            self.shrink(gone);
        }
        self.dentries.get_mut(&dentry).unwrap().hashed = false;
        if self.dentries[&dentry].users == 0 {
            self.shrink(dentry);
        }
    }

    pub(super) fn deliver(&mut self, at: usize) {
        let (id, count) = self.forgets.remove(at);
        self.view.forget(id, count);
    }

    pub(super) fn kill(&mut self, lost: usize) {
        self.forgets.drain(..lost.min(self.forgets.len()));
        let (trie, mut members) = (Arc::new(PathTrie::new()), Vec::new());
        let journal =
            Journal::resume(Home::open(&self.scratch.path().join("nodes")).unwrap(), |record| match record {
                Record::Node(node) => trie.restore(&node),
                Record::Next(id) => trie.restore_next(id),
                Record::Member(member, identity) => members.push((member, identity)),
                Record::Replaced(member) => drop(trie.detach(member)),
                _ => {}
            })
            .unwrap();
        (self.view, self.stale) = serve(&self.store, trie, Arc::new(journal));
        members.into_iter().for_each(|(member, identity)| self.view.restore_member(member, identity));
        (self.killed, self.exact) = (true, false);
        self.switch(self.shown.clone());
        self.view.check_members();
    }

    pub(super) fn directories(&self) -> Vec<u32> {
        self.dentries.keys().copied().filter(|d| self.is_dir(*d)).collect()
    }

    pub(super) fn files(&self) -> Vec<u32> {
        self.dentries.keys().copied().filter(|d| !self.is_dir(*d)).collect()
    }

    /// Does what the server wants to be invalidated.
    pub(super) fn invalidate_stale(&mut self) {
        for stale in self.stale.try_iter().collect::<Vec<_>>() {
            let Stale::Member(member) = stale else { continue };
            let nodes = self.view.forget_replaced(member);
            self.view.invalidated(member);
            for node in nodes {
                let name = String::from_utf8(node.name.into()).unwrap();
                let of =
                    |d: &Dentry| d.hashed && d.name == name && self.dentries[&d.parent].inode == node.parent;
                let found: Vec<u32> =
                    self.dentries.iter().filter(|(id, d)| **id != TOP && of(d)).map(|(id, _)| *id).collect();
                // Those in a directory that went with the one before are gone as well.
                for dentry in found {
                    if self.dentries.contains_key(&dentry) {
                        self.invalidate(dentry);
                    }
                }
            }
        }
    }
}

pub(super) fn serve(
    store: &Path,
    trie: Arc<PathTrie>,
    journal: Arc<Journal>,
) -> (ServedView, Receiver<Stale>) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let store = rustix::fs::open(store, flags, Mode::empty()).unwrap();
    let (stale, all) = channel();
    (ServedView::new(trie, Backing::new(store), Some(journal), None).invalidating(stale), all)
}
