//! The process that waits for the command where it does not become it.
//!
//! Whoever started it sees the same as if it had: what it is told by a signal the command is told, it stops when the command
//! stops, and it ends as the command ends.
//!
//! Hard point: what the kernel sends for a terminal, it sends to the whole process group, so to the command as well. Only what some
//! process has sent is passed on (`si_code` of sigaction(2)).

use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use super::RunError;

/// Signals that a terminal sends to a process group.
const OF_TERMINAL: [Signal; 5] =
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGHUP, Signal::SIGWINCH];

/// What to do with a signal that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// Look at the children.
    Look,
    /// The command has it as well.
    Nothing,
    /// The command gets it.
    Pass,
}

/// Whether the command is in a process namespace, of whose first process this one is the parent, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Processes {
    /// The command is a child.
    Shared,
    /// The child is the first process of a namespace: it cannot stop, so this one stops when it is told to.
    Apart,
}

/// How the command has ended, as shells say it: its code, or 128 and the number of the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended(pub u8);

/// Blocks all signals, so that each is data from here on. Called before the command is started.
///
/// # Errors
/// Those of sigprocmask(2) and signalfd(2).
pub(super) fn signals() -> Result<SignalFd, RunError> {
    let all = SigSet::all();
    let taken = all.thread_block().and_then(|()| SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC));
    taken.map_err(|error| RunError::Start(error.into()))
}

/// Waits for the end of `child`, and for that of whatever else is given to this process to reap.
///
/// # Errors
/// [`RunError::Start`], if it cannot be waited for.
pub(super) fn wait(child: Pid, signals: &SignalFd, processes: Processes) -> Result<Ended, RunError> {
    let fail = |error: nix::Error| RunError::Start(error.into());
    let to = nix::unistd::Pid::from_raw(child.as_raw_pid());
    loop {
        let Some(info) = signals.read_signal().map_err(fail)? else { continue };
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        let Ok(signal) = Signal::try_from(number) else {
            // A real-time signal, of which this library has no name.
            pass_number(child, number);
            continue;
        };
        match reaction(signal, info.ssi_code) {
            Reaction::Look => {
                if let Some(ended) = look(child)? {
                    return Ok(ended);
                }
            }
            Reaction::Nothing => {}
            Reaction::Pass => {
                // It may have ended just now.
                let _ = kill(to, signal);
            }
        }
        if processes == Processes::Apart && signal == Signal::SIGTSTP {
            let _ = raise(Signal::SIGSTOP);
        }
    }
}

fn reaction(signal: Signal, code: i32) -> Reaction {
    match signal {
        Signal::SIGCHLD => Reaction::Look,
        _ if OF_TERMINAL.contains(&signal) && code == libc::SI_KERNEL => Reaction::Nothing,
        _ => Reaction::Pass,
    }
}

fn pass_number(child: Pid, number: i32) {
    let _ = crate::sys::send_signal(child.as_raw_pid(), number);
}

/// What has become of children; the end of `child` if that is among it.
fn look(child: Pid) -> Result<Option<Ended>, RunError> {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(Some(changed)) => changed,
            Ok(None) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(RunError::Start(error.into())),
        };
        if pid != child {
            continue;
        }
        if status.stopped() {
            // Whoever started this process has stopped it with the command, as far as they know.
            let _ = raise(Signal::SIGSTOP);
        }
        let code = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        let killed = status.terminating_signal().map(|signal| code(signal).saturating_add(128));
        if let Some(ended) = status.exit_status().map(code).or(killed) {
            return Ok(Some(Ended(ended)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_sends_is_not_sent_twice() {
        let user = libc::SI_USER;
        for (signal, code, expected) in [
            (Signal::SIGINT, libc::SI_KERNEL, Reaction::Nothing),
            (Signal::SIGINT, user, Reaction::Pass),
            (Signal::SIGTSTP, libc::SI_KERNEL, Reaction::Nothing),
            (Signal::SIGWINCH, libc::SI_KERNEL, Reaction::Nothing),
            (Signal::SIGTERM, user, Reaction::Pass),
            (Signal::SIGTERM, libc::SI_KERNEL, Reaction::Pass),
            (Signal::SIGCONT, user, Reaction::Pass),
            (Signal::SIGCHLD, 1, Reaction::Look),
        ] {
            assert_eq!(reaction(signal, code), expected, "{signal} {code}");
        }
    }
}
