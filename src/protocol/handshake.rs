//! The FUSE INIT exchange, answered once in the life of a mount.
//!
//! The monitor answers the kernel's INIT before any server runs, so every start of a server is a resumption and
//! there is one way to test instead of two.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use crate::fuse::abi::{InHeader, InitIn, InitOut, MIN_READ_BUFFER, OutHeader, VERSION, init, opcode};

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

impl Io {
    /// What it is called on the command line and in what is told of a view.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Passthrough => "passthrough",
        }
    }
}

/// How long the kernel caches what it is told of a name that may change at a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifetime {
    /// For a second: then it asks again by itself.
    Limited,
    /// Until it is notified, for which it locks the directory, and so waits for whoever lists it.
    #[default]
    Endless,
}

/// The longest lifetimes that the servers of a mount have given, as the kernel may still have cached it. What earlier versions
/// wrote does not have it: they gave endless ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Promised {
    /// Of absent names at the root, and in the top directory of a member.
    pub absences: Lifetime,
    /// Of names at the root.
    pub names: Lifetime,
}

impl Promised {
    /// What servers of this version give: names of members last where none is ever withdrawn.
    #[must_use]
    pub fn new(prune: bool) -> Self {
        let names = if prune { Lifetime::Limited } else { Lifetime::Endless };
        Self { absences: Lifetime::Limited, names }
    }

    /// These, where others have been given before.
    #[must_use]
    pub fn after(self, earlier: Self) -> Self {
        let longer = |one, other| if one == other { one } else { Lifetime::Endless };
        Self { absences: longer(self.absences, earlier.absences), names: longer(self.names, earlier.names) }
    }
}

/// Whether the kernel is to read the store's files by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passthrough {
    /// It is not.
    Unwanted,
    /// It is where it can.
    IfOffered,
    /// It is, and a kernel that cannot is an error.
    Required,
}

/// What the monitor would like of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// How files are to be read. A store on too many file systems is read through the server in any case.
    pub passthrough: Passthrough,
    /// Whether the mount may be idmapped; needs the mount option `default_permissions`.
    pub idmap: bool,
    /// How many file systems the store itself is stacked on others (overlayfs: 1).
    pub store_depth: u32,
    /// What servers will promise: nothing that is negotiated.
    pub promised: Promised,
}

/// What kernel and monitor agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// How files are read.
    pub io: Io,
    /// Whether the mount may be idmapped.
    pub idmap: bool,
    /// How long what servers have told may be cached.
    #[serde(default)]
    pub promised: Promised,
}

/// Why there is no agreement.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The device could not be read or written.
    #[error("cannot exchange FUSE_INIT with the kernel")]
    Io(#[from] io::Error),
    /// The kernel did not begin with INIT, or spoke another protocol.
    #[error("the kernel began with something other than FUSE_INIT 7.x; Linux 5.10 or newer is needed")]
    Protocol,
    /// The kernel lacks what the view is built on.
    #[error(
        "this kernel cannot open files without asking or list with attributes; Linux 5.10 or newer is needed"
    )]
    TooOld,
    /// Passthrough was asked for, and the kernel offers none (`CONFIG_FUSE_PASSTHROUGH`).
    #[error(
        "this kernel cannot read a store's files by itself: --io passthrough needs Linux 6.9 or newer; leave it out, or boot such \
         a kernel"
    )]
    NoPassthrough,
}

/// Reads the kernel's INIT request from `device` and answers it.
///
/// # Errors
/// [`HandshakeError`]; the mount is of no use then.
pub fn answer(device: impl AsFd, wishes: Wishes) -> Result<Agreement, HandshakeError> {
    let mut buffer = vec![0; MIN_READ_BUFFER];
    let read = retry(|| rustix::io::read(&device, &mut buffer[..]))?;
    buffer.truncate(read);
    let (agreement, reply) = agree(&buffer, wishes)?;
    retry(|| rustix::io::write(&device, &reply))?;
    Ok(agreement)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            answer => return Ok(answer?),
        }
    }
}

/// What the kernel begins with.
#[derive(Debug, Clone, Copy)]
struct Offer {
    unique: u64,
    max_readahead: u32,
    flags: u64,
}

impl Offer {
    fn parse(request: &[u8]) -> Option<Self> {
        let (header, body) = InHeader::read_from_prefix(request).ok()?;
        let (offer, rest) = InitIn::read_from_prefix(body).ok()?;
        if header.opcode != opcode::INIT || offer.major != VERSION.0 {
            return None;
        }
        let mut flags = u64::from(offer.flags);
        if flags & init::INIT_EXT != 0 {
            flags |= u64::from(u32::from_ne_bytes(*rest.first_chunk()?)) << 32;
        }
        Some(Self { unique: header.unique, max_readahead: offer.max_readahead, flags })
    }
}

