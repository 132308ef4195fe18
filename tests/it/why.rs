//! `why`: what leads to a path, with `nix why-depends` and `nix-store` as witnesses.

use std::collections::BTreeSet;

use crate::util::fixture::Fixture;
use crate::util::generated::Generated;
use crate::util::program::Program;
use crate::util::random::{Random, seed};
use crate::util::snapshot;
use crate::util::store::{Member, NixStore};

/// The store paths in a text, in their order.
fn paths(text: &str) -> Vec<String> {
    let found = text.match_indices("/nix/store/").map(|(at, _)| &text[at..]);
    let end = |text: &str| {
        text.find(|c: char| !c.is_ascii_alphanumeric() && !"/+-._?=".contains(c)).unwrap_or(text.len())
    };
    found.map(|text| text[..end(text)].to_owned()).collect()
}

fn why_depends(store: &NixStore, from: &Member, to: &Member, options: &[&str]) -> String {
    let command = ["--extra-experimental-features", "nix-command", "why-depends", "--store"];
    let uri = store.uri();
    let arguments = command.into_iter().chain([uri.as_str()]).chain(options.iter().copied());
    store.nix("nix", arguments.chain([from.path.as_str(), to.path.as_str()]), b"")
}

fn why(store: &NixStore, root: &Member, arguments: &[&str]) -> String {
    let finished =
        Program::new().arg("why").args(["--store", &store.uri(), "--root", &root.path]).args(arguments).run();
    assert_eq!(finished.status.code(), Some(0), "{}", snapshot::render(&finished));
    finished.stdout
}

/// On closures of any shape: the shortest chain is as short as Nix's, and `--all` shows the paths that Nix shows.
#[test]
fn chains_agree_with_nix() {
    need!(Nix);
    let random = &mut Random::new(seed("why"));
    for round in 0..2 {
        let store = NixStore::new();
        let names: Vec<String> = (0..18).map(|n| format!("p{n}-{round}")).collect();
        let made = Generated::new(&store, random, &names, 4);
        let root = &made.members[0];
        for to in made.reached(0).into_iter().filter(|to| *to != 0) {
            let target = &made.members[to];
            let shortest = paths(&why(&store, root, &[&target.path]));
            let expected = paths(&why_depends(&store, root, target, &[]));
            assert_eq!(shortest.len(), expected.len(), "{shortest:?} against {expected:?}");
            assert_eq!((shortest.first(), shortest.last()), (Some(&root.path), Some(&target.path)));
            for pair in shortest.windows(2) {
                let references = store.nix("nix-store", ["-q", "--references", &pair[0]], b"");
                assert!(references.lines().any(|line| line == pair[1]), "{pair:?}");
            }
            let all: BTreeSet<String> =
                paths(&why(&store, root, &["--all", &target.base])).into_iter().collect();
            let expected: BTreeSet<String> =
                paths(&why_depends(&store, root, target, &["--all"])).into_iter().collect();
            assert_eq!(all, expected, "to {}", target.path);
        }
    }
}

/// Each reference of the chain is found in the file or link that was made for it, at its byte.
#[test]
fn references_are_found_where_they_stand() {
    need!(Nix);
    let random = &mut Random::new(seed("why --precise"));
    let store = NixStore::new();
    let names: Vec<String> = (0..12).map(|n| format!("precise-{n}")).collect();
    let made = Generated::new(&store, random, &names, 3);
    let number = |path: &str| made.members.iter().position(|member| member.path == path).unwrap();
    let mut found = 0;
    for to in made.reached(0).into_iter().filter(|to| *to != 0) {
        let text = why(&store, &made.members[0], &["--precise", &made.members[to].path]);
        let mut above = None;
        let mut places: Vec<(&str, &str)> = Vec::new();
        for line in text.lines().map(str::trim) {
            let Some(path) = line.strip_prefix("→ ").or(line.starts_with("/nix/store/").then_some(line))
            else {
                places.push(line.split_once(", ").unwrap());
                continue;
            };
            if let Some(from) = above.replace(path) {
                let [(file, place)] = places[..] else { panic!("{text}") };
                let physical = store.physical().join(&made.members[number(from)].base).join(file);
                let target = &made.members[number(path)];
                assert!(file.ends_with(&format!("-{}", number(path))), "{text}");
                if let Some(rest) = place.strip_prefix("byte ") {
                    let (at, excerpt) = rest.split_once(": ").unwrap();
                    let bytes = std::fs::read(physical).unwrap();
                    assert!(bytes[at.parse::<usize>().unwrap()..].starts_with(&target.base.as_bytes()[..32]));
                    assert!(excerpt.contains(&target.base), "{text}");
                } else {
                    assert_eq!(place, format!("link to {}", target.path));
                    assert_eq!(physical.read_link().unwrap().to_str(), Some(target.path.as_str()));
                }
                found += 1;
            }
            places.clear();
        }
    }
    assert!(found > 0 || made.reached(0).len() == 1, "nothing was looked for");
}

