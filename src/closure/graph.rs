//! A closure as a graph: who refers to whom, how far each path is from a root, and what goes with it.
//!
//! Invariants: nodes have the order of the members' names, so that whatever is printed in their order is the same each time.
//! References of a path to itself, and to what is no member, are left out.
//!
//! Sizes are those of NARs (Nix manual, "Nix Archive"). What a path brings in *alone* is the sum over all that no root reaches without it:
//! what it dominates in the sense of flow graphs, of which the entry is whoever asked for the roots.

use std::collections::VecDeque;

use petgraph::algo::dominators;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{DfsPostOrder, EdgeRef};

use crate::closure::Closure;
use crate::values::{PathInfo, StorePath};

/// A member of the closure, by its place among the members' sorted names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(u32);

impl Node {
    /// Its place among the members, from 0.
    #[must_use]
    pub fn place(self) -> usize {
        self.0 as usize
    }
}

/// What is known of one member.
#[derive(Debug)]
struct Facts<'a> {
    info: &'a PathInfo,
    references: Vec<Node>,
    referrers: Vec<Node>,
    is_root: bool,
    /// The next one on a shortest chain to a root, and the number of references on it; none: no root reaches it.
    towards_root: Option<(Option<Node>, u32)>,
    /// The second one of that chain, as seen from the root.
    brought_by: Option<Node>,
    /// The nearest other one that dominates it; none: a root is reached without any, or no root reaches it.
    dominator: Option<Node>,
    /// Bytes that go with it.
    alone: u64,
    /// The numbers that it and what it dominates have in a walk of the tree of dominators: see [`Graph::dominates`].
    span: (u32, u32),
    /// How many hold it: referrers that do not need it themselves, and whoever asked for it as a root.
    holders: usize,
}

/// The range of a node that no root reaches.
const UNREACHED: (u32, u32) = (u32::MAX, 0);

/// The graph of a closure.
#[derive(Debug)]
pub struct Graph<'a> {
    facts: Vec<Facts<'a>>,
    roots: Vec<Node>,
}

impl<'a> Graph<'a> {
    /// The graph of `closure`. Takes time linear in its references, but for the dominators, which take little more.
    #[must_use]
    pub fn new(closure: &'a Closure) -> Self {
        let facts = closure.members().map(|info| Facts {
            info,
            references: Vec::new(),
            referrers: Vec::new(),
            is_root: false,
            towards_root: None,
            brought_by: None,
            dominator: None,
            alone: info.nar_size,
            span: UNREACHED,
            holders: 0,
        });
        let mut graph = Self { facts: facts.collect(), roots: Vec::new() };
        graph.roots = closure.roots().iter().filter_map(|root| graph.node(root)).collect();
        graph.connect();
        graph.measure_distances();
        graph.weigh();
        graph
    }

    fn connect(&mut self) {
        for root in self.roots.clone() {
            if let Some(facts) = self.facts.get_mut(root.place()) {
                facts.is_root = true;
            }
        }
        for from in self.nodes() {
            let targets = self.info(from).map(|info| info.references.as_slice()).unwrap_or_default();
            let mut targets: Vec<Node> = targets.iter().filter_map(|path| self.node(path)).collect();
            targets.retain(|to| *to != from);
            targets.sort_unstable();
            targets.dedup();
            for to in &targets {
                if let Some(facts) = self.facts.get_mut(to.place()) {
                    facts.referrers.push(from);
                }
            }
            if let Some(facts) = self.facts.get_mut(from.place()) {
                facts.references = targets;
            }
        }
    }

    /// Breadth first, in the order of names: of several shortest chains, the same each time.
    fn measure_distances(&mut self) {
        let mut queue: VecDeque<(Node, Option<Node>, u32)> =
            self.roots.iter().map(|root| (*root, None, 0)).collect();
        while let Some((node, from, distance)) = queue.pop_front() {
            let before = from.and_then(|from| self.of(from)?.brought_by);
            let Some(facts) = self.facts.get_mut(node.place()) else { continue };
            if facts.towards_root.is_none() {
                facts.brought_by = from.and(before.or(Some(node)));
                facts.towards_root = Some((from, distance));
                queue.extend(facts.references.iter().map(|to| (*to, Some(node), distance.saturating_add(1))));
            }
        }
    }

    /// Finds out what each node dominates.
    fn weigh(&mut self) {
        // The last node is the entry, which refers to the roots.
        let entry = NodeIndex::new(self.facts.len());
        let mut flow = DiGraph::<(), ()>::with_capacity(self.facts.len() + 1, 0);
        (0..=self.facts.len()).for_each(|_| {
            flow.add_node(());
        });
        let index = |node: Node| NodeIndex::new(node.place());
        for (at, facts) in self.facts.iter().enumerate() {
            for to in &facts.references {
                flow.add_edge(NodeIndex::new(at), index(*to), ());
            }
        }
        for root in &self.roots {
            flow.add_edge(entry, index(*root), ());
        }
        let dominators = dominators::simple_fast(&flow, entry);
        let mut tree = DiGraph::<(), ()>::with_capacity(flow.node_count(), flow.node_count());
        (0..=self.facts.len()).for_each(|_| {
            tree.add_node(());
        });
        // Whoever is dominated is left before its dominator.
        let mut order = DfsPostOrder::new(&flow, entry);
        while let Some(node) = order.next(&flow) {
            let Some(above) = dominators.immediate_dominator(node) else { continue };
            tree.add_edge(above, node, ());
            let alone = self.facts.get(node.index()).map_or(0, |facts| facts.alone);
            if let Some(above) = self.facts.get_mut(above.index()) {
                above.alone = above.alone.saturating_add(alone);
            }
            let dominator = u32::try_from(above.index()).ok().map(Node).filter(|_| above != entry);
            if let Some(facts) = self.facts.get_mut(node.index()) {
                facts.dominator = dominator;
            }
        }
        for (facts, span) in self.facts.iter_mut().zip(spans(&tree, entry)) {
            facts.span = span;
        }
        let holders = |node| self.outside(node).count() + usize::from(self.is_root(node));
        let holders: Vec<usize> = self.nodes().map(holders).collect();
        for (facts, holders) in self.facts.iter_mut().zip(holders) {
            facts.holders = holders;
        }
    }

