//! The view's answers on a real directory, without a kernel.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::values::{StorePath, View};
use crate::view::backing::faults;
use crate::view::backing::tests::settle;
use crate::view::journal::{Home, Journal};

const A: &str = "00000000000000000000000000000000-a";
const B: &str = "00000000000000000000000000000000-b";
const C: &str = "00000000000000000000000000000000-c";

fn view_of(names: &[&str]) -> View {
    names.iter().map(|name| (StorePath::new(name).unwrap(), 100)).collect()
}

struct Fixture {
    dir: tempfile::TempDir,
    view: ServedView,
}

impl Fixture {
    fn new(shown: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        for name in [A, B, C] {
            std::fs::create_dir_all(store.join(name).join("bin")).unwrap();
            std::fs::write(store.join(name).join("bin/tool"), name).unwrap();
        }
        std::fs::create_dir(store.join(".links")).unwrap();
        settle(&store);
        let journal = Arc::new(Journal::create(&dir.path().join("nodes")).unwrap());
        let view = Self::serve(&store, Arc::new(PathTrie::new()), journal);
        view.record(&view.trie.prepare(&view_of(shown)).into_iter().map(Record::Node).collect::<Vec<_>>());
        view.trie.switch(&view_of(shown), 0);
        Self { dir, view }
    }

    fn serve(store: &Path, trie: Arc<PathTrie>, journal: Arc<Journal>) -> ServedView {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let store = rustix::fs::open(store, flags, Mode::empty()).unwrap();
        ServedView::new(trie, Backing::new(store), Some(journal), None)
    }

    /// What the next server would be.
    fn successor(&self, shown: &[&str]) -> ServedView {
        let trie = Arc::new(PathTrie::new());
        let journal = Journal::resume(Home::open(&self.dir.path().join("nodes")).unwrap(), |record| {
            if let Record::Node(node) = record {
                trie.restore(&node);
            }
        });
        let view = Self::serve(&self.dir.path().join("store"), trie, Arc::new(journal.unwrap()));
        view.trie.switch(&view_of(shown), 0);
        view
    }
}

fn walk(view: &ServedView, path: &[&str]) -> Result<Node, FsError> {
    let mut node = view.getattr(ROOT)?;
    for name in path {
        node = view.lookup(node.id, name.as_bytes())?;
    }
    Ok(node)
}

fn names(view: &ServedView, id: NodeId) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    view.list(id, 0, |entry| names.insert(String::from_utf8_lossy(entry.name).into_owned())).unwrap();
    names
}

#[test]
fn only_members_exist() {
    let fixture = Fixture::new(&[A, B]);
    assert_eq!(names(&fixture.view, ROOT), [".", "..", A, B].map(String::from).into());
    assert!(walk(&fixture.view, &[A, "bin", "tool"]).is_ok());
    for name in [C, ".links", "nothing", "00000000000000000000000000000000-absent"] {
        assert_eq!(fixture.view.lookup(ROOT, name.as_bytes()), Err(FsError::Absent), "{name}");
    }
}

#[test]
fn names_that_are_no_entries_are_refused_everywhere() {
    let fixture = Fixture::new(&[A]);
    let inside = walk(&fixture.view, &[A]).unwrap().id;
    for parent in [ROOT, inside] {
        for name in [&b""[..], b".", b"..", b"../b", b"bin/tool", b"bin\0"] {
            assert_eq!(fixture.view.lookup(parent, name), Err(FsError::BadName));
        }
    }
}

