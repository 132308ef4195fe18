//! The absence of a name at the root is not seen any more when a reload has added it, whenever it was asked for.
//!
//! Servers of earlier versions let the kernel cache absences for ever: those are forgotten when such a view is taken over.
//! `NSF_TELLS=endless` makes a server one of those.
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
    fn start() -> Self {
        let mut view = Self::new();
        view.service.start_ready();
        view
    }

    /// Nothing is started yet.
    fn new() -> Self {
        let systems = Systems::new(2);
        let mut service = systems.service();
        let hold = service.path().parent().unwrap().join("hold");
        fs::create_dir(&hold).unwrap();
        service.set("NSF_HOLD", &hold);
        let new = service.path().join(&systems.systems[1].1.base);
        Self { systems, service, hold, new }
    }

    /// Lets the monitor find what an earlier version left: absences that the kernel may have cached for ever.
    fn make_earlier(&mut self) {
        self.service.kill(Victim::Both);
        let state = self.service.state().join("state");
        let written = fs::read_to_string(&state).unwrap();
        let promised = r#","promised":{"absences":"limited","names":"endless"}"#;
        let earlier = written.replace(promised, "");
        assert_ne!(written, earlier, "what earlier versions did not write");
        fs::write(&state, earlier).unwrap();
        self.service.set("NSF_TELLS", "limited");
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
        background(move || Program::new().args(["reload", &name]).run())
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
}

fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (tell, told) = channel();
    thread::spawn(move || {
        let _given_up = tell.send(work());
    });
    told
}

#[test]
fn an_absence_asked_for_before_a_reload_is_gone_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    let view = View::start();
    view.expect_absent();
    view.expect_absent();
    view.end_after_a_switch();
}

/// The look-up was decided before the switch, and is answered when everything else is done: with what is true then.
#[test]
fn an_absence_decided_before_a_switch_is_none_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    let mut view = View::start();
    let decided = view.arm("decided");
    let look = view.look();
    let held = view.wait("the look-up", &decided);
    let reload = view.reload();
    view.expect_reloaded(&reload);
    drop(held);
    view.wait("the answer", &look).expect("a name that is there by now");
    view.expect_there();
    view.service.stop();
}

/// The same while the kernel was not told of the switch.
#[test]
fn an_absence_that_arrives_in_the_middle_of_a_switch_is_none_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    let mut view = View::start();
    let Both { look, held_look, reload, held_switch } = view.hold_both();
    drop(held_look);
    view.wait("the answer", &look).expect("a name that is there by now");
    drop(held_switch);
    view.expect_reloaded(&reload);
    view.expect_there();
    view.service.stop();
}

/// A server is killed in the middle of a switch: the next one waits until what the kernel was told has expired.
#[test]
fn an_absence_told_by_a_server_that_was_killed_in_a_switch_is_gone_after_it() {
    need!(Root, Fuse, Nix, Busybox);
    let mut view = View::start();
    let switched = view.arm("switched");
    view.expect_absent();
    let reload = view.reload();
    let held = view.wait("the switch", &switched);
    view.service.kill(Victim::Server);
    drop(held);
    view.expect_reloaded(&reload);
    view.expect_there();
    view.service.stop();
}

/// The server dies with the look-up decided, the view switched and nothing told to the kernel.
#[test]
fn an_absence_that_a_killed_server_had_decided_is_none() {
    need!(Root, Fuse, Nix, Busybox);
    for victim in [Victim::Server, Victim::Both] {
        let mut view = View::start();
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
    let mut view = View::new();
    let not_known = rustix::io::Errno::NOSYS.raw_os_error().to_string();
    view.service.inside([refuse.as_str(), &not_known, "close_range"]);
    view.service.set("NSF_RESEND", "no");
    view.service.set("NSF_WAITS", "yes");
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
    let mut view = View::new();
    view.service.set("NSF_WAITS", "yes");
    view.service.start_ready();
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

/// A monitor that takes over from an earlier version, whose servers let the kernel cache absences for ever.
fn cached_by_an_earlier_version(variable: &str) {
    let mut view = View::new();
    view.service.set("NSF_TELLS", "endless");
    view.service.start_ready();
    view.expect_absent();
    view.make_earlier();
    view.service.set(variable, "no");
    view.service.start_ready();
    view.expect_absent();
    view.end_after_a_switch();
}

/// By its name.
#[test]
fn an_absence_cached_by_an_earlier_version_is_gone_after_a_reload() {
    need!(Root, Fuse, Nix, Busybox);
    cached_by_an_earlier_version("NSF_EPOCH");
}

/// With all others, as Linux 6.19 and 7.0 do not forget an absence by its name.
#[test]
fn an_absence_cached_by_an_earlier_version_is_gone_where_the_kernel_forgets_none() {
    need!(Root, Fuse, Nix, Busybox, Epoch);
    cached_by_an_earlier_version("NSF_FORGETS");
}
