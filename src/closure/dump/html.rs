//! A closure as one page for a browser: a map by size, search, and what refers to what.
//!
//! The map is a treemap of the tree of dominators: a path stands inside the one without which no root would reach it. So the area of a
//! path with all that is in it is what it alone brings in, every path has one place, and what is shared stands where its users meet. By
//! references it would stand at each of its users, or at an arbitrary one.
//!
//! Invariants:
//! 1. The page asks nobody for anything. Its Content-Security-Policy allows this script, this style, and nothing else: by their hashes,
//!    so that markup that came in with data would do nothing even if it were taken for markup.
//! 2. What comes from a store is data: one JSON text, in which no character means anything to HTML, and which the script gives to
//!    nothing but the text of elements.
//!
//! Hard point: a browser ignores a script whose hash is another. [`SCRIPT_HASH`] and [`STYLE_HASH`] change with their files; a test gives the
//! new ones.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::closure::Closure;
use crate::closure::graph::{Graph, Node};

/// The page, with the names of what is put into it between `@`.
const PAGE: &str = include_str!("page/page.html");
/// One script of the parts of the page, each of which uses those before it when it is read, and any of them later.
const SCRIPT: &str = concat!(
    include_str!("page/graph.js"),
    include_str!("page/facts.js"),
    include_str!("page/list.js"),
    include_str!("page/map.js"),
    include_str!("page/start.js"),
);
const STYLE: &str = include_str!("page/page.css");

/// SHA-256 of [`SCRIPT`] in base 64, as Content-Security-Policy (level 3, "hash-source") wants it.
const SCRIPT_HASH: &str = "TwKgRR4NtSJkBCEPCbi5kkEz2I0GcR5E6OCLfo8MNiw=";
/// That of [`STYLE`].
const STYLE_HASH: &str = "7F+pkVYxm1m6xeeee4+n02+CV6AWKmtaOmkR7yBB5wQ=";

/// Stands for "none" where a path has no parent or dominator.
const NONE: i64 = -1;

/// What the script reads. Members are meant by their places in `names`; every list but `roots` has one item for each.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    store_dir: String,
    roots: Vec<usize>,
    names: Vec<&'a str>,
    /// Bytes of each by itself.
    own: Vec<u64>,
    /// Bytes that go with each.
    alone: Vec<u64>,
    /// How many hold each.
    holders: Vec<usize>,
    /// Who refers to each on the shortest chain to it; [`NONE`]: it is a root, or none reaches it.
    parents: Vec<i64>,
    /// The nearest without which no root reaches each; [`NONE`]: there is none.
    dominators: Vec<i64>,
    references: Vec<Vec<usize>>,
}

fn data<'a>(closure: &'a Closure, graph: &Graph<'a>, store_dir: &Path) -> Data<'a> {
    let place = |node: Option<Node>| node.and_then(|node| i64::try_from(node.place()).ok()).unwrap_or(NONE);
    let places = |nodes: &[Node]| nodes.iter().map(|node| node.place()).collect::<Vec<_>>();
    Data {
        store_dir: store_dir.display().to_string(),
        roots: places(graph.roots()),
        names: closure.members().map(|info| info.path.as_str()).collect(),
        own: closure.members().map(|info| info.nar_size).collect(),
        alone: graph.nodes().map(|node| graph.alone(node)).collect(),
        holders: graph.nodes().map(|node| graph.holders(node)).collect(),
        parents: graph.nodes().map(|node| place(graph.parent(node))).collect(),
        dominators: graph.nodes().map(|node| place(graph.dominator(node))).collect(),
        references: graph.nodes().map(|node| places(graph.references(node))).collect(),
    }
}

/// Writes JSON that stands in an element of a page: characters that could end the element, begin a comment, or that old readers take for
/// the end of a line become escapes. Outside of its strings JSON has none of them.
fn write_embedded(json: &str, out: &mut dyn io::Write) -> io::Result<()> {
    let mut rest = json;
    while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        let (before, from) = rest.split_at(at);
        out.write_all(before.as_bytes())?;
        let mut characters = from.chars();
        if let Some(character) = characters.next() {
            write!(out, "\\u{:04x}", u32::from(character))?;
        }
        rest = characters.as_str();
    }
    out.write_all(rest.as_bytes())
}

pub(super) fn write(closure: &Closure, store_dir: &Path, out: &mut dyn io::Write) -> io::Result<()> {
    let graph = Graph::new(closure);
    for (number, part) in PAGE.split('@').enumerate() {
        match (number % 2, part) {
            (1, "policy") => write!(
                out,
                "default-src 'none'; script-src 'sha256-{SCRIPT_HASH}'; style-src 'sha256-{STYLE_HASH}'; \
                 base-uri 'none'; form-action 'none'"
            )?,
            (1, "style") => out.write_all(STYLE.as_bytes())?,
            (1, "script") => out.write_all(SCRIPT.as_bytes())?,
            (1, "data") => write_embedded(&serde_json::to_string(&data(closure, &graph, store_dir))?, out)?,
            _ => out.write_all(part.as_bytes())?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
