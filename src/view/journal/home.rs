//! Where a journal lies: a directory of its own, known by a descriptor, as a server has no right to look for paths.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

/// A directory, and the name of a journal in it.
#[derive(Debug)]
pub struct Home {
    dir: OwnedFd,
    name: OsString,
    /// For messages.
    path: PathBuf,
}

impl Home {
    /// Of the journal that is called `path`, in the directory `dir`.
    #[must_use]
    pub fn new(dir: OwnedFd, path: &Path) -> Self {
        Self { dir, name: path.file_name().unwrap_or_default().to_owned(), path: path.to_owned() }
    }

    /// Of the journal at `path`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self::new(open_directory(parent)?, path))
    }

    /// The journal's path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the journal, never through a link.
    pub(super) fn file(&self, flags: OFlags) -> io::Result<File> {
        let mode = Mode::from_raw_mode(0o600);
        Ok(openat(&self.dir, &self.name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?.into())
    }

    /// The place of a journal that is to replace it.
    pub(super) fn next(&self) -> io::Result<Self> {
        let path = self.path.with_extension("new");
        Ok(Self::new(self.dir.try_clone()?, &path))
    }

    /// Removes the journal.
    pub(super) fn remove(&self) {
        let _ = rustix::fs::unlinkat(&self.dir, &self.name, rustix::fs::AtFlags::empty());
    }

    /// Gives the journal the name of the one in `other`, which it replaces.
    pub(super) fn replace(&self, other: &Self) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, &self.name, &other.dir, &other.name)?)
    }
}

/// Opens a directory that journals lie in, for [`Home::new`].
///
/// # Errors
/// Those of open(2).
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}
