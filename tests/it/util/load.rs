//! A reading load: a process whose threads look at a view in every way a program can, compare each answer with the real
//! store, and count what fails and how long the slowest call took.
//!
//! It is a process of its own because the test plays the service manager: whoever has files of a view open or mapped waits for
//! its server in many places, also where it only starts another program, and could not start the next server.

mod threads;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::threads::{ENOUGH, Held, Threads};
use super::store::{Member, NixStore};
use super::tree::{self, Entry};
use super::wait_readable;

/// Tells the process what to do.
const TASK: &str = "NSF_LOAD";
/// Begins a line of what the process says to the test, among those of the test harness.
const ANSWER: &str = "load: ";

/// What is looked at, as it is in the real store.
type Expected = BTreeMap<PathBuf, Entry>;

/// A store path with a static busybox in it.
pub(crate) fn add_busybox(store: &NixStore) -> Member {
    store.add("busybox", &[], |path| {
        fs::create_dir_all(path.join("bin")).unwrap();
        fs::copy(super::gate::find("busybox").unwrap(), path.join("bin/busybox")).unwrap();
    })
}

/// A store path of `files` small files in directories of fifty.
pub(crate) fn add_many(store: &NixStore, files: usize) -> Member {
    store.add("many", &[], |path| {
        for number in 0..files {
            let dir = path.join(format!("dir-{}", number / 50));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("file-{number}")), number.to_string().repeat(number % 400)).unwrap();
        }
    })
}

/// What all threads found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) calls: u64,
    pub(crate) failed: Vec<String>,
    pub(crate) slowest: Duration,
    pub(crate) slowest_of: String,
}

impl Found {
    /// Says what there was to see, and fails if anything was wrong.
    pub(crate) fn judge(&self, what: &str) {
        let Self { calls, failed, slowest, slowest_of } = self;
        say(&format!(
            "{what}: {calls} calls, {} failed, longest pause {} ms ({slowest_of})",
            failed.len(),
            slowest.as_millis()
        ));
        assert!(
            failed.is_empty(),
            "{} of {calls} calls failed, first:\n{}",
            failed.len(),
            failed[..failed.len().min(20)].join("\n")
        );
        assert!(*calls >= ENOUGH, "the load did nothing");
    }
}

/// A line for whoever runs the tests, past the harness that keeps the output of tests that pass.
pub(crate) fn say(line: &str) {
    let _closed = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    view: PathBuf,
    /// The store directory as it is on disk.
    store: PathBuf,
    members: Vec<String>,
    /// The program in the view that is run now and then.
    busybox: Option<PathBuf>,
    readers: u64,
    /// Whether files, mappings and a program are kept in use: see [`Load::check`].
    holding: bool,
}

/// A running load.
#[derive(Debug)]
pub(crate) struct Load {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Load {
    /// Starts `readers` threads over `members` in the view at `view`, and one that drops the kernel's caches now and then.
    /// `busybox` is a member with a program, which they run as well.
    pub(crate) fn start<'a>(
        view: &Path,
        store: &NixStore,
        members: impl IntoIterator<Item = &'a str>,
        busybox: Option<&Member>,
        readers: u64,
    ) -> Self {
        Self::begin(&Self::task(view, store, members, busybox, readers))
    }

