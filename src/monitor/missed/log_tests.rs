//! What is reported of a real directory, without a kernel and without waiting.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::super::{Subject, is_missed};
use super::*;
use crate::values::View;

/// The view has it, and so has the host.
const SHOWN: &str = "00000000000000000000000000000000-shown";
/// The host alone has it.
const HIDDEN: &str = "00000000000000000000000000000000-hidden";
/// Nobody has it.
const ABSENT: &str = "00000000000000000000000000000000-absent";

struct Fixture {
    dir: tempfile::TempDir,
    subject: Mutex<Arc<Subject>>,
    told: Told,
    now: Instant,
    unexamined: Unexamined,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in [SHOWN, HIDDEN] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let store = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        let subject = Mutex::new(Arc::new(Subject { view: View::default(), store: Some(Arc::new(store)) }));
        let now = Instant::now();
        let fixture = Self { dir, subject, told: Told::new(now), now, unexamined: Unexamined::default() };
        fixture.show(&[SHOWN]);
        fixture
    }

    fn show(&self, names: &[&str]) {
        let view = names.iter().map(|name| (StorePath::new(name).unwrap(), 1)).collect();
        let mut subject = self.subject.lock();
        *subject = Arc::new(Subject { view, store: subject.store.clone() });
    }

    fn ask(&mut self, name: &str) -> Option<Line> {
        let path = StorePath::new(name).unwrap();
        self.told.first(|path| is_missed(&self.subject, path), self.now, path, Asker::default())
    }

    fn pass(&mut self, time: Duration) -> Vec<Line> {
        self.now += time;
        self.told.again(|path| is_missed(&self.subject, path), self.now, &self.unexamined)
    }

    fn due(&self) -> Option<Instant> {
        self.told.due(!self.unexamined.is_told())
    }
}

fn line(name: &str, count: u64) -> Line {
    Line::Path { path: StorePath::new(name).unwrap(), asker: Asker::default(), count }
}

#[test]
fn what_the_host_has_and_the_view_has_not_is_told_and_nothing_else() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.ask(HIDDEN), Some(line(HIDDEN, 1)));
    assert_eq!(fixture.ask(ABSENT), None);
    // It waited in the queue while a reload brought it.
    assert_eq!(fixture.ask(SHOWN), None);
    assert_eq!(fixture.told.paths.len(), 1, "only what is told is remembered");
}

#[test]
fn a_path_is_told_once_and_then_counted_until_the_interval_is_over() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.ask(HIDDEN), Some(line(HIDDEN, 1)));
    assert_eq!(fixture.due(), None, "nothing to wake up for");
    assert_eq!(fixture.pass(INTERVAL * 3), []);
    for _ in 0..4 {
        assert_eq!(fixture.ask(HIDDEN), None);
    }
    assert_eq!(fixture.pass(Duration::ZERO), [line(HIDDEN, 5)]);
    assert_eq!(fixture.ask(HIDDEN), None);
    assert_eq!(fixture.due(), Some(fixture.now + INTERVAL));
    assert_eq!(fixture.pass(INTERVAL - Duration::from_nanos(1)), []);
    assert_eq!(fixture.pass(Duration::from_nanos(1)), [line(HIDDEN, 6)]);
    assert_eq!(fixture.pass(INTERVAL), []);
}

#[test]
fn what_a_reload_brought_or_the_collector_took_is_not_told_again() {
    let mut fixture = Fixture::new();
    fixture.ask(HIDDEN);
    fixture.ask(HIDDEN);
    fixture.show(&[SHOWN, HIDDEN]);
    assert_eq!(fixture.pass(INTERVAL), []);
    assert_eq!(fixture.due(), None);

    fixture.show(&[SHOWN]);
    assert_eq!(fixture.ask(HIDDEN), Some(line(HIDDEN, 1)), "it was withdrawn");
    fixture.ask(HIDDEN);
    std::fs::remove_file(fixture.dir.path().join(HIDDEN)).unwrap();
    assert_eq!(fixture.pass(INTERVAL), []);
}

#[test]
fn a_flood_of_paths_is_told_in_part_and_counted() {
    let mut fixture = Fixture::new();
    let name = |number: usize| format!("{number:032}-many");
    for number in 0..LINES_MAX + 7 {
        std::fs::write(fixture.dir.path().join(name(number)), "").unwrap();
        assert_eq!(fixture.ask(&name(number)).is_some(), number < LINES_MAX);
    }
    fixture.unexamined.add(3);
    assert_eq!(fixture.due(), Some(fixture.now + INTERVAL));
    assert_eq!(fixture.pass(INTERVAL), [Line::LeftOut { unnamed: 7, dropped: 3 }]);
    assert_eq!(fixture.due(), None);
    assert_eq!(fixture.ask(&name(LINES_MAX)), Some(line(&name(LINES_MAX), 1)), "another interval");
}

#[test]
fn the_path_asked_for_longest_ago_makes_room() {
    let mut fixture = Fixture::new();
    let name = |number: usize| format!("{number:032}-many");
    fixture.ask(HIDDEN);
    for number in 0..PATHS_MAX {
        std::fs::write(fixture.dir.path().join(name(number)), "").unwrap();
        fixture.pass(INTERVAL);
        assert!(fixture.ask(&name(number)).is_some());
        assert_eq!(fixture.ask(HIDDEN), None);
    }
    assert_eq!(fixture.told.paths.len(), PATHS_MAX);
    assert!(fixture.ask(&name(1)).is_none(), "remembered");
    assert!(fixture.ask(&name(0)).is_some(), "forgotten");
}
