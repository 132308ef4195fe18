//! What the command sees, mounted: steps become calls, in the namespace that the command gets.
//!
//! Invariants:
//! - Nothing is made on a file system that the command shares with others: a mount point that is absent is made on a tmpfs
//!   that shows what was there ([`making`]).
//! - What is bound is opened before anything is mounted, so that no mount hides it.
//!
//! Hard point: for a mount point below `/` the root directory is another one (pivot_root(2)). What is bound into it comes from the old one
//! once that has moved: a recursive bind of a directory brings along what is mounted on the directory itself.

use std::ffi::{CStr, OsString};
use std::fs::{DirBuilder, DirEntry, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind_recursive, mount_remount,
    move_mount, unmount,
};

use super::RunError;
use super::namespace::Right;
use super::places::{layers, parts, places};
use super::plan::{Access as Bound, Making, Wish, making};
use crate::closure::inside::move_state;
use crate::fuse::attach;
use crate::mounts::{self, VIEW};
use crate::sys;

/// What a view is mounted from, and what is hidden with it.
#[derive(Debug, Clone)]
pub struct Hiding {
    /// The source of the view for the mount table.
    pub source: String,
    /// The directory that the store's paths begin with, where the view is to be.
    pub store: PathBuf,
    /// The directory in which the store's files are.
    pub real: PathBuf,
    /// Directories that nobody in there sees anything of.
    pub directories: Vec<PathBuf>,
    /// Sockets that nobody in there can connect to.
    pub sockets: Vec<PathBuf>,
}

/// A place for Nix, made outside.
#[derive(Debug)]
pub struct Nix {
    /// The directory that holds [`STATE_DIR`].
    pub made: OwnedFd,
    /// Where the layer is that the command writes to.
    pub place: Place,
    /// Held as long as somebody uses the layer.
    pub lock: Option<OwnedFd>,
}

/// Where a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In memory: it ends with the command.
    Memory,
    /// In a directory, with the state of Nix.
    Directory(PathBuf),
}

/// The upper directory of the overlay, in its place.
pub const UPPER: &str = "upper";
/// Its working directory.
pub const WORK: &str = "work";
/// Nix's state directory.
pub const STATE_DIR: &str = "state";
/// The logs of what was built.
pub const LOG_DIR: &str = "log";
/// Where Nix finds its state, with the directory of logs.
const NIX_VAR: &str = "/nix/var";

/// The view, mounted, and not served yet.
#[derive(Debug)]
pub(super) struct View {
    /// The device of its connection.
    pub(super) device: OwnedFd,
    /// The minor number of its file system's device.
    pub(super) connection: u32,
    /// A file system in memory that has no name.
    pub(super) state: OwnedFd,
    /// Its root directory, which keeps it mounted.
    pub(super) root: OwnedFd,
}

/// Something that is to be bound, opened.
#[derive(Debug)]
struct Source {
    file: OwnedFd,
    is_dir: bool,
}

/// For whom a mount point is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// For the view.
    Ours,
    /// For what was wished for.
    Wish,
}

/// The mounts that were made here.
#[derive(Debug, Default)]
struct Built {
    /// On file systems of the command's own.
    owned: Vec<PathBuf>,
    /// That show what is outside, or the view.
    others: Vec<PathBuf>,
    /// Those of the first that can be written only until all is made.
    replaced: Vec<PathBuf>,
}

/// Where the old root is while the new one is put together: no name that anybody has.
const OLD: &str = ".nix-store-fs-old-root";
/// The bytes that a state takes at most: the node journal of some million names.
const STATE: &CStr = c"mode=0700,size=256m";

/// What is mounted once the view is served.
#[derive(Debug)]
pub(super) struct Rest<'a> {
    built: Built,
    store: PathBuf,
    /// Places that show something in the store: what, as a path in it.
    parts: Vec<(PathBuf, PathBuf)>,
    wishes: Vec<(&'a Wish, Option<Source>)>,
}

