//! What the process of a load does: threads that look at a view in every way a program can, and what it holds open meanwhile.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Expected, Found, drop_kernel_caches};
use crate::util::DEADLINE;
use crate::util::mapped::Mapping;
use crate::util::tree::{self, Entry, What};

/// Calls that a load makes at least, however slow the machine is.
pub(super) const ENOUGH: u64 = 100;

/// What one thread found.
#[derive(Debug, Default)]
struct Tally {
    calls: u64,
    failed: Vec<String>,
    slowest: Duration,
    slowest_of: String,
}

/// What one thread is at, and since when, for the message of a thread that hangs.
type At = Arc<Mutex<(Instant, String)>>;

/// All of them.
#[derive(Debug)]
pub(super) struct Threads {
    enough: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    done: Receiver<Tally>,
    at: Vec<At>,
}

/// A thread's way to say what it does next, and to be told whether it went well.
struct Reader {
    at: At,
    /// Calls of all threads.
    calls: Arc<AtomicU64>,
    tally: Tally,
    random: u64,
}

impl Reader {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 1
    }

    fn check(&mut self, what: &str, path: &Path, call: impl FnOnce() -> Result<(), String>) {
        let begun = Instant::now();
        *self.at.lock() = (begun, format!("{what} {}", path.display()));
        let answer = call();
        let took = begun.elapsed();
        self.tally.calls += 1;
        self.calls.fetch_add(1, Ordering::Relaxed);
        if took > self.tally.slowest {
            self.tally.slowest = took;
            self.tally.slowest_of = format!("{what} {}", path.display());
        }
        if let Err(why) = answer {
            self.tally.failed.push(format!("{what} {}: {why}", path.display()));
        }
    }
}

impl Threads {
    /// Starts `readers` threads over `expected` in the view at `view`, and one that drops the kernel's caches now and then.
    /// `program` is a busybox in the view.
    pub(super) fn start(view: &Path, expected: &Arc<Expected>, program: Option<&Path>, readers: u64) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicU64::new(0));
        let (tell, done) = channel();
        let mut at = Vec::new();
        for number in 1..=readers {
            let place: At = Arc::new(Mutex::new((Instant::now(), "nothing".to_owned())));
            at.push(place.clone());
            let reader = Reader {
                at: place,
                calls: calls.clone(),
                tally: Tally::default(),
                random: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            let program = program.map(Path::to_owned);
            let (view, expected, enough, tell) =
                (view.to_owned(), expected.clone(), enough.clone(), tell.clone());
            thread::spawn(move || read(reader, &view, &expected, program.as_deref(), &enough, &tell));
        }
        let until_enough = enough.clone();
        thread::spawn(move || {
            while !until_enough.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(700));
                drop_kernel_caches();
            }
        });
        Self { enough, calls, done, at }
    }

    /// Waits for the load to have been one, and lets every thread finish what it is at; one that cannot fails the test with
    /// what that was.
    pub(super) fn finish(self) -> Found {
        let until = Instant::now() + DEADLINE;
        while self.calls.load(Ordering::Relaxed) < ENOUGH && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        self.enough.store(true, Ordering::Relaxed);
        let mut found = Found::default();
        for _ in &self.at {
            let tally = match self.done.recv_timeout(DEADLINE) {
                Ok(tally) => tally,
                Err(RecvTimeoutError::Disconnected) => panic!("a reader panicked"),
                Err(RecvTimeoutError::Timeout) => {
                    let hung: Vec<_> = self
                        .at
                        .iter()
                        .map(|at| at.lock().clone())
                        .filter(|(since, _)| since.elapsed() >= DEADLINE)
                        .map(|(since, what)| format!("{what} for {:?}", since.elapsed()))
                        .collect();
                    panic!("readers hang: {}", hung.join(", "));
                }
            };
            found.calls += tally.calls;
            found.failed.extend(tally.failed);
            if tally.slowest > found.slowest {
                (found.slowest, found.slowest_of) = (tally.slowest, tally.slowest_of);
            }
        }
        found
    }
}

