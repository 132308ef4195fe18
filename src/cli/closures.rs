//! The closures that a command is about, with where their store lies.

use std::path::{Path, PathBuf};

use super::args::RootArgs;
use super::exit::Failure;
use crate::closure::Closure;
use crate::closure::resolve::{ResolveError, Roots, resolve};
use crate::closure::saved::{Content, Saved};
use crate::closure::source::{Located, SavedFile, Source, is_file};
use crate::store::{Place, Store};
use crate::values::StorePath;

/// Directories in which generations of profiles lie: `web-12-link` is meant there, where it is not in the current directory.
const PROFILES: [&str; 2] = ["/nix/var/nix/profiles/per-container", "/nix/var/nix/profiles"];

/// A closure as the store told it, or a file.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) closure: Closure,
    /// The directory that its paths begin with.
    pub(super) dir: PathBuf,
    /// The directory that their files are in.
    pub(super) real_dir: PathBuf,
}

/// What is known of a closure: all of it, unless it was read from a file.
#[derive(Debug)]
pub(super) enum Known {
    Store(Resolved),
    File {
        file: PathBuf,
        saved: Saved,
        /// The directory that its files are in, if they are anywhere.
        real_dir: PathBuf,
    },
}

/// A list of store paths was given where more has to be known.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} needs to know roots, references and sizes, and '{}' is a list of store paths, which has none; save the closure with --dump-closure=json",
    file.display()
)]
pub struct NamesOnly {
    /// What was asked for.
    what: String,
    /// The list.
    file: PathBuf,
}

impl Known {
    /// Reads the file that was given, or asks the store for the closure of the roots.
    ///
    /// # Errors
    /// Those of the arguments, of the file or the roots, and of the store.
    pub(super) fn of(roots: RootArgs) -> Result<Self, Failure> {
        let (source, store) = roots.check()?;
        Self::from(source, store)
    }

    /// The same for a source that was checked.
    ///
    /// # Errors
    /// Those of the file or the roots, and of the store.
    pub(super) fn from(source: Source, store: Option<String>) -> Result<Self, Failure> {
        let [known] = Self::all([source], store)?;
        Ok(known)
    }

    /// The whole closure, for `what`.
    ///
    /// # Errors
    /// [`NamesOnly`].
    pub(super) fn closure(self, what: &str) -> Result<Resolved, NamesOnly> {
        match self {
            Self::Store(resolved) => Ok(resolved),
            Self::File { file, saved, real_dir } => {
                let dir = saved.store_dir().to_owned();
                match saved.into_content() {
                    Content::Closure(closure) => Ok(Resolved { closure, dir, real_dir }),
                    Content::Names(_) => Err(NamesOnly { what: what.to_owned(), file }),
                }
            }
        }
    }

    /// The closure of each of the systems, or what a file has of it.
    ///
    /// # Errors
    /// Those of the files, of the roots and of the store.
    pub(super) fn systems<const N: usize>(
        systems: [&Path; N],
        untrusted: &[PathBuf],
        store: Option<String>,
    ) -> Result<[Self; N], Failure> {
        // An address that cannot be used is an error when it is.
        let place = Place::of(store.as_deref()).unwrap_or_default();
        let source = |system: &Path| {
            let untrusted = untrusted.to_vec();
            if is_file(system, &place) {
                let path = std::path::absolute(system).unwrap_or_else(|_| system.to_owned());
                return Source::Saved(SavedFile { path, untrusted });
            }
            Source::Roots(Roots { system: Some(generation(system)), untrusted, ..Roots::default() })
        };
        Self::all(systems.map(source), store)
    }

    /// What a running view shows: its file, or the closure of its roots, which are store paths.
    ///
    /// # Errors
    /// Those of the file or the roots, and of the store.
    pub(super) fn shown(
        from: Option<PathBuf>,
        roots: &[StorePath],
        store: Option<String>,
    ) -> Result<Self, Failure> {
        let paths = || roots.iter().map(|root| root.as_str().into()).collect();
        let source = match from {
            Some(path) => Source::Saved(SavedFile { path, untrusted: Vec::new() }),
            None => Source::Roots(Roots { paths: paths(), ..Roots::default() }),
        };
        let [known] = Self::all([source], store)?;
        Ok(known)
    }

    /// One store for all of them: Nix keeps the temporary roots of a process in one file. None is opened for files alone.
    fn all<const N: usize>(all: [Source; N], store: Option<String>) -> Result<[Self; N], Failure> {
        // The store may take its thread into another mount namespace: here that harms nobody, but a thread of its own is
        // the rule.
        let work = move || {
            let place = Place::of(store.as_deref())?;
            let mut opened = None;
            let known = all.into_iter().map(|source| match source {
                Source::Saved(file) => {
                    let Located { saved, real_dir } = file.load(&place)?;
                    Ok(Self::File { file: file.path, saved, real_dir })
                }
                Source::Roots(roots) => {
                    let store = match &opened {
                        Some(store) => store,
                        None => opened.insert(Store::open_given(store.as_deref())?),
                    };
                    let (dir, real_dir) = (store.dir().to_owned(), store.real_dir().to_owned());
                    resolve(store, &roots).map(|closure| Self::Store(Resolved { closure, dir, real_dir }))
                }
            });
            known.collect::<Result<Vec<_>, ResolveError>>()
        };
        let known = std::thread::spawn(work).join().map_err(|_| Failure::Panicked)??;
        // As many as there were.
        known.try_into().map_err(|_| Failure::Panicked)
    }
}

/// A generation that is called by its name alone, as `nix-env --list-generations` has it, where it lies.
fn generation(typed: &Path) -> PathBuf {
    let is_name =
        typed.components().count() == 1 && typed.to_str().is_some_and(|name| StorePath::new(name).is_err());
    let is_absent = || typed.symlink_metadata().is_err();
    let known =
        || PROFILES.iter().map(|dir| Path::new(dir).join(typed)).find(|path| path.symlink_metadata().is_ok());
    let found = (is_name && is_absent()).then(known).flatten();
    found.unwrap_or_else(|| typed.to_owned())
}
