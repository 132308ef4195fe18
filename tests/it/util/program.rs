//! The program, run to its end or as a mount.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use super::store::NixStore;
use super::threads;
use super::{DEADLINE, mounts, wait_readable};

/// A command line in the making.
#[derive(Debug)]
pub(crate) struct Program {
    binary: PathBuf,
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    pub(crate) const PATH: &str = env!("CARGO_BIN_EXE_nix-store-fs");
    /// What its servers run.
    pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_nix-store-fs-server");

    /// Puts the program into `dir`, with its server; returns where it is.
    pub(crate) fn install(dir: &Path) -> PathBuf {
        let own = |file: &str| dir.join(Path::new(file).file_name().unwrap());
        for file in [Self::PATH, Self::SERVER] {
            // They are large.
            fs::hard_link(file, own(file)).or_else(|_| fs::copy(file, own(file)).map(drop)).unwrap();
        }
        own(Self::PATH)
    }

    pub(crate) fn new() -> Self {
        Self {
            binary: Self::PATH.into(),
            wrapper: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The program on a store of the test's own.
    pub(crate) fn on(store: &NixStore) -> Self {
        Self::new().arg("--store").arg(store.uri())
    }

    /// Runs it through another command, which has to `exec` it.
    pub(crate) fn inside<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.wrapper = wrapper.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Runs it through one more command, behind those that there are.
    pub(crate) fn through<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.wrapper.extend(wrapper.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Runs what it is already run through by another command.
    pub(crate) fn further_inside<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        let outer = wrapper.into_iter().map(|word| word.as_ref().to_owned());
        self.wrapper = outer.chain(self.wrapper).collect();
        self
    }

    /// Another copy of the program.
    pub(crate) fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = binary.into();
        self
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, |program, argument| program.arg(argument))
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.into(), value.as_ref().to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.iter().cloned().chain([self.binary.clone().into()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(&self.arguments);
        super::store::nix_environment(&mut command).env_remove("NOTIFY_SOCKET").env("LC_ALL", "C");
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null());
        command
    }

    /// The command line, for a test that starts it in a way of its own.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let words = self.wrapper.iter().cloned().chain([self.binary.clone().into()]);
        words.chain(self.arguments.iter().cloned()).collect()
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Finished {
        let output = super::scratch();
        let out = output.path().join("stdout");
        let (status, stderr) = self.run_into(File::create(&out).unwrap());
        Finished { status, stdout: String::from_utf8(fs::read(out).unwrap()).expect("UTF-8"), stderr }
    }

    /// Runs it to its end with its output going elsewhere; returns its status and what it said.
    pub(crate) fn run_into(self, stdout: impl Into<Stdio>) -> (ExitStatus, String) {
        let output = super::scratch();
        let err = output.path().join("stderr");
        let mut command = self.command();
        command.stdout(stdout).stderr(File::create(&err).unwrap());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let status = wait(&mut child);
        if status.is_none() {
            terminate(&mut child);
        }
        let stderr = String::from_utf8(fs::read(err).unwrap()).expect("UTF-8");
        (status.unwrap_or_else(|| panic!("{command:?} did not end; it said: {stderr}")), stderr)
    }

    /// Mounts on a directory of its own.
    pub(crate) fn mount(self) -> Mounted {
        let dir = super::scratch();
        let at = dir.path().join("view");
        fs::create_dir(&at).unwrap();
        self.arg("--name").arg(unique_name()).arg(&at).start(dir, at)
    }

    /// Mounts where the arguments already given say, which the caller knows to be `at`.
    pub(crate) fn mount_at(self, at: impl Into<PathBuf>) -> Mounted {
        self.start(super::scratch(), at.into())
    }

    /// Mounts on a directory of its own and does not wait for it, under a service manager that reads nothing before
    /// [`Mounted::wait_ready`]: the queue of its socket is full already.
    pub(crate) fn mount_unread(self) -> Mounted {
        let dir = super::scratch();
        let at = dir.path().join("view");
        fs::create_dir(&at).unwrap();
        self.arg("--name").arg(unique_name()).arg(&at).launch(dir, at, |socket| {
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            while sender.send_to(b"STATUS=something else", socket).is_ok() {}
        })
    }

    fn start(self, dir: TempDir, at: PathBuf) -> Mounted {
        let mut mounted = self.launch(dir, at, |_| ());
        mounted.wait_ready();
        mounted
    }

    fn launch(self, dir: TempDir, at: PathBuf, before: impl FnOnce(&Path)) -> Mounted {
        let socket = dir.path().join("notify");
        let ready = UnixDatagram::bind(&socket).unwrap();
        fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        before(&socket);
        let stderr = dir.path().join("stderr");
        let mut command = self.command();
        command.args(confined(&self.wrapper, &self.arguments)).args(asked_ahead(&self.arguments));
        command.env("NOTIFY_SOCKET", &socket).stdout(Stdio::null()).stderr(File::create(&stderr).unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // From here on the guard ends the child, also when what follows panics.
        Mounted { child, at, stderr, ready, _dir: dir }
    }
}

/// What makes every right that a view's processes give up a condition of its start, so that each test of a view is one of a confined
/// view. Not where a test says otherwise, or lets something else start the program: that may be what refuses it.
pub(crate) fn confined(wrapper: &[OsString], arguments: &[OsString]) -> &'static [&'static str] {
    let chosen = arguments.iter().any(|argument| argument == "--sandbox");
    if wrapper.is_empty() && !chosen && nix_store_fs::sandbox::confines_files() {
        &["--sandbox", "require"]
    } else {
        &[]
    }
}

/// Themes in which views are asked ahead for everything while tests use them: no answer may differ, and none may fail.
const READING: [&str; 7] = ["corpus", "hard_links", "kinds", "list32", "oracle", "private", "readers"];

/// Says what a view is asked for ahead, where a test does not: nothing that the next run would find, and nothing where tests rely on what the
/// kernel has not seen yet.
pub(crate) fn asked_ahead(arguments: &[OsString]) -> &'static [&'static str] {
    let thread = std::thread::current();
    let theme = thread.name().and_then(|name| name.split("::").next()).unwrap_or_default();
    match arguments.iter().any(|argument| argument == "--prefetch") {
        true => &[],
        false if READING.contains(&theme) => &["--prefetch", "all"],
        false => &["--prefetch", "off"],
    }
}

