//! Why a command is not run.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::closure::inside::InsideError;
use crate::fuse::attach::AttachError;
use crate::log;
use crate::mounts::TableError;
use crate::sandbox::Missing;

/// Why a command is not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no namespace.
    #[error("no namespace for the command: {advice}")]
    Namespace {
        /// What to change.
        advice: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A user namespace was made, and is of no use.
    #[error("no user in the namespace of the command: {advice}")]
    Map {
        /// What to change.
        advice: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The mount table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The view cannot be mounted.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// What is to be bound cannot be opened.
    #[error("'{}' cannot be bound into the namespace of the command; give another path, or make it", from.display())]
    Source {
        /// Where it is outside.
        from: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A place for a mount is missing where it could be made outside.
    #[error("'{}' does not exist, so nothing can be mounted there; make it, or give --tmpfs for a directory above it", .0.display())]
    NoPlace(PathBuf),
    /// Nothing can be mounted there.
    #[error("nothing can be mounted on '{}': not on / nor in /proc; --unshare-pid gives a /proc of its own, and bwrap other root directories", .0.display())]
    Reserved(PathBuf),
    /// Something cannot be mounted.
    #[error("cannot mount '{}' in the namespace of the command; a system that restricts mounts (AppArmor, SELinux, a container) may have to allow it", what.display())]
    Mount {
        /// Where.
        what: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is mounted cannot be kept apart.
    #[error(
        "the root directory is no mount point, as in a directory of chroot(1), so mounts cannot be kept apart; make it one outside with 'mount --bind DIR DIR', or use bwrap or systemd-nspawn instead of chroot"
    )]
    Chroot(#[source] io::Error),
    /// The root directory cannot be another one.
    #[error(
        "the root directory cannot be replaced by one that has the missing mount points, as in an initramfs; make them outside first: the store directory, and what --bind, --ro-bind and --tmpfs name"
    )]
    Pivot(#[source] io::Error),
    /// There is no /proc for a process namespace.
    #[error(
        "cannot mount a /proc for --unshare-pid; a container whose own /proc is partly hidden does not allow it: leave --unshare-pid out, or show it (podman: --security-opt unmask=ALL)"
    )]
    Proc(#[source] io::Error),
    /// The loopback device of a network namespace stays down.
    #[error("cannot raise the loopback device for --unshare-net")]
    Network(#[source] io::Error),
    /// There is no layer over the view.
    #[error("no store that can be written over the view, in '{}': it takes Linux 5.11 with overlayfs, in memory 6.6, and a file system with attributes of users; give --overlay with a directory on a disk", layer.display())]
    Layer {
        /// Where the layer was to be.
        layer: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The state of Nix cannot be put there.
    #[error(transparent)]
    State(InsideError),
    /// The current directory is not in there.
    #[error("'{}' cannot be the current directory, as the command does not see it; give another one with --chdir", at.display())]
    Directory {
        /// The directory.
        at: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The rights of the command cannot be given up.
    #[error(transparent)]
    Rights(#[from] Missing),
    /// A process cannot be made, or waited for.
    #[error("cannot start the command")]
    Start(#[source] io::Error),
    /// What serves the view says why it cannot.
    #[error("{0}")]
    NotServed(String),
    /// It ended without a word.
    #[error("the process that serves the view has ended; the log of the system may say why")]
    Lost,
    /// The command is not there.
    #[error("'{}' is not found{}", name.display(), hint.as_ref().map_or_else(String::new, |hint| hint.beside(name)))]
    NotFound {
        /// Its name.
        name: OsString,
        /// Where it is outside.
        hint: Option<Hint>,
    },
    /// It is there and cannot be executed.
    #[error("'{}' cannot be executed", file.display())]
    NotExecutable {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What it needs to be executed is not there.
    #[error("'{}' cannot be executed, as {} is not there; add --root {}", file.display(), named(interpreter.as_deref()), in_store(root.as_deref()))]
    NoInterpreter {
        /// The file.
        file: PathBuf,
        /// What it names.
        interpreter: Option<PathBuf>,
        /// The store path of that.
        root: Option<PathBuf>,
    },
    /// A process of this program has said why, and ended with this code.
    #[error("")]
    Said(u8),
}

/// Where a command is outside that is not found within.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// The file.
    pub file: PathBuf,
    /// Its store path.
    pub root: PathBuf,
}

fn named(interpreter: Option<&Path>) -> String {
    interpreter.map_or_else(|| "its interpreter".to_owned(), |at| format!("'{}'", at.display()))
}

fn in_store(root: Option<&Path>) -> String {
    root.map_or_else(|| "with the store path that has it".to_owned(), |root| root.display().to_string())
}

impl Hint {
    /// What it adds to the name that was typed.
    fn beside(&self, name: &OsStr) -> String {
        let Self { file, root } = self;
        let outside = if file.as_os_str() == name {
            String::new()
        } else {
            format!(": outside it is '{}'", file.display())
        };
        format!("{outside}; it is not in the view: add --root {}", root.display())
    }
}

impl RunError {
    /// The code to end with, as that of env(1).
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::NotFound { .. } | Self::NoInterpreter { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::Said(code) => *code,
            _ => 125,
        }
    }

    /// Says it in one line on standard error, if it has not been said.
    pub fn say(&self) {
        if !matches!(self, Self::Said(_)) {
            log::say_error(self);
        }
    }
}
