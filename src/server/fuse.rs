//! `fuser::Filesystem` over a [`ServedView`]: translates requests and answers, and decides nothing.
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

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, IoctlFlags, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::counts::{Counts, Op};
use crate::protocol::handshake::READ_MAX;
use crate::view::backing::{Identity, Kind, Read, Stat, Target};
use crate::view::trie::{NodeId, ROOT};
use crate::view::{Counted, Entry, FsError, Missed, Node, Registrations, ServedView, Stale, Totals, Way};

/// Store paths never change: what the kernel was told holds until it is invalidated.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the kernel may cache an answer.
fn lifetime(lasting: bool) -> Duration {
    if lasting { FOR_EVER } else { Duration::ZERO }
}

/// The view as the kernel sees it.
#[derive(Debug)]
pub struct StoreFs {
    view: Arc<ServedView>,
    counts: Arc<Counts>,
    /// What the kernel reads by itself; none: everything is read through the server.
    registrations: Option<Arc<Registrations>>,
    /// Where names outside the closure are left; none: nobody wants to know.
    missed: Option<Missed>,
    warned: AtomicBool,
}

impl StoreFs {
    /// Serves `view`.
    #[must_use]
    pub fn new(view: Arc<ServedView>, counts: Arc<Counts>) -> Self {
        let registrations = view.registrations().cloned();
        Self { view, counts, registrations, missed: None, warned: AtomicBool::new(false) }
    }

    /// Leaves names that the root does not have with `missed`.
    #[must_use]
    pub fn reporting(self, missed: Missed) -> Self {
        Self { missed: Some(missed), ..self }
    }

    /// Opens `id` so that the kernel reads the file by itself.
    fn pass_through(&self, registrations: &Registrations, id: NodeId, reply: ReplyOpen) {
        if let Some(counted) = registrations.open(id) {
            return self.answer_open(registrations, id, counted, reply);
        }
        let opened = self.view.file(id);
        let registered = match &opened {
            Ok(file) => Way::register(&reply, &**file),
            Err(error) => return reply.error(errno(*error)),
        };
        let way = registered.unwrap_or_else(|error| {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "the kernel takes no backing file; reading such files through the server");
            }
            Way::Cached
        });
        self.answer_open(registrations, id, registrations.insert(id, way), reply);
    }

    fn answer_open(&self, registrations: &Registrations, id: NodeId, counted: Counted, reply: ReplyOpen) {
        let Counted { way, unrecorded } = counted;
        if unrecorded {
            self.view.record(&[way.record(id)]);
            registrations.recorded(id);
        }
        way.answer(registrations.handle(&way), reply);
    }

    fn refused(&self) -> Errno {
        self.counts.add(Op::Refused);
        errno(FsError::ReadOnly)
    }

    fn unsupported(&self) -> Errno {
        self.counts.add(Op::Other);
        errno(FsError::Unsupported)
    }
}

/// The one table from errors to what the kernel is told.
fn errno(error: FsError) -> Errno {
    match error {
        // The kernel repeats a path walk once when told this, from the root.
        FsError::UnknownNode => Errno::ESTALE,
        FsError::Absent | FsError::AbsentNow => Errno::ENOENT,
        FsError::BadName => Errno::EINVAL,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Unsupported => Errno::ENOSYS,
        FsError::Backing(error) => match error {
            // A directory became a link or a mount: somebody changed a store path, which is never right.
            rustix::io::Errno::LOOP | rustix::io::Errno::XDEV | rustix::io::Errno::NOTDIR => Errno::EIO,
            // ENOSYS would end this kind of request for the whole mount.
            rustix::io::Errno::NOSYS => Errno::EIO,
            // Of a store that is served by FUSE itself: from us they would say that this view is dead.
            rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED => Errno::EIO,
            other => match other.raw_os_error() {
                // The kernel does not take an answer with another code (`fuse_dev_do_write`), and whoever asked would
                // wait for ever. Some file systems let such codes out: 524 is ENOTSUPP of the kernel's own.
                code @ 1..512 => Errno::from_i32(code),
                _ => Errno::EIO,
            },
        },
    }
}