/// Mounts the view and hides what it hides. What is wished for is opened.
///
/// # Errors
/// [`RunError::Source`] and [`RunError::Mount`] name what it is about; [`RunError::Attach`].
pub(super) fn build<'a>(hiding: &Hiding, wishes: &'a [Wish]) -> Result<(View, Rest<'a>), RunError> {
    let mut built = Built::default();
    // First, as what is open then is no longer part of it (mount(2), EINVAL).
    let points = wishes.iter().map(Wish::at).chain([hiding.store.as_path()]);
    if points.into_iter().any(|at| making(at, exists, &[], &[]) == Making::Replace("/".into())) {
        built.replace(Path::new("/"))?;
    }
    let sources = wishes.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let table = mounts::mounts()?;
    // As it was before anything was mounted. The store may have no directory here yet.
    let there = |dir: &PathBuf| dir.canonicalize().ok();
    let mut dirs: Vec<PathBuf> = [&hiding.store, &hiding.real].into_iter().filter_map(there).collect();
    let layers: Vec<PathBuf> = dirs.iter().flat_map(|dir| layers(&table, dir)).collect();
    dirs.extend(layers.iter().filter_map(there));
    let states: Vec<PathBuf> = hiding.directories.iter().filter_map(there).collect();
    let seen = |dir: &PathBuf| places(&table, dir);
    let apart = |dir: &PathBuf| parts(&table, dir);
    let mut covers: Vec<PathBuf> = dirs.iter().flat_map(seen).collect();
    covers.sort();
    covers.dedup();
    // Other views show other closures.
    let views = table.iter().filter(|mount| mount.kind == VIEW && !covers.contains(&mount.at));
    let mut hidden: Vec<PathBuf> = states.iter().flat_map(seen).collect();
    hidden.extend(views.map(|view| view.at.clone()));
    let is_hidden = |at: &Path| covers.iter().chain(&hidden).any(|place| at.starts_with(place));
    let mut parts: Vec<_> = dirs.iter().flat_map(apart).filter(|(at, _)| !is_hidden(at)).collect();
    parts.sort();
    parts.dedup();
    hidden.extend(states.iter().flat_map(apart).map(|(at, _)| at));
    hidden.sort();
    hidden.dedup();
    built.provide(&hiding.store, true, Whose::Ours)?;
    let store = hiding.store.canonicalize().map_err(failed(&hiding.store))?;
    let state = state_on(&store)?;
    attach::check()?;
    let device = attach::attach(&store, &hiding.source)?;
    let connection = connection(&store)?;
    let root = rustix::fs::open(&store, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(failed(&store))?;
    for place in covers.iter().filter(|place| **place != store && place.is_dir()) {
        mount_bind_recursive(&store, place).map_err(failed(place))?;
    }
    for place in &hidden {
        hide(place)?;
    }
    for socket in hiding.sockets.iter().filter(|socket| socket.exists()) {
        mount_bind_recursive("/dev/null", socket).map_err(failed(socket))?;
    }
    built.others.push(store.clone());
    let view = View { device, connection, state, root };
    Ok((view, Rest { built, store, parts, wishes: wishes.iter().zip(sources).collect() }))
}

impl Rest<'_> {
    /// Lets Nix work: a layer over the view that can be written, and a state of its own. The view is asked, so somebody serves it.
    ///
    /// # Errors
    /// [`RunError::Mount`], [`RunError::Layer`], [`RunError::State`].
    pub(super) fn layer(&mut self, nix: &Nix, right: Right) -> Result<(), RunError> {
        let var = Path::new(NIX_VAR);
        self.built.provide(var, true, Whose::Ours)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let memory = || mount("nix-store-fs:nix", var, "tmpfs", flags, c"mode=0755").map_err(failed(var));
        let layer = match &nix.place {
            Place::Memory => {
                memory()?;
                for name in [UPPER, WORK] {
                    make(&var.join(name), true).map_err(failed(var))?;
                }
                var
            }
            Place::Directory(dir) => dir,
        };
        // By what they are now, and never through a link.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let above = rustix::fs::open(layer, flags, Mode::empty()).map_err(failed(layer))?;
        let open = |name: &str| {
            rustix::fs::openat(&above, name, flags, Mode::empty()).map_err(failed(&layer.join(name)))
        };
        let parts = (open(UPPER)?, open(WORK)?);
        check_marks(&parts.0, right)
            .and_then(|()| overlay(&self.store, &parts, right))
            .map_err(|source| RunError::Layer { layer: layer.to_owned(), source })?;
        drop(parts);
        // Over the layer, if that is in memory: nobody else writes to it.
        memory()?;
        for name in ["nix", "log/nix"] {
            let dir = var.join(name);
            DirBuilder::new().recursive(true).mode(0o755).create(&dir).map_err(failed(&dir))?;
        }
        let (state, log) = (var.join("nix"), var.join("log/nix"));
        match &nix.place {
            Place::Memory => {
                move_state(&sys::path_of(&nix.made).join(STATE_DIR), &state).map_err(RunError::State)?
            }
            Place::Directory(_) => {
                for (from, at) in [(STATE_DIR, &state), (LOG_DIR, &log)] {
                    let from = open(from)?;
                    mount_bind_recursive(sys::path_of(&from), at).map_err(failed(at))?;
                }
            }
        }
        self.built.others.push(var.to_owned());
        Ok(())
    }

    /// Whether [`Rest::finish`] asks the view, so that somebody has to serve it.
    pub(super) fn asks(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Mounts what is wished for, and the view's own in the places of what is in the store.
    ///
    /// # Errors
    /// [`RunError::Mount`], [`RunError::NoPlace`].
    pub(super) fn finish(self) -> Result<(), RunError> {
        let Self { mut built, store, parts, wishes } = self;
        for (at, part) in &parts {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::open(store.join(part), flags, Mode::empty()) {
                Ok(part) if exists(at) => {
                    mount_bind_recursive(sys::path_of(&part), at).map_err(failed(at))?
                }
                _ => hide(at)?,
            }
        }
        for (wish, source) in wishes {
            built.grant(wish, source)?;
        }
        built.finish()
    }
}

/// Whether an overlay can mark in `upper` what it does. Where it cannot, it is mounted all the same, and moves no directory to the store
/// (`EXDEV`): a build fails when it is done.
fn check_marks(upper: &OwnedFd, right: Right) -> io::Result<()> {
    if right == Right::Own {
        // Attributes of `trusted.`, which every file system has that can be written here.
        return Ok(());
    }
    let (upper, mark) = (sys::path_of(upper), "user.nix-store-fs");
    rustix::fs::setxattr(&upper, mark, b"", XattrFlags::empty())?;
    Ok(rustix::fs::removexattr(&upper, mark)?)
}

/// A store that can be written, over the view at `store`: `Documentation/filesystems/overlayfs.rst` of Linux. In a user namespace it marks
/// what it does in attributes of users (Linux 5.11; on tmpfs from 6.6).
fn overlay(store: &Path, (upper, work): &(OwnedFd, OwnedFd), right: Right) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Each is one value here, whatever signs are in it; colons separate lower layers.
    let escaped = store.as_os_str().as_bytes().iter().flat_map(|byte| match byte {
        b':' | b'\\' => vec![b'\\', *byte],
        byte => vec![*byte],
    });
    let lower = OsString::from_vec(escaped.collect());
    fsconfig_set_string(&context, "lowerdir", &lower)?;
    fsconfig_set_string(&context, "upperdir", sys::path_of(upper))?;
    fsconfig_set_string(&context, "workdir", sys::path_of(work))?;
    if matches!(right, Right::Namespace { .. }) {
        fsconfig_set_flag(&context, "userxattr")?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mounted, "", rustix::fs::CWD, store, flags)?)
}

