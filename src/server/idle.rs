//! Processors that stay awake while requests come one after another.
//!
//! A round trip is two wake-ups, and between two requests of one client each of two processors is idle in turn. In a
//! virtual machine an idle processor is taken away by the hypervisor at once, and to get it back takes longer than all
//! else. So while requests flow, the kernel is asked to let idle processors poll instead
//! (Documentation/power/pm_qos_interface.rst: `/dev/cpu_dma_latency`), if that saves time on this machine ([`trial`]).
//!
//! Invariants:
//! - The request to the kernel lives in a descriptor that the server alone has: it ends with the server, however that
//!   ends.
//! - Nothing is asked for a lone request, nor for longer than [`QUIET`] after the last of many.
//! - The time of polling is bounded by the number of requests ([`Budget`]): a container that sends a few at the right
//!   moments does not keep the machine awake.
//! - Nothing that answers, and no start, waits for the trial: the keeper's own thread makes it, after the first request.
//!
//! Hard points:
//! 1. What is asked holds for all processors of the machine. On hardware, where the kernel's own governor sees short
//!    idle times and stays in light sleep, there is little to gain and power to lose; so the default asks for nothing
//!    where the trial finds little to gain.
//! 2. The name of the idle driver does not tell. Under one driver the scheduler may put client and server on one
//!    processor, which never sleeps between them; another driver may halt as well. So two threads do what client and
//!    server do, with and without polling, wherever the scheduler puts them. A timer instead of the second thread is no
//!    substitute: a hypervisor may wake a processor for its timer at no extra cost, but not for an interrupt from another.
//! 3. While all processors are busy, none sleeps, and the trial finds nothing to gain, which is true for that moment. So
//!    it is made again after a flow, at most once in [`AGAIN`].
//! 4. A governor that has been asked to poll may continue to do so by itself for as long as wake-ups come in short
//!    succession (haltpoll). So a pause precedes what is measured without.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::protocol::wire::Carried;

pub mod trial;

pub use trial::Trial;

const DEVICE: &str = "/dev/cpu_dma_latency";

/// Microseconds in which processors have to be awake: only polling is that fast.
const AT_ONCE: i32 = 0;
/// `PM_QOS_CPU_LATENCY_DEFAULT_VALUE` of `linux/pm_qos.h`: no wish.
const NO_WISH: i32 = 2_000_000_000;
/// Requests that make a flow.
const MANY: u64 = 8;
/// A flow in which fewer than [`MANY`] requests come in this time has ended.
const QUIET: Duration = Duration::from_millis(20);

/// Polling time that each request pays for: about what its two wake-ups take where processors are halted
/// (docs/performance.md). One client that waits for each answer sends three times as many requests.
const EACH: Duration = Duration::from_micros(200);
/// Polling time that no request has paid for, in the life of a server.
const ALLOWANCE: Duration = Duration::from_millis(100);
/// Polling time that can be saved up.
const SAVED_MAX: Duration = Duration::from_secs(1);
/// For how long a trial holds.
const AGAIN: Duration = Duration::from_secs(60);

/// Polling time: what requests have paid for and what was used.
#[derive(Debug)]
struct Budget {
    paid: Duration,
    used: Duration,
}

impl Budget {
    const fn new() -> Self {
        Self { paid: ALLOWANCE, used: Duration::ZERO }
    }

    /// So many requests have come.
    fn pay(&mut self, requests: u64) {
        let paid = EACH.saturating_mul(u32::try_from(requests).unwrap_or(u32::MAX));
        self.paid = self.paid.saturating_add(paid).min(self.used.saturating_add(SAVED_MAX));
    }

    /// Processors have polled for so long. It may be more than there was: a sleep may last longer than it should.
    fn spend(&mut self, time: Duration) {
        self.used = self.used.saturating_add(time);
    }

    /// Whether there is enough to poll until requests are counted again.
    fn is_enough(&self) -> bool {
        self.paid.saturating_sub(self.used) >= QUIET
    }
}

/// Whether idle processors poll while requests flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum IdlePolling {
    /// Where a short trial shows that it saves time, as in many virtual machines.
    #[default]
    Auto,
    /// On any machine.
    Always,
    /// On none.
    Never,
}

impl IdlePolling {
    /// The device through which it is asked for, in which nothing has been asked yet; none if it is not to be asked.
    ///
    /// # Errors
    /// Those of open(2): it takes root, and a kernel with `CONFIG_CPU_IDLE`.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Never => Ok(None),
            Self::Auto | Self::Always => Ok(Some(open_device()?.into())),
        }
    }

    /// What the device is called on the way to a server.
    #[must_use]
    pub fn carried(self) -> Carried {
        match self {
            Self::Always => Carried::Idle,
            Self::Auto | Self::Never => Carried::IdleTrial,
        }
    }
}

