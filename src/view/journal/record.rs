//! A record as bytes: see the layout in [`crate::view::journal`].
//!
//! Hard point: a kill may tear a record while another one lands behind it. Reading continues at the next byte from which on a record
//! checks out, and no name in a record can be taken for one.

use crate::view::backing::Identity;
use crate::view::trie::{NodeId, NodeRecord};

pub(super) const RECORD_HEADER: usize = 8;
const MARK: u8 = 0xA5;
const KIND_NODE: u8 = 1;
const KIND_BACKING: u8 = 2;
const KIND_BACKING_ENDED: u8 = 3;
const KIND_CACHED: u8 = 4;
const KIND_CACHED_ENDED: u8 = 5;
const KIND_NEXT: u8 = 6;
const KIND_MEMBER: u8 = 7;
const KIND_REPLACED: u8 = 8;
/// In place of nanoseconds: what stands before is an inode number.
const INODE: u32 = u32::MAX;
/// A payload is at most a node with a name of 1024 bytes (`FUSE_NAME_MAX`, Linux `fs/fuse/fuse_i.h`).
const PAYLOAD_MAX: usize = 16 + 1024;
/// No id is as large. So whoever chooses the names in a store cannot write a record into one: its id would have a NUL.
const ID_END: u64 = 1 << 56;
/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A node was handed out.
    Node(NodeRecord),
    /// A backing file was registered for a node with the kernel.
    Backing(NodeId, u32),
    /// A registration has ended.
    BackingEnded(NodeId, u32),
    /// A node is open and read through the server, in a mount where others are not.
    Cached(NodeId),
    /// It is no more.
    CachedEnded(NodeId),
    /// Ids below this one were handed out, though nothing may be known of them.
    Next(NodeId),
    /// What a member is on disk; whatever the kernel has cached of it is of this object.
    Member(NodeId, Identity),
    /// A member was replaced on disk: names in it have other nodes than those written before.
    Replaced(NodeId),
}

pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match record {
        Record::Node(node) => {
            let len = u16::try_from(16 + node.name.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&[KIND_NODE, MARK]);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&node.id.0.to_le_bytes());
            out.extend_from_slice(&node.parent.0.to_le_bytes());
            out.extend_from_slice(&node.name);
        }
        Record::Backing(id, number) => encode_backing(KIND_BACKING, *id, *number, out),
        Record::BackingEnded(id, number) => encode_backing(KIND_BACKING_ENDED, *id, *number, out),
        Record::Cached(id) => encode_backing(KIND_CACHED, *id, 0, out),
        Record::CachedEnded(id) => encode_backing(KIND_CACHED_ENDED, *id, 0, out),
        Record::Next(id) => encode_backing(KIND_NEXT, *id, 0, out),
        Record::Replaced(id) => encode_backing(KIND_REPLACED, *id, 0, out),
        Record::Member(id, identity) => {
            let (value, nanoseconds) = match *identity {
                Identity::Born((seconds, nanoseconds)) => (seconds.cast_unsigned(), nanoseconds),
                Identity::Inode(inode) => (inode, INODE),
            };
            out.extend_from_slice(&[KIND_MEMBER, MARK, 20, 0]);
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
            out.extend_from_slice(&nanoseconds.to_le_bytes());
        }
    }
    if let Some((place, rest)) = out.get_mut(start..).and_then(|r| r.split_first_chunk_mut::<4>()) {
        *place = crc32fast::hash(rest).to_le_bytes();
    }
}

fn encode_backing(kind: u8, id: NodeId, number: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, MARK, 12, 0]);
    out.extend_from_slice(&id.0.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
}

/// Decodes what is whole in `window`; returns how many bytes are done with. With `last`, nothing follows.
pub(super) fn decode(window: &[u8], last: bool, each: &mut impl FnMut(Record)) -> usize {
    let mut at = 0;
    while let Some(rest) = window.get(at..).filter(|rest| !rest.is_empty()) {
        match parse(rest) {
            Parsed::Whole(record, len) => match next_inside(rest, len) {
                Some(next) => at += next,
                None => {
                    each(record);
                    at += len;
                }
            },
            Parsed::Short if !last => return at,
            Parsed::Short | Parsed::Bad => at += 1,
        }
    }
    at
}