    /// The referrers of `node` that are reached without it.
    fn outside(&self, node: Node) -> impl Iterator<Item = Node> {
        let is_outside = move |from: &Node| self.distance(*from).is_some() && !self.dominates(node, *from);
        self.referrers(node).iter().copied().filter(is_outside)
    }

    fn of(&self, node: Node) -> Option<&Facts<'a>> {
        self.facts.get(node.place())
    }

    /// All members, in the order of their names.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = Node> + use<> {
        // A closure of more members does not fit into a store.
        (0..u32::try_from(self.facts.len()).unwrap_or(u32::MAX)).map(Node)
    }

    /// The node of `path`; none: it is no member.
    #[must_use]
    pub fn node(&self, path: &StorePath) -> Option<Node> {
        let found = self.facts.binary_search_by(|facts| facts.info.path.cmp(path)).ok()?;
        u32::try_from(found).ok().map(Node)
    }

    /// What Nix knows of a node; none: it is of another graph.
    #[must_use]
    pub fn info(&self, node: Node) -> Option<&'a PathInfo> {
        self.of(node).map(|facts| facts.info)
    }

    /// The roots, in the order of their names.
    #[must_use]
    pub fn roots(&self) -> &[Node] {
        &self.roots
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn is_root(&self, node: Node) -> bool {
        self.of(node).is_some_and(|facts| facts.is_root)
    }

    /// The members that `node` refers to, but itself, in the order of their names.
    #[must_use]
    pub fn references(&self, node: Node) -> &[Node] {
        self.of(node).map(|facts| facts.references.as_slice()).unwrap_or_default()
    }

    /// The members that refer to `node`, but itself, in the order of their names.
    #[must_use]
    pub fn referrers(&self, node: Node) -> &[Node] {
        self.of(node).map(|facts| facts.referrers.as_slice()).unwrap_or_default()
    }

    /// A shortest chain of references from a root to `node`, both included. Empty: no root reaches it.
    #[must_use]
    pub fn chain(&self, node: Node) -> Vec<Node> {
        let mut chain = Vec::new();
        let mut next = self.distance(node).map(|_| node);
        while let Some(node) = next {
            chain.push(node);
            next = self.parent(node);
        }
        chain.reverse();
        chain
    }

    /// References between a root and `node`, at least. None: no root reaches it.
    #[must_use]
    pub fn distance(&self, node: Node) -> Option<u32> {
        Some(self.of(node)?.towards_root?.1)
    }

    /// Who refers to `node` on the shortest chain to it. None: it is a root, or none reaches it.
    #[must_use]
    pub fn parent(&self, node: Node) -> Option<Node> {
        self.of(node)?.towards_root?.0
    }

    /// The member that a root refers to on the shortest chain to `node`, which may be itself. None: it is a root, or none reaches it.
    #[must_use]
    pub fn brought_by(&self, node: Node) -> Option<Node> {
        self.of(node)?.brought_by
    }

    /// Bytes that would go with `node`: its own, and those of all that no root reaches without it.
    #[must_use]
    pub fn alone(&self, node: Node) -> u64 {
        self.of(node).map_or(0, |facts| facts.alone)
    }

    /// How many hold `node`, each enough by itself: members that refer to it and do not need it to be reached themselves, and whoever
    /// asked for it as a root.
    #[must_use]
    pub fn holders(&self, node: Node) -> usize {
        self.of(node).map_or(0, |facts| facts.holders)
    }

    /// The nearest other member that dominates `node`; none: there is none, or no root reaches it.
    #[must_use]
    pub fn dominator(&self, node: Node) -> Option<Node> {
        self.of(node)?.dominator
    }

    /// Whether every chain from a root to `node` passes `by`, or they are the same.
    #[must_use]
    pub fn dominates(&self, by: Node, node: Node) -> bool {
        match (self.of(by), self.of(node)) {
            (Some(by), Some(node)) => {
                node.span != UNREACHED && by.span.0 <= node.span.0 && node.span.1 <= by.span.1
            }
            _ => false,
        }
    }

    /// Bytes that would go if `from` did not refer to `to` any more: nothing, where something else holds it.
    #[must_use]
    pub fn reference_alone(&self, from: Node, to: Node) -> u64 {
        let is_only_one = self.holders(to) == 1 && self.outside(to).eq([from]);
        if is_only_one { self.alone(to) } else { 0 }
    }
}

/// For each node the range of numbers that it and what is below it have in a walk of `tree`.
fn spans(tree: &DiGraph<(), ()>, entry: NodeIndex) -> Vec<(u32, u32)> {
    let mut spans = vec![UNREACHED; tree.node_count()];
    let mut next = 0;
    let mut walk = vec![(entry, false)];
    while let Some((node, left)) = walk.pop() {
        let Some(span) = spans.get_mut(node.index()) else { continue };
        if left {
            span.1 = next;
            continue;
        }
        *span = (next, next);
        next += 1;
        walk.push((node, true));
        walk.extend(tree.edges(node).map(|edge| (edge.target(), false)));
    }
    spans
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
