//! Programs of the closure, started from a view; and shared libraries mapped from it.
//!
//! Programs made by Nix name `/nix/store` in themselves, so a view is measured where they look: a process of its
//! own (this same executable, see [`launch`]) binds the view over the store directory in a mount namespace of
//! its own, and starts them from there. Hard points:
//!
//! 1. Packages of another distribution put in a store do not know where they are; the directories of their
//!    libraries and of Python's modules are then given by environment variables, alike for every column.
//! 2. Mapping a file is not possible in safe Rust, and slicing a map in Python runs at the speed of C, so the
//!    host's Python does it, and times itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use rustix::mount::MountPropagationFlags;

use crate::columns::Ground;
use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};

/// The argument by which this executable knows that it shall only start programs.
pub(crate) const LAUNCH: &str = "launch";

const MODULES: &str = "import json, subprocess";
const COMMANDS_IN_SCRIPT: usize = 100;
/// Programs that most closures have some of, and that answer `--version` without side effects.
const COMMANDS: [&str; 24] = [
    "true",
    "cat",
    "ls",
    "date",
    "id",
    "uname",
    "sed",
    "grep",
    "mkdir",
    "basename",
    "tar",
    "perl",
    "git",
    "lscpu",
    "findmnt",
    "getopt",
    "whereis",
    "gettext",
    "iconv",
    "mountpoint",
    "rev",
    "namei",
    "getent",
    "locale",
];
const COMMANDS_TAKEN: usize = 10;
/// Where these lie, a program that is not Nix's finds its libraries.
const LIBRARIES: [&str; 13] = [
    "libc.so.6",
    "libm.so.6",
    "libz.so.1",
    "libexpat.so.1",
    "libtinfo.so.6",
    "libselinux.so.1",
    "libacl.so.1",
    "libpcre2-8.so.0",
    "libcrypt.so.1",
    "libmount.so.1",
    "libblkid.so.1",
    "libsmartcols.so.1",
    "libffi.so.8",
];
const MAP_SCRIPT: &str = "
import mmap, os, sys, time
def touch(paths):
    start = time.perf_counter_ns()
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as view:
            view[::mmap.PAGESIZE]
        os.close(file)
    return time.perf_counter_ns() - start
paths = [os.path.join(os.fsencode(sys.argv[1]), name) for name in sys.stdin.buffer.read().split(b'\\0') if name]
print(touch(paths), touch(paths))
";

/// A program of the closure, or a script of such.
#[derive(Debug)]
pub(crate) struct Program {
    /// The executable: below the store directory if relative.
    executable: PathBuf,
    /// Its arguments; `@` stands for the store directory.
    arguments: Vec<String>,
    /// Relative directories of libraries and of Python's modules, for what Nix did not make.
    libraries: Vec<PathBuf>,
    modules: Vec<PathBuf>,
}

/// What the closure has to offer.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    /// Python, importing a few modules.
    pub(crate) python: Option<Program>,
    /// A shell script that runs 100 commands of the closure.
    pub(crate) script: Option<Program>,
    /// Whether there is a Python to map libraries with.
    mapper: bool,
}

/// Times of starting something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    /// The first time on a fresh view.
    pub(crate) first: Duration,
    /// All further times together.
    pub(crate) again: Duration,
}

/// Times of mapping all libraries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// How many there were.
    pub(crate) count: usize,
    /// All of them, the first time.
    pub(crate) first: Duration,
    /// And once more.
    pub(crate) again: Duration,
}

