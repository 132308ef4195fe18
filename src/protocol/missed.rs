//! What a server tells its monitor of names that its view has not: which, and the thread that asked.
//!
//! A packet of a socket of its own (SOCK_SEQPACKET), so that a flood of them holds nothing else up. Eight bytes of two numbers in
//! the machine's order, the thread and how many were dropped before, and then the name. Neither side waits for the other.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags};

use super::wire;
use crate::values::StorePath;

/// Bytes before the name.
const NUMBERS: usize = 8;
/// The longest name that is told: longer than any store path's.
const NAME_MAX: usize = 255;

/// A name that a view was asked for and has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name.
    pub path: StorePath,
    /// The thread that asked, as the process namespace of the mount knows it; 0: it has none there.
    pub thread: u32,
    /// Questions that were dropped before this one, as there was no room.
    pub dropped: u32,
}

/// Sends `question`, without waiting.
///
/// # Errors
/// Those of send(2). `WouldBlock`: there is no room.
pub fn send(socket: impl AsFd, question: &Question) -> io::Result<()> {
    let mut packet = [0; NUMBERS + NAME_MAX];
    let name = question.path.as_str().as_bytes();
    let numbers = [question.thread, question.dropped].map(u32::to_ne_bytes);
    let bytes = numbers.iter().flatten().chain(name);
    packet.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let filled = packet.get(..NUMBERS + name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    rustix::net::send(socket, filled, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Waits for the next question; `None`: none will come. What is no question is passed over.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: impl AsFd) -> io::Result<Option<Question>> {
    let mut packet = [0; NUMBERS + NAME_MAX];
    loop {
        // Without room for descriptors the kernel closes those that a message has.
        let mut control = RecvAncillaryBuffer::default();
        let question = match wire::receive(&socket, &mut packet, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(0) => return Ok(None),
            Ok(got) => packet.get(..got).and_then(decode),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(error),
        };
        if question.is_some() {
            return Ok(question);
        }
    }
}

fn decode(packet: &[u8]) -> Option<Question> {
    let (thread, rest) = packet.split_first_chunk()?;
    let (dropped, name) = rest.split_first_chunk()?;
    let path = StorePath::new(str::from_utf8(name).ok()?).ok()?;
    Some(Question { path, thread: u32::from_ne_bytes(*thread), dropped: u32::from_ne_bytes(*dropped) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::wire::pair;

    fn question(number: u32) -> Question {
        let path = StorePath::new(&format!("{number:032}-name")).unwrap();
        Question { path, thread: number, dropped: number / 2 }
    }

    #[test]
    fn questions_arrive_in_their_order() {
        let (monitor, server) = pair().unwrap();
        let long = StorePath::new(&format!("{:032}-{}", 0, "n".repeat(211))).unwrap();
        let long = Question { path: long, thread: u32::MAX, dropped: 0 };
        for sent in [question(1), question(2), long] {
            send(&server, &sent).unwrap();
            assert_eq!(receive(&monitor).unwrap(), Some(sent));
        }
        drop(server);
        assert_eq!(receive(&monitor).unwrap(), None);
    }

    /// A hostile server: what is no question is none, whatever it is.
    #[test]
    fn what_is_no_question_is_passed_over() {
        let (monitor, server) = pair().unwrap();
        let wrong =
            [&b"x"[..], b"1234567", b"12345678", b"12345678../../etc/passwd", b"12345678\xff", &[0; 4000]];
        for packet in wrong {
            rustix::net::send(&server, packet, SendFlags::empty()).unwrap();
        }
        send(&server, &question(7)).unwrap();
        assert_eq!(receive(&monitor).unwrap(), Some(question(7)));
    }

    #[test]
    fn who_tells_does_not_wait() {
        let (_monitor, server) = pair().unwrap();
        let full = (0..1_000_000).find_map(|number| send(&server, &question(number)).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
}