    /// The same, and some things of the view are kept in use.
    pub(crate) fn holding<'a>(
        view: &Path,
        store: &NixStore,
        members: impl IntoIterator<Item = &'a str>,
        busybox: &Member,
        readers: u64,
    ) -> Self {
        Self::begin(&Task { holding: true, ..Self::task(view, store, members, Some(busybox), readers) })
    }

    fn task<'a>(
        view: &Path,
        store: &NixStore,
        members: impl IntoIterator<Item = &'a str>,
        busybox: Option<&Member>,
        readers: u64,
    ) -> Task {
        Task {
            view: view.to_owned(),
            store: store.physical(),
            members: members.into_iter().map(str::to_owned).collect(),
            busybox: busybox.map(|member| view.join(&member.base).join("bin/busybox")),
            readers,
            holding: false,
        }
    }

    fn begin(task: &Task) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "util::load::the_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(TASK, serde_json::to_string(task).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut load = Self { orders: process.stdin.take(), process, answers };
        load.answer::<()>();
        load
    }

    /// Looks at all that is kept in use, and says what is wrong.
    pub(crate) fn check(&mut self, round: u64) -> Vec<String> {
        writeln!(self.orders.as_mut().unwrap(), "{round}").expect("the load ended");
        self.answer()
    }

    /// Waits for the load to have been one, and lets every thread finish what it is at; one that cannot fails the test with
    /// what that was.
    pub(crate) fn finish(mut self) -> Found {
        drop(self.orders.take());
        self.answer()
    }

    fn answer<T: DeserializeOwned>(&mut self) -> T {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.answers.read_line(&mut line).expect("what the load says");
            assert!(read > 0, "the load has failed; see above for what it said");
            // The harness ends no line before it runs a test.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return serde_json::from_str(answer).expect("an answer of the load");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        // One that waits for a lost answer cannot end.
        let ended = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty()).is_ok_and(|process| {
            wait_readable([&process], Instant::now() + Duration::from_secs(5)) == [true]
        });
        if ended {
            let _reaped = self.process.wait();
        }
    }
}

/// Not a test: what [`Load`] starts.
#[test]
#[ignore = "a part of other tests"]
fn the_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let Task { view, store, members, busybox, readers, holding } = serde_json::from_str(&task).unwrap();
    let expected: Arc<Expected> =
        Arc::new(members.iter().flat_map(|base| tree::walk(&store, base)).collect());
    let mut held = busybox.as_deref().filter(|_| holding).map(|busybox| Held::new(&view, &expected, busybox));
    let threads = Threads::start(&view, &expected, busybox.as_deref(), readers);
    answer(&());
    for line in std::io::stdin().lines() {
        let round = line.unwrap().parse().unwrap();
        answer(&held.as_mut().map(|held| held.check(round)).unwrap_or_default());
    }
    answer(&threads.finish());
}

/// What fails in the other process is told in this one.
#[test]
fn a_load_tells_what_is_wrong() {
    need!(Root);
    let dirs = [(); 2].map(|()| super::scratch());
    for (dir, contents) in dirs.iter().zip(["real", "fake"]) {
        fs::create_dir(dir.path().join("member")).unwrap();
        fs::write(dir.path().join("member/file"), contents).unwrap();
    }
    let [view, store] = dirs.each_ref().map(|dir| dir.path().to_owned());
    let members = vec!["member".to_owned()];
    let task = Task { view, store, members, busybox: None, readers: 2, holding: false };
    let found = Load::begin(&task).finish();
    assert!(found.failed.iter().any(|why| why.contains("read member/file: byte 0 of 4 is")), "{found:?}");
}

fn answer(what: &impl Serialize) {
    println!("{ANSWER}{}", serde_json::to_string(what).unwrap());
}

/// Names and pages that nobody uses at the moment, of every file system: the next look asks the server again.
pub(crate) fn drop_kernel_caches() {
    drop_caches("3\n");
}

/// Evicts the pages that nobody maps, of every file system; names and attributes stay.
pub(crate) fn evict_pages() {
    drop_caches("1\n");
}

/// Evicts the names and attributes that nobody uses at the moment, of every file system, with the pages of such files.
pub(crate) fn evict_names() {
    drop_caches("2\n");
}

fn drop_caches(what: &str) {
    let lock = caches();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("flock");
    // 4: nothing of it in the kernel's log, whose other lines hundreds of such would push out.
    for what in ["4\n", what] {
        fs::write("/proc/sys/vm/drop_caches", what).expect("drop_caches");
    }
}

/// While this is held, no other test drops the kernel's caches: for a test of what is in them.
pub(crate) fn keep_caches() -> File {
    let lock = caches();
    rustix::fs::flock(&lock, FlockOperation::LockShared).expect("flock");
    lock
}

/// A file to lock, among the threads and processes of one run of the tests.
fn caches() -> File {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-caches");
    File::options().create(true).truncate(false).write(true).open(path).expect("a file to lock")
}
