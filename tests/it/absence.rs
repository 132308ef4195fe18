//! The absence of a name at the root is never seen longer than it lasts, whenever the name was asked for and whatever the kernel
//! forgets. Linux 6.19 and 7.0 do not forget a cached absence by its name.
//!
//! Orders are forced: a build for tests holds a thread of the server back where a pipe is (`src/server/stops.rs`).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use crate::util::DEADLINE;
use crate::util::hold::{self, Held};
use crate::util::program::{Finished, Program};
use crate::util::service::{Service, Victim};
use crate::util::systems::Systems;
use crate::util::threads::waits_in_kernel;

/// A view of the first system, and what only the second one has.
struct View {
    systems: Systems,
    service: Service,
    hold: PathBuf,
    /// In the view.
    new: PathBuf,
}

/// See [`View::hold_both`].
struct Both {
    look: Receiver<io::Result<()>>,
    held_look: Held,
    reload: Receiver<Finished>,
    held_switch: Held,
}

impl View {
    /// `tried`: what the program is to believe of a kernel that forgets no absence by its name; none: this kernel, and what
    /// is found out about it.
    fn start(tried: Option<&str>) -> Self {
        let mut view = Self::new(tried);
        view.service.start_ready();
        view
    }

    /// The same, and nothing is started yet.
    fn new(tried: Option<&str>) -> Self {
        let systems = Systems::new(2);
        let mut service = systems.service();
        let hold = service.path().parent().unwrap().join("hold");
        fs::create_dir(&hold).unwrap();
        service.set("NSF_HOLD", &hold);
        if let Some(tried) = tried {
            service.set("NSF_ABSENCES", tried);
            service.set("NSF_FORGETS", "no");
        }
        let new = service.path().join(&systems.systems[1].1.base);
        Self { systems, service, hold, new }
    }

    /// Has the first thread held back that comes to `point`. What this returns has it when it is there.
    fn arm(&self, point: &str) -> Receiver<Held> {
        let (held, there) = hold::arm(&self.hold, point);
        background(move || {
            let until = Instant::now() + DEADLINE;
            while !there.exists() && Instant::now() < until {
                thread::yield_now();
            }
            assert!(there.exists(), "no thread comes there");
            held
        })
    }

    /// A look-up that is decided, and then a switch of which the kernel is not told: both held back, with what they lead to.
    fn hold_both(&self) -> Both {
        let [decided, switched] = ["decided", "switched"].map(|point| self.arm(point));
        let look = self.look();
        let held_look = self.wait("the look-up", &decided);
        let reload = self.reload();
        let held_switch = self.wait("the switch", &switched);
        Both { look, held_look, reload, held_switch }
    }

    fn look(&self) -> Receiver<io::Result<()>> {
        let new = self.new.clone();
        background(move || new.symlink_metadata().map(drop))
    }

    fn reload(&self) -> Receiver<Finished> {
        self.systems.select(1);
        let name = self.service.name.clone();
        background(move || Program::new().args(["--reload", &name]).run())
    }

    fn wait<T>(&self, what: &str, told: &Receiver<T>) -> T {
        told.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{what}: never\n{}", self.service.log()))
    }

    /// Waits until the kernel is to forget a name and waits for a reader. Linux 6.19 does not: then `reload` ends, and this returns true.
    fn wait_for_invalidation(&mut self, reload: &Receiver<Finished>) -> bool {
        let server = self.service.server();
        self.service.wait_for_invalidation(server, || reload.try_recv().is_ok())
    }

    fn expect_reloaded(&self, told: &Receiver<Finished>) {
        let finished = self.wait("the reload's end", told);
        assert_eq!(finished.status.code(), Some(0), "{finished:?}\n{}", self.service.log());
    }

