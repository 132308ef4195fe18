//! What a listing answers: the names of a directory, each with what the kernel is told of its node.
//!
//! Invariant: whatever names a node to the kernel has been written to the journal before the listing is answered, and what
//! does not fit into the answer is not counted.
//!
//! Hard point: a position in the root's listing is the ordinal of a member among all that this mount ever had, so it means
//! the same after a reload and in the next server. A listing that spans a reload continues with the set that it began with:
//! see [`Position`]. Of members that are not shown any more it tells the names and no nodes, or the listing would bring back
//! what the reload has invalidated.

use std::sync::Arc;

use super::{FsError, Node, ServedView};
use crate::view::backing::{At, BackingError, DirEntry};
use crate::view::journal::Record;
use crate::view::root::{DOT, DOTS, EPOCHS, Position};
use crate::view::trie::{NodeId, ROOT};

/// One entry of a listing.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What it names; the directory itself if it is not known what.
    pub node: Node,
    /// Its name.
    pub name: &'a [u8],
    /// The position after it.
    pub next: u64,
    /// What the kernel is told of its node.
    pub told: Told,
    /// Whether the kernel knew nothing of the node before. Of one that it knows somebody may use the name, also as a mount point.
    pub fresh: bool,
}

/// What a listing tells the kernel of the node that an entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The node, and that it may cache it.
    Lasting,
    /// The node as it is now.
    Now,
    /// Nothing: the name is shown no more, but for a listing that began earlier.
    Nothing,
    /// Nothing, not even of which kind it is. A look-up says why.
    Unknown,
}

impl Told {
    fn of(lasting: bool) -> Self {
        if lasting { Self::Lasting } else { Self::Now }
    }
}

impl ServedView {
    /// Lists the directory `id` from `offset` on until `each` returns false: then the entry was not taken. Returns
    /// whether the kernel may cache the listing.
    ///
    /// # Errors
    /// [`FsError::UnknownNode`], [`FsError::AbsentNow`] or the backing store's, if no entry was taken: otherwise the
    /// kernel asks on behind the last one, and gets the error then.
    pub fn list(
        &self,
        id: NodeId,
        offset: u64,
        mut each: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<bool, FsError> {
        if id == ROOT {
            return self.list_root(offset, each);
        }
        let path = self.trie.path(id).ok_or(FsError::UnknownNode)?;
        let parent = self.trie.parent(id).ok_or(FsError::UnknownNode)?;
        if !self.trie.is_shown(id) {
            return Err(FsError::AbsentNow);
        }
        self.usage.touch(&path);
        let mut records = Vec::new();
        let replaced = self.on_disk.replaced();
        let answer = self.backing.list(id, &path, offset, |entry| {
            let at = match entry.at {
                At::Object(stat) => At::Object(self.steady(replaced, stat)),
                at => at,
            };
            self.list_entry(id, parent, DirEntry { at, ..entry }, &mut records, &mut each)
        });
        self.record(&records);
        match answer {
            Ok(settled) => Ok(settled && self.on_disk.replaced() == replaced),
            Err(BackingError::Absent { .. }) => {
                self.top(&path)?;
                Err(FsError::AbsentNow)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn list_entry(
        &self,
        id: NodeId,
        parent: NodeId,
        entry: DirEntry<'_>,
        records: &mut Vec<Record>,
        each: &mut impl FnMut(Entry<'_>) -> bool,
    ) -> bool {
        let DirEntry { name, next, at } = entry;
        let stat = match at {
            At::Object(stat) => stat,
            // Only kind and inode number are looked at.
            At::Dot => {
                let id = if name == b"." { id } else { parent };
                return each(Entry {
                    node: Node { id, stat: DOT },
                    name,
                    next,
                    told: Told::Lasting,
                    fresh: false,
                });
            }
            At::Mount => {
                return each(Entry {
                    node: Node { id, stat: DOT },
                    name,
                    next,
                    told: Told::Unknown,
                    fresh: false,
                });
            }
        };
        let Some(entered) = self.enter(id, name, stat) else { return false };
        let node = Node { id: entered.id, stat };
        let told = Told::of(stat.settled);
        if !each(Entry { node, name, next, told, fresh: entered.fresh }) {
            self.forget(entered.id, 1);
            return false;
        }
        if entered.unrecorded {
            records.extend(self.trie.record(entered.id).map(Record::Node));
        }
        true
    }

    fn list_root(&self, offset: u64, mut each: impl FnMut(Entry<'_>) -> bool) -> Result<bool, FsError> {
        let present = self.trie.members();
        let Position { epoch, number: from } = Position::unpack(offset)?;
        let begun = if offset == 0 { None } else { self.trie.members_of(|e| e & EPOCHS == epoch) };
        let members = begun.unwrap_or_else(|| present.clone());
        let after = |number: u32| Position { epoch: members.epoch, number: number.saturating_add(1) }.pack();
        let (mut given, mut complete) = (0, true);
        for (at, name) in (0..).zip([&b"."[..], b".."]).skip(from as usize) {
            let next = after(at)?;
            if !each(Entry {
                node: Node { id: ROOT, stat: DOT },
                name,
                next,
                told: Told::Lasting,
                fresh: false,
            }) {
                return Ok(true);
            }
            given += 1;
        }
        for (ordinal, name, id) in members.from_ordinal(from.saturating_sub(DOTS)) {
            let name = name.as_str().as_bytes();
            let stat = match self.member(id, name) {
                Ok(stat) => stat,
                Err(FsError::AbsentNow) => {
                    complete = false;
                    continue;
                }
                Err(_) if given > 0 => break,
                Err(error) => return Err(error),
            };
            let shown = Arc::ptr_eq(&members, &present) || present.find(name).is_some();
            let told = if shown { Told::of(stat.settled) } else { Told::Nothing };
            let next = after(ordinal.saturating_add(DOTS))?;
            if !each(Entry { node: Node { id, stat }, name, next, told, fresh: false }) {
                break;
            }
            given += 1;
        }
        Ok(complete)
    }
}
