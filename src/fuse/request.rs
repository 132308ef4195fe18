//! A request of the kernel, understood.
//!
//! The bytes may come from the kernel or from the ledger of an earlier server: they are believed no more than they have to be.

use zerocopy::FromBytes;

use super::abi::{BatchForgetIn, ForgetIn, ForgetOne, InHeader, LseekIn, OpenIn, ReadIn, ReleaseIn, opcode};

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Names it in its answer.
    pub unique: u64,
    /// The node that is meant.
    pub node: u64,
    /// Thread id of who asks, as the server's namespace has it; 0: the kernel, or somebody outside.
    pub pid: u32,
    /// What is asked for.
    pub operation: Operation<'a>,
}

/// The name of a directory entry: any bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(pub &'a [u8]);

impl std::fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'{}'", self.0.escape_ascii())
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Which node has this name?
    Lookup {
        /// The name.
        name: Name<'a>,
    },
    /// References were dropped. Has no answer.
    Forget {
        /// How many.
        lookups: u64,
    },
    /// References to several nodes were dropped. Has no answer.
    BatchForget(Forgets<'a>),
    /// Attributes.
    Getattr,
    /// Where does the link lead?
    Readlink,
    /// A file is opened.
    Open {
        /// Flags of open(2).
        flags: u32,
    },
    /// An open file is closed.
    Release {
        /// What the open was answered with.
        handle: u64,
    },
    /// A directory that was opened is closed.
    Releasedir,
    /// Bytes.
    Read {
        /// From where on.
        offset: u64,
        /// How many at most.
        size: u32,
    },
    /// Entries with attributes.
    Readdirplus {
        /// From which position on.
        offset: u64,
        /// How many bytes at most.
        size: u32,
    },
    /// Totals.
    Statfs,
    /// The next data or hole.
    Lseek {
        /// From where on.
        offset: u64,
        /// SEEK_DATA or SEEK_HOLE.
        whence: u32,
    },
    /// Dirty pages are written back.
    Write,
    /// Something would change.
    Change,
    /// The last mount of the connection has gone.
    Destroy,
    /// Answers a notification that this program never sends. Has no answer.
    NotifyReply,
    /// Something that this program leaves to the kernel, or does not know.
    Other,
    /// What follows the header is no request of its kind.
    Malformed,
}

/// What a [`Operation::BatchForget`] says, one after another.
#[derive(Debug, Clone, Copy)]
pub struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = ForgetOne;

    fn next(&mut self) -> Option<ForgetOne> {
        let (one, rest) = ForgetOne::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(one)
    }
}

impl<'a> Request<'a> {
    /// Understands `bytes`, which may be longer than the request. None: there is not even a header, and nobody to answer.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = InHeader::read_from_prefix(bytes).ok()?;
        let InHeader { len, opcode, unique, node, pid, .. } = header;
        let body = usize::try_from(len).ok().and_then(|len| bytes.get(size_of::<InHeader>()..len));
        let operation = body.and_then(|body| Operation::parse(opcode, body)).unwrap_or(Operation::Malformed);
        Some(Self { unique, node, pid, operation })
    }
}

