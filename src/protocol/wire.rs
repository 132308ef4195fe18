//! What monitor and server say to each other, over a socket pair of type SOCK_SEQPACKET.
//!
//! A message is one packet, which arrives whole or not at all (socket(2)). An order is a packet of eight bytes, its body's
//! length, with descriptors (unix(7), SCM_RIGHTS): first a memory file (memfd_create(2)) that holds the body, which may be
//! megabytes long; then those that belong to the order. A report is its body, at most [`REPORT_MAX`] bytes. Bodies are JSON.
//!
//! Invariants:
//! - The monitor never waits here: it sends and receives without blocking, and what it cannot send or understand is an
//!   error, whatever the server does.
//! - The server believes the monitor, takes nothing from it but plain values and descriptors, and ends when it cannot
//!   understand it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::handshake::{Agreement, Promised};
use super::task::Task;
use crate::error;
use crate::log::LogSettings;
use crate::sandbox::Sandbox;
use crate::sys::memory;
use crate::values::{StorePath, View, lossless};

/// Descriptors of one order at most: the body, and one of each kind, of which [`Carried::Trace`] is the last.
const DESCRIPTORS_MAX: usize = 1 + Carried::Trace as usize + 1;
/// No closure comes near this; a length above it is not ours.
const ORDER_MAX: u64 = 1 << 30;
/// Bytes of the longest report.
pub const REPORT_MAX: usize = 4096;
/// Bytes of the longest reason in a report: each may become six in JSON.
const REASON_MAX: usize = 600;

/// A descriptor that comes with the order to begin: a server opens nothing by a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// `/dev/fuse`, mounted.
    Device,
    /// The store directory.
    Store,
    /// The directory of the node journal.
    Journal,
    /// The file that a server holds locked as long as it lives: two must never read one device. The monitor opens it for
    /// each server, and keeps no copy: the lock belongs to what was opened (flock(2)).
    Lock,
    /// What earlier servers of this mount had taken.
    Ledger,
    /// What was asked of this mount ([`crate::view::usage`]).
    Usage,
    /// Where to ask for processors that stay awake.
    Idle,
    /// The same, where a trial has to show first that it saves time.
    IdleTrial,
    /// Where names are told that the view has not ([`super::missed`]).
    Missed,
    /// Where files are registered with the kernel ([`super::registration`]).
    Registrar,
    /// What was asked of this mount, in order, and who plays (`crate::view::trace`).
    Trace,
}

/// What a server needs to begin, beside the descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// What each of the descriptors is that come with it, in their order.
    pub carries: Vec<Carried>,
    /// What is to be seen.
    pub view: View,
    /// Number of the switch that made the view.
    pub epoch: u32,
    /// What was agreed on with the kernel, and promised to it.
    pub agreement: Agreement,
    /// What is promised from now on.
    pub promise: Promised,
    /// Threads that answer requests.
    pub threads: usize,
    /// What the node journal is called, which exists; none: node ids die with the server.
    #[serde(with = "lossless::optional")]
    pub journal: Option<PathBuf>,
    /// Whether an earlier server may have taken requests.
    pub resume: bool,
    /// Whether all that earlier servers had taken is in the ledger. The ledger says so as well, but is theirs to write.
    pub whole: bool,
    /// Whether the last server ended by a fault of its own, and not because somebody killed it.
    pub crashed: bool,
    /// Names that the kernel may have cached otherwise than they are.
    pub invalidate: Vec<StorePath>,
    /// The monitor's process id, if the server is to end with it: where a service manager keeps the device, a
    /// successor brings a server of its own.
    pub end_with: Option<u32>,
    /// Whether it stays when those are asked to end who use the view.
    pub outlasts: Outlasts,
    /// Whether it gives up its rights.
    pub sandbox: Sandbox,
    /// How to log.
    pub log: LogSettings,
}

/// Whom a server outlasts, apart from its monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outlasts {
    /// Nobody: signals that ask for its end do end it.
    Nobody,
    /// Whoever uses the view: it ignores signals that a terminal or a service manager sends to all processes it knows of.
    Users,
}

/// What the monitor tells a server.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Begin.
    Start(Box<Start>),
    /// Show this view from now on.
    Switch {
        /// What is to be seen.
        view: View,
        /// Number of the switch.
        epoch: u32,
    },
    /// Serve nothing, do this and end.
    Do(Box<Task>),
}

/// Whether the same start may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// What earlier servers left is damaged, or another version's.
    Leftovers,
    /// The kernel does not offer what is needed.
    Unsupported,
    /// The same may succeed later.
    Passing,
}

