//! The view under a model of the kernel, with generated orders of events.
//!
//! The model keeps what Linux keeps (`fs/fuse/dir.c`, `inode.c`, `readdir.c`, `fs/dcache.c`): inodes with the number of
//! times they were told, dentries that pin their parents, open files and directories, files opened by handle that
//! pin no dentry, absences that are cached, replies that have not been taken in yet, and FORGETs that have not been
//! delivered. The host has its own part: calls on the store fail, a store path is damaged and repaired in steps, the
//! optimiser links files. Every answer is compared with a real directory tree, and at the end, with everything
//! forgotten, the trie has to be empty again.
//!
//! `NSF_CASES` sets the number of sequences (`scripts/stress --model` runs the long form).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::backing::faults;
use crate::backing::tests::settle;
use crate::closure::View;
use crate::journal::Journal;
use crate::store::StorePath;

const MEMBERS: [&str; 4] = [
    "00000000000000000000000000000000-a",
    "00000000000000000000000000000000-b",
    "00000000000000000000000000000000-file",
    "00000000000000000000000000000000-link",
];

/// Names of one file each, by member: what `nix-store --optimise` makes of identical files.
const GROUPS: [&[(usize, &str)]; 2] = [
    &[(0, "A/f"), (0, "B/f"), (0, "A2/f"), (0, "A/sub/f"), (1, "x/f"), (1, "y/f")],
    &[(0, "A/g"), (0, "B/deep/er/g"), (0, "g")],
];

