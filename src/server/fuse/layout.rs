//! What the view says, as the kernel is told it: errors, attributes, names with their lifetimes, entries of a listing. Values only.

use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::fuse::abi::{Attr, Dirent, DirentPlus, EntryOut};
use crate::server::root_names::ENDLESS;
use crate::view::backing::{Kind, Stat};
use crate::view::{Entry, FsError, Node, Told};

/// Inode number of an entry whose node is not known, as libfuse has it: C libraries leave out an entry with 0.
const UNKNOWN_INO: u64 = 0xffff_ffff;
/// DT_UNKNOWN of readdir(3): whoever wants to know looks the name up.
const UNKNOWN_KIND: u32 = 0;

/// How long the kernel may cache an answer, in seconds: store paths never change, unless something is wrong with one.
pub(super) fn lifetime(lasting: bool) -> u64 {
    if lasting { ENDLESS } else { 0 }
}

/// The one table from errors to what the kernel is told.
pub(super) fn errno(error: FsError) -> Errno {
    match error {
        // The kernel repeats a path walk once when told this, from the root.
        FsError::UnknownNode => Errno::STALE,
        FsError::Absent | FsError::AbsentNow => Errno::NOENT,
        FsError::BadName => Errno::INVAL,
        FsError::ReadOnly => Errno::ROFS,
        FsError::Unsupported => Errno::NOSYS,
        FsError::Backing(error) => match error {
            // A directory became a link or a mount: somebody changed a store path, which is never right.
            Errno::LOOP | Errno::XDEV | Errno::NOTDIR => Errno::IO,
            // ENOSYS would end this kind of request for the whole mount.
            Errno::NOSYS => Errno::IO,
            // Of a store that is served by FUSE itself: from us they would say that this view is dead.
            Errno::NOTCONN | Errno::CONNABORTED => Errno::IO,
            // The kernel does not take an answer with another code (`fuse_dev_do_write`), and whoever asked would wait for
            // ever. Some file systems let such codes out: 524 is ENOTSUPP of the kernel's own.
            other if (1..512).contains(&other.raw_os_error()) => other,
            _ => Errno::IO,
        },
    }
}

fn mode(kind: Kind) -> u32 {
    match kind {
        Kind::File => 0o100_000,
        Kind::Directory => 0o040_000,
        Kind::Symlink => 0o120_000,
    }
}

pub(super) fn attributes(node: Node) -> Attr {
    let Stat { kind, perm, uid, gid, size, blocks, mtime: (seconds, nanoseconds), nlink, .. } = node.stat;
    Attr {
        ino: node.id.0,
        size,
        blocks,
        atime: seconds,
        mtime: seconds,
        ctime: seconds,
        atimensec: nanoseconds,
        mtimensec: nanoseconds,
        ctimensec: nanoseconds,
        mode: mode(kind) | u32::from(perm),
        nlink,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A name whose lifetime is `endless` seconds, if it and its attributes may be cached at all.
pub(super) fn known(node: Node, lasting: bool, endless: u64) -> EntryOut {
    EntryOut {
        node: node.id.0,
        generation: 0,
        entry_valid: if lasting { endless } else { 0 },
        attr_valid: lifetime(lasting),
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attributes(node),
    }
}

/// A negative entry: node id 0 with a lifetime says that the name is absent (`fuse_lookup_name`), without one that it is absent now.
///
/// Made when it is given: the kernel copies an answer from memory that is there for certain, and a constant lies in a page of the
/// program that may have to be read from disk.
pub(super) fn absent(seconds: u64) -> EntryOut {
    EntryOut { entry_valid: seconds, ..EntryOut::new_zeroed() }
}

/// Puts one entry behind those in `buffer`, unless it would be longer than `room`: false. The lifetime of its name is `endless`
/// seconds, if it may be cached.
pub(super) fn add(buffer: &mut Vec<u8>, room: usize, entry: &Entry<'_>, endless: u64) -> bool {
    let Entry { node, name, next, told, .. } = entry;
    let filled = (size_of::<DirentPlus>() + name.len()).next_multiple_of(8);
    let Ok(name_len) = u32::try_from(name.len()) else { return false };
    if buffer.len() + filled > room {
        return false;
    }
    let (ino, kind) = match told {
        Told::Unknown => (UNKNOWN_INO, UNKNOWN_KIND),
        Told::Lasting | Told::Now | Told::Nothing => (node.id.0, mode(node.stat.kind) >> 12),
    };
    let dirent = Dirent { ino, offset: *next, name_len, kind };
    let end = buffer.len() + filled;
    let entry = match told {
        Told::Lasting => known(*node, true, endless),
        Told::Now => known(*node, false, endless),
        // Without a node the kernel takes the name and nothing else (`fuse_direntplus_link`).
        Told::Nothing | Told::Unknown => EntryOut::new_zeroed(),
    };
    buffer.extend_from_slice(DirentPlus { entry, dirent }.as_bytes());
    buffer.extend_from_slice(name);
    buffer.resize(end, 0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::trie::NodeId;

    /// `FsError` has no wildcard in the table; what the backing store says is passed on but for these.
    #[test]
    fn a_store_that_was_tampered_with_is_an_io_error_and_nothing_is_ever_enosys_by_accident() {
        let told = |error| errno(FsError::Backing(error));
        assert_eq!(told(Errno::LOOP), Errno::IO);
        assert_eq!(told(Errno::NOSYS), Errno::IO);
        assert_eq!(told(Errno::MFILE), Errno::MFILE);
        assert_eq!(told(Errno::NOTCONN), Errno::IO);
        for code in 1..4096 {
            let told = told(Errno::from_raw_os_error(code));
            assert!(
                (1..512).contains(&told.raw_os_error()) && told != Errno::NOSYS,
                "{code} is told as {told}"
            );
        }
    }

    /// The kernel takes a reply apart by these lengths (`fuse_direntplus_...` of `fs/fuse/readdir.c`).
    #[test]
    fn entries_are_filled_up_to_eight_bytes_and_end_where_there_is_no_room() {
        let stat = crate::view::backing::Stat {
            kind: Kind::Directory,
            perm: 0o555,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            mtime: (1, 0),
            nlink: 2,
            linked: None,
            identity: crate::view::backing::Identity::Inode(0),
            settled: true,
        };
        let told = |name, next| Entry {
            node: Node { id: NodeId(9), stat },
            name,
            next,
            told: Told::Lasting,
            fresh: false,
        };
        let mut buffer = Vec::new();
        assert!(add(&mut buffer, 400, &told(b"eight888", 1), ENDLESS));
        assert_eq!(buffer.len(), 160);
        assert!(add(&mut buffer, 400, &told(b"nine99999", 2), ENDLESS));
        assert_eq!(buffer.len(), 160 + 168);
        assert!(!add(&mut buffer, 400, &told(b"x", 3), ENDLESS) && buffer.len() == 328);
        assert_eq!(buffer[128..144], [9_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat());
        assert_eq!(buffer[144..152], [8_u32.to_ne_bytes(), 4_u32.to_ne_bytes()].concat());
        assert_eq!(buffer[152..160], *b"eight888");

        buffer.clear();
        assert!(add(&mut buffer, 400, &Entry { told: Told::Unknown, ..told(b"mounted8", 3) }, ENDLESS));
        assert_eq!(buffer[..128], [0; 128], "no node");
        assert_eq!(buffer[128..144], [UNKNOWN_INO.to_ne_bytes(), 3_u64.to_ne_bytes()].concat());
        assert_eq!(buffer[144..152], [8_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat());
    }
}
