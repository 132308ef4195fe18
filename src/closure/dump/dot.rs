//! A graph for Graphviz.
//!
//! Invariant: a node's id is the base name of its path and an edge runs from a path to one that refers to it, as `nix-store
//! --query --graph` has them, so that what reads that reads this. It is drawn with the arrow at the other end, at the path
//! referred to, and with the roots on top. Nodes and edges have the order of their names.
//!
//! Names of store paths hold neither quotation marks nor backslashes, and nothing else of the database is printed.

use std::fmt::Write;

use crate::closure::Closure;

const HEAD: &str = "digraph closure {\nrankdir = BT;\nnode [shape = box];\nedge [dir = back];\n";

pub(super) fn render(closure: &Closure) -> Vec<u8> {
    let mut text = HEAD.to_owned();
    for info in closure.members() {
        let is_root = closure.roots().binary_search(&info.path).is_ok();
        let mark = if is_root { ", peripheries = 2, style = bold" } else { "" };
        let (path, name) = (&info.path, info.path.name());
        // Nix has 0 for a size that it does not know.
        let size = if info.nar_size == 0 { String::new() } else { format!("\\n{}", size(info.nar_size)) };
        // A string takes whatever is written.
        let _ = writeln!(text, "\"{path}\" [label = \"{name}{size}\"{mark}];");
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            let _ = writeln!(text, "\"{reference}\" -> \"{path}\";");
        }
    }
    text.push_str("}\n");
    text.into_bytes()
}

/// Three digits or four, and a binary unit.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = "B";
    // In tenths, rounded down; twelve more bits than a size of 64 has.
    let mut tenths = u128::from(bytes) * 10;
    for larger in UNITS {
        if tenths < 10_240 {
            break;
        }
        (unit, tenths) = (larger, tenths / 1024);
    }
    match (unit, tenths) {
        ("B", _) | (_, 1000..) => format!("{} {unit}", tenths / 10),
        _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_as_people_read_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1075, "1.0 KiB"),
            (1076, "1.0 KiB"),
            (1127, "1.1 KiB"),
            (102_399, "99.9 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1023 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
