//! A disk that can fail: a read-only mirror of a directory, as a file system of the test's own, that answers an error to
//! one kind of call for as long as it is told to.
//!
//! The kernel keeps no name and no attribute of the mirror, so that each call of the program reaches it. File contents it
//! keeps with [`Cache::Pages`] only, which a kernel that reads the files itself needs; they are dropped when the disk is
//! told to fail.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen,
    Request, Session, SessionACL,
};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};

use super::mounts::Own;

const NOTHING_KEPT: Duration = Duration::ZERO;
/// Threads that answer.
const THREADS: usize = 4;

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Lookup,
    Getattr,
    Open,
    Opendir,
    Read,
    Readdir,
    Readlink,
}

/// What fails, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) call: Call,
    pub(crate) errno: i32,
    /// Calls of this kind that are still answered.
    pub(crate) after: u64,
    /// Where in a file reading fails: a read that ends behind it.
    pub(crate) offset: u64,
    /// Calls get no answer before the disk works again.
    pub(crate) hangs: bool,
}

impl Fault {
    /// Every call of this kind fails.
    pub(crate) fn of(call: Call, errno: i32) -> Self {
        Self { call, errno, after: 0, offset: 0, hangs: false }
    }

    /// No call of this kind is answered.
    pub(crate) fn hang(call: Call) -> Self {
        Self { hangs: true, ..Self::of(call, 0) }
    }
}

/// Whether the kernel keeps pages of the mirror's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    Nothing,
    Pages,
}

/// What the test and the mirror share.
#[derive(Debug, Default)]
struct Shared {
    fault: Mutex<Option<Fault>>,
    recovered: Condvar,
    counts: Mutex<Counts>,
    nodes: Mutex<Nodes>,
}

#[derive(Debug, Default)]
struct Counts {
    calls: u64,
    failed: u64,
}

/// Paths below the mirrored directory, by their number: a node for each, for ever.
#[derive(Debug, Default)]
struct Nodes {
    paths: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
}

impl Nodes {
    fn number(&mut self, path: PathBuf) -> u64 {
        let Self { paths, numbers } = self;
        *numbers.entry(path).or_insert_with_key(|path| {
            paths.push(path.clone());
            paths.len() as u64
        })
    }
}

impl Shared {
    /// Counts a call, and whether it is to fail.
    fn judge(&self, call: Call, end: u64) -> Result<(), Errno> {
        let mut current = self.fault.lock();
        let Some(fault) = current.filter(|fault| fault.call == call && end > fault.offset) else {
            return Ok(());
        };
        {
            let mut counts = self.counts.lock();
            counts.calls += 1;
            if counts.calls <= fault.after {
                return Ok(());
            }
            counts.failed += 1;
        }
        if fault.hangs {
            self.recovered.wait_while(&mut current, |fault| fault.is_some());
            return Ok(());
        }
        Err(Errno::from_i32(fault.errno))
    }

    fn path(&self, node: INodeNo) -> PathBuf {
        let index = usize::try_from(node.0 - 1).unwrap();
        self.nodes.lock().paths[index].clone()
    }
}

/// The mirror, mounted. It is unmounted when it is dropped.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    notifier: Notifier,
    at: PathBuf,
    // Unmounted first: the session ends with the mount.
    mount: Option<Own>,
    session: Option<BackgroundSession>,
    _dir: tempfile::TempDir,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a mirror at {}", self.at.display())
    }
}

impl Disk {
    /// Mounts a mirror of `directory` that does not fail.
    pub(crate) fn new(directory: &Path, cache: Cache) -> Self {
        Self::mounted_by(0, directory, cache)
    }

    /// The same as fusermount3(1) mounts it for `user`: every owner and mode is what the mirror says.
    pub(crate) fn mounted_by(user: u32, directory: &Path, cache: Cache) -> Self {
        let dir = super::scratch();
        let at = dir.path().join("disk");
        fs::create_dir(&at).unwrap();
        let shared = Arc::<Shared>::default();
        assert_eq!(shared.nodes.lock().number(PathBuf::new()), INodeNo::ROOT.0);
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).expect("/dev/fuse");
        let number = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options =
            format!("fd={number},rootmode=40000,user_id={user},group_id=0,allow_other,max_read=131072");
        let mount = Own::mount("fuse", &at, &options);
        let mirror = Mirror { top: directory.to_owned(), shared: shared.clone(), cache };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.acl = SessionACL::All;
        let session = Session::from_fd(mirror, device, SessionACL::All, config)
            .and_then(Session::spawn)
            .expect("a session of the mirror");
        let notifier = session.notifier();
        Self { shared, notifier, at, mount: Some(mount), session: Some(session), _dir: dir }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Fails from now on.
    pub(crate) fn fail(&self, fault: Fault) {
        let nodes = self.shared.nodes.lock().paths.len();
        for node in 1..=nodes as u64 {
            // An error says that the kernel keeps nothing of it.
            let _unknown = self.notifier.inval_inode(INodeNo(node), 0, 0);
        }
        *self.shared.counts.lock() = Counts::default();
        *self.shared.fault.lock() = Some(fault);
    }

