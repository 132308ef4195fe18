//! The program under a service manager, which the test plays: it hears what the program notifies, keeps its
//! descriptors (`FDSTORE=1`) and starts the next one with them (`LISTEN_FDS`), as systemd does.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::FlockOperation;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use super::program::{Finished, Program, asked_ahead, confined, unique_name};
use super::store::{NixStore, nix_environment};
use super::{DEADLINE, mounts, threads, wait_readable};

/// What a notification says, by its keys.
pub(crate) type Message = BTreeMap<String, String>;

/// What a view stores, in the order in which it is given back.
const KEPT: [&str; 3] = ["fuse", "ledger", "usage"];

/// Ends the thread that listens; no program sends it.
const ENOUGH: &[u8] = b"X_ENOUGH=1";

#[derive(Debug, Default)]
struct Heard {
    messages: Vec<Message>,
    stored: BTreeMap<String, OwnedFd>,
    /// `FileDescriptorStoreMax=`, if there is a limit.
    room: Option<usize>,
}

#[derive(Debug, Default)]
struct Ear {
    heard: Mutex<Heard>,
    news: Condvar,
}

/// Who is to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Server,
    /// Its server lives for a moment, and is killed as a service manager kills what is left of a service.
    Monitor,
    Both,
}

/// A view that is started again and again. Dropping it ends the program and unmounts.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    /// What is started the next time.
    pub(crate) binary: PathBuf,
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    at: PathBuf,
    child: Option<Child>,
    /// The server of a monitor that was killed, or of this one when it was last looked at.
    server: Option<Pid>,
    ear: Arc<Ear>,
    listener: Option<JoinHandle<()>>,
    dir: TempDir,
}

impl Service {
    /// A service with a mount point of its own; nothing is started yet.
    pub(crate) fn new(store: &NixStore) -> Self {
        Self::on(&store.uri())
    }

    /// The same on the store of a URI.
    pub(crate) fn on(store: &str) -> Self {
        let dir = super::scratch();
        let at = dir.path().join("view");
        fs::create_dir(&at).unwrap();
        let name = unique_name();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let ear = Arc::<Ear>::default();
        let listener = std::thread::spawn({
            let ear = ear.clone();
            move || listen(&socket, &ear)
        });
        let mut service = Self {
            name: name.clone(),
            binary: Program::PATH.into(),
            wrapper: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            at: at.clone(),
            child: None,
            server: None,
            ear,
            listener: Some(listener),
            dir,
        };
        service.add(["--store", store, "--name", &name, "-v"]);
        service.add([&at]);
        service
    }

    /// Runs the program through another command, which has to `exec` it, at every start from now on.
    pub(crate) fn inside<A: AsRef<OsStr>>(&mut self, wrapper: impl IntoIterator<Item = A>) {
        self.wrapper = wrapper.into_iter().map(|word| word.as_ref().to_owned()).collect();
    }