/// What a server tells the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Requests are answered from now on.
    Serving {
        /// Number of the switch that made the view it began with.
        epoch: u32,
        /// Nodes taken over from an earlier server.
        restored: usize,
        /// Whether the kernel was made to ask again for every name: nothing that was promised before counts any more.
        renewed: bool,
    },
    /// The first request has been answered.
    Answered,
    /// The view of this number is what is seen, and what the kernel had cached otherwise is invalidated.
    Switched {
        /// Number of the switch.
        epoch: u32,
    },
    /// It could not begin.
    Failed {
        /// Whether the same may succeed later.
        cause: Cause,
        /// The reason, in words.
        why: String,
    },
}

impl Report {
    /// A server that cannot begin for a reason of any length.
    #[must_use]
    pub fn failed(cause: Cause, why: &str) -> Self {
        Self::Failed { cause, why: error::beginning(why, REASON_MAX).to_owned() }
    }
}

/// What was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<T> {
    /// A message.
    Message(T),
    /// None has come yet.
    Nothing,
    /// The peer has closed its end, or has died.
    Closed,
}

/// The two ends of a connection: the monitor's and the server's.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends `order` with `descriptors`, without waiting.
///
/// # Errors
/// Those of memfd_create(2), write(2) and sendmsg(2). `WouldBlock`: the server takes no orders.
pub fn send_order(socket: impl AsFd, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = memory_file(&serde_json::to_vec(order)?)?;
    let length = body.metadata()?.len().to_ne_bytes();
    let all: Vec<BorrowedFd<'_>> = [body.as_fd()].into_iter().chain(descriptors.iter().copied()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&length)], &mut control, flags)?;
    Ok(())
}

fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let mut file = memory::memory_file("order")?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Waits for the next order; returns it with its descriptors.
///
/// # Errors
/// Those of recvmsg(2), or `InvalidData` for what is no order.
pub fn receive_order(socket: impl AsFd) -> io::Result<Received<(Order, Vec<OwnedFd>)>> {
    let mut length = [0; size_of::<u64>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = receive(&socket, &mut length, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let mut descriptors: Vec<OwnedFd> = rights.flatten().collect();
    if got == 0 {
        return Ok(Received::Closed);
    }
    let length = u64::from_ne_bytes(length);
    if got != size_of::<u64>() || descriptors.is_empty() || length > ORDER_MAX {
        return Err(malformed("no order of this program"));
    }
    let body = File::from(descriptors.remove(0));
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| malformed("an order that is too long"))?];
    body.read_exact_at(&mut bytes, 0)?;
    Ok(Received::Message((decode(&bytes)?, descriptors)))
}

/// Sends `report`, of a server or of another process. Waits while the socket is full: the monitor reads what has come, or has died.
///
/// # Errors
/// Those of send(2).
pub fn send_report(socket: impl AsFd, report: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(report)?;
    loop {
        match rustix::net::send(&socket, &body, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            answer => return Ok(answer.map(|_| ())?),
        }
    }
}

