//! A Nix store of the test's own, filled by the real `nix-store`.
//!
//! Contents go in with `nix-store --import`: Nix unpacks, sets modes and times, hashes and registers them as it
//! would on any machine, and the test may choose names and references freely, since no builder has to run. What
//! is too big to be packed and unpacked in a test is made in place and registered with `--load-db`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A store path that is valid in a [`NixStore`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    /// As Nix spells it: `/nix/store/HASH-NAME`.
    pub(crate) path: String,
    /// `HASH-NAME`.
    pub(crate) base: String,
}

/// A private store: `local?root=DIR`, its logical directory `/nix/store`, its physical one below a scratch directory.
#[derive(Debug)]
pub(crate) struct NixStore {
    dir: TempDir,
    uid: Option<u32>,
}

impl NixStore {
    pub(crate) fn new() -> Self {
        let store = Self { dir: super::scratch(), uid: None };
        store.prepare();
        store
    }

    /// A store in a directory of its own in `dir`, which may lie on another file system.
    pub(crate) fn below(dir: &Path) -> Self {
        let store = Self { dir: super::scratch_in(dir), uid: None };
        store.prepare();
        store
    }

    /// A store that belongs to an ordinary user, who fills it as well.
    pub(crate) fn owned_by(uid: u32) -> Self {
        let store = Self { dir: super::scratch(), uid: Some(uid) };
        chown(store.dir.path(), Some(uid), Some(uid)).expect("chown the store");
        store.prepare();
        store
    }