/// A name no other test uses, at this time or in another run that left something behind.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A running program whose view answers. Dropping it unmounts and ends the program, by force if need be.
#[derive(Debug)]
pub(crate) struct Mounted {
    child: Child,
    at: PathBuf,
    stderr: PathBuf,
    ready: UnixDatagram,
    _dir: TempDir,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// What the program said so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// How many lines that it said hold `what`, once there is one.
    pub(crate) fn said_soon(&self, what: &str) -> usize {
        super::logged_soon(|| self.stderr(), what, 1)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal the program");
    }

    /// The server's process, if there is one at this moment.
    pub(crate) fn server_now(&self) -> Option<Pid> {
        threads::children(self.pid()).into_iter().rev().find(|child| threads::is_server(*child))
    }

    /// The exit status of a program that was told to end, or whose mount is gone.
    pub(crate) fn end(&mut self) -> ExitStatus {
        wait(&mut self.child).unwrap_or_else(|| panic!("the program still runs; it said: {}", self.stderr()))
    }

    /// Waits for READY=1; a program that ends instead fails the test at once.
    pub(crate) fn wait_ready(&mut self) {
        let until = Instant::now() + DEADLINE;
        let alive = pidfd_open(self.pid(), PidfdFlags::empty()).expect("pidfd_open");
        let mut message = [0; 4096];
        loop {
            match wait_readable([&self.ready, &alive], until) {
                [true, _] => {
                    let length = self.ready.recv(&mut message).unwrap();
                    if message[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                        return;
                    }
                }
                [false, true] => panic!("the program ended before it was ready; it said: {}", self.stderr()),
                [false, false] => panic!("the program is not ready; it said: {}", self.stderr()),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the program said:\n{}---", self.stderr());
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone = kill_process(self.pid(), Signal::TERM);
            if wait(&mut self.child).is_none() {
                eprintln!("the program on {} ignored SIGTERM", self.at.display());
                terminate(&mut self.child);
            }
        }
        while mounts::at(&self.at).is_some() {
            eprintln!("{} was still mounted", self.at.display());
            if rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
    }
}

/// Waits for a child to end, up to the deadline.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok()?;
    let [ended] = wait_readable([&ended], Instant::now() + DEADLINE);
    if ended { child.wait().ok() } else { None }
}

fn terminate(child: &mut Child) {
    let _gone = child.kill();
    let _reaped = child.wait();
}
