//! A command over a view: a namespace of its own in which the store directory is the view, for as long as anybody is in there.
//!
//! The drawing is in docs/design.md, "One command". [`plan`] and [`places`] decide, [`namespace`] and [`build`] call,
//! [`command`] is what is run, [`wait`] waits for it where this process does not become it.
//!
//! Invariants:
//! - A view is mounted in the command's mount namespace alone: it ends with the last process in there, whoever is killed.
//! - Whatever fails before the command is executed leaves nothing behind, and is said in one line.
//! - The command gets the dispositions of signals, the limits and the umask that this process was started with, and what it had
//!   open, but for directories: one could lead to the store.
//!
//! Hard points:
//! 1. From the mount to the answer to the kernel's first request nobody looks into the view: who does waits.
//! 2. Who serves the view becomes a child of the nearest process that takes orphans. If that is this one, it does not become the
//!    command, which might wait for all its children, but waits itself.

mod build;
mod command;
mod error;
mod namespace;
mod places;
mod plan;
mod wait;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::background::{self, Background, Told};
use crate::startup::Original;
use crate::{sandbox, sys};

pub use build::{Hiding, LOG_DIR, Nix, Place, STATE_DIR, UPPER, WORK};
pub use command::{found, is_set_id, object};
pub use error::{Hint, RunError};
pub use namespace::map;
pub use plan::{Access, Wish};
pub use wait::Ended;

use wait::Processes;

/// What is run, and what it sees.
#[derive(Debug)]
pub struct Settings {
    /// The view, and what is hidden with it.
    pub hiding: Hiding,
    /// A place for Nix, if it is to work in there.
    pub nix: Option<Nix>,
    /// What it sees besides, in this order.
    pub wishes: Vec<Wish>,
    /// Whether it can reach anybody over the network.
    pub network: Network,
    /// Which processes it sees.
    pub processes: ProcessTable,
    /// Whether it has capabilities.
    pub rights: sandbox::Command,
    /// Its current directory; none: that of this process.
    pub directory: Option<PathBuf>,
    /// All of its variables.
    pub variables: Vec<(OsString, OsString)>,
    /// Its name and its arguments.
    pub words: Vec<OsString>,
    /// What to say if it is not found in there.
    pub hint: Option<Hint>,
    /// What this process was started with.
    pub original: Original,
}

/// Which network a command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// That of this process.
    Shared,
    /// None but a loopback device.
    Own,
}

/// Which processes a command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessTable {
    /// Those that this process sees.
    Shared,
    /// Its own.
    Own,
}

/// What stays of a command that was waited for.
#[derive(Debug)]
pub struct Left {
    /// How it ended.
    pub ended: Ended,
    /// The file system with the state of its view, which lives as long as this.
    pub state: OwnedFd,
    /// The view, kept mounted.
    _root: OwnedFd,
}

/// A process in the namespaces of the command.
#[derive(Debug)]
struct Entered {
    /// What keeps the state of the view.
    state: OwnedFd,
    /// What keeps the view.
    root: OwnedFd,
    /// Where the command begins, by its name: what this process had as current directory may lead to what is hidden.
    directory: PathBuf,
    served: Served,
}

/// Whether the view has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    NotYet,
    Already,
}

/// Whether orphans become children of this process.
#[must_use]
pub fn takes_orphans() -> bool {
    std::process::id() == 1 || rustix::process::child_subreaper().is_ok_and(|taken| taken.is_some())
}

/// Becomes the command, in a namespace with a view that `background` serves; returns why it could not. Where the command is in a
/// process namespace, it is waited for.
///
/// # Errors
/// [`RunError`].
pub fn become_command(settings: &Settings, background: Background) -> Result<Ended, RunError> {
    let Entered { directory, served, .. } = enter(settings, &background)?;
    finish(settings, background, served, &directory, None)
}

/// The same in a new process, which is waited for. What it leaves can be asked then.
///
/// # Errors
/// [`RunError`].
pub fn run_command(settings: &Settings, background: Background) -> Result<Left, RunError> {
    let (ours, theirs) = background::pair().map_err(RunError::Start)?;
    let signals = wait::signals()?;
    let parent = rustix::process::getpid();
    let Some(child) = sys::fork().map_err(RunError::Start)? else {
        drop((ours, signals));
        end((|| {
            die_with(Some(parent))?;
            let Entered { state, root, directory, served } = enter(settings, &background)?;
            background::give(&theirs, 0, &[state.as_fd(), root.as_fd()]).map_err(RunError::Start)?;
            drop((state, root, theirs));
            finish(settings, background, served, &directory, Some(parent))
        })());
    };
    drop((theirs, background));
    let ended = wait::wait(child, &signals, Processes::Shared)?;
    let mut given = background::take(&ours).map(|(_, given)| given).unwrap_or_default().into_iter();
    match (given.next(), given.next()) {
        (Some(state), Some(root)) => Ok(Left { ended, state, _root: root }),
        _ => Err(RunError::Said(ended.0)),
    }
}