#[test]
fn absence_below_a_path_lasts_and_absence_of_a_member_does_not() {
    let fixture = Fixture::new(&[A]);
    let top = walk(&fixture.view, &[A]).unwrap().id;
    assert_eq!(fixture.view.lookup(top, b"absent"), Err(FsError::Absent));
    let (here, away) = (fixture.dir.path().join("store").join(A), fixture.dir.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    assert_eq!(fixture.view.lookup(ROOT, A.as_bytes()), Err(FsError::AbsentNow));
    assert_eq!(fixture.view.lookup(top, b"never-asked"), Err(FsError::AbsentNow));
    assert_eq!(fixture.view.check_members(), 1);
    std::fs::rename(&away, &here).unwrap();
    assert!(walk(&fixture.view, &[A, "bin"]).is_ok());
    assert_eq!(fixture.view.check_members(), 0);
}

#[test]
fn a_withdrawn_member_shows_nothing_new_and_stays_readable() {
    let fixture = Fixture::new(&[A, B]);
    let tool = walk(&fixture.view, &[A, "bin", "tool"]).unwrap().id;
    let bin = walk(&fixture.view, &[A, "bin"]).unwrap().id;
    fixture.view.trie.switch(&view_of(&[B]), 0);
    assert_eq!(fixture.view.lookup(ROOT, A.as_bytes()), Err(FsError::Absent));
    assert_eq!(fixture.view.lookup(bin, b"tool"), Err(FsError::AbsentNow));
    assert_eq!(fixture.view.list(bin, 0, |_| true), Err(FsError::AbsentNow));
    let mut buffer = [0; 64];
    let read = fixture.view.read(tool, 0, &mut buffer).unwrap();
    assert_eq!(&buffer[..read.len], A.as_bytes());
}

#[test]
fn a_root_listing_that_spans_a_switch_shows_the_set_it_began_with() {
    let fixture = Fixture::new(&[A, B]);
    let mut seen = Vec::new();
    let mut next = 0;
    fixture
        .view
        .list(ROOT, 0, |entry| {
            if seen.len() == 3 {
                return false;
            }
            seen.push(entry.name.to_vec());
            next = entry.next;
            true
        })
        .unwrap();
    fixture.view.trie.switch(&view_of(&[C]), 0);
    fixture
        .view
        .list(ROOT, next, |entry| {
            seen.push(entry.name.to_vec());
            true
        })
        .unwrap();
    assert_eq!(seen, [&b"."[..], b"..", A.as_bytes(), B.as_bytes()]);
    assert_eq!(names(&fixture.view, ROOT), [".", "..", C].map(String::from).into());
}

/// A listing that continues with an earlier set must not put back into the kernel's cache what a reload took out.
#[test]
fn of_what_was_withdrawn_a_listing_tells_the_name_alone() {
    let fixture = Fixture::new(&[A, B, C]);
    let view = &fixture.view;
    let list = |from, count| {
        let (mut told, mut next) = (Vec::new(), 0);
        view.list(ROOT, from, |entry| {
            if told.len() == count {
                return false;
            }
            next = entry.next;
            told.push((String::from_utf8_lossy(entry.name).into_owned(), entry.told));
            true
        })
        .unwrap();
        (told, next)
    };
    let expected = |told: [Told; 3]| [A, B, C].map(str::to_owned).into_iter().zip(told).collect::<Vec<_>>();
    assert_eq!(list(0, 9).0[2..], expected([Told::Lasting; 3]));
    let (_, begun) = list(0, 2);
    std::fs::write(fixture.dir.path().join("store").join(C).join("half"), "").unwrap();
    assert_eq!(list(begun, 9).0, expected([Told::Lasting, Told::Lasting, Told::Now]), "somebody writes it");
    view.trie.switch(&view_of(&[B, C]), 0);
    assert_eq!(list(begun, 9).0, expected([Told::Nothing, Told::Lasting, Told::Now]));
}

/// The kernel asks for names of up to 4095 bytes (`fc->name_max`); the store's file system has none as long, and says so.
#[test]
fn names_that_are_too_long_are_the_store_s_to_refuse() {
    let fixture = Fixture::new(&[A]);
    let top = walk(&fixture.view, &[A]).unwrap().id;
    for length in [256, 1024, 1025, 4095] {
        let answer = fixture.view.lookup(top, "n".repeat(length).as_bytes());
        assert_eq!(answer, Err(FsError::Backing(Errno::NAMETOOLONG)), "{length}");
    }
}

#[test]
fn a_successor_knows_every_node_that_was_told() {
    let fixture = Fixture::new(&[A, B]);
    let tool = walk(&fixture.view, &[A, "bin", "tool"]).unwrap();
    let top = walk(&fixture.view, &[B]).unwrap();
    names(&fixture.view, top.id);
    let next = fixture.successor(&[A, B]);
    assert_eq!(next.getattr(tool.id), Ok(tool));
    for path in [&[A][..], &[B], &[A, "bin"], &[B, "bin"]] {
        assert_eq!(walk(&next, path), walk(&fixture.view, path), "{path:?}");
    }
    let fresh = walk(&next, &[B, "bin", "tool"]).unwrap().id;
    assert_ne!(fresh, tool.id);
}

#[test]
fn a_listing_ends_where_it_ended_and_nowhere_else() {
    let fixture = Fixture::new(&[A]);
    let bin = walk(&fixture.view, &[A, "bin"]).unwrap().id;
    let listed = |from| {
        let mut all = Vec::new();
        let each = |entry: Entry<'_>| {
            all.push((entry.name.to_vec(), entry.next));
            true
        };
        fixture.view.list(bin, from, each).unwrap();
        all
    };
    for _ in 0..3 {
        let all = listed(0);
        assert_eq!(all.len(), 3);
        for (at, (_, next)) in all.iter().enumerate() {
            assert_eq!(listed(*next), all[at + 1..]);
        }
    }
}