/// Mounts a `/proc` of the process namespace that this process is in.
///
/// # Errors
/// [`RunError::Mount`].
pub(super) fn own_proc() -> Result<(), RunError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).map_err(|error| RunError::Proc(error.into()))
}

fn failed<E: Into<io::Error>>(what: &Path) -> impl Fn(E) -> RunError {
    move |error| RunError::Mount { what: what.to_owned(), source: error.into() }
}

fn open(wish: &Wish) -> Result<Option<Source>, RunError> {
    let Wish::Bind { from, .. } = wish else { return Ok(None) };
    let fail = |source| RunError::Source { from: from.clone(), source };
    let file = rustix::fs::open(from, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(|error| fail(error.into()))?;
    let found = rustix::fs::fstat(&file).map_err(|error| fail(error.into()))?;
    Ok(Some(Source { file, is_dir: FileType::from_raw_mode(found.st_mode) == FileType::Directory }))
}

/// A file system in memory, opened at `place` and taken away again at once.
fn state_on(place: &Path) -> Result<OwnedFd, RunError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("nix-store-fs:state", place, "tmpfs", flags, STATE).map_err(failed(place))?;
    let open = rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    unmount(place, UnmountFlags::DETACH).map_err(failed(place))?;
    open.map_err(failed(place))
}

