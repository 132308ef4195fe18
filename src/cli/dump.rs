//! `--dump-closure`: what would be served, printed.

use std::path::PathBuf;

use super::args::RootArgs;
use super::exit::{Exit, Failure};
use super::output::print;
use crate::closure::Closure;
use crate::closure::dump::{self, Format};
use crate::closure::resolve::{ResolveError, resolve};
use crate::store::Store;

pub(super) fn run(roots: RootArgs, format: Format) -> Result<Exit, Failure> {
    let (closure, dir) = closure(roots)?;
    print(|out| dump::write(&closure, &dir, format, out))?;
    Ok(Exit::Success)
}

/// The closure of `roots`, and the store directory that its paths begin with.
pub(super) fn closure(roots: RootArgs) -> Result<(Closure, PathBuf), Failure> {
    let (roots, store) = roots.check()?;
    // The store may take its thread into another mount namespace: here that harms nobody, but a thread of its own is
    // the rule.
    let work = move || {
        let store = Store::open_given(store.as_deref())?;
        let closure = resolve(&store, &roots)?;
        Ok::<_, ResolveError>((closure, store.dir().to_owned()))
    };
    Ok(std::thread::spawn(work).join().map_err(|_| Failure::Panicked)??)
}