fn make_tree(store: &Path) {
    let at = |member: usize, name: &str| store.join(MEMBERS[member]).join(name);
    let write = |path: &Path, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (number, names) in GROUPS.iter().enumerate() {
        let (member, first) = names[0];
        let first = at(member, first);
        write(&first, &format!("contents of group {number}, {}", "x".repeat(100 * number)));
        for (member, name) in &names[1..] {
            let path = at(*member, name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::hard_link(&first, path).unwrap();
        }
    }
    for name in ["A/own", "B/own", "B/deep/own", "wide/1", "wide/2", "wide/3", "wide/4", "wide/5"] {
        write(&at(0, name), name);
    }
    write(&at(1, "z"), "z");
    std::os::unix::fs::symlink("f", at(0, "A/link")).unwrap();
    std::os::unix::fs::symlink("../A/g", at(0, "B/link")).unwrap();
    std::fs::write(store.join(MEMBERS[2]), "a file").unwrap();
    std::os::unix::fs::symlink(MEMBERS[0], store.join(MEMBERS[3])).unwrap();
    settle(store);
}

/// One of several things: the number is taken modulo how many there are.
type Pick = u16;

#[derive(Debug, Clone)]
enum Step {
    /// A path walk comes to a name in a directory; its reply is taken in now or later.
    Lookup {
        dir: Pick,
        name: Pick,
        later: bool,
    },
    /// A reply that has waited is taken in, or the kernel has no memory for it and forgets it at once.
    Reply {
        which: Pick,
        fails: bool,
    },
    OpenDir {
        dir: Pick,
    },
    /// One READDIRPLUS; every entry whose bit is set in `fails` is forgotten at once.
    List {
        stream: Pick,
        room: u8,
        fails: u8,
    },
    Rewind {
        stream: Pick,
    },
    CloseDir {
        stream: Pick,
    },
    /// Opens or maps a file: its dentry stays.
    Open {
        file: Pick,
    },
    /// Opens a file by handle: its inode stays, its dentry need not.
    OpenByHandle {
        file: Pick,
    },
    Close {
        file: Pick,
    },
    /// The shrinker takes one dentry that nobody uses, or all of them.
    Shrink {
        dentry: Pick,
    },
    ShrinkAll {
        keep: Pick,
    },
    /// A FORGET is delivered: in any order, as servers have several threads.
    Forget {
        which: Pick,
    },
    ForgetAll {
        reverse: bool,
    },
    Invalidate {
        dentry: Pick,
    },
    Examine {
        held: Pick,
    },
    Switch {
        shown: u8,
    },
    /// The server dies; FORGETs that it had taken are lost.
    Kill {
        lost: u8,
    },
    Rewrite,
    /// The n-th call on the store fails in the next request, and those after it if `all`.
    Fault {
        number: u8,
        all: bool,
        errno: Pick,
    },
    /// A file of the first member is lost, and its directory looks as if nothing had happened.
    Damage {
        file: Pick,
    },
    /// The next step of a repair of the first member.
    Repair {
        renaming: bool,
    },
    /// The names of a group become names of a new file.
    Optimise {
        group: Pick,
    },
}

/// What the host may answer instead of doing what it was asked to.
const ERRORS: [Errno; 8] = [
    Errno::IO,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::ACCESS,
    Errno::STALE,
    Errno::TIMEDOUT,
    Errno::NOSYS,
];

/// How often the host does something, beside a hundred events of the kernel.
#[derive(Debug, Clone, Copy)]
struct Host {
    faults: u32,
    changes: u32,
}

fn steps(host: Host) -> impl Strategy<Value = Vec<Step>> {
    let pick = any::<Pick>;
    let fault =
        (0u8..12, any::<bool>(), pick()).prop_map(|(number, all, errno)| Step::Fault { number, all, errno });
    let step = prop_oneof![
        100 => kernel_steps(),
        host.faults => fault,
        host.changes => pick().prop_map(|file| Step::Damage { file }),
        5 * host.changes => any::<bool>().prop_map(|renaming| Step::Repair { renaming }),
        host.changes => pick().prop_map(|group| Step::Optimise { group }),
    ];
    proptest::collection::vec(step, 1..160)
}

fn kernel_steps() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    prop_oneof![
        30 => (pick(), pick(), prop::bool::weighted(0.15)).prop_map(|(dir, name, later)| Step::Lookup { dir, name, later }),
        6 => (pick(), prop::bool::weighted(0.2)).prop_map(|(which, fails)| Step::Reply { which, fails }),
        4 => pick().prop_map(|dir| Step::OpenDir { dir }),
        8 => (pick(), 1u8..8, any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(stream, room, bits, some)| Step::List { stream, room, fails: if some { bits } else { 0 } }),
        2 => pick().prop_map(|stream| Step::Rewind { stream }),
        2 => pick().prop_map(|stream| Step::CloseDir { stream }),
        6 => pick().prop_map(|file| Step::Open { file }),
        2 => pick().prop_map(|file| Step::OpenByHandle { file }),
        4 => pick().prop_map(|file| Step::Close { file }),
        10 => pick().prop_map(|dentry| Step::Shrink { dentry }),
        4 => pick().prop_map(|keep| Step::ShrinkAll { keep }),
        12 => pick().prop_map(|which| Step::Forget { which }),
        4 => any::<bool>().prop_map(|reverse| Step::ForgetAll { reverse }),
        2 => pick().prop_map(|dentry| Step::Invalidate { dentry }),
        16 => pick().prop_map(|held| Step::Examine { held }),
        1 => (1u8..16).prop_map(|shown| Step::Switch { shown }),
        1 => (0u8..4).prop_map(|lost| Step::Kill { lost }),
        1 => Just(Step::Rewrite),
    ]
}

/// What an id stands for: the member, and the path of the directory or link, or the first name of the file.
type Meaning = (usize, PathBuf);

#[derive(Debug)]
struct Inode {
    /// How often the kernel was told of it since it has this inode.
    told: u64,
    /// Dentries, and files opened by handle.
    users: usize,
    meaning: Option<Meaning>,
}

#[derive(Debug, Clone)]
struct Dentry {
    parent: u32,
    name: String,
    inode: NodeId,
    /// Whether a path walk finds it.
    hashed: bool,
    /// Dentries in it, files open of it, replies that will be put into it.
    users: usize,
}

#[derive(Debug)]
struct Stream {
    dentry: u32,
    offset: u64,
    seen: Vec<String>,
    /// What a complete listing has to show, and what else it may: members that came or went meanwhile.
    expected: BTreeSet<String>,
    possible: BTreeSet<String>,
    /// Whether the kernel may cache all that it was told so far.
    believed: bool,
    done: bool,
}

impl Stream {
    fn new(dentry: u32) -> Self {
        let (expected, possible) = Default::default();
        Self { dentry, offset: 0, seen: Vec::new(), expected, possible, believed: true, done: false }
    }
}

