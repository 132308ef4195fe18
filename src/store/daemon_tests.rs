//! A store that is asked through a daemon: Nix's own, and one that is made to misbehave.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// A process that is killed when the test ends, however it ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    /// One for the store in `root`, and its address.
    fn start(root: &Path) -> Option<(Self, String)> {
        let socket = root.join("socket");
        let daemon = command("nix-daemon")
            .args(["--store", &format!("local?root={}", root.display())])
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = daemon else {
            skip("nix-daemon is not installed");
            return None;
        };
        let daemon = Self(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "nix-daemon does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some((daemon, format!("unix://{}?root={}", socket.display(), root.display())))
    }
}

#[test]
fn a_daemon_gives_the_same_answers() {
    let Some(scratch) = Scratch::new() else { return };
    let Some((daemon, uri)) = Daemon::start(scratch.root.path()) else { return };
    let store = open(&uri).unwrap();
    scratch.check(&store);
    store.add_temp_root(&scratch.built).unwrap();
    assert!(matches!(store.closure(&[absent()]), Err(StoreError::Invalid { .. })));
    drop((store, daemon));
    assert!(matches!(open(&uri), Err(StoreError::Daemon { .. })));
}

fn numbered(n: usize) -> StorePath {
    StorePath::new(&format!("{n:032}-{}", "n".repeat(1 + n % 100))).unwrap()
}

/// Paths that refer to themselves, to each other, to many and to none, from any roots.
#[test]
fn closures_by_way_of_a_daemon_are_those_of_nix_store() {
    const COUNT: usize = 400;
    if Scratch::new().is_none() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let uri = format!("local?root={}", root.path().display());
    stdout(command("nix-store").args(["--store", &uri, "--init"]).output().unwrap());
    // To themselves or to earlier ones: nix-store registers no cycles.
    let references = |n: usize| -> BTreeSet<usize> {
        let many = if n % 50 == 49 { 120 } else { n % 4 };
        let mut references: BTreeSet<usize> = (0..many).map(|k| n * (7 + 31 * k) % n.max(1)).collect();
        references.extend(n.is_multiple_of(3).then_some(n));
        references
    };
    let lines = (0..COUNT).map(|n| {
        let hash = format!("{n:064x}");
        let references: Vec<_> =
            references(n).into_iter().map(|n| format!("/nix/store/{}\n", numbered(n))).collect();
        let count = references.len();
        format!("/nix/store/{}\nsha256:{hash}\n{}\n\n{count}\n{}", numbered(n), 100 + n, references.concat())
    });
    load_db(&uri, &lines.collect::<String>());
    let Some((_daemon, address)) = Daemon::start(root.path()) else { return };
    let asked = open(&address).unwrap();
    let local = open(&uri).unwrap();
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let roots = prop::collection::btree_set(0..COUNT, 1..4);
    let tried = runner.run(&roots, |roots| {
        let roots: Vec<StorePath> = roots.into_iter().map(numbered).collect();
        let mut printed = command("nix-store");
        printed.args(["--store", &uri, "-qR"]).args(roots.iter().map(|root| format!("/nix/store/{root}")));
        let printed = stdout(printed.output().unwrap());
        let expected: BTreeSet<_> = printed.lines().map(base_name).collect();
        let closure = asked.closure(&roots).unwrap();
        prop_assert_eq!(closure.iter().map(|info| info.path.clone()).collect::<BTreeSet<_>>(), expected);
        prop_assert_eq!(&closure, &local.closure(&roots).unwrap());
        let view = asked.view(&roots).unwrap();
        let served: Vec<_> = view.members().map(|(path, size)| (path.clone(), size)).collect();
        let known: Vec<_> = closure.into_iter().map(|info| (info.path, info.nar_size)).collect();
        prop_assert_eq!(served, known);
        Ok(())
    });
    tried.unwrap();
}

