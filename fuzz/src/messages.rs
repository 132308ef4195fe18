//! What comes over a socket or lies in a file: the monitor's and the server's messages, those of the control socket, the kernel's INIT, and
//! the state.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use nix_store_fs::fuse::abi::init;
use nix_store_fs::monitor::state::{self, StateDir};
use nix_store_fs::protocol::control::{self, Asked, Control, Document, Outcome, Question};
use nix_store_fs::protocol::handshake::{self, Io, Passthrough, Promised, Wishes};
use nix_store_fs::protocol::missed;
use nix_store_fs::protocol::registration;
use nix_store_fs::protocol::wire::{self, Received};
use nix_store_fs::values::StorePath;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::bytes::Bytes;
use crate::world::WORLD;

/// Descriptors that this process has open.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(crate) fn state(data: &[u8]) {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        // Nobody else may reach it.
        WORLD.dir.path().join("state/x")
    });
    let dir = StateDir::open(&DIR, "x").unwrap();
    std::fs::write(DIR.join("state"), data).unwrap();
    let read = dir.read();
    assert_eq!(state::earlier(&DIR), read.as_ref().ok().cloned().flatten());
    if let Ok(state) = read {
        let state = state.expect("the file is there");
        assert_eq!(state.version, state::VERSION);
        dir.write(&state).unwrap();
        assert_eq!(dir.read().unwrap(), Some(state));
    }
}

/// Both directions between monitor and server, and what the server tells of missed names. What is understood comes back the same, and
/// no descriptor of a message stays open.
pub(crate) fn wire(data: &[u8]) {
    let mut bytes = Bytes(data);
    let before = open_descriptors();
    match bytes.byte() % 3 {
        0 => order(bytes),
        1 => report(bytes),
        _ => question(bytes),
    }
    assert_eq!(open_descriptors(), before);
}

fn order(mut bytes: Bytes<'_>) {
    let (monitor, server) = wire::pair().unwrap();
    let (count, honest) = (usize::from(bytes.byte()) % 9, bytes.byte() % 8 != 0);
    let length = if honest { None } else { Some(bytes.long() >> (bytes.byte() % 64)) };
    let body = rustix::fs::memfd_create("order", MemfdFlags::CLOEXEC).unwrap();
    File::from(body.try_clone().unwrap()).write_all(bytes.0).unwrap();
    let length = length.unwrap_or(bytes.0.len() as u64).to_ne_bytes();
    let all: Vec<BorrowedFd<'_>> = std::iter::repeat_n(body.as_fd(), count).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(all.is_empty() || control.push(SendAncillaryMessage::ScmRights(&all)));
    rustix::net::sendmsg(&monitor, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL).unwrap();
    let Ok(received) = wire::receive_order(&server) else { return };
    let Received::Message((order, descriptors)) = received else { panic!("{received:?}") };
    assert_eq!(descriptors.len(), count - 1);
    let again: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    wire::send_order(&monitor, &order, &again).unwrap();
    let Ok(Received::Message((second, _))) = wire::receive_order(&server) else { panic!() };
    assert_eq!(serde_json::to_value(&second).unwrap(), serde_json::to_value(&order).unwrap());
}

