//! What a process gets from the one that starts it, set to what this program relies on.
//!
//! Called first in `main`, before anything is opened and before there is another thread:
//!
//! - descriptors from the service manager's store are taken (sd_listen_fds(3)); later their numbers may be those of
//!   something else, if the service manager, or a shell in between, has closed one;
//! - no signal is blocked but those that a monitor takes as data, and only those are ignored that would end or stop a process for what it writes or reads;
//! - soft limits that end a process or refuse it something are raised to the hard ones;
//! - the umask is 022.

use std::env::VarError;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{FileType, Mode, Stat};
use rustix::process::Resource;

use crate::sys;

/// Name of `/dev/fuse` in the service manager's descriptor store.
pub const DEVICE: &str = "fuse";
/// Name of the ledger there.
pub const LEDGER: &str = "ledger";
/// Name of the memory there in which it is counted what was asked of a view.
pub const USAGE: &str = "usage";
/// The device's number as a character device: `Documentation/admin-guide/devices.txt` of Linux.
const DEVICE_NUMBER: (u32, u32) = (10, 229);

/// The first descriptor of the service manager (sd_listen_fds(3)).
const FIRST: RawFd = 3;
/// Descriptors of the service manager at most. A view stores three.
const MOST: u32 = 256;

/// Variables that name descriptors of the process that was started with them, and of no child of it.
const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// Signals that say what a failing call says as well (`EPIPE`, `EFBIG`, `EIO`), or would stop this process for writing
/// its log to a terminal.
const IGNORED: [Signal; 4] = [Signal::SIGPIPE, Signal::SIGXFSZ, Signal::SIGTTIN, Signal::SIGTTOU];

/// Signals that a monitor takes as data (signalfd(2)): blocked before any thread is made, so that no thread takes one
/// otherwise.
pub const TAKEN: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// What the service manager has kept of an earlier process.
#[derive(Debug, Default)]
pub struct Stored {
    /// The device of its view.
    pub device: Option<OwnedFd>,
    /// Ledgers, one of which may be that of its servers.
    pub ledgers: Vec<OwnedFd>,
    /// Memory in which it was counted what was asked of a view, maybe of this one.
    pub usages: Vec<OwnedFd>,
}

/// What an earlier process of this service has left to this one.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Descriptors.
    pub stored: Stored,
    complaints: Vec<String>,
}

impl Inherited {
    /// Logs what was wrong with the descriptors: there is no log yet when they are taken.
    pub fn complain(&self) {
        for complaint in &self.complaints {
            tracing::warn!("{complaint}");
        }
    }
}

/// Resets what this process was started with, and takes what was stored for it.
#[must_use]
pub fn begin() -> Inherited {
    sys::share_memory();
    let inherited = stored();
    sys::remove_variables(&VARIABLES);
    // From the first moment: those that come before the monitor takes them are not lost.
    reset(&TAKEN.into_iter().collect());
    inherited
}

/// Lets the signals do what they usually do that [`begin`] has blocked for a monitor.
pub fn do_not_take_signals() {
    let _ = SigSet::empty().thread_set_mask();
}

/// What a process was started with that a program gets which it executes.
#[derive(Debug, Clone)]
pub struct Original {
    ignored: Vec<i32>,
    mask: SigSet,
}

impl Original {
    /// That of this process, which has changed nothing yet: called first in `main`, in the place of [`begin`].
    #[must_use]
    pub fn keep() -> Self {
        let pipe = Signal::SIGPIPE as i32;
        let mut ignored = sys::ignored_signals();
        ignored.retain(|number| *number != pipe || sys::was_sigpipe_ignored());
        Self { ignored, mask: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()) }
    }

    /// Lets signals come as they did.
    pub fn unblock(&self) {
        let _ = self.mask.thread_set_mask();
    }

    /// Called right before the program is executed.
    pub fn restore(&self) {
        sys::ignore_signals(&self.ignored);
        self.unblock();
    }
}

/// Variables that are for the program that was started, and not for who serves its view.
const OF_SERVICE: [&str; 4] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"];

/// Signals that are sent to all processes of a terminal or of a service, to end those that do its work: who serves a view ends after them.
const OF_USERS: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The same as [`begin`] for a process that stays behind another one ([`crate::background`]): it takes nothing that was stored.
pub fn begin_background() {
    sys::share_memory();
    sys::remove_variables(&VARIABLES);
    sys::remove_variables(&OF_SERVICE);
    let _ = rustix::process::chdir("/");
    reset_ignoring(&TAKEN.into_iter().collect(), &ignored_behind());
    let _ = rustix::thread::set_name(c"nix-store-fs");
}

/// For a process that does something for one that keeps what it was started with, and ends before it.
pub fn begin_helper() {
    reset(&SigSet::empty());
}

/// For a server whose monitor stays behind whoever uses the view: it ends after them, whatever is sent to all of them.
pub fn outlast_users() {
    sys::reset_signals(&IGNORED.into_iter().chain(OF_USERS).collect::<Vec<_>>());
}

