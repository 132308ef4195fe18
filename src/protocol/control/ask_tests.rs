//! Clients against monitors of every kind, honest and not.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};

use super::super::Document;
use super::*;

/// Short, for those who wait in vain; an answer that comes does so at once.
const SHORT: Duration = Duration::from_millis(100);

/// What a monitor does with those who ask, one after the other.
type Play = Box<dyn Fn(UnixStream) + Send>;

/// Somebody asks for a status while a monitor plays; returns what came of it.
fn asks(plays: Vec<Play>, patience: Duration) -> Result<serde_json::Value, AskError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let gone = path.clone();
    let monitor = std::thread::spawn(move || {
        for play in plays {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 9];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"status 1\n");
            play(stream);
        }
        std::fs::remove_file(gone).unwrap();
    });
    let answer = ask(&path, Question::Status, patience);
    // It may wait for more who ask.
    if monitor.is_finished() {
        monitor.join().unwrap();
    }
    answer
}

fn send(stream: &UnixStream, line: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
    rustix::net::sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn one(play: impl Fn(UnixStream) + Send + 'static) -> Vec<Play> {
    vec![Box::new(play)]
}

fn malformed(plays: Vec<Play>) -> String {
    match asks(plays, PATIENCE) {
        Err(AskError::Malformed { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_comes_in_pieces_and_with_more_descriptors_than_one() {
    let answer = asks(
        one(|stream| {
            let document = Document::new(b"{\"a\": [1]}").unwrap();
            let files = vec![document.as_fd(); 3];
            send(&stream, b"{\"ok\"", &files);
            send(&stream, b":\"\"}\n", &[]);
        }),
        PATIENCE,
    );
    assert_eq!(answer.unwrap(), serde_json::json!({"a": [1]}));
}

#[test]
fn a_monitor_that_closes_is_of_an_earlier_version_and_one_that_is_gone_is_not() {
    let close = || -> Play { Box::new(drop) };
    let error = asks(vec![close(), close(), close()], PATIENCE).unwrap_err();
    assert!(matches!(error, AskError::Earlier { .. }), "{error}");
    assert!(error.to_string().contains("'status'") && error.to_string().contains("SIGUSR2"), "{error}");
    // It ends: the socket is gone, or nobody listens there.
    let error = asks(vec![close()], PATIENCE).unwrap_err();
    assert!(matches!(error, AskError::NotServed(_)), "{error}");
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(ask_status(&dir.path().join("control")), Err(AskError::NotServed(_))));
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(ask_report(&long), Err(AskError::Io { .. })));
    // One that has a crowd of clients at first.
    let answers =
        |stream: UnixStream| send(&stream, b"{\"ok\":\"\"}\n", &[Document::new(b"7").unwrap().as_fd()]);
    assert_eq!(asks(vec![close(), Box::new(answers)], PATIENCE).unwrap(), 7);
}

#[test]
fn a_monitor_that_says_nothing_is_not_waited_for() {
    let waits = |mut stream: UnixStream| drop(stream.read(&mut [0]));
    let error = asks(one(waits), SHORT).unwrap_err();
    assert!(matches!(error, AskError::Silent { after: SHORT, .. }), "{error}");
    let begins = move |stream: UnixStream| {
        send(&stream, b"{\"ok\"", &[]);
        waits(stream);
    };
    assert!(matches!(asks(one(begins), SHORT), Err(AskError::Silent { .. })));
    // One that accepts nobody: the queue of those who have connected is full.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    assert!(matches!(ask::<()>(&path, Question::Report, SHORT), Err(AskError::Silent { .. })));
}

#[test]
fn what_a_monitor_refuses_is_said_in_its_words() {
    let refuses = one(|stream| send(&stream, b"{\"error\":\"why\\nnot\"}\n", &[]));
    assert!(matches!(asks(refuses, PATIENCE), Err(AskError::Refused(why)) if why == "why\nnot"));
}

#[test]
fn what_was_withdrawn_is_asked_for_again() {
    let withdraws = || -> Play {
        Box::new(|stream| {
            let document = Document::new(b"{}").unwrap();
            document.withdraw();
            send(&stream, b"{\"ok\":\"\"}\n", &[document.as_fd()]);
        })
    };
    let error = asks((0..ATTEMPTS).map(|_| withdraws()).collect(), PATIENCE).unwrap_err();
    assert!(matches!(error, AskError::Withdrawn(_)), "{error}");
}

#[test]
fn what_is_no_answer_is_refused() {
    for line in [&b"x\n"[..], b"{\"ok\":7}\n", b"{}\n", b"\xff\n", b"{\"ok\":\"no end"] {
        malformed(one(move |stream| send(&stream, line, &[])));
    }
    assert!(malformed(one(|stream| send(&stream, b"{\"ok\":\"\"}\n", &[]))).contains("memory file"));
    let endless = one(|mut stream| while stream.write_all(&[b' '; 4096]).is_ok() {});
    assert!(malformed(endless).contains("too long"));
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let pipes = one(move |stream| send(&stream, b"{\"ok\":\"\"}\n", &[pipe.as_fd()]));
    assert!(malformed(pipes).contains("sealed"));
    let zero = File::open("/dev/zero").unwrap();
    malformed(one(move |stream| send(&stream, b"{\"ok\":\"\"}\n", &[zero.as_fd()])));
    for contents in [&b"not json"[..], b"\xff", &[b'['; 100_000]] {
        let document = Document::new(contents).unwrap();
        malformed(one(move |stream| send(&stream, b"{\"ok\":\"\"}\n", &[document.as_fd()])));
    }
}

#[test]
fn no_descriptor_stays_open() {
    // Of this thread's own table: other tests open files meanwhile.
    let open = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
    std::thread::spawn(move || {
        // SAFE: unshare(CLONE_FILES) copies the table of descriptors.
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).is_err() {
            eprintln!("not run: this thread cannot have descriptors of its own");
            return;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let document = Document::new(b"{}").unwrap();
        let before = open();
        send(&theirs, b"{\"ok\"", &[document.as_fd(); 8]);
        send(&theirs, b":\"\"}\n", &[document.as_fd(); 8]);
        let (mut line, mut file) = (Vec::new(), None);
        let ours = OwnedFd::from(ours);
        let until = Instant::now() + PATIENCE;
        while !line.ends_with(b"\n") {
            receive(&ours, &mut line, &mut file, until).unwrap();
        }
        assert_eq!((line.as_slice(), open()), (&b"{\"ok\":\"\"}\n"[..], before + 1));
        drop(file);
        assert_eq!(open(), before);
    })
    .join()
    .unwrap();
}
