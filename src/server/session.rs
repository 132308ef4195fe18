//! The threads that answer: each takes a request into its slot of the ledger, has it answered, and marks it as answered.
//!
//! Invariants:
//! - All threads read the one descriptor of the device. A clone that is closed fails what was read through it.
//! - A thread begins with what an earlier server has left in its slots.
//! - What an earlier server has taken is known from one source only. With the ledger of all servers of the mount the kernel is not
//!   asked (FUSE_NOTIFY_RESEND): it would take back what living threads are answering, and have it answered twice.
//! - A panic while a request is answered ends that request, which gets `EIO` unless it has its answer already
//!   ([`panics::contain`]). Any other panic ends the process: the request is in its slot, and the next server answers it.
//!
//! Hard point: what a request that panics leaves behind. Its locks are released. A change of the trie is whole, or the process ends
//! ([`panics::changing`]). What else is behind a lock is right after each step: lists of what is kept open or listed, which lack
//! an entry at the worst; hints, which are checked before they are used; and how files are read, one entry a node. What
//! was counted stays counted: a look-up of which the kernel does not know keeps its node, an open keeps its registration, and a
//! promise to drop pages is kept by the next server. The buffers of a thread begin empty or are overwritten.

use std::io;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;

use super::fuse::StoreFs;
use super::stops::{self, Stop};
use crate::fuse::{Device, Ledger, Operation, Request, Slot};
use crate::panics;

/// Requests whose copy may fail one after another, where memory is short, before a thread gives up.
const FAILED_MAX: u32 = 100;

/// A session over a device that is mounted.
#[derive(Debug)]
pub(super) struct Session {
    device: Arc<Device>,
    fs: Arc<StoreFs>,
    ledger: Ledger,
}

/// What is known of the requests that earlier servers of this mount had taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Earlier {
    /// There was no server.
    Nobody,
    /// All of them are in the ledger. The last server may have `crashed` at one.
    Known {
        /// Not killed by somebody.
        crashed: bool,
    },
    /// Their ledger is lost. What a server took that died while it found out about them is in this one, and nothing else.
    Unknown {
        /// As above.
        crashed: bool,
    },
}

/// Whether a thread continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Request,
    /// The connection has ended.
    End,
}

impl Session {
    /// Answers with `fs` what comes from `device`, by way of the slots of `ledger`.
    pub(super) fn new(device: Arc<Device>, fs: StoreFs, ledger: Ledger) -> Self {
        Self { device, fs: Arc::new(fs), ledger }
    }

    /// Sees to it that nobody waits for what earlier servers had taken, of which nothing is known. Before any other thread reads.
    ///
    /// Where the kernel cannot give it back, ids decide: requests leave the queue in the order of their ids (one counter, under one
    /// lock: `fuse_send_one`, `flush_bg_queue` before 6.9), so whatever is below the first one that is read now was taken before, and
    /// is answered or lost. Those of FORGET are given at the read, and those of INTERRUPT are another request's: they do not count.
    ///
    /// The monitor sees to it that a request comes. `first`: the one that was read first by a server that was killed here.
    fn recover(&self, slot: &mut Slot, first: Option<u64>) -> io::Result<Next> {
        if stops::resends() && self.device.resend().is_ok() {
            self.ledger.set_whole();
            return Ok(Next::Request);
        }
        if let Some(first) = first {
            self.fail_before(first)?;
            return Ok(Next::Request);
        }
        loop {
            match slot.take(&self.device) {
                Ok(()) => {}
                Err(Errno::NODEV) => return Ok(Next::End),
                Err(error) => return Err(error.into()),
            }
            stops::at(Stop::Taken);
            let Some(request) = Request::parse(slot.request()) else { continue };
            let counts = counts(&request);
            if counts {
                self.fail_before(request.unique)?;
            }
            answer(&self.device, &self.fs, &request);
            slot.set_answered();
            if counts {
                return Ok(Next::Request);
            }
        }
    }

    /// Answers what was taken before `unique` and not answered with an error, the latest first. A view has had any number of
    /// requests, so others are answered meanwhile; a server that takes over before this is done begins again.
    fn fail_before(&self, unique: u64) -> io::Result<()> {
        let Self { device, ledger, .. } = self;
        let (device, ledger) = (device.clone(), ledger.clone());
        let work = move || {
            let ids = (1..unique / 2).rev().map(|half| 2 * half);
            let lost = ids.filter(|unique| device.answer(*unique).lost()).count();
            ledger.set_whole();
            tracing::warn!(
                lost,
                "requests of an earlier server were answered with an error, as nobody knows what they were"
            );
        };
        thread::Builder::new().name("lost".to_owned()).spawn(work).map(drop)
    }

