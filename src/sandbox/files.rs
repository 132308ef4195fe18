//! Files and what else Landlock knows of: landlock(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Server;

/// The newest rules that this program knows. Of older kernels it takes what they have.
const KNOWN: ABI = ABI::V6;

fn refused(error: RulesetError) -> io::Error {
    io::Error::other(error)
}

/// Whether this kernel lets a process give up opening files.
#[must_use]
pub fn confines_files() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .is_ok_and(|rules| rules.create().is_ok())
}

/// Rules that allow no file, no connection and no signal.
fn nothing_allowed() -> io::Result<RulesetCreated> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .map_err(refused)
}

/// Leaves this thread what `rules` allow.
fn enforce(rules: RulesetCreated) -> io::Result<()> {
    match rules.restrict_self().map_err(refused)?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(Errno::OPNOTSUPP.into()),
    }
}

/// Lets this thread open nothing but what the server works with, connect to nothing, and signal nobody.
pub(super) fn confine(server: Server<'_>) -> io::Result<()> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Files, and not their directory, which would let it make others without end: without a name (O_TMPFILE of open(2)) that takes
    // no more than the right to write.
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules = nothing_allowed()?;
    let mut allow = |below: &dyn AsFd, access: BitFlags<AccessFs>| -> io::Result<()> {
        (&mut rules).add_rule(PathBeneath::new(below.as_fd(), access)).map(drop).map_err(refused)
    };
    allow(&server.store, read)?;
    for file in server.journal {
        allow(file, write)?;
    }
    if !crate::sys::closes_ranges() {
        // What is open has to be looked up there: names of processes and numbers of descriptors.
        allow(&std::fs::File::open("/proc")?, AccessFs::ReadDir.into())?;
    }
    for dir in of_tests() {
        allow(&std::fs::File::open(dir)?, AccessFs::from_all(KNOWN))?;
    }
    enforce(rules)
}

/// Lets this thread open nothing, but files and directories below these to read.
pub(super) fn confine_to_reading_below(
    read: impl FnOnce(&mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<()> {
    let mut rules = nothing_allowed()?;
    read(&mut |below| {
        let access = AccessFs::ReadFile | AccessFs::ReadDir;
        (&mut rules).add_rule(PathBeneath::new(below, access)).map(drop).map_err(refused)
    })?;
    enforce(rules)
}

/// Lets this thread change nothing but what is below `written`, and links directly or below in `links`; and execute nothing. It
/// may still read whatever it could.
pub(super) fn confine_changes(written: &[PathBuf], links: &[PathBuf]) -> io::Result<()> {
    let change = AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let link = AccessFs::MakeSym | AccessFs::RemoveFile;
    let handled = AccessFs::from_write(KNOWN) | AccessFs::Execute;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)
        .and_then(Ruleset::create)
        .map_err(refused)?;
    let mut allow = |below: &Path, access: BitFlags<AccessFs>| -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(below, flags, Mode::empty()) {
            Ok(dir) => dir,
            // What is not there is not written to.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        (&mut rules).add_rule(PathBeneath::new(dir, access)).map(drop).map_err(refused)
    };
    written.iter().try_for_each(|dir| allow(dir, change))?;
    links.iter().try_for_each(|dir| allow(dir, link))?;
    of_tests().iter().try_for_each(|dir| allow(dir, handled))?;
    rules.restrict_self().map(drop).map_err(refused)
}

/// Lets this thread open nothing but files to read below `read`.
pub(super) fn confine_to_reading(read: &[&str]) -> io::Result<()> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(Ruleset::create)
        .map_err(refused)?;
    for dir in read {
        let dir = rustix::fs::open(*dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        (&mut rules).add_rule(PathBeneath::new(dir, AccessFs::ReadFile)).map_err(refused)?;
    }
    rules.restrict_self().map(drop).map_err(refused)
}

/// Directories by which tests stop a process, in builds for tests.
fn of_tests() -> Vec<PathBuf> {
    let all = cfg!(debug_assertions).then(std::env::vars).into_iter().flatten();
    let paths = all.filter(|(name, _)| name.starts_with("NSF_")).filter_map(|(_, value)| {
        let path = value.split_once(':').map_or(value.as_str(), |(_, path)| path).to_owned();
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths
        .filter_map(|path| if path.is_dir() { Some(path) } else { path.parent().map(ToOwned::to_owned) })
        .collect()
}
