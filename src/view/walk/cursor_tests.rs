//! The order of a walk, against a walk that is written down as programs do it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A directory in memory.
#[derive(Debug, Clone)]
enum Node {
    File,
    Link,
    Directory(BTreeMap<String, Node>),
}

/// Lists it, with the kinds of entries told or not.
struct Model<'a> {
    root: &'a Node,
    tells: bool,
    listed: usize,
}

impl Tree for Model<'_> {
    fn list(&mut self, dir: &[u8]) -> Option<Vec<Listed>> {
        self.listed += 1;
        let mut at = self.root;
        for name in dir.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Node::Directory(names) = at else { return None };
            at = names.get(std::str::from_utf8(name).unwrap())?;
        }
        let Node::Directory(names) = at else { return None };
        let kind = |node: &Node| match node {
            Node::Link => Kind::Other,
            _ if !self.tells => Kind::Unknown,
            Node::File => Kind::File,
            Node::Directory(_) => Kind::Directory,
        };
        Some(names.iter().map(|(name, node)| (name.as_bytes().into(), kind(node))).collect())
    }
}

fn walk(node: &Node, path: &str, order: Order, files: &mut Vec<String>) {
    let Node::Directory(names) = node else { return };
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for (name, node) in names {
        match (node, order) {
            (Node::File, Order::FilesFirst) => first.push((name, node)),
            _ => then.push((name, node)),
        }
    }
    for (name, node) in first.into_iter().chain(then) {
        match node {
            Node::File => files.push(below(name)),
            Node::Link => {}
            Node::Directory(_) => walk(node, &below(name), order, files),
        }
    }
}

fn rest(cursor: &mut Cursor, tree: &mut impl Tree) -> Vec<String> {
    let mut files = Vec::new();
    loop {
        match cursor.next(tree) {
            Next::File(path) => files.push(String::from_utf8(path.into()).unwrap()),
            Next::Later => {}
            Next::End => return files,
        }
    }
}

fn trees() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![4 => Just(Node::File), 1 => Just(Node::Link)];
    leaf.prop_recursive(24, 120, 8, |inner| {
        prop::collection::btree_map("[a-d]{1,2}", inner, 0..8).prop_map(Node::Directory)
    })
}

proptest! {
    /// Behind each file come the files that a walk reads after it, in both orders, whether listings tell kinds or not.
    #[test]
    fn a_cursor_continues_as_the_walk_does(
        top in prop::collection::btree_map("[a-d]{1,2}", trees(), 0..5),
        tells: bool,
        from: prop::sample::Index,
    ) {
        let root = Node::Directory(top);
        for order in [Order::InTurn, Order::FilesFirst] {
            // Where kinds are not told, all names look alike.
            if !tells && order == Order::FilesFirst {
                continue;
            }
            let mut files = Vec::new();
            walk(&root, "", order, &mut files);
            if files.is_empty() {
                continue;
            }
            let at = from.index(files.len());
            let mut tree = Model { root: &root, tells, listed: 0 };
            let mut cursor = Cursor::behind(files[at].as_bytes(), order);
            prop_assert_eq!(rest(&mut cursor, &mut tree), &files[at + 1..]);
        }
    }
}

#[test]
fn deeper_than_what_is_remembered_the_walk_comes_back_all_the_same() {
    let mut node = Node::File;
    for _ in 0..3 * LEVELS {
        node = Node::Directory([("a".to_owned(), node), ("b".to_owned(), Node::File)].into());
    }
    let mut files = Vec::new();
    walk(&node, "", Order::InTurn, &mut files);
    let mut tree = Model { root: &node, tells: true, listed: 0 };
    assert_eq!(rest(&mut Cursor::behind(files[0].as_bytes(), Order::InTurn), &mut tree), &files[1..]);
    let mut whole = Cursor::behind(b"0", Order::InTurn);
    whole.enter(Level { dir: Box::default(), names: tree.list(b"").unwrap(), next: 0 });
    assert_eq!(rest(&mut whole, &mut tree), files);
}

#[test]
fn a_tree_without_files_is_looked_at_a_little_at_a_time() {
    let empty = || Node::Directory(BTreeMap::new());
    let names = (0..3 * STEPS).map(|number| (format!("{number:06}"), empty()));
    let root = Node::Directory(names.chain([("z".to_owned(), Node::File)]).collect());
    let mut tree = Model { root: &root, tells: true, listed: 0 };
    let mut cursor = Cursor::behind(b"000000", Order::InTurn);
    assert_eq!(cursor.next(&mut tree), Next::Later);
    assert!(tree.listed <= STEPS, "{}", tree.listed);
    assert_eq!(rest(&mut cursor, &mut tree), ["z"]);
}

#[test]
fn large_directories_in_each_other_are_not_all_remembered() {
    const WIDE: usize = NAMES / 4;
    let mut node = Node::File;
    for _ in 0..8 {
        let names = (0..WIDE).map(|number| (format!("b{number:06}"), Node::Link));
        node = Node::Directory(names.chain([("a".to_owned(), node), ("c".to_owned(), Node::File)]).collect());
    }
    let mut files = Vec::new();
    walk(&node, "", Order::InTurn, &mut files);
    let mut tree = Model { root: &node, tells: true, listed: 0 };
    let mut cursor = Cursor::behind(b"0", Order::InTurn);
    cursor.enter(Level { dir: Box::default(), names: tree.list(b"").unwrap(), next: 0 });
    let mut found = Vec::new();
    loop {
        match cursor.next(&mut tree) {
            Next::File(path) => found.push(String::from_utf8(path.into_vec()).unwrap()),
            Next::Later => {}
            Next::End => break,
        }
        let names: usize = cursor.levels.iter().map(|level| level.names.len()).sum();
        assert!(names <= NAMES, "{names} names");
    }
    assert_eq!(found, files);
}

#[test]
fn what_is_gone_is_passed() {
    let root = Node::Directory(
        [
            ("a".to_owned(), Node::Directory([("b".to_owned(), Node::File)].into())),
            ("c".to_owned(), Node::File),
        ]
        .into(),
    );
    let mut tree = Model { root: &root, tells: true, listed: 0 };
    for gone in ["a/0", "a/x", "a/x/y"] {
        assert_eq!(rest(&mut Cursor::behind(gone.as_bytes(), Order::InTurn), &mut tree), ["c"], "{gone}");
    }
    assert_eq!(Cursor::behind(b"nothing", Order::InTurn).next(&mut tree), Next::End);
}