fn report(bytes: Bytes<'_>) {
    let (monitor, server) = wire::pair().unwrap();
    // The kernel gives an empty packet as an end.
    rustix::net::send(&server, bytes.0, SendFlags::NOSIGNAL).unwrap();
    match wire::receive_report::<wire::Report>(&monitor) {
        Ok(Received::Message(report)) => {
            wire::send_report(&server, &report).unwrap();
            assert_eq!(wire::receive_report::<wire::Report>(&monitor).unwrap(), Received::Message(report));
        }
        Ok(received) => assert!(bytes.is_empty(), "{received:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::InvalidData),
    }
    assert_eq!(wire::receive_report::<wire::Report>(&monitor).unwrap(), Received::Nothing);
}

fn question(mut bytes: Bytes<'_>) {
    let (monitor, server) = wire::pair().unwrap();
    let packet = bytes.take(400);
    if packet.is_empty() {
        return;
    }
    rustix::net::send(&server, packet, SendFlags::NOSIGNAL).unwrap();
    let path = StorePath::new("11111111111111111111111111111111-last").unwrap();
    let last = missed::Question { path, thread: 1, dropped: 2 };
    missed::send(&server, &last).unwrap();
    let first = missed::receive(&monitor).unwrap().unwrap();
    if first != last {
        assert_eq!(
            packet,
            [&first.thread.to_ne_bytes(), &first.dropped.to_ne_bytes(), first.path.as_str().as_bytes()]
                .concat()
        );
        assert_eq!(missed::receive(&monitor).unwrap(), Some(last));
        missed::send(&server, &first).unwrap();
        assert_eq!(missed::receive(&monitor).unwrap(), Some(first));
    }
}

/// Files to be registered with the kernel, and answers. What is understood comes back the same, and no descriptor stays open.
pub(crate) fn registration(data: &[u8]) {
    let mut bytes = Bytes(data);
    let before = open_descriptors();
    let files = usize::from(bytes.byte()) % 4;
    let (monitor, server) = registration::pair().unwrap();
    let packet = bytes.0;
    if files == 3 {
        rustix::net::send(&monitor, packet, SendFlags::NOSIGNAL).unwrap();
        if let Ok(Some(answer)) = registration::receive_answer(&server, false) {
            registration::answer(&monitor, answer).unwrap();
            assert_eq!(registration::receive_answer(&server, false).unwrap(), Some(answer));
        }
    } else {
        let all = vec![monitor.as_fd(); files];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(files == 0 || control.push(SendAncillaryMessage::ScmRights(&all)));
        rustix::net::sendmsg(&server, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL).unwrap();
        match registration::receive(&monitor) {
            Ok(Some(registration::Question::Register { number, .. })) => {
                assert_eq!(packet, number.to_ne_bytes());
                assert!(files > 0 && number > 0);
            }
            Ok(Some(registration::Question::End(ends))) => {
                assert_eq!(registration::end(&server, &ends).unwrap(), ends.len());
                let again = registration::receive(&monitor);
                assert!(matches!(again, Ok(Some(registration::Question::End(all))) if all == ends));
            }
            Ok(None) => assert!(packet.is_empty()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::InvalidData),
        }
    }
    drop((monitor, server));
    assert_eq!(open_descriptors(), before);
}

/// A request in pieces: it is understood only if it is one of those that there are, and each piece is looked at once.
pub(crate) fn control(data: &[u8]) {
    static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| WORLD.dir.path().join("control"));
    thread_local!(static CONTROL: RefCell<Option<Control>> = const { RefCell::new(None) });
    CONTROL.with_borrow_mut(|control| {
        let control = control.get_or_insert_with(|| Control::listen(&SOCKET).unwrap());
        let mut stream = UnixStream::connect(&*SOCKET).unwrap();
        let mut connection = control.accept().unwrap().expect("somebody has come");
        let mut bytes = Bytes(data);
        let mut said = Vec::new();
        while !bytes.is_empty() {
            let piece = bytes.short();
            if stream.write_all(piece).is_err() {
                return;
            }
            said.extend_from_slice(piece);
            let (client, outcome) = match connection.read() {
                Asked::Nothing(same) => {
                    assert!(request(&said).is_none() && begins(&said), "{said:?}");
                    connection = same;
                    continue;
                }
                Asked::Unknown => {
                    assert!(request(&said).is_none() && !begins(&said), "{said:?}");
                    return;
                }
                Asked::Reload(client) => {
                    assert_eq!(said, b"reload\n");
                    (client, Outcome::Error(String::from_utf8_lossy(bytes.0).into_owned()))
                }
                Asked::Unanswerable(client, why) => {
                    assert!(request(&said).is_some_and(|(_, version)| version != 1), "{said:?}");
                    (client, why)
                }
                Asked::Question(client, question) => {
                    assert_eq!(request(&said), Some((question, 1)), "{said:?}");
                    client.give(question, &Document::new(bytes.0).unwrap()).unwrap();
                    let line = String::from_utf8(said).unwrap();
                    (client, Outcome::Ok(line.trim_end().to_owned()))
                }
            };
            if !matches!(outcome, Outcome::Ok(_)) {
                client.tell(&outcome);
            }
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert_eq!(answer.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
            assert_eq!(serde_json::from_slice::<Outcome>(&answer).unwrap(), outcome);
            return;
        }
    });
}

/// The question that this is, and the version that it asks for: read in another way than the program does.
fn request(said: &[u8]) -> Option<(Question, u32)> {
    let text = str::from_utf8(said).ok()?.strip_suffix('\n')?;
    let (word, version) = text.split_once(' ')?;
    let question = match word {
        "status" => Question::Status,
        "report" => Question::Report,
        _ => return None,
    };
    let number: u32 = version.parse().ok()?;
    (number < 1_000_000_000 && number.to_string() == version).then_some((question, number))
}

/// Whether a request may begin like this.
fn begins(said: &[u8]) -> bool {
    let whole = ["reload\n", "status 1\n", "report 1\n"];
    let numbered = [said, b"\n"].concat();
    whole.iter().any(|whole| whole.len() > said.len() && whole.as_bytes().starts_with(said))
        || request(&numbered).is_some()
}

/// What a monitor answers to a question. What is understood comes back the same.
pub(crate) fn answers(data: &[u8]) {
    static ANSWER: Mutex<(Vec<u8>, Vec<u8>, u8)> = Mutex::new((Vec::new(), Vec::new(), 0));
    static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = WORLD.dir.path().join("answers");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                play(&stream.unwrap(), &ANSWER.lock().unwrap());
            }
        });
        path
    });
    let mut bytes = Bytes(data);
    let (asks_status, files) = (bytes.flag(), bytes.byte() % 4);
    let line = if bytes.flag() { b"{\"ok\":\"\"}\n" } else { bytes.short() }.to_vec();
    let contents = bytes.0.to_vec();
    *ANSWER.lock().unwrap() = (line.clone(), contents.clone(), files);
    let (understood, value) = if asks_status {
        let answer = control::ask_status(&SOCKET);
        (answer.is_ok(), answer.ok().map(|status| serde_json::to_value(status).unwrap()))
    } else {
        let answer = control::ask_report(&SOCKET);
        (answer.is_ok(), answer.ok().map(|report| serde_json::to_value(report).unwrap()))
    };
    if let Some(value) = value {
        assert!(understood && files > 0 && line.ends_with(b"\n"));
        // And once more, as the program itself would have written it.
        let again = serde_json::to_vec(&value).unwrap();
        *ANSWER.lock().unwrap() = (line, again, 1);
        let second = if asks_status {
            serde_json::to_value(control::ask_status(&SOCKET).unwrap()).unwrap()
        } else {
            serde_json::to_value(control::ask_report(&SOCKET).unwrap()).unwrap()
        };
        assert_eq!(second, value);
    }
}

