//! Numbers and layouts of `include/uapi/linux/fuse.h`, protocol 7.40: those that this program uses.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol that this program speaks.
pub const VERSION: (u32, u32) = (7, 40);
/// `FUSE_ROOT_ID`.
pub const ROOT_ID: u64 = 1;
/// `FUSE_MIN_READ_BUFFER`: no read of the device may offer less.
pub const MIN_READ_BUFFER: usize = 8192;

/// What a request asks for (`enum fuse_opcode`).
pub mod opcode {
    #![allow(missing_docs)]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const RELEASEDIR: u32 = 29;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// What the kernel is told unasked (`enum fuse_notify_code`).
pub mod notify {
    /// Pages, listing and attributes of a node are forgotten.
    pub const INVAL_INODE: i32 = 2;
    /// A name is forgotten.
    pub const INVAL_ENTRY: i32 = 3;
    /// What a dead server had taken is given again (Linux 6.9).
    pub const RESEND: i32 = 7;
    /// All names are asked for again (Linux 6.16).
    pub const INC_EPOCH: i32 = 8;
}

/// What kernel and program agree on in INIT (`FUSE_*` flags of `fuse_init_in` and `fuse_init_out`).
pub mod init {
    #![allow(missing_docs)]
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// How an open is answered (`FOPEN_*`).
pub mod fopen {
    /// The kernel keeps what it has cached of the file.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The kernel reads a registered file (Linux 6.9).
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InHeader {
    /// Bytes of the request, with this header.
    pub len: u32,
    /// One of [`opcode`].
    pub opcode: u32,
    /// Names the request; odd: it interrupts the one before.
    pub unique: u64,
    /// The node that is meant.
    pub node: u64,
    /// User id of who asks.
    pub uid: u32,
    /// Group id of who asks.
    pub gid: u32,
    /// Thread id of who asks.
    pub pid: u32,
    /// Extensions, in 8-byte units (7.38), and padding.
    pub extensions: u32,
}

/// `struct fuse_out_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct OutHeader {
    /// Bytes of the answer, with this header.
    pub len: u32,
    /// 0, the negated number of an error, or the code of a notification.
    pub error: i32,
    /// The request that is answered; 0: a notification.
    pub unique: u64,
}

/// `struct fuse_forget_in`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ForgetIn {
    /// References that are dropped.
    pub lookups: u64,
}

/// `struct fuse_forget_one`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ForgetOne {
    /// The node.
    pub node: u64,
    /// References that are dropped.
    pub lookups: u64,
}

/// `struct fuse_batch_forget_in`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct BatchForgetIn {
    /// How many [`ForgetOne`] follow.
    pub count: u32,
    /// Padding.
    pub padding: u32,
}

/// `struct fuse_open_in`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct OpenIn {
    /// Flags of open(2).
    pub flags: u32,
    /// `FUSE_OPEN_*`.
    pub open_flags: u32,
}

/// `struct fuse_release_in`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ReleaseIn {
    /// The handle that the open was answered with.
    pub handle: u64,
    /// Flags of open(2).
    pub flags: u32,
    /// `FUSE_RELEASE_*`.
    pub release_flags: u32,
    /// Who holds locks.
    pub lock_owner: u64,
}

/// `struct fuse_read_in`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ReadIn {
    /// The handle that the open was answered with.
    pub handle: u64,
    /// Where to begin, in bytes; for a listing, a position.
    pub offset: u64,
    /// Bytes that are wanted at most.
    pub size: u32,
    /// `FUSE_READ_*`.
    pub read_flags: u32,
    /// Who holds locks.
    pub lock_owner: u64,
    /// Flags of open(2).
    pub flags: u32,
    /// Padding.
    pub padding: u32,
}

/// `struct fuse_lseek_in`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LseekIn {
    /// The handle that the open was answered with.
    pub handle: u64,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// SEEK_DATA or SEEK_HOLE of lseek(2).
    pub whence: u32,
    /// Padding.
    pub padding: u32,
}

/// `struct fuse_init_in`, as far as this program reads it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InitIn {
    /// The kernel's protocol.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Bytes that the kernel would read ahead.
    pub max_readahead: u32,
    /// The lower half of [`init`].
    pub flags: u32,
}

