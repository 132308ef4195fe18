//! What `--system` and `--root` mean: from a path that a person types to the store path it leads to.
//!
//! Responsibility: follow links until they enter the store, component by component, inside a chroot store
//! (`local?root=DIR`) as well, and tell which links were followed so that they can be watched.
//!
//! Hard points:
//! 1. Nix's own resolution follows only the last component, and an absolute link inside a chroot leads it out
//!    of the chroot; here every component is followed, and such a link is taken to mean the chroot.
//! 2. A chain of links has an end: [`LINKS_MAX`].
//! 3. What the store path itself is does not matter: one that is a link is that link, not its target.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::values::{InvalidStorePath, StorePath};

/// The kernel's own limit is 40 (path_resolution(7)).
const LINKS_MAX: usize = 64;

/// The profile that a directory of profiles holds for a NixOS system.
const SYSTEM: &str = "system";

/// Why a path does not lead to a store path.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Nothing is there.
    #[error("'{}' does not exist; check the path, or give a store path or a profile", .0.display())]
    Absent(PathBuf),
    /// A link was followed to where nothing is.
    #[error("the link '{}' dangles: '{}' does not exist; build the system or switch the profile first", link.display(), target.display())]
    Dangling {
        /// The last link followed.
        link: PathBuf,
        /// What does not exist.
        target: PathBuf,
    },
    /// The path exists and is no store path.
    #[error("'{}' is not in the Nix store '{}'; give a store path, or a link or profile that leads to one", path.display(), store.display())]
    NotInStore {
        /// Where the path ended.
        path: PathBuf,
        /// The store directory.
        store: PathBuf,
    },
    /// The store directory itself.
    #[error("'{}' is the store directory itself; give a path in it, or a link or profile that leads to one", .0.display())]
    TheStore(PathBuf),
    /// A directory that holds no `system` profile.
    #[error(
        "the directory of profiles '{}' has no 'system'; containers declared in the host's configuration have \
         none: give the store path of their system (containers.NAME.path)", .0.display()
    )]
    NoSystem(PathBuf),
    /// The name in the store directory is no store path's.
    #[error("'{}' leads to no store path", path.display())]
    BadName {
        /// What was typed.
        path: PathBuf,
        /// The rule that the name breaks.
        #[source]
        source: InvalidStorePath,
    },
    /// The links go round in a circle.
    #[error("'{}' passes through more than {LINKS_MAX} symbolic links; mend the circle", .0.display())]
    TooManyLinks(PathBuf),
    /// The operating system refused.
    #[error("cannot examine '{}'", path.display())]
    Io {
        /// What was examined.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ProfileError {
    /// Whether the path may come to exist later: what a root that is waited for may fail with.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Dangling { .. } | Self::NoSystem(_))
    }
}

/// Where the store is: what Nix calls it, and where it lies.
#[derive(Debug, Clone, Copy)]
pub struct StoreDirs<'a> {
    /// The logical directory, `/nix/store`.
    pub logical: &'a Path,
    /// The physical directory.
    pub real: &'a Path,
}

impl StoreDirs<'_> {
    /// The chroot: what stands before the logical directory in the physical one.
    fn chroot(&self) -> Option<&Path> {
        let bare = self.logical.strip_prefix("/").ok()?;
        self.real
            .ends_with(bare)
            .then(|| self.real.ancestors().nth(bare.components().count()))
            .flatten()
            .filter(|root| *root != Path::new("/"))
    }

    /// The name directly below the store directory that `path` begins with.
    fn name<'p>(&self, path: &'p Path) -> Option<&'p std::ffi::OsStr> {
        let below = path.strip_prefix(self.logical).or_else(|_| path.strip_prefix(self.real)).ok()?;
        match below.components().next()? {
            Component::Normal(name) => Some(name),
            _ => None,
        }
    }
}

/// A path followed to its store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where it led.
    pub path: StorePath,
    /// The links followed, in order; a change of one of them may change where the path leads.
    pub links: Vec<PathBuf>,
}

