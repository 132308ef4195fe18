//! The node journal: records in any order, whole or damaged, and what a server answers that resumes from them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use nix_store_fs::server::open_journal;
use nix_store_fs::values::StorePath;
use nix_store_fs::view::backing::Identity;
use nix_store_fs::view::journal::{Home, Journal, Record};
use nix_store_fs::view::trie::{Kept, NodeId, NodeRecord, PathTrie, ROOT};
use nix_store_fs::view::{FsError, Registrations, ServedView};

use crate::bytes::Bytes;
use crate::world::{MEMBERS, NAMES, WORLD, view};

/// Ids that records are about: few, so that they meet.
const IDS: u64 = 40;
/// Bytes of a record of a node, without its name.
const NODE: usize = 24;
/// `FUSE_NAME_MAX` of Linux `fs/fuse/fuse_i.h`.
const NAME_MAX: usize = 1024;

type Nodes = BTreeMap<u64, (u64, Vec<u8>)>;

fn path() -> &'static PathBuf {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| WORLD.dir.path().join("nodes"));
    &PATH
}

fn record(bytes: &mut Bytes<'_>) -> Record {
    let kind = bytes.byte();
    let id = NodeId(u64::from(bytes.byte()) % IDS);
    let number = u32::from(bytes.byte());
    match kind % 16 {
        0 => Record::Backing(id, number),
        1 => Record::BackingEnded(id, number),
        2 => Record::Cached(id),
        3 => Record::CachedEnded(id),
        4 => Record::Next(if number > 0 { id } else { NodeId(bytes.long() >> 8) }),
        5 => Record::Member(id, Identity::Inode(number.into())),
        6 => Record::Member(id, Identity::Born((number.into(), number))),
        7 => Record::Replaced(id),
        8 => {
            let name = bytes.short().into();
            Record::Node(NodeRecord { id: NodeId(bytes.long() >> 8), parent: NodeId(bytes.long()), name })
        }
        9..12 => Record::Node(NodeRecord { id, parent: ROOT, name: bytes.pick(&MEMBERS).as_bytes().into() }),
        _ => {
            let name = bytes.pick(&NAMES).as_bytes().into();
            Record::Node(NodeRecord { id, parent: NodeId(number.into()), name })
        }
    }
}

/// What [`PathTrie::restore`] says, written down once more.
fn model(records: &[Record]) -> Nodes {
    let is_name = |name: &[u8]| {
        !matches!(name, b"" | b"." | b"..")
            && name.len() <= NAME_MAX
            && !name.contains(&b'/')
            && !name.contains(&0)
    };
    let is_member = |name: &[u8]| str::from_utf8(name).is_ok_and(|name| StorePath::new(name).is_ok());
    let mut nodes = Nodes::new();
    for record in records {
        let Record::Node(NodeRecord { id: NodeId(id), parent: NodeId(parent), name }) = record else {
            continue;
        };
        let placed = match parent {
            1 => *id > 1 && is_member(name),
            _ => parent < id && nodes.contains_key(parent) && is_name(name),
        };
        if placed && !nodes.contains_key(id) {
            nodes.insert(*id, (*parent, name.to_vec()));
        }
    }
    nodes
}

