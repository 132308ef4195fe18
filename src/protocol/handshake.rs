//! The FUSE INIT exchange, answered once in the life of a mount.
//!
//! The monitor answers the kernel's INIT before any server runs, so every start of a server is a resumption and
//! there is one way to test instead of two. A server replays the kernel's request to its own library.
//!
//! Layouts: `struct fuse_in_header`, `fuse_init_in`, `fuse_out_header`, `fuse_init_out` of
//! `include/uapi/linux/fuse.h`, numbers in native byte order.

use std::io;
use std::os::fd::AsFd;

use fuser::InitFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Opcode of INIT.
const FUSE_INIT: u32 = 26;
/// Code of the notification that gives back what a dead server had taken (Linux 6.9).
const FUSE_NOTIFY_RESEND: i32 = 7;
/// The protocol that this program speaks: that of its FUSE library.
const VERSION: (u32, u32) = (7, 40);
/// `FUSE_MIN_READ_BUFFER`: no read of the device may offer less.
const READ_BUFFER: usize = 8192;
/// Pages that one read request may ask for: 1 MiB, the kernel's own limit (`fs.fuse.max_pages_limit`).
const MAX_PAGES: u16 = 256;
/// Bytes of the longest read request.
pub const READ_MAX: u32 = MAX_PAGES as u32 * 4096;
/// Background requests, as read-ahead is, in flight at once.
const MAX_BACKGROUND: u16 = 64;

/// How many file systems the kernel lets stand on each other (`FILESYSTEM_MAX_STACK_DEPTH`).
const STACK_MAX: u32 = 2;

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// The kernel opens files without asking and caches what the server reads for it.
    #[default]
    Cached,
    /// The kernel reads the store's own files; needs Linux 6.9 and CAP_SYS_ADMIN.
    Passthrough,
}

/// What the monitor would like of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// How files are to be read.
    pub io: Io,
    /// Whether the mount may be idmapped; needs the mount option `default_permissions`.
    pub idmap: bool,
    /// How many file systems the store itself is stacked on others (overlayfs: 1).
    pub store_depth: u32,
}

/// What kernel and monitor agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// The kernel's INIT request, to be replayed.
    pub request: Vec<u8>,
    /// How files are read.
    pub io: Io,
    /// Whether the mount may be idmapped.
    pub idmap: bool,
}

/// Why there is no agreement.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The device could not be read or written.
    #[error("cannot exchange FUSE_INIT with the kernel")]
    Io(#[from] io::Error),
    /// The kernel did not begin with INIT, or spoke another protocol.
    #[error("the kernel began with something other than FUSE_INIT 7.x; Linux 5.6 or newer is needed")]
    Protocol,
    /// The kernel lacks what the view is built on.
    #[error(
        "this kernel cannot open files without asking or list with attributes; Linux 5.6 or newer is needed"
    )]
    TooOld,
}

/// Reads the kernel's INIT request from `device` and answers it.
///
/// # Errors
/// [`HandshakeError`]; the mount is of no use then.
pub fn answer(device: impl AsFd, wishes: Wishes) -> Result<Agreement, HandshakeError> {
    let mut buffer = vec![0; READ_BUFFER];
    let read = retry(|| rustix::io::read(&device, &mut buffer[..]))?;
    buffer.truncate(read);
    let (agreement, reply) = agree(buffer, wishes)?;
    retry(|| rustix::io::write(&device, &reply))?;
    Ok(agreement)
}

/// Asks the kernel to send again what earlier servers had taken and not answered. Kernels before 6.9 cannot.
///
/// # Errors
/// What the device answered.
pub fn resend(device: impl AsFd) -> io::Result<()> {
    let mut message = Vec::with_capacity(16);
    message.extend(16u32.to_ne_bytes());
    message.extend(FUSE_NOTIFY_RESEND.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    retry(|| rustix::io::write(&device, &message)).map(|_| ())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            answer => return Ok(answer?),
        }
    }
}

/// The flags of a kernel's INIT request, and where its fields lie.
fn parse(request: &[u8]) -> Option<(u64, u32, InitFlags)> {
    let word = |at: usize| Some(u32::from_ne_bytes(*request.get(at..)?.first_chunk()?));
    let unique = u64::from_ne_bytes(*request.get(8..)?.first_chunk()?);
    if word(4)? != FUSE_INIT || word(40)? != VERSION.0 {
        return None;
    }
    let mut flags = u64::from(word(52)?);
    if flags & InitFlags::FUSE_INIT_EXT.bits() != 0 {
        flags |= u64::from(word(56)?) << 32;
    }
    Some((unique, word(48)?, InitFlags::from_bits_retain(flags)))
}

