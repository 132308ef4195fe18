//! The trie against a model of plain maps, with generated histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn member(n: u32) -> StorePath {
    StorePath::new(&format!("{n:032}-m{n}")).unwrap()
}

fn view(members: &BTreeSet<u32>) -> View {
    members.iter().map(|n| (member(*n), u64::from(*n))).collect()
}

/// The trie of the next server.
fn restored(trie: &PathTrie) -> PathTrie {
    let next = PathTrie::new();
    trie.for_each(|kept| match kept {
        Kept::Node { id, parent, name } => next.restore(&NodeRecord { id, parent, name: name.into() }),
        Kept::Replaced(member) => drop(next.detach(member)),
    });
    next
}

#[derive(Debug, Clone)]
enum Step {
    Switch(BTreeSet<u32>),
    Lookup { parent: usize, name: u8 },
    Forget { node: usize, all: bool },
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => proptest::collection::btree_set(0u32..6, 0..6).prop_map(Step::Switch),
        8 => (0usize..64, 0u8..6).prop_map(|(parent, name)| Step::Lookup { parent, name }),
        3 => (0usize..64, any::<bool>()).prop_map(|(node, all)| Step::Forget { node, all }),
        1 => Just(Step::Resume),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A node as the model sees it: where it is, how often it was told, and whether it outlives being forgotten.
#[derive(Debug, Clone)]
struct Known {
    path: Vec<u8>,
    told: u64,
    pinned: bool,
}

proptest! {
    /// Whatever happened before: an id means one path for ever, a path has one id while the kernel knows it,
    /// the root shows the last view and nothing else, and a restored trie answers as the one before it.
    #[test]
    fn agrees_with_a_model(history in steps()) {
        let mut trie = PathTrie::new();
        let mut model: BTreeMap<NodeId, Known> = BTreeMap::new();
        let mut ever: BTreeMap<NodeId, Vec<u8>> = BTreeMap::new();
        let mut shown = BTreeSet::new();
        for step in history {
            match step {
                Step::Switch(set) => {
                    let switch = trie.switch(&view(&set), 0);
                    let names = |s: BTreeSet<u32>| s.into_iter().map(member).collect::<Vec<_>>();
                    prop_assert_eq!(switch.added, names(&set - &shown));
                    prop_assert_eq!(switch.removed, names(&shown - &set));
                    for record in switch.fresh {
                        prop_assert!(ever.insert(record.id, record.name.to_vec()).is_none());
                        model.insert(record.id, Known { path: record.name.to_vec(), told: 0, pinned: true });
                    }
                    shown = set;
                }
                Step::Lookup { parent, name } => {
                    // Only in what the kernel holds: it cannot ask about a bridge.
                    let held: Vec<_> = model.iter().filter(|(_, k)| k.told > 0 || k.pinned).collect();
                    let Some((parent, path)) = held.get(parent % held.len().max(1)).map(|(i, k)| (**i, k.path.clone()))
                    else { continue };
                    let entered = trie.enter(parent, &[b'a' + name]).unwrap();
                    let path = [&path, &b"/"[..], &[b'a' + name]].concat();
                    let known = model.iter().find(|(_, k)| k.path == path).map(|(i, _)| *i);
                    prop_assert!(known.is_some() || entered.unrecorded);
                    prop_assert_eq!(known.unwrap_or(entered.id), entered.id);
                    trie.recorded(entered.id);
                    if known.is_none() {
                        prop_assert!(ever.insert(entered.id, path.clone()).is_none(), "an id was given twice");
                    }
                    model.entry(entered.id).or_insert(Known { path, told: 0, pinned: false }).told += 1;
                }
                Step::Forget { node, all } => {
                    let Some((id, known)) = model.iter().nth(node % model.len().max(1)).map(|(i, k)| (*i, k.clone()))
                    else { continue };
                    // In any order: a directory may be forgotten before what is known inside.
                    if known.told == 0 { continue }
                    let count = if all { known.told } else { 1 };
                    model.get_mut(&id).unwrap().told -= count;
                    let mut expected = BTreeSet::new();
                    while let Some(unused) = model.iter().find(|(_, k)| k.told == 0 && !k.pinned && {
                        let prefix = [&k.path, &b"/"[..]].concat();
                        !model.values().any(|other| other.path.starts_with(&prefix))
                    }).map(|(id, _)| *id) {
                        model.remove(&unused);
                        expected.insert(unused);
                    }
                    prop_assert_eq!(trie.forget(id, count).into_iter().collect::<BTreeSet<_>>(), expected);
                }
                Step::Resume => {
                    let next = PathTrie::new();
                    trie.for_each(|kept| match kept {
                        Kept::Node { id, parent, name } => next.restore(&NodeRecord { id, parent, name: name.into() }),
                        Kept::Replaced(_) => unreachable!("nothing was replaced"),
                    });
                    prop_assert!(next.switch(&view(&shown), 0).fresh.is_empty());
                    trie = next;
                    for known in model.values_mut() {
                        known.pinned = true;
                    }
                    // Ids above the last one handed out may be given again: nobody knows them.
                    let last = model.keys().next_back().copied().unwrap_or(ROOT);
                    ever.retain(|id, _| *id <= last);
                }
            }
            prop_assert_eq!(trie.len(), model.len());
            for (id, known) in &model {
                prop_assert_eq!(trie.path(*id).unwrap(), known.path.clone());
                let top = known.path.split(|b| *b == b'/').next().unwrap();
                prop_assert_eq!(trie.is_shown(*id), shown.iter().any(|n| member(*n).as_str().as_bytes() == top));
            }
            let members = trie.members();
            let listed: Vec<_> = members.entries.iter().map(|(name, _)| name.clone()).collect();
            prop_assert_eq!(listed, shown.iter().map(|n| member(*n)).collect::<Vec<_>>());
            for n in 0..6 {
                prop_assert_eq!(members.find(member(n).as_str().as_bytes()).is_some(), shown.contains(&n));
            }
        }
    }
}

/// Names in a member that was replaced get other nodes; the ones that they had keep their paths, and a restored trie
/// tells the two apart as well.
#[test]
fn what_is_in_a_replaced_member_is_handed_out_again() {
    let mut trie = PathTrie::new();
    trie.switch(&view(&[1, 2].into()), 0);
    let [top, other] = [0, 1].map(|at| trie.members().entries[at].1);
    let enter = |trie: &PathTrie, parent, name: &[u8]| trie.enter(parent, name).unwrap().id;
    let (dir, beside) = (enter(&trie, top, b"d"), enter(&trie, other, b"d"));
    let file = enter(&trie, dir, b"f");
    let mut detached: Vec<_> = trie.detach(top).into_iter().map(|node| (node.id, node.parent)).collect();
    detached.sort();
    assert_eq!(detached, [(dir, top), (file, dir)]);
    let path = [member(1).as_str().as_bytes(), b"/d/f"].concat();
    let new_dir = enter(&trie, top, b"d");
    let new_file = enter(&trie, new_dir, b"f");
    for round in 0..2 {
        assert_eq!(
            (trie.path(file), trie.path(new_file)),
            (Some(path.clone()), Some(path.clone())),
            "{round}"
        );
        assert!(new_dir != dir && new_file != file);
        assert_eq!((trie.find(top, b"d"), trie.find(new_dir, b"f")), (Some(new_dir), Some(new_file)));
        assert_eq!((trie.find(other, b"d"), trie.find(dir, b"f")), (Some(beside), None));
        trie = restored(&trie);
    }
}

/// Whoever holds a node of a replaced member gives it back as any other.
#[test]
fn a_detached_node_goes_when_it_is_forgotten() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1].into()), 0);
    let top = trie.members().entries[0].1;
    let dir = trie.enter(top, b"d").unwrap().id;
    let file = trie.enter(dir, b"f").unwrap().id;
    trie.detach(top);
    let new = trie.enter(top, b"d").unwrap().id;
    assert_eq!(trie.forget(dir, 1), []);
    assert_eq!(trie.forget(file, 1), [file, dir]);
    assert_eq!((trie.find(top, b"d"), trie.len()), (Some(new), 2));
}

