//! What a monitor keeps.
//!
//! Hard points:
//! 1. An ordinary user mounts and unmounts by `fusermount3`, which gets its rights by being executed. So no_new_privs, the bounding
//!    set and the filter of system calls are for root; whoever is not has no capability either.
//! 2. Servers begin without a capability, as nothing that is executed gets one, and give the rest up themselves.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::{LOCKED, Missing, Part, Role, Sandbox, capabilities, files, give_up, monitor_calls};

/// A monitor.
#[derive(Debug, Clone, Copy)]
pub struct Monitor;

impl Monitor {
    /// Gives up what neither mounting nor Nix needs. Called while there is one thread.
    ///
    /// # Errors
    /// [`Missing`], where `wanted` is [`Sandbox::Require`].
    pub fn confine(self, wanted: Sandbox) -> Result<(), Missing> {
        if wanted == Sandbox::None {
            return Ok(());
        }
        let root = rustix::process::geteuid().is_root();
        let for_root = |part: &dyn Fn() -> io::Result<()>| if root { part() } else { Ok(()) };
        let_servers_lock();
        give_up(
            Role::Monitor,
            wanted,
            &[
                (Part::Capabilities, &|| for_root(&capabilities::never_again)),
                (Part::Capabilities, &|| capabilities::keep(capabilities::of_a_monitor())),
                (Part::NewPrivileges, &|| for_root(&|| Ok(rustix::thread::set_no_new_privs(true)?))),
                // It is for its threads: see [`StoreThread`].
                (Part::Files, &|| {
                    if files::confines_files() { Ok(()) } else { Err(Errno::OPNOTSUPP.into()) }
                }),
                (Part::Calls, &|| for_root(&monitor_calls::confine)),
            ],
        )
    }
}

/// The thread that asks Nix, once its store is open: to open one may take mounting.
#[derive(Debug, Clone, Copy)]
pub struct StoreThread<'a> {
    /// Directories in which Nix writes.
    pub written: &'a [PathBuf],
    /// Directories in which it makes and removes links.
    pub links: &'a [PathBuf],
}

impl StoreThread<'_> {
    /// Gives up what only the opening takes, and to change files anywhere else.
    ///
    /// # Errors
    /// [`Missing`], where `wanted` is [`Sandbox::Require`].
    pub fn confine(self, wanted: Sandbox) -> Result<(), Missing> {
        if wanted == Sandbox::None {
            return Ok(());
        }
        let files = || if_known(&|| files::confine_changes(self.written, self.links));
        give_up(
            Role::StoreThread,
            wanted,
            &[
                (Part::Files, &files),
                (Part::Capabilities, &|| capabilities::keep(capabilities::of_a_store_thread())),
            ],
        )
    }
}

/// A thread that changes nothing, and finds out something about what others have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looker {
    /// Whether the store has a name, below a directory that is open.
    Store,
    /// What a process is called.
    Processes,
}

impl Looker {
    /// Gives up everything else.
    ///
    /// # Errors
    /// [`Missing`], where `wanted` is [`Sandbox::Require`].
    pub fn confine(self, wanted: Sandbox) -> Result<(), Missing> {
        if wanted == Sandbox::None {
            return Ok(());
        }
        let (read, kept): (&[&str], _) = match self {
            Self::Store => (&[], capabilities::to_look_into_the_store()),
            Self::Processes => (&["/proc"], capabilities::to_look_at_processes()),
        };
        give_up(
            Role::Looker,
            wanted,
            &[
                (Part::Files, &|| if_known(&|| files::confine_to_reading(read))),
                (Part::Capabilities, &|| capabilities::keep(kept)),
            ],
        )
    }
}

/// That the kernel cannot confine files was said by [`Monitor::confine`].
fn if_known(confine: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    if files::confines_files() { confine() } else { Ok(()) }
}

/// Servers set the limit of what they keep in memory, and have no right to raise it.
fn let_servers_lock() {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    if limit.maximum.is_some_and(|most| most < LOCKED) {
        let raised = Rlimit { current: Some(LOCKED), maximum: Some(LOCKED) };
        if let Err(error) = rustix::process::setrlimit(Resource::Memlock, raised) {
            tracing::debug!(%error, "the limit of locked memory stays as it is");
        }
    }
}