fn agree(request: Vec<u8>, wishes: Wishes) -> Result<(Agreement, Vec<u8>), HandshakeError> {
    let (unique, max_readahead, offered) = parse(&request).ok_or(HandshakeError::Protocol)?;
    let needed = InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_NO_OPEN_SUPPORT
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT
        | InitFlags::FUSE_MAX_PAGES;
    if !offered.contains(needed) {
        return Err(HandshakeError::TooOld);
    }
    let mut flags = needed
        | InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_INIT_EXT;
    if wishes.idmap {
        flags |= InitFlags::FUSE_ALLOW_IDMAP;
    }
    if wishes.io == Io::Passthrough && wishes.store_depth < STACK_MAX {
        flags |= InitFlags::FUSE_PASSTHROUGH;
    }
    flags &= offered;
    // One level is ours.
    let depth = if flags.contains(InitFlags::FUSE_PASSTHROUGH) { wishes.store_depth + 1 } else { 0 };
    let io = if flags.contains(InitFlags::FUSE_PASSTHROUGH) { Io::Passthrough } else { Io::Cached };
    let bits = flags.bits();

    let mut reply = Vec::with_capacity(80);
    reply.extend(80u32.to_ne_bytes());
    reply.extend(0i32.to_ne_bytes());
    reply.extend(unique.to_ne_bytes());
    reply.extend(VERSION.0.to_ne_bytes());
    reply.extend(VERSION.1.to_ne_bytes());
    reply.extend(max_readahead.to_ne_bytes());
    reply.extend((bits as u32).to_ne_bytes());
    reply.extend(MAX_BACKGROUND.to_ne_bytes());
    reply.extend((MAX_BACKGROUND / 4 * 3).to_ne_bytes());
    reply.extend(4096u32.to_ne_bytes()); // max_write: every write is refused
    reply.extend(1u32.to_ne_bytes()); // time_gran in nanoseconds
    reply.extend(MAX_PAGES.to_ne_bytes());
    reply.extend(0u16.to_ne_bytes()); // map_alignment
    reply.extend(((bits >> 32) as u32).to_ne_bytes());
    reply.extend(depth.to_ne_bytes());
    reply.resize(80, 0);
    let agreement = Agreement { request, io, idmap: flags.contains(InitFlags::FUSE_ALLOW_IDMAP) };
    Ok((agreement, reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(major: u32, flags: InitFlags) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [104u32, FUSE_INIT, 7, 0, 0, 0, 0, 0, 0, 0, major, 45, 131_072] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend((flags.bits() as u32).to_ne_bytes());
        bytes.extend(((flags.bits() >> 32) as u32).to_ne_bytes());
        bytes.resize(104, 0);
        bytes
    }

    const WISHES: Wishes = Wishes { io: Io::Passthrough, idmap: true, store_depth: 0 };

    fn told(reply: &[u8]) -> (InitFlags, u32) {
        let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().unwrap());
        (InitFlags::from_bits_retain(u64::from(word(28)) | u64::from(word(48)) << 32), word(52))
    }

    #[test]
    fn a_new_kernel_gets_everything_that_was_wished_for() {
        let (agreement, reply) = agree(request(7, InitFlags::all()), WISHES).unwrap();
        assert_eq!((agreement.io, agreement.idmap), (Io::Passthrough, true));
        let (flags, depth) = told(&reply);
        assert!(flags.contains(InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_ALLOW_IDMAP));
        assert!(!flags.intersects(InitFlags::FUSE_READDIRPLUS_AUTO | InitFlags::FUSE_WRITEBACK_CACHE));
        assert_eq!((depth, reply.len(), reply[8]), (1, 80, 7));
    }

    #[test]
    fn passthrough_and_idmapping_fall_back_where_the_kernel_lacks_them() {
        let old = InitFlags::from_bits_retain(InitFlags::all().bits() & 0x7fff_ffff);
        let (agreement, reply) = agree(request(7, old), WISHES).unwrap();
        assert_eq!((agreement.io, agreement.idmap), (Io::Cached, false));
        assert_eq!(told(&reply).1, 0);
    }

    #[test]
    fn a_store_on_two_layers_leaves_no_room_for_passthrough() {
        let depth = |store_depth| {
            let (agreement, reply) =
                agree(request(7, InitFlags::all()), Wishes { store_depth, ..WISHES }).unwrap();
            (agreement.io, told(&reply).1)
        };
        assert_eq!(depth(1), (Io::Passthrough, 2));
        assert_eq!(depth(2), (Io::Cached, 0));
    }

    #[test]
    fn what_is_no_init_or_too_old_is_refused() {
        assert!(matches!(agree(vec![0; 104], WISHES), Err(HandshakeError::Protocol)));
        assert!(matches!(agree(vec![], WISHES), Err(HandshakeError::Protocol)));
        assert!(matches!(agree(request(8, InitFlags::all()), WISHES), Err(HandshakeError::Protocol)));
        assert!(matches!(agree(request(7, InitFlags::FUSE_ASYNC_READ), WISHES), Err(HandshakeError::TooOld)));
    }
}
