//! What `--system` and `--root` mean: from a path that a person types to the store path it leads to.
//!
//! Responsibility: follow links until they enter the store, component by component, inside a chroot store
//! (`local?root=DIR`) as well, and return everything that was examined, so that it can be watched. Read a file of roots.
//!
//! Invariant: what is examined is judged by [`trust`](super::trust) before it is used, `/` included, and so is a file before
//! it is read. What is in the store is not examined on the way to a store path: the store's owner is trusted.
//!
//! Hard points:
//! 1. Nix's own resolution follows only the last component, and an absolute link inside a chroot leads it out
//!    of the chroot; here every component is followed, and such a link is taken to mean the chroot.
//! 2. A chain of links has an end: [`LINKS_MAX`].
//! 3. What the store path itself is does not matter: one that is a link is that link, not its target.
//! 4. A file of roots is read by the name that it is found under, without a link. Only a link of proc(5) leads to what has
//!    no name, a pipe for example.
//! 5. A path that leads nowhere depends on what is absent: that is returned with the error.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::{Errno, retry_on_intr};

use crate::closure::dependency::{Dependency, Seen};
use crate::closure::trust::{Part, Reason, Rights, Trust};
use crate::store::Store;
use crate::values::{InvalidStorePath, StorePath};

/// The kernel's own limit is 40 (path_resolution(7)).
const LINKS_MAX: usize = 64;

/// How long a pipe is waited for to which nobody writes.
const PATIENCE: Duration = Duration::from_secs(60);

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
    /// Somebody else could decide where the path leads.
    #[error(
        "roots are not resolved through '{}': {why} and could choose what is served; {}, or give the store path itself",
        entry.display(), why.remedy()
    )]
    Untrusted {
        /// The link, the directory or the file.
        entry: PathBuf,
        /// Who, and what to do.
        why: Reason,
    },
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
pub fn follow(typed: &Path, dirs: StoreDirs<'_>, trust: &Trust) -> Followed {
    let mut walk = Walk::new(typed, dirs, trust, Goal::StorePath);
    let result = walk.store_path_of(typed);
    Followed { result, depends_on: walk.depends_on }
}

/// A file that says what is served, and was read.
#[derive(Debug)]
pub struct ReadFile {
    /// Its contents, or why it cannot be read; an error of its own if it must not be.
    pub result: Result<io::Result<Vec<u8>>, ProfileError>,
    /// The links that the kernel follows to it, and itself: all examined before it was read.
    pub depends_on: Vec<Dependency>,
}

/// Reads a file that says what is served: of roots, or of a closure. One with more than `limit` bytes is an error of the kind
/// [`io::ErrorKind::FileTooLarge`].
#[must_use]
pub fn read_file(file: &Path, dirs: StoreDirs<'_>, trust: &Trust, limit: u64) -> ReadFile {
    let mut walk = Walk::new(file, dirs, trust, Goal::File);
    let result = walk.contents_of(file, limit);
    ReadFile { result, depends_on: walk.depends_on }
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

/// Everything in `file`, if that is no more than `limit` bytes. A file that is longer is not read at all, and at a pipe that nobody
/// writes to is waited no longer than `patience`: whoever resolves roots could not do anything else any more.
fn read_at_most(file: &File, limit: u64, patience: Duration) -> io::Result<Vec<u8>> {
    let too_long = || io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes"));
    let meta = file.metadata()?;
    // Of a directory or a pipe it says nothing.
    if meta.is_file() && meta.len() > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    if meta.file_type().is_fifo() {
        rustix::fs::fcntl_setfl(file, OFlags::NONBLOCK)?;
        Pipe { file, patience }.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    } else {
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) { Ok(bytes) } else { Err(too_long()) }
}

/// A pipe that does not block, read as one that blocks for a limited time. Before somebody has opened it for writing it looks as if it had
/// ended, but for poll(2).
struct Pipe<'a> {
    file: &'a File,
    patience: Duration,
}

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let silent = || {
            let why = format!("nobody has written to the pipe for {} s", self.patience.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, why)
        };
        loop {
            let timeout = Timespec::try_from(self.patience).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(self.file, PollFlags::IN)];
            match retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))? {
                0 => return Err(silent()),
                _ => match { self.file }.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    answer => return answer,
                },
            }
        }
    }
}

enum End {
    Store(StorePath),
    Directory(PathBuf),
    Other(PathBuf),
}

