//! How soon a command runs with `run`, beside the ways to hide a store path by path, and beside namespaces alone.
//!
//! For each number of store paths a store is made on the spot, one of root's and a copy of an ordinary user's, with one root whose closure
//! is all of it. COMMAND is echo(1) of the machine. Two times are taken: until its first byte is read, and until wait(2) returns, which
//! includes the end of its mount namespace. All ways are measured in turn in each round, each after what the one before it has left
//! (monitor and server) has ended: this process takes the orphans and waits for them.
//!
//! The ordinary user is nobody. It has a `/dev/fuse` that everybody may open, in a mount namespace of this process: that of the machine
//! may be closed. Run as somebody else than root, only the rows of an ordinary user are measured, with the machine's device.
//!
//!     scripts/bench --run [--paths N]… [--rounds N] [--quick]

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a tool that ends with the first thing that is wrong"
)]

#[path = "shared/nix_store.rs"]
mod nix_store;
#[path = "shared/random.rs"]
mod random;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{FileType, Mode, makedev, mknodat};
use rustix::process::{Pid, WaitOptions, geteuid, getpid, set_child_subreaper, waitpid};

use nix_store::{load, nix_store};
use random::Random;

const PROGRAMS: [&str; 2] = [env!("CARGO_BIN_EXE_nix-store-fs"), env!("CARGO_BIN_EXE_nix-store-fs-server")];
/// The number of nobody, as user and as group.
const NOBODY: u32 = 65534;
/// The command, which says one line.
const ECHO: &str = "/bin/echo";
/// Paths that a member refers to besides the next one, at most.
const REFERENCES: u64 = 8;

fn main() {
    let usage = || -> ! {
        eprintln!("usage: scripts/bench --run [--paths N]... [--rounds N] [--quick]");
        std::process::exit(2);
    };
    let (mut paths, mut rounds): (Vec<usize>, usize) = (Vec::new(), 21);
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        let mut number =
            || arguments.next().and_then(|number| number.parse().ok()).unwrap_or_else(|| usage());
        match word.as_str() {
            "--paths" => paths.push(number()),
            "--rounds" => rounds = number(),
            "--quick" => (paths, rounds) = (vec![20], 1),
            _ => usage(),
        }
    }
    if paths.is_empty() {
        paths = vec![300, 2500];
    }
    let dir = tempfile::tempdir().expect("a directory for the stores");
    set_child_subreaper(Some(getpid())).expect("to take orphans");
    let user = User::new(dir.path());
    for count in paths {
        measure(&dir.path().join(count.to_string()), count, rounds.max(1), user.as_ref());
    }
}