#[test]
fn a_listing_begun_before_a_switch_can_be_finished() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1, 2].into()), 0);
    let before = trie.members();
    trie.switch(&view(&[3].into()), 0);
    assert_eq!(trie.members_of(|epoch| epoch == before.epoch).unwrap().entries, before.entries);
    assert_ne!(trie.members().epoch, before.epoch);
}

#[test]
fn the_epoch_of_an_earlier_server_is_gone_on_from() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1].into()), 41);
    assert_eq!(trie.members().epoch, 41);
}

#[test]
fn forgotten_nodes_give_their_memory_back() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1].into()), 0);
    let top = trie.members().entries[0].1;
    let ids: Vec<_> = (0..100_000u32).map(|n| trie.enter(top, &n.to_le_bytes()).unwrap().id).collect();
    for id in ids {
        assert_eq!(trie.forget(id, 1), [id]);
    }
    assert_eq!(trie.len(), 1);
    let nodes = trie.nodes.read();
    assert_eq!(nodes.chunks.len(), 1);
    assert!(nodes.index.capacity() < 2 * INDEX_MIN);
}

#[test]
fn an_id_never_handed_out_is_nothing() {
    let trie = PathTrie::new();
    for id in [0, 2, 4096, u64::MAX] {
        assert_eq!(
            (trie.path(NodeId(id)), trie.enter(NodeId(id), b"a"), trie.forget(NodeId(id), 1)),
            (None, None, Vec::new())
        );
    }
}

