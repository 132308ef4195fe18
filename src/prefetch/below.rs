//! Files and directories below one, by descriptors: what was opened on the way to one name is there for the next.
//!
//! Through the view each walk by a path would ask again for the members' names and the marked ones on its way, which were told without a lifetime.
//!
//! Invariant: nothing is reached but what lies below, through no link and on one mount (openat2(2)).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Directories that are kept open.
const KEPT: usize = 32;

const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// See above.
#[derive(Debug)]
pub(super) struct Below<'a> {
    top: BorrowedFd<'a>,
    /// By their paths; the one that was used last is last.
    dirs: VecDeque<(Vec<u8>, OwnedFd)>,
}

impl<'a> Below<'a> {
    /// Below `top`.
    pub(super) fn new(top: BorrowedFd<'a>) -> Self {
        Self { top, dirs: VecDeque::new() }
    }

    /// Asks for the attributes of `path`; whether it is a directory.
    pub(super) fn stat(&mut self, path: &[u8]) -> Result<bool, Errno> {
        self.at(path, |dir, name| {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
            let stat = rustix::fs::statx(dir, name, flags, StatxFlags::TYPE | StatxFlags::MODE)?;
            Ok(u32::from(stat.stx_mode) & 0o170_000 == 0o040_000)
        })
    }

    /// Asks where the link `path` leads.
    pub(super) fn follow(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.at(path, |dir, name| rustix::fs::readlinkat(dir, name, Vec::new()).map(drop))
    }

    /// Opens the directory `path` to be listed.
    pub(super) fn list(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the plain file `path`.
    pub(super) fn file(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    fn open(&mut self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.at(path, |dir, name| openat(dir, name, flags))
    }

    /// Does `work` with the last component of `path`, and the directory that it is in.
    fn at<T>(
        &mut self,
        path: &[u8],
        work: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match memchr::memrchr(b'/', path) {
            None => work(self.top, path),
            Some(slash) => {
                let (dir, name) = path.split_at_checked(slash).ok_or(Errno::INVAL)?;
                self.dir(dir)?;
                let (_, dir) = self.dirs.back().ok_or(Errno::INVAL)?;
                work(dir.as_fd(), name.get(1..).ok_or(Errno::INVAL)?)
            }
        }
    }

    /// Puts the directory `path` behind all others.
    fn dir(&mut self, path: &[u8]) -> Result<(), Errno> {
        // How much of the way is open.
        let known =
            |end: &usize| self.dirs.iter().rposition(|(known, _)| path.get(..*end) == Some(known.as_slice()));
        let ends = memchr::memchr_iter(b'/', path).chain([path.len()]).collect::<Vec<_>>();
        let found = ends.iter().rev().find_map(|end| Some((*end, known(end)?)));
        let mut done = match found {
            Some((end, at)) => {
                let dir = self.dirs.remove(at).ok_or(Errno::INVAL)?;
                self.dirs.push_back(dir);
                end
            }
            None => 0,
        };
        let known = done;
        for end in ends.into_iter().filter(|end| *end > known) {
            let name = path.get(if done == 0 { 0 } else { done + 1 }..end).ok_or(Errno::INVAL)?;
            let above = if done == 0 { self.top } else { self.dirs.back().ok_or(Errno::INVAL)?.1.as_fd() };
            let open = openat(above, name, OFlags::PATH | OFlags::DIRECTORY)?;
            if self.dirs.len() >= KEPT {
                self.dirs.pop_front();
            }
            self.dirs.push_back((path.get(..end).ok_or(Errno::INVAL)?.to_vec(), open));
            done = end;
        }
        Ok(())
    }
}

fn openat(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, Mode::empty(), BELOW) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            answer => return answer,
        }
    }
}

/// How many bytes an open file has, as it is known since its name was looked up.
pub(super) fn size(file: &OwnedFd) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(file, "", flags, StatxFlags::SIZE)?.stx_size)
}
