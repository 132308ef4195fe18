//! A server that is killed at whatever point of a request's life leaves nobody waiting: its successor answers, with nothing of
//! the kernel's help (`NSF_RESEND=no` keeps servers from asking for it; kernels before 6.9 have none).
//!
//! The point is reached for certain: a build for tests stops its server there (`src/server/stops.rs`), and the test kills it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::util::fixture::Fixture;
use crate::util::namespace::Namespace;
use crate::util::service::{Service, Victim};
use crate::util::{DEADLINE, mounts, threads, tree, wait_readable};

/// Where a server is stopped.
const POINTS: [&str; 4] = ["taken", "decided", "answered", "free"];

/// What is asked: each of these reaches the server, as nothing was asked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Lookup,
    Absent,
    Link,
    List,
    Read,
    Mapped,
    Sizes,
}

const ALL: [Ask; 7] = [Ask::Lookup, Ask::Absent, Ask::Link, Ask::List, Ask::Read, Ask::Mapped, Ask::Sizes];

impl Ask {
    /// What has to be known first so that only the question itself is asked afterwards.
    fn prepare(self, data: &Path) {
        let known = match self {
            Self::Lookup | Self::Absent | Self::Sizes => data.to_owned(),
            Self::Link => data.join("links/inside"),
            Self::List => data.join("names"),
            Self::Read | Self::Mapped => data.join("long"),
        };
        known.symlink_metadata().unwrap();
    }

    /// Asks, and says what the answer is.
    fn ask(self, data: &Path) -> String {
        match self {
            Self::Lookup => format!("{:?}", data.join("text").symlink_metadata().map(|meta| meta.len())),
            Self::Absent => format!("{:?}", data.join("nowhere").symlink_metadata().map_err(|e| e.kind())),
            Self::Link => format!("{:?}", fs::read_link(data.join("links/inside"))),
            Self::List => format!("{:?}", tree::list(&data.join("names"))),
            Self::Read => {
                let mut bytes = [0; 8];
                let file = File::open(data.join("long")).unwrap();
                format!("{:?} {bytes:?}", file.read_exact_at(&mut bytes, 400_000).map(|()| bytes))
            }
            Self::Mapped => {
                let bytes = fs::read(data.join("long")).unwrap();
                format!("{} {:?}", bytes.len(), &bytes[800_000..800_008])
            }
            Self::Sizes => format!("{:?}", rustix::fs::statfs(data).map(|sizes| sizes.f_files)),
        }
    }
}

/// A view whose servers ask the kernel for nothing, and stop where the test says.
struct Stopping {
    service: Service,
    data: PathBuf,
    real: PathBuf,
    stop: PathBuf,
}

impl Stopping {
    fn at(point: &str, fixture: &Fixture) -> Self {
        let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
        let stop = service.path().parent().unwrap().join("stop");
        service.set("NSF_STOP", format!("{point}:{}", stop.display()));
        service.set("NSF_RESEND", "no");
        service.start_ready();
        let data = service.path().join(&fixture.data.base);
        // The kernel asks once whether closing a file matters. A process that this one starts closes copies of what its threads have
        // open, and would wait there for the server that it is to start.
        drop(File::open(data.join("empty")).unwrap());
        let real = fixture.store.physical().join(&fixture.data.base);
        Self { service, data, real, stop }
    }

    /// Asks from a thread of its own.
    fn ask(&self, ask: Ask) -> Receiver<String> {
        let (tell, told) = channel();
        let data = self.data.clone();
        thread::spawn(move || {
            let _given_up = tell.send(ask.ask(&data));
        });
        told
    }

    /// Has the next server stop that comes to the point.
    fn arm(&self) {
        File::create(&self.stop).unwrap();
    }

    /// Waits until the server has stopped.
    fn wait_stopped(&mut self) {
        let until = Instant::now() + DEADLINE;
        loop {
            // One that has just ended has no state any more.
            let state = threads::state(threads::process(self.service.server()));
            if state == Some('T') {
                return;
            }
            assert!(
                Instant::now() < until,
                "the server never came to the point: {state:?}\n{}",
                self.service.log()
            );
            thread::yield_now();
        }
    }

    /// Asks, and kills `victim` when the server has come to the point.
    fn ask_and_kill(&mut self, ask: Ask, victim: Victim) -> Receiver<String> {
        self.arm();
        let told = self.ask(ask);
        self.wait_stopped();
        self.service.kill(victim);
        told
    }

