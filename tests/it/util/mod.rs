//! What the tests stand on: gates, a private Nix store, the program with its mounts, and trees to compare.

#[macro_use]
pub(crate) mod gate;
pub(crate) mod browser;
pub(crate) mod cached;
pub(crate) mod collecting;
pub(crate) mod descriptors;
pub(crate) mod faulty;
pub(crate) mod fixture;
pub(crate) mod generated;
pub(crate) mod hold;
pub(crate) mod image;
pub(crate) mod load;
pub(crate) mod locker;
pub(crate) mod made;
pub(crate) mod mapped;
pub(crate) mod memory;
pub(crate) mod mounts;
pub(crate) mod namespace;
pub(crate) mod program;
pub(crate) mod random;
pub(crate) mod schema;
pub(crate) mod service;
#[macro_use]
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod systems;
pub(crate) mod thief;
pub(crate) mod threads;
pub(crate) mod tree;
pub(crate) mod user;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take before a test gives up. It is only ever reached when something hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How many lines of `log` hold `what`, once there are `times`: a log has a thread of its own, which may write a line after the service
/// manager or a client was told what follows it.
pub(crate) fn logged_soon(log: impl Fn() -> String, what: &str, times: usize) -> usize {
    let until = Instant::now() + DEADLINE;
    loop {
        let lines = log().lines().filter(|line| line.contains(what)).count();
        if lines >= times || Instant::now() >= until {
            return lines;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is there at `path`, locked as long as this exists.
pub(crate) fn locked(path: &Path) -> std::fs::File {
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    file
}

/// A directory of the test's own, with a name that snapshots recognise and other users may enter.
pub(crate) fn scratch() -> tempfile::TempDir {
    scratch_in(&std::env::temp_dir())
}

/// A pipe that all users may read and write, with the name `path`.
pub(crate) fn pipe_for_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::empty()).expect("a pipe");
    // Whatever the umask is.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).expect("a pipe for all");
}

/// A scratch directory in a directory of the caller's choice.
pub(crate) fn scratch_in(dir: &Path) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix("nsf-it.")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(dir)
        .expect("a scratch directory")
}

/// Compiles `source`, a C file of these tests, into `dir`: for calls that no library offers without unsafe code.
pub(crate) fn compile(source: &str, dir: &Path) -> PathBuf {
    compile_with(source, dir, &[])
}

/// The same with further arguments for the compiler.
pub(crate) fn compile_with(source: &str, dir: &Path, arguments: &[&str]) -> PathBuf {
    let name = Path::new(source).file_stem().expect("a name");
    let program = dir.join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(source);
    let compiled = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror"])
        .args(arguments)
        .arg("-o")
        .arg(&program)
        .arg(source)
        .status();
    assert!(compiled.expect("a C compiler").success());
    program
}

/// How much of something a test does: what the environment says, for slow forms by hand, or `default`.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Where `scripts/setup` puts what it makes.
pub(crate) fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), Into::into);
    cache.join("nix-store-fs")
}

/// Where `scripts/setup --test` puts the tar file of a small Debian that tests boot.
pub(crate) fn guest() -> PathBuf {
    cache().join("guest.tar")
}

/// Waits until one of the descriptors can be read; true for each one that can.
pub(crate) fn wait_readable<const N: usize>(fds: [&dyn AsFd; N], until: Instant) -> [bool; N] {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut polled, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
            Ok(_) => return polled.map(|fd| !fd.revents().is_empty()),
        }
    }
}
