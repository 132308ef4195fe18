//! What tells of a closure, on a real one: a system in the machine's own store, which `NSF_SYSTEM` names. By hand, as no fresh machine
//! has one: `NSF_SYSTEM=/nix/store/…-system cargo test --test it -- corpus::`.
//!
//! The same witnesses as for the small closures: `nix-store`, `nix why-depends` and `nix store diff-closures`.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::util::load::say;
use crate::util::program::Program;
use crate::util::random::{Random, seed};
use crate::util::snapshot;

/// Members that chains are compared for.
const CHAINS: usize = 25;

fn system() -> Option<String> {
    let system = std::env::var("NSF_SYSTEM").ok();
    if system.is_none() {
        say("not run: a real closure (NSF_SYSTEM names none)");
    }
    system
}

fn ours(arguments: &[&str]) -> String {
    let finished = Program::new().args(arguments).env("NIX_REMOTE", "local").run();
    assert_eq!(finished.status.code(), Some(0), "{arguments:?}: {}", snapshot::render(&finished));
    finished.stdout
}

fn nix(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const FEATURES: [&str; 2] = ["--extra-experimental-features", "nix-command"];

fn paths(text: &str) -> Vec<String> {
    let is_end = |c: char| !c.is_ascii_alphanumeric() && !"+-._?=".contains(c);
    let found = text.match_indices("/nix/store/").map(|(at, start)| (at + start.len(), text));
    found.map(|(at, text)| text[at..].split(is_end).next().unwrap().to_owned()).collect()
}

#[test]
fn formats_of_a_real_closure_agree_with_nix() {
    let Some(system) = system() else { return };
    let dump = |format: &str| ours(&["--system", &system, &format!("--dump-closure={format}")]);
    let mut closure: Vec<String> = nix("nix-store", &["-qR", &system]).lines().map(str::to_owned).collect();
    closure.sort();
    say(&format!("{} store paths", closure.len()));
    assert_eq!(dump("text").lines().collect::<Vec<_>>(), closure);
    assert_eq!(dump("store-paths").lines().collect::<Vec<_>>(), closure);
    let all: Vec<&str> = ["--dump-db"].into_iter().chain(closure.iter().map(String::as_str)).collect();
    assert_eq!(dump("registration"), nix("nix-store", &all));
    let edges = |text: &str| -> BTreeSet<(String, String)> {
        let lines = text.lines().filter_map(|line| line.split_once(" -> "));
        let end = |text: &str| text.trim().split('"').nth(1).unwrap().to_owned();
        lines.map(|(from, to)| (end(from), end(to))).collect()
    };
    let graph = edges(&nix("nix-store", &["-q", "--graph", &system]));
    assert_eq!(edges(&dump("dot")), graph);
    let json: Value = serde_json::from_str(&dump("json")).unwrap();
    let info = json["info"].as_object().unwrap();
    assert_eq!(info.len(), closure.len());
    // Each path once in the tree and in the page.
    for format in ["tree", "html"] {
        let text = dump(format);
        for path in &closure {
            let base = path.strip_prefix("/nix/store/").unwrap();
            assert!(text.contains(base), "{format} lacks {base}");
        }
    }
    say(&format!("{} edges; json, dot, registration, lists agree", graph.len()));
}

#[test]
fn chains_and_changes_of_a_real_closure_agree_with_nix() {
    let Some(system) = system() else { return };
    let random = &mut Random::new(seed("corpus"));
    let closure: Vec<String> = nix("nix-store", &["-qR", &system]).lines().map(str::to_owned).collect();
    let depends = |options: &[&str], to: &str| {
        let words: Vec<&str> =
            FEATURES.into_iter().chain(["why-depends"]).chain(options.iter().copied()).collect();
        paths(&nix("nix", &[&words[..], &[&system, to]].concat()))
    };
    for _ in 0..CHAINS {
        let to = &closure[random.below(closure.len())];
        if *to == system {
            continue;
        }
        let (chain, expected) = (paths(&ours(&["why", to, "--system", &system])), depends(&[], to));
        assert_eq!(
            (chain.len(), chain.last()),
            (expected.len(), expected.last()),
            "{chain:?} against {expected:?}"
        );
        let all: BTreeSet<String> =
            paths(&ours(&["why", to, "--system", &system, "--all"])).into_iter().collect();
        assert_eq!(all, depends(&["--all"], to).into_iter().collect(), "to {to}");
        let precise = ours(&["why", to, "--system", &system, "--precise"]);
        assert!(!precise.contains("in none of its files"), "{precise}");
        let changed: Value = serde_json::from_str(&ours(&["diff", &system, to, "--json"])).unwrap();
        let gone = changed["packages"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|package| package["old"]["paths"].as_array().unwrap());
        let gone: BTreeSet<String> = gone.map(|path| path.as_str().unwrap().to_owned()).collect();
        let rest: BTreeSet<String> = paths(&nix("nix-store", &["-qR", to])).into_iter().collect();
        let whole: BTreeSet<String> =
            closure.iter().map(|path| path.strip_prefix("/nix/store/").unwrap().to_owned()).collect();
        assert_eq!(gone, &whole - &rest);
    }
}
