//! Garbage collector roots that outlive this process: links in a directory, registered with Nix.
//!
//! [`Targets`] decides which links must exist; it is a plain value. [`RootLinks`] makes and removes them.
//!
//! Invariants:
//! - A link is removed only when its root is neither served nor about to be served.
//! - Nothing is removed before every link that must exist has been made.
//! - One thread owns the [`RootLinks`] of a view, so nothing is made while links are being removed. Another thread may
//!   remove links only through the [`Ledger`], which forbids further links first.
//! - A link is in the ledger before the call that creates it.
//! - Links are made and removed only in a directory that nobody else could choose ([`directory`]): it is opened
//!   again each time before one is made, and one is removed through the descriptor that was opened last.
//!
//! Hard points:
//! 1. Links that an earlier process left may hold what is still served, and nobody can tell. They stay until a
//!    resolution of this process is served, and then go only if nothing else is served any more.
//! 2. A link in the directory proves nothing: the process that made it may have been killed before it was
//!    registered with Nix. So every link that must exist is made once by this process, which replaces it.
//! 3. A thread that makes links can hang in a call of Nix. [`Ledger`] lets another thread forbid new links and remove
//!    those that exist, without waiting for it. The call that hangs may still create its own link afterwards.
//! 4. Nix makes and registers a link by its path. Who is trusted may have moved the directory a moment before. The collector
//!    reads the link by that path later, and removes no link but its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::directory::{self, NotOpened};
use super::trust::{Reason, Trust};

use crate::store::StoreError;
use crate::values::StorePath;

/// Why the links cannot be what they must be.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The place for the links is no directory.
    #[error("'{}' is not a directory: give --gc-root a directory for the links, which may be absent", .0.display())]
    NotADirectory(PathBuf),
    /// The directory cannot be opened, made or listed.
    #[error("cannot use the directory of garbage collector roots '{}'; check its permissions, restart the view if somebody removed or moved the directory while it ran, or choose another one with --gc-root", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else could put another directory in its place.
    #[error(
        "garbage collector roots are not kept in '{}' because of '{}': {why} and could have links made or removed \
         elsewhere; {}, or choose another directory with --gc-root", dir.display(), entry.display(), why.remedy()
    )]
    Untrusted {
        /// The directory.
        dir: PathBuf,
        /// Itself, or a link or directory on the way to it.
        entry: PathBuf,
        /// Who, and what to do.
        why: Reason,
    },
    /// A link cannot be made.
    #[error(
        "cannot create a garbage collector root; restart the view if somebody removed or moved the directory of --gc-root while it ran"
    )]
    Make(#[source] StoreError),
    /// The view is ending.
    #[error("not creating garbage collector roots: the view is ending")]
    Closed,
}

impl RootsError {
    /// Whether the links may be made later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotADirectory(_) | Self::List { .. } | Self::Untrusted { .. } => true,
            Self::Make(error) => error.may_pass(),
            Self::Closed => false,
        }
    }
}

/// Which links must exist, which may stay, and which exist.
#[derive(Debug, Default)]
pub struct Targets {
    /// Roots of what is served.
    served: BTreeSet<StorePath>,
    /// Roots of what is about to be served, by the number of their resolution.
    coming: BTreeMap<u64, BTreeSet<StorePath>>,
    /// Roots of links that were there before this process made any. `None`: not known yet.
    inherited: Option<BTreeSet<StorePath>>,
    /// Links that exist.
    links: BTreeSet<StorePath>,
    /// Those of them that this process made.
    made: BTreeSet<StorePath>,
}

impl Targets {
    /// What must be held while these roots are served.
    #[must_use]
    pub fn new(served: BTreeSet<StorePath>) -> Self {
        Self { served, ..Self::default() }
    }

    /// Exactly these links exist.
    pub fn found(&mut self, links: BTreeSet<StorePath>) {
        self.inherited.get_or_insert_with(|| links.clone());
        self.made.retain(|root| links.contains(root));
        self.links = links;
    }

