//! Who asked, and what comes into the record, without a server.

use super::*;

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

/// What comes into the record, from a question to a report: by the threads that there are.
#[test]
fn what_the_host_has_and_the_view_has_not_comes_into_the_record() {
    let path = |name: &str| StorePath::new(&format!("00000000000000000000000000000000-{name}")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["shown", "hidden", "last"] {
        fs::write(dir.path().join(path(name).as_str()), "").unwrap();
    }
    let store = Arc::new(OwnedFd::from(fs::File::open(dir.path()).unwrap()));
    let show = |names: &[&str]| names.iter().map(|name| (path(name), 1)).collect::<View>();
    let inquiry = Inquiry::start(Sandbox::None).unwrap();
    inquiry.shows(show(&["shown"]), store.clone());
    let ask = |name: &str, pid| {
        let asker = Asker { pid: Some(pid), command: Some("sh".into()) };
        let (asked, at) = (SystemTime::now(), Instant::now());
        inquiry.queue.send(Asked { path: path(name), asker, asked, at }).unwrap();
    };
    let missed = |view: &View| inquiry.missed(|path| view.contains(path), None, Duration::MAX).unwrap();
    // The record keeps the order: what was asked for before `last` is in it by then.
    let settled = |view: &View, count| loop {
        let found = missed(view);
        let last = found.names.iter().find(|name| name.path == path("last"));
        if last.is_some_and(|last| last.count == count) {
            return found.names.into_iter().filter(|name| name.path != path("last")).collect::<Vec<_>>();
        }
        thread::yield_now();
    };
    ["shown", "hidden", "absent", "hidden", "last"].iter().zip(1..).for_each(|(name, pid)| ask(name, pid));
    let view = show(&["shown", "hidden"]);
    for (view, served) in [(show(&["shown"]), false), (view.clone(), true)] {
        let [name] = &settled(&view, 1)[..] else { panic!() };
        assert_eq!((&name.path, name.count, name.served), (&path("hidden"), 2, served));
        assert_eq!((name.first_asker.pid, name.last_asker.pid), (Some(2), Some(4)));
    }
    // Whatever waited for the disk while a reload brought it is not missed.
    inquiry.shows(view.clone(), store);
    ["hidden", "shown", "last"].iter().zip(6..).for_each(|(name, pid)| ask(name, pid));
    let [name] = &settled(&view, 2)[..] else { panic!() };
    assert_eq!((name.count, name.last_asker.pid), (2, Some(4)));
    inquiry.unexamined.add(7);
    assert_eq!(missed(&view).left_out, LeftOut { not_examined: 7, ..LeftOut::default() });
    assert_eq!((inquiry.unexamined.take_untold(), inquiry.unexamined.is_told()), (7, true));
    assert_eq!(missed(&view).left_out.not_examined, 7, "the log was told, and the record keeps it");
}

/// The monitor's loop waits for nobody who has the record.
#[test]
fn a_record_that_is_not_to_be_had_is_not_waited_for() {
    let inquiry = Inquiry::start(Sandbox::None).unwrap();
    let held = inquiry.record.lock();
    assert_eq!(inquiry.missed(|_| false, None, Duration::from_millis(1)), None);
    drop(held);
    assert!(inquiry.missed(|_| false, None, Duration::MAX).is_some());
}