/// Plays a monitor: sends a line with so many memory files, and closes the connection.
fn play(stream: &UnixStream, (line, contents, files): &(Vec<u8>, Vec<u8>, u8)) {
    let mut question = [0; 9];
    if (&mut &*stream).read_exact(&mut question).is_err() || line.is_empty() {
        return;
    }
    let document = Document::new(contents).unwrap();
    let all: Vec<BorrowedFd<'_>> = std::iter::repeat_n(document.as_fd(), usize::from(*files)).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(all.is_empty() || control.push(SendAncillaryMessage::ScmRights(&all)));
    // The client may have seen enough.
    let _sent = rustix::net::sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL);
}

/// The kernel's INIT. Nothing is agreed on that it did not offer, and what is not agreed on is not answered.
pub(crate) fn init(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (passthrough, depth, idmap) = (bytes.byte() % 3, u32::from(bytes.byte() % 4), bytes.flag());
    let passthrough =
        [Passthrough::Unwanted, Passthrough::IfOffered, Passthrough::Required][usize::from(passthrough)];
    let wishes = Wishes { passthrough, idmap, store_depth: depth, promised: Promised::default() };
    let request = bytes.take(8192);
    let (kernel, device) = UnixDatagram::pair().unwrap();
    kernel.send(request).unwrap();
    kernel.set_nonblocking(true).unwrap();
    let answer = handshake::answer(OwnedFd::from(device), wishes);
    let mut reply = [0; 200];
    let read = kernel.recv(&mut reply);
    let Ok(agreement) = answer else {
        assert!(read.is_err(), "answered without an agreement");
        return;
    };
    let word = |from: &[u8], at: usize| u32::from_ne_bytes(from[at..at + 4].try_into().unwrap());
    assert_eq!((read.unwrap(), word(&reply, 0), word(&reply, 4)), (80, 80, 0));
    assert_eq!(reply[8..16], request[8..16], "another request is answered");
    let flags = |from: &[u8], low, high| u64::from(word(from, low)) | u64::from(word(from, high)) << 32;
    let mut offered = u64::from(word(request, 52));
    if offered & init::INIT_EXT != 0 {
        offered = flags(request, 52, 56);
    }
    let agreed = flags(&reply, 28, 48);
    assert_eq!(agreed & !offered, 0, "not offered: {:x}", agreed & !offered);
    assert_eq!(agreed & init::WRITEBACK_CACHE, 0);
    assert_eq!(agreed & init::PASSTHROUGH != 0, agreement.io == Io::Passthrough);
    assert_eq!(agreed & init::ALLOW_IDMAP != 0, agreement.idmap);
    assert!(agreement.io == Io::Cached || passthrough != Passthrough::Unwanted);
    assert!(idmap || !agreement.idmap);
    assert!(word(&reply, 52) <= 2, "more file systems than the kernel stacks");
}