fn attributes(node: Node) -> FileAttr {
    let Stat { kind, perm, uid, gid, size, blocks, mtime: (seconds, nanoseconds), nlink, .. } = node.stat;
    let since = Duration::new(seconds.unsigned_abs(), 0);
    let time = if seconds < 0 { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since }
        + Duration::from_nanos(nanoseconds.into());
    FileAttr {
        ino: INodeNo(node.id.0),
        size,
        blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: match kind {
            Kind::File => FileType::RegularFile,
            Kind::Directory => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
        },
        perm,
        nlink,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A negative entry: nodeid 0 with a lifetime says that the name is absent (`fuse_lookup_name`).
fn absent() -> FileAttr {
    let none = Stat {
        kind: Kind::File,
        perm: 0,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        mtime: (0, 0),
        nlink: 0,
        linked: None,
        identity: Identity::Inode(0),
        settled: true,
    };
    attributes(Node { id: NodeId(0), stat: none })
}

fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & rustix::fs::OFlags::TRUNC.bits() as i32 != 0
}

impl Filesystem for StoreFs {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.counts.add(Op::Lookup);
        match self.view.lookup(NodeId(parent.0), name.as_bytes()) {
            Ok(node) => reply.entry(&lifetime(node.stat.settled), &attributes(node), Generation(0)),
            Err(FsError::Absent) => {
                if let Some(missed) = self.missed.as_ref().filter(|_| parent.0 == ROOT.0) {
                    missed.note(name.as_bytes(), request.pid());
                }
                reply.entry(&FOR_EVER, &absent(), Generation(0));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.counts.add(Op::Forget);
        self.view.forget(NodeId(ino.0), nlookup);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.counts.add(Op::Getattr);
        match self.view.getattr(NodeId(ino.0)) {
            Ok(node) => reply.attr(&lifetime(node.stat.settled), &attributes(node)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.counts.add(Op::Readlink);
        match self.view.readlink(NodeId(ino.0)) {
            Ok(Target { target, settled }) => {
                reply.data(&target);
                if !settled {
                    self.view.invalidate(Stale::Pages(NodeId(ino.0)));
                }
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if writes(flags) {
            return reply.error(self.refused());
        }
        self.counts.add(Op::Open);
        match &self.registrations {
            Some(registrations) => self.pass_through(registrations, NodeId(ino.0), reply),
            None => reply.error(errno(FsError::Unsupported)),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.counts.add(Op::Other);
        let ended =
            self.registrations.as_ref().map(|all| all.close(NodeId(ino.0), handle)).unwrap_or_default();
        self.view.record(&ended.iter().map(|(node, way)| way.record_end(*node)).collect::<Vec<_>>());
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(self.unsupported());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local!(static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        self.counts.add(Op::Read);
        BUFFER.with_borrow_mut(|buffer| {
            let size = size.min(READ_MAX) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let room = buffer.get_mut(..size).unwrap_or_default();
            match self.view.read(NodeId(ino.0), offset, room) {
                Ok(Read { len, settled }) => {
                    reply.data(room.get(..len).unwrap_or_default());
                    if !settled {
                        self.view.invalidate(Stale::Pages(NodeId(ino.0)));
                    }
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: ReplyDirectory) {
        // Every kernel that has openat2(2) lists with attributes once FUSE_DO_READDIRPLUS is agreed on.
        reply.error(self.unsupported());
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.counts.add(Op::Readdirplus);
        let answer = self.view.list(NodeId(ino.0), offset, |Entry { node, name, next, lasting }| {
            let (name, lifetime) = (OsStr::from_bytes(name), lifetime(lasting));
            !reply.add(INodeNo(node.id.0), next, name, &lifetime, &attributes(node), Generation(0))
        });
        match answer {
            Ok(true) => reply.ok(),
            Ok(false) => {
                reply.ok();
                self.view.invalidate(Stale::Pages(NodeId(ino.0)));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.counts.add(Op::Statfs);
        let Totals { paths, bytes } = self.view.totals();
        reply.statfs(bytes.div_ceil(4096), 0, 0, paths, 0, 4096, 255, 4096);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.counts.add(Op::Other);
        // SEEK_DATA is 3 and SEEK_HOLE is 4; the kernel answers the others itself (`fuse_file_llseek`).
        let answer = match (u64::try_from(offset), whence) {
            (Ok(offset), 3 | 4) => self.view.seek(NodeId(ino.0), offset, whence == 4),
            _ => Err(FsError::Backing(rustix::io::Errno::INVAL)),
        };
        match answer {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(self.unsupported());
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(self.unsupported());
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(self.unsupported());
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(self.unsupported());
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(self.unsupported());
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(self.refused());
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refused());
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refused());
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refused());
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refused());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.refused());
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refused());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(self.refused());
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(self.refused());
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(self.refused());
        self.view.invalidate(Stale::Pages(NodeId(ino.0)));
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(self.refused());
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(self.refused());
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(self.refused());
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refused());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `FsError` has no wildcard in the table; what the backing store says is passed on but for these.
    #[test]
    fn a_store_that_was_tampered_with_is_an_io_error_and_nothing_is_ever_enosys_by_accident() {
        let told = |error: rustix::io::Errno| errno(FsError::Backing(error)).code();
        assert_eq!(told(rustix::io::Errno::LOOP), Errno::EIO.code());
        assert_eq!(told(rustix::io::Errno::NOSYS), Errno::EIO.code());
        assert_eq!(told(rustix::io::Errno::MFILE), Errno::EMFILE.code());
        assert_eq!(told(rustix::io::Errno::NOTCONN), Errno::EIO.code());
        for code in 1..4096 {
            let told = told(rustix::io::Errno::from_raw_os_error(code));
            assert!((1..512).contains(&told) && told != Errno::ENOSYS.code(), "{code} is told as {told}");
        }
    }

    #[test]
    fn opening_for_anything_but_reading_is_writing() {
        use rustix::fs::OFlags;
        for (flags, is) in [
            (OFlags::RDONLY, false),
            (OFlags::RDONLY | OFlags::TRUNC, true),
            (OFlags::WRONLY, true),
            (OFlags::RDWR, true),
        ] {
            assert_eq!(writes(OpenFlags(flags.bits() as i32)), is, "{flags:?}");
        }
    }
}