    /// Answers with `threads` threads until the connection ends.
    ///
    /// # Errors
    /// Those of reading the device, and of making threads.
    pub(super) fn run(self, threads: usize, mut slots: Vec<Slot>, earlier: Earlier) -> io::Result<()> {
        let left_over = || slots.iter().filter(|slot| slot.is_left_over());
        if left_over().next().is_some() {
            tracing::debug!(requests = left_over().count(), "answering what an earlier server had taken");
        }
        let first = left_over().filter_map(|slot| Request::parse(slot.request())).filter(counts);
        let first = first.map(|request| request.unique).min();
        let (unknown, crashed) = match earlier {
            Earlier::Nobody => (false, false),
            Earlier::Known { crashed } => (false, crashed),
            Earlier::Unknown { crashed } => (true, crashed),
        };
        if unknown || crashed {
            // One by one, so that the one at which servers crash is known by its being the last that was begun.
            for slot in left_over() {
                answer_again(&self.device, &self.fs, slot, !crashed || slot.begin_after_crash());
            }
        }
        if unknown
            && let Some(slot) = slots.first_mut()
            && self.recover(slot, first)? == Next::End
        {
            return Ok(());
        }
        if !unknown {
            self.ledger.set_whole();
        }
        let others = slots.split_off(threads.clamp(1, slots.len()));
        let mut others: Vec<Vec<Slot>> = deal(others, slots.len());
        let mut running = Vec::new();
        for (number, own) in slots.into_iter().enumerate() {
            let worker = Worker {
                device: self.device.clone(),
                fs: self.fs.clone(),
                own,
                others: others.get_mut(number).map(std::mem::take).unwrap_or_default(),
            };
            let thread = thread::Builder::new().name(format!("fuse-{number}"));
            running.push(thread.spawn(move || worker.work())?);
        }
        let mut answer = Ok(());
        for thread in running {
            // A panic has ended the process.
            if let Ok(Err(error)) = thread.join() {
                answer = Err(error);
            }
        }
        answer
    }
}

/// Whether the id of `request` is one of those that are given in the order in which requests are read.
fn counts(request: &Request<'_>) -> bool {
    request.unique.is_multiple_of(2) && request.operation.has_answer()
}

/// `slots` among so many.
fn deal(slots: Vec<Slot>, among: usize) -> Vec<Vec<Slot>> {
    let mut dealt: Vec<Vec<Slot>> = (0..among).map(|_| Vec::new()).collect();
    for (number, slot) in slots.into_iter().enumerate() {
        if let Some(hand) = number.checked_rem(among).and_then(|hand| dealt.get_mut(hand)) {
            hand.push(slot);
        }
    }
    dealt
}

/// A thread that answers.
struct Worker {
    device: Arc<Device>,
    fs: Arc<StoreFs>,
    /// Where it takes requests into.
    own: Slot,
    /// What it looks through at its beginning.
    others: Vec<Slot>,
}

impl Worker {
    fn work(mut self) -> io::Result<()> {
        if let Err(error) = self.own.keep_in_memory() {
            tracing::debug!(%error, "a request that is taken while memory is short and the server is killed ends with an error");
        }
        for slot in std::iter::once(&self.own).chain(&self.others).filter(|slot| slot.is_left_over()) {
            answer_again(&self.device, &self.fs, slot, true);
        }
        self.others = Vec::new();
        let mut failed = 0;
        loop {
            match self.own.take(&self.device) {
                Ok(()) => {
                    failed = 0;
                    stops::at(Stop::Taken);
                    let next = self.answer(&self.own);
                    self.own.set_answered();
                    stops::at(Stop::Free);
                    if next == Next::End {
                        return Ok(());
                    }
                }
                Err(Errno::NODEV) => return Ok(()),
                // The request could not be copied, and the kernel has answered it with EIO (`fuse_dev_do_read`).
                Err(Errno::FAULT | Errno::NOMEM) if failed < FAILED_MAX => {
                    failed += 1;
                    self.own.set_answered();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn answer(&self, slot: &Slot) -> Next {
        // The kernel gives no request without a header, and reports nothing shorter as read.
        let Some(request) = Request::parse(slot.request()) else { return Next::Request };
        answer(&self.device, &self.fs, &request);
        if matches!(request.operation, Operation::Destroy) { Next::End } else { Next::Request }
    }
}

/// Answers `request`. If that panics, an [`Answer`](crate::fuse::device::Answer) that was not given yet is dropped on the way, which
/// gives the error.
fn answer(device: &Device, fs: &StoreFs, request: &Request<'_>) {
    let answer = device.answer(request.unique);
    let answered = panics::contain(|| {
        fs.handle(request, answer);
        stops::at(Stop::Answered);
    });
    if let Err(panic) = answered {
        fs.panicked(request, &panic);
    }
}

/// Answers what an earlier server took; with an error, unless it is to `begin` again. Which answers were given already the kernel
/// knows.
fn answer_again(device: &Device, fs: &StoreFs, slot: &Slot, begin: bool) {
    let Some(request) = Request::parse(slot.request()) else { return };
    if begin {
        stops::at(Stop::Taken);
        answer(device, fs, &request);
    } else {
        tracing::error!(
            unique = request.unique,
            operation = ?request.operation,
            "every server crashes at this request; answering it with an error. This is a bug, please report it"
        );
        let answer = device.answer(request.unique);
        if request.operation.has_answer() { answer.error(Errno::IO) } else { answer.none() }
    }
    slot.set_answered_again();
}