/// Every way of saying which path is meant, and what is said of one that is not there.
#[test]
fn what_is_meant_and_what_is_not_there() {
    need!(Nix);
    let store = NixStore::new();
    let file = |path: &std::path::Path| std::fs::write(path, "x").unwrap();
    let library = store.add("openssl-3.0.14", &[], file);
    let tools = store.add("openssl-3.0.14-bin", &[&library], file);
    let old = store.add("openssl-1.1.1", &[], file);
    let system = store.add("nixos-system-web-24.11", &[&tools, &library], file);
    let absent = NixStore::name("openssl-2.0");
    let run = |asked: &str| {
        Program::new().arg("why").args(["--store", &store.uri(), "--root", &system.path, asked]).run()
    };
    let physical = store.physical().join(&library.base);
    let shown = format!("{}\n  → {}\n", system.path, library.path);
    for asked in [
        &library.path,
        &library.base,
        "openssl-3.0.14",
        &format!("{}/lib/x", library.path),
        physical.to_str().unwrap(),
    ] {
        let finished = run(asked);
        assert_eq!((finished.status.code(), &finished.stdout), (Some(0), &shown), "{asked}");
    }
    let link = store.root().join("link");
    std::os::unix::fs::symlink(&physical, &link).unwrap();
    assert_eq!(run(link.to_str().unwrap()).stdout, shown);
    assert_eq!(run("nixos-system-web").stdout, format!("{}\n", system.path));
    assert_run!("why-several", &run("openssl"));
    assert_run!("why-on-host", &run(&old.path));
    assert_run!("why-name-on-host", &run("openssl-1.1.1"));
    assert_run!("why-not-on-host", &run(&absent.path));
    assert_run!("why-nothing-like-it", &run("zzz"));
    assert_run!("why-outside-the-store", &run("/bin/sh"));
    assert_eq!(run("openssl-3").stdout, run("openssl").stdout.replace("'openssl'", "'openssl-3'"));
    assert_eq!(run(&library.base[..9]).stdout, shown);
}

/// Names of files that would command a terminal, or end the line, are shown as what they are.
#[test]
fn hostile_names_of_files_are_escaped() {
    need!(Nix);
    let fixture = Fixture::new();
    let store = &fixture.store;
    let hostile = store.add("hostile", &[&fixture.file], |path| {
        use std::os::unix::ffi::OsStrExt;
        std::fs::create_dir(path).unwrap();
        let name = std::ffi::OsStr::from_bytes(b"a\n\x1b[2J\xff");
        std::fs::write(path.join(name), format!("\x1b]0;title\x07{}\x1b[31m", fixture.file.path)).unwrap();
    });
    let coloured = why(store, &hostile, &["--precise", "--color=always", &fixture.file.base]);
    let text = why(store, &hostile, &["--precise", &fixture.file.base]);
    assert_eq!(coloured.replace("\u{1b}[2m", "").replace("\u{1b}[1m", "").replace("\u{1b}[0m", ""), text);
    assert_ne!(coloured, text);
    assert_eq!(
        text.lines().nth(1),
        Some(format!("  a\\n\\u{{1b}}[2J\\xff, byte 21: {}", fixture.file.path).as_str()),
        "{text}"
    );
}
