//! A closure as a tree, for people: each path once, below the referrer through which it is nearest to a root.
//!
//! A line has the path's own size, what the reference above it alone brings in, and its name. Where something else holds the path as
//! well, cutting that reference would bring nothing, and the line has the number of those that hold it. A root is held by whoever asked
//! for it; its line has what goes with it.
//!
//! What stands below the same referrer has the heaviest first, as names begin with a hash and their order means nothing to people. Members that no root reaches, as a file
//! that was edited may have, are at the end.
//!
//! Hard points:
//! 1. A chain may be as long as the closure. So nothing here calls itself, and of what is deeper than [`DEPTH_MAX`] the depth is
//!    written and not drawn, or the output would grow with its square.
//! 2. Names are those of the store's grammar, which has no character that means anything to a terminal. The store's directory, which
//!    has no grammar, is not written.

use std::cmp::Reverse;
use std::io;

use anstyle::Style;

use crate::closure::Closure;
use crate::closure::graph::{Graph, Node};
use crate::values::Size;

/// Levels that are drawn.
const DEPTH_MAX: usize = 64;

/// What is asked for.
const ROOT: Style = Style::new().bold();
/// What a reader passes over: what is not said, and the lines between a member and the one above it.
const FAINT: Style = Style::new().dimmed();

/// What a member's line says.
struct Line<'a> {
    is_root: bool,
    own: u64,
    brings: Brings,
    /// Whether another one follows at each level down to its own, of those that are drawn.
    followed: &'a [bool],
    depth: usize,
    name: &'a str,
}

/// What one reference brings in.
enum Brings {
    /// Bytes that go with it.
    Alone(u64),
    /// Nothing, as so many hold its target.
    Held(usize),
    /// Nothing, as no root reaches its target.
    Unreached,
}

/// The members below each one, by place.
struct Tree<'a> {
    graph: &'a Graph<'a>,
    below: Vec<Vec<Node>>,
}

impl<'a> Tree<'a> {
    fn new(graph: &'a Graph<'a>) -> Self {
        let mut below = vec![Vec::new(); graph.nodes().count()];
        for node in graph.nodes() {
            let parent = graph.parent(node).and_then(|parent| below.get_mut(parent.place()));
            parent.into_iter().for_each(|siblings| siblings.push(node));
        }
        let mut tree = Self { graph, below: Vec::new() };
        for siblings in &mut below {
            tree.sort(siblings);
        }
        tree.below = below;
        tree
    }

    /// The heaviest first: what its reference brings in, then its own size; of the same weight in the order of names.
    fn sort(&self, siblings: &mut [Node]) {
        siblings.sort_by_cached_key(|node| {
            let brings = match self.brings(*node) {
                Brings::Alone(bytes) => bytes,
                Brings::Held(_) | Brings::Unreached => 0,
            };
            Reverse((brings, self.own(*node), Reverse(*node)))
        });
    }

    fn own(&self, node: Node) -> u64 {
        self.graph.info(node).map_or(0, |info| info.nar_size)
    }

    fn brings(&self, node: Node) -> Brings {
        match (self.graph.parent(node), self.graph.holders(node)) {
            (Some(parent), 1) => Brings::Alone(self.graph.reference_alone(parent, node)),
            (Some(_), holders) => Brings::Held(holders),
            (None, _) if self.graph.is_root(node) => Brings::Alone(self.graph.alone(node)),
            (None, _) => Brings::Unreached,
        }
    }

    /// Writes `tops` with all that is below them.
    fn write(&self, mut tops: Vec<Node>, out: &mut dyn io::Write) -> io::Result<()> {
        self.sort(&mut tops);
        let mut followed: Vec<bool> = Vec::new();
        // The next one is at the end: a node, its depth, and whether a sibling follows.
        let mut next: Vec<(Node, usize, bool)> =
            tops.into_iter().rev().map(|node| (node, 0, false)).collect();
        while let Some((node, depth, is_followed)) = next.pop() {
            if let Some(level) = depth.checked_sub(1).filter(|level| *level < DEPTH_MAX) {
                followed.truncate(level);
                followed.push(is_followed);
            }
            let drawn = followed.get(..depth.min(DEPTH_MAX)).unwrap_or_default();
            let name = self.graph.info(node).map_or("", |info| info.path.as_str());
            let (own, brings) = (self.own(node), self.brings(node));
            let is_root = self.graph.is_root(node);
            write_line(&Line { is_root, own, brings, followed: drawn, depth, name }, out)?;
            let below = self.below.get(node.place()).map(Vec::as_slice).unwrap_or_default();
            let last = below.last();
            next.extend(below.iter().rev().map(|node| (*node, depth + 1, Some(node) != last)));
        }
        Ok(())
    }
}

fn write_line(line: &Line<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    write!(out, "{:>10}  ", Size(line.own))?;
    match line.brings {
        Brings::Alone(bytes) => write!(out, "{:>12}  ", Size(bytes))?,
        Brings::Held(holders) => write!(out, "{FAINT}{:>12}{FAINT:#}  ", format!("held by {holders}"))?,
        Brings::Unreached => write!(out, "{FAINT}{:>12}{FAINT:#}  ", "-")?,
    }
    if let Some((own, above)) = line.followed.split_last() {
        write!(out, "{FAINT}")?;
        for is_followed in above {
            out.write_all(if *is_followed { "│  " } else { "   " }.as_bytes())?;
        }
        write!(out, "{}{FAINT:#}", if *own { "├─ " } else { "└─ " })?;
    }
    if line.depth > DEPTH_MAX {
        write!(out, "{FAINT}({} levels down){FAINT:#} ", line.depth)?;
    }
    let style = if line.is_root { ROOT } else { Style::new() };
    writeln!(out, "{style}{}{style:#}", line.name)
}

/// With colours, which whoever prints it takes out where they are not wanted.
pub(super) fn write(closure: &Closure, out: &mut dyn io::Write) -> io::Result<()> {
    let graph = Graph::new(closure);
    let tree = Tree::new(&graph);
    writeln!(out, "{FAINT}{:>10}  {:>12}  path{FAINT:#}", "own size", "brings in")?;
    tree.write(graph.roots().to_vec(), out)?;
    let unreached: Vec<Node> = graph.nodes().filter(|node| graph.distance(*node).is_none()).collect();
    if !unreached.is_empty() {
        writeln!(out, "\nreached from no root:")?;
        tree.write(unreached, out)?;
    }
    let paths = match closure.len() {
        1 => "1 path".to_owned(),
        count => format!("{count} paths"),
    };
    writeln!(out, "\n{:>10}  {paths}", Size(closure.nar_size()))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
