//! The kernel's requests over a [`ServedView`]: translates requests and answers, and decides nothing.
//!
//! Invariants:
//! - Everything that would change something answers `EROFS` here, whatever the mount's flags are: somebody may
//!   have remounted the superblock read-write.
//! - No handle exists: `open` and `opendir` answer `ENOSYS`, and the kernel opens without asking from then on
//!   (`FUSE_NO_OPEN_SUPPORT`, `FUSE_NO_OPENDIR_SUPPORT`; Linux `fs/fuse/file.c`, `fuse_file_open`). With
//!   `--io passthrough` files are opened with a backing file, and are still known by their node alone.
//!
//! Hard point: once the kernel opens without asking, on a superblock that was remounted read-write a file can
//! be opened for writing, mapped shared and scribbled on: the kernel then writes its dirty pages to us, is
//! told `EROFS`, and keeps the scribbled page. A write therefore throws out what the kernel has cached of the
//! file, from another thread, as notifying inside a handler can deadlock. The same thread drops what was read of an
//! object that is not settled, once the answer has been given ([`Stale`]).

mod layout;

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::FromZeros;

use super::counts::Counts;
use super::missed::Missed;
use super::root_names::{END, ENDLESS, RootNames};
use super::stops::{self, Stop};
use crate::fuse::abi::{AttrOut, LseekOut, OpenOut, StatfsOut, fopen};
use crate::fuse::device::Answer;
use crate::fuse::request::{Forgets, Name};
use crate::fuse::{Ledger, Operation, Request};
use crate::panics::Panic;
use crate::protocol::handshake::READ_MAX;
use crate::view::backing::{Read, Target};
use crate::view::trace::Trace;
use crate::view::trace::records::{self, Pages};
use crate::view::trie::{NodeId, ROOT};
use crate::view::usage::{self, Kind};
use crate::view::{
    Counted, Entry, FsError, Handle, Node, Registrations, ServedView, Stale, Told, Totals, Way,
};
use layout::{absent, add, attributes, errno, known, lifetime};

/// SEEK_DATA and SEEK_HOLE of lseek(2); the kernel answers the others itself (`fuse_file_llseek`).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// The view as the kernel sees it.
#[derive(Debug)]
pub struct StoreFs {
    view: Arc<ServedView>,
    counts: Arc<Counts>,
    ledger: Ledger,
    /// What the kernel reads by itself; none: everything is read through the server.
    registrations: Option<Arc<Registrations>>,
    /// Where names outside the closure are left; none: nobody wants to know.
    missed: Option<Missed>,
    root: Arc<RootNames>,
    trace: Trace,
    warned: AtomicBool,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// A thread with this id.
    User(u32),
    /// The thread that plays what was learnt ([`crate::view::trace`]).
    Player,
}

fn writes(flags: u32) -> bool {
    flags & (OFlags::ACCMODE | OFlags::TRUNC).bits() != OFlags::RDONLY.bits()
}

