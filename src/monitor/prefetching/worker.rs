//! The process that plays or learns, as the monitor sees it. Nothing here waits but [`Worker::ends_before`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::Instant;

use crate::log::Sink;
use crate::monitor::child::{self, Program};
use crate::monitor::poll;
use crate::protocol::task::{Task, Told};
use crate::protocol::wire::{self, Order, Received};

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// It told this.
    Told(Told),
    /// It told nothing, as somebody here has killed it.
    Killed,
    /// It told nothing, for this reason.
    Silent(String),
}

/// It ends with this.
#[derive(Debug)]
pub(super) struct Worker {
    process: Child,
    end: OwnedFd,
    socket: OwnedFd,
    killed: bool,
}

impl Worker {
    /// Starts one and gives it `task`, which names the `descriptors`; `begins` is told its process id before.
    ///
    /// # Errors
    /// When the program cannot be started, or takes no order.
    pub(super) fn start(
        program: &Program,
        sink: Sink,
        task: Task,
        descriptors: &[BorrowedFd<'_>],
        begins: impl FnOnce(u32),
    ) -> io::Result<Self> {
        let (process, end, socket) = child::spawn(program, sink)?;
        begins(process.id());
        let mut new = Self { process, end, socket, killed: false };
        if let Err(error) = wire::send_order(&new.socket, &Order::Do(Box::new(task)), descriptors) {
            new.kill();
            return Err(error);
        }
        Ok(new)
    }

    /// Readable when it has ended.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// How it ended. None: it runs.
    pub(super) fn ended(&mut self) -> Option<End> {
        let status = match self.process.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(End::Silent(error.to_string())),
        };
        Some(match wire::receive_report(&self.socket) {
            Ok(Received::Message(told)) if status.success() => End::Told(told),
            Ok(_) if self.killed => End::Killed,
            Ok(_) => End::Silent(format!("it has told nothing ({status})")),
            Err(error) => End::Silent(error.to_string()),
        })
    }

    /// Kills it. It may wait for an answer of the view, and does not end before that then.
    pub(super) fn kill(&mut self) {
        self.killed = true;
        let _ = self.process.kill();
    }

    /// Waits for its end until `deadline`; returns whether it has come.
    pub(super) fn ends_before(&mut self, deadline: Instant) -> bool {
        poll::readable(&[self.end()], Some(deadline)).is_ok_and(|ended| ended == [true])
    }

    /// Leaves it to a thread that waits for its end.
    pub(super) fn reap_later(mut self) {
        self.kill();
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            child::reap(self.process);
        }
    }
}
