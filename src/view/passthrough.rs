//! Files that the kernel reads by itself: which way each node is read, and how many opens it has.
//!
//! Invariants:
//! - Only descriptors open for reading are registered, and never for an open that is not for reading only: the
//!   kernel opens the file below with the caller's flags under the server's credentials.
//! - All opens of a node are read in one way while any is open, and with one registration: the kernel answers `EIO` to a
//!   second registration, and to a mix of the two ways (`fs/fuse/iomode.c`).
//! - How a node is read is in the journal before the kernel learns it, and its end is in the journal before it
//!   ends: a successor never names an id that is gone, and never mixes.
//!
//! Hard points:
//! 1. Registering is what an open costs (a round trip to whoever may do it), so a registration outlives the last close, up to
//!    [`IDLE_MAX`] of them, until the kernel forgets the node.
//! 2. A successor does not know how many opens use what it takes over: the way is kept to the end. An id that
//!    ended while a file is open would make every further open of that file an error. Each holds one open file of
//!    the store in the kernel; an open of the node uses it again, so there is never more than one of a node.
//! 3. A release may be answered again by a successor, which has counted no such open. So a handle tells which
//!    server gave it, and a release of another server's handle ends nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::view::journal::Record;
use crate::view::trie::NodeId;

/// Registrations kept though nothing is open: each holds one open file in the kernel.
const IDLE_MAX: usize = 1024;

/// Whoever may have the kernel read files by itself.
pub trait Registrar: std::fmt::Debug + Send + Sync {
    /// Registers `file`, open for reading; returns the number of the registration, never 0.
    ///
    /// # Errors
    /// Why that cannot be: the file is read through the server then.
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Ends a registration, soon.
    fn end(&self, number: u32);
}

/// A file that the kernel reads by itself; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Registration {
    registrar: Arc<dyn Registrar>,
    number: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registrar.end(self.number);
    }
}

/// How the nodes of a mount are read.
#[derive(Debug)]
pub struct Registrations {
    /// Part of every handle: which server gave it.
    server: u32,
    /// None: nobody registers for this server.
    registrar: Option<Arc<dyn Registrar>>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<NodeId, Opened>,
    idle: usize,
    clock: u64,
}

/// A node that is open, or was.
#[derive(Debug)]
struct Opened {
    way: Way,
    opens: u64,
    /// When it was last let go, to find the one idle for longest.
    idle_since: u64,
    /// Whether the journal is known to hold it.
    recorded: bool,
}

/// How a node is read while it is open.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// By the kernel, with a registration made by this server: it ends when the last of these is dropped.
    Own(Arc<Registration>),
    /// By the kernel, with a registration taken over from an earlier server, by its number.
    Inherited(u32),
    /// Through the server and the page cache of the view, because the kernel took no registration.
    Cached,
    /// The same, since an earlier server.
    InheritedCached,
}

/// What to answer an open with.
#[derive(Debug)]
pub(crate) struct Counted {
    /// How the node is read.
    pub(crate) way: Way,
    /// Whether the journal may not hold it yet: whoever is told so writes it down before answering. Two may be
    /// told, and write the same.
    pub(crate) unrecorded: bool,
}

/// Names an open: which server answered it, and with which registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) u64);

impl Way {
    /// The number of the registration, if there is one: never 0 in the kernel. None: the file is read through the server.
    pub(crate) fn number(&self) -> Option<u32> {
        match self {
            Self::Own(registration) => Some(registration.number),
            Self::Inherited(number) => Some(*number),
            Self::Cached | Self::InheritedCached => None,
        }
    }

    fn is_inherited(&self) -> bool {
        matches!(self, Self::Inherited(_) | Self::InheritedCached)
    }

    /// What the journal holds of `node` being read so.
    pub(crate) fn record(&self, node: NodeId) -> Record {
        self.number().map_or(Record::Cached(node), |number| Record::Backing(node, number))
    }

    /// What the journal holds of its end.
    pub(crate) fn record_end(&self, node: NodeId) -> Record {
        self.number().map_or(Record::CachedEnded(node), |number| Record::BackingEnded(node, number))
    }
}

impl Registrations {
    /// The table of the server with this number, which no other server of this mount has: its process id.
    #[must_use]
    pub fn new(server: u32) -> Self {
        Self { server, registrar: None, table: Mutex::default() }
    }

    /// Has `registrar` register files.
    #[must_use]
    pub fn asking(self, registrar: Arc<dyn Registrar>) -> Self {
        Self { registrar: Some(registrar), ..self }
    }

    /// Has the kernel read `file` by itself.
    pub(crate) fn register(&self, file: BorrowedFd<'_>) -> io::Result<Way> {
        let registrar = self.registrar.clone().ok_or(io::ErrorKind::NotConnected)?;
        let number = registrar.register(file)?;
        Ok(Way::Own(Arc::new(Registration { registrar, number })))
    }