#[test]
fn ids_that_may_be_known_to_the_kernel_alone_are_not_given_again() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1].into()), 0);
    let top = trie.members().entries[0].1;
    trie.skip(1 << 40);
    let id = trie.enter(top, b"a").unwrap().id;
    assert!(id.0 > 1 << 40);
    assert_eq!(trie.path(id).unwrap(), [member(1).as_str().as_bytes(), b"/a"].concat());
    assert_eq!(trie.nodes.read().chunks.len(), 2, "ids far apart cost no memory in between");
}

#[test]
fn an_index_is_made_smaller_when_three_quarters_of_a_large_one_are_free() {
    for (len, capacity, sparse) in [
        (0, 0, false),
        (0, INDEX_MIN, false),
        (0, INDEX_MIN + 1, true),
        (299, 1200, true),
        (300, 1200, false),
        (301, 1200, false),
        (1200, 1200, false),
    ] {
        assert_eq!(is_sparse(len, capacity), sparse, "{len} of {capacity}");
    }
}

/// A chunk that takes no more names keeps no room for them.
#[test]
fn a_full_chunk_holds_its_names_and_nothing_else() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1].into()), 0);
    let top = trie.members().entries[0].1;
    for n in 0..3 * CHUNK {
        trie.enter(top, format!("the name of file {n}").as_bytes()).unwrap();
    }
    let nodes = trie.nodes.read();
    for number in 0..3 {
        let chunk = &nodes.chunks[&number];
        let names: usize = chunk.iter().map(|(_, known)| known.name.len()).sum();
        assert!(names > 16 * 1000 && chunk.bytes().1 == names, "{number}");
    }
}

/// Whoever is told of a node that no journal is known to hold writes it down.
#[test]
fn a_node_is_written_down_until_that_was_done() {
    let trie = PathTrie::new();
    trie.switch(&view(&[1].into()), 0);
    let top = trie.members().entries[0].1;
    let id = trie.enter(top, b"a").unwrap().id;
    assert_eq!(trie.enter(top, b"a"), Some(Entered { id, unrecorded: true, fresh: false }));
    assert_eq!(trie.count(id), Some(Entered { id, unrecorded: true, fresh: false }));
    trie.recorded(id);
    assert_eq!(trie.enter(top, b"a"), Some(Entered { id, unrecorded: false, fresh: false }));
    assert_eq!(
        trie.count(top),
        Some(Entered { id: top, unrecorded: false, fresh: false }),
        "members are written down first"
    );
    let next = PathTrie::new();
    next.restore(&trie.record(top).unwrap());
    next.restore(&trie.record(id).unwrap());
    assert_eq!(
        next.enter(top, b"a"),
        Some(Entered { id, unrecorded: false, fresh: false }),
        "it comes from a journal"
    );
}