/// The next report, without waiting.
///
/// # Errors
/// Those of recvmsg(2), or `InvalidData` for what is no report.
pub fn receive_report<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Received<T>> {
    let mut body = [0; REPORT_MAX];
    // Without room for descriptors the kernel closes those that a message has.
    let mut control = RecvAncillaryBuffer::default();
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    match receive(&socket, &mut body, &mut control, flags) {
        Ok(0) => Ok(Received::Closed),
        Ok(got) => Ok(Received::Message(decode(body.get(..got).unwrap_or_default())?)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
        // It ended before it had read all orders.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::Closed),
        Err(error) => Err(error),
    }
}

/// One packet, whole.
pub(super) fn receive(
    socket: &impl AsFd,
    buffer: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
    flags: RecvFlags,
) -> io::Result<usize> {
    loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], control, flags) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => {
                return Err(malformed("a message that is too long"));
            }
            Ok(message) => return Ok(message.bytes),
        }
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("received a malformed message: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(names: usize) -> View {
        (0..names as u64).map(|n| (StorePath::new(&format!("{n:032}-name")).unwrap(), n)).collect()
    }

    fn next(monitor: &OwnedFd) -> io::Result<Received<Report>> {
        receive_report(monitor)
    }

    fn order(names: usize, epoch: u32) -> Order {
        Order::Switch { view: view(names), epoch }
    }

    #[test]
    fn orders_keep_their_order_their_size_and_their_descriptors() {
        let (monitor, server) = pair().unwrap();
        send_order(&monitor, &order(40_000, 9), &[monitor.as_fd(), monitor.as_fd(), monitor.as_fd()])
            .unwrap();
        send_order(&monitor, &order(0, 10), &[]).unwrap();
        let Ok(Received::Message((first, three))) = receive_order(&server) else { panic!() };
        assert!(matches!(first, Order::Switch { view: got, epoch: 9 } if got == view(40_000)));
        assert_eq!(three.len(), 3);
        let Ok(Received::Message((second, none))) = receive_order(&server) else { panic!() };
        assert!(matches!(second, Order::Switch { view: got, epoch: 10 } if got.is_empty()));
        assert!(none.is_empty());
        drop((three, monitor));
        assert!(matches!(receive_order(&server), Ok(Received::Closed)));
    }

    #[test]
    fn a_server_that_takes_no_orders_does_not_stop_the_monitor() {
        let (monitor, _server) = pair().unwrap();
        let full = (0..100_000).find_map(|n| send_order(&monitor, &order(1, n), &[]).err()).unwrap();
        // Descriptors under way are limited as well: ETOOMANYREFS of unix(7).
        let expected = [Errno::AGAIN, Errno::TOOMANYREFS];
        assert!(expected.contains(&Errno::from_io_error(&full).unwrap()), "{full}");
    }

    #[test]
    fn reports_arrive_one_by_one_and_the_monitor_never_waits() {
        let (monitor, server) = pair().unwrap();
        assert_eq!(next(&monitor).unwrap(), Received::Nothing);
        let reports = [
            Report::Serving { epoch: 3, restored: 7, renewed: true },
            Report::Answered,
            Report::Switched { epoch: u32::MAX },
            Report::failed(Cause::Leftovers, "short"),
        ];
        for report in &reports {
            send_report(&server, report).unwrap();
        }
        for report in reports {
            assert_eq!(next(&monitor).unwrap(), Received::Message(report));
        }
        send_order(&monitor, &order(1, 1), &[]).unwrap();
        drop(server);
        assert_eq!(next(&monitor).unwrap(), Received::Closed);
        assert_eq!(next(&monitor).unwrap(), Received::Closed);
        let gone = send_order(&monitor, &order(1, 1), &[]).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }

    /// Whatever the reason consists of, its report fits into a packet.
    #[test]
    fn a_reason_of_any_length_is_told() {
        let (monitor, server) = pair().unwrap();
        for text in ["x", "\u{1}", "\u{1f600}", "\"", "ü"] {
            let why = text.repeat(10_000);
            send_report(&server, &Report::failed(Cause::Passing, &why)).unwrap();
            let Received::Message(Report::Failed { why: told, .. }) = next(&monitor).unwrap() else {
                panic!("{text:?}")
            };
            assert!(why.starts_with(&told) && told.len() > REASON_MAX - 4, "{text:?}: {}", told.len());
        }
        assert_eq!(
            Report::failed(Cause::Passing, ""),
            Report::Failed { cause: Cause::Passing, why: String::new() }
        );
    }

    /// A hostile server: garbage, packets that are too long, descriptors. Each is an error, and what follows is read.
    #[test]
    fn what_is_no_message_is_an_error_and_nothing_is_kept_of_it() {
        let (monitor, server) = pair().unwrap();
        let kind = |received: io::Result<Received<Report>>| received.unwrap_err().kind();
        let longer = format!("{:<1$}", "\"Answered\"", REPORT_MAX + 1);
        for garbage in [&b"\xff\xfe"[..], b"{}", b"\"Nothing\"", longer.as_bytes()] {
            rustix::net::send(&server, garbage, SendFlags::empty()).unwrap();
            assert_eq!(kind(next(&monitor)), io::ErrorKind::InvalidData);
        }
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        for _ in 0..100 {
            // An order, to the wrong side: its descriptor is closed by the kernel.
            send_order(&server, &order(1, 1), &[]).unwrap();
            assert_eq!(kind(next(&monitor)), io::ErrorKind::InvalidData);
        }
        assert!(open() < before + 50, "descriptors of a hostile server stay open");
        send_report(&server, &Report::Answered).unwrap();
        assert_eq!(next(&monitor).unwrap(), Received::Message(Report::Answered));
    }

    #[test]
    fn a_server_does_not_take_what_is_no_order() {
        let (monitor, server) = pair().unwrap();
        for garbage in [&b"1234567"[..], b"12345678", b"123456789", &[0; 8]] {
            rustix::net::send(&monitor, garbage, SendFlags::empty()).unwrap();
            let error = receive_order(&server).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{garbage:?}");
        }
        // A body that is shorter than its length, one that is no JSON, and a length that no order has.
        let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData, io::ErrorKind::InvalidData];
        for ((length, body), kind) in
            [(100u64, &b"{}"[..]), (2, b"{}"), (ORDER_MAX + 1, b"{}")].into_iter().zip(kinds)
        {
            let file = memory_file(body).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [file.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let length = length.to_ne_bytes();
            let flags = SendFlags::empty();
            rustix::net::sendmsg(&monitor, &[IoSlice::new(&length)], &mut control, flags).unwrap();
            assert_eq!(receive_order(&server).unwrap_err().kind(), kind, "{length:?}");
        }
    }
}
