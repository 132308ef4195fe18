//! Names that the view has not, told to the monitor, which may look at processes and at the host's log.
//!
//! Invariant: a request does the same for every name outside the closure, and waits for nothing.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::protocol::missed::{self, Question};
use crate::values::StorePath;

/// Where requests leave the names that they did not find.
#[derive(Debug)]
pub struct Missed {
    monitor: OwnedFd,
    dropped: AtomicU32,
}

impl Missed {
    /// Tells `monitor`.
    #[must_use]
    pub fn new(monitor: OwnedFd) -> Self {
        Self { monitor, dropped: AtomicU32::new(0) }
    }

    /// `thread` asked for `name` in the root, and there is no such name. What cannot be told at once is counted. Before it is told, if
    /// the name is that of a store path, `count` is called: whoever compares the count with what was told knows what is under way.
    pub fn note(&self, name: &[u8], thread: u32, count: impl FnOnce()) {
        let Some(path) = str::from_utf8(name).ok().and_then(|name| StorePath::new(name).ok()) else { return };
        count();
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if missed::send(&self.monitor, &Question { path, thread, dropped }).is_err() {
            self.dropped.fetch_add(dropped.saturating_add(1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::wire::pair;

    #[test]
    fn what_is_no_store_path_is_no_question_and_what_finds_no_room_is_counted() {
        const NAME: &str = "00000000000000000000000000000000-name";
        let (monitor, server) = pair().unwrap();
        let told = Missed::new(server);
        for name in [&b".links"[..], b"result", b"\xff", b"00000000000000000000000000000000"] {
            told.note(name, 1, || panic!("it is counted"));
        }
        let mut sent = 0;
        while told.dropped.load(Ordering::Relaxed) < 5 {
            told.note(NAME.as_bytes(), sent, || ());
            sent += 1;
        }
        let next = || missed::receive(&monitor).unwrap().unwrap();
        for number in 0..sent - 5 {
            let question = next();
            assert_eq!((question.thread, question.dropped), (number, 0));
        }
        told.note(NAME.as_bytes(), 9, || ());
        assert_eq!(next().dropped, 5);
        drop(monitor);
        told.note(NAME.as_bytes(), 1, || ());
    }
}