/// A journal may hold a node twice, a path with several nodes, in any order, and damaged ids.
#[test]
fn the_last_node_of_a_path_is_the_one_that_is_restored() {
    let node = |id, name: &[u8]| NodeRecord { id: NodeId(id), parent: NodeId(2), name: name.into() };
    let trie = PathTrie::new();
    trie.restore(&NodeRecord { id: NodeId(2), parent: ROOT, name: member(1).as_str().as_bytes().into() });
    for id in [5, 9, 7, 9, 5] {
        trie.restore(&node(id, b"a"));
    }
    trie.restore(&node(9, b"another name"));
    trie.restore(&NodeRecord { id: ROOT, parent: ROOT, name: (*b"x").into() });
    trie.restore(&NodeRecord { id: NodeId(0), parent: ROOT, name: (*b"y").into() });
    assert_eq!((trie.len(), trie.next()), (4, NodeId(10)));
    assert_eq!(trie.nodes.read().index.len(), 2);
    assert_eq!(
        (trie.find(NodeId(2), b"a"), trie.find(ROOT, b"x"), trie.path(ROOT)),
        (Some(NodeId(9)), None, Some(Vec::new()))
    );
    let path = [member(1).as_str().as_bytes(), b"/a"].concat();
    for id in [5, 7, 9] {
        assert_eq!(trie.path(NodeId(id)), Some(path.clone()));
    }
}

/// A damaged journal: what cannot have been handed out is not restored, and its id is not given again either.
#[test]
fn what_no_server_wrote_is_not_restored() {
    let top = member(1).as_str().as_bytes().to_vec();
    let long = [b'n'; 70_000];
    for (id, parent, name, why) in [
        (10, 10, &b"a"[..], "its own parent"),
        (10, 11, b"a", "a parent that is younger"),
        (10, 9, b"a", "a parent that is unknown"),
        (10, 0, b"a", "no parent"),
        (10, u64::MAX, b"a", "no parent"),
        (10, 2, b"", "no name"),
        (10, 2, b".", "the directory itself"),
        (10, 2, b"..", "the directory above"),
        (10, 2, b"a/b", "two names"),
        (10, 2, b"/", "two names"),
        (10, 2, b"../x", "two names"),
        (10, 2, b"a\0", "a NUL"),
        (10, 2, &long, "a name that is too long"),
        (10, 1, b".links", "no store path"),
        (10, 1, b"\xff", "no store path"),
        (10, 1, b"..", "no store path"),
    ] {
        let trie = PathTrie::new();
        trie.restore(&NodeRecord { id: NodeId(2), parent: ROOT, name: top.clone().into() });
        trie.restore(&NodeRecord { id: NodeId(id), parent: NodeId(parent), name: name.into() });
        assert_eq!((trie.len(), trie.record(NodeId(id))), (1, None), "{why}");
        assert_eq!((trie.path(NodeId(id)), trie.member(NodeId(id))), (None, None), "{why}");
        trie.switch(&view(&[1].into()), 0);
        assert!(trie.enter(NodeId(2), b"a").unwrap().id > NodeId(id), "{why}");
    }
}