    /// What resolution `number` found is about to be served.
    pub fn announce(&mut self, number: u64, roots: impl IntoIterator<Item = StorePath>) {
        self.coming.insert(number, roots.into_iter().collect());
    }

    /// What resolution `number` found will not be served.
    pub fn withdraw(&mut self, number: u64) {
        self.coming.remove(&number);
    }

    /// Nothing that was announced will be served.
    pub fn withdraw_all(&mut self) {
        self.coming.clear();
    }

    /// What resolution `number` found is served; with `only`, nothing older is served any more.
    pub fn settle(&mut self, number: u64, only: bool) {
        let Some(roots) = self.coming.remove(&number) else { return };
        if only {
            self.served.clear();
            self.inherited = Some(BTreeSet::new());
        }
        let later = self.coming.split_off(&number);
        let earlier = std::mem::replace(&mut self.coming, later);
        if !only {
            self.served.extend(earlier.into_values().flatten());
        }
        self.served.extend(roots);
    }

    /// Nothing is served any more, nor will be.
    pub fn release(&mut self) {
        self.served.clear();
        self.coming.clear();
        self.inherited = Some(BTreeSet::new());
    }

    /// Roots whose links must be made now.
    #[must_use]
    pub fn missing(&self) -> BTreeSet<StorePath> {
        self.wanted().filter(|root| !self.made.contains(*root)).cloned().collect()
    }

    /// The link of `root` has been made.
    pub fn made(&mut self, root: StorePath) {
        self.made.insert(root.clone());
        self.links.insert(root);
    }

    /// The link of `root` exists, but does not hold it for certain.
    pub fn seen(&mut self, root: StorePath) {
        self.links.insert(root);
    }

    /// Roots whose links may be removed, once none is missing.
    #[must_use]
    pub fn outdated(&self) -> Vec<StorePath> {
        let kept: BTreeSet<_> = self.wanted().chain(self.inherited.iter().flatten()).collect();
        self.links.iter().filter(|root| !kept.contains(root)).cloned().collect()
    }

    /// The link of `root` has been removed.
    pub fn removed(&mut self, root: &StorePath) {
        self.links.remove(root);
        self.made.remove(root);
    }

    /// Whether the link of `root` stays if nothing that was announced is served.
    fn stays(&self, root: &StorePath) -> bool {
        self.served.contains(root) || self.inherited.iter().any(|roots| roots.contains(root))
    }

    fn wanted(&self) -> impl Iterator<Item = &StorePath> {
        self.served.iter().chain(self.coming.values().flatten())
    }
}

/// The links that exist, for a thread that cannot wait for their owner.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    /// Links that exist or are being made, and whether each stays if nothing that was announced is served.
    links: BTreeMap<PathBuf, bool>,
    /// The one of them that is being made.
    making: Option<PathBuf>,
    /// Where they are. None: it was never opened.
    dir: Option<Arc<OwnedFd>>,
    closed: bool,
}

impl Ledger {
    /// Forbids further links and removes every link: [`RootLinks::release`] for a thread that cannot wait. Returns the
    /// link that a call in progress may still create.
    pub fn release(&self) -> Option<PathBuf> {
        self.close(|_| true)
    }

    /// Forbids further links and removes those of what was announced and is not served: [`RootLinks::abandon`] for a
    /// thread that cannot wait. Returns the link that a call in progress may still create and that would have to go.
    pub fn abandon(&self) -> Option<PathBuf> {
        self.close(|stays| !stays)
    }

    /// The lock is held to the end, so that the owner finds either everything as it was or all of this done.
    fn close(&self, goes: impl Fn(bool) -> bool) -> Option<PathBuf> {
        let mut book = self.0.lock();
        book.closed = true;
        let Book { links, making, dir, .. } = &mut *book;
        links.retain(|link, stays| !goes(*stays) || remove(dir.as_deref(), link).is_err());
        making.clone().filter(|link| links.get(link).is_none_or(|stays| goes(*stays)))
    }

