//! Both ends of the control socket, as values and over a real one.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use proptest::prelude::*;

use super::status::{Reloads, Seconds, Servers, Settings, State, Status, Store};
use super::*;
use crate::protocol::handshake::Io;
use crate::values::StorePath;

#[test]
fn a_client_gets_its_outcome_and_a_stranger_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    assert!(matches!(reload("a", &path), Err(ReloadError::NotServed { .. })));
    let control = Control::listen(&path).unwrap();
    let ask = |answer: Option<Outcome>| {
        let path = path.clone();
        let client = std::thread::spawn(move || reload("a", &path));
        let mut fds =
            [rustix::event::PollFd::from_borrowed_fd(control.socket(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        let mut connection = control.accept().unwrap().unwrap();
        let waiting = loop {
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(connection.socket(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            match connection.read() {
                Asked::Reload(client) => break client,
                Asked::Nothing(same) => connection = same,
                other => panic!("{other:?}"),
            }
        };
        match answer {
            Some(outcome) => waiting.tell(&outcome),
            None => drop(waiting),
        }
        client.join().unwrap()
    };
    assert_eq!(ask(Some(Outcome::Ok("3 paths".into()))).unwrap(), "3 paths");
    assert!(
        matches!(ask(Some(Outcome::Error("why\nnot".into()))), Err(ReloadError::Refused(s)) if s == "why\nnot")
    );
    assert!(matches!(ask(None), Err(ReloadError::Ended)));
    assert!(control.accept().unwrap().is_none());
    for (said, unknown) in
        [("GET / HTTP/1.1\n", true), ("reload\nreload\n", true), ("reload", false), ("", false)]
    {
        let mut stranger = UnixStream::connect(&path).unwrap();
        stranger.write_all(said.as_bytes()).unwrap();
        let asked = control.accept().unwrap().unwrap().read();
        assert_eq!(matches!(asked, Asked::Unknown), unknown, "{said:?}: {asked:?}");
        assert!(unknown || matches!(asked, Asked::Nothing(_)), "{said:?}: {asked:?}");
    }
    // One that comes in pieces, and one that goes before it has asked.
    let mut slow = UnixStream::connect(&path).unwrap();
    let mut connection = control.accept().unwrap().unwrap();
    for byte in RELOAD.as_bytes().chunks(1) {
        let Asked::Nothing(same) = connection.read() else { panic!() };
        connection = same;
        slow.write_all(byte).unwrap();
    }
    assert!(matches!(connection.read(), Asked::Reload(_)));
    drop(UnixStream::connect(&path).unwrap());
    assert!(matches!(control.accept().unwrap().unwrap().read(), Asked::Unknown));
}

#[test]
fn a_question_is_a_word_and_a_version() {
    use Question::{Report, Status};
    for (said, expected) in [
        ("reload\n", Line::Reload),
        ("status 1\n", Line::Question(Status)),
        ("report 1\n", Line::Question(Report)),
        ("status 0\n", Line::OtherVersion(Status, 0)),
        ("report 2\n", Line::OtherVersion(Report, 2)),
        ("status 999999999\n", Line::OtherVersion(Status, 999_999_999)),
        ("", Line::Begun),
        ("re", Line::Begun),
        ("reload", Line::Begun),
        ("report", Line::Begun),
        ("status ", Line::Begun),
        ("status 123456789", Line::Begun),
        ("status\n", Line::Malformed),
        ("status \n", Line::Malformed),
        ("status 1234567890", Line::Malformed),
        ("status -1\n", Line::Malformed),
        ("status 01\n", Line::Malformed),
        ("report 00", Line::Malformed),
        ("status 1\nstatus 1\n", Line::Malformed),
        ("status  1\n", Line::Malformed),
        ("reload 1\n", Line::Malformed),
        ("Status 1\n", Line::Malformed),
        ("GET / HTTP/1.1\n", Line::Malformed),
        ("\n", Line::Malformed),
    ] {
        assert_eq!(Line::read(said.as_bytes()), expected, "{said:?}");
    }
}

proptest! {
    /// Whatever a client sends, byte by byte: what it has begun it can finish, what is wrong stays wrong, and nothing is waited
    /// for that is longer than every question.
    #[test]
    fn lines_are_judged_as_they_come(said in "[ -~\n]{0,3}|(reload|status|report)( [0-9]{0,11})?\n?.{0,3}") {
        let mut over = false;
        for length in 0..=said.len() {
            let read = Line::read(&said.as_bytes()[..length]);
            prop_assert!(!over || read == Line::Malformed, "{:?} {}", said, length);
            over = read != Line::Begun;
            prop_assert!(over || length < LINE_MAX);
            if !over && length > 0 {
                let finishes = |end: &str| {
                    let whole = [&said.as_bytes()[..length], end.as_bytes()].concat();
                    !matches!(Line::read(&whole), Line::Begun | Line::Malformed)
                };
                let ends = ["reload\n", "status 1\n", "report 1\n"];
                prop_assert!(finishes("\n") || ends.iter().any(|end| (0..end.len()).any(|at| finishes(&end[at..]))));
            }
        }
    }
}

/// Answers one who asks with `contents`; returns what the client makes of it.
fn answered<T: Send + 'static>(ask: impl FnOnce(PathBuf) -> T + Send + 'static, contents: &[u8]) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let control = Control::listen(&path).unwrap();
    let client = std::thread::spawn(move || ask(path));
    control.listener.set_nonblocking(false).unwrap();
    let mut connection = control.accept().unwrap().unwrap();
    loop {
        match connection.read() {
            Asked::Nothing(same) => connection = same,
            Asked::Question(client, question) => {
                client.give(question, &Document::new(contents).unwrap()).unwrap();
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    client.join().unwrap()
}

fn status() -> Status {
    Status {
        version: status::VERSION,
        name: "web".into(),
        state: State::Serving,
        reload: Some(status::Stage::Switching),
        mount_point: PathBuf::from(OsString::from_vec(b"/run/\xff\n\x1b[2J".to_vec())),
        store: Store {
            address: None,
            directory: Some("/a/nix/store".into()),
            logical_directory: Some("/nix/store".into()),
        },
        asked: status::Asked { system: Some("/a b".into()), roots: Vec::new(), roots_file: None, from: None },
        roots: vec![StorePath::new("00000000000000000000000000000000-n").unwrap()],
        paths: 1,
        nar_size: u64::MAX,
        settings: Settings { io: Io::Passthrough, report: true, watch: false, prune: true },
        monitor: status::Process { pid: 1, memory: None },
        server: Some(status::Process { pid: 2, memory: Some(4096) }),
        program_version: "1".into(),
        served_since: Some(Seconds(7)),
        content_changed: None,
        epoch: 3,
        reloads: Reloads { done: 2, failed: 1 },
        servers: Servers { replaced: 1, crashed: 1 },
        last_error: Some(status::Incident { at: Seconds(8), message: "a\nb\u{1b}[0m".into() }),
        missed: Some(status::Missed { names: 1, questions: 2, not_examined: 3 }),
        usage: Some(status::Usage::default()),
        prefetch: None,
    }
}

#[test]
fn a_status_comes_back_as_it_was() {
    let json = serde_json::to_vec(&status()).unwrap();
    assert_eq!(answered(|path| ask_status(&path), &json).unwrap(), status());
    // What a later version adds is no harm.
    let mut later = serde_json::to_value(status()).unwrap();
    later["more"] = serde_json::json!({"of": "it"});
    let later = serde_json::to_vec(&later).unwrap();
    assert_eq!(answered(|path| ask_status(&path), &later).unwrap(), status());
}

#[test]
fn what_is_of_another_version_or_another_kind_is_refused() {
    let mut other = serde_json::to_value(status()).unwrap();
    other["version"] = 9.into();
    let other = serde_json::to_vec(&other).unwrap();
    let error = answered(|path| ask_status(&path), &other).unwrap_err();
    assert!(matches!(&error, AskError::Malformed { why, .. } if why.contains("version 9")), "{error}");
    let error = answered(|path| ask_report(&path), &serde_json::to_vec(&status()).unwrap()).unwrap_err();
    assert!(matches!(error, AskError::Malformed { .. }), "{error}");
}

#[test]
fn a_version_that_is_not_known_is_answered_with_those_that_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let control = Control::listen(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"report 7\n").unwrap();
    let Asked::Unanswerable(waiting, why) = control.accept().unwrap().unwrap().read() else { panic!() };
    waiting.tell(&why);
    let answer = io::read_to_string(client).unwrap();
    let Ok(Outcome::Error(why)) = serde_json::from_str(&answer) else { panic!("{answer}") };
    assert!(why.contains("'report' in version 1 and not in 7") && why.contains("SIGUSR2"), "{why}");
}
