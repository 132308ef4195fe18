//! What a server asks its monitor about files that the kernel is to read by itself: registering takes CAP_SYS_ADMIN, which a
//! server has not.
//!
//! Packets of a socket of their own (SOCK_SEQPACKET). A question begins with its number, in the machine's order. A number above 0 asks to
//! register the one file that comes with it (SCM_RIGHTS), and is answered: that number, the registration's, and the error's. Number 0 ends
//! the registrations whose numbers follow, and is not answered.
//!
//! Invariant: neither side waits for the other to take a packet. A server waits for an answer for [`ANSWER_MAX`] at most.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::wire;

/// How long an answer is waited for: it takes some microseconds, unless the monitor is stopped.
pub const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Registrations that one packet ends at most.
pub const ENDS_MAX: usize = 255;

/// Numbers of errors are smaller (`MAX_ERRNO` of `linux/err.h`).
const ERRORS: u32 = 4096;
const WORD: usize = size_of::<u32>();
const QUESTION_MAX: usize = WORD * (1 + ENDS_MAX);

/// What a server asks.
#[derive(Debug)]
pub enum Question {
    /// To register a file.
    Register {
        /// The number of the question, above 0.
        number: u32,
        /// The file.
        file: OwnedFd,
    },
    /// To end these registrations.
    End(Vec<u32>),
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The number of the question.
    pub number: u32,
    /// The number of the registration, above 0, or why there is none.
    pub result: Result<u32, Errno>,
}

/// The two ends: the monitor's, and the server's, which waits for [`ANSWER_MAX`].
///
/// # Errors
/// Those of socketpair(2) and setsockopt(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (monitor, server) = wire::pair()?;
    set_socket_timeout(&server, Timeout::Recv, Some(ANSWER_MAX))?;
    Ok((monitor, server))
}

/// Asks to register `file`.
///
/// # Errors
/// Those of sendmsg(2). `WouldBlock`: there is no room.
pub fn ask(socket: impl AsFd, number: u32, file: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let file = [file];
    if !control.push(SendAncillaryMessage::ScmRights(&file)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let packet = number.to_ne_bytes();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&packet)], &mut control, flags)?;
    Ok(())
}