thread_local! {
    /// What is read; as long as the longest read yet.
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// What is listed. Not the same: it begins empty each time, and the other would have to be filled with zeros again.
    static ENTRIES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl StoreFs {
    /// Serves `view` over `device`.
    #[must_use]
    pub fn new(view: Arc<ServedView>, counts: Arc<Counts>, ledger: Ledger, root: Arc<RootNames>) -> Self {
        let registrations = view.registrations().cloned();
        let warned = AtomicBool::new(false);
        Self { view, counts, ledger, registrations, missed: None, root, trace: Trace::none(), warned }
    }

    /// Records what is asked for in `trace`.
    #[must_use]
    pub fn tracing(self, trace: Trace) -> Self {
        Self { trace, ..self }
    }

    /// Leaves names that the root does not have with `missed`.
    #[must_use]
    pub fn reporting(self, missed: Missed) -> Self {
        Self { missed: Some(missed), ..self }
    }

    /// The answer to `request` ended with `panic`. Whoever can make a request panic can do so all day, so the log has the first, the
    /// second, the fourth and so on of each place.
    pub fn panicked(&self, request: &Request<'_>, panic: &Panic) {
        let times = self.counts.panicked(panic);
        if times.is_power_of_two() {
            let (operation, node) = (&request.operation, request.node);
            tracing::error!(
                times, node, ?operation, %panic,
                "internal error, please report this bug; answering the request with EIO"
            );
        }
    }

    /// Answers `request`.
    pub fn handle(&self, request: &Request<'_>, answer: Answer<'_>) {
        let node = NodeId(request.node);
        tracing::trace!(node = node.0, "{:?}", request.operation);
        let asker = if self.trace.is_player(request.pid) { Asker::Player } else { Asker::User(request.pid) };
        match asker {
            Asker::User(_) => self.counts.add(counted(&request.operation)),
            Asker::Player => self.counts.played(),
        }
        stops::at(Stop::Begun);
        usage::unseen(asker == Asker::Player, || self.dispatch(request, node, asker, answer));
    }

    fn dispatch(&self, request: &Request<'_>, node: NodeId, asker: Asker, answer: Answer<'_>) {
        match request.operation {
            Operation::Lookup { name: Name(name) } => self.lookup(node, name, asker, answer),
            Operation::Forget { lookups } => {
                answer.none();
                self.view.forget(node, lookups);
            }
            Operation::BatchForget(all) => {
                answer.none();
                self.forget_all(all);
            }
            Operation::Getattr => self.getattr(node, answer),
            Operation::Readlink => self.readlink(node, asker, answer),
            Operation::Open { flags } if writes(flags) => answer.error(errno(FsError::ReadOnly)),
            Operation::Open { .. } => match &self.registrations {
                Some(registrations) => {
                    self.pass_through(registrations, node, answer);
                    self.note(asker, records::Kind::Opened, None, || self.view.trie().path(node));
                }
                None => answer.error(errno(FsError::Unsupported)),
            },
            Operation::Release { handle } => self.release(node, Handle(handle), answer),
            Operation::Read { offset, size } => self.read(node, offset, size, asker, answer),
            Operation::Readdirplus { offset, size } => self.list(node, offset, size, asker, answer),
            Operation::Statfs => self.statfs(answer),
            Operation::Lseek { offset, whence } => self.lseek(node, offset, whence, answer),
            Operation::Write => {
                self.ledger.promise();
                answer.error(errno(FsError::ReadOnly));
                self.view.invalidate(Stale::Pages(node));
            }
            Operation::Change => answer.error(errno(FsError::ReadOnly)),
            Operation::Releasedir | Operation::Destroy => answer.done(),
            Operation::NotifyReply => answer.none(),
            Operation::Other => answer.error(errno(FsError::Unsupported)),
            Operation::Malformed => {
                tracing::error!(unique = request.unique, "the kernel sent what is no request; answering EIO");
                answer.error(Errno::IO);
            }
        }
    }

    /// Records what was asked for, once it is answered.
    fn note(
        &self,
        asker: Asker,
        kind: records::Kind,
        pages: Option<Pages>,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        if asker != Asker::Player {
            self.trace.note(kind, pages, path);
        }
    }

    /// How long a name may be shown that can be shown for ever: where somebody plays, its first user may have to ask again.
    fn lasting(&self, asker: Asker, path: impl FnOnce() -> Option<Vec<u8>>) -> u64 {
        match (asker, self.trace.marks()) {
            (Asker::Player, Some(marks)) if path().is_none_or(|path| marks.is_marked(&path)) => 0,
            _ => ENDLESS,
        }
    }

    fn lookup(&self, parent: NodeId, name: &[u8], asker: Asker, answer: Answer<'_>) {
        let look = || {
            let found = self.view.lookup(parent, name);
            stops::at(Stop::Decided);
            found
        };
        if parent == ROOT {
            let (found, _giving) = self.root.decide(self.view.trie(), look);
            return self.answer_at_root(found, name, asker, answer);
        }
        let path = || Some([&self.view.trie().path(parent)?[..], b"/", name].concat());
        match look() {
            Ok(node) => {
                answer.value(&known(node, node.stat.settled, self.lasting(asker, path)));
                if node.stat.settled {
                    self.note(asker, records::Kind::Name, None, path);
                }
            }
            Err(FsError::Absent) => {
                // The name of the directory is not forgotten when its member is repaired: see [`super::forgetting`].
                let is_member = self.view.trie().parent(parent) == Some(ROOT);
                let lasting = || self.lasting(asker, path);
                answer.value(&absent(if is_member { self.root.of_absences() } else { lasting() }));
                self.note(asker, records::Kind::Absent, None, path);
            }
            Err(error) => answer.error(errno(error)),
        }
    }

    fn answer_at_root(&self, found: Result<Node, FsError>, name: &[u8], asker: Asker, answer: Answer<'_>) {
        match found {
            // Whoever uses it asks once more: so uses of members are known.
            Ok(node) if asker == Asker::Player => answer.value(&known(node, node.stat.settled, 0)),
            Ok(node) => {
                answer.value(&known(node, node.stat.settled, self.root.of_names()));
                self.root.told_name();
                self.note(asker, records::Kind::Name, None, || Some(name.to_vec()));
            }
            Err(FsError::Absent) => {
                if let (Some(missed), Asker::User(pid)) = (&self.missed, asker) {
                    missed.note(name, pid, || self.counts.absent());
                }
                answer.value(&absent(self.root.of_absences()));
                self.root.told_absence();
            }
            Err(error) => answer.error(errno(error)),
        }
    }

    fn forget_all(&self, all: Forgets<'_>) {
        all.for_each(|one| self.view.forget(NodeId(one.node), one.lookups));
    }

    fn getattr(&self, node: NodeId, answer: Answer<'_>) {
        match self.view.getattr(node) {
            Ok(node) => answer.value(&AttrOut {
                valid: lifetime(node.stat.settled),
                valid_nsec: 0,
                padding: 0,
                attr: attributes(node),
            }),
            Err(error) => answer.error(errno(error)),
        }
    }

    fn readlink(&self, node: NodeId, asker: Asker, answer: Answer<'_>) {
        match self.view.readlink(node) {
            Ok(Target { target, settled }) => {
                self.give_pages(node, &target, settled, answer);
                if settled {
                    self.note(asker, records::Kind::Link, None, || self.view.trie().path(node));
                }
            }
            Err(error) => answer.error(errno(error)),
        }
    }

    /// Gives what the kernel caches of `node`, and has it dropped again if it may not be.
    fn give_pages(&self, node: NodeId, bytes: &[u8], settled: bool, answer: Answer<'_>) {
        stops::at(Stop::Decided);
        if settled {
            return answer.bytes(bytes);
        }
        self.ledger.promise();
        answer.bytes(bytes);
        self.view.invalidate(Stale::Pages(node));
    }

    /// Opens `node` so that the kernel reads the file by itself.
    fn pass_through(&self, registrations: &Registrations, node: NodeId, answer: Answer<'_>) {
        if let Some(counted) = registrations.open(node) {
            return self.answer_open(registrations, node, counted, answer);
        }
        let opened = self.view.file(node);
        let registered = match &opened {
            Ok(file) => registrations.register(file.as_fd()),
            Err(error) => return answer.error(errno(*error)),
        };
        let way = registered.unwrap_or_else(|error| {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "the kernel does not read this file by itself; it and such files are read through the server");
            }
            Way::Cached
        });
        self.answer_open(registrations, node, registrations.insert(node, way), answer);
    }

    fn answer_open(&self, registrations: &Registrations, node: NodeId, counted: Counted, answer: Answer<'_>) {
        let Counted { way, unrecorded } = counted;
        self.view.opened(node, &way);
        if unrecorded {
            self.view.record(&[way.record(node)]);
            registrations.recorded(node);
        }
        stops::at(Stop::Decided);
        let Handle(handle) = registrations.handle(&way);
        answer.value(&match way.number() {
            Some(backing) => OpenOut { handle, flags: fopen::PASSTHROUGH, backing },
            None => OpenOut { handle, flags: fopen::KEEP_CACHE, backing: 0 },
        });
    }

    fn release(&self, node: NodeId, handle: Handle, answer: Answer<'_>) {
        let ended = self.registrations.as_ref().map(|all| all.close(node, handle)).unwrap_or_default();
        self.view.record(&ended.iter().map(|(node, way)| way.record_end(*node)).collect::<Vec<_>>());
        answer.done();
    }

    fn read(&self, node: NodeId, offset: u64, size: u32, asker: Asker, answer: Answer<'_>) {
        BYTES.with_borrow_mut(|buffer| {
            let size = size.min(READ_MAX) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let room = buffer.get_mut(..size).unwrap_or_default();
            match self.view.read(node, offset, room) {
                Ok(Read { len, settled }) => {
                    self.give_pages(node, room.get(..len).unwrap_or_default(), settled, answer);
                    if settled && len > 0 {
                        let pages = Some(Pages::of(offset, len));
                        self.note(asker, records::Kind::Read, pages, || self.view.trie().path(node));
                    }
                }
                Err(error) => answer.error(errno(error)),
            }
        });
    }

    fn list(&self, node: NodeId, offset: u64, size: u32, asker: Asker, answer: Answer<'_>) {
        ENTRIES.with_borrow_mut(|buffer| {
            let room = size.min(READ_MAX) as usize;
            if node == ROOT {
                return self.list_root(buffer, room, offset, answer);
            }
            buffer.clear();
            let path = || self.view.trie().path(node);
            let dir = if asker == Asker::Player { path() } else { None };
            let listed = self.view.list(node, offset, |entry| {
                let name = || Some([dir.as_deref()?, b"/", entry.name].concat());
                // A name that somebody uses stays as it was told: revalidated in vain, it would lose what is mounted on it.
                let lasting = if entry.fresh { self.lasting(asker, name) } else { ENDLESS };
                add(buffer, room, &entry, lasting)
            });
            match listed {
                Ok(settled) => {
                    self.give_pages(node, buffer, settled, answer);
                    if settled && offset == 0 {
                        self.note(asker, records::Kind::Listed, None, path);
                    }
                }
                Err(error) => answer.error(errno(error)),
            }
        });
    }

    fn list_root(&self, buffer: &mut Vec<u8>, room: usize, offset: u64, answer: Answer<'_>) {
        let (listed, _giving) = self.root.decide(self.view.trie(), || {
            buffer.clear();
            // Where what is in a member may be there before anybody uses it, its own name has to be asked for.
            let played = self.trace.is_played();
            let add = |entry: Entry<'_>| {
                let told = if played { Told::Nothing } else { entry.told };
                add(buffer, room, &Entry { told, ..entry }, self.root.of_names())
            };
            let listed = self.view.list(ROOT, offset, add);
            stops::at(Stop::Decided);
            listed
        });
        match listed {
            Ok(_) if buffer.is_empty() => {
                // Made when it is given, as [`absent`] is.
                buffer.resize(END.min(room), 0);
                answer.bytes(buffer);
            }
            Ok(_) => {
                answer.bytes(buffer);
                self.root.told_name();
            }
            Err(error) => answer.error(errno(error)),
        }
    }

    fn statfs(&self, answer: Answer<'_>) {
        let Totals { paths, bytes } = self.view.totals();
        stops::at(Stop::Decided);
        answer.value(&StatfsOut {
            blocks: bytes.div_ceil(4096),
            files: paths,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
            ..StatfsOut::new_zeroed()
        });
    }

    fn lseek(&self, node: NodeId, offset: u64, whence: u32, answer: Answer<'_>) {
        // An offset in a file is signed.
        let found = match (i64::try_from(offset), whence) {
            (Ok(_), SEEK_DATA | SEEK_HOLE) => self.view.seek(node, offset, whence == SEEK_HOLE),
            _ => Err(FsError::Backing(Errno::INVAL)),
        };
        match found {
            Ok(offset) => answer.value(&LseekOut { offset }),
            Err(error) => answer.error(errno(error)),
        }
    }
}