/// Where another record begins inside the one of `len` bytes that `bytes` begins with. That one was torn then, and the
/// first bytes of the other one happen to be those that it lacks.
fn next_inside(bytes: &[u8], len: usize) -> Option<usize> {
    let behind = bytes.get(len..).filter(|behind| !behind.is_empty())?;
    if !matches!(parse(behind), Parsed::Bad) {
        return None;
    }
    // A name is nothing of the kind: ids below `ID_END` have a NUL in them.
    (1..len).find(|at| bytes.get(*at..).is_some_and(|inside| matches!(parse(inside), Parsed::Whole(..))))
}

enum Parsed {
    Whole(Record, usize),
    /// The beginning of a record, as far as one can tell.
    Short,
    Bad,
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
        return Parsed::Short;
    };
    let [c0, c1, c2, c3, kind, mark, l0, l1] = *head;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    if mark != MARK || len > PAYLOAD_MAX || !(KIND_NODE..=KIND_REPLACED).contains(&kind) {
        return Parsed::Bad;
    }
    let Some(payload) = rest.get(..len) else {
        return Parsed::Short;
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind, mark, l0, l1]);
    hasher.update(payload);
    if hasher.finalize() != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Parsed::Bad;
    }
    let Some((id, payload)) = payload.split_first_chunk::<8>() else {
        return Parsed::Bad;
    };
    let id = NodeId(u64::from_le_bytes(*id));
    if id.0 >= ID_END {
        return Parsed::Bad;
    }
    let record = match kind {
        KIND_NODE => payload.split_first_chunk::<8>().map(|(parent, name)| {
            Record::Node(NodeRecord { id, parent: NodeId(u64::from_le_bytes(*parent)), name: name.into() })
        }),
        KIND_MEMBER => payload.split_first_chunk::<8>().and_then(|(value, nanoseconds)| {
            let value = u64::from_le_bytes(*value);
            let identity = match u32::from_le_bytes(nanoseconds.try_into().ok()?) {
                INODE => Identity::Inode(value),
                nanoseconds => Identity::Born((value.cast_signed(), nanoseconds)),
            };
            Some(Record::Member(id, identity))
        }),
        _ => <[u8; 4]>::try_from(payload).ok().map(u32::from_le_bytes).map(|number| match kind {
            KIND_BACKING => Record::Backing(id, number),
            KIND_BACKING_ENDED => Record::BackingEnded(id, number),
            KIND_CACHED => Record::Cached(id),
            KIND_CACHED_ENDED => Record::CachedEnded(id),
            KIND_REPLACED => Record::Replaced(id),
            _ => Record::Next(id),
        }),
    };
    record.map_or(Parsed::Bad, |record| Parsed::Whole(record, RECORD_HEADER + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever names a file in the store writes into the journal. No name, which has no NUL, is read as a record.
    #[test]
    fn no_name_is_a_record() {
        let id = NodeId(u64::from_le_bytes([1; 8]));
        for length in 0..600 {
            let mut forged = Vec::new();
            encode(
                &Record::Node(NodeRecord { id, parent: id, name: vec![b'x'; length].into() }),
                &mut forged,
            );
            let (head, crc) = (&forged[4..], &forged[..4]);
            assert!(
                head.contains(&0) || crc.contains(&0) || matches!(parse(&forged), Parsed::Bad),
                "{length}"
            );
        }
    }

    /// What cannot be the beginning of a record does not hold up those behind it.
    #[test]
    fn a_length_that_no_record_has_is_no_record() {
        let head = |kind, mark, len: usize| {
            let [low, high] = (len as u16).to_le_bytes();
            [0, 0, 0, 0, kind, mark, low, high]
        };
        for (head, short) in [
            (head(KIND_NODE, MARK, PAYLOAD_MAX), true),
            (head(KIND_REPLACED, MARK, 12), true),
            (head(KIND_NODE, MARK, 16 + 1024 + 1), false),
            (head(KIND_NODE, MARK ^ 1, 20), false),
            (head(KIND_NODE - 1, MARK, 20), false),
            (head(KIND_REPLACED + 1, MARK, 20), false),
        ] {
            assert_eq!(matches!(parse(&head), Parsed::Short), short, "{head:?}");
            assert_eq!(matches!(parse(&head), Parsed::Bad), !short, "{head:?}");
        }
    }
}
