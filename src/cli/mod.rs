//! Arguments in, exit code out.
//!
//! Three stages: [`args`] as typed, [`config`] checked, then live objects. Help, version and a wrong flag need no
//! store, no `/dev/fuse` and no rights.

mod args;
mod config;
mod exit;
mod version;

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::closure::dump;
use crate::closure::resolve::{ResolveError, resolve};
use crate::monitor::mount::MountError;
use crate::monitor::{self, Ending, mount};
use crate::protocol::control::ReloadError;
use crate::protocol::wire::{LogSettings, Report};
use crate::protocol::{control, wire};
use crate::server::ServeError;
use crate::startup::Stored;
use crate::store::Store;
use crate::{error, log, server, startup, sys};
use args::Args;
use config::{Action, Config};
pub use exit::{Exit, Failure};

/// How long the end of a process waits for whoever reads its log.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// The server's: less than the monitor waits for its end.
const SERVER_LAST_WORDS: Duration = Duration::from_millis(300);

/// The whole program.
pub fn main() -> ! {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == monitor::child::SERVER_ARGUMENT) {
        startup::begin_server();
        start_log();
        end(run_server(), SERVER_LAST_WORDS)
    }
    let inherited = startup::begin();
    start_log();
    let args = Args::try_parse().unwrap_or_else(|error| end(explain(&error), LAST_WORDS));
    let settings = args.log();
    set_up_log(settings);
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
        log::say(error.render().to_string().trim_end());
    }
    Exit::Usage
}

fn run(config: Config, stored: Stored) -> Result<Exit, Failure> {
    if !matches!(config.action, Action::Mount(_)) {
        startup::do_not_take_signals();
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

/// The other process: started by the monitor with a socket as its standard input.
fn run_server() -> Exit {
    let begun = io::stdin().as_fd().try_clone_to_owned().map_err(|error| {
        log::say(&format!("nix-store-fs: no monitor to serve: {error}"));
    });
    let Ok(monitor) = begun else { return Exit::Failure };
    let (start, descriptors) = match server::receive_start(&monitor) {
        Ok(start) => start,
        // The monitor ended before it had anything to serve, and has said why.
        Err(ServeError::NoOrder(None)) => return Exit::Failure,
        Err(failure) => {
            log::say(&format!("nix-store-fs: {}", error::chain(&failure)));
            return Exit::Failure;
        }
    };
    set_up_log(start.log);
    let report = monitor.try_clone();
    match server::serve(start, descriptors, monitor) {
        Ok(()) => Exit::Success,
        Err(failure) => {
            let why = error::chain(&failure);
            match report {
                Ok(monitor)
                    if wire::send_report(&monitor, &Report::failed(failure.cause(), &why)).is_ok() => {}
                _ => tracing::error!("{why}"),
            }
            Exit::Failure
        }
    }
}

/// From here on nothing of this process waits for whoever reads standard error, a panic included.
fn start_log() {
    if let Err(error) = log::start() {
        log::say(&format!("nix-store-fs: the log is written without a thread of its own: {error}"));
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name").to_owned();
        log::say(&format!("nix-store-fs: internal error, please report this bug: thread '{name}' {panic}"));
        log::flush(LAST_WORDS);
    }));
}

fn set_up_log(settings: LogSettings) {
    let level = match settings.verbosity {
        0 => LevelFilter::ERROR,
        1 => LevelFilter::WARN,
        2 => LevelFilter::INFO,
        3 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = Targets::new().with_default(level);
    let layer = tracing_subscriber::fmt::layer().with_writer(|| log::Lines);
    let registry = tracing_subscriber::registry().with(filter);
    let done = if settings.json {
        registry.with(layer.json()).try_init()
    } else {
        registry.with(layer.with_ansi(false).without_time().with_target(false)).try_init()
    };
    if let Err(error) = done {
        log::say(&format!("nix-store-fs: nothing will be logged: {error}"));
    }
}