    /// Takes over what the journal tells of how nodes are read.
    pub(crate) fn restore(&self, record: &Record) {
        let mut table = self.table.lock();
        let mut begin = |node, way| {
            table.nodes.insert(node, Opened { way, opens: 1, idle_since: 0, recorded: true });
        };
        match *record {
            Record::Backing(node, number) => begin(node, Way::Inherited(number)),
            Record::Cached(node) => begin(node, Way::InheritedCached),
            Record::BackingEnded(node, number) => {
                if table.nodes.get(&node).is_some_and(|found| found.way.number() == Some(number)) {
                    table.nodes.remove(&node);
                }
            }
            Record::CachedEnded(node) => {
                if table.nodes.get(&node).is_some_and(|found| found.way.number().is_none()) {
                    table.nodes.remove(&node);
                }
            }
            Record::Node(_) | Record::Next(_) | Record::Member(..) | Record::Replaced(_) => {}
        }
    }

    /// The handle of an open that is read in this way.
    pub(crate) fn handle(&self, way: &Way) -> Handle {
        Handle(u64::from(self.server) << 32 | u64::from(way.number().unwrap_or_default()))
    }

    /// How `node` is read, counted as open once more, if that has been decided.
    pub(crate) fn open(&self, node: NodeId) -> Option<Counted> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let found = table.nodes.get_mut(&node)?;
        table.idle -= usize::from(found.opens == 0);
        found.opens += 1;
        Some(Counted { way: found.way.clone(), unrecorded: !found.recorded })
    }

    /// The journal holds how `node` is read.
    pub(crate) fn recorded(&self, node: NodeId) {
        if let Some(found) = self.table.lock().nodes.get_mut(&node) {
            found.recorded = true;
        }
    }

    /// Decides how `node` is read, open once. Somebody else may have been first: then theirs counts.
    pub(crate) fn insert(&self, node: NodeId, way: Way) -> Counted {
        let mut table = self.table.lock();
        let table = &mut *table;
        match table.nodes.entry(node) {
            Entry::Occupied(mut theirs) => {
                let theirs = theirs.get_mut();
                table.idle -= usize::from(theirs.opens == 0);
                theirs.opens += 1;
                Counted { way: theirs.way.clone(), unrecorded: !theirs.recorded }
            }
            Entry::Vacant(place) => {
                place.insert(Opened { way: way.clone(), opens: 1, idle_since: 0, recorded: false });
                Counted { way, unrecorded: true }
            }
        }
    }

    /// The open of `node` with this handle has ended. Returns what ends now: the caller writes that down, then
    /// drops it.
    pub(crate) fn close(&self, node: NodeId, handle: Handle) -> Vec<(NodeId, Way)> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let Some(found) = table.nodes.get_mut(&node) else { return Vec::new() };
        if found.way.is_inherited() || self.handle(&found.way) != handle || found.opens == 0 {
            return Vec::new();
        }
        found.opens -= 1;
        if found.opens > 0 {
            return Vec::new();
        }
        if matches!(found.way, Way::Cached) {
            return table.nodes.remove(&node).map(|gone| (node, gone.way)).into_iter().collect();
        }
        table.clock += 1;
        found.idle_since = table.clock;
        table.idle += 1;
        if table.idle <= IDLE_MAX {
            return Vec::new();
        }
        // A quarter at once, so that looking for the oldest is rare.
        let mut idle: Vec<_> =
            table.nodes.iter().filter(|(_, r)| r.opens == 0).map(|(node, r)| (r.idle_since, *node)).collect();
        idle.sort_unstable();
        idle.truncate(IDLE_MAX / 4);
        idle.into_iter().filter_map(|(_, node)| table.end_idle(node)).collect()
    }

    /// Another file is in the place of `node`. What was registered for the old one is used by no further open: one
    /// that an earlier server registered, whose opens nobody knows, would be used to the end otherwise. While such an open
    /// lasts, further ones are errors in the kernel. Returns it as [`Registrations::close`] does.
    pub(crate) fn end_replaced(&self, node: NodeId) -> Option<(NodeId, Way)> {
        let mut table = self.table.lock();
        if table.nodes.get(&node)?.way.is_inherited() {
            return table.nodes.remove(&node).map(|gone| (node, gone.way));
        }
        table.end_idle(node)
    }

    /// Ends what is registered for `node` and not in use: the kernel has forgotten the node. Returns it as
    /// [`Registrations::close`] does.
    pub(crate) fn end_idle(&self, node: NodeId) -> Option<(NodeId, Way)> {
        self.table.lock().end_idle(node)
    }

    /// How every node is read, for a journal that is replaced.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Record)) {
        for (node, opened) in &self.table.lock().nodes {
            each(opened.way.record(*node));
        }
    }
}

