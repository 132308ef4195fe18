//! Processors that stay awake while requests come one after another.
//!
//! A round trip is two wake-ups, and between two requests of one client each of two processors is idle in turn. In a
//! virtual machine an idle processor is taken away by the hypervisor at once, and to get it back takes longer than all
//! else. So while requests flow, the kernel is asked to let idle processors poll instead
//! (Documentation/power/pm_qos_interface.rst: `/dev/cpu_dma_latency`).
//!
//! Invariants:
//! - The request to the kernel lives in a descriptor that the server alone has: it ends with the server, however that
//!   ends.
//! - Nothing is asked for a lone request, nor for longer than [`QUIET`] after the last of many.
//! - The time of polling is bounded by the number of requests ([`Budget`]): a container that sends a few at the right
//!   moments does not keep the machine awake.
//!
//! Hard point: what is asked holds for all processors of the machine. On hardware, where the kernel's own governor
//! sees short idle times and stays in light sleep, there is little to gain and power to lose; so the default asks for
//! nothing there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/cpu_dma_latency";
/// The driver of the idle loop in virtual machines (Documentation/virt/guest-halt-polling.rst).
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
const GUEST: &str = "haltpoll";

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
    /// In virtual machines, where to halt is to leave for the hypervisor (idle driver haltpoll).
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
            Self::Auto if !halts_for_a_hypervisor() => Ok(None),
            Self::Auto | Self::Always => Ok(Some(File::options().write(true).open(DEVICE)?.into())),
        }
    }
}

/// Whether [`IdlePolling::Auto`] asks for anything on this machine.
#[must_use]
pub fn halts_for_a_hypervisor() -> bool {
    std::fs::read_to_string(DRIVER).is_ok_and(|driver| driver.trim_end() == GUEST)
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
    /// Does so as long as the process lives.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn run(mut self) -> io::Result<()> {
        let mut budget = Budget::new();
        let mut before = 0;
        while self.begins.recv().is_ok() {
            budget.pay(self.count(&mut before));
            let mut polls = false;
            loop {
                if budget.is_enough() != polls {
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
        self.device.write_all(&microseconds.to_ne_bytes())
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
        thread::spawn(move || keeper.run());
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
}