    /// Works again from now on. How many calls have failed.
    pub(crate) fn recover(&self) -> u64 {
        *self.shared.fault.lock() = None;
        self.shared.recovered.notify_all();
        self.failed()
    }

    /// How many calls have failed, or hang.
    pub(crate) fn failed(&self) -> u64 {
        self.shared.counts.lock().failed
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.recover();
        drop(self.mount.take());
        // Whoever still has something of it open would keep the session; the test's end does not wait for them.
        drop(self.session.take());
    }
}

/// The file system itself.
struct Mirror {
    top: PathBuf,
    shared: Arc<Shared>,
    cache: Cache,
}

impl Mirror {
    fn real(&self, path: &Path) -> PathBuf {
        // Not `join("")`, which would end a file's name with a slash.
        if path.as_os_str().is_empty() { self.top.clone() } else { self.top.join(path) }
    }

    fn attributes(&self, path: PathBuf) -> Result<FileAttr, Errno> {
        let meta = fs::symlink_metadata(self.real(&path)).map_err(|error| told(&error))?;
        Ok(attributes(self.shared.nodes.lock().number(path), &meta))
    }
}

fn told(error: &std::io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or_default())
}

fn kind(meta: &Metadata) -> FileType {
    FileType::from_std(meta.file_type()).expect("a kind of file")
}

fn attributes(node: u64, meta: &Metadata) -> FileAttr {
    let time = UNIX_EPOCH + Duration::from_secs(meta.mtime().unsigned_abs());
    FileAttr {
        ino: INodeNo(node),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(meta),
        perm: u16::try_from(meta.mode() & 0o7777).unwrap(),
        nlink: u32::try_from(meta.nlink()).unwrap(),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Mirror {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.shared.path(parent).join(name);
        match self.shared.judge(Call::Lookup, 1).and_then(|()| self.attributes(path)) {
            Ok(attributes) => reply.entry(&NOTHING_KEPT, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let path = self.shared.path(node);
        match self.shared.judge(Call::Getattr, 1).and_then(|()| self.attributes(path)) {
            Ok(attributes) => reply.attr(&NOTHING_KEPT, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        let path = self.real(&self.shared.path(node));
        let read = || fs::read_link(path).map_err(|error| told(&error));
        match self.shared.judge(Call::Readlink, 1).and_then(|()| read()) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match self.cache {
            Cache::Nothing => FopenFlags::FOPEN_DIRECT_IO,
            Cache::Pages => FopenFlags::empty(),
        };
        match self.shared.judge(Call::Open, 1) {
            Ok(()) => reply.opened(FileHandle(0), flags),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let path = self.real(&self.shared.path(node));
        let read = || -> std::io::Result<usize> {
            let file = File::open(path)?;
            let mut done = 0;
            while done < bytes.len() {
                match file.read_at(&mut bytes[done..], offset + done as u64)? {
                    0 => break,
                    count => done += count,
                }
            }
            Ok(done)
        };
        let end = offset + u64::from(size);
        match self.shared.judge(Call::Read, end).and_then(|()| read().map_err(|error| told(&error))) {
            Ok(count) => reply.data(&bytes[..count]),
            Err(error) => reply.error(error),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.shared.judge(Call::Opendir, 1) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if let Err(error) = self.shared.judge(Call::Readdir, 1) {
            return reply.error(error);
        }
        let path = self.shared.path(node);
        let entries = fs::read_dir(self.real(&path)).and_then(|listing| {
            listing.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?)))).collect()
        });
        let mut entries: Vec<(std::ffi::OsString, Metadata)> = match entries {
            Ok(entries) => entries,
            Err(error) => return reply.error(told(&error)),
        };
        // The order is the same each time, and so is what an offset means.
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut names =
            vec![(".".into(), node.0, FileType::Directory), ("..".into(), 1, FileType::Directory)];
        names.extend(entries.into_iter().map(|(name, meta)| {
            let number = self.shared.nodes.lock().number(path.join(&name));
            (name, number, kind(&meta))
        }));
        for (at, (name, number, kind)) in names.iter().enumerate().skip(usize::try_from(offset).unwrap()) {
            if reply.add(INodeNo(*number), at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