/// Prints the table of one closure.
fn measure(dir: &Path, count: usize, rounds: usize, user: Option<&User>) {
    let load = load();
    let programs = Programs::install(&dir.join("program"));
    let owner = user.map_or("of this user", |_| "of an ordinary user");
    let own = Store::new(&dir.join("own"), count, user);
    let theirs = user.map(|_| Store::new(&dir.join("root"), count, None));
    let as_user = |mut command: Command| {
        if user.is_some() {
            command.uid(NOBODY).gid(NOBODY).env("HOME", "/nonexistent");
        }
        command
    };
    let mut unshare = Command::new("unshare");
    unshare.args(["-Urm", ECHO]);
    let mut ways: Vec<(String, Command)> = vec![
        ("`unshare -Urm`".to_owned(), as_user(unshare)),
        (format!("`run`, a store {owner}"), as_user(programs.run(&own, &["--store", &own.uri]))),
        (format!("`run --from`, {owner}"), as_user(programs.run_from(&own, as_user))),
        (format!("`bwrap`, a `--ro-bind` a path, {owner}"), as_user(own.bwrap())),
    ];
    let asked = theirs.as_ref().map(Daemon::start);
    let daemon = asked.as_ref().map(|daemon| daemon.child.id());
    if let (Some(store), Some(daemon)) = (&theirs, &asked) {
        let uri = daemon.uri(store);
        ways.extend([
            (
                "`run`, an ordinary user who asks the daemon".to_owned(),
                as_user(programs.run(store, &["--store", &uri])),
            ),
            ("`run`, root".to_owned(), programs.run(store, &["--store", &store.uri])),
            ("`run --from`, root".to_owned(), programs.run_from(store, |command| command)),
        ]);
    }
    let mut figures: Vec<Figures> =
        ways.into_iter().map(|(name, command)| Figures::warm(name, command, daemon)).collect();
    for round in 0..rounds {
        let first = round % figures.len();
        let (later, sooner) = figures.split_at_mut(first);
        sooner.iter_mut().chain(later).for_each(Figures::measure);
    }
    println!("{count} store paths, {rounds} rounds; load of the machine before: {load}\n");
    println!("| ms | ready, median | least | over `unshare` | whole, median | least |");
    println!("|---|---:|---:|---:|---:|---:|");
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    let base = median(&figures[0].ready);
    for Figures { name, ready, whole, .. } in &figures {
        let over = (median(ready).as_secs_f64() - base.as_secs_f64()) * 1e3;
        let [ready_median, whole_median] = [median(ready), median(whole)].map(ms);
        println!(
            "| {name} | {ready_median} | {} | {over:.1} | {whole_median} | {} |",
            ms(least(ready)),
            ms(least(whole))
        );
    }
    println!();
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn least(times: &[Duration]) -> Duration {
    times.iter().min().copied().unwrap_or_default()
}

/// What a command took.
struct Figures {
    name: String,
    command: Command,
    /// A child that stays.
    daemon: Option<u32>,
    ready: Vec<Duration>,
    whole: Vec<Duration>,
}

impl Figures {
    /// Runs it once, untimed.
    fn warm(name: String, mut command: Command, daemon: Option<u32>) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/");
        let mut figures = Self { name, command, daemon, ready: Vec::new(), whole: Vec::new() };
        figures.measure();
        figures.ready.clear();
        figures.whole.clear();
        // A warning is shown once.
        figures.command.stderr(Stdio::null());
        figures
    }

    fn measure(&mut self) {
        let begun = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut output = child.stdout.take().expect("its output");
        let mut byte = [0];
        let got = output.read(&mut byte).expect("a pipe");
        self.ready.push(begun.elapsed());
        let status = child.wait().expect("its end");
        self.whole.push(begun.elapsed());
        assert!(status.success() && got == 1, "{}: {status}, {got} bytes", self.name);
        orphans_end(self.daemon);
    }
}

/// Waits for whatever a command has left: it would run during the next one. This process has one thread, and no children before but
/// `daemon`.
fn orphans_end(daemon: Option<u32>) {
    loop {
        let children = fs::read_to_string("/proc/thread-self/children").expect("this process's children");
        let children = children.split_whitespace().map(|pid| pid.parse().expect("a process"));
        let Some(left) = children
            .filter_map(Pid::from_raw)
            .find(|pid| Some(pid.as_raw_nonzero().get().unsigned_abs()) != daemon)
        else {
            return;
        };
        waitpid(Some(left), WaitOptions::empty()).expect("a child");
    }
}

/// An ordinary user, played by root.
struct User;

impl User {
    /// None: this process is an ordinary user itself.
    fn new(dir: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        open_to_all(dir);
        let device = dir.join("dev");
        fs::create_dir(&device).expect("a directory");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
            .expect("what is mounted here stays here");
        mount(Some("tmpfs"), &device, Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
        let fuse = device.join("fuse");
        // The numbers of the kernel's Documentation/admin-guide/devices.txt.
        mknodat(
            rustix::fs::CWD,
            &fuse,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(10, 229),
        )
        .expect("a device");
        fs::set_permissions(&fuse, fs::Permissions::from_mode(0o666)).expect("its mode");
        mount(Some(&fuse), "/dev/fuse", none, MsFlags::MS_BIND, none).expect("/dev/fuse");
        Some(Self)
    }
}

fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("a directory's mode");
}

/// Copies of the program and of Nix's libraries: the build may be closed to others.
struct Programs(PathBuf);