fn agree(request: &[u8], wishes: Wishes) -> Result<(Agreement, Vec<u8>), HandshakeError> {
    let Offer { unique, max_readahead, flags: offered } =
        Offer::parse(request).ok_or(HandshakeError::Protocol)?;
    let needed = init::DO_READDIRPLUS | init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT | init::MAX_PAGES;
    if offered & needed != needed {
        return Err(HandshakeError::TooOld);
    }
    if wishes.passthrough == Passthrough::Required && offered & init::PASSTHROUGH == 0 {
        return Err(HandshakeError::NoPassthrough);
    }
    let mut flags = needed
        | init::ASYNC_READ
        | init::BIG_WRITES
        | init::PARALLEL_DIROPS
        | init::CACHE_SYMLINKS
        | init::INIT_EXT;
    if wishes.idmap {
        flags |= init::ALLOW_IDMAP;
    }
    if wishes.passthrough != Passthrough::Unwanted && wishes.store_depth < STACK_MAX {
        flags |= init::PASSTHROUGH;
    }
    flags &= offered;
    let passthrough = flags & init::PASSTHROUGH != 0;
    let out = InitOut {
        major: VERSION.0,
        minor: VERSION.1,
        max_readahead,
        flags: flags as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        // Every write is refused.
        max_write: 4096,
        time_gran: 1,
        max_pages: MAX_PAGES,
        map_alignment: 0,
        flags2: (flags >> 32) as u32,
        // One level is ours.
        max_stack_depth: if passthrough { wishes.store_depth + 1 } else { 0 },
        unused: [0; 6],
    };
    let len = (size_of::<OutHeader>() + size_of::<InitOut>()) as u32;
    let header = OutHeader { len, error: 0, unique };
    let agreement = Agreement {
        io: if passthrough { Io::Passthrough } else { Io::Cached },
        idmap: flags & init::ALLOW_IDMAP != 0,
        promised: wishes.promised,
    };
    Ok((agreement, [header.as_bytes(), out.as_bytes()].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(major: u32, flags: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [104u32, opcode::INIT, 7, 0, 0, 0, 0, 0, 0, 0, major, 45, 131_072] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend((flags as u32).to_ne_bytes());
        bytes.extend(((flags >> 32) as u32).to_ne_bytes());
        bytes.resize(104, 0);
        bytes
    }

    const WISHES: Wishes = Wishes {
        passthrough: Passthrough::Required,
        idmap: true,
        store_depth: 0,
        promised: Promised { absences: Lifetime::Limited, names: Lifetime::Limited },
    };

    fn told(reply: &[u8]) -> (u64, u32) {
        let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().unwrap());
        (u64::from(word(28)) | u64::from(word(48)) << 32, word(52))
    }

    #[test]
    fn a_new_kernel_gets_everything_that_was_wished_for() {
        let (agreement, reply) = agree(&request(7, u64::MAX), WISHES).unwrap();
        assert_eq!((agreement.io, agreement.idmap), (Io::Passthrough, true));
        let (flags, depth) = told(&reply);
        let both = init::PASSTHROUGH | init::ALLOW_IDMAP;
        assert!(flags & both == both);
        assert!(flags & (init::READDIRPLUS_AUTO | init::WRITEBACK_CACHE) == 0);
        assert_eq!((depth, reply.len(), reply[8]), (1, 80, 7));
    }

    #[test]
    fn passthrough_is_refused_and_idmapping_left_out_where_the_kernel_lacks_them() {
        let old = 0x7fff_ffff;
        assert!(matches!(agree(&request(7, old), WISHES), Err(HandshakeError::NoPassthrough)));
        let (agreement, reply) =
            agree(&request(7, old), Wishes { passthrough: Passthrough::IfOffered, ..WISHES }).unwrap();
        assert_eq!((agreement.io, agreement.idmap), (Io::Cached, false));
        assert_eq!(told(&reply).1, 0);
    }

    #[test]
    fn a_store_on_two_layers_leaves_no_room_for_passthrough() {
        let depth = |store_depth| {
            let (agreement, reply) = agree(&request(7, u64::MAX), Wishes { store_depth, ..WISHES }).unwrap();
            (agreement.io, told(&reply).1)
        };
        assert_eq!(depth(1), (Io::Passthrough, 2));
        assert_eq!(depth(2), (Io::Cached, 0));
    }

    #[test]
    fn what_was_once_told_for_ever_stays_so_until_it_is_forgotten() {
        let (prunes, grows, earlier) = (Promised::new(true), Promised::new(false), Promised::default());
        assert_eq!((prunes.after(prunes), prunes.after(grows), grows.after(prunes)), (prunes, grows, grows));
        assert_eq!(prunes.after(earlier), earlier);
        let written = r#"{"io":"cached","idmap":true,"absences":"asked"}"#;
        let read: Agreement = serde_json::from_str(written).unwrap();
        assert_eq!(read.promised, earlier);
    }

    #[test]
    fn what_is_no_init_or_too_old_is_refused() {
        assert!(matches!(agree(&[0; 104], WISHES), Err(HandshakeError::Protocol)));
        assert!(matches!(agree(&[], WISHES), Err(HandshakeError::Protocol)));
        assert!(matches!(agree(&request(8, u64::MAX), WISHES), Err(HandshakeError::Protocol)));
        assert!(matches!(agree(&request(7, init::ASYNC_READ), WISHES), Err(HandshakeError::TooOld)));
    }
}