#[derive(Debug)]
enum Open {
    File { dentry: u32 },
    Handle { inode: NodeId, path: (usize, PathBuf) },
}

#[derive(Debug)]
struct Pending {
    dentry: u32,
    name: String,
    node: Node,
}

struct Kernel {
    /// The tree as it should be.
    intact: PathBuf,
    /// The one that is served.
    store: PathBuf,
    scratch: tempfile::TempDir,
    view: ServedView,
    stale: Receiver<Stale>,
    /// What fails in the next request.
    fault: Option<(std::ops::Range<usize>, Errno)>,
    /// The repair under way: what has been done of it, and whether it renames.
    repair: Option<(usize, bool)>,
    /// Whether something of the first member is not as it should be.
    damaged: bool,
    /// Names that the kernel has cached as absent.
    absent: BTreeSet<(u32, String)>,
    shown: BTreeSet<usize>,
    epoch: u32,
    inodes: BTreeMap<NodeId, Inode>,
    dentries: BTreeMap<u32, Dentry>,
    next: u32,
    streams: Vec<Stream>,
    open: Vec<Open>,
    pending: Vec<Pending>,
    forgets: Vec<(NodeId, u64)>,
    /// Every id that was ever told, with what it meant.
    ever: BTreeMap<NodeId, Meaning>,
    killed: bool,
    /// Whether one file has one inode: no server had to begin without knowing which, and the host was well.
    exact: bool,
}

const TOP: u32 = 0;

fn choose(pick: Pick, len: usize) -> Option<usize> {
    usize::from(pick).checked_rem(len)
}

