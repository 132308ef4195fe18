//! What can go wrong between us and a Nix store: one variant per failing action, each naming the next step.
//!
//! A `cause` is the text of Nix's exception, on one line and without colour codes; a C++ exception has no
//! further source.

use std::io;
use std::path::PathBuf;

use crate::values::{InvalidStorePath, StorePath};

/// Why the Nix store could not be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address has none of the forms that Nix knows.
    #[error(
        "'{uri}' is not the address of a Nix store: give auto, local, daemon, unix://SOCKET, local?root=DIR or a directory"
    )]
    UnknownUri {
        /// The address as given.
        uri: String,
    },
    /// The address has a known form, but not a correct one.
    #[error("'{uri}' is not a correct store address: {why}")]
    BadUri {
        /// The address as given.
        uri: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store exists for Nix, but has no files on this machine that could be served.
    #[error("the store '{uri}' cannot be served: {why}; copy what is needed to a local store first")]
    Unsupported {
        /// The address as given.
        uri: String,
        /// What is missing.
        why: String,
    },
    /// The store that Nix is configured to use cannot be opened.
    #[error(
        "cannot open the store that NIX_REMOTE or the setting 'store' in nix.conf names; correct it or pass --store"
    )]
    Configured(#[source] Box<StoreError>),
    /// No store lies where the address points. Nix would create one there.
    #[error(
        "there is no Nix store at '{uri}': {} does not exist; is Nix installed there, and are root=, state=, real= and store= right?",
        .missing.display()
    )]
    NoSuchStore {
        /// The address as given.
        uri: String,
        /// What every store has and this one has not.
        missing: PathBuf,
    },
    /// Part of the store's place cannot even be looked at.
    #[error("cannot examine {}, part of the store '{uri}': check its permissions", .path.display())]
    Examine {
        /// The address as given.
        uri: String,
        /// What was to be examined.
        path: PathBuf,
        /// Why it could not.
        #[source]
        source: io::Error,
    },
    /// The Nix daemon does not answer.
    #[error("the Nix daemon of the store '{uri}' does not answer: {cause}; is nix-daemon.socket running?")]
    Daemon {
        /// The address as given.
        uri: String,
        /// Nix's reason.
        cause: String,
    },
    /// Nix refuses to open the store.
    #[error(
        "cannot open the Nix store '{uri}': {cause}; if permission is missing, run as root or use --store daemon"
    )]
    Open {
        /// The address as given.
        uri: String,
        /// Nix's reason.
        cause: String,
    },
    /// Nix wants to write to the store, and its mount is read-only.
    #[error(
        "cannot open the Nix store '{uri}': {cause}; {} is on a read-only mount: use --store '{address}', and enable Nix's \
         experimental feature 'read-only-local-store' in nix.conf or NIX_CONFIG",
        .place.display()
    )]
    ReadOnly {
        /// The address as given.
        uri: String,
        /// Nix's reason.
        cause: String,
        /// The part of the store that cannot be written to.
        place: PathBuf,
        /// The address with which Nix does not write.
        address: String,
    },
    /// Opening the store would make its read-only mount writable for the whole machine.
    #[error(
        "not opening the Nix store '{uri}': {} is on a read-only mount, which Nix would make writable for \
         everybody, as this process may not have a mount namespace of its own; use --store daemon, or grant \
         CAP_SYS_ADMIN",
        .real.display()
    )]
    ReadOnlyMount {
        /// The address as given.
        uri: String,
        /// The physical store directory.
        real: PathBuf,
        /// Why there is no mount namespace.
        #[source]
        source: io::Error,
    },
    /// The C++ interface changes with every minor release of Nix, often without the linker's notice.
    #[error(
        "this program was built with Nix {built} and has been started with the library of Nix {loaded}: build it again"
    )]
    Version {
        /// Version at build time.
        built: &'static str,
        /// Version loaded now.
        loaded: String,
    },
    /// Nix's store library does not start.
    #[error("Nix's store library does not start: {cause}; check nix.conf and NIX_CONFIG")]
    Initialise {
        /// Nix's reason.
        cause: String,
    },
    /// The store does not hold the path, or not completely.
    #[error(
        "store path '{path}' is not valid: the database of the Nix store '{store}' does not know it; build or copy it into \
         that store first"
    )]
    Invalid {
        /// The store's address.
        store: String,
        /// The path.
        path: StorePath,
    },
    /// Nix fails to answer a question.
    #[error("cannot {operation} of '{path}': {cause}; check the store with `nix-store --verify`")]
    Query {
        /// What was asked, as in "cannot ask for the closure of".
        operation: &'static str,
        /// The path that was asked about; the first of several.
        path: StorePath,
        /// Nix's reason.
        cause: String,
    },
    /// Nix's database names a path that no store can hold.
    #[error("Nix's database is damaged; check the store with `nix-store --verify`")]
    Damaged(#[from] InvalidStorePath),
    /// A defect of the program: an answer has a reference to a path that is not in it.
    #[error("internal error: the store's answer lacks a reference of '{path}'; please report this bug")]
    Incomplete {
        /// Whose reference it is.
        path: StorePath,
    },
    /// A garbage collector root that lasts as long as this process.
    #[error(
        "cannot protect '{path}' from garbage collection while in use: {cause}; is the store's state directory writable?"
    )]
    TempRoot {
        /// The path.
        path: StorePath,
        /// Nix's reason.
        cause: String,
    },
    /// A garbage collector root that lasts as long as a link.
    #[error("cannot protect '{path}' from garbage collection with the link {}: {cause}; choose another directory for it", .link.display())]
    IndirectRoot {
        /// The path.
        path: StorePath,
        /// The link that was to be made.
        link: PathBuf,
        /// Nix's reason.
        cause: String,
    },
}

impl StoreError {
    /// Whether the same question may be answered later in this process: a store that is not there yet, a daemon that
    /// does not run, a path that is registered later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::UnknownUri { .. }
            | Self::BadUri { .. }
            | Self::Unsupported { .. }
            | Self::Version { .. }
            // Nix's library is started once in a process.
            | Self::Initialise { .. } => false,
            Self::Configured(error) => error.may_pass(),
            Self::NoSuchStore { .. }
            | Self::Examine { .. }
            | Self::Daemon { .. }
            | Self::Open { .. }
            | Self::ReadOnly { .. }
            | Self::ReadOnlyMount { .. }
            | Self::Invalid { .. }
            | Self::Query { .. }
            | Self::Damaged(_)
            | Self::Incomplete { .. }
            | Self::TempRoot { .. }
            | Self::IndirectRoot { .. } => true,
        }
    }
}
