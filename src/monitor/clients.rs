//! Clients of the control socket, from their connection to their answer. Nothing here waits.
//!
//! Invariants:
//! - A client that does not say what it wants is dropped after [`PATIENCE`], or when another one needs its place. So no
//!   number of them keeps out one that asks.
//! - No more than [`MOST`] are connected, and no more than [`AT_ONCE`] are accepted before other events have their turn.
//! - A client that has asked is dropped when it says more.
//! - Who asks a question is answered in the same turn, and needs no place. Answers that nobody takes are bounded: [`DOCUMENTS`]
//!   of the last [`UNREAD`] clients that were given one and have not closed their connection. Who was given one before finds it
//!   empty, and asks again.
//! - A connection that cannot be accepted is left for [`PAUSE`], as the socket stays readable meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::supervisor::ClientId;
use crate::protocol::control::{Asked, Client, Connection, Control, Document, Outcome, Question};

/// A client says its line at once; one that does not is dropped.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody is accepted after that has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Clients that are accepted before other events have their turn.
const AT_ONCE: usize = 64;
/// Clients at most.
const MOST: usize = 256;
/// Clients whose answers may not have been read. One turn has no more.
const UNREAD: usize = AT_ONCE + MOST;
/// Answers that they have.
const DOCUMENTS: usize = 64;

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    control: Option<Control>,
    paused: Option<Instant>,
    /// The oldest first.
    asking: VecDeque<(Connection, Instant)>,
    waiting: BTreeMap<ClientId, Client>,
    /// Who has asked a question in this turn.
    curious: Vec<(Client, Question)>,
    /// The oldest first.
    given: VecDeque<Given>,
    next: u64,
}

/// An answer, and those who have it and are still connected.
#[derive(Debug)]
struct Given {
    document: Document,
    to: Vec<Client>,
}

impl Clients {
    /// Listens at `path`. If that fails it is logged, and nobody comes.
    pub(super) fn listen(path: Option<&Path>) -> Self {
        let control = path.and_then(|path| {
            Control::listen(path)
                .inspect_err(|error| {
                    tracing::warn!(%error, path = %path.display(), "cannot listen on the control socket; 'reload' will not work");
                })
                .ok()
        });
        Self { control, ..Self::default() }
    }

