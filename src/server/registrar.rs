//! Files that the kernel is to read by itself, registered by the monitor: a server has no right to.
//!
//! Invariants:
//! - One question is under way at a time.
//! - A reader waits for a monitor that does not answer once, for [`registration::ANSWER_MAX`]; until it answers again, files are
//!   read through this server.
//! - What was registered for a question that nobody waits for any more is ended.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use crate::protocol::registration::{self, Answer};
use crate::view::Registrar;

/// Registrations by the monitor.
#[derive(Debug)]
pub struct AskingMonitor {
    socket: OwnedFd,
    asking: Mutex<Asking>,
    /// Registrations that the monitor has not been told the end of yet.
    ended: Mutex<Vec<u32>>,
}

#[derive(Debug)]
struct Asking {
    /// The number of the last question.
    last: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Every question has its answer.
    Answered,
    /// The last one has none.
    Owed,
}

impl AskingMonitor {
    /// Asks at the other end of `socket`.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let asking = Asking { last: 0, state: State::Answered };
        Self { socket, asking: Mutex::new(asking), ended: Mutex::default() }
    }

    /// The answer to the question with this number.
    fn answer(&self, number: u32, waits: bool) -> io::Result<Answer> {
        let answer = registration::receive_answer(&self.socket, waits)?.ok_or(io::ErrorKind::BrokenPipe)?;
        if answer.number == number { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn tell_ends(&self) {
        let mut ended = self.ended.lock();
        while !ended.is_empty() {
            // What finds no room is told with the next one. A monitor that is gone needs not know.
            let Ok(told) = registration::end(&self.socket, &ended) else { break };
            ended.drain(..told);
        }
    }
}

impl Registrar for AskingMonitor {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        let mut asking = self.asking.lock();
        if asking.state == State::Owed {
            let late = self.answer(asking.last, false)?;
            asking.state = State::Answered;
            late.result.into_iter().for_each(|number| self.end(number));
        }
        asking.last = asking.last.checked_add(1).unwrap_or(1);
        registration::ask(&self.socket, asking.last, file)?;
        asking.state = State::Owed;
        let answer = self.answer(asking.last, true)?;
        asking.state = State::Answered;
        Ok(answer.result?)
    }

    fn end(&self, number: u32) {
        self.ended.lock().push(number);
        self.tell_ends();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::Errno;

    use super::*;
    use crate::protocol::registration::{Question, answer, pair, receive};

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// Whoever registers, in a process that may.
    fn next(monitor: &OwnedFd) -> u32 {
        match receive(monitor).unwrap().unwrap() {
            Question::Register { number, .. } => number,
            Question::End(ends) => panic!("{ends:?}"),
        }
    }

    #[test]
    fn a_registration_is_given_and_ended() {
        let (monitor, server) = pair().unwrap();
        let all = AskingMonitor::new(server);
        let answers = std::thread::spawn(move || {
            for result in [Ok(5), Err(Errno::LOOP), Ok(6)] {
                answer(&monitor, Answer { number: next(&monitor), result }).unwrap();
            }
            assert!(matches!(receive(&monitor), Ok(Some(Question::End(ends))) if ends == [5]));
        });
        assert_eq!(all.register(file().as_fd()).unwrap(), 5);
        assert_eq!(all.register(file().as_fd()).unwrap_err().raw_os_error(), Some(40));
        assert_eq!(all.register(file().as_fd()).unwrap(), 6);
        all.end(5);
        answers.join().unwrap();
        assert_eq!(all.register(file().as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// Only the first reader waits; what was registered too late is ended, and then files are registered again.
    #[test]
    fn a_monitor_that_is_silent_is_not_asked_until_it_has_answered() {
        let (monitor, server) = pair().unwrap();
        let all = AskingMonitor::new(server);
        for _ in 0..100 {
            assert_eq!(all.register(file().as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        let first = next(&monitor);
        answer(&monitor, Answer { number: first, result: Ok(9) }).unwrap();
        let answers = std::thread::spawn(move || {
            assert!(matches!(receive(&monitor), Ok(Some(Question::End(ends))) if ends == [9]));
            answer(&monitor, Answer { number: next(&monitor), result: Ok(10) }).unwrap();
        });
        assert_eq!(all.register(file().as_fd()).unwrap(), 10);
        answers.join().unwrap();
    }

    /// A monitor that is stopped hears of every end later, however many there are.
    #[test]
    fn ends_that_find_no_room_are_told_later() {
        let (monitor, server) = pair().unwrap();
        let all = AskingMonitor::new(server);
        (1..=5000).for_each(|number| all.end(number));
        assert!(!all.ended.lock().is_empty(), "there was room; the test shows nothing");
        let mut heard = Vec::new();
        while heard.len() < 5000 {
            let Some(Question::End(ends)) = receive(&monitor).unwrap() else { panic!() };
            heard.extend(ends);
            all.tell_ends();
        }
        assert!(heard.into_iter().eq(1..=5000));
    }
}
