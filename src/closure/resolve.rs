//! From what a user asked for to a closure that the collector cannot take away.
//!
//! Invariant: every root has a temporary root in the store before its closure is asked for, and the collector
//! keeps what a root refers to: so nothing of a resolved closure can vanish while the [`Store`] is open.

use std::io;
use std::path::PathBuf;

use crate::closure::profile::{self, ProfileError, StoreDirs};
use crate::closure::roots::RootsError;
use crate::closure::{Closure, NotAClosure};
use crate::store::{Store, StoreError};
use crate::values::View;

/// What is to be served, as the user names it; any of it may be a link and lead elsewhere the next time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    /// The system.
    pub system: Option<PathBuf>,
    /// More paths.
    pub paths: Vec<PathBuf>,
    /// A file with more paths, read each time.
    pub file: Option<PathBuf>,
}

/// Why the roots do not give a closure.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A path leads to no store path.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of roots cannot be read.
    #[error("cannot read the roots file '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store answered nonsense.
    #[error(transparent)]
    NotAClosure(#[from] NotAClosure),
    /// What they lead to cannot be held beyond this process, as was asked for.
    #[error(transparent)]
    Roots(#[from] RootsError),
}

/// Roots followed to a closure.
#[derive(Debug)]
pub struct Resolution {
    /// The closure.
    pub closure: Closure,
    /// Everything whose change may change the closure: links, and the file of roots.
    pub depends_on: Vec<PathBuf>,
}

/// One line of a file of roots.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    path: PathBuf,
    /// Whether the path may not exist yet.
    awaited: bool,
}

/// One root a line; `#` begins a comment, a leading `?` marks a root that is waited for.
fn parse(text: &str) -> Vec<Line> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix('?') {
            Some(path) => Line { path: path.trim_start().into(), awaited: true },
            None => Line { path: line.into(), awaited: false },
        })
        .collect()
}

/// Follows `roots` in `store` and holds what they lead to.
///
/// # Errors
/// [`ResolveError`]; roots already held stay held, which harms nobody.
pub fn resolve(store: &Store, roots: &Roots) -> Result<Resolution, ResolveError> {
    let mut lines: Vec<Line> = roots.system.iter().chain(&roots.paths).cloned().map(certain).collect();
    let mut depends_on = Vec::new();
    if let Some(path) = &roots.file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ResolveError::File { path: path.clone(), source })?;
        lines.extend(parse(&text));
        depends_on.push(path.clone());
    }
    let dirs = StoreDirs { logical: store.dir(), real: store.real_dir() };
    let mut found = Vec::with_capacity(lines.len());
    for line in lines {
        match profile::resolve(&line.path, dirs) {
            Ok(resolved) => {
                depends_on.extend(resolved.links);
                found.push(resolved.path);
            }
            Err(error) if line.awaited && error.is_absence() => {
                tracing::warn!(root = %line.path.display(), "not there yet, and left out until the next reload: {error}");
                depends_on.push(line.path);
            }
            Err(error) => return Err(error.into()),
        }
    }
    store.forget();
    for root in &found {
        store.add_temp_root(root)?;
    }
    let closure = store.closure(&found)?;
    Ok(Resolution { closure: Closure::new(found, closure)?, depends_on })
}

fn certain(path: PathBuf) -> Line {
    Line { path, awaited: false }
}

/// Holds what an earlier process served and this one goes on serving. What is no longer valid is left out.
///
/// # Errors
/// [`StoreError`].
pub fn hold(store: &Store, view: &View) -> Result<(), StoreError> {
    for path in view.names() {
        if store.is_valid(path)? {
            store.add_temp_root(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_roots_has_comments_and_awaited_lines() {
        let text = "# all of it\n/nix/store/a  # one\n\n?/profiles/system\n ? /run/opengl-driver\n";
        let line = |path: &str, awaited| Line { path: path.into(), awaited };
        let expected = vec![
            line("/nix/store/a", false),
            line("/profiles/system", true),
            line("/run/opengl-driver", true),
        ];
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), vec![]);
    }
}
