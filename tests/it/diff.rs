//! `diff`: in what two closures differ, with `nix store diff-closures` and `nix-store` as witnesses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::util::generated::Generated;
use crate::util::program::Program;
use crate::util::random::{Random, seed};
use crate::util::schema::Schema;
use crate::util::snapshot;
use crate::util::store::NixStore;

fn diff(store: &NixStore, arguments: &[&str]) -> String {
    let finished = Program::new().arg("diff").args(["--store", &store.uri()]).args(arguments).run();
    assert_eq!(finished.status.code(), Some(0), "{}", snapshot::render(&finished));
    finished.stdout
}

/// Versions that went and that came, by package.
type Versions = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

/// What `nix store diff-closures` says: `name: 1, 2 → 3, +1.0 KiB`.
fn as_nix_has_it(text: &str) -> Versions {
    let side = |text: &str| match text {
        "∅" => BTreeSet::new(),
        _ => text.split(", ").filter(|part| !part.contains("KiB")).map(str::to_owned).collect(),
    };
    let plain = text.replace("\u{1b}[31;1m", "").replace("\u{1b}[32;1m", "").replace("\u{1b}[0m", "");
    let lines = plain.lines().filter_map(|line| line.split_once(": "));
    let changed = lines.filter_map(|(name, rest)| Some((name, rest.split_once(" → ")?)));
    changed.map(|(name, (old, new))| (name.to_owned(), (side(old), side(new)))).collect()
}

/// On closures of any shape: the same packages have the same versions gone and come, and the paths are those of `nix-store`.
#[test]
fn changes_agree_with_nix() {
    need!(Nix);
    let random = &mut Random::new(seed("diff"));
    let store = NixStore::new();
    let mut names = BTreeSet::new();
    while names.len() < 40 {
        let output = ["", "", "", "-bin", "-lib32"][random.below(5)];
        names.insert(format!(
            "{}-{}.0{output}",
            ["curl", "jq", "zlib", "perl-uri", "glibc"][random.below(5)],
            random.below(9)
        ));
    }
    let mut names: Vec<String> = names.into_iter().collect();
    for at in (1..names.len()).rev() {
        names.swap(at, random.below(at + 1));
    }
    let made = Generated::new(&store, random, &names, 3);
    let schema = Schema::new("diff");
    for _ in 0..12 {
        let (old, new) = (random.below(20), random.below(20));
        let [old, new] = [old, new].map(|n| made.members[n].path.as_str());
        let json: Value = serde_json::from_str(&diff(&store, &[old, new, "--json"])).unwrap();
        schema.check(&json);
        let texts = |value: &Value| -> BTreeSet<String> {
            value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let packages = json["packages"].as_array().unwrap();
        let versions: Versions = packages
            .iter()
            .map(|package| {
                let [old, new] = ["old", "new"].map(|side| texts(&package[side]["versions"]));
                (package["name"].as_str().unwrap().to_owned(), (&old - &new, &new - &old))
            })
            .filter(|(_, (gone, come))| !gone.is_empty() || !come.is_empty())
            .collect();
        let uri = store.uri();
        let command =
            ["--extra-experimental-features", "nix-command", "store", "diff-closures", "--store", &uri];
        let expected = as_nix_has_it(&store.nix("nix", command.into_iter().chain([old, new]), b""));
        assert_eq!(versions, expected, "{old} to {new}");
        let closure = |root: &str| -> BTreeSet<String> {
            let paths = store.nix("nix-store", ["-qR", root], b"");
            paths.lines().map(|path| path.strip_prefix("/nix/store/").unwrap().to_owned()).collect()
        };
        let told = |side: &str| {
            packages.iter().flat_map(|package| texts(&package[side]["paths"])).collect::<BTreeSet<_>>()
        };
        assert_eq!(told("old"), &closure(old) - &closure(new));
        assert_eq!(told("new"), &closure(new) - &closure(old));
        for package in packages {
            let Some(cause) = package["cause"].as_str() else { continue };
            let root = if package["change"] == "removed" { old } else { new };
            let references = store.nix("nix-store", ["-q", "--references", root], b"");
            assert!(
                references.lines().any(|line| line.ends_with(cause)),
                "{cause} is no reference of {root}"
            );
        }
    }
}

/// Generations of a profile, and what is printed.
#[test]
fn generations_of_a_profile() {
    need!(Nix);
    let store = NixStore::new();
    let file = |bytes: usize| move |path: &std::path::Path| std::fs::write(path, "x".repeat(bytes)).unwrap();
    let library = store.add("openssl-3.0.14", &[], file(1000));
    let newer = store.add("openssl-3.0.15", &[], file(200_000));
    let gone = store.add("jq-1.6", &[], file(3_000_000));
    let fresh = store.add("unit-web.service", &[], file(10));
    let nginx = [&library, &newer].map(|library| {
        store.add(
            &format!("nginx-1.27{}", if library.base.contains("14") { "" } else { ".0" }),
            &[library],
            file(10),
        )
    });
    let old = store.add("system-web-24.05", &[&nginx[0], &gone], file(1));
    let new = store.add("system-web-24.11", &[&nginx[1], &fresh], file(1));
    let links = [("web-12-link", &old), ("web-13-link", &new)]
        .map(|(name, system)| store.profile(name, &system.path));
    let [from, to] = links.each_ref().map(|link| link.to_str().unwrap());
    assert_run!("diff", &Program::new().arg("diff").args(["--store", &store.uri(), from, to]).run());
    assert_run!(
        "diff-json",
        &Program::new().arg("diff").args(["--store", &store.uri(), from, to, "--json"]).run()
    );
    // Into a pipe nothing but what was asked for is coloured.
    let [auto, never, always] =
        ["auto", "never", "always"].map(|when| diff(&store, &[from, to, "--color", when]));
    assert_eq!(auto, diff(&store, &[from, to]));
    assert_eq!(never, auto);
    assert!(!auto.contains('\u{1b}') && always.contains("\u{1b}[1m"), "{auto}{always}");
    assert_eq!(diff(&store, &[from, from]).lines().last(), Some("The closures have the same paths"));
    let saved = store.root().join("other.json");
    let json = Program::on(&store).args(["--system", from, "--dump-closure=json"]).run().stdout;
    std::fs::write(&saved, json.replace("\"/nix/store\"", "\"/gnu/store\"")).unwrap();
    let other =
        Program::new().arg("diff").args(["--store", &store.uri(), from, saved.to_str().unwrap()]).run();
    assert_eq!(other.status.code(), Some(3), "{}", snapshot::render(&other));
    assert!(other.stderr.contains("'/gnu/store'"), "{}", other.stderr);
    let absent = Program::new().arg("diff").args(["--store", &store.uri(), from, "web-14-link"]).run();
    assert_eq!(absent.status.code(), Some(3), "{}", snapshot::render(&absent));
    assert!(absent.stderr.contains("web-14-link"), "{}", absent.stderr);
}