impl Kernel {
    fn new(intact: &Path, changes: bool) -> Self {
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
    fn ask<T>(&mut self, ask: impl FnOnce(&ServedView) -> T) -> (T, bool) {
        let Some((numbers, errno)) = self.fault.take() else { return (ask(&self.view), false) };
        let (answer, _, failed) = faults::during(numbers, errno, || ask(&self.view));
        // A name whose file could not be compared has got a node of its own.
        self.exact &= !failed;
        (answer, failed)
    }

    fn put(&mut self, dentry: Dentry) -> u32 {
        let id = self.next;
        self.next += 1;
        self.dentries.insert(id, dentry);
        id
    }

    fn switch(&mut self, shown: BTreeSet<usize>) {
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

    fn with_dots(&self, dir: u32) -> BTreeSet<String> {
        self.children(dir).into_iter().chain([".".to_owned(), "..".to_owned()]).collect()
    }

    /// Member and path in it of a dentry; none for the root.
    fn path(&self, dentry: u32) -> Option<(usize, PathBuf)> {
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

    fn physical(&self, (member, path): &(usize, PathBuf)) -> PathBuf {
        let top = self.store.join(MEMBERS[*member]);
        if path.as_os_str().is_empty() { top } else { top.join(path) }
    }

    fn meaning(&self, path: &(usize, PathBuf)) -> Meaning {
        let group = GROUPS
            .iter()
            .find(|names| names.iter().any(|n| (n.0, Path::new(n.1)) == (path.0, path.1.as_path())));
        match group.and_then(|names| names.iter().find(|n| n.0 == path.0)) {
            Some((member, first)) => (*member, first.into()),
            None => path.clone(),
        }
    }

    fn intact(&self, (member, path): &(usize, PathBuf)) -> PathBuf {
        let top = self.intact.join(MEMBERS[*member]);
        if path.as_os_str().is_empty() { top } else { top.join(path) }
    }

    fn is_dir(&self, dentry: u32) -> bool {
        dentry == TOP
            || self.path(dentry).is_some_and(|path| self.intact(&path).symlink_metadata().unwrap().is_dir())
    }

    /// The names that a directory should have.
    fn children(&self, dentry: u32) -> Vec<String> {
        match self.path(dentry) {
            None => self.shown.iter().map(|n| MEMBERS[*n].to_owned()).collect(),
            Some(path) => {
                let entries = std::fs::read_dir(self.intact(&path)).unwrap();
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            }
        }
    }

    /// Whether the host has `name` in a directory now.
    fn is_there(&self, dir: u32, name: &str) -> bool {
        let place = self.path(dir).map_or_else(|| self.store.clone(), |path| self.physical(&path));
        place.join(name).symlink_metadata().is_ok()
    }

    fn child(&self, parent: u32, name: &str) -> Option<u32> {
        let is = |d: &Dentry| d.hashed && d.parent == parent && d.name == name;
        self.dentries.iter().find(|(id, d)| **id != TOP && is(d)).map(|(id, _)| *id)
    }

    fn is_shown(&self, dentry: u32) -> bool {
        self.path(dentry).is_none_or(|(member, _)| self.shown.contains(&member))
    }

    fn check(&self, node: Node, path: &(usize, PathBuf)) -> Result<(), TestCaseError> {
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
    fn accept(&mut self, parent: u32, name: &str, node: Node) -> Result<(), TestCaseError> {
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

    fn leave(&mut self, inode: NodeId) {
        let found = self.inodes.get_mut(&inode).unwrap();
        found.users -= 1;
        if found.users == 0 && inode != ROOT {
            let told = found.told;
            self.inodes.remove(&inode);
            self.forgets.push((inode, told));
        }
    }

    /// Frees a dentry that nobody uses.
    fn shrink(&mut self, id: u32) {
        let dentry = self.dentries.remove(&id).unwrap();
        assert!(id != TOP && dentry.users == 0);
        self.absent.retain(|(parent, _)| *parent != id);
        self.leave(dentry.inode);
        self.dentries.get_mut(&dentry.parent).unwrap().users -= 1;
    }

    fn unused(&self) -> Vec<u32> {
        self.dentries.iter().filter(|(id, d)| **id != TOP && d.users == 0).map(|(id, _)| *id).collect()
    }

    /// `d_invalidate`: what is unused below goes, the name is found no more.
    fn invalidate(&mut self, dentry: u32) {
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

    fn deliver(&mut self, at: usize) {
        let (id, count) = self.forgets.remove(at);
        self.view.forget(id, count);
    }

    fn kill(&mut self, lost: usize) {
        self.forgets.drain(..lost.min(self.forgets.len()));
        let trie = Arc::new(PathTrie::new());
        let journal = Journal::resume(&self.scratch.path().join("nodes"), |record| match record {
            Record::Node(node) => trie.restore(&node),
            Record::Next(id) => trie.restore_next(id),
            _ => {}
        })
        .unwrap();
        (self.view, self.stale) = serve(&self.store, trie, Arc::new(journal));
        (self.killed, self.exact) = (true, false);
        self.switch(self.shown.clone());
        self.view.check_members();
    }

    fn directories(&self) -> Vec<u32> {
        self.dentries.keys().copied().filter(|d| self.is_dir(*d)).collect()
    }

    fn files(&self) -> Vec<u32> {
        self.dentries.keys().copied().filter(|d| !self.is_dir(*d)).collect()
    }

    fn lookup(&mut self, dir: u32, name: &str, later: bool) -> Result<(), TestCaseError> {
        let on_the_way = |p: &Pending| p.dentry == dir && p.name == name;
        if self.child(dir, name).is_some() || self.pending.iter().any(on_the_way) {
            return Ok(());
        }
        if self.absent.contains(&(dir, name.to_owned())) {
            prop_assert!(
                !self.is_there(dir, name) || self.repair.is_some(),
                "{:?} is cached as absent",
                name
            );
            return Ok(());
        }
        let parent = self.dentries[&dir].inode;
        let (answer, failed) = self.ask(|view| view.lookup(parent, name.as_bytes()));
        let place = self.path(dir);
        if failed && matches!(answer, Err(FsError::Backing(_))) {
            return Ok(());
        }
        let should_be = self.children(dir).iter().any(|child| child == name);
        let there = self.is_there(dir, name) && self.is_shown(dir) && (dir != TOP || should_be);
        if !there {
            prop_assert!(
                matches!(answer, Err(FsError::Absent | FsError::AbsentNow)),
                "{:?}: {:?}",
                name,
                answer
            );
            if answer == Err(FsError::Absent) {
                prop_assert!(
                    !should_be || self.repair.is_none(),
                    "{:?} in {:?} is cached as absent",
                    name,
                    place
                );
                self.absent.insert((dir, name.to_owned()));
            }
            return Ok(());
        }
        prop_assert!(answer.is_ok(), "{:?} in {:?}: {:?}", name, place, answer);
        let node = answer.unwrap();
        if later {
            self.dentries.get_mut(&dir).unwrap().users += 1;
            self.pending.push(Pending { dentry: dir, name: name.to_owned(), node });
            return Ok(());
        }
        self.accept(dir, name, node)?;
        let child = self.child(dir, name).unwrap();
        let path = self.path(child).unwrap();
        self.check(node, &path)
    }

    fn list(&mut self, at: usize, room: usize, fails: u8) -> Result<(), TestCaseError> {
        let Stream { dentry, offset, .. } = self.streams[at];
        if !self.is_shown(dentry) || self.streams[at].done {
            return Ok(());
        }
        if offset == 0 {
            self.streams[at].expected = self.with_dots(dentry);
            self.streams[at].possible = self.with_dots(dentry);
        }
        let inode = self.dentries[&dentry].inode;
        let mut told = Vec::new();
        let (answer, failed) = self.ask(|view| {
            view.list(inode, offset, |entry| {
                if told.len() == room {
                    return false;
                }
                told.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.node, entry.next));
                true
            })
        });
        match answer {
            Ok(believed) => {
                prop_assert!(
                    believed || self.damaged,
                    "the listing of {:?} is not cached",
                    self.path(dentry)
                );
                self.streams[at].believed &= believed;
            }
            Err(FsError::Backing(_)) if failed => {
                prop_assert!(told.is_empty(), "an error takes back what was told");
                return Ok(());
            }
            Err(error) => {
                let there = self.path(dentry).is_none_or(|path| self.physical(&path).is_dir());
                prop_assert!(!there, "a listing of {:?}: {:?}", self.path(dentry), error);
                return Ok(());
            }
        }
        self.streams[at].done = told.is_empty();
        for (number, (name, node, next)) in told.into_iter().enumerate() {
            self.streams[at].offset = next;
            self.streams[at].seen.push(name.clone());
            if name == "." || name == ".." {
                continue;
            }
            if fails >> (number % 8) & 1 == 1 {
                self.forgets.push((node.id, 1));
            } else {
                self.accept(dentry, &name, node)?;
                if let Some(path) = self.child(dentry, &name).and_then(|child| self.path(child)) {
                    self.check(node, &path)?;
                }
            }
        }
        if self.streams[at].done {
            let stream = &self.streams[at];
            if !stream.believed {
                return Ok(());
            }
            let seen: BTreeSet<String> = stream.seen.iter().cloned().collect();
            prop_assert_eq!(seen.len(), stream.seen.len(), "listed twice: {:?}", &stream.seen);
            let missing =
                stream.expected.iter().find(|name| !seen.contains(*name) && self.is_there(dentry, name));
            prop_assert!(
                missing.is_none() || self.repair.is_some(),
                "{:?} is missing in {:?}",
                missing,
                seen
            );
            prop_assert!(seen.is_subset(&stream.possible), "{:?} is more than {:?}", seen, stream.possible);
        }
        Ok(())
    }

    fn examine(&mut self, inode: NodeId, path: &(usize, PathBuf)) -> Result<(), TestCaseError> {
        let physical = self.physical(path);
        let there = physical.symlink_metadata().is_ok();
        let (node, failed) = self.ask(|view| view.getattr(inode));
        match node {
            Ok(node) => self.check(node, path)?,
            Err(FsError::Backing(_)) if failed => return Ok(()),
            // The file may be known by another of its names, which is lost.
            Err(FsError::Absent | FsError::AbsentNow) if !there || self.damaged => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(format!("attributes of {path:?}: {error:?}"))),
        }
        if physical.is_symlink() {
            let target = std::fs::read_link(physical).unwrap().into_os_string().into_encoded_bytes();
            prop_assert_eq!(self.view.readlink(inode), Ok(target));
        } else if physical.is_file() {
            let mut buffer = vec![0; 4096];
            let read = self.view.read(inode, 0, &mut buffer);
            prop_assert!(read.is_ok(), "reading {:?}: {:?}", path, read);
            prop_assert_eq!(
                &buffer[..read.unwrap().len],
                &std::fs::read(physical).unwrap()[..],
                "{:?}",
                path
            );
        }
        Ok(())
    }

    fn first_names(&self) -> Vec<PathBuf> {
        fn walk(top: &Path, at: &Path, all: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(top.join(at)).unwrap() {
                let entry = entry.unwrap();
                let path = at.join(entry.file_name());
                match entry.file_type().unwrap().is_dir() {
                    true => walk(top, &path, all),
                    false => all.push(path),
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.intact.join(MEMBERS[0]), Path::new(""), &mut all);
        all.sort();
        all
    }

    /// Removes a file and lets its directory look as if nothing had happened.
    fn damage(&mut self, file: Pick) {
        let files = self.first_names();
        let victim = self.store.join(MEMBERS[0]).join(&files[choose(file, files.len()).unwrap()]);
        if self.repair.is_none() && std::fs::remove_file(&victim).is_ok() {
            settle(victim.parent().unwrap());
            (self.damaged, self.exact) = (true, false);
        }
    }

    /// One step of a repair: in place as `LocalStore::addToStore`, or by renaming as `replaceValidPath`.
    fn go_on_repairing(&mut self, renaming: bool) {
        let (done, renaming) = self.repair.unwrap_or((0, renaming));
        let (top, old) = (self.store.join(MEMBERS[0]), self.store.join(".old"));
        let remove_half = |top: &Path, files: &[PathBuf]| {
            files.iter().step_by(2).for_each(|file| drop(std::fs::remove_file(top.join(file))));
        };
        (self.damaged, self.exact) = (true, false);
        let copy = |half: bool| {
            for file in self.first_names().iter().skip(usize::from(half) * 3) {
                let (from, to) = (self.intact.join(MEMBERS[0]).join(file), top.join(file));
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                if from.is_symlink() {
                    let _ = std::os::unix::fs::symlink(std::fs::read_link(from).unwrap(), to);
                } else {
                    let text = std::fs::read(from).unwrap();
                    std::fs::write(to, &text[..if half { text.len() / 2 } else { text.len() }]).unwrap();
                }
            }
        };
        match (done, renaming) {
            (0, false) => remove_half(&top, &self.first_names()),
            (1, false) => std::fs::remove_dir_all(&top).unwrap(),
            (2, false) => copy(true),
            (3, false) => copy(false),
            (0, true) => {
                std::fs::rename(&top, &old).unwrap();
                copy(false);
                settle(&top);
            }
            (1, true) => remove_half(&old, &self.first_names()),
            (_, true) => std::fs::remove_dir_all(&old).unwrap(),
            (_, false) => settle(&top),
        }
        let end = done >= if renaming { 2 } else { 4 };
        self.repair = (!end).then_some((done + 1, renaming));
        // The event of the store directory.
        self.view.check_member(MEMBERS[0].as_bytes());
        if end {
            self.damaged = false;
        }
    }

    /// The optimiser replaces names by links to one file, and sets the directory's time again.
    fn optimise(&mut self, group: Pick) {
        let names = GROUPS[choose(group, GROUPS.len()).unwrap()];
        let there =
            names.iter().filter(|(member, name)| self.store.join(MEMBERS[*member]).join(name).exists());
        let there: Vec<_> = there.collect();
        let Some((member, first)) = there.first().filter(|_| self.repair.is_none()) else { return };
        let link = self.store.join(".tmp-link");
        std::fs::write(&link, std::fs::read(self.store.join(MEMBERS[*member]).join(first)).unwrap()).unwrap();
        settle(&link);
        for (member, name) in there {
            let (target, next) = (self.store.join(MEMBERS[*member]).join(name), self.store.join(".tmp-next"));
            std::fs::hard_link(&link, &next).unwrap();
            std::fs::rename(next, &target).unwrap();
            let one = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: one, last_modification: one };
            let dir = target.parent().unwrap();
            rustix::fs::utimensat(rustix::fs::CWD, dir, &times, rustix::fs::AtFlags::empty()).unwrap();
        }
        std::fs::remove_file(link).unwrap();
        self.exact = false;
    }

    /// Does what the server wants to be invalidated.
    fn invalidate_stale(&mut self) {
        for stale in self.stale.try_iter().collect::<Vec<_>>() {
            let Stale::Member(member) = stale else { continue };
            let (name, _) = self.view.forget_replaced(member).unwrap();
            let name = String::from_utf8(name.into()).unwrap();
            if let Some(dentry) = self.child(TOP, &name) {
                self.invalidate(dentry);
            }
        }
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Lookup { dir, name, later } => {
                let dirs = self.directories();
                let dir = dirs[choose(dir, dirs.len()).unwrap()];
                let mut names = self.children(dir);
                names.sort();
                names.push("absent".to_owned());
                let name = names[choose(name, names.len()).unwrap()].clone();
                self.lookup(dir, &name, later)?;
            }
            Step::Reply { which, fails } => {
                let Some(which) = choose(which, self.pending.len()) else { return Ok(()) };
                let Pending { dentry, name, node } = self.pending.remove(which);
                if fails {
                    self.forgets.push((node.id, 1));
                } else {
                    self.accept(dentry, &name, node)?;
                }
                self.dentries.get_mut(&dentry).unwrap().users -= 1;
            }
            Step::OpenDir { dir } => {
                let dirs = self.directories();
                let dentry = dirs[choose(dir, dirs.len()).unwrap()];
                self.dentries.get_mut(&dentry).unwrap().users += 1;
                self.streams.push(Stream::new(dentry));
            }
            Step::List { stream, room, fails } => {
                let Some(at) = choose(stream, self.streams.len()) else { return Ok(()) };
                self.list(at, room.into(), fails)?;
            }
            Step::Rewind { stream } => {
                let Some(at) = choose(stream, self.streams.len()) else { return Ok(()) };
                self.streams[at] = Stream::new(self.streams[at].dentry);
            }
            Step::CloseDir { stream } => {
                let Some(at) = choose(stream, self.streams.len()) else { return Ok(()) };
                let dentry = self.streams.remove(at).dentry;
                self.dentries.get_mut(&dentry).unwrap().users -= 1;
            }
            Step::Open { file } => {
                let files = self.files();
                let Some(file) = choose(file, files.len()) else { return Ok(()) };
                self.dentries.get_mut(&files[file]).unwrap().users += 1;
                self.open.push(Open::File { dentry: files[file] });
            }
            Step::OpenByHandle { file } => {
                let files = self.files();
                let Some(file) = choose(file, files.len()) else { return Ok(()) };
                let (inode, path) = (self.dentries[&files[file]].inode, self.path(files[file]).unwrap());
                self.inodes.get_mut(&inode).unwrap().users += 1;
                self.open.push(Open::Handle { inode, path });
            }
            Step::Close { file } => {
                let Some(file) = choose(file, self.open.len()) else { return Ok(()) };
                match self.open.remove(file) {
                    Open::File { dentry } => self.dentries.get_mut(&dentry).unwrap().users -= 1,
                    Open::Handle { inode, .. } => self.leave(inode),
                }
            }
            Step::Shrink { dentry } => {
                let unused = self.unused();
                let Some(at) = choose(dentry, unused.len()) else { return Ok(()) };
                self.shrink(unused[at]);
            }
            Step::ShrinkAll { keep } => {
                let kept =
                    choose(keep, self.dentries.len()).and_then(|at| self.dentries.keys().nth(at).copied());
                while let Some(gone) = self.unused().into_iter().find(|id| Some(*id) != kept) {
                    self.shrink(gone);
                }
            }
            Step::Forget { which } => {
                if let Some(at) = choose(which, self.forgets.len()) {
                    self.deliver(at);
                }
            }
            Step::ForgetAll { reverse } => {
                while !self.forgets.is_empty() {
                    self.deliver(if reverse { self.forgets.len() - 1 } else { 0 });
                }
            }
            Step::Invalidate { dentry } => {
                let all: Vec<u32> = self.dentries.keys().copied().filter(|id| *id != TOP).collect();
                if let Some(at) = choose(dentry, all.len()) {
                    self.invalidate(all[at]);
                }
            }
            Step::Examine { held } => {
                let dentries: Vec<u32> = self.dentries.keys().copied().filter(|id| *id != TOP).collect();
                let Some(at) = choose(held, dentries.len() + self.open.len()) else { return Ok(()) };
                let (inode, path) = match dentries.get(at) {
                    Some(dentry) => (self.dentries[dentry].inode, self.path(*dentry).unwrap()),
                    None => match &self.open[at - dentries.len()] {
                        Open::File { dentry } => (self.dentries[dentry].inode, self.path(*dentry).unwrap()),
                        Open::Handle { inode, path } => (*inode, path.clone()),
                    },
                };
                self.examine(inode, &path)?;
            }
            Step::Switch { shown } => {
                self.switch((0..MEMBERS.len()).filter(|n| shown >> n & 1 == 1).collect());
            }
            Step::Kill { lost } => self.kill(lost.into()),
            Step::Rewrite => self.view.rewrite_journal(),
            Step::Fault { number, all, errno } => {
                let number = usize::from(number);
                let end = if all { usize::MAX } else { number + 1 };
                self.fault = Some((number..end, ERRORS[choose(errno, ERRORS.len()).unwrap()]));
            }
            Step::Damage { file } => self.damage(file),
            Step::Repair { renaming } => self.go_on_repairing(renaming),
            Step::Optimise { group } => self.optimise(group),
        }
        self.invalidate_stale();
        Ok(())
    }

    /// Everything that the kernel holds is what it was, and once it holds nothing, neither does the server.
    fn finish(mut self) -> Result<(), TestCaseError> {
        self.fault = None;
        for dentry in self.dentries.keys().copied().filter(|id| *id != TOP).collect::<Vec<_>>() {
            self.examine(self.dentries[&dentry].inode, &self.path(dentry).unwrap())?;
        }
        for step in
            [Step::Reply { which: 0, fails: true }, Step::CloseDir { stream: 0 }, Step::Close { file: 0 }]
        {
            for _ in 0..self.pending.len().max(self.streams.len()).max(self.open.len()) {
                self.run(&step)?;
            }
        }
        while let Some(gone) = self.unused().first().copied() {
            self.shrink(gone);
        }
        prop_assert_eq!(self.dentries.len(), 1);
        self.run(&Step::ForgetAll { reverse: false })?;
        if !self.killed {
            let members = self.ever.keys().filter(|id| self.view.trie().parent(**id) == Some(ROOT)).count();
            prop_assert!(
                self.view.trie().len() >= members && self.view.trie().len() <= MEMBERS.len(),
                "nodes are left"
            );
        }
        Ok(())
    }
}

fn serve(store: &Path, trie: Arc<PathTrie>, journal: Arc<Journal>) -> (ServedView, Receiver<Stale>) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let store = rustix::fs::open(store, flags, Mode::empty()).unwrap();
    let (stale, all) = channel();
    (ServedView::new(trie, Backing::new(store), Some(journal), None).invalidating(stale), all)
}

fn cases(default: u32) -> Config {
    let cases = std::env::var("NSF_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let failure_persistence = Some(Box::new(FileFailurePersistence::Off) as _);
    Config { cases, failure_persistence, max_shrink_iters: 20_000, ..Config::default() }
}

fn check(default: u32, host: Host) {
    let store = tempfile::tempdir().unwrap();
    make_tree(store.path());
    proptest!(cases(default), |(history in steps(host))| {
        let mut kernel = Kernel::new(store.path(), host.changes > 0);
        for step in &history {
            kernel.run(step)?;
        }
        kernel.finish()?;
    });
}

/// In any order of what the kernel may do, what it holds can be reached and is what it was; one file has one inode; and
/// what it has forgotten takes no room.
#[test]
fn whatever_the_kernel_holds_stays_reachable() {
    check(400, Host { faults: 0, changes: 0 });
}

/// An error of the host is an error of the request, is cached by nobody and counts no node: the next request is right.
#[test]
fn a_fault_of_the_host_is_an_error_and_over_when_it_is_over() {
    check(400, Host { faults: 25, changes: 0 });
}

/// While a store path is damaged, repaired or optimised the view shows what is there, and nothing of what is half there is
/// cached.
#[test]
fn a_store_path_that_changes_is_shown_as_it_is() {
    check(120, Host { faults: 0, changes: 2 });
    check(60, Host { faults: 10, changes: 2 });
}
