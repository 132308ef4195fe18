//! The store against Nix's own command line, on private stores that `nix-instantiate` and `nix-store` fill.
//!
//! What concerns a whole process (signal handlers, output, environment) is tried in a process of its own: this
//! test binary once more, running only [`child`].

use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use tempfile::TempDir;

use super::*;

#[path = "daemon_tests.rs"]
mod daemon;
#[path = "tables_tests.rs"]
mod tables;

/// Says why a test cannot run here; that is a failure where everything must run.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI is set and a test cannot run: {why}");
    eprintln!("SKIPPED, NOTHING TESTED: {why}");
}

/// Nix's commands, with nothing from the machine's configuration, no network, and no store but the one they are given:
/// asked for no more than their version they would make one in `/nix`.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env(
            "NIX_CONFIG",
            "build-users-group =\nsandbox = false\nsubstitute = false\nkeep-derivations = false",
        )
        .env("NIX_REMOTE", "dummy://")
        .stdin(Stdio::null());
    command
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A store with a root directory of its own.
struct Scratch {
    root: TempDir,
    /// Refers to `text` and, by way of it, to a leaf.
    drv: StorePath,
    /// A directory that refers to `text` and to itself, and has a deriver.
    built: StorePath,
    /// Nothing refers to it.
    alone: StorePath,
}

