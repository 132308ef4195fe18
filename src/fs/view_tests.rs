//! The view's answers on a real directory, without a kernel.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::backing::tests::settle;
use crate::closure::View;
use crate::journal::Journal;
use crate::store::StorePath;

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
        let journal = Journal::resume(&self.dir.path().join("nodes"), |record| {
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
