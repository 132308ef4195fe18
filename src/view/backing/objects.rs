//! What lies in the store, as the view knows it: which kinds there are, attributes without what is the host's alone, and
//! whether an object is finished.
//!
//! Pure: values, made of what statx(2) says.

use rustix::fs::{FileType, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::time::ClockId;

/// The modification time of every store object, in seconds since 1970 (`mtimeStore` in Nix); images of a store may have
/// a 0 in its place. Nothing that is being written has either.
const MTIMES: std::ops::RangeInclusive<i64> = 0..=1;
/// What has not changed for so many seconds is finished, whatever its modification time: a store that somebody copied, or
/// what a repair has left that never ended. A day: a repair may wait for the network in the middle of a file.
const SETTLED_AFTER: i64 = 24 * 60 * 60;

/// Why the store does not give what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackingError {
    /// There is no such name.
    #[error("no such name in the store")]
    Absent {
        /// Whether the directory that says so is settled: then nothing will have this name while the store path is not
        /// replaced.
        settled: bool,
    },
    /// The host refused; never `ENOENT`.
    #[error("the store cannot be read")]
    Host(#[from] Errno),
}

/// What lies at a name: the three kinds that a NAR knows (Nix manual, "Nix Archive").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

impl Kind {
    fn of(kind: FileType) -> Option<Self> {
        match kind {
            FileType::RegularFile => Some(Self::File),
            FileType::Directory => Some(Self::Directory),
            FileType::Symlink => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// A time as statx(2) gives it: seconds since 1970, and nanoseconds.
pub type Time = (i64, u32);

/// Which file of the store's file system something is, now: inode numbers are used again, so with the time of birth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    inode: u64,
    born: Time,
}

#[cfg(test)]
impl FileId {
    pub(crate) fn with_inode(inode: u64) -> Self {
        Self { inode, born: (1, 0) }
    }
}

/// The attributes that belong to a store object. Times of access and change and the count of hard links say
/// more about the host than about the object, and are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// File, directory or link.
    pub kind: Kind,
    /// Permission bits.
    pub perm: u16,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Space taken in units of 512 bytes.
    pub blocks: u64,
    /// Modification time. 1 in every store object.
    pub mtime: Time,
    /// Links to a directory: 2 and one for each directory in it, on most file systems. 1 for anything else.
    pub nlink: u32,
    /// Which file below this is, if it is a plain file that has more names than this one and can be told from others.
    pub linked: Option<FileId>,
    /// What tells this object from another that is put in its place later.
    pub identity: Identity,
    /// Whether it is finished: nobody is writing it or removing it. See hard point 4 of [`crate::view::backing`].
    pub settled: bool,
}

/// What tells an object from another one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// When it was made.
    Born(Time),
    /// Its inode number, where the file system does not know when.
    Inode(u64),
}

impl Stat {
    /// What the host tells of an object, if a NAR can hold it. `store` is the file system of the store directory, if that is known.
    pub(super) fn of(stat: &Statx, store: Option<(u32, u32)>) -> Option<Self> {
        let kind = Kind::of(FileType::from_raw_mode(stat.stx_mode.into()))?;
        let born = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let born = born.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
        let device = Some((stat.stx_dev_major, stat.stx_dev_minor));
        let shared = kind == Kind::File && stat.stx_nlink > 1 && device == store;
        Some(Self {
            kind,
            perm: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            nlink: if kind == Kind::Directory { stat.stx_nlink } else { 1 },
            linked: born.filter(|_| shared).map(|born| FileId { inode: stat.stx_ino, born }),
            identity: born.map_or(Identity::Inode(stat.stx_ino), Identity::Born),
            settled: is_settled(stat),
        })
    }
}

/// Where a symbolic link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its text.
    pub target: Vec<u8>,
    /// Whether the link is finished.
    pub settled: bool,
}

/// What was read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// How many bytes; fewer than asked for only at the end of the file.
    pub len: usize,
    /// Whether the file is finished.
    pub settled: bool,
}

pub(super) fn is_file(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
}

pub(super) fn is_settled(stat: &Statx) -> bool {
    let now = rustix::time::clock_gettime(ClockId::Realtime).tv_sec;
    is_settled_by(stat.stx_mtime.tv_sec, stat.stx_ctime.tv_sec, stat.stx_nlink, now)
}

/// Whether an object with these times of modification and change and so many links is finished, `now`.
pub(super) fn is_settled_by(modified: i64, changed: i64, links: u32, now: i64) -> bool {
    // What no name leads to any more is being removed.
    links > 0 && (MTIMES.contains(&modified) || modified.max(changed).saturating_add(SETTLED_AFTER) < now)
}
