//! What the forms of `--dump-closure` promise to other programs, with those programs as witnesses.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use crate::util::fixture::Fixture;
use crate::util::mounts::Own;
use crate::util::program::Program;
use crate::util::scratch;
use crate::util::store::{Member, NixStore};

/// A closure with all that a database may say of a path: content addresses of each kind, a deriver, signatures, a path that
/// refers to itself; and valid paths that are not in it.
struct Store {
    store: NixStore,
    system: Member,
    /// The closure, sorted, as `nix-store` tells it.
    members: Vec<String>,
}

impl Store {
    fn new() -> Self {
        let Fixture { store, system: below, .. } = Fixture::new();
        let files = scratch();
        let file = files.path().join("added");
        fs::write(&file, "added by content").unwrap();
        let file = file.to_str().unwrap();
        let added = |arguments: &[&str]| member(store.nix("nix-store", arguments, b"").trim());
        let tree = added(&["--add", file]);
        let flat = added(&["--add-fixed", "sha1", file]);
        let expression = format!(
            r#"derivation {{ name = "never-built"; system = "x"; builder = "x"; passed = builtins.toFile "passed" "text"; file = {file}; }}"#
        );
        let derivation = member(store.nix("nix-instantiate", ["--expr", &expression], b"").trim());
        // Importing sets no deriver, and nothing does later.
        let itself =
            store.put_in_place("itself", |path| fs::write(path, NixStore::name("itself").path).unwrap());
        let physical = store.physical().join(&itself.base).display().to_string();
        let hash = store.nix("nix-hash", ["--type", "sha256", &physical], b"");
        let size = store.nix("sh", ["-c", "nix-store --dump \"$0\" | wc -c", &physical], b"");
        let lines = [&itself.path, hash.trim(), size.trim(), &derivation.path, "2", &flat.path, &itself.path];
        store.nix("nix-store", ["--load-db"], (lines.join("\n") + "\n").as_bytes());
        let system = store.add("formats-system", &[&below, &tree, &flat, &derivation, &itself], |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("names"), [&*below.path, &*itself.path].join("\n")).unwrap();
        });
        let [secret, public] = ["secret", "public"].map(|name| files.path().join(name).display().to_string());
        store.nix("nix-store", ["--generate-binary-cache-key", "formats-1", &secret, &public], b"");
        store.nix("nix", nix(&["store", "sign", "--recursive", "--key-file", &secret, &below.path]), b"");

        let members = store.closure(&[&system]);
        assert_eq!(members.len(), 10, "{members:#?}");
        Self { store, system, members }
    }

    fn dump(&self, format: &str) -> String {
        let dump = Program::on(&self.store)
            .args(["--system", &self.system.path, &format!("--dump-closure={format}")])
            .run();
        assert!(dump.status.success(), "{}", dump.stderr);
        dump.stdout
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.dump("json")).expect("JSON")
    }
}

fn member(path: &str) -> Member {
    Member { path: path.to_owned(), base: base(path).to_owned() }
}

fn base(path: &str) -> &str {
    path.strip_prefix("/nix/store/").unwrap_or_else(|| panic!("{path} is not in the store"))
}

/// The arguments of the command `nix`, most of which it calls experimental.
fn nix<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--extra-experimental-features", "nix-command"], arguments].concat()
}