    /// More arguments, for every start from now on.
    pub(crate) fn add<A: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = A>) {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
    }

    pub(crate) fn with<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.add(arguments);
        self
    }

    /// A variable of the environment, for every start from now on.
    pub(crate) fn set(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.as_ref().to_owned()));
    }

    /// Another value of an argument, for every start from now on.
    pub(crate) fn replace(&mut self, from: &Path, to: &Path) {
        for argument in self.arguments.iter_mut().filter(|argument| *argument == from) {
            *argument = to.into();
        }
    }

    /// How many descriptors are kept. What comes when there are as many is dropped, as systemd does.
    pub(crate) fn set_room(&self, descriptors: usize) {
        self.ear.heard.lock().room = Some(descriptors);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// The state directory of the view.
    pub(crate) fn state(&self) -> PathBuf {
        Path::new("/run/nix-store-fs/.state").join(&self.name)
    }

    /// Everything the program, and those before it, said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("stderr")).unwrap_or_default()).into_owned()
    }

    /// How many lines of the log hold this.
    pub(crate) fn logged(&self, what: &str) -> usize {
        self.log().lines().filter(|line| line.contains(what)).count()
    }

    /// The same, once it is at least `times`.
    pub(crate) fn logged_soon(&self, what: &str, times: usize) -> usize {
        super::logged_soon(|| self.log(), what, times)
    }

    /// How many notifications have come: the place to [`Self::wait`] from.
    pub(crate) fn heard(&self) -> usize {
        self.ear.heard.lock().messages.len()
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        self.ear.heard.lock().messages.clone()
    }

    /// Waits for a notification, not before the place `from`, that has this key.
    pub(crate) fn wait(&self, from: usize, key: &str) -> Message {
        let until = Instant::now() + DEADLINE;
        let mut heard = self.ear.heard.lock();
        loop {
            if let Some(found) = heard.messages.iter().skip(from).find(|message| message.contains_key(key)) {
                return found.clone();
            }
            let late = self.ear.news.wait_until(&mut heard, until).timed_out();
            assert!(!late, "no {key} came; the program said:\n{}", self.log());
        }
    }

    /// Waits until `path` exists.
    pub(crate) fn wait_for(&self, path: &Path) {
        self.wait_until(path, true);
    }

    /// Waits until `path` exists no more.
    pub(crate) fn wait_for_end_of(&self, path: &Path) {
        self.wait_until(path, false);
    }

    fn wait_until(&self, path: &Path, exists: bool) {
        let until = Instant::now() + DEADLINE;
        while path.exists() != exists {
            let what = if exists { "come" } else { "go" };
            assert!(Instant::now() < until, "{} does not {what}: {}", path.display(), self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the kernel is to forget a name and waits for a reader, or until `is_over`: then this returns true.
    pub(crate) fn wait_for_invalidation(&self, server: Pid, mut is_over: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + DEADLINE;
        while !threads::waits_in_kernel(server, "invalidate") {
            if is_over() {
                return true;
            }
            assert!(Instant::now() < until, "nobody waits for the reader\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Waits until this many lines of the log hold `what`.
    pub(crate) fn wait_logged(&self, what: &str, times: usize) {
        let is_logged = self.logged_soon(what, times) >= times;
        assert!(is_logged, "'{what}' is not logged {times} times: {}", self.log());
    }

    /// Starts the program with what is stored, and does not wait.
    pub(crate) fn start(&mut self) {
        self.launch(true);
    }

    /// Starts the program as a shell would, with no service manager.
    pub(crate) fn start_alone(&mut self) {
        self.launch(false);
    }

    fn launch(&mut self, managed: bool) {
        let heard = self.ear.heard.lock();
        let stored: Vec<_> = KEPT
            .into_iter()
            .filter_map(|name| Some((name, heard.stored.get(name).filter(|_| managed)?.try_clone().unwrap())))
            .collect();
        drop(heard);
        let mut command = Command::new("sh");
        // The number of the process is the program's: `exec` keeps it. Descriptors begin at number 3; they come to the shell as its
        // standard ones.
        command.args([
            "-c",
            r#"[ -z "$LISTEN_FDS" ] || export LISTEN_PID=$$; log=$1; shift; exec "$@" 3<&0 4<&1 5<&2 </dev/null >/dev/null 2>>"$log""#,
            "sh",
        ]);
        command.arg(self.dir.path().join("stderr"));
        command.args(&self.wrapper).arg(&self.binary).args(&self.arguments);
        nix_environment(
            command.args(confined(&self.wrapper, &self.arguments)).args(asked_ahead(&self.arguments)),
        );
        command.env_remove("NOTIFY_SOCKET").env("LC_ALL", "C").envs(self.environment.clone());
        if managed {
            command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        }
        if !stored.is_empty() {
            let names: Vec<_> = stored.iter().map(|(name, _)| *name).collect();
            command.env("LISTEN_FDS", stored.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        let mut stored =
            stored.into_iter().map(|(_, kept)| Stdio::from(kept)).chain(std::iter::repeat_with(Stdio::null));
        let mut next = || stored.next().unwrap();
        command.stdin(next()).stdout(next()).stderr(next());
        self.child = Some(command.spawn().unwrap());
        self.server = None;
    }

    /// Starts the program and waits until it says that the view answers.
    pub(crate) fn start_ready(&mut self) -> Message {
        let from = self.heard();
        self.start();
        self.wait_ready(from)
    }

    /// Waits for READY=1, not before the place `from`; a program that ends instead fails the test at once.
    pub(crate) fn wait_ready(&mut self, from: usize) -> Message {
        let until = Instant::now() + DEADLINE;
        let mut heard = self.ear.heard.lock();
        loop {
            if let Some(found) = heard.messages.iter().skip(from).find(|m| m.contains_key("READY")) {
                return found.clone();
            }
            let _woken = self.ear.news.wait_for(&mut heard, Duration::from_millis(200));
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "the program ended with {ended:?}; it said:\n{}", self.log());
            if Instant::now() >= until {
                let at = threads::describe(self.monitor());
                panic!("the program is not ready, and at:\n{at}\nit said:\n{}", self.log());
            }
        }
    }

    /// Waits until the program holds the lock of the view's name.
    pub(crate) fn wait_locked(&mut self) {
        let until = Instant::now() + DEADLINE;
        loop {
            let held = File::open(self.state().join("lock"))
                .is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err());
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "the program ended with {ended:?}; it said:\n{}", self.log());
            if held {
                return;
            }
            assert!(Instant::now() < until, "the program has no lock; it said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The program's process.
    pub(crate) fn monitor(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("a running program"))
    }

    /// The server's process, if there is one at this moment.
    pub(crate) fn server_now(&mut self) -> Option<Pid> {
        let pid = self.monitor().as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        // Not what asks whether the view answers: a server has a session of its own.
        let children = children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?));
        self.server = children.rev().find(|child| threads::is_server(*child));
        self.server
    }

    /// The server's process, once there is one.
    pub(crate) fn server(&mut self) -> Pid {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(server) = self.server_now() {
                return server;
            }
            assert!(Instant::now() < until, "there is no server; the program said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills at once. Nothing is started again but by the program itself.
    pub(crate) fn kill(&mut self, victim: Victim) {
        if let Some(server) = self.kill_unwaited(victim) {
            assert_eq!(
                wait_readable([&server], Instant::now() + DEADLINE),
                [true],
                "the server does not die; the program said:\n{}",
                self.log()
            );
        }
    }

    /// The same, but a killed server may take its time: one that waits for a reader cannot end before another server
    /// has answered that one. Returns the server's process.
    pub(crate) fn kill_unwaited(&mut self, victim: Victim) -> Option<OwnedFd> {
        let server = if victim == Victim::Server { Some(self.server()) } else { self.server_now() };
        if victim != Victim::Server {
            self.kill_monitor_only();
            if victim == Victim::Monitor {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let server = server?;
        let process = pidfd_open(server, PidfdFlags::empty()).ok()?;
        let _gone = kill_process(server, Signal::KILL);
        Some(process)
    }

    /// Kills the program and lets its server live.
    pub(crate) fn kill_monitor_only(&mut self) {
        let mut child = self.child.take().expect("a running program");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.monitor(), signal).expect("signal the program");
    }

    /// The exit status of a program that was told to end, or that cannot continue.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("a started program");
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("pidfd_open");
        let [ended] = wait_readable([&process], Instant::now() + DEADLINE);
        assert!(ended, "the program still runs; it said:\n{}", self.log());
        let status = child.wait().unwrap();
        self.child = None;
        status
    }

    /// Ends the view by SIGTERM, and it has to end well.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}; it said:\n{}", self.log());
        assert!(mounts::at(&self.at).is_none(), "still mounted");
    }

    /// `reload` of this view, run to its end.
    pub(crate) fn reload(&self) -> Finished {
        Program::new().args(["reload", &self.name]).run()
    }

    /// A reload that has to succeed.
    pub(crate) fn reload_well(&self) {
        let finished = self.reload();
        assert_eq!(finished.status.code(), Some(0), "{finished:?}\n{}", self.log());
    }

    /// What the descriptor store holds is closed, as when the service manager itself goes.
    pub(crate) fn lose_descriptors(&self) {
        self.ear.heard.lock().stored.clear();
    }

    /// The descriptor store loses the one of this name.
    pub(crate) fn lose_descriptor(&self, name: &str) {
        self.ear.heard.lock().stored.remove(name).expect("a stored descriptor");
    }

    /// The descriptor store has another one by this name.
    pub(crate) fn replace_kept(&self, name: &str, by: OwnedFd) {
        self.ear.heard.lock().stored.insert(name.to_owned(), by);
    }

    /// A copy of the descriptor that is stored by this name.
    pub(crate) fn kept(&self, name: &str) -> OwnedFd {
        self.ear.heard.lock().stored.get(name).expect("a stored descriptor").try_clone().unwrap()
    }

    pub(crate) fn stored(&self) -> Vec<String> {
        self.ear.heard.lock().stored.keys().cloned().collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- the program said at last:\n{}\n---",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        if self.child.is_some() {
            let _server = self.server_now();
        }
        if let Some(mut child) = self.child.take() {
            let _gone = kill_process(Pid::from_child(&child), Signal::TERM);
            let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
                .is_ok_and(|process| wait_readable([&process], Instant::now() + DEADLINE / 4) == [true]);
            if !ended {
                eprintln!("the program on {} ignored SIGTERM", self.at.display());
                let _gone = child.kill();
                self.server.iter().copied().for_each(kill_and_wait);
            }
            let _reaped = child.wait();
        }
        self.lose_descriptors();
        while mounts::at(&self.at).is_some() {
            if rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        let _nothing_left = fs::remove_dir_all(self.state());
        let told =
            UnixDatagram::unbound().and_then(|socket| socket.send_to(ENOUGH, self.dir.path().join("notify")));
        if told.is_ok() {
            let _ended = self.listener.take().map(JoinHandle::join);
        }
    }
}

/// Kills a process that need not be a child of this one, and waits for its end.
fn kill_and_wait(pid: Pid) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let _gone = kill_process(pid, Signal::KILL);
    assert_eq!(wait_readable([&process], Instant::now() + DEADLINE), [true], "{pid:?} does not die");
}

fn listen(socket: &UnixDatagram, ear: &Ear) {
    while let Ok((text, descriptors)) = receive(socket) {
        if text == ENOUGH {
            break;
        }
        let text = String::from_utf8(text).expect("a notification in UTF-8");
        let message: Message = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut heard = ear.heard.lock();
        let name = message.get("FDNAME").cloned().unwrap_or_default();
        if message.contains_key("FDSTORE") {
            let last = descriptors.into_iter().next_back().expect("FDSTORE comes with a descriptor");
            let kept = heard.stored.contains_key(&name);
            if kept || heard.room.is_none_or(|room| heard.stored.len() < room) {
                heard.stored.insert(name, last);
            }
        } else if message.contains_key("FDSTOREREMOVE") {
            heard.stored.remove(&name);
        }
        heard.messages.push(message);
        ear.news.notify_all();
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut text)];
    let got = loop {
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            got => break got?.bytes,
        }
    };
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    text.truncate(got);
    Ok((text, descriptors))
}