impl Table {
    fn end_idle(&mut self, node: NodeId) -> Option<(NodeId, Way)> {
        if self.nodes.get(&node)?.opens > 0 {
            return None;
        }
        self.idle -= 1;
        self.nodes.remove(&node).map(|gone| (node, gone.way))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn number(counted: Option<Counted>) -> Option<u32> {
        counted.unwrap().way.number()
    }

    #[test]
    fn a_registration_is_used_by_every_open_and_kept_when_it_is_inherited() {
        let all = Registrations::new(1);
        assert!(all.open(NODE).is_none());
        all.restore(&Record::Backing(NODE, 3));
        assert_eq!(number(all.open(NODE)), Some(3));
        assert_eq!(all.insert(NODE, Way::Inherited(9)).way.number(), Some(3), "the first one counts");
        for handle in [Handle(3), Handle(0), all.handle(&Way::Inherited(3))] {
            assert!((0..5).all(|_| all.close(NODE, handle).is_empty()));
        }
        assert!(all.end_idle(NODE).is_none());
        assert_eq!(number(all.open(NODE)), Some(3));
        all.restore(&Record::BackingEnded(NODE, 4));
        all.restore(&Record::CachedEnded(NODE));
        assert!(all.open(NODE).is_some(), "another one ended");
        all.restore(&Record::BackingEnded(NODE, 3));
        assert!(all.open(NODE).is_none());
    }

    #[test]
    fn whoever_opens_before_the_journal_holds_it_is_told_so() {
        let all = Registrations::new(1);
        assert!(all.insert(NODE, Way::Inherited(3)).unrecorded);
        assert!(all.open(NODE).unwrap().unrecorded);
        all.recorded(NODE);
        assert!(!all.open(NODE).unwrap().unrecorded);
        assert!(!all.insert(NODE, Way::Inherited(4)).unrecorded);
    }

    /// A node that is open through the server is opened so again, until the last of these opens has ended.
    #[test]
    fn the_two_ways_are_not_mixed() {
        let all = Registrations::new(1);
        let cached = all.handle(&Way::Cached);
        for _ in 0..3 {
            assert!(matches!(all.insert(NODE, Way::Cached).way, Way::Cached));
        }
        assert!(matches!(all.insert(NODE, Way::Inherited(9)).way, Way::Cached));
        assert!(matches!(all.open(NODE).unwrap().way, Way::Cached));
        assert!((0..4).all(|_| all.close(NODE, cached).is_empty()));
        let ended = all.close(NODE, cached);
        assert!(matches!(ended[..], [(NODE, Way::Cached)]));
        assert_eq!(ended[0].1.record_end(NODE), Record::CachedEnded(NODE));
        assert!(all.open(NODE).is_none());
        all.restore(&Record::Cached(NODE));
        assert!(matches!(all.open(NODE).unwrap().way, Way::InheritedCached));
        assert!(all.close(NODE, cached).is_empty(), "nobody knows how many opens there are");
    }

    /// A release ends what its own open began: not an open of the other way, and none of an earlier server.
    #[test]
    fn a_handle_says_what_it_ends() {
        let (earlier, all) = (Registrations::new(1), Registrations::new(2));
        all.insert(NODE, Way::Cached);
        let handles = [earlier.handle(&Way::Cached), all.handle(&Way::Inherited(3)), Handle(0), Handle(3)];
        assert!(handles.iter().all(|handle| all.close(NODE, *handle).is_empty()));
        assert_eq!(all.open(NODE).unwrap().way.number(), None);
        assert!(all.close(NODE, all.handle(&Way::Cached)).is_empty());
        assert_eq!(all.close(NODE, all.handle(&Way::Cached)).len(), 1);
    }

    #[test]
    fn of_a_replaced_file_nothing_is_used_again_but_what_is_open() {
        let all = Registrations::new(1);
        all.restore(&Record::Backing(NODE, 3));
        assert_eq!(all.end_replaced(NODE).unwrap().1.number(), Some(3));
        assert!(all.open(NODE).is_none() && all.end_replaced(NODE).is_none());
        all.insert(NODE, Way::Cached);
        assert!(all.end_replaced(NODE).is_none(), "it is open");
        assert_eq!(all.table.lock().idle, 0);
    }

    #[test]
    fn what_is_unknown_is_closed_without_harm() {
        let all = Registrations::new(1);
        assert!(all.close(NODE, Handle(0)).is_empty() && all.end_idle(NODE).is_none());
    }

    #[test]
    fn a_replaced_journal_holds_every_way() {
        let all = Registrations::new(1);
        all.restore(&Record::Backing(NodeId(2), 5));
        all.restore(&Record::Cached(NodeId(3)));
        let next = Registrations::new(2);
        all.for_each(|record| next.restore(&record));
        assert_eq!(number(next.open(NodeId(2))), Some(5));
        assert_eq!(number(next.open(NodeId(3))), None);
    }
}