impl Scratch {
    fn new() -> Option<Self> {
        if command("nix-store").arg("--version").output().is_err() {
            skip("nix-store is not installed");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let uri = format!("local?root={}", root.path().display());
        let text = r#"builtins.toFile "text" "see ${builtins.toFile "leaf" "leaf"}""#;
        let instantiate = |options: &[&str], expression: &str| {
            let mut command = command("nix-instantiate");
            command.args(["--store", &uri]).args(options).args(["--expr", expression]);
            let printed = stdout(command.output().unwrap());
            base_name(printed.trim().trim_matches('"'))
        };
        let drv = instantiate(
            &[],
            &format!(r#"derivation {{ name = "demo"; system = "x"; builder = "/bin/sh"; text = {text}; }}"#),
        );
        let text = instantiate(&["--eval", "--read-write-mode"], text);
        let alone = instantiate(&["--eval", "--read-write-mode"], r#"builtins.toFile "alone" "alone""#);
        let built = StorePath::new("0123456789abcdfghijklmnpqrsvwxyz-built").unwrap();
        let scratch = Self { root, drv, built, alone };
        scratch.register(&scratch.built, Some(&scratch.drv), &[&text, &scratch.built]);
        Some(scratch)
    }

    fn uri(&self) -> String {
        format!("local?root={}", self.root.path().display())
    }

    /// Makes `path` a directory and tells Nix's database of it.
    fn register(&self, path: &StorePath, deriver: Option<&StorePath>, references: &[&StorePath]) {
        let real = self.root.path().join("nix/store").join(path.as_str());
        fs::create_dir(&real).unwrap();
        fs::write(real.join("file"), path.as_str()).unwrap();
        // --load-db, not --register-validity: Nix 2.8 looks for a private store's files in /nix/store there.
        let nar = command("nix-store").arg("--dump").arg(&real).output().unwrap().stdout;
        let hash = command("nix-hash").args(["--type", "sha256"]).arg(&real).output().unwrap();
        let mut lines =
            vec![format!("/nix/store/{path}"), stdout(hash).trim().to_owned(), nar.len().to_string()];
        lines.push(deriver.map_or(String::new(), |deriver| format!("/nix/store/{deriver}")));
        lines.push(references.len().to_string());
        lines.extend(references.iter().map(|reference| format!("/nix/store/{reference}")));
        load_db(&self.uri(), &format!("{}\n", lines.join("\n")));
    }

    /// What `nix-store` prints of this store, line by line and sorted.
    fn nix_store(&self, arguments: &[&str], path: &StorePath) -> Vec<String> {
        let mut command = command("nix-store");
        command.args(["--store", &self.uri()]).args(arguments).arg(format!("/nix/store/{path}"));
        let mut lines: Vec<String> = stdout(command.output().unwrap()).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// Compares everything with the command line's answers.
    fn check(&self, store: &Store) {
        assert_eq!(store.dir(), Path::new("/nix/store"));
        assert_eq!(store.real_dir(), self.root.path().join("nix/store"));
        for root in [&self.drv, &self.built, &self.alone] {
            let closure = store.closure(std::slice::from_ref(root)).unwrap();
            let paths: Vec<_> = closure.iter().map(|info| format!("/nix/store/{}", info.path)).collect();
            assert_eq!(paths, self.nix_store(&["-qR"], root));
            let served = store.view(std::slice::from_ref(root)).unwrap();
            let names: Vec<_> = served.names().map(|path| format!("/nix/store/{path}")).collect();
            assert_eq!(names, paths);
            for (path, size) in served.members() {
                assert_eq!(self.nix_store(&["-q", "--size"], path), [size.to_string()]);
            }
            for info in &closure {
                let ask = |what: &str| self.nix_store(&["-q", what], &info.path);
                let [_, hash] = ask("--hash")
                    .concat()
                    .split(':')
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
                    .try_into()
                    .unwrap();
                assert_eq!(base32(&info.nar_hash), hash);
                assert_eq!(ask("--size"), [info.nar_size.to_string()]);
                let references: Vec<_> =
                    info.references.iter().map(|path| format!("/nix/store/{path}")).collect();
                assert_eq!(ask("--references"), references);
                let deriver =
                    info.deriver.as_ref().map_or("unknown-deriver".to_owned(), |d| format!("/nix/store/{d}"));
                assert_eq!(ask("--deriver"), [deriver]);
                assert!(info.registration_time > 1_500_000_000, "{info:?}");
            }
        }
        let all = store.closure(&[self.built.clone(), self.alone.clone(), self.drv.clone()]).unwrap();
        assert_eq!(all.len(), 5, "{all:?}");
        assert!(all.is_sorted_by(|a, b| a.path < b.path));
    }
}

/// Registers paths in the database of the store at `uri`.
fn load_db(uri: &str, registration: &str) {
    let mut command = command("nix-store");
    let mut child = command.args(["--store", uri, "--load-db"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(registration.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn base_name(path: &str) -> StorePath {
    StorePath::new(path.strip_prefix("/nix/store/").unwrap()).unwrap()
}

fn absent() -> StorePath {
    StorePath::new("zyxwvsrqpnmlkjihgfdcba9876543210-absent").unwrap()
}

/// Every store is opened on a thread of its own, as the documentation of [`Store::open`] demands.
fn on_a_thread<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(action).join()).unwrap()
}

fn open(uri: &str) -> Result<Store, StoreError> {
    on_a_thread(|| Store::open(uri))
}

/// The message and those of its sources, as a person would see them.
fn message(error: &StoreError) -> String {
    let source = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
    format!("{error}{source}")
}

#[test]
fn closure_and_facts_are_those_of_the_command_line() {
    let Some(scratch) = Scratch::new() else { return };
    let store = open(&scratch.uri()).unwrap();
    scratch.check(&store);
    assert_eq!(store.closure(&[]).unwrap(), []);
    assert!(store.view(&[]).unwrap().is_empty());
    assert_eq!(open(scratch.root.path().to_str().unwrap()).unwrap().real_dir(), store.real_dir());
    let auto = format!("auto?root={}", scratch.root.path().display());
    assert_eq!(open(&auto).unwrap().real_dir(), store.real_dir());
}

#[test]
fn content_addresses_and_absent_facts_are_told_apart() {
    let Some(scratch) = Scratch::new() else { return };
    let store = open(&scratch.uri()).unwrap();
    let alone = store.closure(std::slice::from_ref(&scratch.alone)).unwrap().remove(0);
    assert!(alone.ca.as_ref().is_some_and(|ca| ca.starts_with("text:sha256:")), "{alone:?}");
    assert_eq!((alone.deriver, alone.signatures), (None, vec![]));
    let built = store.closure(std::slice::from_ref(&scratch.built)).unwrap();
    let built = built.iter().find(|info| info.path == scratch.built).unwrap();
    assert_eq!((&built.ca, &built.deriver), (&None, &Some(scratch.drv.clone())));
}

#[test]
fn a_root_that_is_not_valid_is_named() {
    let Some(scratch) = Scratch::new() else { return };
    let store = open(&scratch.uri()).unwrap();
    assert!(store.is_valid(&scratch.built).unwrap());
    assert!(!store.is_valid(&absent()).unwrap());
    match store.closure(&[scratch.built.clone(), absent()]) {
        Err(StoreError::Invalid { path, .. }) => assert_eq!(path, absent()),
        other => panic!("{other:?}"),
    }
    match store.view(&[scratch.built.clone(), absent()]) {
        Err(StoreError::Invalid { path, .. }) => assert_eq!(path, absent()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_others_changed_is_seen() {
    let Some(scratch) = Scratch::new() else { return };
    let store = open(&scratch.uri()).unwrap();
    let closure = |root: &StorePath| store.closure(std::slice::from_ref(root));
    assert!(closure(&absent()).is_err());
    scratch.register(&absent(), None, &[]);
    assert_eq!(closure(&scratch.alone).unwrap().len(), 1);
    scratch.nix_store(&["--delete"], &scratch.alone);
    assert!(!store.is_valid(&scratch.alone).unwrap());
    assert!(matches!(closure(&scratch.alone), Err(StoreError::Invalid { .. })));
    assert_eq!(closure(&absent()).unwrap().len(), 1);
}

#[test]
fn an_address_without_a_store_creates_nothing() {
    let Some(scratch) = Scratch::new() else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (typo, good) = (elsewhere.path().join("typo"), scratch.root.path());
    let (typo_text, good_text) = (typo.display(), good.display());
    for uri in [
        format!("local?root={typo_text}"),
        format!("auto?root={typo_text}"),
        format!("{typo_text}"),
        format!("local://{typo_text}"),
        format!("local?root={}", typo_text.to_string().replace('/', "%2F")),
        format!("local?root={good_text}&state={typo_text}"),
        format!("local?root={good_text}&real={typo_text}"),
        format!("local?state={good_text}/nix/var/nix&real={typo_text}/x"),
    ] {
        let error = open(&uri).unwrap_err();
        assert!(matches!(error, StoreError::NoSuchStore { .. }), "{uri}: {error:?}");
        assert!(message(&error).contains(&uri) && message(&error).contains("does not exist"), "{error}");
        assert!(!typo.exists(), "{uri} created {typo_text}");
    }
    // An existing directory that is no store stays empty.
    fs::create_dir(&typo).unwrap();
    assert!(matches!(open(&format!("local?root={typo_text}")), Err(StoreError::NoSuchStore { .. })));
    assert_eq!(fs::read_dir(&typo).unwrap().count(), 0);
}

#[test]
fn errors_are_one_plain_line() {
    let Some(scratch) = Scratch::new() else { return };
    let store = open(&scratch.uri()).unwrap();
    let occupied = scratch.root.path().join("occupied");
    fs::write(&occupied, "").unwrap();
    let no_socket = scratch.root.path().join("no-socket");
    let broken = tempfile::tempdir().unwrap();
    fs::create_dir_all(broken.path().join("nix/store")).unwrap();
    fs::create_dir_all(broken.path().join("nix/var/nix/db")).unwrap();
    fs::write(broken.path().join("nix/var/nix/db/schema"), "10").unwrap();
    fs::write(broken.path().join("nix/var/nix/db/db.sqlite"), "certainly no database, and long enough")
        .unwrap();

    let root = store.add_indirect_root(&scratch.built, &occupied).unwrap_err();
    assert!(matches!(root, StoreError::IndirectRoot { .. }), "{root:?}");
    let daemon = open(&format!("unix://{}", no_socket.display())).unwrap_err();
    assert!(matches!(daemon, StoreError::Daemon { .. }), "{daemon:?}");
    let damaged = open(&format!("local?root={}", broken.path().display())).unwrap_err();
    assert!(matches!(damaged, StoreError::Open { .. }), "{damaged:?}");
    let unknown = open("lokal").unwrap_err();
    let unsupported = open("https://example.org").unwrap_err();
    for error in [root, daemon, damaged, unknown, unsupported] {
        let text = message(&error);
        assert!(!text.contains(['\x1b', '\n']) && !text.contains("error: "), "{text:?}");
    }
}

#[test]
fn roots_hold_off_the_garbage_collector() {
    let Some(scratch) = Scratch::new() else { return };
    let link = scratch.root.path().join("below/link");
    let store = open(&scratch.uri()).unwrap();
    store.add_indirect_root(&scratch.built, &link).unwrap();
    store.add_temp_root(&scratch.alone).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/nix/store").join(scratch.built.as_str()));
    // In a process namespace of its own: Nix takes what the machine's processes have open for roots too, and fails where
    // one has a path that is too long to be read.
    let (program, alone): (_, &[&str]) = match rustix::process::geteuid().is_root() {
        true => ("unshare", &["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "nix-store"]),
        false => ("nix-store", &[]),
    };
    let collect = || {
        stdout(command(program).args(alone).args(["--store", &scratch.uri(), "--gc"]).output().unwrap());
        [&scratch.built, &scratch.alone, &scratch.drv]
            .map(|path| scratch.root.path().join("nix/store").join(path.as_str()).exists())
    };
    assert_eq!(collect(), [true, true, false]);
    drop(store);
    assert_eq!(collect(), [true, false, false]);
    fs::remove_file(&link).unwrap();
    assert_eq!(collect(), [false, false, false]);
}

#[test]
fn eight_threads_each_with_a_store_agree() {
    let Some(scratch) = Scratch::new() else { return };
    let expected = open(&scratch.uri()).unwrap().closure(std::slice::from_ref(&scratch.built)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::open(&scratch.uri()).unwrap();
                for _ in 0..20 {
                    assert_eq!(store.closure(std::slice::from_ref(&scratch.built)).unwrap(), expected);
                }
                // Dropped by another thread than the one that opened it.
                scope.spawn(move || drop(store));
            });
        }
    });
}

/// Nobody makes such a store on purpose. But the closure is asked for on a thread with a small stack, and whoever fills the store
/// decides how long a chain is.
#[test]
fn a_chain_of_any_length_is_followed() {
    const LENGTH: usize = 20_000;
    let Some(scratch) = Scratch::new() else { return };
    let name = |n: usize| StorePath::new(&format!("{n:032}-link")).unwrap();
    // Each refers to itself and to the next one. A part at a time, the end first: nix-store has a stack as well.
    let numbers: Vec<usize> = (0..LENGTH).rev().collect();
    for part in numbers.chunks(2_000) {
        let lines = part.iter().map(|n| {
            let (this, hash) = (name(*n), "0".repeat(64));
            let next = Some(n + 1).filter(|next| *next < LENGTH);
            let next = next.map_or(String::new(), |next| format!("/nix/store/{}\n", name(next)));
            let count = 1 + next.lines().count();
            format!("/nix/store/{this}\nsha256:{hash}\n{n}\n\n{count}\n/nix/store/{this}\n{next}")
        });
        load_db(&scratch.uri(), &lines.collect::<String>());
    }
    let store = open(&scratch.uri()).unwrap();
    let members = on_a_thread(move || store.closure(&[name(7)])).unwrap();
    assert_eq!(members.len(), LENGTH - 7);
    for (n, info) in (7..).zip(members) {
        let references: Vec<_> = (n..LENGTH.min(n + 2)).map(name).collect();
        assert_eq!((info.path, info.nar_size, info.references), (name(n), n as u64, references));
    }
}

#[test]
fn a_read_only_store_stays_read_only_for_everybody_else() {
    let Some(scratch) = Scratch::new() else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("mounting needs root");
    }
    let (scratch, real) = (&scratch, &scratch.root.path().join("nix/store"));
    let read_only = &|| rustix::fs::statvfs(real).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY);
    on_a_thread(|| {
        // This thread plays the machine: a namespace in which the store is mounted read-only and shared.
        if let Err(e) = nix::sched::unshare(CloneFlags::CLONE_NEWNS) {
            return skip(&format!("no mount namespace: {e}"));
        }
        let mount = |source: Option<&Path>, target: &Path, flags| {
            nix::mount::mount(source, target, None::<&str>, flags, None::<&str>).unwrap();
        };
        mount(None, Path::new("/"), MsFlags::MS_PRIVATE | MsFlags::MS_REC);
        mount(None, Path::new("/"), MsFlags::MS_SHARED | MsFlags::MS_REC);
        mount(Some(real), real, MsFlags::MS_BIND);
        mount(None, real, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        assert!(read_only());

        std::thread::scope(|scope| {
            let (opened, wait_opened) = std::sync::mpsc::channel();
            let (unmounted, wait_unmounted) = std::sync::mpsc::channel();
            let owner = scope.spawn(move || {
                let store = Store::open(&scratch.uri()).unwrap();
                assert!(!read_only(), "Nix no longer remounts: the namespace is needless");
                opened.send(()).unwrap();
                wait_unmounted.recv().unwrap();
                assert_eq!(mounts_at(real), 0, "an unmount does not reach the thread that opened the store");
                assert_eq!(store.closure(std::slice::from_ref(&scratch.built)).unwrap().len(), 3);
            });
            wait_opened.recv().unwrap();
            assert!(read_only(), "opening a store made a read-only mount writable outside");
            nix::mount::umount2(real, nix::mount::MntFlags::MNT_DETACH).unwrap();
            unmounted.send(()).unwrap();
            owner.join().unwrap();
        });
    });
}

#[test]
fn a_read_only_store_is_refused_where_it_would_become_writable() {
    let Some(scratch) = Scratch::new() else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("mounting needs root");
    }
    let real = scratch.root.path().join("nix/store");
    // A child without CAP_SYS_ADMIN, in a namespace with the store mounted read-only.
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@""#;
    let mut wrapper = Command::new("unshare");
    wrapper.args(["--mount", "sh", "-c", script, "sh"]).arg(&real);
    let output = in_a_child("open-read-only", &scratch, wrapper);
    let Some(output) = output else { return };
    assert!(output.contains("is on a read-only mount"), "{output}");
    // Where the mount is writable there is nothing to protect, and no namespace is needed.
    let mut wrapper = Command::new("setpriv");
    wrapper.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
    let Some(output) = in_a_child("open-read-only", &scratch, wrapper) else {
        return;
    };
    assert!(output.contains("opened"), "{output}");
}

#[test]
fn opening_and_asking_leave_signals_and_umask_alone() {
    let Some(scratch) = Scratch::new() else { return };
    let Some(output) = in_a_child("process-state", &scratch, Command::new("env")) else {
        return;
    };
    let states: Vec<_> = output.lines().filter(|line| line.starts_with("state ")).collect();
    assert_eq!(states.len(), 2, "{output}");
    assert_eq!(states.first(), states.last());
    assert!(states.iter().all(|state| state.contains("SigCgt") && state.contains("Umask")), "{output}");
}

#[test]
fn nothing_is_printed_and_messages_go_to_the_log() {
    let Some(scratch) = Scratch::new() else { return };
    let mut wrapper = Command::new("env");
    wrapper.arg("NIX_CONFIG=experimental-features = no-such-feature\nbuild-users-group = no-such-group");
    let Some(output) = in_a_child("messages", &scratch, wrapper) else {
        return;
    };
    let logged: Vec<_> = output.lines().filter(|line| line.contains("no-such-feature")).collect();
    assert_eq!(logged.len(), 1, "{output}");
    assert!(logged.iter().all(|line| line.trim_start().starts_with("WARN nix: ")), "{output}");
    assert!(!output.contains("no-such-group") && !output.contains('\x1b'), "{output}");
}

#[test]
fn a_store_is_not_handed_to_the_group_of_build_users() {
    use std::os::unix::fs::MetadataExt;
    let Some(scratch) = Scratch::new() else { return };
    let owner = || {
        let status = fs::metadata(scratch.root.path().join("nix/store")).unwrap();
        (status.uid(), status.gid(), status.mode())
    };
    let before = owner();
    let mut wrapper = Command::new("env");
    wrapper.arg("NIX_CONFIG=build-users-group = daemon"); // any group that exists
    let Some(output) = in_a_child("open", &scratch, wrapper) else {
        return;
    };
    assert!(output.contains("opened"), "{output}");
    assert_eq!(owner(), before);
}

#[test]
fn versions_are_compared_by_what_decides_the_interface() {
    for (version, expected) in
        [("2.26.3", (2, 26)), ("2.36.0pre20260101_abc", (2, 36)), ("2.31.2+1", (2, 31))]
    {
        assert_eq!(major_minor(version), Some(expected));
    }
    assert_eq!(major_minor("nonsense"), None);
    assert_eq!(major_minor(&nix_version()), major_minor(BUILT_VERSION));
}

#[test]
fn a_store_opens_without_any_environment() {
    let Some(scratch) = Scratch::new() else { return };
    let mut wrapper = Command::new("env");
    wrapper.arg("-i").args([format!("{CHILD}=open"), format!("{CHILD_URI}={}", scratch.uri())]);
    let Some(output) = in_a_child("open", &scratch, wrapper) else {
        return;
    };
    assert!(output.contains("opened"), "{output}");
}

fn mounts_at(path: &Path) -> usize {
    let wanted = path.to_str().unwrap();
    // Others may have mounted something where the name is no text.
    let table = fs::read("/proc/thread-self/mountinfo").unwrap();
    String::from_utf8_lossy(&table).lines().filter(|line| line.split(' ').nth(4) == Some(wanted)).count()
}

/// Tells the [`child`] what to do, and with which store.
const CHILD: &str = "NIX_STORE_FS_TEST_CHILD";
const CHILD_URI: &str = "NIX_STORE_FS_TEST_URI";

/// Runs [`child`] behind `wrapper`: both streams, or nothing if the wrapper cannot run here.
fn in_a_child(job: &str, scratch: &Scratch, wrapper: Command) -> Option<String> {
    in_a_child_of(job, &scratch.uri(), wrapper)
}

/// The same with the address of any store.
fn in_a_child_of(job: &str, uri: &str, mut wrapper: Command) -> Option<String> {
    let name = wrapper.get_program().to_owned();
    wrapper
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", "store::tests::child"])
        .env(CHILD, job)
        .env(CHILD_URI, uri);
    let Ok(output) = wrapper.output() else {
        skip(&format!("{} is not installed", name.display()));
        return None;
    };
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    assert!(output.status.success(), "{text}");
    Some(text)
}

/// Not a test by itself: what the tests above do in a process of its own.
#[test]
fn child() {
    let (Ok(job), Ok(uri)) = (std::env::var(CHILD), std::env::var(CHILD_URI)) else {
        return;
    };
    let state = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let kept =
            |line: &&str| ["Umask", "SigBlk", "SigIgn", "SigCgt"].iter().any(|key| line.starts_with(key));
        println!("\nstate {:?}", status.lines().filter(kept).collect::<Vec<_>>());
    };
    match job.as_str() {
        "open" | "open-read-only" => match Store::open(&uri) {
            Ok(store) => println!("\nopened {store:?}"),
            Err(error) => println!("\n{}", message(&error)),
        },
        "process-state" => {
            state();
            assert!(!Store::open(&uri).unwrap().is_valid(&absent()).unwrap());
            state();
        }
        "messages" => {
            println!();
            // The log on our side; whatever Nix printed by itself would come without its form.
            let format = tracing_subscriber::fmt::format().without_time().with_target(true).with_ansi(false);
            tracing_subscriber::fmt().event_format(format).with_writer(io::stdout).init();
            Store::open(&uri).unwrap();
        }
        "dot-file" | "immutable" => tables::in_a_process(&job, &uri),
        other => panic!("no such job: {other}"),
    }
}

/// The base 32 form of a hash in SRI form, by Nix's own command.
fn base32(sri: &str) -> String {
    let output = Command::new("nix-hash").args(["--type", "sha256", "--to-base32", sri]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
