//! Databases against the facts that they are to hold, and against Nix's own commands, for another release of Nix as a rule.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const STORE: &str = "/nix/store";

fn path(n: usize) -> StorePath {
    StorePath::new(&format!("{n:032}-p{n}")).unwrap()
}

fn info(n: usize, references: &[usize]) -> PathInfo {
    PathInfo {
        path: path(n),
        nar_hash: format!("sha256-{:0>43}=", "A".repeat(n % 40)),
        nar_size: n as u64,
        references: references.iter().copied().map(path).collect(),
        deriver: None,
        registration_time: 1_600_000_000 + n as i64,
        signatures: Vec::new(),
        ca: None,
        ultimate: false,
    }
}

/// A directory for a database, by its real name.
fn directory() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("state");
    (dir, state)
}

fn open(state: &Path) -> Result<Database, DatabaseError> {
    Database::open(Path::new(STORE), state)
}

fn register(database: &Database, infos: &[PathInfo]) -> Result<(), DatabaseError> {
    database.register(&infos.iter().collect::<Vec<_>>(), |_| true, Path::new("/nonexistent"))
}

/// What Nix's command prints, of this database.
fn nix_store(state: &Path, arguments: &[&str]) -> Vec<String> {
    let real = state.with_file_name("store");
    let output = Command::new("nix-store")
        .arg("--store")
        .arg(format!("local?state={}&real={}", state.display(), real.display()))
        .args(arguments)
        .env("NIX_REMOTE", "dummy://")
        .env("NIX_CONFIG", "build-users-group =")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn all_facts_are_kept() {
    let (_dir, state) = directory();
    let mut infos = [info(1, &[]), info(2, &[1, 2]), info(3, &[1, 2])];
    infos[1].signatures = vec!["cache-1:AAAA".to_owned(), "other:BBBB".to_owned()];
    infos[1].deriver = Some(StorePath::new(&format!("{:032}-p.drv", 9)).unwrap());
    infos[2].ultimate = true;
    // The longest that there is, and a size that does not fit into 32 bits.
    infos[2].nar_size = i64::MAX as u64;
    let database = open(&state).unwrap();
    assert_eq!(database.valid().unwrap(), []);
    register(&database, &infos).unwrap();
    assert_eq!(database.valid().unwrap(), infos);
    drop(database);
    assert_eq!(open(&state).unwrap().valid().unwrap(), infos);
    assert!(!state.join(STAND_IN).exists());
}

#[test]
fn nix_reads_the_database() {
    if Command::new("nix-store").arg("--version").env("NIX_REMOTE", "dummy://").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "nix-store is not installed");
        return eprintln!("SKIPPED, NOTHING TESTED: nix-store is not installed");
    }
    let (_dir, state) = directory();
    register(&open(&state).unwrap(), &[info(1, &[]), info(2, &[1]), info(3, &[2, 3])]).unwrap();
    let names = [1, 2, 3].map(|n| format!("{STORE}/{}", path(n)));
    assert_eq!(nix_store(&state, &["-qR", &names[2]]), names);
    assert_eq!(nix_store(&state, &["-q", "--size", &names[1]]), ["2"]);
    assert_eq!(nix_store(&state, &["-q", "--referrers", &names[0]]), [&*names[1]]);
}

/// What is written by statements of our own is what Nix writes, in the tables and with the indices that Nix made.
#[test]
fn a_database_that_is_filled_at_once_is_nixs() {
    let sqlite = |state: &Path, sql: &str| {
        let output = Command::new("sqlite3").arg(state.join("db/db.sqlite")).arg(sql).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    if Command::new("sqlite3").arg("--version").output().is_err() {
        return eprintln!("SKIPPED, NOTHING TESTED: sqlite3 is not installed");
    }
    let mut infos = [info(1, &[]), info(2, &[1, 2]), info(3, &[1, 2]), info(4, &[])];
    infos[1].signatures = vec!["cache-1:AAAA".to_owned(), "other:BBBB".to_owned()];
    infos[2].deriver = Some(StorePath::new(&format!("{:032}-p.drv", 9)).unwrap());
    infos[2].ultimate = true;
    infos[3].nar_size = 0;
    let [(_dir, filled), (_dir2, by_nix), (_dir3, unknown)] = [directory(), directory(), directory()];
    register(&open(&filled).unwrap(), &infos).unwrap();
    let database = open(&by_nix).unwrap();
    register(&database, &infos[..1]).unwrap();
    register(&database, &infos).unwrap();
    drop(database);
    for sql in [
        ".schema",
        "select * from ValidPaths",
        "select * from Refs order by 1, 2",
        "select * from sqlite_sequence",
        "pragma integrity_check",
        "pragma foreign_key_check",
    ] {
        assert_eq!(sqlite(&filled, sql), sqlite(&by_nix, sql), "{sql}");
    }
    // Tables that we do not know are Nix's to write to.
    drop(open(&unknown).unwrap());
    sqlite(&unknown, "alter table ValidPaths add column more text default 'more'");
    let database = open(&unknown).unwrap();
    register(&database, &infos).unwrap();
    assert_eq!(database.valid().unwrap(), infos);
}

#[test]
fn what_is_reserved_takes_no_space() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, state) = directory();
    drop(open(&state).unwrap());
    let reserved = fs::metadata(state.join("db/reserved")).unwrap();
    assert_eq!((reserved.len(), reserved.blocks()), (RESERVED, 0));
}

