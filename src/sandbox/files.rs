//! Files and what else Landlock knows of: landlock(7).

use std::io;
use std::os::fd::AsFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Server;

/// The newest rules that this program knows. Of older kernels it takes what they have.
const KNOWN: ABI = ABI::V6;

/// Whether this kernel lets a process give up opening files.
#[must_use]
pub fn confines_files() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .is_ok_and(|rules| rules.create().is_ok())
}

/// Lets this thread open nothing but what the server works with, connect to nothing, and signal nobody.
pub(super) fn confine(server: Server<'_>) -> io::Result<()> {
    let refused = |error: RulesetError| io::Error::other(error);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Files, and not their directory, which would let it make others without end: without a name (O_TMPFILE of open(2)) that takes
    // no more than the right to write.
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .map_err(refused)?;
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
    match rules.restrict_self().map_err(refused)?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(rustix::io::Errno::OPNOTSUPP.into()),
    }
}

/// Directories by which tests stop a server, in builds for tests.
fn of_tests() -> Vec<std::path::PathBuf> {
    let all = cfg!(debug_assertions).then(std::env::vars).into_iter().flatten();
    let paths = all.filter(|(name, _)| name.starts_with("NSF_")).filter_map(|(_, value)| {
        let path = value.split_once(':').map_or(value.as_str(), |(_, path)| path).to_owned();
        path.starts_with('/').then(|| std::path::PathBuf::from(path))
    });
    paths
        .filter_map(|path| if path.is_dir() { Some(path) } else { path.parent().map(ToOwned::to_owned) })
        .collect()
}
