//! Places for Nix made from private stores that Nix's own commands fill, and judged by Nix's own commands. That they work in a
//! sandbox, with an overlay, is in tests/it/nix_inside.rs.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::closure::dump;
use crate::closure::made;
use crate::store::Store;

fn nix(program: &str, store: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("NIX_REMOTE", store)
        .env(
            "NIX_CONFIG",
            "build-users-group =\nsandbox = false\nsubstitute = false\nkeep-derivations = false",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails may not read it.
    let _broken_pipe = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What a command prints that succeeds.
fn prints(program: &str, store: &str, arguments: &[&str]) -> String {
    let output = nix(program, store, arguments, "");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Says why a test cannot run here; that is a failure where everything must run.
fn has_nix() -> bool {
    let has = Command::new("nix-store").arg("--version").env("NIX_REMOTE", "dummy://").output().is_ok();
    if !has {
        assert!(std::env::var_os("CI").is_none(), "nix-store is not installed");
        eprintln!("SKIPPED, NOTHING TESTED: nix-store is not installed");
    }
    has
}

fn base(path: &str) -> StorePath {
    StorePath::new(path.trim().trim_matches('"').strip_prefix("/nix/store/").unwrap()).unwrap()
}

/// The machine: a private store with a derivation, what it is built from, and a text that refers to another one.
struct Machine {
    dir: TempDir,
    uri: String,
    derivation: StorePath,
    text: StorePath,
    leaf: StorePath,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("local?root={}", dir.path().canonicalize().unwrap().display());
        let text = r#"builtins.toFile "text" "see ${builtins.toFile "leaf" "leaf"}""#;
        let builds = |name: &str, more: &str| {
            format!(
                r#"derivation {{ name = "{name}"; system = "x"; builder = "/bin/sh"; text = {text}; {more} }}"#
            )
        };
        let derivation = builds("demo", &format!("other = {};", builds("other", "")));
        let derivation = base(&prints("nix-instantiate", &uri, &["--expr", &derivation]));
        let eval = |text: &str| {
            base(&prints("nix-instantiate", &uri, &["--eval", "--read-write-mode", "--expr", text]))
        };
        let (text, leaf) = (eval(text), eval(r#"builtins.toFile "leaf" "leaf""#));
        Self { dir, uri, derivation, text, leaf }
    }

    fn files(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("nix/store")
    }

    fn closure(&self, roots: &[&StorePath]) -> Closure {
        let roots: Vec<StorePath> = roots.iter().map(|root| (*root).clone()).collect();
        let store =
            std::thread::scope(|scope| scope.spawn(|| Store::open(&self.uri)).join()).unwrap().unwrap();
        Closure::new(roots.clone(), store.closure(&roots).unwrap()).unwrap()
    }
}

/// A place for Nix, with a stand-in for the merged store directory.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.layer()).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn layer(&self) -> PathBuf {
        self.at("layer")
    }

    fn bring(&self, files: &Path, closure: &Closure) -> Result<Brought, InsideError> {
        let (state, layer) = (self.at("state"), self.layer());
        let inside = Inside { store_dir: Path::new("/nix/store"), files, state: &state, layer: Some(&layer) };
        inside.bring_up_to(closure)
    }

    fn made(&self, closure: &Closure) -> Result<Brought, InsideError> {
        self.bring(Path::new("/nonexistent"), closure)
    }

    /// The database, over these files, for Nix's commands.
    fn uri(&self, files: &Path) -> String {
        format!("local?state={}&real={}", self.at("state").display(), files.display())
    }

    fn valid(&self) -> BTreeMap<StorePath, PathInfo> {
        let database = Database::open(Path::new("/nix/store"), &self.at("state")).unwrap();
        database.valid().unwrap().into_iter().map(|info| (info.path.clone(), info)).collect()
    }

    /// As Nix in there would: files in the layer, facts in the database.
    fn build(&self, info: &PathInfo) {
        let path = self.layer().join(info.path.as_str());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "built\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o555)).unwrap();
        let database = Database::open(Path::new("/nix/store"), &self.at("state")).unwrap();
        database.register(&[info], |_| true, Path::new("/nonexistent")).unwrap();
    }
}

fn hashed(n: usize, references: &[usize]) -> PathInfo {
    let references = references.iter().copied().map(made::path).collect();
    let hash = format!("sha256-{}=", "A".repeat(43));
    PathInfo { nar_hash: hash, registration_time: 1, ..made::info(made::path(n), 7, references) }
}

fn closure(infos: &[PathInfo]) -> Closure {
    Closure::new(infos.iter().map(|info| info.path.clone()).collect(), infos.to_vec()).unwrap()
}

/// The oracle: Nix dumps of the new database what `--dump-closure=registration` prints of the closure, and finds no file that is
/// not as registered.
#[test]
fn nix_finds_the_closure_registered() {
    if !has_nix() {
        return;
    }
    let (machine, place) = (Machine::new(), Place::new());
    let closure = machine.closure(&[&machine.derivation]);
    assert_eq!(closure.len(), 4);
    let brought = place.bring(&machine.files(), &closure).unwrap();
    assert_eq!(brought, Brought { registered: 4, ..Brought::default() });

    // Nix makes its own directory in there.
    let uri = place.uri(&machine.files());
    let expected = dump::render(&closure, Path::new("/nix/store"), dump::Format::Registration).unwrap();
    assert_eq!(prints("nix-store", &uri, &["--dump-db"]), String::from_utf8(expected).unwrap());
    prints("nix-store", &uri, &["--verify", "--check-contents"]);
    let path = |path: &StorePath| format!("/nix/store/{path}");
    // What `--dump-db` leaves out.
    let content = prints(
        "nix",
        &uri,
        &["--extra-experimental-features", "nix-command", "path-info", "--json", &path(&machine.text)],
    );
    let expected = prints(
        "nix",
        &machine.uri,
        &["--extra-experimental-features", "nix-command", "path-info", "--json", &path(&machine.text)],
    );
    assert_eq!(content, expected);
    assert!(content.contains(r#""ca":"text:sha256:"#), "{content}");
    // Of derivations Nix knows the outputs.
    let output = prints("nix-store", &uri, &["-q", "--outputs", &path(&machine.derivation)]);
    let deriver = "select count(*) from DerivationOutputs where path = '".to_owned() + output.trim() + "'";
    if let Ok(told) = Command::new("sqlite3").arg(place.at("state/db/db.sqlite")).arg(deriver).output() {
        assert_eq!(String::from_utf8_lossy(&told.stdout), "1\n", "{told:?}");
    }
}

/// Neither the machine's store nor its database has changed.
#[test]
fn the_machine_is_left_alone() {
    if !has_nix() {
        return;
    }
    let (machine, place) = (Machine::new(), Place::new());
    let closure = machine.closure(&[&machine.derivation]);
    let seen = || {
        let output = Command::new("find")
            .arg(machine.dir.path())
            .args(["-printf", "%p %i %m %s %T@ %C@ %u\n"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let before = seen();
    place.bring(&machine.files(), &closure).unwrap();
    assert_eq!(seen(), before);
}

#[test]
fn the_collector_keeps_the_roots_of_this_view() {
    if !has_nix() {
        return;
    }
    let (machine, place) = (Machine::new(), Place::new());
    let path = |path: &StorePath| format!("/nix/store/{path}");
    let roots = |expected: &[&StorePath]| {
        let dead = prints("nix-store", &place.uri(&machine.files()), &["--gc", "--print-dead"]);
        let dead: BTreeSet<&str> = dead.lines().filter(|line| line.starts_with("/nix/store/")).collect();
        for known in [&machine.text, &machine.leaf, &machine.derivation] {
            let is_kept = expected.contains(&known);
            assert_eq!(!dead.contains(path(known).as_str()), is_kept, "{known}: {dead:?}");
        }
    };
    place.bring(&machine.files(), &machine.closure(&[&machine.derivation])).unwrap();
    roots(&[&machine.text, &machine.leaf, &machine.derivation]);
    let brought = place.bring(&machine.files(), &machine.closure(&[&machine.leaf])).unwrap();
    assert_eq!(brought.dropped.len(), 3, "{brought:?}");
    roots(&[&machine.leaf]);
}

/// A derivation that comes with a later view is hashed with those that were there before.
#[test]
fn derivations_may_come_later_than_what_they_build_upon() {
    if !has_nix() {
        return;
    }
    let (machine, place) = (Machine::new(), Place::new());
    let whole = machine.closure(&[&machine.derivation]);
    let other = whole.members().map(|info| &info.path).find(|path| path.name() == "other.drv").unwrap();
    place.bring(&machine.files(), &machine.closure(&[other])).unwrap();
    let brought = place.bring(&machine.files(), &whole).unwrap();
    assert_eq!((brought.registered, brought.dropped.len()), (1, 0));
    let expected = dump::render(&whole, Path::new("/nix/store"), dump::Format::Registration).unwrap();
    let uri = place.uri(&machine.files());
    assert_eq!(prints("nix-store", &uri, &["--dump-db"]), String::from_utf8(expected).unwrap());
}

/// Nix finds in the new place what it finds in the old one, and nothing is left there.
#[test]
fn a_state_directory_moves() {
    if !has_nix() {
        return;
    }
    let (machine, place) = (Machine::new(), Place::new());
    place.bring(&machine.files(), &machine.closure(&[&machine.derivation])).unwrap();
    let dump = |state: &Path| {
        let uri = format!("local?state={}&real={}", state.display(), machine.files().display());
        let links = fs::read_dir(state.join(ROOTS))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
        (prints("nix-store", &uri, &["--dump-db"]), links.collect::<Vec<_>>())
    };
    let before = dump(&place.at("state"));
    // Memory, where there is some.
    let memory = Path::new("/dev/shm");
    let other = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    move_state(&place.at("state"), other.path()).unwrap();
    assert!(!place.at("state").exists());
    let reserved = fs::metadata(other.path().join("db/reserved")).unwrap();
    assert_eq!((reserved.len(), reserved.blocks()), (8 << 20, 0));
    assert_eq!(dump(&other.path().canonicalize().unwrap()), before);
    assert_eq!(before.1.len(), 1);
}

/// What was built stays valid as long as what it refers to is there.
#[test]
fn what_was_built_stays_with_what_it_needs() {
    let place = Place::new();
    let [shown, other, third] = [hashed(1, &[]), hashed(2, &[]), hashed(9, &[])];
    assert_eq!(place.made(&closure(&[shown.clone(), other.clone()])).unwrap().registered, 2);
    let [built, upon, alone] = [hashed(3, &[1]), hashed(4, &[3]), hashed(5, &[2])];
    for info in [&built, &upon, &alone] {
        place.build(info);
    }
    // The same view once more: nothing to do.
    assert_eq!(place.made(&closure(&[shown.clone(), other.clone()])).unwrap(), Brought::default());
    assert_eq!(place.valid().len(), 5);

    // Another view, with `other` and without `shown`.
    let brought = place.made(&closure(&[other.clone(), third.clone()])).unwrap();
    assert_eq!(brought.dropped, [&shown, &built, &upon].map(|info| info.path.clone()));
    assert_eq!((brought.registered, brought.removed), (1, 0));
    let valid: Vec<_> = place.valid().into_values().collect();
    assert_eq!(valid, [other, alone, third]);
}

/// The view has a path that was built here before. If it is the same, what was built upon it stays; but its files are the view's.
#[test]
fn a_member_is_the_views() {
    for is_same in [true, false] {
        let place = Place::new();
        place.made(&closure(&[hashed(1, &[])])).unwrap();
        let (built, upon) = (hashed(2, &[1]), hashed(3, &[2]));
        place.build(&built);
        place.build(&upon);
        let mut shown = built.clone();
        shown.signatures = vec!["cache-1:AAAA".to_owned()];
        if !is_same {
            shown.nar_hash = format!("sha256-{}=", "B".repeat(42) + "A");
        }
        let view = closure(&[hashed(1, &[]), shown.clone()]);
        let brought = place.made(&view).unwrap();
        assert_eq!((brought.registered, brought.removed), (1, 1), "{is_same}");
        assert_eq!(brought.dropped.is_empty(), is_same);
        assert!(!place.layer().join(built.path.as_str()).exists());
        assert_eq!(place.valid().get(&built.path), Some(&shown));
        assert_eq!(place.valid().contains_key(&upon.path), is_same);
    }
}

/// What hides a member is removed, whatever it is; a link is not followed, and what is no store path stays.
#[test]
fn what_hides_a_member_is_removed() {
    let place = Place::new();
    let elsewhere = place.at("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("file"), "").unwrap();
    let infos: Vec<_> = (1..=4).map(|n| hashed(n, &[])).collect();
    let at = |n: usize| place.layer().join(infos[n - 1].path.as_str());
    fs::create_dir_all(at(1).join("deep/er")).unwrap();
    symlink(&elsewhere, at(1).join("deep/link")).unwrap();
    for dir in ["deep/er", "deep", ""] {
        fs::set_permissions(at(1).join(dir), Permissions::from_mode(0o000)).unwrap();
    }
    fs::write(at(2), "").unwrap();
    symlink(&elsewhere, at(3)).unwrap();
    let others = [".links", "not-a-path", "\u{1b}[31m\n"].map(|name| place.layer().join(name));
    others.iter().for_each(|other| fs::create_dir(other).unwrap());
    assert_eq!(place.made(&closure(&infos)).unwrap().removed, 3);
    assert_eq!(fs::read_dir(place.layer()).unwrap().count(), others.len());
    assert!(elsewhere.join("file").exists());
    assert_eq!(fs::metadata(&elsewhere).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_layer_that_is_not_there_has_nothing() {
    let place = Place::new();
    fs::remove_dir(place.layer()).unwrap();
    assert_eq!(place.made(&closure(&[hashed(1, &[])])).unwrap().registered, 1);
    fs::write(place.layer(), "").unwrap();
    let error = place.made(&closure(&[hashed(1, &[])])).unwrap_err();
    assert!(matches!(error, InsideError::File { action: "read", .. }), "{error:?}");
}

/// A view, what is built in it, and what is deleted there.
type Run = (BTreeSet<usize>, BTreeSet<usize>, BTreeSet<usize>);

fn runs() -> impl Strategy<Value = (Vec<BTreeSet<usize>>, Vec<Run>)> {
    let some = || prop::collection::btree_set(0_usize..10, 0..5);
    // Who refers to whom is the same in all: each to some of those before it.
    let references = prop::collection::vec(some(), 10).prop_map(|mut all| {
        for (n, references) in all.iter_mut().enumerate() {
            references.retain(|to| *to < n);
        }
        all
    });
    (references, prop::collection::vec((some(), some(), some()), 1..5))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over several runs with the same layer: whatever is valid has its files, with what it refers to; members are the view's; and nothing
    /// is dropped of which all is there.
    #[test]
    fn whatever_is_valid_is_there((references, runs) in runs()) {
        let place = Place::new();
        let info = |n: usize| hashed(n, &references[n].iter().copied().collect::<Vec<_>>());
        for (roots, builds, deletes) in runs {
            let mut shown = roots.clone();
            while let Some(more) = shown.iter().flat_map(|n| &references[*n]).find(|n| !shown.contains(n)) {
                shown.insert(*more);
            }
            let before = place.valid();
            let view = closure(&shown.iter().map(|n| info(*n)).collect::<Vec<_>>());
            let brought = place.made(&view).unwrap();
            let valid = place.valid();
            let is_there = |n: usize| shown.contains(&n) || place.layer().join(made::path(n).as_str()).exists();
            for n in 0..10 {
                let mut all: BTreeSet<usize> = BTreeSet::from([n]);
                while let Some(more) = all.iter().flat_map(|n| &references[*n]).find(|n| !all.contains(n)) {
                    all.insert(*more);
                }
                let was = shown.contains(&n) || before.contains_key(&made::path(n));
                let expected = was && all.iter().all(|n| is_there(*n) && (shown.contains(n) || before.contains_key(&made::path(*n))));
                prop_assert_eq!(valid.contains_key(&made::path(n)), expected, "{}", n);
                prop_assert!(!shown.contains(&n) || !place.layer().join(made::path(n).as_str()).exists());
                let dropped = before.contains_key(&made::path(n)) && !expected;
                prop_assert_eq!(brought.dropped.contains(&made::path(n)), dropped);
            }
            // What Nix in there does: only what has all that it refers to is built, and only what nothing refers to is deleted.
            for n in builds {
                let valid = place.valid();
                if !is_there(n) && references[n].iter().all(|to| valid.contains_key(&made::path(*to))) {
                    place.build(&info(n));
                }
            }
            for n in deletes {
                let valid = place.valid();
                let path = made::path(n);
                let is_needed = valid.values().any(|info| info.path != path && info.references.contains(&path));
                if !valid.contains_key(&path) || is_needed || shown.contains(&n) { continue; }
                remove(&place.layer().join(path.as_str())).unwrap();
                let database = Database::open(Path::new("/nix/store"), &place.at("state")).unwrap();
                let all = database.valid().unwrap();
                database.keep(&all, |info| info.path != path).unwrap();
            }
        }
    }
}