impl Programs {
    /// Looks for programs that run when started from `root`, a view that lacks nothing; notes what is missing.
    pub(crate) fn find(corpus: &Corpus, root: &Path, notes: &mut Vec<String>) -> Self {
        let mut found = Self { mapper: has_python(), ..Self::default() };
        if !found.mapper {
            notes.push("`mmap` is left out: no `python3` on the path of this machine".into());
        }
        let named =
            |wanted: &str| corpus.programs.iter().find(|path| path.file_name() == Some(wanted.as_ref()));
        let python = corpus.programs.iter().find(|path| is_python(path));
        let works = |program: &Program| program.start(corpus, root, 1, 1).is_ok();
        found.python =
            python.map(|path| Program::new(corpus, path, vec!["-c".into(), MODULES.into()])).filter(works);
        if found.python.is_none() {
            notes.push("`python` is left out: no Python of the closure runs here".into());
        }
        let commands: Vec<String> = COMMANDS
            .iter()
            .filter_map(|name| named(name))
            .filter(|path| works(&Program::new(corpus, path, vec!["--version".into()])))
            .take(COMMANDS_TAKEN)
            .map(|path| format!("@/{} --version >/dev/null || exit 1", path.display()))
            .collect();
        let runs = |path: &&PathBuf| works(&Program::new(corpus, path, vec!["-c".into(), "exit 0".into()]));
        let shell = ["bash", "dash", "sh"].iter().filter_map(|name| named(name)).find(runs).cloned();
        if commands.is_empty() {
            notes.push("`script` is left out: none of its commands is in the closure and runs here".into());
            return found;
        }
        if shell.is_none() {
            notes.push(
                "`script` is run by the shell of this machine: the closure has none that runs here".into(),
            );
        }
        let lines: Vec<&str> = commands.iter().map(String::as_str).cycle().take(COMMANDS_IN_SCRIPT).collect();
        let arguments = vec!["-c".into(), lines.join("\n")];
        let executable = shell.unwrap_or_else(|| PathBuf::from("/bin/sh"));
        found.script = Some(Program::new(corpus, &executable, arguments)).filter(works);
        if found.script.is_none() {
            notes.push(
                "`script` is left out: the closure's shell and commands do not run together here".into(),
            );
        }
        found
    }

    /// Maps every shared library and touches each page of it, twice.
    pub(crate) fn map_libraries(&self, corpus: &Corpus, root: &Path) -> Outcome<Option<Mapped>> {
        if !self.mapper || corpus.libraries.is_empty() {
            return Ok(None);
        }
        let names: Vec<&[u8]> = corpus.libraries.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let mut command = Command::new("python3");
        command.args(["-c", MAP_SCRIPT]).arg(root);
        let (first, again) = two_times(command, &names.join(&0), "mapping the libraries")?;
        Ok(Some(Mapped { count: corpus.libraries.len(), first, again }))
    }
}

fn has_python() -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", "import mmap"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn is_python(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("python3.").is_some_and(|minor| minor.parse::<u8>().is_ok())
}

impl Program {
    fn new(corpus: &Corpus, executable: &Path, arguments: Vec<String>) -> Self {
        let mut program =
            Self { executable: executable.to_owned(), arguments, libraries: Vec::new(), modules: Vec::new() };
        if !made_by_nix(corpus, executable) {
            program.libraries = directories(corpus, |path| {
                path.file_name().is_some_and(|last| LIBRARIES.iter().any(|library| last == *library))
            });
            program.modules = directories(corpus, |path| {
                let home = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
                let extension = home == "lib-dynload";
                extension
                    || (home.starts_with("python3.") && (path.ends_with("os.py") || path.ends_with("json")))
            });
        }
        program
    }