    /// Readable when [`Self::take`] has something to do.
    pub(super) fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        let listener = self.control.as_ref().filter(|_| self.paused.is_none());
        let asking = self.asking.iter().map(|(asking, _)| asking.socket());
        // One that waits has nothing more to say: it is readable when it has gone.
        let waiting = self.waiting.values().map(Client::socket);
        let given = self.given.iter().flat_map(|given| &given.to).map(Client::socket);
        listener.map(Control::socket).into_iter().chain(asking).chain(waiting).chain(given).collect()
    }

    /// When [`Self::take`] has something to do though no socket is readable.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asking.iter().map(|(_, until)| *until).chain(self.paused).min()
    }

    /// Accepts and reads what has come; returns who asks for a reload. Who asks something else is in [`Self::questions`].
    pub(super) fn take(&mut self, now: Instant) -> Vec<ClientId> {
        self.paused.take_if(|until| *until <= now);
        self.waiting.retain(|_, client| client.is_quiet());
        self.given.retain_mut(|given| {
            given.to.retain(Client::is_quiet);
            !given.to.is_empty()
        });
        let asking = std::mem::take(&mut self.asking);
        let mut reloads: Vec<_> =
            asking.into_iter().filter_map(|(connection, until)| self.read(connection, until, now)).collect();
        reloads.extend(self.accept(now));
        reloads
    }

    /// Reads what a client says; returns it if it asks for a reload.
    fn read(&mut self, connection: Connection, until: Instant, now: Instant) -> Option<ClientId> {
        match connection.read() {
            Asked::Reload(client) => {
                let id = ClientId(self.next);
                self.next += 1;
                self.waiting.insert(id, client);
                return Some(id);
            }
            Asked::Question(client, question) => self.curious.push((client, question)),
            Asked::Unanswerable(client, why) => client.tell(&why),
            Asked::Nothing(connection) if now < until => self.asking.push_back((connection, until)),
            Asked::Nothing(_) | Asked::Unknown => tracing::warn!("ignoring a malformed control request"),
        }
        None
    }

    fn accept(&mut self, now: Instant) -> Vec<ClientId> {
        let mut reloads = Vec::new();
        for _ in 0..AT_ONCE {
            let Some(control) = self.control.as_ref().filter(|_| self.paused.is_none()) else { break };
            match control.accept() {
                Ok(Some(connection)) => {
                    if self.asking.len() + self.waiting.len() >= MOST && self.asking.pop_front().is_none() {
                        connection.refuse("too many reloads are under way; try again later");
                        tracing::debug!("refusing a control request: {MOST} are under way");
                        continue;
                    }
                    reloads.extend(self.read(connection, now + PATIENCE, now));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control request");
                    self.paused = Some(now + PAUSE);
                }
            }
        }
        reloads
    }

    /// What is to be answered now, with [`Self::tell`].
    pub(super) fn questions(&self) -> BTreeSet<Question> {
        self.curious.iter().map(|(_, question)| *question).collect()
    }

    /// Gives everybody who has asked a question this answer, or tells them that there is none.
    pub(super) fn tell(&mut self, question: Question, answer: io::Result<Document>) {
        let curious = std::mem::take(&mut self.curious);
        let (these, others) = curious.into_iter().partition(|(_, asked)| *asked == question);
        self.curious = others;
        let these: Vec<(Client, Question)> = these;
        let refuse = |client: Client, error: &io::Error| {
            tracing::debug!(%error, "cannot answer a question");
            client.tell(&Outcome::Error(format!(
                "the monitor cannot answer: {error}; ask again, or read its log"
            )));
        };
        let document = match answer {
            Ok(document) => document,
            Err(error) => return these.into_iter().for_each(|(client, _)| refuse(client, &error)),
        };
        let mut to = Vec::new();
        for (client, _) in these {
            match client.give(question, &document) {
                Ok(()) => to.push(client),
                Err(error) => refuse(client, &error),
            }
        }
        self.given.push_back(Given { document, to });
        while self.given.len() > DOCUMENTS || self.unread() > UNREAD {
            self.given.pop_front().iter().for_each(|oldest| oldest.document.withdraw());
        }
    }

    /// Clients that may not have read their answer.
    fn unread(&self) -> usize {
        self.given.iter().map(|given| given.to.len()).sum()
    }

    /// Tells a client what became of its reload.
    pub(super) fn answer(&mut self, client: ClientId, outcome: &Outcome) {
        if let Some(client) = self.waiting.remove(&client) {
            client.tell(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connect(path: &Path, says: &str) -> UnixStream {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(says.as_bytes()).unwrap();
        stream
    }

    fn closed(mut stream: UnixStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Ok(0)) || stream.write_all(b"x").is_err()
    }

    #[test]
    fn who_says_nothing_is_dropped_after_a_while_and_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        assert_eq!((clients.due(), clients.sockets().len()), (None, 1));
        let (silent, half) = (connect(&path, ""), connect(&path, "rel"));
        let mut asks = connect(&path, "reload\n");
        assert_eq!(clients.take(now), [ClientId(0)]);
        assert_eq!((clients.due(), clients.sockets().len()), (Some(now + PATIENCE), 4));
        assert!(clients.take(now + PATIENCE - Duration::from_millis(1)).is_empty());
        assert!(clients.due().is_some());
        assert!(clients.take(now + PATIENCE).is_empty());
        assert_eq!(clients.due(), None);
        assert!(closed(silent) && closed(half));
        clients.answer(ClientId(0), &Outcome::Ok("shown".into()));
        let mut line = String::new();
        asks.read_to_string(&mut line).unwrap();
        assert_eq!(line, "{\"ok\":\"shown\"}\n");
        clients.answer(ClientId(0), &Outcome::Ok("again".into()));
    }

    #[test]
    fn there_is_a_most() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        let mut kept = Vec::new();
        let mut asked = 0;
        for _ in 0..MOST + 2 {
            kept.push(connect(&path, "reload\n"));
            asked += clients.take(now).len();
        }
        assert_eq!(asked, MOST);
        for refused in kept.split_off(MOST) {
            let mut line = String::new();
            std::io::BufReader::new(refused).read_line(&mut line).unwrap();
            assert!(line.contains("too many"), "{line}");
        }
        clients.answer(ClientId(7), &Outcome::Error("why".into()));
        let _one_more = connect(&path, "reload\n");
        assert_eq!(clients.take(now), [ClientId(MOST as u64)]);
        // Those who have gone leave room for others.
        assert_eq!(clients.sockets().len(), 1 + MOST);
        kept.truncate(10);
        assert!(clients.take(now).is_empty());
        let others: Vec<_> = (0..5).map(|_| connect(&path, "reload\n")).collect();
        assert_eq!(clients.take(now).len(), others.len());
        assert_eq!(clients.sockets().len(), 1 + 9 + 1 + 5);
    }

    /// Those who say nothing make room for those who do, the oldest first.
    #[test]
    fn any_number_of_silent_clients_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..3 * MOST {
            silent.push(connect(&path, "rel"));
            assert!(clients.take(now).is_empty());
        }
        let asks = connect(&path, "reload\n");
        assert_eq!(clients.take(now), [ClientId(0)]);
        assert_eq!(clients.sockets().len(), 1 + MOST);
        clients.answer(ClientId(0), &Outcome::Ok("shown".into()));
        assert_eq!(std::io::read_to_string(asks).unwrap(), "{\"ok\":\"shown\"}\n");
        let dropped = silent.drain(..=2 * MOST).map(closed);
        assert!(dropped.into_iter().all(|closed| closed));
        let mut last = silent.pop().unwrap();
        last.write_all(b"oad\n").unwrap();
        assert_eq!(clients.take(now), [ClientId(1)]);
    }

    /// However fast they come, other events have their turn.
    #[test]
    fn not_more_than_so_many_are_accepted_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        let _asks: Vec<_> = (0..2 * AT_ONCE).map(|_| connect(&path, "reload\n")).collect();
        assert_eq!([clients.take(now).len(), clients.take(now).len()], [AT_ONCE; 2]);
    }

    /// Whoever has asked has nothing more to say: it would keep the monitor busy.
    #[test]
    fn a_client_that_talks_while_it_waits_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        let mut talks = connect(&path, "reload\n");
        assert_eq!(clients.take(now), [ClientId(0)]);
        talks.write_all(&[b'x'; 100_000]).unwrap();
        assert!(clients.take(now).is_empty());
        assert_eq!(clients.sockets().len(), 1);
        clients.answer(ClientId(0), &Outcome::Ok("shown".into()));
    }

    fn document() -> io::Result<Document> {
        Document::new(b"{\"a\":1}")
    }

    /// Lets `clients` answer whoever asks, as the monitor's loop does, until all of `count` were told.
    fn answer(clients: &mut Clients, mut count: usize, answer: impl Fn() -> io::Result<Document>) {
        while count > 0 {
            let sockets = clients.sockets();
            crate::monitor::poll::readable(&sockets, None).unwrap();
            drop(sockets);
            assert!(clients.take(Instant::now()).is_empty());
            count -= clients.curious.len();
            for question in clients.questions() {
                clients.tell(question, answer());
            }
            assert!(clients.curious.is_empty());
        }
    }

    fn bytes_of(stream: &UnixStream) -> Vec<u8> {
        let mut line = [0; 100];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [io::IoSliceMut::new(&mut line)];
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(stream, buffers, &mut control, flags).unwrap();
        assert!(line[..got.bytes].starts_with(b"{\"ok\":\"") && line[..got.bytes].ends_with(b"\n"));
        let mut files = control.drain().filter_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let file = std::fs::File::from(files.next().unwrap().next().unwrap());
        let mut bytes = vec![0; 100];
        let got = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).unwrap();
        bytes.truncate(got);
        bytes
    }

    #[test]
    fn who_asks_in_one_turn_gets_one_answer_and_then_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        let asked: Vec<_> =
            ["status 1\n", "report 1\n", "status 1\n"].map(|line| connect(&path, line)).into();
        assert!(clients.take(now).is_empty());
        assert_eq!(clients.questions().into_iter().collect::<Vec<_>>(), [Question::Status, Question::Report]);
        clients.tell(Question::Status, document());
        clients.tell(Question::Report, Err(io::Error::other("why not")));
        assert!(clients.questions().is_empty());
        assert_eq!((clients.given.len(), clients.unread()), (1, 2));
        for (mut stream, has_document) in asked.into_iter().zip([true, false, true]) {
            if has_document {
                assert_eq!(bytes_of(&stream), b"{\"a\":1}");
            } else {
                let mut line = String::new();
                assert!(stream.read_to_string(&mut line).unwrap() > 0 && line.contains("why not"), "{line}");
            }
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "nothing more comes");
        }
        // They have closed their connections.
        assert!(clients.take(now).is_empty());
        assert_eq!((clients.given.len(), clients.sockets().len()), (0, 1));
    }

    /// However many answers are not read: bounded descriptors, bounded memory, and everybody who does read has an answer.
    #[test]
    fn ten_thousand_questions_that_nobody_reads_the_answers_of_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let mut kept = VecDeque::new();
        for number in 0..10_000usize {
            kept.push_back(connect(&path, if number % 2 == 0 { "status 1\n" } else { "report 1\n" }));
            answer(&mut clients, 1, document);
            assert!(clients.given.len() <= DOCUMENTS && clients.unread() <= UNREAD);
            assert!(clients.sockets().len() <= 1 + UNREAD);
            if kept.len() == 3 * DOCUMENTS {
                assert_eq!(bytes_of(&kept.pop_front().unwrap()), b"", "it was withdrawn");
            }
            if number % 1000 == 0 {
                assert_eq!(bytes_of(&kept.pop_back().unwrap()), b"{\"a\":1}");
            }
        }
        let asks = connect(&path, "reload\n");
        assert_eq!(clients.take(Instant::now()).len(), 1, "nobody is kept out");
        drop(asks);
        // And so are those who come all at once.
        drop(kept);
        assert!(clients.take(Instant::now()).is_empty());
        assert_eq!(clients.given.len(), 0);
        let crowd: Vec<_> = (0..UNREAD).map(|_| connect(&path, "status 1\n")).collect();
        answer(&mut clients, crowd.len(), document);
        assert_eq!(clients.unread(), UNREAD);
        let _one_more = connect(&path, "status 1\n");
        answer(&mut clients, 1, document);
        assert_eq!(clients.unread(), UNREAD - AT_ONCE + 1, "the oldest turn made room");
        assert_eq!([bytes_of(&crowd[0]), bytes_of(&crowd[AT_ONCE])], [&b""[..], b"{\"a\":1}"]);
    }

    /// Clients that vanish, send byte by byte, say more than they should, or want what is not known.
    #[test]
    fn clients_of_every_kind_are_answered_or_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let now = Instant::now();
        let mut slow = connect(&path, "");
        for byte in b"status 1" {
            slow.write_all(&[*byte]).unwrap();
            assert!(clients.take(now).is_empty() && clients.questions().is_empty());
        }
        drop(connect(&path, "status 1\n"));
        drop(connect(&path, "stat"));
        let garbage = ["status one\n", "status 1\nreport 1\n", "\n"].map(|line| connect(&path, line));
        let mut newer = connect(&path, "status 2\n");
        slow.write_all(b"\n").unwrap();
        assert!(clients.take(now).is_empty());
        assert_eq!(clients.curious.len(), 2, "who has vanished is not known to have");
        clients.tell(Question::Status, document());
        assert_eq!(bytes_of(&slow), b"{\"a\":1}");
        assert!(garbage.into_iter().all(closed));
        let mut line = String::new();
        newer.read_to_string(&mut line).unwrap();
        assert!(line.contains("in version 1 and not in 2"), "{line}");
        slow.write_all(b"more").unwrap();
        assert!(clients.take(now).is_empty());
        assert_eq!((clients.given.len(), clients.sockets().len()), (0, 1));
    }

    /// Without memory files there is an error to read, and the client knows why.
    #[test]
    fn where_memory_files_are_refused_clients_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut clients = Clients::listen(Some(&path));
        let asks = std::thread::spawn(move || crate::protocol::control::ask_status(&path));
        // A filter belongs to a thread.
        let monitor = std::thread::spawn(move || {
            let refused = nix::libc::SYS_memfd_create;
            let filter = seccompiler::SeccompFilter::new(
                BTreeMap::from([(refused, Vec::new())]),
                seccompiler::SeccompAction::Allow,
                seccompiler::SeccompAction::Errno(nix::libc::EACCES.unsigned_abs()),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            seccompiler::apply_filter(&program).unwrap();
            answer(&mut clients, 1, document);
        });
        monitor.join().unwrap();
        let error = asks.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("Permission denied") && error.contains("ask again"), "{error}");
    }

    #[test]
    fn without_a_socket_nobody_comes() {
        let mut clients = Clients::listen(None);
        assert_eq!(clients.sockets().len(), 0);
        assert!(clients.take(Instant::now()).is_empty());
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Clients::listen(Some(&dir.path().join("absent/control"))).sockets().len(), 0);
    }
}