/// `struct fuse_init_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InitOut {
    /// The program's protocol.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Bytes that the kernel may read ahead.
    pub max_readahead: u32,
    /// The lower half of [`init`].
    pub flags: u32,
    /// Requests in the background at once.
    pub max_background: u16,
    /// Of these, as many slow their callers down.
    pub congestion_threshold: u16,
    /// Bytes of one write.
    pub max_write: u32,
    /// Granularity of times in nanoseconds.
    pub time_gran: u32,
    /// Pages of one request.
    pub max_pages: u16,
    /// For DAX.
    pub map_alignment: u16,
    /// The upper half of [`init`].
    pub flags2: u32,
    /// File systems that stand on each other, this one included.
    pub max_stack_depth: u32,
    /// Zero.
    pub unused: [u32; 6],
}

/// `struct fuse_attr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    /// In 512 bytes.
    pub blocks: u64,
    /// Seconds; signed in the kernel (`fuse_change_attributes_common`).
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    /// Kind and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

/// `struct fuse_entry_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct EntryOut {
    /// 0: the name is absent (`fuse_lookup_name`).
    pub node: u64,
    /// Always 0: a node id is never given twice.
    pub generation: u64,
    /// Seconds for which the kernel may keep the name.
    pub entry_valid: u64,
    /// Seconds for which the kernel may keep the attributes.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub entry_valid_nsec: u32,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// The attributes.
    pub attr: Attr,
}

/// `struct fuse_attr_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct AttrOut {
    /// Seconds for which the kernel may keep them.
    pub valid: u64,
    /// And nanoseconds.
    pub valid_nsec: u32,
    /// Padding.
    pub padding: u32,
    /// The attributes.
    pub attr: Attr,
}

/// `struct fuse_open_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct OpenOut {
    /// What the kernel names the open file with.
    pub handle: u64,
    /// [`fopen`].
    pub flags: u32,
    /// The registration of the file that the kernel reads, with [`fopen::PASSTHROUGH`].
    pub backing: u32,
}

/// `struct fuse_statfs_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct StatfsOut {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
    pub padding: u32,
    pub spare: [u32; 6],
}

/// `struct fuse_lseek_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LseekOut {
    /// In bytes.
    pub offset: u64,
}

/// `struct fuse_dirent`; the name follows, filled up to a multiple of 8 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Dirent {
    /// Inode number.
    pub ino: u64,
    /// The position after it.
    pub offset: u64,
    /// Bytes of the name.
    pub name_len: u32,
    /// Kind: the upper four bits of the mode.
    pub kind: u32,
}

/// `struct fuse_direntplus`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DirentPlus {
    /// As for a look-up.
    pub entry: EntryOut,
    /// As in a listing.
    pub dirent: Dirent,
}

/// `struct fuse_notify_inval_inode_out`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InvalInodeOut {
    /// The node.
    pub node: u64,
    /// Where its pages begin to be forgotten; negative: attributes only.
    pub offset: i64,
    /// Bytes; 0: to the end.
    pub len: i64,
}

/// `struct fuse_notify_inval_entry_out`; the name follows, ended by a zero byte.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InvalEntryOut {
    /// The directory.
    pub parent: u64,
    /// Bytes of the name.
    pub name_len: u32,
    /// `FUSE_EXPIRE_ONLY` is not used.
    pub flags: u32,
}

// The sizes of `linux/fuse.h`.
const _: () = {
    assert!(size_of::<InHeader>() == 40 && size_of::<OutHeader>() == 16);
    assert!(size_of::<Attr>() == 88 && size_of::<EntryOut>() == 128 && size_of::<AttrOut>() == 104);
    assert!(size_of::<OpenOut>() == 16 && size_of::<StatfsOut>() == 80 && size_of::<DirentPlus>() == 152);
    assert!(size_of::<InitOut>() == 64 && size_of::<ReadIn>() == 40 && size_of::<LseekIn>() == 24);
    assert!(size_of::<InvalInodeOut>() == 24 && size_of::<InvalEntryOut>() == 16);
};
