//! What a process, or a thread of it, may still do once it parses what others send: one table for each role.
//!
//! Responsibility: gives up rights, part by part, and says which part the kernel or somebody who has confined this process before
//! does not allow. See docs/design.md, "What a process may do".
//!
//! Invariants:
//! - For a process it is called while there is one thread: capabilities and Landlock belong to a thread, and are inherited by those that
//!   it makes. For a thread it is called by that thread.
//! - What is given up cannot be had again, by no program that is executed either.
//!
//! Hard points:
//! 1. The order. To empty the bounding set takes CAP_SETPCAP; to confine takes no_new_privs, where a process has no
//!    CAP_SYS_ADMIN; the filter of system calls comes last, as it refuses all of these.
//! 2. A call that the table does not list, because a C library began to use it, must not end a server months later. So it does not
//!    exist (`ENOSYS`), and C libraries have another way for older kernels. In builds for tests it ends the process.

mod calls;
mod capabilities;
mod command;
mod files;
mod monitor;
mod monitor_calls;
mod task;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

pub use capabilities::{KEPT, Kept};
pub use command::Command;
pub use files::confines_files;
pub use monitor::{Looker, Monitor, StoreThread};
pub use task::{Learner, Player};

/// Bytes of the longest file that a server writes, where there is room: one of the two of its journal, of 15 million names.
const LONGEST_FILE: u64 = 1 << 30;
/// The same on a file system where that would be more than its share.
const LONGEST_SHARE: u64 = 4;
/// And on one of a few pages, which is nobody's but a test's.
const LONGEST_LEAST: u64 = 1 << 20;
/// Bytes that a server may keep in memory: what ordinary requests fill, for 64 threads.
const LOCKED: u64 = 2 << 20;

/// How much of it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// What cannot give up its rights does not start
    Require,
    /// What cannot be given up is logged
    #[default]
    Best,
    /// Nothing is given up
    None,
}

/// A part of it that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "this system does not let {role} give up its rights: {part}; run it on a kernel that has this and without a filter of system calls that refuses it, or give --sandbox best"
)]
pub struct Missing {
    role: Role,
    part: Part,
    #[source]
    source: io::Error,
}

/// Who gives up its rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Server,
    Player,
    Learner,
    Monitor,
    StoreThread,
    Looker,
    Command,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Server => "the server",
            Self::Player => "the process that asks ahead",
            Self::Learner => "the process that writes the profile of use",
            Self::Monitor => "the monitor",
            Self::StoreThread => "the thread that asks Nix",
            Self::Looker => "a thread that only looks",
            Self::Command => "the command",
        })
    }
}

/// What can be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Capabilities,
    NewPrivileges,
    Files,
    Calls,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Capabilities => "capabilities",
            Self::NewPrivileges => "no_new_privs",
            Self::Files => "access to files (Landlock of Linux 5.13)",
            Self::Calls => "system calls (seccomp)",
        })
    }
}

/// What a server keeps.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// The store: to be read.
    pub store: BorrowedFd<'a>,
    /// The files of the journal: to be written.
    pub journal: &'a [OwnedFd],
}

impl Server<'_> {
    /// Gives up everything else.
    ///
    /// # Errors
    /// [`Missing`], where `wanted` is [`Sandbox::Require`].
    pub fn confine(self, wanted: Sandbox) -> Result<(), Missing> {
        let longest = || longest_file(self.journal.first().map(AsFd::as_fd));
        give_up_all(Role::Server, wanted, longest, &|| files::confine(self), calls::OF_READING_AHEAD)
    }
}

/// Gives up everything but `files`, the calls that a server has, and `calls`; no file may be longer than `longest` bytes.
fn give_up_all(
    role: Role,
    wanted: Sandbox,
    longest: impl FnOnce() -> u64,
    files: &dyn Fn() -> io::Result<()>,
    calls: &[i64],
) -> Result<(), Missing> {
    if wanted == Sandbox::None {
        return Ok(());
    }
    limit(longest());
    // Read once, on older kernels from a file.
    let _ = rustix::param::page_size();
    give_up(
        role,
        wanted,
        &[
            (Part::Capabilities, &capabilities::never_again),
            (Part::NewPrivileges, &no_new_privileges),
            (Part::Files, files),
            (Part::Capabilities, &|| capabilities::keep(CapabilitySet::empty())),
            (Part::Calls, &|| calls::confine(calls)),
        ],
    )
}

/// A part, and how it is given up.
type Step<'a> = (Part, &'a dyn Fn() -> io::Result<()>);

/// Gives up part by part, in this order.
fn give_up(role: Role, wanted: Sandbox, steps: &[Step<'_>]) -> Result<(), Missing> {
    for (part, step) in steps {
        if let Err(source) = step() {
            if wanted == Sandbox::Require {
                return Err(Missing { role, part: *part, source });
            }
            let said = format!("{role} keeps rights that it does not need: {part}");
            // Nobody can change an old kernel at once, and a command over a view is not the place to ask for a new one.
            match Errno::from_io_error(&source) {
                Some(Errno::NOSYS | Errno::OPNOTSUPP) => tracing::info!(error = %source, "{said}"),
                _ => tracing::warn!(error = %source, "{said}"),
            }
        }
    }
    Ok(())
}

fn no_new_privileges() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// How long a file may get. A server that was taken over can fill both files of its journal, and leaves half of the file system to others.
fn longest_file(journal: Option<BorrowedFd<'_>>) -> u64 {
    let size = journal.and_then(|journal| {
        let found = rustix::fs::fstatfs(journal).ok()?;
        u64::try_from(found.f_bsize).ok()?.checked_mul(found.f_blocks)
    });
    // 0: it has no limit of its own.
    let size = size.filter(|size| *size > 0).unwrap_or(u64::MAX);
    (size / LONGEST_SHARE).clamp(LONGEST_LEAST, LONGEST_FILE)
}

/// No right of its own is needed to lower a limit. To raise that of locked memory takes one, where it is too low.
fn limit(longest_file: u64) {
    let lower = |resource, most: u64| {
        let now = rustix::process::getrlimit(resource);
        let limit = |now: Option<u64>| Some(now.map_or(most, |now| now.min(most)));
        let _ = rustix::process::setrlimit(
            resource,
            Rlimit { current: limit(now.current), maximum: limit(now.maximum) },
        );
    };
    lower(Resource::Core, 0);
    lower(Resource::Fsize, longest_file);
    let locked = Rlimit { current: Some(LOCKED), maximum: Some(LOCKED) };
    if let Err(error) = rustix::process::setrlimit(Resource::Memlock, locked) {
        tracing::debug!(%error, "the limit of locked memory stays as it is");
    }
}
