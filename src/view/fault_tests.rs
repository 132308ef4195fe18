//! Every call that an operation makes on the store fails once, with every kind of error, and from then on.
//!
//! The property: the right answer or an error that is the host's, never an absence, an end of file or a shorter listing;
//! nothing counted for what was not told; and once the fault is gone, the right answer.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::values::{StorePath, View};
use crate::view::backing::faults;
use crate::view::backing::tests::settle;

const TOP: &str = "00000000000000000000000000000000-a";
const OTHER: &str = "00000000000000000000000000000000-b";

/// What a host has been seen to answer, and a code that is no error of a program's (524, `ENOTSUPP`).
const ERRORS: [Errno; 14] = [
    Errno::IO,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::ACCESS,
    Errno::PERM,
    Errno::STALE,
    Errno::TIMEDOUT,
    Errno::NOSYS,
    Errno::INTR,
    Errno::AGAIN,
    Errno::NOTCONN,
    Errno::LOOP,
    Errno::from_raw_os_error(524),
];

fn make_store(dir: &Path) {
    let top = dir.join(TOP);
    std::fs::create_dir_all(top.join("d/e")).unwrap();
    std::fs::create_dir_all(top.join("other")).unwrap();
    std::fs::write(top.join("d/long"), "0123456789".repeat(20_000)).unwrap();
    for name in ["d/1", "d/2", "d/3", "d/e/deep"] {
        std::fs::write(top.join(name), name).unwrap();
    }
    std::fs::hard_link(top.join("d/1"), top.join("other/again")).unwrap();
    std::os::unix::fs::symlink("target", top.join("d/link")).unwrap();
    std::fs::write(dir.join(OTHER), "a file").unwrap();
    settle(dir);
}

fn serve(dir: &Path) -> ServedView {
    let store = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let view = ServedView::new(Arc::new(PathTrie::new()), Backing::new(store), None, None);
    let members: View = [TOP, OTHER].iter().map(|name| (StorePath::new(name).unwrap(), 1)).collect();
    view.trie.switch(&members, 1);
    view.check_members();
    view
}

fn walk(view: &ServedView, path: &str) -> Result<Node, FsError> {
    path.split('/').try_fold(view.getattr(ROOT)?, |node, name| view.lookup(node.id, name.as_bytes()))
}

/// An answer that can be compared.
type Answer = Result<String, FsError>;

/// An operation, with what it needs looked up before.
type Operation = fn(&ServedView, NodeId) -> Answer;

fn describe(node: Node) -> String {
    format!("{:?} {} {:?}", node.stat.kind, node.stat.size, node.stat.settled)
}

fn look_up(view: &ServedView, parent: NodeId, name: &str) -> Answer {
    let node = view.lookup(parent, name.as_bytes())?;
    view.forget(node.id, 1);
    Ok(describe(node))
}

/// A whole listing, in as many pieces as the server makes of it and of `room` entries at the most.
fn list(view: &ServedView, id: NodeId, room: usize) -> Answer {
    let (mut all, mut from) = (String::new(), 0);
    loop {
        let mut told = Vec::new();
        view.list(id, from, |entry| {
            if told.len() == room {
                return false;
            }
            all.push_str(&format!(
                "{} {} {}\n",
                String::from_utf8_lossy(entry.name),
                entry.next,
                describe(entry.node)
            ));
            told.push((entry.node.id, entry.next, entry.name.starts_with(b".")));
            true
        })?;
        let Some((_, next, _)) = told.last() else { return Ok(all) };
        from = *next;
        for (node, _, _) in told.iter().filter(|(_, _, dot)| !dot) {
            view.forget(*node, 1);
        }
    }
}