#[test]
fn the_dots_of_a_listing_are_the_directory_and_the_one_above() {
    let fixture = Fixture::new(&[A]);
    let view = &fixture.view;
    let [top, bin] = [&[A][..], &[A, "bin"]].map(|path| walk(view, path).unwrap().id);
    for (id, above) in [(ROOT, ROOT), (top, ROOT), (bin, top)] {
        let mut dots = Vec::new();
        let each = |entry: Entry<'_>| {
            dots.push((entry.name.to_vec(), entry.node.id));
            dots.len() < 2
        };
        view.list(id, 0, each).unwrap();
        assert_eq!(dots, [(b".".to_vec(), id), (b"..".to_vec(), above)]);
    }
}

#[test]
fn the_root_tells_the_closure_and_nothing_of_the_host() {
    let fixture = Fixture::new(&[A, B]);
    let before = fixture.view.getattr(ROOT).unwrap();
    std::fs::create_dir(fixture.dir.path().join("store/another")).unwrap();
    assert_eq!(fixture.view.getattr(ROOT).unwrap(), before);
    assert_eq!((before.stat.nlink, before.stat.size, before.stat.mtime), (4, 2, (1, 0)));
    assert_eq!(fixture.view.totals(), Totals { paths: 2, bytes: 200 });
}

#[test]
fn an_unknown_node_is_an_error_and_not_a_crash() {
    let fixture = Fixture::new(&[A]);
    let id = NodeId(999_999);
    assert_eq!(fixture.view.getattr(id), Err(FsError::UnknownNode));
    assert_eq!(fixture.view.lookup(id, b"a"), Err(FsError::UnknownNode));
    assert_eq!(fixture.view.list(id, 0, |_| true), Err(FsError::UnknownNode));
    assert_eq!(fixture.view.read(id, 0, &mut [0]), Err(FsError::UnknownNode));
}

/// Puts a hard link beside `bin/tool` of a member, and one in another member.
fn with_links(fixture: &Fixture) -> [NodeId; 3] {
    let store = fixture.dir.path().join("store");
    for link in [store.join(A).join("again"), store.join(B).join("again")] {
        std::fs::hard_link(store.join(A).join("bin/tool"), link).unwrap();
    }
    [&[A, "bin", "tool"][..], &[A, "again"], &[B, "again"]].map(|path| walk(&fixture.view, path).unwrap().id)
}

#[test]
fn names_of_one_file_share_a_node_within_a_member_only() {
    let fixture = Fixture::new(&[A, B]);
    let [tool, again, elsewhere] = with_links(&fixture);
    assert_eq!(again, tool);
    assert_ne!(elsewhere, tool);
    assert_eq!(walk(&fixture.view, &[A, "again"]).unwrap().stat.nlink, 1);
    let mut listed = None;
    let top = walk(&fixture.view, &[A]).unwrap().id;
    let each = |entry: Entry<'_>| {
        listed = (entry.name == b"again").then_some(entry.node.id).or(listed);
        true
    };
    fixture.view.list(top, 0, each).unwrap();
    assert_eq!(listed, Some(tool));
    assert_eq!(fixture.successor(&[A, B]).getattr(again).unwrap().id, tool);
}