    fn expect(&self, told: &Receiver<String>, expected: &str, what: &str) {
        let answer = told.recv_timeout(DEADLINE);
        let answer = answer.unwrap_or_else(|_| panic!("{what}: nobody answers\n{}", self.service.log()));
        assert_eq!(answer, expected, "{what}");
    }
}

fn each_operation_at(point: &str) {
    let fixture = Fixture::new();
    for ask in ALL {
        for victim in [Victim::Server, Victim::Both] {
            let mut view = Stopping::at(point, &fixture);
            ask.prepare(&view.data);
            let expected = match ask {
                // A view has sizes of its own.
                Ask::Sizes => ask.ask(&view.data),
                _ => ask.ask(&view.real),
            };
            let told = view.ask_and_kill(ask, victim);
            if victim == Victim::Both {
                view.service.start_ready();
            }
            view.expect(&told, &expected, &format!("{ask:?}, {victim:?} killed at {point}"));
            // Nobody else waits either, and nothing is left over.
            assert_eq!(Ask::Lookup.ask(&view.data), Ask::Lookup.ask(&view.real));
            view.service.stop();
        }
    }
}

#[test]
fn kill_with_a_request_taken() {
    need!(Root, Fuse, Nix);
    each_operation_at(POINTS[0]);
}

#[test]
fn kill_with_an_answer_decided() {
    need!(Root, Fuse, Nix);
    each_operation_at(POINTS[1]);
}

#[test]
fn kill_with_an_answer_given() {
    need!(Root, Fuse, Nix);
    each_operation_at(POINTS[2]);
}

#[test]
fn kill_with_nothing_left_over() {
    need!(Root, Fuse, Nix);
    each_operation_at(POINTS[3]);
}

/// What was taken is known to nobody: the descriptor store had no room for the ledger. Path walks begin again and find what they
/// look for; a read may fail once; nobody waits.
#[test]
fn kill_with_the_ledger_lost() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for ask in ALL {
        let mut view = Stopping::at("taken", &fixture);
        let sizes = Ask::Sizes.ask(&view.data);
        ask.prepare(&view.data);
        let told = view.ask_and_kill(ask, Victim::Both);
        view.service.lose_descriptor("ledger");
        view.service.start_ready();
        let answer = told.recv_timeout(DEADLINE);
        assert!(answer.is_ok(), "{ask:?}: nobody answers\n{}", view.service.log());
        if matches!(ask, Ask::Lookup | Ask::Absent | Ask::Link) {
            assert_eq!(answer.unwrap(), ask.ask(&view.real), "{ask:?}");
        }
        assert_eq!(view.service.logged_soon("were answered with an error", 1), 1, "{}", view.service.log());
        if ask != Ask::Sizes {
            assert_eq!(ask.ask(&view.data), ask.ask(&view.real), "{ask:?} again");
        }
        // The successor's own ledger is good for whoever comes next.
        let told = view.ask_and_kill(Ask::Sizes, Victim::Both);
        view.service.start_ready();
        view.expect(&told, &sizes, "after a second start");
        view.service.stop();
    }
}

/// The same of a view that cannot be asked at its place: it is mounted in a container alone, or covered.
#[test]
fn kill_with_the_ledger_lost_of_a_view_elsewhere() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for covered in [false, true] {
        let mut view = Stopping::at("taken", &fixture);
        let open = covered.then(|| File::open(&view.data).unwrap());
        let container = (!covered).then(Namespace::new);
        let at = view.service.path().to_owned();
        let _cover = covered.then(|| mounts::Own::mount("tmpfs", &at, ""));
        let mut reader = if let Some(container) = &container {
            rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
            let mut reader = container.command("stat");
            reader.arg(view.data.join("text"));
            reader
        } else {
            let mut reader = Command::new("stat");
            let below = open.as_ref().map_or(0, AsRawFd::as_raw_fd);
            reader.arg("text").current_dir(format!("/proc/{}/fd/{below}", std::process::id()));
            reader
        };
        view.arm();
        let mut reader = reader.stdout(Stdio::null()).spawn().unwrap();
        view.wait_stopped();
        view.service.kill(Victim::Both);
        view.service.lose_descriptor("ledger");
        view.service.start_ready();
        let process = pidfd_open(Pid::from_child(&reader), PidfdFlags::empty()).unwrap();
        let ended = wait_readable([&process], Instant::now() + DEADLINE);
        view.service.signal(Signal::TERM);
        view.service.ended();
        reader.wait().unwrap();
        assert_eq!(ended, [true], "covered: {covered}: nobody answers\n{}", view.service.log());
    }
}

