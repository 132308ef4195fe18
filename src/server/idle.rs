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
use std::time::Duration;

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
        while self.begins.recv().is_ok() {
            self.ask_for(AT_ONCE)?;
            let mut before = self.flow.seen.load(Ordering::Relaxed);
            loop {
                thread::sleep(QUIET);
                let seen = self.flow.seen.load(Ordering::Relaxed);
                if seen.wrapping_sub(before) < MANY {
                    break;
                }
                before = seen;
            }
            self.ask_for(NO_WISH)?;
            self.flow.flows.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn ask_for(&mut self, microseconds: i32) -> io::Result<()> {
        self.device.write_all(&microseconds.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

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
            (0..MANY).for_each(|_| flow.note());
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

    /// What nobody wants is not even opened: it would take rights that a user need not have.
    #[test]
    fn nothing_is_opened_that_is_not_wanted() {
        assert!(IdlePolling::Never.open().unwrap().is_none());
    }
}