/// What a path is followed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// It ends where it enters the store.
    StorePath,
    /// It ends where the kernel ends, in the store or not.
    File,
}

struct Walk<'a> {
    typed: &'a Path,
    dirs: StoreDirs<'a>,
    trust: &'a Trust,
    goal: Goal,
    /// Where absolute links in it are taken to lead.
    chroot: Option<&'a Path>,
    depends_on: Vec<Dependency>,
    /// Whether a warning was logged in place of a refusal.
    warned: bool,
}

impl<'a> Walk<'a> {
    fn new(typed: &'a Path, dirs: StoreDirs<'a>, trust: &'a Trust, goal: Goal) -> Self {
        let chroot = dirs.chroot().filter(|_| goal == Goal::StorePath);
        Self { typed, dirs, trust, goal, chroot, depends_on: Vec::new(), warned: false }
    }

    /// Judges what was examined, and records it. What is in the store does not change.
    fn judge(&mut self, one: Dependency, part: Part) -> Result<(), ProfileError> {
        let found = one.found().map(|found| (one.path().to_owned(), found));
        let dir = self.dir_of(one.path());
        if self.goal == Goal::StorePath || !one.path().starts_with(self.dirs.real) {
            self.depends_on.push(one);
        }
        let Some((entry, found)) = found else { return Ok(()) };
        let Err(why) = self.trust.judge(&entry, found.identity, found.rights, dir, part) else {
            return Ok(());
        };
        let refused = ProfileError::Untrusted { entry, why };
        if self.trust.is_enforced() {
            return Err(refused);
        }
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(path = %self.typed.display(), "a view of this would be refused: {refused}");
        }
        Ok(())
    }

    /// The rights of the directory that `path` is in. None for a store directory: Nix alone puts things there, though builders
    /// of their group may write it. Nor for what was reached by a descriptor.
    fn dir_of(&self, path: &Path) -> Option<Rights> {
        let dir = path.parent().filter(|dir| *dir != self.dirs.logical)?;
        let examined =
            self.depends_on.iter().rfind(|one| one.path() == dir && *one.seen() == Seen::Directory);
        examined.and_then(Dependency::found).map(|found| found.rights)
    }

    fn contents_of(&mut self, file: &Path, limit: u64) -> Result<io::Result<Vec<u8>>, ProfileError> {
        let opened = match self.follow(file) {
            Ok(End::Store(_)) => Err(Errno::ISDIR),
            Ok(End::Directory(at) | End::Other(at)) => {
                // Before it is judged nothing is waited for: it may be a pipe of a stranger's.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                rustix::fs::open(&at, flags, Mode::empty()).map(|file| (at, file))
            }
            Err(refused @ ProfileError::Untrusted { .. }) => return Err(refused),
            Err(ProfileError::Io { source, .. }) => return Ok(Err(source)),
            // Hard point 4.
            Err(_) if self.links().next_back().is_some_and(|link| link.starts_with("/proc")) => {
                rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map(|opened| (file.to_owned(), opened))
            }
            Err(ProfileError::TooManyLinks(_)) => Err(Errno::LOOP),
            Err(_) => Err(Errno::NOENT),
        };
        let read = opened.map_err(io::Error::from).and_then(|(at, opened)| {
            let opened = File::from(opened);
            Ok((Dependency::of_file(&at, &opened)?, opened))
        });
        let (examined, opened) = match read {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        self.judge(examined, Part::Roots)?;
        Ok(read_at_most(&opened, limit, PATIENCE))
    }

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
        self.examine(&done)?;
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
            if self.goal == Goal::StorePath {
                if let Some(name) = self.dirs.name(&whole) {
                    return self.store_path(name).map(End::Store);
                }
                if whole == self.dirs.logical {
                    return Ok(End::Directory(whole));
                }
            }
            let target = match self.examine(&here)? {
                Seen::Link(target) => target,
                Seen::Absent => return Err(self.absent(start, &here)),
                seen => {
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

    fn examine(&mut self, path: &Path) -> Result<Seen, ProfileError> {
        let (one, error) = Dependency::examine(path);
        let seen = one.seen().clone();
        self.judge(one, Part::Way)?;
        error.map_or(Ok(seen), |source| Err(ProfileError::Io { path: path.to_owned(), source }))
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

/// The names in a path, and `..`.
pub(super) fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    })
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
