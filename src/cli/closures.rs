//! The closures that a command is about, with where their store lies.

use std::path::{Path, PathBuf};

use super::args::RootArgs;
use super::exit::Failure;
use crate::closure::Closure;
use crate::closure::resolve::{ResolveError, Roots, resolve};
use crate::store::Store;
use crate::values::StorePath;

/// Directories in which generations of profiles lie: `web-12-link` is meant there, where it is not in the current directory.
const PROFILES: [&str; 2] = ["/nix/var/nix/profiles/per-container", "/nix/var/nix/profiles"];

/// A closure as the store told it.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) closure: Closure,
    /// The directory that its paths begin with.
    pub(super) dir: PathBuf,
    /// The directory that their files are in.
    pub(super) real_dir: PathBuf,
}

impl Resolved {
    /// Asks the store for the closure of `roots`.
    ///
    /// # Errors
    /// Those of the arguments, of the roots and of the store.
    pub(super) fn of(roots: RootArgs) -> Result<Self, Failure> {
        let (roots, store) = roots.check()?;
        let [resolved] = Self::all([roots], store)?;
        Ok(resolved)
    }

    /// Asks the store for the closure of each of the systems.
    ///
    /// # Errors
    /// Those of the roots and of the store.
    pub(super) fn systems<const N: usize>(
        systems: [&Path; N],
        untrusted: &[PathBuf],
        store: Option<String>,
    ) -> Result<[Self; N], Failure> {
        let roots = |system| Roots {
            system: Some(generation(system)),
            untrusted: untrusted.to_vec(),
            ..Roots::default()
        };
        Self::all(systems.map(roots), store)
    }

    /// Asks the store for the closure of `roots`, which are store paths.
    ///
    /// # Errors
    /// Those of the roots and of the store.
    pub(super) fn roots(roots: &[StorePath], store: Option<String>) -> Result<Self, Failure> {
        let paths = roots.iter().map(|root| root.as_str().into()).collect();
        let [resolved] = Self::all([Roots { paths, ..Roots::default() }], store)?;
        Ok(resolved)
    }

    /// One store for all of them: Nix keeps the temporary roots of a process in one file.
    fn all<const N: usize>(all: [Roots; N], store: Option<String>) -> Result<[Self; N], Failure> {
        // The store may take its thread into another mount namespace: here that harms nobody, but a thread of its own is
        // the rule.
        let work = move || {
            let store = Store::open_given(store.as_deref())?;
            let closures = all.map(|roots| resolve(&store, &roots));
            let resolved = closures.map(|closure| {
                let (dir, real_dir) = (store.dir().to_owned(), store.real_dir().to_owned());
                closure.map(|closure| Self { closure, dir, real_dir })
            });
            Ok(resolved)
        };
        let resolved = std::thread::spawn(work).join().map_err(|_| Failure::Panicked)?;
        let resolved: [Result<Self, ResolveError>; N] = resolved.map_err(ResolveError::Store)?;
        let resolved = resolved.into_iter().collect::<Result<Vec<_>, _>>()?;
        // As many as there were.
        resolved.try_into().map_err(|_| Failure::Panicked)
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