/// Enters the namespaces, mounts, and gives the view to `background`.
fn enter(settings: &Settings, background: &Background) -> Result<Entered, RunError> {
    let directory = match &settings.directory {
        Some(directory) => directory.clone(),
        None => std::env::current_dir().map_err(|source| RunError::Directory { at: ".".into(), source })?,
    };
    let right = namespace::right();
    namespace::enter(right)?;
    if settings.network == Network::Own {
        namespace::leave_network()?;
    }
    let (build::View { device, connection, state, root }, mut rest) =
        build::build(&settings.hiding, &settings.wishes)?;
    let lock = settings.nix.as_ref().and_then(|nix| nix.lock.as_ref());
    let user = pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let user = user.map_err(|error| RunError::Start(error.into()))?;
    let given = [Some(&device), Some(&state), Some(&user), lock];
    let given: Vec<_> = given.into_iter().flatten().map(AsFd::as_fd).collect();
    background.give(connection, &given).map_err(|_| RunError::Lost)?;
    drop(device);
    let served = if settings.nix.is_some() || rest.asks() {
        serves(background)?;
        Served::Already
    } else {
        Served::NotYet
    };
    if let Some(nix) = &settings.nix {
        rest.layer(nix, right)?;
    }
    rest.finish()?;
    namespace::lock(right)?;
    Ok(Entered { state, root, directory, served })
}

/// Waits until the view answers.
fn serves(background: &Background) -> Result<(), RunError> {
    match background.wait() {
        Told::Ready => Ok(()),
        Told::Failed { why, .. } => Err(RunError::NotServed(why)),
        Told::Nothing => Err(RunError::Lost),
    }
}

/// Waits until the view answers, and becomes the command. `parent` waits for it, if somebody does.
fn finish(
    settings: &Settings,
    background: Background,
    served: Served,
    directory: &Path,
    parent: Option<Pid>,
) -> Result<Ended, RunError> {
    if served == Served::NotYet {
        serves(&background)?;
    }
    drop(background);
    if settings.processes == ProcessTable::Shared {
        return Err(execute(settings, directory, parent));
    }
    // The command may look into the processes that wait for it.
    rustix::process::chdir("/").map_err(|error| RunError::Start(error.into()))?;
    sys::leave_directories(true).map_err(RunError::Start)?;
    let signals = wait::signals()?;
    namespace::leave_processes()?;
    let Some(first) = sys::fork().map_err(RunError::Start)? else {
        drop(signals);
        end(first_process(settings, directory));
    };
    wait::wait(first, &signals, Processes::Apart)
}

/// The first process of a process namespace: whoever is left in there when it ends is killed.
fn first_process(settings: &Settings, directory: &Path) -> Result<Ended, RunError> {
    // Its parent is in another namespace, and has no number in here.
    die_with(None)?;
    build::own_proc()?;
    let signals = wait::signals()?;
    let Some(command) = sys::fork().map_err(RunError::Start)? else {
        drop(signals);
        end(Err(execute(settings, directory, None)));
    };
    wait::wait(command, &signals, Processes::Shared)
}

/// Becomes the command.
fn execute(settings: &Settings, directory: &Path, parent: Option<Pid>) -> RunError {
    let begin = || {
        rustix::process::chdir(directory)
            .map_err(|error| RunError::Directory { at: directory.to_owned(), source: error.into() })?;
        settings.rights.confine()?;
        // After the last change of rights, which takes it back (prctl(2)).
        if parent.is_some() {
            die_with(parent)?;
        }
        sys::leave_directories(false).map_err(RunError::Start)
    };
    if let Err(error) = begin() {
        return error;
    }
    settings.original.restore();
    match command::execute(&settings.words, &settings.variables) {
        RunError::NotFound { name, .. } => RunError::NotFound { name, hint: settings.hint.clone() },
        RunError::NoInterpreter { file, interpreter: Some(interpreter), .. } => {
            let dir = &settings.hiding.store;
            let root = command::object(&interpreter, dir).map(|object| dir.join(object));
            RunError::NoInterpreter { file, interpreter: Some(interpreter), root }
        }
        other => other,
    }
}

/// Lets the kernel kill this process when `parent`, that made it, ends.
fn die_with(parent: Option<Pid>) -> Result<(), RunError> {
    match sys::die_with(parent).map_err(RunError::Start)? {
        true => Ok(()),
        false => Err(RunError::Start(io::Error::other("the process that waits for it has ended"))),
    }
}

/// Ends this process as the command has ended, or says why that was not run.
pub fn end(done: Result<Ended, RunError>) -> ! {
    let code = match done {
        Ok(Ended(code)) => code,
        Err(error) => {
            error.say();
            error.exit()
        }
    };
    sys::exit_now(code)
}