    /// To be called before a link is made in `dir`.
    fn enter(&self, link: &Path, stays: bool, dir: Option<Arc<OwnedFd>>) -> Result<(), RootsError> {
        let mut book = self.0.lock();
        if book.closed {
            return Err(RootsError::Closed);
        }
        book.links.insert(link.to_owned(), stays);
        book.making = Some(link.to_owned());
        book.dir = dir;
        Ok(())
    }

    /// These links exist in `dir`, and none is being made.
    fn set(&self, links: impl IntoIterator<Item = (PathBuf, bool)>, dir: Option<Arc<OwnedFd>>) {
        let mut book = self.0.lock();
        book.links = links.into_iter().collect();
        book.making = None;
        book.dir = dir;
    }
}

/// Removes a link from `dir`, if it is there; a failure is logged.
fn remove(dir: Option<&OwnedFd>, link: &Path) -> Result<(), Errno> {
    let (Some(dir), Some(name)) = (dir, link.file_name()) else { return Ok(()) };
    // Something else may have taken the place of the link; it is not ours.
    let removed = if is_link(dir, name) { rustix::fs::unlinkat(dir, name, AtFlags::empty()) } else { Ok(()) };
    match removed {
        // The owner of the links and a thread that closes the ledger may both remove one.
        Err(Errno::NOENT) => Ok(()),
        removed => removed.inspect_err(|error| {
            tracing::warn!(%error, link = %link.display(), "cannot remove a garbage collector root; remove it by hand");
        }),
    }
}

