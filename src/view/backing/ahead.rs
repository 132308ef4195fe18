//! The store's bytes, asked for before somebody reads them, and dropped when he has.
//!
//! Invariants, besides those of [`super`]:
//! - Nothing is returned that an answer could be made of: what is read ahead goes to the store's cache, and is read from there
//!   with all else.
//! - It has two directories and one file open at most, none of which it shares with the descriptors that answers use.
//!
//! Hard points:
//! 1. A thread that does this may wait for the disk for as long as the disk likes. So it may have a table of descriptors of its own.
//! 2. Pages that a read with `RWF_DONTCACHE` finds in the cache stay there, and would be there twice. What was there before it was
//!    asked for is somebody else's, and stays.
//! 3. A file system that has no pages of its own, as overlayfs and ZFS, tells of none that are cached (cachestat(2)); but overlayfs drops
//!    those of the file system below. So where none are told of after some were asked for, nothing is dropped.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{Advice, FileType};
use rustix::io::Errno;

use super::objects::is_file;
use super::{Backing, FILE, calls, open_directory};
use crate::sys::cached::{Before, bring};
use crate::view::walk::{Found, Kind, LONGEST, Listed, split};

/// Bytes that are asked for of one file at most. A reader of a longer one is followed by the kernel's own read-ahead.
const MOST: u64 = 1 << 20;

/// Asks for files of a store ahead of their readers. For one thread.
#[derive(Debug)]
pub struct Ahead {
    store: Arc<OwnedFd>,
    /// The directories that were last used, to bring and to drop.
    dirs: [Option<(Box<[u8]>, OwnedFd)>; 2],
}

impl Backing {
    /// What asks for files of the same store ahead, by the store's own descriptor.
    #[must_use]
    pub fn ahead(&self) -> Ahead {
        Ahead { store: self.store.clone(), dirs: [None, None] }
    }
}

impl Ahead {
    /// The number of the one descriptor that it needs.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.store.as_raw_fd()
    }

    /// Closes what it has open.
    pub fn close(&mut self) {
        self.dirs = [None, None];
    }

    /// The names in the directory at `dir`, sorted by bytes as a listing of the view is. None also for one that is too long.
    #[must_use]
    pub fn list(&self, dir: &[u8]) -> Option<Vec<Listed>> {
        let opened = open_directory(self.store.as_fd(), dir).ok()?;
        let mut names: Vec<Listed> = Vec::new();
        let listed = calls::names(&opened, |name, kind| {
            if names.len() <= LONGEST {
                names.push((name.into(), kind_of(kind)));
            }
        });
        names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        listed.ok().filter(|()| names.len() <= LONGEST).map(|()| names)
    }

    /// Asks the disk for the beginning of the file at `path`.
    pub fn bring(&mut self, path: &[u8]) -> Found {
        self.try_bring(path).unwrap_or(Found::Nothing)
    }

    fn try_bring(&mut self, path: &[u8]) -> Result<Found, Errno> {
        let file = self.file(0, path)?;
        let stat = calls::stat(&file, b"")?;
        if !is_file(&stat) || stat.stx_size == 0 {
            return Ok(Found::Nothing);
        }
        // Only whole pages are dropped.
        let most = stat.stx_size.next_multiple_of(rustix::param::page_size() as u64).min(MOST);
        let mut asked = 0;
        let before = bring(&file, 0, most, |bytes, before| {
            asked += bytes;
            before == Before::Nothing
        })?;
        Ok(if before == Before::Nothing { Found::Cold(asked) } else { Found::Warm })
    }

    /// Drops what was brought: the first `bytes` of the file at `path`.
    pub fn drop_pages(&mut self, path: &[u8], bytes: u64) {
        if let (Ok(file), Some(length)) = (self.file(1, path), NonZeroU64::new(bytes)) {
            let _ = calls::advise(&file, 0, length, Advice::DontNeed);
        }
    }

    /// The plain file at `path`, by way of the directory in `place`.
    fn file(&mut self, place: usize, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (dir, name) = split(path);
        let (opened, open) = if dir.is_empty() {
            (self.store.as_fd(), calls::open_across as fn(_, &[u8], _) -> _)
        } else {
            let kept = self.dirs.get_mut(place).ok_or(Errno::INVAL)?;
            let kept = match kept {
                Some((path, opened)) if **path == *dir => (&*path, &*opened),
                kept => {
                    let opened = open_directory(self.store.as_fd(), dir)?;
                    let (path, opened) = kept.insert((dir.into(), opened));
                    (&*path, &*opened)
                }
            };
            (kept.1.as_fd(), calls::open as fn(_, &[u8], _) -> _)
        };
        if !is_file(&calls::stat(opened, name)?) {
            return Err(Errno::NOENT);
        }
        open(opened, name, FILE)
    }
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Unknown => Kind::Unknown,
        _ => Kind::Other,
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