    fn expect_absent(&self) {
        let error = self.new.symlink_metadata().expect_err("a name that is not there yet");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// The name is there, by itself and on the way to another.
    fn expect_there(&self) {
        let log = self.service.log();
        assert!(self.new.symlink_metadata().is_ok(), "the name stays absent\n{log}");
        assert!(self.new.join("number").exists(), "what is below stays absent\n{log}");
    }

    /// A switch shows the name, and the view ends.
    fn end_after_a_switch(mut self) {
        self.systems.select(1);
        self.service.reload_well();
        self.expect_there();
        self.service.stop();
    }

    fn members(&self) -> u64 {
        rustix::fs::statfs(self.service.path()).unwrap().f_files
    }
}

fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (tell, told) = channel();
    thread::spawn(move || {
        let _given_up = tell.send(work());
    });
    told
}

fn asked_for_before(tried: Option<&str>) {
    let view = View::start(tried);
    view.expect_absent();
    view.expect_absent();
    view.end_after_a_switch();
}

#[test]
fn an_absence_asked_for_before_a_reload_is_gone_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    asked_for_before(None);
}

/// The kernel forgets no absence, and the program could not find out whether it does, as it is for ordinary users.
#[test]
fn an_absence_is_gone_after_a_reload_where_the_kernel_forgets_none() {
    need!(Root, Fuse, Nix, Busybox);
    for tried in ["unknown", "kept"] {
        asked_for_before(Some(tried));
    }
}

/// The look-up was decided before the switch, and its answer arrives when everything else is done but what waits for it.
fn decided_before_a_switch(tried: Option<&str>) {
    let mut view = View::start(tried);
    let server = view.service.server();
    let before = view.members();
    let decided = view.arm("decided");
    let look = view.look();
    let held = view.wait("the look-up", &decided);
    let reload = view.reload();
    // The kernel waits for the look-up before it forgets the name; one that does not would have let the reload end.
    let until = Instant::now() + DEADLINE;
    let ended = loop {
        if let Ok(finished) = reload.try_recv() {
            break Some(finished);
        }
        if view.members() != before && waits_in_kernel(server, "invalidate") {
            break None;
        }
        assert!(Instant::now() < until, "the switch never came\n{}", view.service.log());
        thread::yield_now();
    };
    drop(held);
    assert!(view.wait("the answer", &look).is_err(), "it was decided before");
    match ended {
        Some(finished) => assert_eq!(finished.status.code(), Some(0), "{finished:?}"),
        None => view.expect_reloaded(&reload),
    }
    view.expect_there();
    view.service.stop();
}

#[test]
fn an_absence_decided_before_a_switch_is_gone_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    decided_before_a_switch(None);
}

#[test]
fn an_absence_decided_before_a_switch_is_gone_where_the_kernel_forgets_none() {
    need!(Root, Fuse, Nix, Busybox);
    decided_before_a_switch(Some("unknown"));
}

/// The answer arrives between the switch and what the kernel is told of it.
#[test]
fn an_absence_that_arrives_before_the_kernel_is_told_of_a_switch_is_gone_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    let mut view = View::start(None);
    let Both { look, held_look, reload, held_switch } = view.hold_both();
    drop(held_look);
    assert!(view.wait("the answer", &look).is_err(), "it was decided before");
    drop(held_switch);
    view.expect_reloaded(&reload);
    view.expect_there();
    view.service.stop();
}

/// The server dies with the look-up decided, the view switched and nothing told to the kernel.
#[test]
fn an_absence_that_a_killed_server_had_decided_is_none() {
    need!(Root, Fuse, Nix, Busybox);
    for victim in [Victim::Server, Victim::Both] {
        let mut view = View::start(None);
        let Both { look, held_look, reload, held_switch } = view.hold_both();
        view.service.kill(victim);
        drop((held_look, held_switch));
        if victim == Victim::Both {
            view.service.start_ready();
        }
        view.wait("the answer", &look).expect("the successor knows the name");
        view.wait("the reload's end", &reload);
        view.service.reload_well();
        view.expect_there();
        view.service.stop();
    }
}

