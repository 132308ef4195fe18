//! What `--system` and `--root` mean: from a path that a person types to the store path it leads to.
//!
//! Responsibility: follow links until they enter the store, component by component, inside a chroot store
//! (`local?root=DIR`) as well, and return everything that was examined, so that it can be watched.
//!
//! Hard points:
//! 1. Nix's own resolution follows only the last component, and an absolute link inside a chroot leads it out
//!    of the chroot; here every component is followed, and such a link is taken to mean the chroot.
//! 2. A chain of links has an end: [`LINKS_MAX`].
//! 3. What the store path itself is does not matter: one that is a link is that link, not its target.
//! 4. A path that leads nowhere depends on what is absent: that is returned with the error.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::closure::dependency::{Dependency, Seen};
use crate::store::Store;
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

    /// Whether the same path may be followed later although nothing that is watched has changed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        // Permissions are not watched, and a disk may answer again.
        matches!(self, Self::Io { .. })
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

impl<'a> StoreDirs<'a> {
    /// Those of `store`.
    #[must_use]
    pub fn of(store: &'a Store) -> Self {
        Self { logical: store.dir(), real: store.real_dir() }
    }

    /// The chroot: what stands before the logical directory in the physical one.
    fn chroot(&self) -> Option<&'a Path> {
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

/// A path that was followed.
#[derive(Debug)]
pub struct Followed {
    /// Where it led.
    pub result: Result<StorePath, ProfileError>,
    /// Everything that was examined, in order, also of a path that leads nowhere.
    pub depends_on: Vec<Dependency>,
}

/// Follows `typed` to the store path that it means. A [`ProfileError`] names what is missing and what to do.
#[must_use]
pub fn follow(typed: &Path, dirs: StoreDirs<'_>) -> Followed {
    let mut walk = Walk { typed, dirs, chroot: dirs.chroot(), depends_on: Vec::new() };
    let result = walk.store_path_of(typed);
    Followed { result, depends_on: walk.depends_on }
}

/// What the contents of `file` depend on: the links that the kernel follows to it, and itself. They have to be taken
/// before the file is read.
#[must_use]
pub fn depends_on_file(file: &Path, dirs: StoreDirs<'_>) -> Vec<Dependency> {
    let mut walk = Walk { typed: file, dirs, chroot: None, depends_on: Vec::new() };
    // What is in the store does not change.
    if let Ok(End::Other(file)) = walk.follow(file) {
        walk.depends_on.push(Dependency::examine_file(&file));
    }
    walk.depends_on
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
    /// Where absolute links in it are taken to lead.
    chroot: Option<&'a Path>,
    depends_on: Vec<Dependency>,
}

impl Walk<'_> {
    fn store_path_of(&mut self, typed: &Path) -> Result<StorePath, ProfileError> {
        if let Some(path) = base_name(typed) {
            return Ok(path);
        }
        let absolute = std::path::absolute(typed)
            .map_err(|source| ProfileError::Io { path: typed.to_owned(), source })?;
        match self.follow(&absolute)? {
            End::Store(path) => Ok(path),
            End::Directory(dir) if dir == self.dirs.real || dir == self.dirs.logical => {
                Err(ProfileError::TheStore(dir))
            }
            End::Directory(dir) => match self.follow(&dir.join(SYSTEM)) {
                Ok(End::Store(path)) => Ok(path),
                Ok(End::Directory(path) | End::Other(path)) => Err(self.not_in_store(path)),
                Err(ProfileError::Absent(_)) => {
                    Err(if is_profiles(&dir) { ProfileError::NoSystem(dir) } else { self.not_in_store(dir) })
                }
                Err(error) => Err(error),
            },
            End::Other(path) => Err(self.not_in_store(path)),
        }
    }

    /// The links followed so far.
    fn links(&self) -> impl DoubleEndedIterator<Item = &Path> {
        let links = self.depends_on.iter().filter(|one| matches!(one.seen(), Seen::Link(_)));
        links.map(Dependency::path)
    }

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
            let (dependency, error) = Dependency::examine(&here);
            let seen = dependency.seen().clone();
            self.depends_on.push(dependency);
            let target = match (seen, error) {
                (Seen::Link(target), _) => target,
                (Seen::Absent, _) => return Err(self.absent(start, &here)),
                (_, Some(source)) => return Err(ProfileError::Io { path: here, source }),
                (seen, None) => {
                    directory = seen == Seen::Directory;
                    done = here;
                    continue;
                }
            };
            if self.links().count() > LINKS_MAX {
                return Err(ProfileError::TooManyLinks(self.typed.to_owned()));
            }
            let mut next: VecDeque<OsString> = parts(&target).collect();
            if target.is_absolute() {
                done = PathBuf::from("/");
                // Inside a chroot store an absolute link means a path of the chroot.
                if let Some(root) = self.chroot
                    && here.starts_with(root)
                    && !target.starts_with(root)
                    && self.dirs.name(&target).is_none()
                {
                    done = root.to_owned();
                }
            }
            next.append(&mut todo);
            todo = next;
        }
        Ok(if directory { End::Directory(done) } else { End::Other(done) })
    }

    fn absent(&self, start: &Path, here: &Path) -> ProfileError {
        match self.links().next_back() {
            None => {
                ProfileError::Absent(if here == start { self.typed.to_owned() } else { start.to_owned() })
            }
            Some(link) => ProfileError::Dangling { link: link.to_owned(), target: here.to_owned() },
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
