//! A mount point: made or found empty, freed of what an earlier view left there, and mounted on.
//!
//! Hard point: what is in the way may be a file system that does not answer. It is asked from a process that may hang
//! ([`Probe`]), for a limited time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{MountError, Mounted, Number, Table, connection, detach, force, fusermount, place, source, top};
use crate::fuse::attach;
use crate::monitor::poll;
use crate::monitor::probe::Probe;

/// How long a file system that is in the way may take to answer.
const PULSE: Duration = Duration::from_secs(2);

/// A mount point that is fit for use.
#[derive(Debug)]
pub struct Point {
    at: PathBuf,
    /// Directories that were made for it, outermost first.
    made: Vec<PathBuf>,
}

impl Point {
    /// Makes `at` ready: an existing empty directory, or one made now and removed again if it is not used. Dead mounts
    /// of a view called `name` are cleared away, and so is one that does not answer and has the connection `earlier`; the
    /// caller holds that name, knows this number from its own state directory, and no server of it lives.
    ///
    /// # Errors
    /// [`MountError`] names what is in the way.
    pub fn prepare(at: &Path, name: &str, earlier: Option<Number>) -> Result<Self, MountError> {
        let fail = |doing| move |source| MountError::Point { doing, at: at.to_owned(), source };
        // Removes what it has made if anything fails.
        let mut point = Self { at: PathBuf::new(), made: Vec::new() };
        point.at = place::make_above(at, &mut point.made).map_err(|source| match source.kind() {
            // What is absent is made, but for what a link leads to.
            io::ErrorKind::NotFound => MountError::Dangling(at.to_owned()),
            io::ErrorKind::NotADirectory => {
                let file = at.ancestors().skip(1).find(|above| above.exists() && !above.is_dir());
                MountError::NotADirectory(file.unwrap_or(at).to_owned())
            }
            _ => fail("resolve")(source),
        })?;
        clear_dead(&point.at, name, earlier)?;
        match std::fs::create_dir(&point.at) {
            Ok(()) => point.made.push(point.at.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fail("create")(error)),
        }
        point.check()?;
        Ok(point)
    }

    /// Directories on the way that were made for an earlier view, and that are to go with this one.
    #[must_use]
    pub fn inheriting(mut self, earlier: &[PathBuf]) -> Self {
        let on_the_way = earlier.iter().filter(|made| self.at.starts_with(made) && !self.made.contains(made));
        let mut made: Vec<PathBuf> = on_the_way.cloned().collect();
        made.append(&mut self.made);
        self.made = made;
        self
    }

    fn check(&self) -> Result<(), MountError> {
        let fail = |doing| move |source| MountError::Point { doing, at: self.at.clone(), source };
        if !self.at.metadata().map_err(fail("examine"))?.is_dir() {
            return Err(MountError::NotADirectory(self.at.clone()));
        }
        match std::fs::read_dir(&self.at).map_err(fail("read"))?.next() {
            None => Ok(()),
            Some(_) => Err(MountError::NotEmpty(self.at.clone())),
        }
    }

    /// Mounts an empty FUSE connection here; returns it with its device.
    ///
    /// # Errors
    /// [`MountError`]; the mount point is removed again if it was made.
    pub fn mount(mut self, name: &str) -> Result<(Mounted, OwnedFd), MountError> {
        let source = source(name);
        attach::check()?;
        let device = if rustix::process::geteuid().is_root() {
            attach::attach(&self.at, &source)?
        } else {
            fusermount::mount(&self.at, &source)?
        };
        let made = std::mem::take(&mut self.made);
        let found = top(&self.at)?.filter(|mount| mount.is_own_view_from(&source));
        let id = found.as_ref().map(|mount| mount.id);
        let connection = found.and_then(|mount| Number::of(&mount.device));
        Ok((
            Mounted { table: Table::Own, at: std::mem::take(&mut self.at), source, id, connection, made },
            device,
        ))
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        place::remove_made(&self.made);
    }
}

/// What a file system says when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulse {
    Answers,
    /// Its server is gone, and nothing will ever answer.
    Dead,
    /// It has not answered in time.
    Silent,
}

/// Asks what is mounted at `at`, from a process that may hang. statfs(2) always asks the server, while the kernel answers
/// stat(2) of a dead mount from its cache.
fn pulse(at: &Path) -> Pulse {
    let Ok(probe) = Probe::start(at) else { return Pulse::Silent };
    let until = Instant::now() + PULSE;
    match poll::readable(&[probe.done()], Some(until)).ok().and_then(|_| probe.answer()) {
        Some(Err(error)) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => Pulse::Dead,
        Some(_) => Pulse::Answers,
        None => Pulse::Silent,
    }
}

/// Unmounts what is mounted at `at` if it is dead mounts of the view called `name`; whatever else is mounted there is in
/// the way. That the server lives is known from its lock alone only if the view's state lies where this process looks:
/// so the mount itself is asked as well.
///
/// One that does not answer, and is the connection `earlier` of this state directory, has no server either: all were killed, and
/// one of them cannot end, as it waits for somebody who waits for an answer.
fn clear_dead(at: &Path, name: &str, mut earlier: Option<Number>) -> Result<(), MountError> {
    while let Some(mount) = top(at)? {
        // Whoever looked there waits for this mount.
        if mount.automounter.is_some_and(|group| group == rustix::process::getpgrp().as_raw_nonzero().get()) {
            return Ok(());
        }
        let pulse = if mount.kind.starts_with("fuse") { pulse(at) } else { Pulse::Answers };
        let ours = mount.is_own_view_from(&source(name));
        if pulse == Pulse::Dead && ours {
            tracing::warn!(mountpoint = %at.display(), "clearing away the dead mount of an earlier run");
            detach(at)?;
            continue;
        }
        // Once: if it cannot be ended, it is in the way.
        let number = earlier
            .take_if(|number| pulse == Pulse::Silent && ours && Number::of(&mount.device) == Some(*number));
        if let Some(number) = number {
            tracing::warn!(mountpoint = %at.display(), "ending the connection of an earlier run, which nobody serves");
            if let Err(error) = connection::abort(number) {
                tracing::debug!(%error, "cannot abort it; unmounting it by force");
                force(at);
            }
            continue;
        }
        let health = match pulse {
            Pulse::Answers => "",
            Pulse::Dead => ", whose server is dead",
            Pulse::Silent => ", whose server does not answer",
        };
        let by = format!("'{}' ({}){health}", mount.source, mount.kind);
        return Err(MountError::Mounted { at: at.to_owned(), by });
    }
    Ok(())
}
