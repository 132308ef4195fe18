//! Whose closure is meant, checked.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::args::RootArgs;
use crate::closure::resolve::Roots;
use crate::closure::source::{SavedFile, Source};

/// Why the arguments do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to serve.
    #[error("nothing to serve: give --system, --root, --roots-file or --from (see --help)")]
    NoRoots,
    /// The same, and what would be the mount point is a command.
    #[error("nothing to serve: '{0}' is a command as the first word only: nix-store-fs {0} … (see --help)")]
    CommandLater(String),
    /// The same, and what would be the mount point looks like a command.
    #[error(
        "nothing to serve: give --system, --root, --roots-file or --from; or is '{typed}' the command '{meant}'? (see --help)"
    )]
    Mistyped {
        /// What was typed.
        typed: String,
        /// The command that is most alike.
        meant: String,
    },
    /// There is no such command, whose closure it could be.
    #[error("'{}' is not found", .0.display())]
    NoCommand(OsString),
    /// Nothing to show to a command.
    #[error("nothing to show: '{}' is no program of the store, whose closure it could be; give --system, --root, --roots-file or --from", .0.display())]
    NoRootsOf(OsString),
    /// No name for the view can be made up.
    #[error("cannot make up a name for the view; give one with --name")]
    NoName,
    /// The name is not fit for a directory and a mount table.
    #[error(
        "'{0}' cannot be the name of a view: letters, digits and +-._=@: only, 200 at most, no '.' first; give another with --name"
    )]
    BadName(String),
    /// A directory that is not trusted is relative.
    #[error("'{}' cannot be given to --untrusted, because it is not absolute; give its absolute path", .0.display())]
    Untrusted(PathBuf),
    /// Colours for a format that has none.
    #[error(
        "--color is for --dump-closure=tree alone: the other formats are for programs and have no colours"
    )]
    Color,
    /// The directory for garbage collector roots cannot be made absolute.
    #[error("'{}' cannot be the directory for garbage collector roots; give another with --gc-root", path.display())]
    GcRoot {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl RootArgs {
    /// What is meant, and the store's address, without touching either.
    ///
    /// # Errors
    /// [`ConfigError::NoRoots`], [`ConfigError::Untrusted`].
    pub(super) fn check(self) -> Result<(Source, Option<String>), ConfigError> {
        // The directory that a change shows in is watched: a bare name has none. What cannot be read is said later.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        check_untrusted(&self.untrusted)?;
        if let Some(path) = self.from.map(absolute) {
            return Ok((Source::Saved(SavedFile { path, untrusted: self.untrusted }), self.store));
        }
        let file = self.roots_file.map(absolute);
        let roots = Roots {
            system: self.system,
            paths: self.roots,
            file,
            untrusted: self.untrusted,
            directory: None,
        };
        if roots.is_empty() {
            return Err(ConfigError::NoRoots);
        }
        Ok((Source::Roots(roots), self.store))
    }
}

/// Refuses directories of `--untrusted` that are relative.
///
/// # Errors
/// [`ConfigError::Untrusted`].
pub(super) fn check_untrusted(dirs: &[PathBuf]) -> Result<(), ConfigError> {
    match dirs.iter().find(|dir| !dir.is_absolute()) {
        Some(relative) => Err(ConfigError::Untrusted(relative.clone())),
        None => Ok(()),
    }
}
