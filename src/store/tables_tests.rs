//! What is read from Nix's tables at once, against the walk through Nix's library and against Nix's own command.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;

const STORE: &str = "/nix/store";

/// A name with all characters that a name may have besides letters and digits.
fn path(n: usize) -> StorePath {
    StorePath::new(&format!("{n:032}-p+-._?={n}")).unwrap()
}

fn names(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|n| path(*n).as_str().to_owned()).collect()
}

/// A database without files, that `sqlite3` fills: Nix would refuse some of it.
struct Tables {
    _dir: TempDir,
    state: PathBuf,
    real: PathBuf,
    dir: String,
}

impl Tables {
    fn new(dir: &str) -> Option<Self> {
        if Command::new("sqlite3").arg("--version").output().is_err() {
            skip("sqlite3 is not installed");
            return None;
        }
        let temporary = tempfile::tempdir().unwrap();
        let state = temporary.path().canonicalize().unwrap().join("nix/var/nix");
        let real = temporary.path().canonicalize().unwrap().join("nix/store");
        fs::create_dir_all(&real).unwrap();
        drop(Database::open(Path::new(dir), &state).unwrap());
        Some(Self { _dir: temporary, state, real, dir: dir.to_owned() })
    }

    fn uri(&self) -> String {
        let (state, real) = (self.state.display(), self.real.display());
        format!("local?state={state}&real={real}&store={}", self.dir.replace(' ', "%20"))
    }

    fn database(&self) -> PathBuf {
        self.state.join("db/db.sqlite")
    }

    fn sql(&self, sql: &str) {
        let mut command = Command::new("sqlite3");
        let mut child = command
            .arg("-bail")
            .arg(self.database())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{sql}");
    }

    /// Path number `n` gets the number `n + 1` in the table, and its size as it is written.
    fn fill(&self, members: &[(String, Vec<usize>)]) {
        let mut sql = "begin; delete from Refs; delete from ValidPaths;\n".to_owned();
        for (n, (size, references)) in members.iter().enumerate() {
            let (path, hash) = (self.quoted(&path(n)), "0".repeat(64));
            sql += &format!(
                "insert into ValidPaths (id, path, hash, registrationTime, narSize) values ({}, {path}, 'sha256:{hash}', 1, {size});\n",
                n + 1
            );
            for reference in references {
                sql += &format!("insert or ignore into Refs values ({}, {});\n", n + 1, reference + 1);
            }
        }
        self.sql(&(sql + "commit;"));
    }

    fn quoted(&self, path: &StorePath) -> String {
        format!("'{}/{path}'", self.dir.replace('\'', "''"))
    }

    /// The first one refers to the second one.
    fn fill_with_two(&self) {
        self.fill(&[("10".to_owned(), vec![1]), ("20".to_owned(), vec![])]);
    }

    /// What lies beside the database, and what is in it.
    fn files(&self) -> (BTreeSet<OsString>, Vec<u8>) {
        (listing(&self.state.join("db")), fs::read(self.database()).unwrap())
    }
}

