//! Which requests count as a use of a member, on a real directory and without a kernel.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::values::{StorePath, View};
use crate::view::backing::tests::settle;
use crate::view::usage::{self, Asked, Snapshot, Uses};

const TOOL: &str = "1zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-tool";
const OTHER: &str = "2zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-other";
const LINK: &str = "3zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-link";
const GONE: &str = "4zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-gone";

struct Fixture {
    _dir: tempfile::TempDir,
    view: ServedView,
    file: OwnedFd,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in [TOOL, OTHER] {
            std::fs::create_dir_all(dir.path().join(name).join("bin")).unwrap();
            std::fs::write(dir.path().join(name).join("bin/tool"), "0123456789").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", dir.path().join(LINK)).unwrap();
        settle(dir.path());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let store = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        let trie = Arc::new(PathTrie::new());
        let shown: View =
            [TOOL, OTHER, LINK, GONE].iter().map(|name| (StorePath::new(name).unwrap(), 1)).collect();
        trie.switch(&shown, 0);
        let file = usage::create(true).unwrap();
        let usage = Usage::open(Some(file.try_clone().unwrap()));
        let view = ServedView::new(trie, Backing::new(store), None, None).counting(usage);
        Self { _dir: dir, view, file }
    }

    /// Ids of these names, known to the kernel, and then nothing is counted yet.
    fn known(&mut self, path: &[&str]) -> NodeId {
        let mut id = ROOT;
        for name in path {
            id = self.view.lookup(id, name.as_bytes()).unwrap().id;
        }
        self.begin();
        id
    }

    fn begin(&mut self) {
        self.file = usage::create(true).unwrap();
        self.view.usage = Usage::open(Some(self.file.try_clone().unwrap()));
    }

    fn asked(&self, name: &str) -> Asked {
        Snapshot::read(&self.file).unwrap().of(&StorePath::new(name).unwrap())
    }

    fn used(&self) -> Vec<&'static str> {
        let all = [TOOL, OTHER, LINK, GONE].into_iter();
        all.filter(|name| self.asked(name) != Asked::Never).collect()
    }
}

#[test]
fn what_names_a_member_or_something_in_it_is_a_use() {
    let mut fixture = Fixture::new();
    assert!(fixture.view.lookup(ROOT, OTHER.as_bytes()).is_ok());
    assert!(fixture.view.lookup(ROOT, GONE.as_bytes()).is_err());
    assert_eq!(fixture.used(), [OTHER, GONE], "a name was asked for, whatever was found there");
    let (top, bin) = (fixture.known(&[TOOL]), fixture.known(&[TOOL, "bin"]));
    let (tool, link) = (fixture.known(&[TOOL, "bin", "tool"]), fixture.known(&[LINK]));
    type Ask = fn(&ServedView, NodeId);
    let below: Ask = |view, id| assert!(view.lookup(id, b"bin").is_ok());
    let absent: Ask = |view, id| assert_eq!(view.lookup(id, b"absent"), Err(FsError::Absent));
    let listed: Ask = |view, id| assert!(view.list(id, 0, |_| true).is_ok());
    let searched: Ask = |view, id| assert!(view.seek(id, 0, true).is_ok());
    let file: Ask = |view, id| drop(view.file(id).unwrap());
    for (id, ask) in [
        (top, below),
        (top, absent),
        (bin, absent),
        (top, listed),
        (bin, listed),
        (tool, searched),
        (tool, file),
    ] {
        fixture.begin();
        ask(&fixture.view, id);
        assert_eq!(fixture.used(), [TOOL], "{id:?}");
        assert_eq!(fixture.asked(TOOL), Asked::For(Uses::default()), "{id:?}");
    }
    fixture.begin();
    fixture.view.readlink(link).unwrap();
    assert_eq!(fixture.used(), [LINK]);
}

#[test]
fn reads_are_counted_by_their_bytes_and_by_how_often_they_begin() {
    let mut fixture = Fixture::new();
    let tool = fixture.known(&[TOOL, "bin", "tool"]);
    let mut room = [0; 8];
    for (offset, bytes) in [(0, 8), (8, 2), (10, 0), (0, 8)] {
        assert_eq!(fixture.view.read(tool, offset, &mut room).unwrap().len, bytes);
    }
    assert_eq!(fixture.asked(TOOL), Asked::For(Uses { opens: 2, bytes: 18 }));
    assert_eq!(Snapshot::read(&fixture.file).unwrap().bytes, 18);
    // A directory cannot be read: that is no open, and no bytes.
    let bin = fixture.known(&[TOOL, "bin"]);
    assert!(fixture.view.read(bin, 0, &mut room).is_err());
    assert_eq!(fixture.asked(TOOL), Asked::For(Uses::default()));
}

#[test]
fn a_file_that_the_kernel_reads_is_counted_by_its_opens() {
    let mut fixture = Fixture::new();
    let tool = fixture.known(&[TOOL, "bin", "tool"]);
    fixture.view.opened(tool, &Way::Inherited(7));
    fixture.view.opened(tool, &Way::Inherited(7));
    // Its reads are seen.
    fixture.view.opened(tool, &Way::Cached);
    assert_eq!(fixture.asked(TOOL), Asked::For(Uses { opens: 2, bytes: 0 }));
}

#[test]
fn what_names_nobody_is_no_use() {
    let mut fixture = Fixture::new();
    let tool = fixture.known(&[TOOL, "bin", "tool"]);
    let view = &fixture.view;
    view.list(ROOT, 0, |_| true).unwrap();
    view.getattr(ROOT).unwrap();
    view.getattr(tool).unwrap();
    view.check_members();
    view.check_member(OTHER.as_bytes(), true);
    assert!(view.lookup(ROOT, b"5zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-outside").is_err());
    let _ = view.totals();
    view.forget(tool, 1);
    assert_eq!(fixture.used(), [""; 0]);
}

#[test]
fn nodes_are_those_that_the_kernel_may_know() {
    let fixture = Fixture::new();
    let nodes = || Snapshot::read(&fixture.file).unwrap().nodes;
    let view = &fixture.view;
    assert_eq!(nodes(), 4);
    let top = view.lookup(ROOT, TOOL.as_bytes()).unwrap().id;
    let bin = view.lookup(top, b"bin").unwrap().id;
    let tool = view.lookup(bin, b"tool").unwrap().id;
    assert_eq!(nodes(), 6);
    view.forget(bin, 1);
    view.forget(tool, 1);
    assert_eq!(nodes(), 4);
    view.list(top, 0, |_| true).unwrap();
    assert_eq!(nodes(), 5);
}