proptest! {
    /// Whatever records there are, in whatever order: every path that can be given consists of names and begins with a store
    /// path, nothing hangs, and no id is given again.
    #[test]
    fn any_records_restore_a_trie_that_answers(
        records in proptest::collection::vec((0u64..40, 0u64..40, 0usize..9, 0u8..20), 0..120),
        used in proptest::collection::vec(0u64..40, 0..40),
    ) {
        let names: [&[u8]; 7] = [b"a", b"b", b"", b".", b"..", b"a/b", b"a\0b"];
        let trie = PathTrie::new();
        for (id, parent, name, what) in &records {
            let member = member(*name as u32 % 2);
            let name = names.get(*name).copied().unwrap_or(member.as_str().as_bytes());
            match what {
                0 => drop(trie.detach(NodeId(*id))),
                1 => trie.restore_next(NodeId(*id)),
                _ => trie.restore(&NodeRecord { id: NodeId(*id), parent: NodeId(*parent), name: name.into() }),
            }
        }
        let next = restored(&trie);
        trie.switch(&view(&[0, 1].into()), 0);
        for id in (0..100).map(NodeId) {
            let Some(path) = trie.path(id).filter(|_| id != ROOT) else { continue };
            let mut parts = path.split(|b| *b == b'/');
            prop_assert!(str::from_utf8(parts.next().unwrap()).is_ok_and(|top| StorePath::new(top).is_ok()));
            prop_assert!(parts.all(|part| part == b"a" || part == b"b" || StorePath::new(str::from_utf8(part).unwrap()).is_ok()));
            prop_assert!(trie.member(id).is_some() && trie.parent(id).unwrap() < id);
            prop_assert!(next.path(id).is_none_or(|again| again == path));
        }
        for id in &used {
            if let Some(entered) = trie.enter(NodeId(*id), b"new") {
                prop_assert!(records.iter().all(|(id, _, _, what)| *what == 0 || *id <= entered.id.0));
                trie.forget(entered.id, 1);
            }
        }
    }
}

/// What restores a trie names every node once, wherever it lies, with one replaced member among others.
#[test]
fn many_nodes_of_a_replaced_member_are_told_once_each() {
    let trie = PathTrie::new();
    assert!(trie.is_empty());
    trie.switch(&view(&[1, 2].into()), 0);
    assert!(!trie.is_empty());
    let [top, other] = [0, 1].map(|at| trie.members().entries[at].1);
    let mut old = BTreeSet::new();
    for n in 0..2 * CHUNK {
        let name = format!("{n}");
        old.insert(trie.enter(top, name.as_bytes()).unwrap().id);
        trie.enter(other, name.as_bytes()).unwrap();
    }
    assert_eq!(trie.detach(top).into_iter().map(|node| node.id).collect::<BTreeSet<_>>(), old);
    let new: BTreeSet<_> = (0..10).map(|n| trie.enter(top, format!("{n}").as_bytes()).unwrap().id).collect();
    let mut told = Vec::new();
    trie.for_each(|kept| match kept {
        Kept::Node { id, .. } => told.push(id),
        Kept::Replaced(member) => assert_eq!(member, top),
    });
    let next = restored(&trie);
    assert_eq!((told.len(), told.iter().collect::<BTreeSet<_>>().len()), (trie.len(), trie.len()));
    assert_eq!((next.len(), next.next()), (trie.len(), trie.next()));
    for id in told {
        assert_eq!(next.path(id), trie.path(id));
        assert_eq!(next.record(id), trie.record(id));
    }
    assert_eq!(
        (0..10).map(|n| next.find(top, format!("{n}").as_bytes()).unwrap()).collect::<BTreeSet<_>>(),
        new
    );
    assert_eq!(next.find(top, b"11"), None);
    assert!(next.find(other, b"11").is_some());
}

/// A server that knows too little of the nodes it took over gives names others; so does whoever takes over from it.
#[test]
fn all_nodes_that_were_restored_can_be_detached() {
    let earlier = PathTrie::new();
    earlier.switch(&view(&[1].into()), 0);
    let top = earlier.members().entries[0].1;
    let file = earlier.enter(top, b"a").unwrap().id;
    let trie = restored(&earlier);
    trie.detach_all();
    trie.switch(&view(&[1].into()), 0);
    let new_top = trie.members().entries[0].1;
    let new_file = trie.enter(new_top, b"a").unwrap().id;
    assert!(top < file && file < new_top && new_top < new_file);
    for trie in [&trie, &restored(&trie)] {
        assert_eq!((trie.path(new_top), trie.path(new_file)), (trie.path(top), trie.path(file)));
        assert_eq!(trie.find(ROOT, member(1).as_str().as_bytes()), Some(new_top));
        assert_eq!((trie.find(new_top, b"a"), trie.find(top, b"a")), (Some(new_file), None));
    }
    assert!(trie.is_shown(file) && trie.enter(top, b"a").unwrap().id > new_file);
}