fn listing(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Has a directory tell whether a name in it is made or removed, be it for a moment.
fn untouched(dir: &Path) -> impl Fn() -> bool + use<> {
    let dir = fs::File::open(dir).unwrap();
    dir.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    move || dir.metadata().unwrap().modified().unwrap() == SystemTime::UNIX_EPOCH
}

fn sorted(found: Result<Vec<bridge::Size>, cxx::Exception>) -> Result<Vec<(String, u64)>, String> {
    let mut found: Vec<_> = found
        .map_err(|e| Failure::from(e).text)?
        .into_iter()
        .map(|size| (size.path, size.nar_size))
        .collect();
    found.sort();
    Ok(found)
}

/// What is read at once; why not.
fn at_once(store: &Store, roots: &[usize]) -> Result<Vec<(String, u64)>, String> {
    sorted(store.handle.sizes_at_once(&names(roots)))
}

fn two() -> Vec<(String, u64)> {
    vec![(path(0).as_str().to_owned(), 10), (path(1).as_str().to_owned(), 20)]
}

/// Sizes as the table has them, references, roots, and whether references lead back.
type Graph = (Vec<(String, Vec<usize>)>, Vec<usize>, bool);

fn graph() -> impl Strategy<Value = Graph> {
    let size = prop_oneof![
        4 => (1..u64::MAX / 2).prop_map(|size| size.to_string()),
        1 => Just("null".to_owned()),
        1 => Just("0".to_owned()),
    ];
    (1..12_usize, any::<bool>()).prop_flat_map(move |(count, cycles)| {
        // Some lead to what is not in the table.
        let members =
            proptest::collection::vec((size.clone(), proptest::collection::vec(0..count + 2, 0..4)), count);
        let roots = proptest::collection::vec(0..count, 1..4);
        (members, roots).prop_map(move |(mut members, roots)| {
            if !cycles {
                // To itself is none.
                members.iter_mut().enumerate().for_each(|(n, (_, to))| to.retain(|to| *to >= n));
            }
            (members, roots, cycles)
        })
    })
}

#[test]
fn what_is_read_at_once_is_what_the_walk_finds() {
    let Some(tables) = Tables::new(STORE) else { return };
    let by_nix = command("nix-store").arg("--version").output().is_ok();
    if !by_nix {
        skip("nix-store is not installed");
    }
    let store = open(&tables.uri()).unwrap();
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((members, roots, cycles) in graph())| {
        tables.fill(&members);
        let found = at_once(&store, &roots);
        prop_assert!(found.is_ok(), "{found:?}");
        prop_assert_eq!(&found, &sorted(store.handle.sizes(&names(&roots))));
        let paths: Vec<_> = roots.iter().copied().map(path).collect();
        let view = store.view(&paths).unwrap();
        let members = view.members().map(|(path, size)| (path.as_str().to_owned(), size));
        prop_assert_eq!(found.as_deref(), Ok(&*members.collect::<Vec<_>>()));
        if by_nix && !cycles {
            let output = command("nix-store")
                .args(["--store", &tables.uri(), "-qR"])
                .args(paths.iter().map(|path| format!("{STORE}/{path}")))
                .output()
                .unwrap();
            let printed = stdout(output);
            let expected: BTreeSet<_> = printed.lines().map(base_name).collect();
            prop_assert!(view.names().eq(&expected), "{printed}");
        }
    });
}

/// Longer than any stack, and more than SQLite keeps of a table of its own before it makes a file for it.
#[test]
fn a_chain_of_100000_is_read() {
    const LENGTH: usize = 100_000;
    let Some(tables) = Tables::new(STORE) else { return };
    tables.sql(&format!(
        "with recursive n (i) as (select 0 union all select i + 1 from n where i + 1 < {LENGTH}) \
         insert into ValidPaths (id, path, hash, registrationTime, narSize) \
         select i + 1, printf('{STORE}/%032d-p+-._?=%d', i, i), 'sha256:', 1, i from n; \
         insert into Refs select id, id + 1 from ValidPaths where id < {LENGTH}; \
         insert into Refs select id, id from ValidPaths;"
    ));
    let store = open(&tables.uri()).unwrap();
    let found = on_a_thread(move || at_once(&store, &[7])).unwrap();
    assert!(found.into_iter().eq((7..LENGTH).map(|n| (path(n).as_str().to_owned(), n as u64))));
}

#[test]
fn the_directory_of_a_store_may_have_any_name() {
    let Some(tables) = Tables::new("/it's a/100%_store") else { return };
    tables.fill_with_two();
    let uri = tables.uri().replace("100%", "100%25");
    let store = open(&uri).unwrap();
    assert_eq!(store.dir(), Path::new(&tables.dir));
    assert_eq!(at_once(&store, &[0]), Ok(two()));
}

/// A root that is not valid, a path of no store behind one, no table: what is said is what Nix's library says.
#[test]
fn what_is_wrong_is_said_as_before() {
    let Some(tables) = Tables::new(STORE) else { return };
    tables.fill_with_two();
    let store = open(&tables.uri()).unwrap();
    let same = |store: &Store| {
        let told = store.view(&[path(0)]).unwrap_err();
        assert_eq!(message(&told), message(&store.closure(&[path(0)]).unwrap_err()));
        message(&told)
    };

    let told = at_once(&store, &[0, 2]).unwrap_err();
    assert!(told.contains(path(2).as_str()) && told.contains("is not valid"), "{told}");
    assert!(
        matches!(store.view(&[path(0), path(2)]), Err(StoreError::Invalid { path: named, .. }) if named == path(2))
    );

    let elsewhere = format!("/elsewhere/{}", path(1));
    for wrong in [&*elsewhere, "/nix/store/short", "/nix/store/../..", "/nix/store/line\nbreak"] {
        tables.sql(&format!("update ValidPaths set path = '{wrong}' where id = 2;"));
        assert!(at_once(&store, &[0]).is_err(), "{wrong}");
        let told = same(&store);
        assert!(!told.contains('\n'), "{told}");
    }

    tables.fill_with_two();
    assert_eq!(at_once(&store, &[0]), Ok(two()));
    tables.sql("drop table Refs;");
    assert!(at_once(&store, &[0]).is_err());
    same(&store);
}