/// Makes a trial now, as a server does for [`IdlePolling::Auto`].
///
/// # Errors
/// Those of [`IdlePolling::open`] and [`Trial::make`].
pub fn try_here() -> io::Result<Trial> {
    let mut device = open_device()?;
    Trial::make(&mut |wish| ask(&mut device, wish))
}

fn open_device() -> io::Result<File> {
    File::options().write(true).open(DEVICE)
}

fn ask(device: &mut File, microseconds: i32) -> io::Result<()> {
    device.write_all(&microseconds.to_ne_bytes())
}

/// When a [`Keeper`] keeps processors awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In each flow.
    Always,
    /// In each flow, if the last trial showed that it saves time.
    Tried,
}

/// Sees requests come.
#[derive(Debug)]
pub struct Flow {
    seen: AtomicU64,
    flows: AtomicBool,
    begins: Sender<()>,
}

/// Keeps processors awake for a [`Flow`].
#[derive(Debug)]
pub struct Keeper {
    flow: Arc<Flow>,
    begins: Receiver<()>,
    device: File,
}

impl Flow {
    /// A flow that has not begun, and who keeps processors awake for it through `device`.
    #[must_use]
    pub fn new(device: OwnedFd) -> (Arc<Self>, Keeper) {
        let (tell, begins) = channel();
        let flow = Arc::new(Self { seen: AtomicU64::new(0), flows: AtomicBool::new(false), begins: tell });
        (flow.clone(), Keeper { flow, begins, device: device.into() })
    }

    /// A request has come. Makes no system call but for the one that begins a flow.
    pub fn note(&self) {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        if seen % MANY == MANY - 1
            && !self.flows.load(Ordering::Relaxed)
            && !self.flows.swap(true, Ordering::Relaxed)
        {
            // Without a keeper processors sleep as they like.
            let _ = self.begins.send(());
        }
    }
}

impl Keeper {
    /// Does so as long as the process lives. Begins after `begin`, or the end of its sender.
    ///
    /// # Errors
    /// Those of write(2), and of making the thread of a trial.
    pub fn run(self, when: When, begin: &Receiver<()>) -> io::Result<()> {
        let _ = begin.recv();
        match when {
            When::Always => self.keep(AGAIN, |_| Ok(true)),
            When::Tried => self.keep(AGAIN, |ask| {
                let trial = Trial::make(ask)?;
                tracing::debug!(%trial, "whether to keep processors awake while requests flow");
                Ok(trial.pays())
            }),
        }
    }