/// Follows `typed` to the store path that it means.
///
/// # Errors
/// [`ProfileError`] names what is missing and what to do.
pub fn resolve(typed: &Path, dirs: StoreDirs<'_>) -> Result<Resolved, ProfileError> {
    if let Some(path) = base_name(typed) {
        return Ok(Resolved { path, links: Vec::new() });
    }
    let absolute =
        std::path::absolute(typed).map_err(|source| ProfileError::Io { path: typed.to_owned(), source })?;
    let mut walk = Walk { typed, dirs, links: Vec::new() };
    match walk.follow(&absolute)? {
        End::Store(path) => Ok(Resolved { path, links: walk.links }),
        End::Directory(dir) if dir == dirs.real || dir == dirs.logical => Err(ProfileError::TheStore(dir)),
        End::Directory(dir) => match walk.follow(&dir.join(SYSTEM)) {
            Ok(End::Store(path)) => Ok(Resolved { path, links: walk.links }),
            Ok(End::Directory(path) | End::Other(path)) => Err(walk.not_in_store(path)),
            Err(ProfileError::Absent(_)) => {
                Err(if is_profiles(&dir) { ProfileError::NoSystem(dir) } else { walk.not_in_store(dir) })
            }
            Err(error) => Err(error),
        },
        End::Other(path) => Err(walk.not_in_store(path)),
    }
}

/// The name of the view of `typed`: its last component, or the name of the store path.
#[must_use]
pub fn view_name(typed: &Path) -> Option<String> {
    let last = typed.file_name()?.to_str()?;
    Some(StorePath::new(last).map_or_else(|_| last.to_owned(), |path| path.name().to_owned()))
}

fn base_name(typed: &Path) -> Option<StorePath> {
    let text = typed.to_str().filter(|text| !text.contains('/'))?;
    StorePath::new(text).ok()
}

/// Whether a directory looks like one of profiles: below one of that name, or holding generation links.
fn is_profiles(dir: &Path) -> bool {
    dir.components().any(|part| part.as_os_str().as_bytes().ends_with(b"profiles"))
}

enum End {
    Store(StorePath),
    Directory(PathBuf),
    Other(PathBuf),
}

struct Walk<'a> {
    typed: &'a Path,
    dirs: StoreDirs<'a>,
    links: Vec<PathBuf>,
}

impl Walk<'_> {
    fn not_in_store(&self, path: PathBuf) -> ProfileError {
        ProfileError::NotInStore { path, store: self.dirs.logical.to_owned() }
    }

    fn follow(&mut self, start: &Path) -> Result<End, ProfileError> {
        // `done` holds no link and no `..`; `todo` is what is still to be walked.
        let mut done = PathBuf::from("/");
        let mut todo: VecDeque<OsString> = parts(start).collect();
        let mut directory = true;
        while let Some(part) = todo.pop_front() {
            match part.as_bytes() {
                b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => {}
            }
            let here = done.join(&part);
            // By its name alone: a machine need not have the directory that a chroot store is called.
            let whole = todo.iter().fold(here.clone(), |path, part| path.join(part));
            if let Some(name) = self.dirs.name(&whole) {
                return self.store_path(name).map(End::Store);
            }
            if whole == self.dirs.logical {
                return Ok(End::Directory(whole));
            }
            let meta = here.symlink_metadata().map_err(|source| self.absent(start, &here, source))?;
            directory = meta.is_dir();
            if !meta.is_symlink() {
                done = here;
                continue;
            }
            if self.links.len() >= LINKS_MAX {
                return Err(ProfileError::TooManyLinks(self.typed.to_owned()));
            }
            let target = std::fs::read_link(&here)
                .map_err(|source| ProfileError::Io { path: here.clone(), source })?;
            let mut next: VecDeque<OsString> = parts(&target).collect();
            if target.is_absolute() {
                done = PathBuf::from("/");
                // Inside a chroot store an absolute link means a path of the chroot.
                if let Some(root) = self.dirs.chroot()
                    && here.starts_with(root)
                    && !target.starts_with(root)
                    && self.dirs.name(&target).is_none()
                {
                    done = root.to_owned();
                }
            }
            self.links.push(here);
            next.append(&mut todo);
            todo = next;
        }
        Ok(if directory { End::Directory(done) } else { End::Other(done) })
    }

    fn absent(&self, start: &Path, here: &Path, source: io::Error) -> ProfileError {
        match (source.kind(), self.links.last()) {
            (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, None) => {
                ProfileError::Absent(if here == start { self.typed.to_owned() } else { start.to_owned() })
            }
            (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, Some(link)) => {
                ProfileError::Dangling { link: link.clone(), target: here.to_owned() }
            }
            _ => ProfileError::Io { path: here.to_owned(), source },
        }
    }

    fn store_path(&self, name: &std::ffi::OsStr) -> Result<StorePath, ProfileError> {
        StorePath::new(&name.to_string_lossy())
            .map_err(|source| ProfileError::BadName { path: self.typed.to_owned(), source })
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    })
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