/// Tables that we do not know are Nix's to read.
#[test]
fn other_tables_are_read_by_nix() {
    let Some(tables) = Tables::new(STORE) else { return };
    tables.fill_with_two();
    let store = open(&tables.uri()).unwrap();
    assert_eq!(at_once(&store, &[0]), Ok(two()));
    tables.sql("alter table ValidPaths add column more text default 'more';");
    let told = at_once(&store, &[0]).unwrap_err();
    assert!(told.contains("columns"), "{told}");
    let view = store.view(&[path(0)]).unwrap();
    assert!(view.names().eq(&[path(0), path(1)]));
}

/// It changes nothing, and sees nothing of what is being written.
#[test]
fn to_read_at_once_leaves_no_trace_and_does_not_wait() {
    let Some(tables) = Tables::new(STORE) else { return };
    tables.fill_with_two();
    let store = open(&tables.uri()).unwrap();
    let before = tables.files();
    let untouched = untouched(&tables.state.join("db"));
    assert_eq!(at_once(&store, &[0]), Ok(two()));
    assert!(untouched());
    assert_eq!(tables.files(), before);

    let mut writer = Command::new("sqlite3");
    let writer = writer.arg(tables.database()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let mut input = writer.stdin.take().unwrap();
    input.write_all(b"begin immediate; delete from ValidPaths; select 'written';\n").unwrap();
    let mut answers = BufReader::new(writer.stdout.take().unwrap());
    answers.read_line(&mut String::new()).unwrap();
    assert_eq!(at_once(&store, &[0]), Ok(two()));
    input.write_all(b"commit; select 'done';\n").unwrap();
    answers.read_line(&mut String::new()).unwrap();
    assert!(at_once(&store, &[0]).unwrap_err().contains("is not valid"));
    drop(input);
    assert!(writer.wait().unwrap().success());
}

/// What the tests below do in a process of its own, as Nix's configuration is a process's.
pub(super) fn in_a_process(job: &str, uri: &str) {
    let db = Path::new(uri.split(['=', '&']).nth(1).unwrap()).join("db");
    let before = listing(&db);
    let store = Store::open(uri).unwrap();
    match job {
        // What somebody makes who writes.
        "dot-file" => {
            assert_eq!(at_once(&store, &[0]), Ok(two()));
            let lock = db.join("db.sqlite.lock");
            fs::create_dir(&lock).unwrap();
            let told = at_once(&store, &[0]).unwrap_err();
            assert!(told.contains("is busy"), "{told}");
            fs::remove_dir(&lock).unwrap();
            assert_eq!(at_once(&store, &[0]), Ok(two()));
        }
        _ => {
            let untouched = untouched(&db);
            assert_eq!(at_once(&store, &[0]), Ok(two()));
            assert!(untouched());
        }
    }
    assert_eq!(listing(&db), before);
    println!("\nread at once");
}

fn in_a_child_with(job: &str, tables: &Tables, config: &str, more: &str) {
    let mut wrapper = Command::new("env");
    wrapper.arg(format!("NIX_CONFIG=build-users-group =\n{config}"));
    let Some(output) = in_a_child_of(job, &(tables.uri() + more), wrapper) else { return };
    assert!(output.contains("read at once"), "{output}");
}

#[test]
fn a_database_that_is_locked_is_not_waited_for() {
    let Some(tables) = Tables::new(STORE) else { return };
    tables.fill_with_two();
    tables.sql("pragma journal_mode = truncate;");
    // Nix makes its journal when it is opened.
    fs::write(tables.state.join("db/db.sqlite-journal"), "").unwrap();
    in_a_child_with("dot-file", &tables, "use-sqlite-wal = false", "");
}

/// Where nothing may be made beside the database.
#[test]
fn a_read_only_store_is_read_as_nix_reads_it() {
    let Some(tables) = Tables::new(STORE) else { return };
    tables.fill_with_two();
    in_a_child_with(
        "immutable",
        &tables,
        "extra-experimental-features = read-only-local-store",
        "&read-only=true",
    );
}
