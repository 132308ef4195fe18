//! The closure that a command is about, with where its store lies.

use std::path::PathBuf;

use super::args::RootArgs;
use super::exit::Failure;
use crate::closure::Closure;
use crate::closure::resolve::{ResolveError, resolve};
use crate::store::Store;

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
        // The store may take its thread into another mount namespace: here that harms nobody, but a thread of its own is
        // the rule.
        let work = move || {
            let store = Store::open_given(store.as_deref())?;
            let closure = resolve(&store, &roots)?;
            let (dir, real_dir) = (store.dir().to_owned(), store.real_dir().to_owned());
            Ok::<_, ResolveError>(Self { closure, dir, real_dir })
        };
        Ok(std::thread::spawn(work).join().map_err(|_| Failure::Panicked)??)
    }
}
