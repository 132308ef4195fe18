//! Exit codes, and what each failure exits with.

use std::io;
use std::path::PathBuf;

use crate::cdi::CdiError;
use crate::closure::dump::DumpError;
use crate::closure::resolve::ResolveError;
use crate::closure::saved::AbsentError;
use crate::monitor::MonitorError;
use crate::monitor::mount::MountError;
use crate::monitor::state::StateError;
use crate::protocol::control::{AskError, ReloadError};
use crate::store::StoreError;

use super::cdi::NoFile;
use super::closures::NamesOnly;
use super::config::ConfigError;
use super::diff::OtherStore;
use super::run::PlaceError;
use super::views::{NoAnswer, Unanswered};
use super::why::WhyError;

/// How the program ends. `--help` lists the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Fine.
    Success = 0,
    /// A failure that is none of the others.
    Failure = 1,
    /// The arguments make no sense together.
    Usage = 2,
    /// A system or root path cannot be used.
    Path = 3,
    /// A store path is not valid.
    Invalid = 4,
    /// The store cannot be opened or asked.
    Store = 5,
    /// The mount point or the state directory cannot be used, or the view's name is taken.
    MountPoint = 6,
    /// FUSE cannot be used.
    Fuse = 7,
    /// A reload failed.
    Reload = 8,
    /// What is served cannot be held beyond the process.
    Roots = 9,
    /// What an earlier process left of the view cannot be read.
    Leftovers = 10,
    /// A view that was served has ended, and not because somebody wanted that: whoever uses it has a dead mount.
    Ended = 11,
    /// What was asked about is not there.
    Absent = 12,
    /// A running view does not answer.
    Unanswered = 13,
    /// The mount is left to a successor (`EX_TEMPFAIL` of sysexits(3)).
    HandedOver = 75,
}

/// Whatever ended the program.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments do not go together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The view could not be served.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The roots do not give a closure.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// More has to be known of a closure than a file says.
    #[error(transparent)]
    NamesOnly(#[from] NamesOnly),
    /// The closure has no form in the format asked for.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The mount table could not be read.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The state directory is not this user's own.
    #[error(transparent)]
    State(#[from] StateError),
    /// The reload failed.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// Two closures cannot be compared.
    #[error(transparent)]
    OtherStore(#[from] OtherStore),
    /// A chain to a path could not be shown.
    #[error(transparent)]
    Why(#[from] WhyError),
    /// What is no view was asked about.
    #[error("no view that this user serves is called '{}' or mounted there; 'nix-store-fs status' lists them", .0.display())]
    NoView(PathBuf),
    /// A running view has not told of itself.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// The directory of the views' states could not be read.
    #[error("cannot list the views in '{}'", path.display())]
    Views {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A monitor does not tell what was asked of its view.
    #[error("the process that serves the view does not tell what was asked of it")]
    Report(#[source] AskError),
    /// There is no place for Nix.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be written.
    #[error("cannot write '{}'; give another file, or free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file for container engines is not known.
    #[error(transparent)]
    NoFile(#[from] NoFile),
    /// The file for container engines could not be changed.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// No view can be written for container engines.
    #[error("there is no view to write; 'nix-store-fs status' lists those that are running")]
    NoViews,
    /// Standard output could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// A thread of the program ended by a defect.
    #[error("the program has a defect, please report it: a thread panicked")]
    Panicked,
}

impl Failure {
    /// The code to exit with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::NoFile(_) => Exit::Usage,
            Self::OtherStore(_) => Exit::Path,
            Self::Monitor(error) => monitor(error),
            Self::Resolve(error) => resolve(error),
            Self::NamesOnly(_) => Exit::Path,
            Self::Mount(error) => mount(error),
            Self::State(error) => state(error),
            Self::Reload(_) => Exit::Reload,
            Self::Why(WhyError::NotAMember { .. } | WhyError::NotInStore { .. })
            | Self::NoView(_)
            | Self::NoViews
            | Self::Unanswered(Unanswered { why: NoAnswer::Absent | NoAnswer::Ended(_), .. }) => Exit::Absent,
            Self::Unanswered(_) | Self::Report(_) => Exit::Unanswered,
            Self::Store(_) => Exit::Store,
            Self::Views { .. }
            | Self::Write { .. }
            | Self::Place(_)
            | Self::Cdi(_)
            | Self::Why(WhyError::Search(_))
            | Self::Dump(_)
            | Self::Output(_)
            | Self::Panicked => Exit::Failure,
        }
    }
}

fn monitor(error: &MonitorError) -> Exit {
    match error {
        MonitorError::Resolve(error) => resolve(error),
        MonitorError::Mount(error) => mount(error),
        MonitorError::Handshake(_) => Exit::Fuse,
        MonitorError::State(error) => state(error),
        MonitorError::Store { .. } | MonitorError::NotHidden(_) => Exit::Store,
        MonitorError::Leftovers(_) => Exit::Leftovers,
        MonitorError::Unsupported(_) | MonitorError::Sandbox(_) => Exit::Fuse,
        MonitorError::Damaged(_) | MonitorError::Lost(_) | MonitorError::Aborted | MonitorError::Unwanted => {
            Exit::Ended
        }
        MonitorError::Program { .. } | MonitorError::Server(_) | MonitorError::System { .. } => Exit::Failure,
    }
}

fn state(error: &StateError) -> Exit {
    match error {
        StateError::Taken { .. } | StateError::NotOwn { .. } => Exit::MountPoint,
        StateError::Version { .. } => Exit::Leftovers,
        // Damaged: what is no state of any version.
        StateError::File { source, .. }
            if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            Exit::Leftovers
        }
        StateError::Directory { .. } | StateError::File { .. } => Exit::Failure,
    }
}

fn resolve(error: &ResolveError) -> Exit {
    match error.cause() {
        ResolveError::Profile(_)
        | ResolveError::File { .. }
        | ResolveError::Line { .. }
        | ResolveError::Saved(_)
        | ResolveError::OtherStore { .. } => Exit::Path,
        ResolveError::Store(StoreError::Invalid { .. })
        | ResolveError::Absent(AbsentError::Absent { .. }) => Exit::Invalid,
        ResolveError::Store(_)
        | ResolveError::NotAClosure(_)
        | ResolveError::Absent(AbsentError::Examine { .. }) => Exit::Store,
        ResolveError::Roots(_) => Exit::Roots,
    }
}

fn mount(error: &MountError) -> Exit {
    match error {
        MountError::NotADirectory(_)
        | MountError::Dangling(_)
        | MountError::NotEmpty(_)
        | MountError::Mounted { .. }
        | MountError::Covered { .. }
        | MountError::Served(_)
        | MountError::ServerLock { .. }
        | MountError::Point { .. } => Exit::MountPoint,
        MountError::Attach(_) | MountError::NoFusermount | MountError::Fusermount(_) => Exit::Fuse,
        MountError::Table(_) | MountError::ReadAhead { .. } => Exit::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_help() {
        use clap::CommandFactory;
        let help = super::super::args::Args::command().render_help().to_string();
        for exit in [
            Exit::Success,
            Exit::Failure,
            Exit::Usage,
            Exit::Path,
            Exit::Invalid,
            Exit::Store,
            Exit::MountPoint,
            Exit::Fuse,
            Exit::Reload,
            Exit::Roots,
            Exit::Leftovers,
            Exit::Ended,
            Exit::Absent,
            Exit::Unanswered,
            Exit::HandedOver,
        ] {
            let code = exit as u8;
            assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{code:<4}"))), "{code}");
        }
    }
}