#[test]
fn a_shared_node_lives_until_every_name_of_it_is_forgotten() {
    let fixture = Fixture::new(&[A, B]);
    let [tool, again, _] = with_links(&fixture);
    fixture.view.forget(tool, 1);
    assert_eq!(fixture.view.getattr(again).unwrap().id, tool);
    fixture.view.forget(tool, 1);
    assert_eq!(fixture.view.getattr(again), Err(FsError::UnknownNode));
    let next = walk(&fixture.view, &[A, "again"]).unwrap().id;
    assert_ne!(next, tool, "an id is never given twice");
    assert_eq!(walk(&fixture.view, &[A, "bin", "tool"]).unwrap().id, next);
    fixture.view.links.forgot(1 << 20, &fixture.view.trie);
    assert_eq!(walk(&fixture.view, &[A, "again"]).unwrap().id, next, "what is known is not swept away");
}

/// Memory is given back now and then, not at each name.
#[test]
fn what_is_kept_of_forgotten_nodes_goes_after_some_thousand() {
    let fixture = Fixture::new(&[A, B]);
    let view = &fixture.view;
    let [tool, _, elsewhere] = with_links(&fixture);
    view.forget(tool, 2);
    view.forget(elsewhere, 1);
    let bin = walk(view, &[A, "bin"]).unwrap().id;
    std::fs::write(fixture.dir.path().join("store").join(A).join("bin/single"), "").unwrap();
    for forgotten in 3..=2 * TRIM_EVERY {
        let id = view.lookup(bin, b"single").unwrap().id;
        view.forget(id, 1);
        assert_eq!(view.links.count(), if forgotten < TRIM_EVERY { 2 } else { 0 }, "{forgotten}");
    }
}

#[test]
fn a_name_keeps_the_node_that_it_has() {
    let fixture = Fixture::new(&[A, B]);
    let before = walk(&fixture.view, &[A, "bin", "tool"]).unwrap().id;
    let [tool, again, _] = with_links(&fixture);
    assert_eq!(tool, before, "it became one of several names");
    assert_eq!(again, before);
    let next = fixture.successor(&[A, B]);
    assert_eq!(walk(&next, &[A, "bin", "tool"]).unwrap().id, before);
    assert_eq!(walk(&next, &[A, "again"]).unwrap().id, before, "a successor finds it again");
}

impl Fixture {
    /// Puts another object into the place of a member. The old one is away then.
    fn put_another(&self, member: &str) {
        let here = self.dir.path().join("store").join(member);
        let away = self.dir.path().join("away");
        std::fs::rename(&here, &away).unwrap();
        let born = |dir: &Path| dir.metadata().unwrap().created().ok();
        while !here.exists() || born(&here).is_some() && born(&here) == born(&away) {
            // In another tick of the clock.
            let _ = std::fs::remove_dir(&here);
            std::fs::create_dir(&here).unwrap();
        }
        std::fs::create_dir(here.join("bin")).unwrap();
        std::fs::write(here.join("bin/tool"), "another one").unwrap();
        settle(&here);
    }

    /// The same, and removes the old one.
    fn replace(&self, member: &str) {
        self.put_another(member);
        std::fs::remove_dir_all(self.dir.path().join("away")).unwrap();
    }

    /// What the journal says.
    fn journal(&self) -> Vec<Record> {
        let mut records = Vec::new();
        Journal::resume(Home::open(&self.dir.path().join("nodes")).unwrap(), |record| records.push(record))
            .unwrap();
        records
    }

    /// What the journal says that the kernel has cached of `member`.
    fn cached(&self, member: NodeId) -> Option<Identity> {
        let of = |record| match record {
            Record::Member(id, identity) if id == member => Some(identity),
            _ => None,
        };
        self.journal().into_iter().filter_map(of).next_back()
    }
}