/// Asks to end the first [`ENDS_MAX`] of `registrations`; returns how many they are.
///
/// # Errors
/// Those of send(2). `WouldBlock`: there is no room.
pub fn end(socket: impl AsFd, registrations: &[u32]) -> io::Result<usize> {
    let some = registrations.get(..ENDS_MAX).unwrap_or(registrations);
    let packet: Vec<u8> = [0].iter().chain(some).flat_map(|number| number.to_ne_bytes()).collect();
    rustix::net::send(socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(some.len())
}

/// Waits for the next question; `None`: none will come.
///
/// # Errors
/// Those of recvmsg(2); `InvalidData` for what is no question.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Question>> {
    let mut packet = [0; QUESTION_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = wire::receive(&socket, &mut packet, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let file = files.next().and_then(|mut rights| rights.next());
    let words = words(packet.get(..got).unwrap_or_default());
    match (words.as_deref(), file) {
        (_, None) if got == 0 => Ok(None),
        (Some([0, ends @ ..]), None) => Ok(Some(Question::End(ends.to_vec()))),
        (Some([number @ 1..=u32::MAX]), Some(file)) => Ok(Some(Question::Register { number: *number, file })),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Answers.
///
/// # Errors
/// Those of send(2). `WouldBlock`: the server does not read what it asked for.
pub fn answer(socket: impl AsFd, answer: Answer) -> io::Result<()> {
    let (registration, error) = match answer.result {
        Ok(registration) => (registration, 0),
        Err(error) => (0, error.raw_os_error().unsigned_abs()),
    };
    let packet: Vec<u8> =
        [answer.number, registration, error].iter().flat_map(|word| word.to_ne_bytes()).collect();
    rustix::net::send(socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// The next answer; `None`: none will come. Waits for [`ANSWER_MAX`] if `waits`.
///
/// # Errors
/// Those of recvmsg(2). `WouldBlock`: none has come yet.
pub fn receive_answer(socket: impl AsFd, waits: bool) -> io::Result<Option<Answer>> {
    let mut packet = [0; WORD * 3];
    let mut control = RecvAncillaryBuffer::default();
    let flags = if waits { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    let got = wire::receive(&socket, &mut packet, &mut control, flags)?;
    let words = words(packet.get(..got).unwrap_or_default());
    match words.as_deref() {
        _ if got == 0 => Ok(None),
        Some([number, registration @ 1..=u32::MAX, 0]) => {
            Ok(Some(Answer { number: *number, result: Ok(*registration) }))
        }
        Some([number, 0, error @ 1..ERRORS]) => {
            let error = Errno::from_raw_os_error(error.cast_signed());
            Ok(Some(Answer { number: *number, result: Err(error) }))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn words(packet: &[u8]) -> Option<Vec<u32>> {
    let (words, rest) = packet.as_chunks();
    rest.is_empty().then(|| words.iter().map(|word| u32::from_ne_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn questions_and_answers_arrive_as_they_were_sent() {
        let (monitor, server) = pair().unwrap();
        ask(&server, 7, file().as_fd()).unwrap();
        assert_eq!(end(&server, &[3, 4]).unwrap(), 2);
        assert!(matches!(receive(&monitor), Ok(Some(Question::Register { number: 7, .. }))));
        assert!(matches!(receive(&monitor), Ok(Some(Question::End(ends))) if ends == [3, 4]));
        for result in [Ok(1), Ok(u32::MAX), Err(Errno::PERM)] {
            let sent = Answer { number: 7, result };
            answer(&monitor, sent).unwrap();
            assert_eq!(receive_answer(&server, true).unwrap(), Some(sent));
        }
        drop(server);
        assert!(receive(&monitor).unwrap().is_none());
        let (monitor, server) = pair().unwrap();
        drop(monitor);
        assert_eq!(receive_answer(&server, true).unwrap(), None);
        assert_eq!(ask(&server, 7, file().as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_is_too_much_for_one_packet_is_left() {
        let (monitor, server) = pair().unwrap();
        let all: Vec<u32> = (1..=1000).collect();
        assert_eq!(end(&server, &all).unwrap(), ENDS_MAX);
        assert!(matches!(receive(&monitor), Ok(Some(Question::End(ends))) if ends == all[..ENDS_MAX]));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let (monitor, server) = pair().unwrap();
        for words in [&[7, 0, 0][..], &[7, 1, 1], &[7, 0, ERRORS], &[7, 0, u32::MAX], &[7], &[7, 1, 0, 0]] {
            let packet: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            rustix::net::send(&monitor, &packet, SendFlags::empty()).unwrap();
            let kind = receive_answer(&server, false).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidData, "{words:?}");
        }
    }

    /// A monitor that is stopped: whoever asks waits for a moment, and then finds no room.
    #[test]
    fn nobody_waits_for_ever() {
        let (monitor, server) = pair().unwrap();
        assert_eq!(receive_answer(&server, false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(receive_answer(&server, true).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let full = (1..100_000).find_map(|n| ask(&server, n, file().as_fd()).err()).unwrap();
        // Descriptors under way are limited as well: ETOOMANYREFS of unix(7).
        assert!([Errno::AGAIN, Errno::TOOMANYREFS].contains(&Errno::from_io_error(&full).unwrap()), "{full}");
        let sent = Answer { number: 7, result: Ok(1) };
        let full = (0..1_000_000).find_map(|_| answer(&monitor, sent).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    /// A hostile server: what is no question is an error, and the descriptors that came with it are closed.
    #[test]
    fn what_is_no_question_is_an_error() {
        let (monitor, server) = pair().unwrap();
        let kind = |received: io::Result<Option<Question>>| received.unwrap_err().kind();
        for packet in [&b"x"[..], b"12345", &[1, 0, 0, 0], &[0; QUESTION_MAX + 1]] {
            rustix::net::send(&server, packet, SendFlags::empty()).unwrap();
            assert_eq!(kind(receive(&monitor)), io::ErrorKind::InvalidData, "{packet:?}");
        }
        let (mut far, near) = std::os::unix::net::UnixStream::pair().unwrap();
        ask(&server, 0, near.as_fd()).unwrap();
        drop(near);
        assert_eq!(kind(receive(&monitor)), io::ErrorKind::InvalidData);
        assert_eq!(std::io::Read::read(&mut far, &mut [0]).unwrap(), 0, "it is kept");
    }
}