/// The minor number of the device of what is mounted at `at`: nobody who could be asked serves it yet.
fn connection(at: &Path) -> Result<u32, RunError> {
    let found = mounts::mounts()?.into_iter().rfind(|mount| mount.at == at);
    let minor = found.and_then(|mount| mounts::minor(&mount.device));
    minor.ok_or_else(|| failed(at)(io::Error::other("the mount table does not list the view")))
}

/// Lets nobody see what is at `place`. Nothing is asked of what is there, as who serves it may not answer.
fn hide(place: &Path) -> Result<(), RunError> {
    if !exists(place) {
        // The command does not get there either.
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    let data = c"mode=0755,size=4k,nr_inodes=1";
    match mount("nix-store-fs:hidden", place, "tmpfs", flags, data) {
        // It is a file.
        Err(Errno::NOTDIR) => mount_bind_recursive("/dev/null", place),
        done => done,
    }
    .map_err(failed(place))
}

impl Built {
    /// Makes `at` a mount point, if it is none yet.
    fn provide(&mut self, at: &Path, is_dir: bool, whose: Whose) -> Result<(), RunError> {
        let is_written = |dir: &Path| {
            whose == Whose::Wish && dir != Path::new("/") && rustix::fs::access(dir, Access::WRITE_OK).is_ok()
        };
        match making(at, exists, &self.owned, &self.others) {
            Making::Exists => return Ok(()),
            Making::Make => {}
            // It would be no longer what others write to.
            Making::Replace(dir) if is_written(&dir) => return Err(RunError::NoPlace(at.to_owned())),
            Making::Replace(dir) => self.replace(&dir)?,
        }
        let parent = at.parent().unwrap_or(at);
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed(parent))?;
        make(at, is_dir).map_err(failed(at))
    }

    /// Puts a file system of the command's own in the place of `dir`, which shows the same.
    fn replace(&mut self, dir: &Path) -> Result<(), RunError> {
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(failed(path))
        };
        let before = open(dir)?;
        // The types that the directory tells: who serves what is mounted there may not answer.
        let entry =
            |entry: io::Result<DirEntry>| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?)));
        let names: Vec<_> = std::fs::read_dir(sys::path_of(&before))
            .and_then(|entries| entries.map(entry).collect::<Result<_, _>>())
            .map_err(failed(dir))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let tmpfs =
            |at: &Path| mount("nix-store-fs:root", at, "tmpfs", flags, c"mode=0755").map_err(failed(at));
        if dir == Path::new("/") {
            // Any directory will do: it is free again as soon as the old root is somewhere else.
            let place = names.iter().find(|(_, kind)| kind.is_dir()).map(|(name, _)| dir.join(name));
            let place = place.ok_or_else(|| failed(dir)(io::Error::from(io::ErrorKind::NotFound)))?;
            tmpfs(&place)?;
            let old = place.join(OLD);
            make(&old, true).map_err(failed(&old))?;
            rustix::process::pivot_root(&place, &old).map_err(|error| RunError::Pivot(error.into()))?;
            rustix::process::chdir("/").map_err(failed(dir))?;
            let old = dir.join(OLD);
            for (name, kind) in &names {
                show(&old.join(name), *kind, &dir.join(name));
            }
            unmount(&old, UnmountFlags::DETACH).map_err(failed(&old))?;
            std::fs::remove_dir(&old).map_err(failed(&old))?;
        } else {
            tmpfs(dir)?;
            for (name, kind) in &names {
                show(&sys::path_of(&before).join(name), *kind, &dir.join(name));
            }
        }
        self.owned.push(dir.to_owned());
        self.replaced.push(dir.to_owned());
        for name in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            self.others.push(dir.join(name.file_name()));
        }
        Ok(())
    }

    fn grant(&mut self, wish: &Wish, source: Option<Source>) -> Result<(), RunError> {
        let at = wish.at();
        // `/` is where paths begin, whatever is mounted there, and this program needs what the kernel shows in `/proc`.
        let end = at.canonicalize();
        if end.is_ok_and(|end| end == Path::new("/") || end.starts_with("/proc")) {
            return Err(RunError::Reserved(at.to_owned()));
        }
        match (wish, source) {
            (Wish::Bind { access, .. }, Some(Source { file, is_dir })) => {
                self.provide(at, is_dir, Whose::Wish)?;
                mount_bind_recursive(sys::path_of(&file), at).map_err(failed(at))?;
                if *access == Bound::ReadOnly {
                    read_only(at)?;
                }
                self.others.push(at.to_owned());
            }
            _ => {
                self.provide(at, true, Whose::Wish)?;
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                mount("tmpfs", at, "tmpfs", flags, c"mode=0755").map_err(failed(at))?;
                self.owned.push(at.to_owned());
            }
        }
        Ok(())
    }

    /// What was replaced looks as before, so nobody writes there.
    fn finish(&self) -> Result<(), RunError> {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        self.replaced.iter().try_for_each(|dir| mount_remount(dir, flags, c"").map_err(failed(dir)))
    }
}

