//! Clients of the control socket, from their connection to their answer. Nothing here waits.
//!
//! Invariants:
//! - A client that does not say what it wants is dropped after [`PATIENCE`], or when another one needs its place. So no
//!   number of them keeps out one that asks.
//! - No more than [`MOST`] are connected, and no more than [`AT_ONCE`] are accepted before other events have their turn.
//! - A client that has asked is dropped when it says more.
//! - A connection that cannot be accepted is left for [`PAUSE`], as the socket stays readable meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::supervisor::ClientId;
use crate::protocol::control::{Asked, Client, Connection, Control, Outcome};

/// A client says its line at once; one that does not is dropped.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody is accepted after that has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Clients that are accepted before other events have their turn.
const AT_ONCE: usize = 64;
/// Clients at most.
const MOST: usize = 256;

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    control: Option<Control>,
    paused: Option<Instant>,
    /// The oldest first.
    asking: VecDeque<(Connection, Instant)>,
    waiting: BTreeMap<ClientId, Client>,
    next: u64,
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
        listener.map(Control::socket).into_iter().chain(asking).chain(waiting).collect()
    }

    /// When [`Self::take`] has something to do though no socket is readable.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asking.iter().map(|(_, until)| *until).chain(self.paused).min()
    }

    /// Accepts and reads what has come; returns who asks for a reload.
    pub(super) fn take(&mut self, now: Instant) -> Vec<ClientId> {
        self.paused.take_if(|until| *until <= now);
        self.waiting.retain(|_, client| client.is_quiet());
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

    #[test]
    fn without_a_socket_nobody_comes() {
        let mut clients = Clients::listen(None);
        assert_eq!(clients.sockets().len(), 0);
        assert!(clients.take(Instant::now()).is_empty());
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Clients::listen(Some(&dir.path().join("absent/control"))).sockets().len(), 0);
    }
}