/// What a played daemon answers to a question about a path.
#[derive(Debug, Clone)]
enum Answer {
    /// It refers to these.
    Known(Vec<StorePath>),
    /// There is none.
    NotValid,
    /// An error, as Nix's own daemon sends one that could not be foreseen.
    Error(&'static str),
    /// Bytes that are no answer.
    Garbage,
    /// The end of the connection.
    End,
}

/// A daemon that is played: paths are valid, and what it knows of each is the test's to say.
struct Played {
    socket: PathBuf,
    dir: TempDir,
    thread: JoinHandle<Seen>,
}

/// What a played daemon has seen.
#[derive(Debug, Default)]
struct Seen {
    connections: usize,
    /// Names that it was asked about, of all connections.
    asked: Vec<StorePath>,
}

/// How it is played.
struct Part {
    /// The second number of the protocol's version.
    minor: u64,
    /// Questions that it waits for before it answers the first of them.
    patience: usize,
    /// The length of a message before each answer.
    message: usize,
    answer: fn(&StorePath) -> Answer,
}

const LAST: u64 = 0x616c_7473;
const NEXT: u64 = 0x6f6c_6d67;
const ERROR: u64 = 0x6378_7470;

fn number(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn string(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend(text.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
}

fn read_number(mut from: &UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_string(mut from: &UnixStream) -> io::Result<String> {
    let length = usize::try_from(read_number(from)?).unwrap();
    let mut bytes = vec![0; length.next_multiple_of(8)];
    from.read_exact(&mut bytes)?;
    bytes.truncate(length);
    Ok(String::from_utf8(bytes).unwrap())
}

impl Part {
    /// The begin of a connection. An error: nobody wants anything of it.
    fn greets(&self, mut with: &UnixStream) -> io::Result<()> {
        assert_eq!(read_number(with)?, 0x6e69_7863);
        let mut out = Vec::new();
        number(&mut out, 0x6478_696f);
        number(&mut out, 0x100 | self.minor);
        with.write_all(&out)?;
        // Its version, no processor, no reserve.
        for _ in 0..3 {
            read_number(with)?;
        }
        with.write_all(&LAST.to_le_bytes())
    }

    /// All that follows, until either side closes the connection.
    fn play(&self, connection: UnixStream, seen: &mut Seen) -> io::Result<()> {
        let mut with = &connection;
        let mut out = Vec::new();
        let mut waiting = Vec::new();
        loop {
            out.clear();
            match read_number(with)? {
                // Options: twelve numbers, and settings.
                19 => {
                    for _ in 0..12 {
                        read_number(with)?;
                    }
                    for _ in 0..2 * read_number(with)? {
                        read_string(with)?;
                    }
                    number(&mut out, LAST);
                }
                // Is it valid? Keep it!
                1 | 11 => {
                    read_string(with)?;
                    number(&mut out, LAST);
                    number(&mut out, 1);
                }
                26 => {
                    let path = base_name(&read_string(with)?);
                    seen.asked.push(path.clone());
                    waiting.push(path);
                    // The first root is alone.
                    if seen.asked.len() > 1 && waiting.len() < self.patience {
                        continue;
                    }
                    for path in waiting.drain(..) {
                        self.tell(&path, &mut out);
                        with.write_all(&out)?;
                        out.clear();
                        if matches!((self.answer)(&path), Answer::End) {
                            return Ok(());
                        }
                    }
                }
                other => panic!("operation {other}"),
            }
            with.write_all(&out)?;
        }
    }

    fn tell(&self, path: &StorePath, out: &mut Vec<u8>) {
        if self.message > 0 {
            number(out, NEXT);
            string(out, &"m".repeat(self.message));
        }
        let references = match (self.answer)(path) {
            Answer::End => return,
            Answer::Garbage => return number(out, 4711),
            Answer::Error(text) => {
                number(out, ERROR);
                string(out, text);
                return number(out, 1);
            }
            Answer::NotValid => {
                number(out, LAST);
                return number(out, 0);
            }
            Answer::Known(references) => references,
        };
        number(out, LAST);
        if self.minor >= 17 {
            number(out, 1);
        }
        string(out, "");
        string(out, &"0".repeat(64));
        number(out, references.len() as u64);
        for reference in references {
            string(out, &format!("/nix/store/{reference}"));
        }
        // When, how large, how made, who says so, and what it is by its contents.
        number(out, 1_600_000_000);
        number(out, path.as_str().len() as u64);
        number(out, 0);
        number(out, 0);
        string(out, "");
    }
}

impl Played {
    fn start(part: Part) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            for connection in listener.incoming() {
                let connection = connection.unwrap();
                // Not for how long it waits, but that the test ends.
                connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                connection.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                if part.greets(&connection).is_err() {
                    break;
                }
                seen.connections += 1;
                // It ends when the other side closes it, between two questions or before it has read all.
                let _ended = part.play(connection, &mut seen);
            }
            seen
        });
        Self { socket, dir, thread }
    }

    fn uri(&self) -> String {
        format!("unix://{}?root={}", self.socket.display(), self.dir.path().display())
    }

    /// Ends it, once no store is connected with it.
    fn end(self) -> Seen {
        drop(UnixStream::connect(&self.socket).unwrap());
        self.thread.join().unwrap()
    }
}

fn number_of(path: &StorePath) -> usize {
    path.as_str().get(..32).unwrap().parse().unwrap()
}

/// The first refers to all others, of which there are `count`.
fn star(path: &StorePath, count: usize) -> Answer {
    Answer::Known(if number_of(path) == 0 { (1..=count).map(numbered).collect() } else { Vec::new() })
}

/// Whether the answers are those of a star.
fn check_star(store: &Store, count: usize) {
    let view = store.view(&[numbered(0)]).unwrap();
    let expected: BTreeSet<_> = (0..=count).map(numbered).collect();
    assert!(view.names().eq(&expected));
    assert!(view.members().all(|(path, size)| size == path.as_str().len() as u64));
}

/// A daemon that answers only when it has been asked for 16 paths gets so many questions, and each once.
#[test]
fn a_daemon_is_asked_for_many_paths_before_it_answers() {
    let part = Part { minor: 25, patience: 16, message: 0, answer: |path| star(path, 192) };
    let played = Played::start(part);
    let store = open(&played.uri()).unwrap();
    check_star(&store, 192);
    drop(store);
    let seen = played.end();
    assert_eq!(seen.connections, 1);
    assert_eq!(seen.asked, (0..=192).map(numbered).collect::<Vec<_>>());
}

/// Neither waits for the other to read, however much each has to say: questions and answers are more than sockets hold.
#[test]
fn a_daemon_that_says_much_before_it_reads_is_not_waited_for() {
    let part = Part { minor: 25, patience: 16, message: 20_000, answer: |path| star(path, 4_000) };
    let played = Played::start(part);
    let store = open(&played.uri()).unwrap();
    check_star(&store, 4_000);
    drop(store);
    assert_eq!(played.end().connections, 1);
}

/// One that tells of no path that is not valid is asked one by one.
#[test]
fn an_old_daemon_is_asked_one_by_one() {
    let part = Part { minor: 16, patience: 1, message: 0, answer: |path| star(path, 20) };
    let played = Played::start(part);
    match open(&played.uri()) {
        Ok(store) => check_star(&store, 20),
        // Newer releases of Nix refuse it themselves.
        Err(error) => assert!(matches!(error, StoreError::Daemon { .. }), "{error:?}"),
    }
    assert_eq!(played.end().connections, 1);
}

const REFUSAL: &str = "the disk is full";

/// The first error is told, and the connection, which keeps the temporary roots, is as good as before.
#[test]
fn an_error_among_the_answers_costs_no_connection() {
    fn odd(n: usize) -> Answer {
        match n {
            50 | 54 | 100 => Answer::Error(REFUSAL),
            51 | 53 | 192 => Answer::NotValid,
            _ => Answer::Known(Vec::new()),
        }
    }
    // The number of a root is a thousand and the first one that it refers to; all up to 192 are the others.
    let answer = |path: &StorePath| match number_of(path) {
        n @ 1_000.. => Answer::Known((n % 1_000..=192).map(numbered).collect()),
        n => odd(n),
    };
    let played = Played::start(Part { minor: 25, patience: 1, message: 10, answer });
    let store = open(&played.uri()).unwrap();
    for first in [50, 51, 1, 52, 53, 101, 192] {
        let told = store.view(&[numbered(1_000 + first)]).unwrap_err();
        let StoreError::Query { cause, path, .. } = &told else { panic!("{told:?}") };
        assert_eq!(path, &numbered(1_000 + first));
        let wrong = (first..).find(|n| !matches!(odd(*n), Answer::Known(_))).unwrap();
        match odd(wrong) {
            Answer::Error(text) => assert_eq!(cause, text),
            _ => assert_eq!(*cause, format!("path '/nix/store/{}' is not valid", numbered(wrong))),
        }
        store.add_temp_root(&numbered(1)).unwrap();
        assert_eq!(store.closure(&[numbered(1)]).unwrap().len(), 1);
    }
    drop(store);
    assert_eq!(played.end().connections, 1);
}

/// After an answer that cannot be understood, and after the end of a daemon, nothing is read from the connection any more: the next question
/// goes through a new one. What was told before is told.
#[test]
fn a_connection_that_is_out_of_step_is_closed() {
    type Play = fn(&StorePath) -> Answer;
    // How the end shows depends on what lay unread.
    let cases: [(Play, &str); 4] = [
        (|path| if number_of(path) == 60 { Answer::Garbage } else { star(path, 192) }, "unknown message"),
        (|path| if number_of(path) == 60 { Answer::End } else { star(path, 192) }, ""),
        (
            |path| match number_of(path) {
                60 => Answer::Error(REFUSAL),
                61 => Answer::Garbage,
                _ => star(path, 192),
            },
            REFUSAL,
        ),
        (
            |path| match number_of(path) {
                60 => Answer::NotValid,
                61 => Answer::Garbage,
                _ => star(path, 192),
            },
            "is not valid",
        ),
    ];
    for (answer, expected) in cases {
        let played = Played::start(Part { minor: 25, patience: 1, message: 0, answer });
        let store = open(&played.uri()).unwrap();
        let told = store.view(&[numbered(0)]).unwrap_err();
        assert!(matches!(&told, StoreError::Query { cause, .. } if cause.contains(expected)), "{told:?}");
        assert_eq!(store.closure(&[numbered(1)]).unwrap().len(), 1, "{expected}");
        drop(store);
        assert_eq!(played.end().connections, 2, "{expected}");
    }
}