    /// What `pays` answers holds for `again`.
    fn keep(
        mut self,
        again: Duration,
        mut pays: impl FnMut(&mut dyn FnMut(i32) -> io::Result<()>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let mut saves = pays(&mut |wish| self.ask_for(wish))?;
        let mut tried = Instant::now();
        let mut budget = Budget::new();
        let mut before = 0;
        while self.begins.recv().is_ok() {
            budget.pay(self.count(&mut before));
            let mut polls = false;
            loop {
                if (saves && budget.is_enough()) != polls {
                    polls = !polls;
                    self.ask_for(if polls { AT_ONCE } else { NO_WISH })?;
                }
                let since = Instant::now();
                thread::sleep(QUIET);
                if polls {
                    budget.spend(since.elapsed());
                }
                let requests = self.count(&mut before);
                budget.pay(requests);
                if requests < MANY {
                    break;
                }
            }
            if polls {
                self.ask_for(NO_WISH)?;
            }
            if tried.elapsed() >= again {
                saves = pays(&mut |wish| self.ask_for(wish))?;
                tried = Instant::now();
            }
            self.flow.flows.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How many requests have come since there were `before`.
    fn count(&self, before: &mut u64) -> u64 {
        let seen = self.flow.seen.load(Ordering::Relaxed);
        seen.wrapping_sub(std::mem::replace(before, seen))
    }

    fn ask_for(&mut self, microseconds: i32) -> io::Result<()> {
        ask(&mut self.device, microseconds)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::RecvTimeoutError;

    use super::*;

    /// A keeper at work, and what it asks the kernel for.
    fn keeper() -> (Arc<Flow>, UnixStream) {
        let (device, asked) = UnixStream::pair().unwrap();
        asked.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (flow, keeper) = Flow::new(device.into());
        let (_, begin) = channel();
        thread::spawn(move || keeper.run(When::Always, &begin));
        (flow, asked)
    }

    fn next(asked: &mut UnixStream) -> i32 {
        let mut value = [0; 4];
        asked.read_exact(&mut value).unwrap();
        i32::from_ne_bytes(value)
    }

    #[test]
    fn processors_are_kept_awake_from_the_beginning_of_a_flow_to_its_end() {
        let (flow, mut asked) = keeper();
        for _ in 0..3 {
            // As many as pay for this however late the keeper wakes.
            (0..100 * MANY).for_each(|_| flow.note());
            assert_eq!([next(&mut asked), next(&mut asked)], [AT_ONCE, NO_WISH]);
            // The end has been told to the kernel before it is to whoever sees requests come.
            while flow.flows.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        }
    }

    /// What a trial has found holds for the flows after it, until the next trial.
    #[test]
    fn nothing_is_asked_for_in_a_flow_after_a_trial_that_found_no_gain() {
        let (device, mut asked) = UnixStream::pair().unwrap();
        asked.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (flow, keeper) = Flow::new(device.into());
        let (tell, tried) = channel();
        let mut findings = [false, true, false, true].into_iter();
        let keeper = thread::spawn(move || {
            keeper.keep(Duration::ZERO, |ask| {
                // What a trial asks for comes from the same device.
                ask(1)?;
                tell.send(()).unwrap();
                findings.next().ok_or_else(|| io::ErrorKind::Other.into())
            })
        });
        for polls in [false, true, false, true] {
            tried.recv().unwrap();
            assert_eq!(next(&mut asked), 1, "a trial");
            // A flow that ends before the next trial, which is told: none is left out.
            while flow.flows.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            (0..100 * MANY).for_each(|_| flow.note());
            if polls {
                assert_eq!([next(&mut asked), next(&mut asked)], [AT_ONCE, NO_WISH]);
            }
        }
        tried.recv().unwrap();
        assert_eq!(next(&mut asked), 1, "a trial");
        assert!(keeper.join().unwrap().is_err());
        assert_eq!(asked.read(&mut [0]).unwrap(), 0, "nothing else was asked for");
    }

    #[test]
    fn a_few_requests_are_no_flow() {
        let (flow, mut asked) = keeper();
        (1..MANY).for_each(|_| flow.note());
        asked.set_nonblocking(true).unwrap();
        assert!(!flow.flows.load(Ordering::Relaxed));
        assert_eq!(asked.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// What a keeper does with so many requests in each [`QUIET`]: whether it polls, one after the other, and for how long
    /// altogether. Each lasts longer than it should by so many milliseconds.
    fn polled(slices: &[(u64, u64)]) -> (Vec<bool>, Duration) {
        let mut budget = Budget::new();
        let mut polls = Vec::new();
        for (requests, late) in slices {
            polls.push(budget.is_enough());
            if budget.is_enough() {
                budget.spend(QUIET + Duration::from_millis(*late));
            }
            budget.pay(*requests);
        }
        (polls, budget.used)
    }

    proptest::proptest! {
        /// Whenever requests come, and however late it is noticed.
        #[test]
        fn polling_is_bounded_by_the_number_of_requests(slices in proptest::collection::vec((0u64..300, 0u64..50), 0..2000)) {
            let requests: u64 = slices.iter().map(|(requests, _)| requests).sum();
            let late = Duration::from_millis(50);
            let bound = ALLOWANCE + late + EACH * u32::try_from(requests).unwrap();
            proptest::prop_assert!(polled(&slices).1 <= bound);
        }
    }

    /// As few requests as keep a flow going, for 5 seconds.
    #[test]
    fn a_trickle_does_not_keep_processors_awake() {
        let (_, time) = polled(&[(MANY, 0); 250]);
        assert!(time <= Duration::from_millis(550), "{time:?}");
    }

    /// One client that waits for each answer, for as long as it likes, with a pause now and then.
    #[test]
    fn a_steady_flow_is_polled_for_all_the_time() {
        let (polls, _) = polled(&[(300, 0); 5000]);
        assert!(polls.iter().all(|polls| *polls));
        let pauses: Vec<_> = (0..5000).map(|at| (if at % 7 < 3 { 300 } else { 8 }, 1)).collect();
        assert!(polled(&pauses).0.iter().all(|polls| *polls));
    }

    /// The same with a keeper at work: it stops while the trickle still flows.
    #[test]
    fn a_keeper_stops_in_the_middle_of_a_trickle() {
        let (flow, mut asked) = keeper();
        let (stop, stopped) = channel::<()>();
        let trickle = thread::spawn(move || {
            let mut sent = 0;
            while stopped.recv_timeout(QUIET / 4) == Err(RecvTimeoutError::Timeout) {
                (0..4).for_each(|_| flow.note());
                sent += 4;
                assert!(sent < 8000, "it polls for ever");
            }
        });
        assert_eq!([next(&mut asked), next(&mut asked)], [AT_ONCE, NO_WISH]);
        drop(stop);
        trickle.join().unwrap();
    }

    /// What nobody wants is not even opened: it would take rights that a user need not have.
    #[test]
    fn nothing_is_opened_that_is_not_wanted() {
        assert!(IdlePolling::Never.open().unwrap().is_none());
    }

    /// A server that is told to poll makes no trial.
    #[test]
    fn what_is_to_be_tried_first_is_told_apart() {
        assert_eq!(
            [IdlePolling::Always, IdlePolling::Auto].map(IdlePolling::carried),
            [Carried::Idle, Carried::IdleTrial]
        );
    }
}