    fn prepare(&self) {
        // The first command makes the database and the directories.
        self.nix("nix-store", ["--init"], b"");
        assert!(
            self.root().join("nix/var/nix/db/db.sqlite").exists(),
            "Nix took another store than the test's own"
        );
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// What `--store` takes.
    pub(crate) fn uri(&self) -> String {
        format!("local?root={}", self.dir.path().display())
    }

    /// The directory that holds the store paths.
    pub(crate) fn physical(&self) -> PathBuf {
        self.dir.path().join("nix/store")
    }

    pub(crate) fn profiles(&self) -> PathBuf {
        self.dir.path().join("nix/var/nix/profiles")
    }

    /// A store path called `name`, whose hash part is made from the name so that snapshots stay the same.
    pub(crate) fn name(name: &str) -> Member {
        const ALPHABET: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
        let mut state = 0xcbf2_9ce4_8422_2325_u64;
        let mut base = String::new();
        for round in 0..32_u8 {
            for byte in name.bytes().chain([round]) {
                state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            base.push(char::from(ALPHABET[usize::try_from(state >> 59).unwrap()]));
        }
        base.push('-');
        base.push_str(name);
        Member { path: format!("/nix/store/{base}"), base }
    }

    /// Adds a store path with what `build` puts at the path it is given: a directory, a file or a link.
    pub(crate) fn add(&self, name: &str, references: &[&Member], build: impl FnOnce(&Path)) -> Member {
        let member = Self::name(name);
        let scratch = super::scratch();
        let source = scratch.path().join("source");
        build(&source);
        let nar = run(Command::new("nix-store").arg("--dump").arg(&source), NO_STORE, b"").stdout;
        let mut export = Vec::with_capacity(nar.len() + 1024);
        let number = |export: &mut Vec<u8>, value: u64| export.extend_from_slice(&value.to_le_bytes());
        let string = |export: &mut Vec<u8>, text: &str| {
            export.extend_from_slice(&u64::try_from(text.len()).unwrap().to_le_bytes());
            export.extend_from_slice(text.as_bytes());
            export.resize(export.len().next_multiple_of(8), 0);
        };
        number(&mut export, 1);
        export.extend_from_slice(&nar);
        number(&mut export, 0x4558_494e);
        string(&mut export, &member.path);
        number(&mut export, u64::try_from(references.len()).unwrap());
        for reference in references {
            string(&mut export, &reference.path);
        }
        string(&mut export, ""); // no deriver
        number(&mut export, 0); // no signature
        number(&mut export, 0); // no further path
        self.nix("nix-store", ["--import"], &export);
        member
    }

    /// Registers a store path that `build` makes in place. Its hash in the database is not the real one.
    pub(crate) fn add_in_place(
        &self,
        name: &str,
        references: &[&Member],
        build: impl FnOnce(&Path),
    ) -> Member {
        let member = self.put_in_place(name, build);
        self.register(&[(&member, references)]);
        member
    }

    /// What `build` makes at the place of a store path, which is not valid before [`NixStore::register`].
    pub(crate) fn put_in_place(&self, name: &str, build: impl FnOnce(&Path)) -> Member {
        let member = Self::name(name);
        let physical = self.physical().join(&member.base);
        build(&physical);
        canonicalise(&physical);
        member
    }

    /// Makes store paths valid, each with what it refers to. Their hashes in the database are not the real ones.
    pub(crate) fn register(&self, members: &[(&Member, &[&Member])]) {
        let hash = "0".repeat(64);
        let mut registration = String::new();
        for (member, references) in members {
            registration.push_str(&format!("{}\nsha256:{hash}\n1000\n\n{}\n", member.path, references.len()));
            for reference in *references {
                registration.push_str(&reference.path);
                registration.push('\n');
            }
        }
        self.nix("nix-store", ["--load-db"], registration.as_bytes());
    }

    /// Registers small files as store paths, all at once. Their hashes in the database are not the real ones.
    pub(crate) fn add_files(&self, name: &str, count: usize) -> Vec<Member> {
        let file = |number| {
            let name = format!("{name}-{number}");
            self.put_in_place(&name, |path| fs::write(path, format!("{}\n", Self::name(&name).base)).unwrap())
        };
        let members: Vec<Member> = (0..count).map(file).collect();
        let alone: Vec<(&Member, &[&Member])> = members.iter().map(|member| (member, &[][..])).collect();
        self.register(&alone);
        members
    }

    /// A link below the store's `profiles` directory, with the logical target that Nix would write.
    pub(crate) fn profile(&self, name: &str, target: impl AsRef<Path>) -> PathBuf {
        let link = self.profiles().join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, &link).unwrap();
        link
    }

    /// Runs one of Nix's commands on this store and returns what it prints.
    pub(crate) fn nix<A: AsRef<OsStr>>(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> String {
        let mut command = match self.uid {
            None => Command::new(command),
            Some(uid) => {
                let mut user = Command::new("setpriv");
                user.args(as_user(uid)).arg(command);
                user
            }
        };
        command.args(arguments);
        String::from_utf8(run(&mut command, &self.uri(), input).stdout).expect("Nix prints UTF-8")
    }

    /// Deletes what no root holds, in a process namespace of its own: Nix takes what the machine's processes have open for
    /// roots too, and fails where one has a path that is too long to be read.
    pub(crate) fn collect_garbage(&self) {
        let alone = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        self.nix("unshare", alone.into_iter().chain(["nix-store", "--gc", "--quiet"]), b"");
    }

    /// What `nix-store -qR` says the closure is, sorted.
    pub(crate) fn closure(&self, roots: &[&Member]) -> Vec<String> {
        let arguments = ["-qR"].into_iter().chain(roots.iter().map(|member| member.path.as_str()));
        let mut lines: Vec<String> =
            self.nix("nix-store", arguments, b"").lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

impl Drop for NixStore {
    fn drop(&mut self) {
        // Store paths are read-only directories, which only root can empty as they are.
        make_writable(self.dir.path());
    }
}

/// A Nix daemon of the test's own that serves a [`NixStore`], and that can be made to stop answering.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    uri: String,
}

impl Daemon {
    pub(crate) fn start(store: &NixStore) -> Self {
        let socket = store.root().join("socket");
        let mut command = Command::new("nix-daemon");
        nix_environment(command.args(["--store", &store.uri()]));
        command.env("NIX_DAEMON_SOCKET_PATH", &socket).env_remove("LD_LIBRARY_PATH");
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nix-daemon");
        let daemon =
            Self { child, uri: format!("unix://{}?root={}", socket.display(), store.root().display()) };
        let until = Instant::now() + super::DEADLINE;
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < until, "nix-daemon does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// What `--store` takes.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// From now on the daemon accepts connections and requests, and never answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// From now on it answers again.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// It has one child for each connection, and those do not end with it.
    fn signal(&self, signal: Signal) {
        let parent = Pid::from_child(&self.child);
        // No child is added while they are being listed.
        let _ended = kill_process(parent, Signal::STOP);
        let pid = parent.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let _ended = kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), signal);
        }
        let _ended = kill_process(parent, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _reaped = self.child.wait();
    }
}

/// The arguments of `setpriv` that make a command run as an ordinary user.
pub(crate) fn as_user(uid: u32) -> [String; 5] {
    [
        format!("--reuid={uid}"),
        format!("--regid={uid}"),
        "--clear-groups".into(),
        "--inh-caps=-all".into(),
        "--".into(),
    ]
}

/// What stands for a store where none is wanted: never the machine's own.
const NO_STORE: &str = "dummy://";

/// The environment in which Nix looks at no configuration of the machine's, and does not find its store.
pub(crate) fn nix_environment(command: &mut Command) -> &mut Command {
    command
        .env("NIX_CONF_DIR", "/var/empty")
        .env("NIX_USER_CONF_FILES", "/var/empty/nix.conf")
        .env("HOME", "/var/empty")
        .env("NIX_CONFIG", "build-users-group =\nsandbox = false\nsubstitute = false\n")
        .env("NIX_REMOTE", NO_STORE)
        // Nothing of these tests is remembered by the machine.
        .env("CACHE_DIRECTORY", "/dev/null/none")
        .env_remove("NIX_STORE_DIR")
}

fn run(command: &mut Command, store: &str, input: &[u8]) -> Output {
    let mut child = nix_environment(command)
        .env("NIX_REMOTE", store)
        // Nix's commands and the program may be of different releases, each with libraries of its own.
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A command that fails stops reading; its exit code tells more than the broken pipe.
            let _broken_pipe = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    });
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Modes and times as Nix gives them.
pub(crate) fn canonicalise(path: &Path) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            canonicalise(&entry.unwrap().path());
        }
    }
    if !meta.is_symlink() {
        let executable = meta.is_dir() || meta.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o555 } else { 0o444 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let one = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: one, last_modification: one };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn make_writable(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    if fs::set_permissions(path, fs::Permissions::from_mode(0o755)).is_err() {
        return;
    }
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}