/// A listing can be finished after some switches, and what is kept for it is bounded.
#[test]
fn the_last_few_sets_of_members_are_kept() {
    let trie = PathTrie::new();
    for n in 1..20 {
        trie.switch(&view(&[n].into()), 0);
    }
    let known: Vec<_> = (0..30).filter(|n| trie.members_of(|epoch| epoch == *n).is_some()).collect();
    assert_eq!(known.len(), EPOCHS_KEPT);
    assert_eq!(known.last(), Some(&trie.members().epoch));
    assert!(known.is_sorted_by(|a, b| a + 1 == *b));
}

/// The kernel forgot a node, and its name was given another one: a journal that was not rewritten has both.
#[test]
fn what_is_kept_of_a_trie_restores_in_its_order() {
    let trie = PathTrie::new();
    let member = format!("{:032}-a", 0);
    let record = |id, parent, name: &str| NodeRecord {
        id: NodeId(id),
        parent: NodeId(parent),
        name: name.as_bytes().into(),
    };
    let nodes = [
        record(2, 1, &member),
        record(3, 2, "d"),
        record(4, 3, "x"),
        record(5, 4, "below"),
        record(6, 3, "x"),
        record(7, 6, "below"),
    ];
    nodes.iter().for_each(|node| trie.restore(node));
    let next = PathTrie::new();
    let mut replaced = 0;
    trie.for_each(|kept| match kept {
        Kept::Node { id, parent, name } => {
            next.restore(&NodeRecord { id, parent, name: name.into() });
            assert!(next.path(id).is_some(), "{id:?} comes before its parent");
        }
        Kept::Replaced(_) => replaced += 1,
    });
    assert_eq!(replaced, 0, "nothing was replaced");
    let paths = |trie: &PathTrie| [2, 3, 6, 7].map(|id| trie.path(NodeId(id)));
    assert_eq!(paths(&next), paths(&trie));
    assert_eq!((next.len(), next.find(NodeId(3), b"x")), (4, Some(NodeId(6))));
}

/// A hostile journal names ids that lie far apart, so that each record costs as much as it can.
#[test]
fn a_record_costs_few_bytes_wherever_its_id_lies() {
    let top = member(1).as_str().as_bytes().to_vec();
    type Ids = fn(u64) -> u64;
    let most = |ids: Ids| {
        let trie = PathTrie::new();
        trie.restore(&NodeRecord { id: NodeId(2), parent: ROOT, name: top.clone().into() });
        let records = 20_000_u64;
        for n in 0..records {
            let name = Box::from(n.to_le_bytes().map(|byte| byte | 0x80));
            trie.restore(&NodeRecord { id: NodeId(ids(n)), parent: NodeId(2), name });
        }
        assert_eq!(trie.len() as u64, records + 1);
        trie.nodes.read().bytes() as u64 / records
    };
    let spreads: [(&str, Ids, u64); 7] = [
        ("one behind the other", |n| 3 + n, 64),
        ("backwards", |n| 30_000 - n, 128),
        ("every second one", |n| 4 + 2 * n, 128),
        ("one at the end of each chunk", |n| n * CHUNK + CHUNK - 1, 400),
        ("two at the ends of each chunk", |n| (n / 2 + 1) * CHUNK + n % 2 * (CHUNK - 1), 400),
        ("all over a chunk, one chunk after another", |n| (n / 64 + 1) * CHUNK + n % 64 * 16 + 15, 400),
        ("as many as make a chunk dense", |n| (n / 256 + 1) * CHUNK + n % 256 * 4 + 3, 400),
    ];
    let cost = spreads.map(|(name, ids, expected)| (name, most(ids), expected));
    assert!(cost.iter().all(|(_, bytes, expected)| bytes <= expected), "{cost:?}");
}