/// What a request counts as.
fn counted(operation: &Operation<'_>) -> Kind {
    match operation {
        Operation::Lookup { .. } => Kind::Lookup,
        Operation::Forget { .. } | Operation::BatchForget(_) => Kind::Forget,
        Operation::Getattr => Kind::Getattr,
        Operation::Readlink => Kind::Readlink,
        Operation::Open { flags } if writes(*flags) => Kind::Refused,
        Operation::Open { .. } => Kind::Open,
        Operation::Read { .. } => Kind::Read,
        Operation::Readdirplus { .. } => Kind::Readdirplus,
        Operation::Statfs => Kind::Statfs,
        Operation::Write | Operation::Change => Kind::Refused,
        Operation::Release { .. }
        | Operation::Releasedir
        | Operation::Lseek { .. }
        | Operation::Destroy
        | Operation::NotifyReply
        | Operation::Other
        | Operation::Malformed => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_for_anything_but_reading_is_writing() {
        for (flags, is) in [
            (OFlags::RDONLY, false),
            (OFlags::RDONLY | OFlags::CLOEXEC, false),
            (OFlags::RDONLY | OFlags::TRUNC, true),
            (OFlags::WRONLY, true),
            (OFlags::RDWR, true),
        ] {
            assert_eq!(writes(flags.bits()), is, "{flags:?}");
        }
    }
}
