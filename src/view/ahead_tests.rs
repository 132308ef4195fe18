//! Readers of a view on real files, and a thread that brings for them, here done step by step.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{Advice, Mode, OFlags};

use super::*;
use crate::sys::cached::cached_pages;
use crate::values::{StorePath, View};
use crate::view::ServedView;
use crate::view::backing::Backing;
use crate::view::backing::tests::settle;
use crate::view::trie::{NodeId, ROOT};
use crate::view::usage;

const A: &str = "00000000000000000000000000000000-a";
const B: &str = "00000000000000000000000000000000-b";
const SECRET: &str = "00000000000000000000000000000000-aa";
/// Files of each store path.
const FILES: usize = 12;
/// Bytes of each.
const SIZE: usize = 5000;

struct Fixture {
    dir: tempfile::TempDir,
    view: ServedView,
    ahead: Arc<ReadAhead>,
    bringer: Bringer,
}

impl Fixture {
    /// None where the file system keeps what it is told to forget, or where nobody can be asked what is cached.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        for name in [A, SECRET, B] {
            fs::create_dir(dir.path().join(name)).unwrap();
            for number in 0..FILES {
                fs::write(dir.path().join(name).join(format!("{number:02}")), vec![number as u8; SIZE])
                    .unwrap();
            }
        }
        settle(dir.path());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let backing = Backing::new(rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap());
        let trie = Arc::new(PathTrie::new());
        let shown: View = [A, B].iter().map(|name| (StorePath::new(name).unwrap(), 1)).collect();
        trie.switch(&shown, 0);
        let ahead = Arc::new(ReadAhead::default());
        let bringer = Bringer::new(backing.ahead(), trie.clone());
        let view = ServedView::new(trie, backing, None, None).reading_ahead(ahead.clone());
        let fixture = Self { dir, view, ahead, bringer };
        fixture.cool();
        let kept = fixture.cached();
        if kept != Some(Vec::new()) {
            eprintln!("not run: what is cached here cannot be told, or not be dropped");
            return None;
        }
        Some(fixture)
    }

    fn files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let names =
            [A, SECRET, B].into_iter().flat_map(|name| (0..FILES).map(move |at| format!("{name}/{at:02}")));
        names.map(|name| (name.split_once('-').unwrap().1.to_owned(), self.dir.path().join(&name)))
    }

    fn cool(&self) {
        for (_, path) in self.files() {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
    }

    /// The files of which something is cached, or about to be.
    fn cached(&self) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for (name, path) in self.files() {
            if cached_pages(File::open(path).unwrap(), 0, SIZE as u64).ok()? > 0 {
                all.push(name);
            }
        }
        Some(all)
    }

    fn node(&self, member: &str, number: usize) -> NodeId {
        let member = self.view.lookup(ROOT, member.as_bytes()).unwrap().id;
        self.view.lookup(member, format!("{number:02}").as_bytes()).unwrap().id
    }

    fn read(&mut self, member: &str, number: usize) {
        let node = self.node(member, number);
        let mut bytes = vec![0xff; SIZE + 1];
        assert_eq!(self.view.read(node, 0, &mut bytes).unwrap().len, SIZE);
        assert!(bytes[..SIZE].iter().all(|byte| *byte == number as u8));
        self.ahead.catch_up(&mut self.bringer);
    }
}

#[test]
fn who_walks_finds_the_next_files_brought_and_nothing_stays_of_them() {
    let Some(mut fixture) = Fixture::new() else { return };
    (0..2).for_each(|number| fixture.read(A, number));
    let Some(before) = fixture.cached() else { return };
    fixture.read(A, 2);
    let brought: Vec<String> =
        fixture.cached().unwrap().into_iter().filter(|name| !before.contains(name)).collect();
    assert!(brought.ends_with(&["a/03".into(), "a/04".into()]), "{brought:?}");
    for number in 3..FILES {
        assert!(fixture.cached().unwrap().contains(&format!("a/{number:02}")), "{number}");
        fixture.read(A, number);
    }
    // The next member, and nothing of what the view does not show.
    let cached = fixture.cached().unwrap();
    assert!(
        cached.contains(&"b/00".into()) && !cached.iter().any(|name| name.starts_with("aa/")),
        "{cached:?}"
    );
    (0..FILES).for_each(|number| fixture.read(B, number));
    fixture.ahead.walks.lock().quiet();
    fixture.ahead.walks.lock().quiet();
    fixture.ahead.catch_up(&mut fixture.bringer);
    assert!(!fixture.ahead.walks.lock().is_any());
    // What was read without being brought is only dropped where reads can ask for that.
    let stays = if before.is_empty() { vec![] } else { fixture.cached().unwrap() };
    assert_eq!(fixture.cached().unwrap(), stays);
}

#[test]
fn neither_who_reads_here_and_there_nor_who_plays_makes_anything_be_brought() {
    let Some(mut fixture) = Fixture::new() else { return };
    for number in (0..FILES).rev() {
        fixture.read(A, number);
        fixture.cool();
    }
    usage::unseen(true, || (0..FILES).for_each(|number| fixture.read(B, number)));
    assert!(!fixture.ahead.walks.lock().is_any());
}

/// Members are replaced by who repairs them, and withdrawn, while somebody walks.
#[test]
fn what_goes_away_under_a_walk_harms_nobody() {
    let Some(mut fixture) = Fixture::new() else { return };
    (0..5).for_each(|number| fixture.read(A, number));
    fs::rename(fixture.dir.path().join(A), fixture.dir.path().join("away")).unwrap();
    let missing = fixture.view.lookup(ROOT, A.as_bytes()).err();
    assert!(missing.is_some());
    fixture.ahead.catch_up(&mut fixture.bringer);
    fs::rename(fixture.dir.path().join("away"), fixture.dir.path().join(A)).unwrap();
    (5..FILES).for_each(|number| fixture.read(A, number));
    fixture.view.trie().switch(&View::default(), 1);
    fixture.ahead.walks.lock().quiet();
    fixture.ahead.walks.lock().quiet();
    fixture.ahead.catch_up(&mut fixture.bringer);
}

#[test]
fn who_brings_ends_for_nobody_and_holds_no_lock_while_it_waits() {
    let Some(fixture) = Fixture::new() else { return };
    let Fixture { ahead, bringer, view, dir } = fixture;
    let own = ahead.clone();
    let _never_ends = std::thread::spawn(move || -> () { own.work(bringer) });
    let member = view.lookup(ROOT, A.as_bytes()).unwrap().id;
    let mut bytes = vec![0; SIZE];
    for number in 0..3 {
        let node = view.lookup(member, format!("{number:02}").as_bytes()).unwrap().id;
        view.read(node, 0, &mut bytes).unwrap();
    }
    // Ends when it has come, however long that takes.
    let next = File::open(dir.path().join(A).join("04")).unwrap();
    while cached_pages(&next, 0, SIZE as u64).unwrap() == 0 {
        std::thread::yield_now();
    }
    assert!(ahead.walks.lock().is_any());
}