/// Whether `path` leads to something, which is not asked for its attributes: who serves it may not answer.
fn exists(path: &Path) -> bool {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

fn make(at: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir { DirBuilder::new().mode(0o755).create(at) } else { File::create_new(at).map(drop) }
}

/// Shows what `from` is, of this `kind`, at `at`, as far as that is possible: what cannot be is missing there.
fn show(from: &Path, kind: std::fs::FileType, at: &Path) {
    let shown = || -> io::Result<()> {
        if kind.is_symlink() {
            return std::os::unix::fs::symlink(std::fs::read_link(from)?, at);
        }
        make(at, kind.is_dir())?;
        Ok(mount_bind_recursive(from, at)?)
    };
    if let Err(error) = shown() {
        tracing::warn!(%error, "'{}' cannot be shown", at.display());
    }
}

/// Makes what is mounted at `at`, and below it, read-only; what is forbidden there stays so.
fn read_only(at: &Path) -> Result<(), RunError> {
    let all = mounts::mounts()?;
    let canonical = at.canonicalize().map_err(failed(at))?;
    for mount in all.iter().filter(|mount| mount.at.starts_with(&canonical)) {
        let found = match rustix::fs::statvfs(&mount.at) {
            Ok(found) => found.f_flag,
            // It is covered, or somebody else's who does not answer.
            Err(Errno::ACCESS | Errno::NOENT | Errno::NOTCONN) => continue,
            Err(error) => return Err(failed(&mount.at)(error)),
        };
        let kept = [
            (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
            (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
            (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
            (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
            (rustix::fs::StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
            (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
        ];
        let kept = kept
            .iter()
            .filter(|(is, _)| found.contains(*is))
            .fold(MountFlags::empty(), |all, (_, flag)| all | *flag);
        let flags = MountFlags::BIND | MountFlags::RDONLY | kept;
        mount_remount(&mount.at, flags, c"").map_err(failed(&mount.at))?;
    }
    Ok(())
}