fn read(
    mut reader: Reader,
    view: &Path,
    expected: &Expected,
    program: Option<&Path>,
    enough: &AtomicBool,
    tell: &Sender<Tally>,
) {
    let entries: Vec<(&PathBuf, &Entry)> = expected.iter().collect();
    let files: Vec<_> =
        entries.iter().filter(|(_, entry)| matches!(&entry.what, What::File { size: 1.., .. })).collect();
    while !enough.load(Ordering::Relaxed) {
        let choice = reader.next();
        let pick = usize::try_from(choice >> 8).unwrap();
        let (path, entry) = entries[pick % entries.len()];
        let (file, contents) = files[pick % files.len()];
        let What::File { bytes, .. } = &contents.what else { continue };
        match choice % 64 {
            0 => {
                if let Some(program) = program {
                    reader.check("exec", program, || exec(program, choice));
                }
            }
            1..=8 => reader.check("mmap", file, || {
                let open = File::open(view.join(file)).map_err(text)?;
                let map = Mapping::new(&open, bytes.len()).map_err(text)?;
                drop(open);
                same(&map.bytes().map_err(text)?, bytes)
            }),
            9..=24 => reader.check("read", file, || {
                let from = pick % bytes.len();
                let mut part = vec![0; (bytes.len() - from).min(20_000)];
                File::open(view.join(file))
                    .map_err(text)?
                    .read_exact_at(&mut part, from as u64)
                    .map_err(text)?;
                same(&part, &bytes[from..from + part.len()])
            }),
            25..=34 => reader.check("list", Path::new(""), || {
                let listed = tree::list(view).map_err(text)?;
                let missing =
                    |base: &&PathBuf| base.components().count() == 1 && listed.binary_search(base).is_err();
                match expected.keys().find(missing) {
                    None => Ok(()),
                    Some(base) => Err(format!("{} is not listed", base.display())),
                }
            }),
            35..=44 => reader.check("missing", path, || {
                match view.join(path).join(format!("missing-{}", pick % 100)).symlink_metadata() {
                    Ok(_) => Err("it is there".to_owned()),
                    Err(error) => match Errno::from_io_error(&error) {
                        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(()),
                        _ => Err(text(error)),
                    },
                }
            }),
            45..=54 => reader.check("lstat", path, || {
                let seen = view.join(path).symlink_metadata().map_err(text)?.mode();
                if seen == entry.mode { Ok(()) } else { Err(format!("mode {seen:o}, not {:o}", entry.mode)) }
            }),
            _ => reader.check("everything of", path, || {
                let seen = tree::entry(&view.join(path)).map_err(text)?;
                if seen == *entry { Ok(()) } else { Err(format!("{seen:?}, not {entry:?}")) }
            }),
        }
    }
    let _ended = tell.send(reader.tally);
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn same(seen: &[u8], real: &[u8]) -> Result<(), String> {
    match seen.iter().zip(real).position(|(a, b)| a != b) {
        None if seen.len() == real.len() => Ok(()),
        None => Err(format!("{} bytes instead of {}", seen.len(), real.len())),
        Some(at) => Err(format!("byte {at} of {} is {} instead of {}", real.len(), seen[at], real[at])),
    }
}

fn exec(program: &Path, token: u64) -> Result<(), String> {
    let output = Command::new(program).args(["expr", &token.to_string(), "+", "0"]).output().map_err(text)?;
    if output.status.success() && output.stdout == format!("{token}\n").into_bytes() {
        return Ok(());
    }
    Err(format!("{}: {:?} {:?}", output.status, output.stdout, output.stderr))
}

/// Files, mappings and a program of the view that stay in use while its server comes and goes.
#[derive(Debug)]
pub(super) struct Held {
    files: Vec<(PathBuf, File, Vec<u8>)>,
    mappings: Vec<(PathBuf, Mapping, Vec<u8>)>,
    program: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Held {
    pub(super) fn new(view: &Path, expected: &Expected, busybox: &Path) -> Self {
        let mut files = Vec::new();
        let mut mappings = Vec::new();
        for (path, entry) in expected {
            let What::File { bytes, size: 1.. } = &entry.what else { continue };
            let file = File::open(view.join(path)).unwrap();
            if files.len() % 2 == 0 {
                mappings.push((path.clone(), Mapping::new(&file, bytes.len()).unwrap(), bytes.clone()));
            }
            files.push((path.clone(), file, bytes.clone()));
            if files.len() == 100 {
                break;
            }
        }
        let mut program = Command::new(busybox)
            .args(["sh", "-c", "while read a b; do echo $((a + b)); done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(program.stdout.take().unwrap());
        Self { files, mappings, program, answers }
    }

    /// Looks at all of it; what is wrong.
    pub(super) fn check(&mut self, round: u64) -> Vec<String> {
        let mut failed = Vec::new();
        for (path, file, bytes) in &self.files {
            let mut seen = vec![0; bytes.len()];
            let answer = file.read_exact_at(&mut seen, 0).map_err(text).and_then(|()| same(&seen, bytes));
            failed.extend(answer.err().map(|why| format!("held {}: {why}", path.display())));
        }
        for (path, mapping, bytes) in &self.mappings {
            let answer = mapping.bytes().map_err(text).and_then(|seen| same(&seen, bytes));
            failed.extend(answer.err().map(|why| format!("held mapping {}: {why}", path.display())));
        }
        let mut line = String::new();
        let asked = writeln!(self.program.stdin.as_mut().unwrap(), "{round} {round}")
            .and_then(|()| self.answers.read_line(&mut line).map(|_| ()));
        if asked.is_err() || line != format!("{}\n", round * 2) {
            failed.push(format!("the running program answered {line:?} ({asked:?})"));
        }
        failed
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ended = self.program.kill();
        let _reaped = self.program.wait();
    }
}
