//! What monitor and server say to each other, over a stream socket pair.
//!
//! A message is its length in four bytes and that much JSON; descriptors travel with the length (unix(7),
//! SCM_RIGHTS). The server believes the monitor, and takes nothing from it but plain values and descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::protocol::handshake::Agreement;
use crate::values::{StorePath, View};

/// Descriptors of one message at most.
const DESCRIPTORS_MAX: usize = 4;
/// No closure comes near this; a length above it is not ours.
const MESSAGE_MAX: usize = 1 << 30;

/// How a process writes its log: the monitor's choice, followed by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// 0 errors, 1 warnings, 2 what happens, 3 details, 4 everything.
    pub verbosity: u8,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// What a server needs to begin; with it come `/dev/fuse` and the store directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// What is to be seen.
    pub view: View,
    /// Number of the switch that made the view.
    pub epoch: u32,
    /// What was agreed on with the kernel.
    pub agreement: Agreement,
    /// Threads that answer requests.
    pub threads: usize,
    /// The node journal; none: node ids die with the server.
    pub journal: Option<PathBuf>,
    /// Whether an earlier server wrote the journal.
    pub resume: bool,
    /// Names that the kernel may remember otherwise than they are.
    pub invalidate: Vec<StorePath>,
    /// The file that a server holds locked as long as it lives: two must never read one device.
    pub lock: Option<PathBuf>,
    /// The monitor's process id, if the server is to end with it: where a service manager keeps the device, a
    /// successor brings a server of its own.
    pub end_with: Option<u32>,
    /// Whether the log is to tell what was asked for, and is on the host alone.
    pub report: bool,
    /// How to log.
    pub log: LogSettings,
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
}

/// What a server tells the monitor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Requests are answered from now on.
    Serving {
        /// Number of the switch that made the view it began with.
        epoch: u32,
        /// Nodes taken over from an earlier server.
        restored: usize,
        /// Whether there is a journal for the next one.
        journal: bool,
    },
    /// The first request has been answered.
    Answered,
    /// The view of this number is what is seen, and what the kernel had cached otherwise is invalidated.
    Switched {
        /// Number of the switch.
        epoch: u32,
    },
    /// It could not begin.
    Failed(String),
}

/// Sends `message` with `descriptors`.
///
/// # Errors
/// Those of sendmsg(2); the peer is gone then.
pub fn send(
    mut socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_ne_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    // Four bytes into a stream socket are taken whole or not at all.
    rustix::net::sendmsg(socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    socket.write_all(&body)
}

/// Receives one message with its descriptors. `None`: the peer closed its end.
///
/// # Errors
/// Those of recvmsg(2), or `InvalidData` for what is no message.
pub fn receive<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut buffers = [IoSliceMut::new(&mut length)];
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            answer => break answer?.bytes,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    socket.read_exact(length.get_mut(got..).unwrap_or_default())?;
    let length = usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message of this program"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_keep_their_order_their_size_and_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let view: View =
            (0..20_000).map(|n| (StorePath::new(&format!("{n:032}-name")).unwrap(), n)).collect();
        let sender = {
            let view = view.clone();
            std::thread::spawn(move || {
                send(&a, &Report::Serving { epoch: 3, restored: 7, journal: true }, &[]).unwrap();
                send(&a, &Order::Switch { view, epoch: 9 }, &[a.as_fd(), a.as_fd()]).unwrap();
            })
        };
        let (report, none) = receive::<Report>(&b).unwrap().unwrap();
        assert_eq!((report, none.len()), (Report::Serving { epoch: 3, restored: 7, journal: true }, 0));
        let (order, both) = receive::<Order>(&b).unwrap().unwrap();
        assert!(matches!(order, Order::Switch { view: got, epoch: 9 } if got == view));
        assert_eq!(both.len(), 2);
        sender.join().unwrap();
        drop(both);
        assert!(receive::<Report>(&b).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&[0xff; 16]).unwrap();
        assert_eq!(receive::<Report>(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