impl Programs {
    fn install(to: &Path) -> Self {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(to).expect("a directory");
        let copy = |file: &str| {
            let name = Path::new(file).file_name().expect("a name");
            fs::copy(file, to.join(name)).expect("a copy");
        };
        PROGRAMS.into_iter().for_each(copy);
        let libraries = Command::new("ldd").arg(PROGRAMS[0]).output().expect("ldd").stdout;
        for line in String::from_utf8(libraries).expect("text").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [name, "=>", file, ..] = words[..]
                && name.starts_with("libnix")
            {
                copy(file);
            }
        }
        Self(to.to_owned())
    }

    fn program(&self) -> Command {
        let mut command = Command::new(self.0.join("nix-store-fs"));
        command.env("LD_LIBRARY_PATH", &self.0);
        command
    }

    fn run(&self, store: &Store, roots: &[&str]) -> Command {
        let mut command = self.program();
        command.arg("run").args(roots).args(["--root", &store.top, "--", ECHO]);
        command
    }

    /// The closure is saved to a file now, by the user whom `by` makes the one of a command.
    fn run_from(&self, store: &Store, by: impl FnOnce(Command) -> Command) -> Command {
        let at = store.dir.join("closure.json");
        let mut save = self.program();
        save.args(["--store", &store.uri, "--root", &store.top, "--dump-closure=json"]);
        let saved = by(save).stderr(Stdio::inherit()).output().expect("the program");
        assert!(saved.status.success(), "--dump-closure: {}", saved.status);
        fs::write(&at, saved.stdout).expect("a file");
        let mut command = self.program();
        command.args(["run", "--store", &store.uri, "--from"]).arg(at).args(["--", ECHO]);
        command
    }
}

struct Store {
    dir: PathBuf,
    uri: String,
    /// The path that leads to all others.
    top: String,
    names: Vec<String>,
}

impl Store {
    /// Makes it, as the property of `user` if there is one.
    fn new(dir: &Path, count: usize, user: Option<&User>) -> Self {
        let uri = format!("local?root={}", dir.display());
        // One seed: the store is the same each time.
        let mut random = Random(88_172_645_463_325_252);
        let names: Vec<String> = (0..count).map(|n| format!("{}-package-{n}", random.hash())).collect();
        let full = |n: usize| format!("/nix/store/{}", names[n]);
        nix_store(&uri, &["--init"], "");
        let mut registration = String::new();
        for (n, name) in names.iter().enumerate() {
            // Each leads to the next, so the first to all.
            let later = (count - n - 1) as u64;
            let many = if later > 1 { random.next() % REFERENCES } else { 0 };
            let some = (0..many).map(|_| n + 1 + usize::try_from(random.next() % later).expect("a place"));
            let mut references: Vec<usize> = some.chain((n + 1 < count).then_some(n + 1)).collect();
            references.sort_unstable();
            references.dedup();
            fs::create_dir(dir.join("nix/store").join(name)).expect("a store path");
            let (path, zeros) = (full(n), "0".repeat(64));
            let _ = writeln!(registration, "{path}\nsha256:{zeros}\n4096\n\n{}", references.len());
            for reference in references {
                let _ = writeln!(registration, "{}", full(reference));
            }
        }
        nix_store(&uri, &["--load-db"], &registration);
        if user.is_some() {
            give(dir);
        }
        let top = full(0);
        Self { dir: dir.to_owned(), uri, top, names }
    }

    /// The same with one mount for each path, over the store directory.
    fn bwrap(&self) -> Command {
        let real = self.dir.join("nix/store");
        let mut command = Command::new("bwrap");
        command.args(["--bind", "/", "/", "--tmpfs"]).arg(&real);
        for name in &self.names {
            let path = OsString::from(real.join(name));
            command.arg("--ro-bind").arg(&path).arg(&path);
        }
        command.arg(ECHO);
        command
    }
}

/// Makes nobody the owner of all that is in `dir`.
fn give(dir: &Path) {
    chown(dir, Some(NOBODY), Some(NOBODY)).expect("to give a directory");
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("its type") {
            kind if kind.is_dir() => give(&entry.path()),
            kind if kind.is_file() => {
                chown(entry.path(), Some(NOBODY), Some(NOBODY)).expect("to give a file");
            }
            _ => {}
        }
    }
}

/// A Nix daemon on a store. It ends with this.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(store: &Store) -> Self {
        let socket = store.dir.join("socket");
        let mut command = Command::new("nix-daemon");
        command
            .args(["--store", &store.uri])
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .env_remove("LD_LIBRARY_PATH");
        command.env("NIX_CONFIG", "build-users-group =\nsubstitute = false\n");
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nix-daemon");
        let daemon = Self { child, socket };
        while UnixStream::connect(&daemon.socket).is_err() {
            std::thread::yield_now();
        }
        daemon
    }

    fn uri(&self, store: &Store) -> String {
        format!("unix://{}?root={}", self.socket.display(), store.dir.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        match self.child.kill() {
            Err(error) if error.kind() != ErrorKind::InvalidInput => {
                eprintln!("the Nix daemon stays: {error}")
            }
            _ => {}
        }
        let _ = self.child.wait();
    }
}