/// Whoever finds another object in the place of a member has the kernel's caches invalidated, once; a server that is
/// killed before that leaves it to the next one.
#[test]
fn what_is_cached_of_a_replaced_member_is_invalidated() {
    let mut fixture = Fixture::new(&[A, B]);
    let (stale, heard) = std::sync::mpsc::channel();
    fixture.view = fixture.view.invalidating(stale.clone());
    let view = &fixture.view;
    assert_eq!(view.check_members(), 0);
    let tool = walk(view, &[A, "bin", "tool"]).unwrap();
    let id = walk(view, &[A]).unwrap().id;
    assert_eq!(heard.try_iter().next(), None, "seen for the first time");
    let old = view.getattr(id).unwrap().stat.identity;
    assert_eq!(fixture.cached(id), Some(old));
    fixture.replace(A);
    let new = view.getattr(walk(view, &[A]).unwrap().id).unwrap().stat.identity;
    assert_ne!(old, new);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [Stale::Member(id)]);
    walk(view, &[A]).unwrap();
    assert_eq!(heard.try_iter().next(), None, "said once");
    assert_eq!(fixture.cached(id), Some(old), "the kernel may still have it");

    let next = fixture.successor(&[A, B]).invalidating(stale);
    next.restore_member(id, old);
    next.check_members();
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [Stale::Member(id)]);

    let nodes: BTreeSet<_> = view.forget_replaced(id).into_iter().map(|node| node.id).collect();
    assert!(nodes.contains(&id) && nodes.contains(&tool.id));
    assert!(fixture.journal().contains(&Record::Replaced(id)));
    let again = walk(view, &[A, "bin", "tool"]).unwrap();
    assert!(again.id != tool.id && again.stat.size == 11);
    view.invalidated(id);
    assert_eq!(fixture.cached(id), Some(new));
}

/// Nobody knows what was opened before a member was examined first: it may be of an object that is no more.
#[test]
fn what_was_opened_before_a_member_was_known_is_not_used() {
    let fixture = Fixture::new(&[A]);
    let view = &fixture.view;
    let top = view.trie.find(ROOT, A.as_bytes()).unwrap();
    let bin = view.lookup(top, b"bin").unwrap().id;
    assert_eq!(view.lookup(bin, b"tool").unwrap().stat.size, A.len() as u64);
    fixture.put_another(A);
    view.check_members();
    assert_eq!(view.lookup(bin, b"tool").unwrap().stat.size, 11);
}

#[test]
fn data_and_holes_are_those_of_the_file() {
    let fixture = Fixture::new(&[A]);
    let tool = walk(&fixture.view, &[A, "bin", "tool"]).unwrap().id;
    let end = A.len() as u64;
    assert_eq!((fixture.view.seek(tool, 3, true), fixture.view.seek(tool, 3, false)), (Ok(end), Ok(3)));
    assert_eq!(fixture.view.seek(tool, end, false), Err(FsError::Backing(Errno::NXIO)));
    assert_eq!(fixture.view.seek(NodeId(999_999), 0, true), Err(FsError::UnknownNode));
}

/// A name in the store directory that is no member's is nobody's business; something that was put there is another object.
#[test]
fn what_is_put_into_the_store_is_examined() {
    let mut fixture = Fixture::new(&[A, B]);
    let (stale, heard) = std::sync::mpsc::channel();
    fixture.view = fixture.view.invalidating(stale);
    let view = &fixture.view;
    view.check_members();
    let id = walk(view, &[A]).unwrap().id;
    view.check_member(A.as_bytes(), false);
    view.check_member(C.as_bytes(), true);
    assert_eq!(heard.try_iter().next(), None);
    view.check_member(A.as_bytes(), true);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [Stale::Member(id)], "whatever it looks like");
    fixture.replace(A);
    view.check_member(A.as_bytes(), false);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [Stale::Member(id)]);
}

