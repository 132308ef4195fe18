//! What is reported of a real directory, without a kernel and without waiting.

use rustix::fs::{Mode, OFlags};

use super::*;

/// The view has it, and so has the host.
const SHOWN: &str = "00000000000000000000000000000000-shown";
/// The host alone has it.
const HIDDEN: &str = "00000000000000000000000000000000-hidden";
/// Nobody has it.
const ABSENT: &str = "00000000000000000000000000000000-absent";

struct Fixture {
    dir: tempfile::TempDir,
    subject: Mutex<Subject>,
    told: Told,
    now: Instant,
    dropped: AtomicU64,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in [SHOWN, HIDDEN] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let store = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        let subject = Mutex::new(Subject { view: View::default(), store: Some(Arc::new(store)) });
        let now = Instant::now();
        let fixture = Self { dir, subject, told: Told::new(now), now, dropped: AtomicU64::new(0) };
        fixture.show(&[SHOWN]);
        fixture
    }

    fn show(&self, names: &[&str]) {
        self.subject.lock().view = names.iter().map(|name| (StorePath::new(name).unwrap(), 1)).collect();
    }

    fn ask(&mut self, name: &str) -> Option<Line> {
        let path = StorePath::new(name).unwrap();
        self.told.first(|path| is_missed(&self.subject, path), self.now, path, Asker::default())
    }

    fn pass(&mut self, time: Duration) -> Vec<Line> {
        self.now += time;
        self.told.again(|path| is_missed(&self.subject, path), self.now, &self.dropped)
    }

    fn due(&self) -> Option<Instant> {
        self.told.due(self.dropped.load(Ordering::Relaxed) > 0)
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
    fixture.dropped.store(3, Ordering::Relaxed);
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

#[test]
fn a_thread_is_told_as_its_process() {
    let thread = u32::try_from(rustix::thread::gettid().as_raw_pid()).unwrap();
    let asker = Asker::of(thread);
    assert_ne!(asker.pid, Some(thread), "a test runs on a thread of its own");
    assert_eq!(asker.pid, Some(std::process::id()));
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(asker.command.as_deref(), Some(comm.trim_end()));
}

#[test]
fn who_is_unknown_or_has_ended_is_told_as_far_as_known() {
    assert_eq!(Asker::of(0), Asker::default());
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let pid = ended.id();
    ended.wait().unwrap();
    assert_eq!(Asker::of(pid), Asker { pid: Some(pid), command: None });
}