/// The server is killed while the kernel forgets names and waits for a reader. Where its threads cannot leave the others' descriptors
/// by close_range(2), the next server does not have to wait for its end either.
#[test]
fn killed_in_a_switch_where_close_range_is_refused() {
    need!(Root, Fuse, Nix, Busybox);
    let scratch = crate::util::scratch();
    let refuse = crate::util::compile("refuse.c", scratch.path()).display().to_string();
    let mut view = View::new(None);
    let not_known = rustix::io::Errno::NOSYS.raw_os_error().to_string();
    view.service.inside([refuse.as_str(), &not_known, "close_range"]);
    view.service.set("NSF_RESEND", "no");
    view.service.start_ready();
    let decided = view.arm("decided");
    let look = view.look();
    let held = view.wait("the look-up", &decided);
    let reload = view.reload();
    view.wait_for_invalidation(&reload);
    view.service.kill_unwaited(Victim::Server);
    let _either = view.wait("the answer", &look);
    drop(held);
    view.service.reload_well();
    view.expect_there();
    view.service.stop();
}

/// Both die while the kernel forgets names and waits for a reader, whose request nobody knows: the ledger is lost.
#[test]
fn both_killed_in_a_switch_without_a_ledger() {
    need!(Root, Fuse, Nix, Busybox);
    let mut view = View::start(None);
    let decided = view.arm("decided");
    let look = view.look();
    let held = view.wait("the look-up", &decided);
    let reload = view.reload();
    let ended = view.wait_for_invalidation(&reload);
    view.service.set("NSF_RESEND", "no");
    view.service.kill_unwaited(Victim::Both);
    view.service.lose_descriptor("ledger");
    drop(held);
    view.service.start_ready();
    // It is there, or was not yet: that the answer is lost was said.
    let _either = view.wait("the answer", &look);
    if !ended {
        view.wait("the reload's end", &reload);
    }
    view.service.reload_well();
    view.expect_there();
    view.service.stop();
}

/// A monitor that takes over from an earlier version, whose servers let the kernel cache absences whatever it is: `tried` is
/// what the new one believes.
fn cached_by_an_earlier_version(tried: Option<&str>) {
    let mut view = View::start(Some("forgotten"));
    view.expect_absent();
    view.service.kill(Victim::Both);
    let state = view.service.state().join("state");
    let written = fs::read_to_string(&state).unwrap();
    let earlier = written.replace(",\"absences\":\"cached\"", "");
    assert_ne!(written, earlier, "what earlier versions did not write");
    fs::write(&state, earlier).unwrap();
    match tried {
        Some(tried) => view.service.set("NSF_ABSENCES", tried),
        None => {
            view.service.set("NSF_ABSENCES", "found");
            view.service.set("NSF_FORGETS", "yes");
        }
    }
    view.service.start_ready();
    view.expect_absent();
    view.end_after_a_switch();
}

#[test]
fn an_absence_cached_by_an_earlier_version_is_gone_after_a_reload() {
    need!(Root, Fuse, Nix, Busybox);
    cached_by_an_earlier_version(None);
}

#[test]
fn an_absence_cached_by_an_earlier_version_is_gone_where_the_kernel_forgets_none() {
    need!(Root, Fuse, Nix, Busybox, Epoch);
    cached_by_an_earlier_version(Some("unknown"));
}

/// What a kernel cannot give is a line in the log.
#[test]
fn the_log_says_where_an_absence_is_not_cached() {
    need!(Root, Fuse, Nix, Busybox);
    let cost = "each look-up of a name that the root of the view does not have asks the server";
    for (tried, why) in [
        ("kept", Some("this kernel does not forget a cached absence (Linux 6.19 and 7.0 do not)")),
        (
            "unknown",
            Some("cannot find out whether this kernel forgets a cached absence (Linux 6.19 and 7.0 do not)"),
        ),
        ("forgotten", None),
    ] {
        let view = View::start(Some(tried));
        let log = view.service.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("cached absence")).collect();
        assert_eq!(lines.len(), usize::from(why.is_some()), "{tried}: {log}");
        let says =
            why.is_none_or(|why| lines[0].contains(" INFO ") && lines[0].contains(&format!("{why}: {cost}")));
        assert!(says, "{tried}: {lines:?}");
    }
}