/// The same, and the successor is killed in its turn before it has found out what it cannot know.
#[test]
fn kill_with_the_ledger_lost_and_again() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for ask in [Ask::Lookup, Ask::Read, Ask::List] {
        let mut view = Stopping::at("taken", &fixture);
        ask.prepare(&view.data);
        let told = view.ask_and_kill(ask, Victim::Both);
        view.service.lose_descriptor("ledger");
        view.arm();
        let from = view.service.heard();
        view.service.start();
        view.wait_stopped();
        view.service.kill(Victim::Server);
        let answer = told.recv_timeout(DEADLINE);
        assert!(answer.is_ok(), "{ask:?}: nobody answers\n{}", view.service.log());
        view.service.wait_ready(from);
        assert_eq!(ask.ask(&view.data), ask.ask(&view.real), "{ask:?} again");
        view.service.stop();
    }
}

/// Where the service manager keeps one descriptor only, it is the device: without it there is no view.
#[test]
fn a_descriptor_store_with_room_for_one_keeps_the_view() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.set_room(1);
    service.start_ready();
    let text = service.path().join(&fixture.data.base).join("text");
    for _ in 0..2 {
        assert_eq!(service.stored(), ["fuse"]);
        service.kill(Victim::Both);
        service.start_ready();
        assert_eq!(fs::read(&text).unwrap(), b"hello\n", "{}", service.log());
    }
    assert_eq!(service.logged_soon("taking over the view", 2), 2, "{}", service.log());
    assert_eq!(
        service.logged_soon("FileDescriptorStoreMax= has to be 2 at least", 2),
        2,
        "{}",
        service.log()
    );
    service.stop();
}

/// Where the kernel can give back what was taken, nothing fails without a ledger either.
#[test]
fn kill_with_the_ledger_lost_and_the_kernel_asked() {
    need!(Root, Fuse, Nix, Resend);
    let fixture = Fixture::new();
    for ask in [Ask::Lookup, Ask::Read, Ask::List] {
        let mut view = Stopping::at("taken", &fixture);
        ask.prepare(&view.data);
        view.service.set("NSF_RESEND", "yes");
        let told = view.ask_and_kill(ask, Victim::Both);
        view.service.lose_descriptor("ledger");
        view.service.start_ready();
        view.expect(&told, &ask.ask(&view.real), &format!("{ask:?}"));
        view.service.stop();
    }
}

/// A request at which every server crashes does not keep the view from answering others for ever.
#[test]
fn a_request_at_which_servers_crash_is_answered_with_an_error_in_the_end() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Stopping::at("taken", &fixture);
    let crash = view.stop.with_file_name("crash");
    view.service.stop();
    view.service.set("NSF_CRASH", format!("taken:{}", crash.display()));
    view.service.start_ready();
    Ask::Link.prepare(&view.data);
    File::create(&crash).unwrap();
    let told = view.ask(Ask::Link);
    view.service.wait_logged("every server crashes at this request", 1);
    fs::remove_file(&crash).unwrap();
    view.expect(
        &told,
        "Err(Os { code: 5, kind: Uncategorized, message: \"Input/output error\" })",
        "in the end",
    );
    assert_eq!(Ask::Link.ask(&view.data), Ask::Link.ask(&view.real));
    view.service.stop();
}

/// The server has promised that the kernel forgets the pages of a file that is not finished, and is killed before it has.
#[test]
fn kill_with_pages_to_be_dropped() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let file = fixture.store.physical().join(&fixture.data.base).join("text");
    let finished = file.metadata().unwrap().modified().unwrap();
    let mut view = Stopping::at("owed", &fixture);
    let seen = view.data.join("text");
    // As while Nix writes it: it has the time of now.
    File::options().write(true).open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    view.arm();
    // The server may stop before all that this asks has an answer.
    let first = thread::spawn({
        let seen = seen.clone();
        move || fs::read(seen).unwrap()
    });
    view.wait_stopped();
    fs::write(&file, "HELLO\n").unwrap();
    File::options().write(true).open(&file).unwrap().set_modified(finished).unwrap();
    view.service.kill(Victim::Server);
    let until = Instant::now() + DEADLINE;
    while fs::read(&seen).unwrap() != b"HELLO\n" {
        assert!(Instant::now() < until, "what was not finished stays in the kernel\n{}", view.service.log());
        thread::yield_now();
    }
    let first = first.join().unwrap();
    assert!(first == b"hello\n" || first == b"HELLO\n", "{first:?}");
    view.service.stop();
}
