//! A process that keeps a directory of a view locked: it lists it into memory whose page fault never ends (`lists.c`).
//!
//! The lock is the directory's in the kernel, taken shared for a listing: who wants it alone waits, and behind them everybody else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, Request, Session, SessionACL,
};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use tempfile::TempDir;

use super::mounts::{self, Own};
use super::{DEADLINE, compile, scratch, threads};

/// How the page fault is kept from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// userfaultfd(2): the process can be killed.
    Userfault,
    /// A file of a FUSE file system that does not answer reads: no signal ends that.
    Fuse,
}

impl By {
    pub(crate) const ALL: [Self; 2] = [Self::Userfault, Self::Fuse];
}

/// The process. Dropping this lets the directory go.
#[derive(Debug)]
pub(crate) struct Locker {
    process: Child,
    file: Option<Unread>,
    _dir: TempDir,
}

impl Locker {
    /// Locks `directory`; returns when it is locked.
    pub(crate) fn lock(directory: &Path, by: By) -> Self {
        let dir = scratch();
        let program = compile("lists.c", dir.path());
        let file = (by == By::Fuse).then(Unread::mount);
        let mut command = Command::new(program);
        command.arg(directory).args(file.as_ref().map(Unread::path));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut locker = Self { process, file, _dir: dir };
        locker.wait();
        locker
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Until it has the lock and waits for the page.
    fn wait(&mut self) {
        let stack = format!("{}/stack", threads::process(self.pid()));
        let until = Instant::now() + DEADLINE;
        loop {
            let at = fs::read_to_string(&stack).unwrap_or_default();
            if at.contains("getdents") && at.contains("fault") {
                return;
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "{ended:?}, at {at}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        // First what no signal ends.
        drop(self.file.take());
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// A file system with one file, of which no read is answered. Dropping it ends whoever reads.
struct Unread {
    file: PathBuf,
    connection: u32,
    mount: Option<Own>,
    session: Option<BackgroundSession>,
    _dir: TempDir,
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())
    }
}

impl Unread {
    fn mount() -> Self {
        let dir = scratch();
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other");
        let mount = Own::mount("fuse", dir.path(), &options);
        let session = Session::from_fd(Reads(Mutex::default()), device, SessionACL::All, Config::default());
        let session = session.and_then(Session::spawn).expect("a session");
        let connection = rustix::fs::minor(fs::metadata(dir.path()).unwrap().dev());
        let (mount, session) = (Some(mount), Some(session));
        Self { file: dir.path().join("file"), connection, mount, session, _dir: dir }
    }

    fn path(&self) -> &Path {
        &self.file
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        mounts::abort(self.connection);
        drop(self.mount.take());
        drop(self.session.take());
    }
}

/// Reads that are not answered.
struct Reads(Mutex<Vec<ReplyData>>);

const LONG: Duration = Duration::from_secs(3600);

fn attributes(node: INodeNo) -> FileAttr {
    let directory = node == INodeNo::ROOT;
    FileAttr {
        ino: node,
        size: 4096,
        blocks: 8,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Reads {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&LONG, &attributes(INodeNo(2)), Generation(0));
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &attributes(node));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.lock().push(reply);
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }
}