    /// Starts it once, and then so many times more, from the view at `root`.
    pub(crate) fn start(
        &self,
        corpus: &Corpus,
        root: &Path,
        threads: usize,
        times: usize,
    ) -> Outcome<Started> {
        let doing = || format!("starting {}", self.executable.display());
        let bound = corpus.logical.is_dir();
        let store = if bound { corpus.logical.as_path() } else { root };
        let place = store.to_string_lossy();
        let mut command = Command::new(std::env::current_exe().doing(doing)?);
        command.arg(LAUNCH).arg(root).arg(if bound { store } else { Path::new("") });
        command.arg(threads.to_string()).arg(times.to_string()).arg(store.join(&self.executable));
        command.args(self.arguments.iter().map(|argument| argument.replace('@', &place)));
        for (variable, directories) in [("LD_LIBRARY_PATH", &self.libraries), ("PYTHONPATH", &self.modules)] {
            command.env_remove(variable);
            if !directories.is_empty() {
                let all: Vec<OsString> = directories.iter().map(|path| store.join(path).into()).collect();
                command.env(variable, all.join(":".as_ref()));
            }
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("LC_ALL", "C");
        let (first, again) = two_times(command, b"", &doing())?;
        Ok(Started { first, again })
    }
}

/// Directories of the closure in which an entry satisfies `wanted`, relative to the store.
fn directories(corpus: &Corpus, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let found: BTreeSet<PathBuf> = corpus
        .entries
        .iter()
        .map(|entry| Path::new(std::ffi::OsStr::from_bytes(entry.to_bytes())))
        .filter(|path| wanted(path))
        .filter_map(Path::parent)
        .map(Path::to_owned)
        .collect();
    found.into_iter().collect()
}

/// A program of Nix names the store within its first page: the interpreter, or the line after `#!`.
fn made_by_nix(corpus: &Corpus, executable: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(corpus.physical.join(executable))
        .and_then(|file| file.take(4096).read_to_end(&mut head));
    let store = corpus.logical.as_os_str().as_bytes();
    read.is_ok() && head.windows(store.len()).any(|part| part == store)
}

/// Runs a command that prints two numbers of nanoseconds.
fn two_times(mut command: Command, input: &[u8], doing: &str) -> Outcome<(Duration, Duration)> {
    use std::io::Write;
    let doing = || doing.to_owned();
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().doing(doing)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).doing(doing)?;
    }
    let output = child.wait_with_output().doing(doing)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match times.as_slice() {
        [first, again] if output.status.success() => {
            Ok((Duration::from_nanos(*first), Duration::from_nanos(*again)))
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Fault::new(format!("{}: {} {said}", doing(), output.status)))
        }
    }
}

/// The other life of this executable: `launch VIEW STORE THREADS TIMES PROGRAM ARGUMENT…` binds the view over the
/// store (unless that is empty), starts the program once and then TIMES times, and prints both times.
pub(crate) fn launch(arguments: &[OsString]) -> Outcome<()> {
    let [view, store, threads, times, program, rest @ ..] = arguments else {
        return Err(Fault::new("launch: too few arguments"));
    };
    let number = |word: &OsString| word.to_str().and_then(|word| word.parse::<usize>().ok()).unwrap_or(1);
    if !store.is_empty() {
        let doing = || format!("binding the view over {}", Path::new(store).display());
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).doing(doing)?;
        let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", propagation).doing(doing)?;
        rustix::mount::mount_bind_recursive(view.as_os_str(), store.as_os_str()).doing(doing)?;
    }
    let run = || -> Outcome<()> {
        let doing = || format!("running {}", Path::new(program).display());
        let mut command = Command::new(program);
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status().doing(doing)? {
            status if status.success() => Ok(()),
            status => Err(Fault::new(format!("{}: {status}", doing()))),
        }
    };
    let start = Instant::now();
    run()?;
    let first = start.elapsed();
    let (threads, times) = (number(threads).max(1), number(times));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let share = times / threads + usize::from(thread < times % threads);
                scope.spawn(move || (0..share).try_for_each(|_| run()))
            })
            .collect();
        started.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Fault::new("a thread that starts programs panicked")))
        })
    })?;
    println!("{} {}", first.as_nanos(), start.elapsed().as_nanos());
    Ok(())
}

/// Runs the program under test for its list of the closure alone.
pub(crate) fn dump_closure(ground: &Ground) -> Outcome<Duration> {
    let doing = || "running --dump-closure".to_owned();
    let mut command = Command::new(&ground.program);
    command.arg("--system").arg(&ground.corpus.system).arg("--dump-closure");
    if let Some(uri) = &ground.corpus.uri {
        command.args(["--store", uri]);
    }
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().doing(doing)?;
    if status.success() { Ok(start.elapsed()) } else { Err(Fault::new(format!("{}: {status}", doing()))) }
}

/// Whether the program under test has an option.
pub(crate) fn knows(program: &Path, option: &str) -> Outcome<bool> {
    let output =
        Command::new(program).arg("--help").output().doing(|| format!("running {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split(|letter: char| letter.is_whitespace() || letter == '=').any(|word| word == option))
}