/// What was found while a member was replaced is not cached.
#[test]
fn what_was_found_during_a_repair_is_not_to_be_cached() {
    let fixture = Fixture::new(&[A, B]);
    let view = &fixture.view;
    view.check_members();
    let before = view.on_disk.replaced();
    let node = walk(view, &[A, "bin", "tool"]).unwrap();
    assert!(node.stat.settled && view.getattr(node.id).unwrap().stat.settled);
    assert!(view.steady(before, node.stat).settled);
    assert!(!view.steady(before + 1, node.stat).settled);
    assert!(!view.steady(before, Stat { settled: false, ..node.stat }).settled);
    let bin = walk(view, &[A, "bin"]).unwrap().id;
    let list = |at: &dyn Fn()| {
        let mut lasting = Vec::new();
        let each = |entry: Entry<'_>| {
            at();
            lasting.push((entry.name.to_vec(), entry.told == Told::Lasting));
            true
        };
        let complete = view.list(bin, 0, each).unwrap();
        (lasting.pop().unwrap(), complete)
    };
    assert_eq!(list(&|| ()), ((b"tool".to_vec(), true), true));
    let replaced = std::cell::Cell::new(false);
    let other_is_replaced = || {
        if !replaced.replace(true) {
            fixture.replace(B);
            view.check_member(B.as_bytes(), true);
        }
    };
    assert_eq!(list(&other_is_replaced), ((b"tool".to_vec(), false), false));
    assert_eq!(list(&|| ()), ((b"tool".to_vec(), true), true));
}

/// A name that is absent in the old object may be there in the new one, which was put there in the middle of the
/// look-up.
#[test]
fn absence_is_that_of_the_object_in_place() {
    let fixture = Arc::new(Fixture::new(&[A, B]));
    let view = &fixture.view;
    view.check_members();
    let bin = walk(view, &[A, "bin"]).unwrap().id;
    let look_up = |name: &str| view.lookup(bin, name.as_bytes()).map(|node| node.stat.size);
    assert_eq!(look_up("absent"), Err(FsError::Absent));
    for call in 0.. {
        let name = format!("new-{call}");
        let (host, put) = (fixture.clone(), name.clone());
        let repair = move || {
            host.replace(A);
            let store = host.dir.path().join("store");
            std::fs::write(store.join(A).join("bin").join(put), "found").unwrap();
            settle(&store.join(A));
            host.view.check_member(A.as_bytes(), true);
        };
        match faults::happening(call, repair, || look_up(&name)) {
            (answer, true) => assert_eq!(answer, Ok(5), "call {call}"),
            (answer, false) => {
                assert_eq!(answer, Err(FsError::Absent));
                return assert!(call > 2);
            }
        }
    }
}

/// A journal that is replaced holds what is known now, and which ids were given.
#[test]
fn a_replaced_journal_holds_what_is_known() {
    let fixture = Fixture::new(&[A, B]);
    let view = &fixture.view;
    view.check_members();
    let bin = walk(view, &[A, "bin"]).unwrap().id;
    for _ in 0..100 {
        let tool = walk(view, &[B, "bin", "tool"]).unwrap().id;
        view.forget(tool, 1);
    }
    let size = || fixture.dir.path().join("nodes").metadata().unwrap().len();
    let (before, next) = (size(), view.trie.next());
    view.rewrite_journal();
    assert!(size() < before / 4);
    assert!(fixture.journal().contains(&Record::Next(next)));
    assert!(fixture.cached(walk(view, &[A]).unwrap().id).is_some());
    assert_eq!(fixture.successor(&[A, B]).getattr(bin), view.getattr(bin));
}

/// A successor knows what was registered with the kernel, and what goes with a node ends with it.
#[test]
fn registrations_are_taken_over_and_ended() {
    let mut fixture = Fixture::new(&[A, B]);
    assert!(fixture.view.registrations().is_none());
    let all = Arc::new(Registrations::new(1));
    fixture.view.registrations = Some(all.clone());
    let view = &fixture.view;
    assert!(view.registrations().is_some());
    view.check_members();
    let [tool, other] = [A, B].map(|member| walk(view, &[member, "bin", "tool"]).unwrap().id);
    for id in [tool, other] {
        all.restore(&Record::Backing(id, 7));
    }
    view.rewrite_journal();
    assert!(fixture.journal().contains(&Record::Backing(tool, 7)));
    view.forget_replaced(walk(view, &[A]).unwrap().id);
    assert!(fixture.journal().contains(&Record::BackingEnded(tool, 7)));
    assert!(!fixture.journal().contains(&Record::BackingEnded(other, 7)));
}
