//! A panic while one request is answered costs that request. Any other ends the process, and another one takes its place.
//!
//! The point is reached for certain: a build for tests panics there (`NSF_PANIC`, `src/server/stops.rs`).

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use crate::util::fixture::Fixture;
use crate::util::service::Service;
use crate::util::tree;

/// What is logged of a request that panicked.
const LOGGED: &str = "internal error";

/// A view that panics at a point.
struct Panicking {
    service: Service,
    arm: PathBuf,
    data: PathBuf,
    real: PathBuf,
}

impl Panicking {
    fn at(point: &str, fixture: &Fixture, arguments: &[&str]) -> Self {
        let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
        service.add(arguments);
        let arm = service.path().parent().unwrap().join("panic");
        service.set("NSF_PANIC", format!("{point}:{}", arm.display()));
        service.start_ready();
        let data = service.path().join(&fixture.data.base);
        let real = fixture.store.physical().join(&fixture.data.base);
        Self { service, arm, data, real }
    }

    /// Has the next thread panic that comes to the point.
    fn arm(&self) {
        File::create(&self.arm).unwrap();
    }
}

/// A question, and its answer with the error in words.
fn ask(what: usize, data: &Path) -> Result<String, i32> {
    let answer = match what {
        0 => data.join("text").symlink_metadata().map(|meta| meta.len().to_string()),
        1 => fs::read_dir(data.join("names"))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map(|_| format!("{:?}", tree::list(&data.join("names")))),
        2 => fs::read(data.join("text")).map(|bytes| format!("{bytes:?}")),
        _ => fs::read_link(data.join("links/inside")).map(|link| format!("{link:?}")),
    };
    answer.map_err(|error| error.raw_os_error().unwrap())
}

#[test]
fn a_request_that_panics_gets_an_error_and_the_view_answers_on() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for point in ["begun", "decided", "answered"] {
        let mut view = Panicking::at(point, &fixture, &[]);
        let server = view.service.server();
        // Known as long as they are held, also if another test has the kernel drop its caches.
        let held = ["text", "names", "links/inside"].map(|known| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(view.data.join(known), flags, Mode::empty()).unwrap()
        });
        // The name is known by now: that question is asked of another one.
        let questions = [1, 2, 3];
        for (done, what) in questions.into_iter().enumerate() {
            view.arm();
            let answer = ask(what, &view.data);
            if point == "answered" || (what, point) == (2, "decided") {
                // It was given; or the kernel asks twice, as what fails is its read-ahead (`filemap_read`).
                assert_eq!(answer, ask(what, &view.real), "{what} at {point}");
            } else {
                assert_eq!(answer, Err(5), "{what} at {point}\n{}", view.service.log());
            }
            assert_eq!(ask(what, &view.data), ask(what, &view.real), "{what} again, after {point}");
            // A thread that has given its answer may come to it a moment later.
            view.service.wait_for_end_of(&view.arm);
            view.service.wait_logged(LOGGED, done.min(1) + 1);
        }
        view.arm();
        let looked_up = view.data.join("empty").symlink_metadata().map_err(|e| e.raw_os_error());
        assert_eq!(looked_up.is_ok(), point == "answered", "{looked_up:?} at {point}");
        assert!(view.data.join("empty").symlink_metadata().is_ok());
        assert_eq!(view.service.server(), server, "the same server\n{}", view.service.log());
        assert_eq!(view.service.logged("without an answer"), 0, "{}", view.service.log());
        assert_eq!(view.service.logged("refuses an answer"), 0, "{}", view.service.log());
        drop(held);
        view.service.stop();
    }
}

/// Whoever can make a request panic can do so all day.
#[test]
fn a_request_that_panics_again_and_again_does_not_fill_the_log() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Panicking::at("decided", &fixture, &[]);
    for _ in 0..100 {
        view.arm();
        assert_eq!(ask(0, &view.data), Err(5));
    }
    assert_eq!(ask(0, &view.data), ask(0, &view.real));
    view.service.wait_logged("times=64", 1);
    view.service.stop();
    assert_eq!(view.service.logged(LOGGED), 7, "{}", view.service.log());
}

/// A thread that answers no request would be missed by nobody.
#[test]
fn a_panic_outside_of_a_request_ends_the_server() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Panicking::at("switched", &fixture, &[]);
    let server = view.service.server();
    view.arm();
    view.service.reload_well();
    assert!(!view.arm.exists());
    assert_ne!(view.service.server(), server, "{}", view.service.log());
    assert_eq!(ask(0, &view.data), ask(0, &view.real));
    assert_eq!(view.service.logged_soon("thread 'orders' panicked", 1), 1, "{}", view.service.log());
    view.service.stop();
}

/// The same of the monitor, whose next one takes over.
#[test]
fn a_panic_of_the_monitor_ends_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Panicking::at("resolving", &fixture, &[]);
    view.arm();
    view.service.signal(Signal::HUP);
    let status = view.service.ended();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}\n{}", view.service.log());
    assert_eq!(view.service.logged_soon("thread 'store' panicked", 1), 1, "{}", view.service.log());
    view.service.start_ready();
    assert_eq!(ask(0, &view.data), ask(0, &view.real));
    view.service.stop();
}