#[test]
fn profiles_of_another_place_are_no_roots() {
    let (_dir, state) = directory();
    drop(open(&state).unwrap());
    for entry in fs::read_dir(state.join("gcroots")).unwrap().map(Result::unwrap) {
        assert!(!entry.file_type().unwrap().is_symlink(), "{entry:?}");
    }
}

#[test]
fn a_place_with_another_real_name_is_refused() {
    let (dir, state) = directory();
    fs::create_dir(&state).unwrap();
    let link = dir.path().join("link");
    symlink(&state, &link).unwrap();
    let opened = File::open(&state).unwrap();
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    for given in [&link, &link.join("below"), &descriptor, &state.join("../state")] {
        let error = open(given).unwrap_err();
        assert!(matches!(error, DatabaseError::Indirect { .. }), "{}: {error:?}", given.display());
    }
}

#[test]
fn one_at_a_time() {
    let (_dir, state) = directory();
    let first = open(&state).unwrap();
    assert!(matches!(open(&state), Err(DatabaseError::InUse { .. })));
    drop(first);
    open(&state).unwrap();
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let (_dir, state) = directory();
    let left = state.join(STAND_IN).join(".links");
    fs::create_dir_all(&left).unwrap();
    fs::write(state.join(STAND_IN).join(path(1).as_str()), "").unwrap();
    let database = open(&state).unwrap();
    register(&database, &[info(1, &[]), info(2, &[1])]).unwrap();
    let valid = database.valid().unwrap();
    let dropped = database.keep(&valid, |_| false).unwrap();
    assert_eq!(dropped, BTreeSet::from([&path(1), &path(2)]));
    assert_eq!(database.valid().unwrap(), []);
}

#[test]
fn a_database_that_is_none_is_an_error_of_one_line() {
    let (_dir, state) = directory();
    fs::create_dir_all(state.join("db")).unwrap();
    fs::write(state.join("db/schema"), "10").unwrap();
    fs::write(state.join("db/db.sqlite"), "certainly no database, and long enough").unwrap();
    let error = open(&state).unwrap_err();
    assert!(matches!(error, DatabaseError::Nix { operation: "open", .. }), "{error:?}");
    assert!(!error.to_string().contains(['\n', '\x1b']), "{error}");
    let file = state.join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file), Err(DatabaseError::File { .. })));
}

#[test]
fn facts_that_contradict_each_other_are_refused() {
    let (_dir, state) = directory();
    let database = open(&state).unwrap();
    let mut other = info(1, &[]);
    other.nar_hash = format!("sha512-{}==", "A".repeat(86));
    let mut addressed = info(1, &[]);
    addressed.ca = Some(format!("text:sha256:{}", "0".repeat(52)));
    let mut unhashed = info(1, &[]);
    unhashed.nar_hash = "sha256:\u{1b}[31m\n".to_owned();
    for infos in [
        vec![other],
        vec![addressed],
        vec![unhashed],
        vec![info(1, &[2])],
        vec![info(1, &[2]), info(2, &[1])],
    ] {
        let error = register(&database, &infos).unwrap_err();
        assert!(matches!(error, DatabaseError::Nix { operation: "write to", .. }), "{error:?}");
        assert!(!error.to_string().contains(['\n', '\x1b']), "{error}");
        assert_eq!(database.valid().unwrap(), [], "{infos:?}");
    }
}

#[test]
fn a_derivation_without_its_file_is_named() {
    let (_dir, state) = directory();
    let mut derivation = info(1, &[]);
    derivation.path = StorePath::new(&format!("{:032}-p.drv", 1)).unwrap();
    let error = register(&open(&state).unwrap(), &[derivation]).unwrap_err();
    assert!(error.to_string().contains(&format!("'/nonexistent/{:032}-p.drv'", 1)), "{error}");
}

