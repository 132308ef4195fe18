//! The monitor: resolves, holds roots, watches, answers systemd and `reload`, and keeps a server alive.
//!
//! Deciding is the [`supervisor`]'s, which is pure. Here are what it decides about: [`events`] turns descriptors into
//! events, [`actions`] performs what it returns, [`ending`] ends. See docs/design.md.
//!
//! Invariants:
//! - Rights are given up before there is another thread ([`sandbox::Monitor`]), and before anything is opened.
//! - Nothing is mounted before the roots have led to a closure.
//! - The loop's thread waits for its descriptors and for nothing else. What can take long has a thread or a process of
//!   its own: the Nix store ([`store_thread`]), mounting ([`mounting`]), asking the view ([`probe`]), also ahead of its users
//!   ([`prefetching`]), looking at other processes ([`listers`]).
//! - The monitor never looks into its own mount but from a process that may hang: it is the one who would have to
//!   start the server that answers.
//!
//! Hard points:
//! 1. The descriptor of `/dev/fuse` is the mount's life. The service manager's descriptor store keeps it beyond
//!    this process; [`state`] keeps what else a successor has to know.
//! 2. Servers are started by the loop's thread alone: the kernel kills a server when the *thread* that started it ends
//!    (PR_SET_PDEATHSIG(2const)).

mod actions;
mod ahead;
pub mod child;
mod clients;
mod debounce;
mod describe;
mod ending;
mod error;
mod events;
mod history;
mod inherit;
mod listers;
mod memory;
mod missed;
pub mod mount;
mod mounting;
mod opening;
mod poll;
mod prefetching;
mod probe;
pub mod refusing;
mod registrar;
mod runtime;
mod settings;
pub mod state;
mod store_thread;
mod supervisor;
mod systemd;
mod user;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::background::Caller;
use crate::{log, sandbox, startup};
use actions::Performed;
use error::system;
use inherit::Begin;
use supervisor::{Event, Now, Policy, Supervisor};

pub use ending::Ending;
pub use error::MonitorError;
pub use settings::{Awaited, Given, Origin, Profiles, Settings};

/// Serves a view that comes from `origin`, to its end. `caller` is told when it answers.
///
/// # Errors
/// [`MonitorError`]; what was mounted here is unmounted again, what was taken over is left to a successor.
pub fn run(settings: Settings, origin: Origin, caller: Option<Arc<Caller>>) -> Result<Ending, MonitorError> {
    sandbox::Monitor.confine(settings.sandbox)?;
    log::start();
    let signals = signals()?;
    let Begin { mut runtime, inherited } = inherit::begin(settings, signals, origin, caller)?;
    let policy = Policy {
        prune: runtime.settings.prune,
        can_hand_over: systemd::is_there() && runtime.state.is_some(),
    };
    let (mut supervisor, mut actions) = Supervisor::new(policy, inherited, now());
    let mut events = VecDeque::new();
    loop {
        for action in actions {
            match runtime.perform(action, &supervisor) {
                Performed::Done => {}
                Performed::Event(event) => events.push_back(event),
                Performed::Ended(result) => {
                    systemd::finish();
                    return result;
                }
            }
        }
        if events.is_empty() {
            events.extend(runtime.wait(supervisor.next()));
            // They change nothing, so they are no events.
            runtime.answer_questions(&supervisor);
            runtime.ask_ahead_later(&supervisor);
            events.push_back(Event::Time);
        }
        actions = events.pop_front().map(|event| supervisor.handle(now(), event)).unwrap_or_default();
    }
}

fn now() -> Now {
    Now { monotonic: Instant::now(), wall: SystemTime::now() }
}

/// Signals come as data: blocked before any thread is made that might take one otherwise.
fn signals() -> Result<SignalFd, MonitorError> {
    let set: SigSet = startup::TAKEN.into_iter().collect();
    set.thread_block().map_err(system("block signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&set, flags).map_err(system("receive signals"))
}
