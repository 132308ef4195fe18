//! Where a journal lies: two files in a directory of its own, known by a descriptor, as a server has no right to look for paths.
//!
//! Invariant: files are made and removed by the monitor alone. A server opens what is there, so it needs no right to make a file, and
//! what it can fill is two files.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};

/// One of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// With the name of the journal.
    First,
    /// With `.2` behind it.
    Second,
}

impl Half {
    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// A directory, and the name of a journal in it.
#[derive(Debug)]
pub struct Home {
    dir: OwnedFd,
    /// For messages, but for the last component.
    path: PathBuf,
}

impl Home {
    /// Of the journal that is called `path`, in the directory `dir`.
    #[must_use]
    pub fn new(dir: OwnedFd, path: &Path) -> Self {
        Self { dir, path: path.to_owned() }
    }

    /// Of the journal at `path`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self::new(open_directory(parent)?, path))
    }

    /// The path of a file, for messages.
    pub(super) fn path(&self, half: Half) -> PathBuf {
        match half {
            Half::First => self.path.clone(),
            Half::Second => self.path.with_extension("2"),
        }
    }

    fn name(&self, half: Half) -> OsString {
        self.path(half).file_name().unwrap_or_default().to_owned()
    }

    /// Opens a file, never through a link.
    pub(super) fn file(&self, half: Half, flags: OFlags) -> io::Result<File> {
        let mode = Mode::from_raw_mode(0o600);
        Ok(openat(&self.dir, self.name(half), flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?.into())
    }

    /// The files that are there, for whoever is to be allowed to open them.
    #[must_use]
    pub fn files(&self) -> Vec<OwnedFd> {
        let files = [Half::First, Half::Second].map(|half| self.file(half, OFlags::PATH));
        files.into_iter().flatten().map(OwnedFd::from).collect()
    }

    /// Makes both files, empty, in the place of what was there. The first one comes last: without it there is no journal.
    pub(super) fn begin(&self) -> io::Result<()> {
        self.remove();
        for half in [Half::Second, Half::First] {
            self.file(half, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        }
        Ok(())
    }

    /// Makes the second file if it is absent: without it, a server cannot replace what it has written.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn complete(&self) -> io::Result<()> {
        self.file(Half::Second, OFlags::WRONLY | OFlags::CREATE).map(drop)
    }

    /// Makes a file empty: it is not in use, and what it takes is given back.
    pub(super) fn clear(&self, half: Half) {
        let _ = self.file(half, OFlags::WRONLY | OFlags::TRUNC);
    }

    /// Removes both files.
    pub(super) fn remove(&self) {
        for half in [Half::First, Half::Second] {
            let _ = unlinkat(&self.dir, self.name(half), AtFlags::empty());
        }
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