impl<'a> Operation<'a> {
    fn parse(opcode: u32, body: &'a [u8]) -> Option<Self> {
        Some(match opcode {
            // Extensions may follow the name behind its end.
            opcode::LOOKUP => Self::Lookup { name: Name(body.split(|byte| *byte == 0).next()?) },
            opcode::FORGET => Self::Forget { lookups: argument::<ForgetIn>(body)?.lookups },
            opcode::BATCH_FORGET => {
                let (head, rest) = BatchForgetIn::read_from_prefix(body).ok()?;
                let bytes = usize::try_from(head.count).ok()?.checked_mul(size_of::<ForgetOne>())?;
                Self::BatchForget(Forgets(rest.get(..bytes)?))
            }
            opcode::GETATTR => Self::Getattr,
            opcode::READLINK => Self::Readlink,
            opcode::OPEN => Self::Open { flags: argument::<OpenIn>(body)?.flags },
            opcode::RELEASE => Self::Release { handle: argument::<ReleaseIn>(body)?.handle },
            opcode::RELEASEDIR => Self::Releasedir,
            opcode::READ => {
                let ReadIn { offset, size, .. } = argument(body)?;
                Self::Read { offset, size }
            }
            opcode::READDIRPLUS => {
                let ReadIn { offset, size, .. } = argument(body)?;
                Self::Readdirplus { offset, size }
            }
            opcode::STATFS => Self::Statfs,
            opcode::LSEEK => {
                let LseekIn { offset, whence, .. } = argument(body)?;
                Self::Lseek { offset, whence }
            }
            opcode::WRITE => Self::Write,
            opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::CREATE
            | opcode::TMPFILE
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::SETXATTR
            | opcode::REMOVEXATTR => Self::Change,
            opcode::DESTROY => Self::Destroy,
            opcode::NOTIFY_REPLY => Self::NotifyReply,
            _ => Self::Other,
        })
    }

    /// Whether the kernel waits for an answer.
    #[must_use]
    pub fn has_answer(&self) -> bool {
        !matches!(self, Self::Forget { .. } | Self::BatchForget(_) | Self::NotifyReply)
    }
}

fn argument<T: FromBytes>(body: &[u8]) -> Option<T> {
    T::read_from_prefix(body).ok().map(|(argument, _)| argument)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    fn bytes(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, unique: 6, node: 7, uid: 0, gid: 0, pid: 9, extensions: 0 };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn a_request_is_understood_whatever_lies_behind_it() {
        let mut all = bytes(opcode::LOOKUP, b"name\0");
        all.extend([0xff; 100]);
        let request = Request::parse(&all).unwrap();
        assert_eq!((request.unique, request.node, request.pid), (6, 7, 9));
        assert!(matches!(request.operation, Operation::Lookup { name: Name(b"name") }));

        let read = ReadIn {
            handle: 1,
            offset: 1 << 40,
            size: 4096,
            read_flags: 0,
            lock_owner: 0,
            flags: 0,
            padding: 0,
        };
        let all = bytes(opcode::READ, read.as_bytes());
        let request = Request::parse(&all).unwrap();
        assert!(matches!(request.operation, Operation::Read { offset: 0x100_0000_0000, size: 4096 }));
    }

    #[test]
    fn many_are_forgotten_at_once() {
        let ones = [ForgetOne { node: 2, lookups: 3 }, ForgetOne { node: 4, lookups: 5 }];
        let body = [BatchForgetIn { count: 2, padding: 0 }.as_bytes(), ones.as_bytes()].concat();
        let all = bytes(opcode::BATCH_FORGET, &body);
        let Operation::BatchForget(told) = Request::parse(&all).unwrap().operation else { panic!() };
        assert_eq!(told.collect::<Vec<_>>(), ones);
        let short = bytes(opcode::BATCH_FORGET, &body[..body.len() - 1]);
        assert!(matches!(Request::parse(&short).unwrap().operation, Operation::Malformed));
    }

    #[test]
    fn what_is_cut_off_is_malformed_and_still_has_an_id() {
        let mut all = bytes(opcode::READ, &[0; 40]);
        all[0] = 45;
        assert!(matches!(Request::parse(&all).unwrap().operation, Operation::Malformed));
        all[0] = 255;
        assert!(matches!(Request::parse(&all).unwrap().operation, Operation::Malformed));
        all[0] = 3;
        assert!(matches!(Request::parse(&all).unwrap().operation, Operation::Malformed));
        assert!(Request::parse(&all[..39]).is_none());
    }

    proptest! {
        /// An earlier server's memory may hold anything.
        #[test]
        fn no_bytes_make_it_panic(opcode in 0_u32..60, len in any::<u32>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut all = bytes(opcode, &body);
            let _whole = Request::parse(&all);
            all[..4].copy_from_slice(&len.to_ne_bytes());
            let _other = Request::parse(&all);
            let _tail = Request::parse(&body);
        }
    }
}
