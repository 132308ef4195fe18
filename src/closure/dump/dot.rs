//! A graph for Graphviz.
//!
//! Invariant: a node's id is the base name of its path and an edge runs from a path to one that refers to it, as `nix-store
//! --query --graph` has them, so that what reads that reads this. It is drawn with the arrow at the other end, at the path
//! referred to, and with the roots on top. Nodes and edges have the order of their names.
//!
//! Names of store paths hold neither quotation marks nor backslashes, and nothing else of the database is printed.

use std::fmt::Write;

use crate::closure::Closure;
use crate::values::Size;

const HEAD: &str = "digraph closure {\nrankdir = BT;\nnode [shape = box];\nedge [dir = back];\n";

pub(super) fn render(closure: &Closure) -> Vec<u8> {
    let mut text = HEAD.to_owned();
    for info in closure.members() {
        let is_root = closure.roots().binary_search(&info.path).is_ok();
        let mark = if is_root { ", peripheries = 2, style = bold" } else { "" };
        let (path, name) = (&info.path, info.path.name());
        // Nix has 0 for a size that it does not know.
        let size = if info.nar_size == 0 { String::new() } else { format!("\\n{}", Size(info.nar_size)) };
        // A string takes whatever is written.
        let _ = writeln!(text, "\"{path}\" [label = \"{name}{size}\"{mark}];");
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            let _ = writeln!(text, "\"{reference}\" -> \"{path}\";");
        }
    }
    text.push_str("}\n");
    text.into_bytes()
}
