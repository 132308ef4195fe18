//! Arguments in, exit code out.
//!
//! Three stages: [`args`] as typed, [`config`] checked, then live objects. Help, version and a wrong flag need no
//! store, no `/dev/fuse` and no rights.

mod args;
mod config;
mod exit;
mod version;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Parser;

use crate::closure::dump;
use crate::closure::resolve::{ResolveError, resolve};
use crate::monitor::mount::MountError;
use crate::monitor::{self, Ending, mount};
use crate::protocol::control;
use crate::protocol::control::ReloadError;
use crate::startup::Stored;
use crate::store::Store;
use crate::{error, log, panics, startup, sys};
use args::Args;
use config::{Action, Config};
pub use exit::{Exit, Failure};

/// How long the end of a process waits for whoever reads its log.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The whole program, but for its servers.
pub fn main() -> ! {
    panics::begin();
    let inherited = startup::begin();
    // A monitor gives up its rights before it has a thread.
    log::begin();
    let args = Args::try_parse().unwrap_or_else(|error| end(explain(&error), LAST_WORDS));
    let settings = args.log();
    log::set_up(settings);
    inherited.complain();
    let exit = match Config::check(args).map_err(Failure::from).and_then(|args| run(args, inherited.stored)) {
        Ok(exit) => exit,
        Err(failure) => {
            let why = error::chain(&failure);
            if settings.json {
                tracing::error!("{why}");
            } else {
                log::say(&format!("nix-store-fs: {why}"));
            }
            failure.exit()
        }
    };
    end(exit, LAST_WORDS)
}

/// Ends the process, and runs nothing of what libraries have registered for its end: see [`sys::exit_now`].
fn end(exit: Exit, patience: Duration) -> ! {
    let _ = io::stdout().flush();
    log::flush(patience);
    sys::exit_now(exit as u8)
}

/// Prints what is wrong with the arguments, or the help that they ask for.
fn explain(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Success;
    }
    if io::stderr().is_terminal() {
        let _ = error.print();
    } else {
        error.render().to_string().trim_end().lines().for_each(log::say);
    }
    Exit::Usage
}

fn run(config: Config, stored: Stored) -> Result<Exit, Failure> {
    if !matches!(config.action, Action::Mount(_)) {
        startup::do_not_take_signals();
        log::start();
    }
    match config.action {
        Action::Version => {
            print(|out| version::write(out))?;
            Ok(Exit::Success)
        }
        Action::Mount(settings) => {
            // The server is started from there as well.
            mount::mounts()?;
            match monitor::run(*settings, stored)? {
                Ending::Unmounted => Ok(Exit::Success),
                Ending::HandedOver => Ok(Exit::HandedOver),
            }
        }
        Action::Dump { roots, store, format } => {
            // The store may take its thread into another mount namespace: here that harms nobody, but a thread
            // of its own is the rule.
            let work = move || {
                let store = Store::open_given(store.as_deref())?;
                let closure = resolve(&store, &roots)?;
                Ok::<_, ResolveError>((closure, store.dir().to_owned()))
            };
            let (closure, dir) = std::thread::spawn(work).join().map_err(|_| Failure::Panicked)??;
            print(|out| dump::write(&closure, &dir, format, out))?;
            Ok(Exit::Success)
        }
        Action::Reload { view, states } => {
            let served = |name: &str| monitor::state::control(&states.join(name)).exists();
            let name = config::view_of(&view, served, mount::view_at)?;
            let state = states.join(&name);
            monitor::state::examine(&state)?;
            let said = control::reload(&name, &monitor::state::control(&state))
                .map_err(|error| explain_unserved(error, &state, &name))?;
            print(|out| writeln!(out, "{said}"))?;
            Ok(Exit::Success)
        }
    }
}

/// Nobody may listen because the monitor has died, though its server still serves.
fn explain_unserved(error: ReloadError, state: &Path, name: &str) -> ReloadError {
    if !matches!(error, ReloadError::NotServed { .. }) {
        return error;
    }
    match mount::refuse_served(&monitor::state::server_lock(state), name) {
        Err(served @ MountError::Served(_)) => ReloadError::Unmonitored(served.to_string()),
        _ => error,
    }
}

/// Writes to standard output; a reader that has seen enough is no error.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        answer => answer.map_err(Failure::Output),
    }
}