fn is_link(dir: &OwnedFd, name: &OsStr) -> bool {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// The links of one view in a directory of the user's, `NAME--STOREPATH`.
#[derive(Debug)]
pub struct RootLinks {
    dir: PathBuf,
    prefix: String,
    targets: Targets,
    ledger: Ledger,
    /// Who may decide which directory it is.
    trust: Trust,
    /// The directory that was found there most recently.
    open: Option<Arc<OwnedFd>>,
}

impl RootLinks {
    /// Links in `dir` for the view called `name`, of which `served` are served already. Looks at nothing yet.
    #[must_use]
    pub fn new(dir: &Path, name: &str, served: BTreeSet<StorePath>, trust: Trust) -> Self {
        Self {
            trust,
            open: None,
            dir: dir.to_owned(),
            prefix: format!("{name}--"),
            targets: Targets::new(served),
            ledger: Ledger::default(),
        }
    }

    /// The links that exist, for another thread.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// Who may decide from now on which directory it is.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
    }

    /// Opens the directory, and with `make` makes it; without, it may be absent.
    ///
    /// # Errors
    /// [`RootsError::NotADirectory`], [`RootsError::Untrusted`], [`RootsError::List`]; then the one that was opened before
    /// stays that from which links are removed.
    fn open(&mut self, make: bool) -> Result<(), RootsError> {
        let dir = || self.dir.clone();
        self.open = match directory::open(&self.dir, &self.trust, make) {
            Ok(open) => Some(Arc::new(open)),
            Err(NotOpened::Absent) if !make => None,
            Err(NotOpened::Absent) => {
                return Err(RootsError::List { path: dir(), source: io::ErrorKind::NotFound.into() });
            }
            Err(NotOpened::NotADirectory(path)) => return Err(RootsError::NotADirectory(path)),
            Err(NotOpened::Untrusted { entry, why }) => {
                return Err(RootsError::Untrusted { dir: dir(), entry, why });
            }
            Err(NotOpened::Io(source)) => return Err(RootsError::List { path: dir(), source }),
        };
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, if it is absent.
    ///
    /// # Errors
    /// Those of [`Self::examine`].
    pub fn prepare(&mut self) -> Result<(), RootsError> {
        self.examine()?;
        self.open(true)
    }

    /// Looks which links exist.
    ///
    /// # Errors
    /// [`RootsError::NotADirectory`], [`RootsError::Untrusted`], [`RootsError::List`]; an absent directory is an empty one.
    pub fn examine(&mut self) -> Result<(), RootsError> {
        self.open(false)?;
        let list = |error: Errno| RootsError::List { path: self.dir.clone(), source: error.into() };
        let mut found = BTreeSet::new();
        if let Some(dir) = &self.open {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let readable = rustix::fs::openat(dir, c".", flags, Mode::empty()).map_err(list)?;
            for entry in rustix::fs::Dir::new(readable).map_err(list)? {
                found.extend(self.root(dir, entry.map_err(list)?.file_name()));
            }
        }
        self.targets.found(found);
        self.publish();
        Ok(())
    }

    /// Holds what resolution `number` found, besides what is held already. If that fails, what was held before is
    /// held, and nothing else.
    ///
    /// # Errors
    /// Those of [`Self::complete`].
    pub fn announce(
        &mut self,
        number: u64,
        roots: &[StorePath],
        make: impl FnMut(&StorePath, &Path) -> Result<bool, StoreError>,
    ) -> Result<(), RootsError> {
        self.targets.announce(number, roots.iter().cloned());
        self.complete(make).inspect_err(|_| {
            self.targets.withdraw(number);
            self.clear();
        })
    }

    /// Makes every link that must exist with `make`, which returns false for a root that the store does not have.
    ///
    /// # Errors
    /// [`RootsError::Make`], [`RootsError::Closed`], those of a directory that cannot be used; links made before stay.
    pub fn complete(
        &mut self,
        mut make: impl FnMut(&StorePath, &Path) -> Result<bool, StoreError>,
    ) -> Result<(), RootsError> {
        let missing = self.targets.missing();
        if !missing.is_empty() {
            // Nix would make what is absent by its path.
            self.open(true)?;
        }
        for root in missing {
            let link = self.link(&root);
            self.ledger.enter(&link, self.targets.stays(&root), self.open.clone())?;
            let made = make(&root, &link);
            if matches!(made, Ok(true)) {
                self.targets.made(root);
            } else if self.is_link(&link) {
                // It may have been made and then not registered: then it must be removed again.
                self.targets.seen(root);
            }
            self.publish();
            made.map_err(RootsError::Make)?;
        }
        Ok(())
    }

    /// What resolution `number` found is served; with `only`, the links of everything older are removed.
    pub fn settle(&mut self, number: u64, only: bool) {
        self.targets.settle(number, only);
        self.clear();
    }

    /// Removes the links of what was announced and is not served.
    pub fn abandon(&mut self) {
        self.targets.withdraw_all();
        self.clear();
    }

    /// Removes every link of this view: the collector may take what they held.
    pub fn release(&mut self) {
        let (made_in, made) = (self.open.clone(), self.targets.links.clone());
        if let Err(error) = self.examine() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "garbage collector roots may be left behind"
            );
        }
        self.targets.release();
        self.clear();
        // Somebody has moved the directory: what was made is removed where it is now, and not in what took its place.
        for root in made {
            let _ = remove(made_in.as_deref(), &self.link(&root));
        }
    }

    fn clear(&mut self) {
        for root in self.targets.outdated() {
            if remove(self.open.as_deref(), &self.link(&root)).is_ok() {
                self.targets.removed(&root);
            }
        }
        self.publish();
    }

    fn link(&self, root: &StorePath) -> PathBuf {
        self.dir.join(format!("{}{root}", self.prefix))
    }

    fn is_link(&self, link: &Path) -> bool {
        let place = self.open.as_deref().zip(link.file_name());
        place.is_some_and(|(dir, name)| is_link(dir, name))
    }

    /// What an entry of the directory holds, if it is a link of this view.
    fn root(&self, dir: &OwnedFd, name: &CStr) -> Option<StorePath> {
        let text = name.to_str().ok()?;
        let root = StorePath::new(text.strip_prefix(&self.prefix)?).ok()?;
        is_link(dir, text.as_ref()).then_some(root)
    }

    fn publish(&self) {
        let links = self.targets.links.iter().map(|root| (self.link(root), self.targets.stays(root)));
        self.ledger.set(links, self.open.clone());
    }
}

#[cfg(test)]
#[path = "roots_tests.rs"]
mod tests;