/// What is ignored by a process that ends after whoever uses it, unless it takes it as data.
fn ignored_behind() -> Vec<Signal> {
    let of_users = OF_USERS.into_iter().filter(|signal| !TAKEN.contains(signal));
    IGNORED.into_iter().chain(of_users).collect()
}

fn reset(mask: &SigSet) {
    reset_ignoring(mask, &IGNORED);
}

fn reset_ignoring(mask: &SigSet, ignored: &[Signal]) {
    sys::reset_signals(ignored);
    let _ = mask.thread_set_mask();
    for resource in [Resource::Fsize, Resource::Nofile, Resource::Cpu] {
        let mut limit = rustix::process::getrlimit(resource);
        limit.current = limit.maximum;
        // Never refused.
        let _ = rustix::process::setrlimit(resource, limit);
    }
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
}

/// The same for a server, which inherits nothing but standard input, output and error. It gets a session of its own, without a
/// terminal: neither an interrupt nor a hang-up reaches it, and job control does not stop it.
pub fn begin_server() {
    sys::close_inherited();
    reset(&SigSet::empty());
    make_room();
    // Refused to the leader of a process group, which a server is not unless somebody starts it by hand.
    let _ = rustix::process::setsid();
    // Otherwise it is called by the last component of the path that it was started by, a number.
    let _ = rustix::thread::set_name(c"nix-store-fs");
}

/// Descriptors that there is room for from the beginning.
const ROOM: RawFd = 1024;

/// Makes the table of descriptors as large as a usual view needs it. One that several threads share waits each time that it grows, at 64,
/// 128 and so on, until no processor uses the old one (`expand_fdtable` in Linux `fs/file.c`), and with it whoever opens something.
fn make_room() {
    // Closed at once; refused where the limit is lower.
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), ROOM - 1);
}

fn stored() -> Inherited {
    let mut inherited = Inherited::default();
    let variable = |name| match std::env::var(name) {
        Err(VarError::NotPresent) => None,
        value => Some(value.unwrap_or_default()),
    };
    let [pid, fds, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(variable);
    for (number, name) in passed(std::process::id(), pid.as_deref(), fds.as_deref(), names.as_deref()) {
        match sys::adopt(number) {
            Ok(descriptor) if name == LEDGER => inherited.stored.ledgers.push(descriptor),
            Ok(descriptor) if name == USAGE => inherited.stored.usages.push(descriptor),
            Ok(descriptor) if name != DEVICE => drop(descriptor),
            // Only one view is served, so only the last one stored can be meant; others are closed.
            Ok(descriptor) if is_device(&descriptor) => inherited.stored.device = Some(descriptor),
            Ok(_) => inherited.complaints.push(format!(
                "the service manager passed descriptor {number} as '{DEVICE}', which is not the FUSE device; closed it"
            )),
            Err(error) => inherited
                .complaints
                .push(format!("the service manager passed descriptor {number}, which is not open: {error}")),
        }
    }
    inherited
}

/// Numbers and names of the descriptors that were passed to the process `own`, by the variables' values.
#[must_use]
pub fn passed<'a>(
    own: u32,
    pid: Option<&str>,
    fds: Option<&str>,
    names: Option<&'a str>,
) -> Vec<(RawFd, &'a str)> {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok());
    if number(pid) != Some(own) {
        return Vec::new();
    }
    let count = number(fds).unwrap_or(0).min(MOST) as usize;
    // Without a name: not to be kept.
    let names = names.unwrap_or_default().split(':').chain(std::iter::repeat(""));
    (FIRST..).zip(names).take(count).collect()
}

fn is_device(descriptor: &OwnedFd) -> bool {
    rustix::fs::fstat(descriptor).is_ok_and(|stat| is_fuse_device(&stat))
}

/// Whether a file is the FUSE device.
#[must_use]
pub fn is_fuse_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == DEVICE_NUMBER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_taken_by_the_process_that_they_were_passed_to() {
        let all = |pid, fds, names| passed(7, pid, fds, names);
        assert_eq!(all(Some("7"), Some("2"), Some("fuse:other")), [(3, "fuse"), (4, "other")]);
        assert_eq!(all(Some("7"), Some("3"), Some("fuse")), [(3, "fuse"), (4, ""), (5, "")]);
        assert_eq!(all(Some("7"), Some("1"), None), [(3, "")]);
        assert_eq!(all(Some("7"), Some("4294967295"), Some("fuse")).len(), MOST as usize);
        for (pid, fds) in
            [(Some("8"), Some("1")), (None, Some("1")), (Some(""), Some("1")), (Some("7"), None)]
        {
            assert!(all(pid, fds, Some("fuse")).is_empty(), "{pid:?} {fds:?}");
        }
        assert!(all(Some("7"), Some("-1"), Some("fuse")).is_empty());
    }

    #[test]
    fn only_the_fuse_device_is_the_device() {
        let open = |path| std::fs::File::open(path).map(OwnedFd::from);
        assert!(!is_device(&open("/dev/null").unwrap()));
        assert!(!is_device(&open("/").unwrap()));
        if let Ok(device) = open("/dev/fuse") {
            assert!(is_device(&device));
        }
    }
}
