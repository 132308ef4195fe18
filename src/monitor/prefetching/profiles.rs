//! The directory of profiles. It is the monitor's user's own, as a profile tells what a container does.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Why there is no place for a profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfilesError {
    /// There is none.
    #[error("there is no directory for it")]
    Nowhere,
    /// It cannot be made or opened.
    #[error("the directory '{}' cannot be used", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others may read or change it.
    #[error("the directory '{}' is not this user's alone; 'chmod 700' it, or give another one with --cache-dir", .0.display())]
    NotOwn(PathBuf),
}

/// The directory, and the name of one profile in it.
#[derive(Debug)]
pub(super) struct Profiles {
    dir: OwnedFd,
    /// What it was called when it was opened.
    at: PathBuf,
    name: OsString,
    next: OsString,
}

impl Profiles {
    /// Opens `dir`, which is made if it is absent, for the profile of the view `name`.
    ///
    /// # Errors
    /// [`ProfilesError`].
    pub(super) fn open(dir: &Path, name: &str) -> Result<Self, ProfilesError> {
        let failed = |source: io::Error| ProfilesError::Io { path: dir.to_owned(), source };
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let stat = rustix::fs::fstat(&open).map_err(|error| failed(error.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(ProfilesError::NotOwn(dir.to_owned()));
        }
        // A view's name does not begin with a dot.
        Ok(Self { dir: open, at: dir.to_owned(), name: name.into(), next: format!(".{name}.new").into() })
    }

    /// The profile, if there is one.
    ///
    /// # Errors
    /// Those of open(2), and `InvalidData` for what is no file.
    pub(super) fn last(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            answer => answer?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind == FileType::RegularFile {
            Ok(Some(file))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is no plain file"))
        }
    }

    /// An empty file for the next one.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn begin_next(&self) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        // Of a monitor that was killed.
        self.drop_next();
        let new =
            rustix::fs::openat(&self.dir, &self.next, flags, Mode::RUSR | Mode::WUSR).map_err(|error| {
                let (error, path) = (io::Error::from(error), self.at.join(&self.next));
                io::Error::new(error.kind(), format!("'{}' cannot be created: {error}", path.display()))
            })?;
        Ok(new.into())
    }

    /// The next one takes the place of the last.
    ///
    /// # Errors
    /// Those of rename(2).
    pub(super) fn keep_next(&self) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, &self.next, &self.dir, &self.name)?)
    }

    /// There is no next one.
    pub(super) fn drop_next(&self) {
        let _ = rustix::fs::unlinkat(&self.dir, &self.next, AtFlags::empty());
    }

    /// Where the profile is, to be told.
    pub(super) fn path(&self) -> PathBuf {
        self.at.join(&self.name)
    }

    /// The directory, to be locked by who plays.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Bytes of one use in a profile, about: see docs/profile.md.
const BYTES_OF_USE: u64 = 100;

/// About how many uses are in `profile`, of which a monitor reads nothing.
pub(super) fn about_uses(profile: &OwnedFd) -> u64 {
    rustix::fs::fstat(profile)
        .map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or_default() / BYTES_OF_USE)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_profile_is_replaced_as_a_whole_and_is_this_users_alone() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("a/profiles");
        let profiles = Profiles::open(&dir, "web").unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(profiles.last().unwrap().is_none());
        for text in ["one", "two"] {
            let next = profiles.begin_next().unwrap();
            io::Write::write_all(&mut &next, text.as_bytes()).unwrap();
            assert_eq!(next.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            profiles.keep_next().unwrap();
            let read = io::read_to_string(File::from(profiles.last().unwrap().unwrap())).unwrap();
            assert_eq!(read, text);
        }
        // One that was left by a monitor that was killed is nobody's.
        drop(profiles.begin_next().unwrap());
        drop(profiles.begin_next().unwrap());
        profiles.drop_next();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn what_others_can_read_or_choose_is_not_used() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("open");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(Profiles::open(&dir, "web"), Err(ProfilesError::NotOwn(path)) if path == dir));
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(matches!(Profiles::open(&link, "web"), Err(ProfilesError::Io { .. })));
        let own = top.path().join("own");
        let profiles = Profiles::open(&own, "web").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", own.join("web")).unwrap();
        assert!(profiles.last().is_err());
        fs::remove_file(own.join("web")).unwrap();
        fs::create_dir(own.join("web")).unwrap();
        assert!(profiles.last().is_err());
    }
}