const OPERATIONS: [(&str, &str, Operation); 14] = [
    ("look up a member", "", |view, id| look_up(view, id, TOP)),
    ("look up a name", TOP, |view, id| look_up(view, id, "d")),
    ("look up a deeper name", "d/e", |view, id| look_up(view, id, "deep")),
    ("look up a further name of a file", "other", |view, id| look_up(view, id, "again")),
    ("look up nothing", "d", |view, id| look_up(view, id, "absent")),
    ("attributes", "d/2", |view, id| Ok(describe(view.getattr(id)?))),
    ("target of a link", "d/link", |view, id| Ok(String::from_utf8(view.readlink(id)?.target).unwrap())),
    ("read", "d/long", |view, id| {
        let mut buffer = vec![0; 131_072];
        let mut all = Vec::new();
        loop {
            let read = view.read(id, all.len() as u64, &mut buffer)?;
            all.extend_from_slice(&buffer[..read.len]);
            if read.len < buffer.len() {
                return Ok(String::from_utf8(all).unwrap());
            }
        }
    }),
    ("seek to a hole", "d/long", |view, id| Ok(view.seek(id, 0, true)?.to_string())),
    ("open", "d/2", |view, id| view.file(id).map(|_| String::new())),
    ("list", "d", |view, id| list(view, id, 100)),
    ("list in pieces", "d", |view, id| list(view, id, 2)),
    ("list the root", "", |view, id| list(view, id, 100)),
    ("list the root in pieces", "", |view, id| list(view, id, 1)),
];

/// Looks up what the operation is about, and keeps it.
fn prepare(view: &ServedView, path: &str) -> NodeId {
    // The file that has a further name is known by its first one.
    walk(view, &format!("{TOP}/d/1")).unwrap();
    match path {
        "" => ROOT,
        TOP => walk(view, TOP).unwrap().id,
        path => walk(view, &format!("{TOP}/{path}")).unwrap().id,
    }
}

/// Asks with the calls `numbers` failing; whether one did.
fn ask(
    name: &str,
    view: &ServedView,
    id: NodeId,
    operation: Operation,
    right: &Answer,
    numbers: std::ops::Range<usize>,
    errno: Errno,
) -> bool {
    let known = view.trie.len();
    let (answer, _, failed) = faults::during(numbers.clone(), errno, || operation(view, id));
    let what = || format!("{name}, calls {numbers:?} fail with {errno}");
    if answer != *right {
        assert!(matches!(answer, Err(FsError::Backing(_))), "{}: {answer:?} in place of {right:?}", what());
    }
    if answer.is_err() {
        assert!(view.trie.len() <= known, "{}: nodes are counted", what());
    }
    assert_eq!(operation(view, id), *right, "{}, and then no more", what());
    failed
}

#[test]
fn every_call_fails_once_and_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    make_store(dir.path());
    let mut tried = 0;
    for (name, path, operation) in OPERATIONS {
        let view = serve(dir.path());
        let right = operation(&view, prepare(&view, path));
        assert!(right.is_ok() || name == "look up nothing", "{name}: {right:?}");
        for errno in ERRORS {
            // With nothing kept open, and with everything.
            for warm in [false, true] {
                for lasting in [false, true] {
                    for number in 0.. {
                        let view = serve(dir.path());
                        let id = prepare(&view, path);
                        if warm {
                            operation(&view, id).ok();
                        } else {
                            view.backing.close_all();
                        }
                        let end = if lasting { usize::MAX } else { number + 1 };
                        tried += 1;
                        if !ask(name, &view, id, operation, &right, number..end, errno) {
                            break;
                        }
                    }
                }
            }
        }
    }
    assert!(tried > 3000, "{tried} faults");
}

/// A file that is shorter than it says is an error and not the end of it.
#[test]
fn fewer_bytes_than_there_should_be_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    make_store(dir.path());
    let view = serve(dir.path());
    let id = prepare(&view, "d/long");
    let mut buffer = vec![0; 131_072];
    let read = faults::reads_of(0, || view.read(id, 0, &mut buffer));
    assert_eq!(read, Err(FsError::Backing(Errno::IO)));
    assert_eq!(view.read(id, 0, &mut buffer).unwrap().len, 131_072);
}
