//! The root of a view: its attributes, and positions in its listing.
//!
//! Invariant: everything is derived from the closure. The host's store directory changes with every build.

use rustix::io::Errno;

use super::FsError;
use crate::view::backing::{Identity, Kind, POSITION_MAX, Stat};
use crate::view::trie::Members;

/// Entries before the members: `.` and `..`.
pub(super) const DOTS: u32 = 2;
/// Bits of a position that number the entry: 16 million members. The others, of 31, tell the switch.
const NUMBER_BITS: u32 = 24;
const NUMBERS: u32 = (1 << NUMBER_BITS) - 1;
/// The part of an epoch that a position holds.
pub(super) const EPOCHS: u32 = (1 << (31 - NUMBER_BITS)) - 1;

/// A position in the root's listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// The switch that made the set which is listed; [`EPOCHS`] of it survive.
    pub(super) epoch: u32,
    /// Of the next entry: `.`, `..`, then the ordinals of members.
    pub(super) number: u32,
}

impl Position {
    /// As the kernel keeps it.
    ///
    /// # Errors
    /// `EOVERFLOW` behind 16 million members.
    pub(super) fn pack(self) -> Result<u64, FsError> {
        match self.number {
            number @ ..=NUMBERS => Ok(u64::from((self.epoch & EPOCHS) << NUMBER_BITS | number)),
            _ => Err(FsError::Backing(Errno::OVERFLOW)),
        }
    }

    /// What [`Position::pack`] made.
    ///
    /// # Errors
    /// `ESTALE` for what no listing of this program has: earlier versions had wider ones.
    pub(super) fn unpack(offset: u64) -> Result<Self, FsError> {
        let offset = u32::try_from(offset).ok().filter(|at| u64::from(*at) <= POSITION_MAX);
        let offset = offset.ok_or(FsError::Backing(Errno::STALE))?;
        Ok(Self { epoch: offset >> NUMBER_BITS, number: offset & NUMBERS })
    }
}

/// Attributes of `.` and `..` in a listing, which nobody looks at.
pub(super) const DOT: Stat = Stat {
    kind: Kind::Directory,
    perm: 0o555,
    uid: 0,
    gid: 0,
    size: 0,
    blocks: 0,
    mtime: (1, 0),
    nlink: 2,
    linked: None,
    identity: Identity::Inode(0),
    settled: true,
};

/// Attributes of the root.
pub(super) fn stat(members: &Members) -> Stat {
    let entries = members.entries.len();
    Stat { size: entries as u64, nlink: u32::try_from(entries).unwrap_or(u32::MAX).saturating_add(2), ..DOT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_fit_into_31_bits_and_come_back() {
        for (epoch, number) in [(0, 0), (1, 0), (1, 2), (127, NUMBERS), (5, 1 << 20)] {
            let position = Position { epoch, number };
            let packed = position.pack().unwrap();
            assert!(packed <= POSITION_MAX);
            assert_eq!(Position::unpack(packed), Ok(position));
        }
        let far = Position { epoch: 128 + 3, number: 7 };
        assert_eq!(Position::unpack(far.pack().unwrap()), Ok(Position { epoch: 3, number: 7 }));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert_eq!(Position { epoch: 0, number: NUMBERS + 1 }.pack(), Err(FsError::Backing(Errno::OVERFLOW)));
        for offset in [POSITION_MAX + 1, 1 << 32 | 5, u64::MAX] {
            assert_eq!(Position::unpack(offset), Err(FsError::Backing(Errno::STALE)));
        }
    }
}