/// Signatures, address and trust come later: a path that was built is signed, or copied from elsewhere.
#[test]
fn facts_of_what_is_valid_are_corrected() {
    let (_dir, state) = directory();
    let database = open(&state).unwrap();
    let mut known = info(1, &[]);
    register(&database, &[known.clone()]).unwrap();
    known.signatures = vec!["a:AAAA".to_owned()];
    known.ultimate = true;
    register(&database, &[known.clone()]).unwrap();
    assert_eq!(database.valid().unwrap(), [known]);
}

/// Whoever fills a store decides how long a chain is, and the thread has a small stack.
#[test]
fn a_chain_of_any_length_is_registered_and_dropped() {
    const LENGTH: usize = 20_000;
    let (_dir, state) = directory();
    let infos: Vec<_> =
        (0..LENGTH).map(|n| info(n, &[n, n + 1][..if n + 1 < LENGTH { 2 } else { 1 }])).collect();
    let database = open(&state).unwrap();
    register(&database, &infos).unwrap();
    let valid = database.valid().unwrap();
    assert_eq!(valid.len(), LENGTH);
    let dropped = database.keep(&valid, |info| info.path != path(LENGTH - 1)).unwrap();
    assert_eq!(dropped.len(), LENGTH);
    assert_eq!(database.valid().unwrap(), []);
}

/// Each with references to those before it.
fn closures() -> impl Strategy<Value = Vec<PathInfo>> {
    prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..24).prop_map(|all| {
        let info = |(n, chosen): (usize, &Vec<prop::sample::Index>)| {
            // Names in another order than that of the references.
            let name = |n: usize| (n * 7) % 31;
            let mut references: Vec<usize> = chosen.iter().map(|index| name(index.index(n + 1))).collect();
            references.sort_unstable();
            references.dedup();
            info(name(n), &references)
        };
        all.iter().enumerate().map(info).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Registered in two parts and with some dropped: what is valid is what a model says.
    #[test]
    fn what_is_valid_is_what_was_registered_and_kept(
        infos in closures(),
        first in any::<prop::sample::Index>(),
        refused in prop::collection::btree_set(0_usize..31, 0..4),
    ) {
        let (_dir, state) = directory();
        let database = open(&state).unwrap();
        let first = first.index(infos.len() + 1);
        register(&database, &infos[..first]).unwrap();
        let known: BTreeSet<_> = infos[..first].iter().map(|info| info.path.clone()).collect();
        let all: Vec<_> = infos.iter().collect();
        database.register(&all, |info| !known.contains(&info.path), Path::new("/nonexistent")).unwrap();
        let mut expected = infos.clone();
        expected.sort_by(|a, b| a.path.cmp(&b.path));
        let valid = database.valid().unwrap();
        prop_assert_eq!(&valid, &expected);

        let refused: BTreeSet<_> = refused.into_iter().map(path).collect();
        // Again and again, until nothing changes.
        let mut gone: BTreeSet<&StorePath> = BTreeSet::new();
        loop {
            let more: BTreeSet<_> = expected.iter()
                .filter(|info| refused.contains(&info.path) || info.references.iter().any(|path| gone.contains(path)))
                .map(|info| &info.path)
                .collect();
            if more == gone { break; }
            gone = more;
        }
        let dropped = database.keep(&valid, |info| !refused.contains(&info.path)).unwrap();
        prop_assert_eq!(&dropped, &gone);
        let kept: Vec<_> = expected.iter().filter(|info| !gone.contains(&info.path)).cloned().collect();
        prop_assert_eq!(database.valid().unwrap(), kept);
    }
}

/// How long it takes: by hand, in a release, for the figures of the documentation.
#[test]
#[ignore = "prints figures"]
fn how_long_it_takes() {
    let place = std::env::var_os("NSF_STATE").map_or_else(std::env::temp_dir, PathBuf::from);
    for count in [300, 2_500] {
        // 10 references each, as a system has on average.
        let references = |n: usize| (1..=10).filter_map(|k| n.checked_sub(k * k)).collect::<Vec<_>>();
        let infos: Vec<_> = (0..count).map(|n| info(n, &references(n))).collect();
        for _ in 0..5 {
            let dir = tempfile::tempdir_in(&place).unwrap();
            let begun = std::time::Instant::now();
            let database = open(&dir.path().join("state")).unwrap();
            let opened = begun.elapsed();
            register(&database, &infos).unwrap();
            let registered = begun.elapsed();
            let valid = database.valid().unwrap().len();
            let asked = begun.elapsed();
            drop(database);
            println!(
                "{count}: open {opened:?}, register {:?}, ask for {valid} {:?}, close {:?}",
                registered - opened,
                asked - registered,
                begun.elapsed() - asked
            );
        }
    }
}
