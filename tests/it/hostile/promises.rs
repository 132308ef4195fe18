//! Each promise of docs/security.md names a test, and the test is there.

use std::fs;
use std::path::Path;

use crate::rooms::sources;

/// The source of `a::b::test`: `a/b.rs`, or for a whole module, `a.rs` or `a/mod.rs`.
fn module(names: &[&str]) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(names.join("/"));
    [path.with_extension("rs"), path.join("mod.rs")].iter().find_map(|file| fs::read_to_string(file).ok())
}

fn has_test(source: &str, name: &str) -> bool {
    let mut lines = source.lines().map(str::trim);
    let mut is_test = false;
    lines.any(|line| {
        let found = is_test && line.starts_with(&format!("fn {name}("));
        is_test = line == "#[test]" || is_test && (line.starts_with('#') || line.starts_with("//"));
        found
    })
}

#[test]
fn each_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let (promises, _) = page.split_once("\n## Rights").unwrap();
    let mut library = Vec::new();
    sources(&root.join("src"), &mut library);
    let library: String = library.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let rows = promises.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |"));
    let mut named = 0;
    for row in rows.filter(|row| !row.starts_with("| |")) {
        let last = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        let tests: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            let parts: Vec<&str> = test.split("::").collect();
            let (name, modules) = parts.split_last().unwrap();
            let is_there = if last.starts_with("library test") {
                has_test(&library, name)
            } else {
                module(&parts).is_some() || module(modules).is_some_and(|source| has_test(&source, name))
            };
            assert!(is_there, "there is no test {test}: {row}");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
}