fn nodes_of(trie: &PathTrie) -> Nodes {
    let mut nodes = Nodes::new();
    trie.for_each(|kept| {
        if let Kept::Node { id, parent, name } = kept {
            assert!(nodes.insert(id.0, (parent.0, name.to_vec())).is_none(), "{id:?} is kept twice");
        }
    });
    assert!(nodes.len() <= trie.len());
    nodes
}

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.byte();
    // Whole records can be compared with the model.
    let expected = match how % 4 {
        0 => {
            std::fs::write(path(), bytes.0).unwrap();
            None
        }
        kind => {
            let mut records = Vec::new();
            let (at, by) = (bytes.half(), bytes.byte());
            while !bytes.is_empty() && records.len() < 300 {
                records.push(record(&mut bytes));
            }
            let journal = Journal::create(path()).unwrap();
            for some in records.chunks(3) {
                journal.append(some).unwrap();
            }
            match kind {
                1 => {
                    damage(at, by);
                    None
                }
                _ => Some(records),
            }
        }
    };
    let size = std::fs::metadata(path()).unwrap().len() as usize;
    let trie = Arc::new(PathTrie::new());
    let registrations = Arc::new(Registrations::new(7));
    let mut members = Vec::new();
    let home = Home::open(path()).unwrap();
    let Ok(journal) = open_journal(home, &trie, Some(&registrations), &mut members) else {
        assert!(expected.is_none(), "whole records are refused");
        assert!(trie.is_empty());
        return;
    };
    let nodes = nodes_of(&trie);
    assert!(nodes.len() * NODE <= size, "{} nodes of {size} bytes", nodes.len());
    if let Some(records) = expected {
        let model = model(&records);
        assert_eq!(model.len(), trie.len());
        for (id, (parent, name)) in &model {
            let record = trie.record(NodeId(*id)).expect("a node that was written");
            assert_eq!((record.parent.0, &*record.name), (*parent, &name[..]));
        }
        // Left out is only what has no name any more.
        let named = |id: &u64| {
            model.get(id).is_some_and(|(parent, name)| trie.find(NodeId(*parent), name) == Some(NodeId(*id)))
        };
        let lost = model.keys().find(|id| {
            !nodes.contains_key(id)
                && std::iter::successors(Some(**id), |id| model.get(id).map(|n| n.0))
                    .take_while(|id| *id != ROOT.0)
                    .all(|id| named(&id))
        });
        assert_eq!(lost, None, "a node with a path of names is left out");
    }
    assert!(nodes.keys().all(|id| *id < trie.next().0), "an id would be given twice");
    again(&trie, &nodes);

    let view = ServedView::new(trie, WORLD.backing(), Some(journal), Some(registrations));
    members.into_iter().for_each(|(member, identity)| view.restore_member(member, identity));
    serve(&view, &nodes);
}

/// One byte is another one, or the end is missing.
fn damage(at: u16, by: u8) {
    let mut whole = std::fs::read(path()).unwrap();
    let at = usize::from(at) % whole.len();
    match by {
        0 => whole.truncate(at),
        _ => whole[at] ^= by,
    }
    std::fs::write(path(), whole).unwrap();
}

/// What a rewritten journal holds restores the same, but for what the kernel had forgotten: see [`PathTrie::for_each`].
fn again(trie: &PathTrie, nodes: &Nodes) {
    let second = PathTrie::new();
    trie.for_each(|kept| match kept {
        Kept::Node { id, parent, name } => second.restore(&NodeRecord { id, parent, name: name.into() }),
        Kept::Replaced(member) => drop(second.detach(member)),
    });
    assert_eq!(nodes_of(&second), *nodes);
    for (parent, name) in nodes.values() {
        let found = trie.find(NodeId(*parent), name);
        assert_eq!(second.find(NodeId(*parent), name), found, "{:?} in {parent}", name.escape_ascii());
    }
}

/// Whatever was restored, a name leads to what has it in the store, and no node to anything else.
fn serve(served: &ServedView, nodes: &Nodes) {
    let shown = view(0b1111);
    let fresh = served.trie().prepare(&shown);
    served.record(&fresh.into_iter().map(Record::Node).collect::<Vec<_>>());
    served.trie().switch(&shown, 3);
    for member in MEMBERS {
        let node = served.lookup(ROOT, member.as_bytes()).unwrap();
        assert_eq!(served.trie().path(node.id).as_deref(), Some(member.as_bytes()));
        for name in NAMES {
            let below = served.lookup(node.id, name.as_bytes());
            let real = WORLD.real(format!("{member}/{name}").as_bytes());
            let is_plain = !name.contains('/') && !matches!(name, "" | "." | "..");
            match below {
                Ok(below) => {
                    let real = real.unwrap().symlink_metadata().unwrap();
                    assert!(is_plain, "{name:?} was found");
                    assert!(real.is_dir() || below.stat.size == real.len());
                    assert!(below.id.0 < served.trie().next().0);
                }
                Err(FsError::BadName) => assert!(!is_plain),
                Err(_) => assert!(real.is_none(), "{member}/{name} is not found"),
            }
        }
    }
    let mut buffer = vec![0; 100_000];
    for id in nodes.keys().map(|id| NodeId(*id)) {
        let path = served.trie().path(id).expect("a restored node has a path");
        let real = WORLD.real(&path);
        assert_eq!(served.getattr(id).is_ok(), real.is_some(), "{real:?}");
        if let Ok(read) = served.read(id, 0, &mut buffer) {
            assert_eq!(buffer[..read.len], std::fs::read(real.unwrap()).unwrap()[..]);
        }
        let _ = served.readlink(id);
        let _ = served.list(id, 0, |_| true);
    }
}