/// Major and minor number of the command `nix`.
fn nix_release(store: &NixStore) -> (u32, u32) {
    let version = store.nix("nix", ["--version"], b"");
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// What `nix path-info --json --json-format 2` prints. A Nix before 2.33 prints the same facts in another form, which is
/// converted here, hashes by Nix.
fn nix_path_info(store: &NixStore, system: &Member) -> Value {
    let ask = |arguments: &[&str]| -> Value {
        let arguments = nix(&[arguments, &["--recursive", &system.path]].concat());
        serde_json::from_str(&store.nix("nix", arguments, b"")).expect("JSON")
    };
    if nix_release(store) >= (2, 33) {
        return ask(&["path-info", "--json", "--json-format", "2"]);
    }
    let told = ask(&["path-info", "--json"]);
    // A list before 2.19, and then an object with the paths for keys.
    let entries: Vec<(String, Value)> = match told {
        Value::Array(entries) => {
            entries.into_iter().map(|entry| (entry["path"].as_str().unwrap().to_owned(), entry)).collect()
        }
        Value::Object(entries) => entries.into_iter().collect(),
        other => panic!("{other}"),
    };
    let convert = |(path, entry): (String, Value)| {
        let or = |key: &str, default: Value| entry.get(key).cloned().unwrap_or(default);
        let references = entry["references"].as_array().unwrap().iter();
        let references: BTreeSet<&str> = references.map(|path| base(path.as_str().unwrap())).collect();
        let entry = json!({
            "version": 2,
            "storeDir": "/nix/store",
            "narHash": entry["narHash"],
            "narSize": entry["narSize"],
            "references": references,
            "ca": or("ca", Value::Null).as_str().map(|text| content_address(store, text)),
            "deriver": or("deriver", Value::Null).as_str().map(base),
            "registrationTime": entry["registrationTime"],
            "signatures": or("signatures", json!([])),
            "ultimate": or("ultimate", json!(false)),
        });
        (base(&path).to_owned(), entry)
    };
    let info: Map<String, Value> = entries.into_iter().map(convert).collect();
    json!({ "version": 2, "storeDir": "/nix/store", "info": info })
}

fn content_address(store: &NixStore, text: &str) -> Value {
    let words: Vec<&str> = text.split(':').collect();
    let (method, algorithm, digest) = match words.as_slice() {
        ["text", algorithm, digest] => ("text", algorithm, digest),
        ["fixed", "r", algorithm, digest] => ("nar", algorithm, digest),
        ["fixed", algorithm, digest] => ("flat", algorithm, digest),
        _ => panic!("{text}"),
    };
    let hash = store.nix("nix", nix(&["hash", "to-sri", "--type", algorithm, digest]), b"");
    json!({ "method": method, "hash": hash.trim() })
}

/// `=json` is what `nix path-info --json --json-format 2` prints, and roots and totals.
#[test]
fn json_is_what_nix_path_info_prints() {
    need!(Nix);
    let fixture = Store::new();
    let mut dump = fixture.json();
    let nix = nix_path_info(&fixture.store, &fixture.system);
    // The test would show little if the store had nothing to say.
    let facts = |key: &str| -> BTreeSet<String> {
        nix["info"].as_object().unwrap().values().map(|entry| entry[key].to_string()).collect()
    };
    for method in ["text", "flat", "nar"] {
        assert!(
            facts("ca").iter().any(|text| text.contains(method)),
            "no content address of {method}: {nix}"
        );
    }
    assert!(facts("deriver").len() > 1 && facts("signatures").len() > 1, "{nix}");

    let added = dump.as_object_mut().unwrap();
    assert_eq!(added.remove("roots"), Some(json!([fixture.system.base])));
    let sizes = nix["info"].as_object().unwrap().values().map(|entry| entry["narSize"].as_u64().unwrap());
    let totals = json!({ "paths": fixture.members.len(), "narSize": sizes.sum::<u64>() });
    assert_eq!(added.remove("totals"), Some(totals));
    assert_eq!(dump, nix);
}

/// `=json` satisfies docs/schema/closure.json.
#[test]
fn json_satisfies_its_schema() {
    need!(Nix);
    let fixture = Store::new();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/closure.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut dump = fixture.json();
    validator.validate(&dump).unwrap();
    dump["info"][&fixture.system.base]["narHash"] = json!("");
    assert!(!validator.is_valid(&dump), "the schema takes everything");
}

/// `=tree` has colours where they are asked for, and is the only one to have any: elsewhere `--color` is refused.
#[test]
fn only_a_tree_has_colors() {
    need!(Nix);
    let fixture = Fixture::new();
    let run = |arguments: &[&str]| {
        Program::on(&fixture.store).args(["--system", &fixture.system.path]).args(arguments).run()
    };
    let tree = |color: &[&str]| {
        let dump = run(&[&["--dump-closure=tree"], color].concat());
        assert_eq!(dump.status.code(), Some(0), "{}", dump.stderr);
        dump.stdout
    };
    let [plain, auto, never, always] =
        [&[][..], &["--color=auto"], &["--color=never"], &["--color=always"]].map(tree);
    assert_eq!([&auto, &never], [&plain, &plain]);
    assert!(!plain.contains('\u{1b}') && plain.contains(&fixture.system.base), "{plain}");
    assert!(always.contains(&format!("\u{1b}[1m{}\u{1b}[0m\n", fixture.system.base)), "{always:?}");
    assert_eq!(anstream::adapter::strip_str(&always).to_string(), plain);
    for refused in [
        &["--color=never"][..],
        &["--dump-closure", "--color=always"],
        &["--dump-closure=html", "--color=auto"],
    ] {
        let answer = run(refused);
        assert_eq!((answer.status.code(), answer.stdout.as_str()), (Some(2), ""), "{refused:?}");
        assert!(answer.stderr.contains("--dump-closure"), "{}", answer.stderr);
    }
}

/// `=store-paths` is the output of `nix-store -qR`, in the order of nixpkgs' `closureInfo`, which has that of a set.
#[test]
fn store_paths_are_the_sorted_closure() {
    need!(Nix);
    let fixture = Store::new();
    let dump = fixture.dump("store-paths");
    assert!(dump.ends_with('\n'));
    assert_eq!(dump.lines().collect::<Vec<_>>(), fixture.members);
}

/// `=registration` is the output of `nix-store --dump-db`, byte by byte.
#[test]
fn registration_is_what_nix_dumps() {
    need!(Nix);
    let fixture = Store::new();
    let arguments = ["--dump-db"].into_iter().chain(fixture.members.iter().map(String::as_str));
    assert_eq!(fixture.dump("registration"), fixture.store.nix("nix-store", arguments, b""));
}

/// Loaded into an empty database, `=registration` makes exactly the closure valid, and Nix finds the files as registered.
#[test]
fn registration_fills_an_empty_database() {
    need!(Nix);
    let fixture = Store::new();
    let registration = fixture.dump("registration");
    let inside = NixStore::new();
    // With the files: Nix reads each derivation that it registers.
    for path in &fixture.members {
        let from = fixture.store.physical().join(base(path));
        inside.nix("cp", ["-a", from.to_str().unwrap(), inside.physical().to_str().unwrap()], b"");
    }
    inside.nix("nix-store", ["--load-db"], registration.as_bytes());
    assert_eq!(inside.closure(&[&fixture.system]), fixture.members);
    assert_eq!(inside.nix("nix-store", ["--dump-db"], b""), registration, "what is valid, all of it");
    inside.nix("nix-store", ["--verify", "--check-contents"], b"");
    assert_eq!(
        inside.closure(&[&fixture.system]),
        fixture.members,
        "verifying invalidates what is not there"
    );

    // The check has to notice a hash that is not the file's.
    let mut lines: Vec<&str> = registration.lines().collect();
    let digest = lines[1].to_owned();
    let other = digest.replacen(|_: char| true, if digest.starts_with('0') { "1" } else { "0" }, 1);
    lines[1] = &other;
    inside.nix("nix-store", ["--load-db"], (lines.join("\n") + "\n").as_bytes());
    let verify = "nix-store --verify --check-contents 2>&1 || echo it differs";
    assert!(inside.nix("sh", ["-c", verify], b"").ends_with("it differs\n"));
}

/// How Nix works in a container: its store is an overlay on the view, since it makes a directory there; its database is its own.
#[test]
fn registration_serves_nix_on_a_view() {
    need!(Root, Fuse, Nix);
    let fixture = Store::new();
    let registration = fixture.dump("registration");
    let view = Program::on(&fixture.store).args(["--system", &fixture.system.path]).mount();
    let inside = NixStore::new();
    let dir = scratch();
    let _upper = Own::mount("tmpfs", dir.path(), "mode=0755");
    let [upper, work] = ["upper", "work"].map(|name| dir.path().join(name));
    for path in [&upper, &work] {
        fs::create_dir(path).unwrap();
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", view.path().display(), upper.display(), work.display());
    let overlay = Own::mount("overlay", &inside.physical(), &options);
    inside.nix("nix-store", ["--load-db"], registration.as_bytes());
    inside.nix("nix-store", ["--verify", "--check-contents"], b"");
    assert_eq!(inside.nix("nix-store", ["--dump-db"], b""), registration);
    assert_eq!(inside.closure(&[&fixture.system]), fixture.members);
    drop(overlay);
}

/// Graphviz draws `=dot`, and its nodes and edges are those of `nix-store --query --graph`.
#[test]
fn dot_has_the_nodes_and_edges_of_nix() {
    need!(Nix, Graphviz);
    let fixture = Store::new();
    let dump = fixture.dump("dot");
    let ours = drawn(&dump);
    let nix = drawn(&fixture.store.nix("nix-store", ["-q", "--graph", &fixture.system.path], b""));
    assert_eq!(ours, nix);
    let nodes = fixture.members.iter().map(|path| ("node".to_owned(), base(path).to_owned(), String::new()));
    assert_eq!(
        ours.iter().filter(|item| item.0 == "node").cloned().collect::<BTreeSet<_>>(),
        nodes.collect()
    );
    let marked: Vec<&str> = dump.lines().filter(|line| line.contains("style = bold")).collect();
    assert!(marked.len() == 1 && marked[0].contains(&fixture.system.base), "the root is marked: {dump}");
}

/// Nodes, and edges as tail and head, of what Graphviz draws.
fn drawn(graph: &str) -> BTreeSet<(String, String, String)> {
    let dir = scratch();
    let file = dir.path().join("graph");
    fs::write(&file, graph).unwrap();
    let output = Command::new("dot").arg("-Tplain").arg(&file).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "dot: {error}");
    let plain = String::from_utf8(output.stdout).unwrap();
    let items = plain.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let name = |place: usize| words[place].trim_matches('"').to_owned();
        match words[0] {
            "node" => Some(("node".to_owned(), name(1), String::new())),
            "edge" => Some(("edge".to_owned(), name(1), name(2))),
            _ => None,
        }
    });
    items.collect()
}
