//! `run`: a command that sees the view of a closure at the store directory, and nothing else of the store.
//!
//! Hard point: this process becomes the command, so it changes nothing of what it was started with ([`Original`]), and has no
//! thread. What serves the view is forked first ([`background`]).

mod after;
mod inside;
mod left;
mod settings;

use std::cell::OnceCell;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use clap::{ArgAction, CommandFactory, FromArgMatches};

use after::Wanted;
pub use inside::PlaceError;

use super::args::{self, RootArgs};
use super::config::ConfigError;
use super::exit::Failure;
use super::{LAST_WORDS, explain};
use crate::background::{self, Caller, Session, Side};
use crate::closure::resolve::Roots;
use crate::closure::source::Source;
use crate::log::LogSettings;
use crate::monitor::mount::Number;
use crate::monitor::{self, Awaited, Given, Origin};
use crate::run::{self, Ended, Left};
use crate::startup::{self, Original};
use crate::{error, log, sys};

/// The code of a failure of this program's own, as that of env(1).
const FAILED: u8 = 125;
/// The code for a command that is not found, as that of env(1).
const NOT_FOUND: u8 = 127;

/// Run a command that sees the closure of the roots as its store, and nothing else of the store
///
/// Without roots: the closure of COMMAND itself. An ordinary user needs user namespaces and /dev/fuse, nothing else. COMMAND has no
/// capabilities, and Nix's database and daemon are hidden from it. It hides the store; it confines nothing else: who can ask a
/// process outside (D-Bus, a container daemon) can have it read the store.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, override_usage = "nix-store-fs run [OPTIONS] [--] COMMAND [ARG]...")]
pub(super) struct Args {
    #[command(flatten)]
    roots: RootArgs,

    /// Show SRC, a file or directory of outside, at DST; repeatable
    #[arg(long, num_args = 2, value_names = ["SRC", "DST"], action = ArgAction::Append)]
    bind: Vec<PathBuf>,

    /// The same, read-only
    #[arg(long, num_args = 2, value_names = ["SRC", "DST"], action = ArgAction::Append)]
    ro_bind: Vec<PathBuf>,

    /// An empty directory in memory at DIR; repeatable
    #[arg(long, value_name = "DIR")]
    tmpfs: Vec<PathBuf>,

    /// The current directory of COMMAND [default: this one]
    #[arg(long, value_name = "DIR", overrides_with = "chdir")]
    chdir: Option<PathBuf>,

    /// Set a variable for COMMAND; repeatable
    #[arg(long, num_args = 2, value_names = ["VAR", "VALUE"], action = ArgAction::Append)]
    setenv: Vec<OsString>,

    /// Give COMMAND no variables but those of --setenv
    #[arg(long)]
    clearenv: bool,

    /// Give COMMAND a network of its own, on which nobody is
    #[arg(long)]
    unshare_net: bool,

    /// Give COMMAND a process namespace of its own, with a /proc; who is left in there when COMMAND ends is killed
    #[arg(long)]
    unshare_pid: bool,

    /// Let COMMAND have the capabilities of its user namespace; as root without one: those of root, with which it can unmount the view
    #[arg(long)]
    keep_caps: bool,

    /// Let Nix work: COMMAND has a database with the closure, and a store that it can write to, in memory
    #[arg(long)]
    nix: bool,

    /// Keep in DIR what is written to the store of --nix, for the next run; DIR is made if absent
    #[arg(long, value_name = "DIR", requires = "nix")]
    overlay: Option<PathBuf>,

    /// When COMMAND has ended, tell what it missed and used, on standard error or in FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    report: Option<Option<PathBuf>>,

    /// When COMMAND has ended, write the roots that would have been enough into FILE, for --roots-file: what it used, and what it missed
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    learn: Option<PathBuf>,

    #[command(flatten)]
    log: RunLogArgs,

    /// The command, and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// How much is said.
#[derive(Debug, clap::Args)]
struct RunLogArgs {
    /// Log more; twice and three times for details
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

const AFTER_HELP: &str = "\
Exit codes: those of COMMAND, and
  125  the command was not run: wrong usage, no view, no namespace
  126  COMMAND cannot be executed
  127  COMMAND is not found, or its interpreter
  128+N  COMMAND was ended by signal N, where it was waited for (--report, --learn, --unshare-pid)";

impl Args {
    /// How to log.
    pub(super) fn log(&self) -> LogSettings {
        LogSettings { verbosity: self.log.verbose.saturating_add(1), ..LogSettings::default() }
    }
}

/// Whether the first word asks for it.
pub(super) fn is_meant() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == "run")
}

/// The whole program.
pub(super) fn main() -> ! {
    let original = Original::keep();
    let matches = args::Args::command().try_get_matches();
    let parsed = matches.and_then(|matches| {
        let wishes = matches.subcommand_matches("run").map(settings::wishes).unwrap_or_default();
        args::Args::from_arg_matches(&matches).map(|args| (args, wishes))
    });
    let (mut args, wishes) = match parsed {
        Ok((args::Args { command: Some(args::Command::Run(args)), .. }, wishes)) => (*args, wishes),
        Ok(_) => sys::exit_now(FAILED),
        Err(error) => {
            let asked = !error.use_stderr();
            let _ = explain(error);
            sys::exit_now(if asked { 0 } else { FAILED });
        }
    };
    let logs = args.log();
    log::set_up(logs);
    let fail = |why: &dyn std::error::Error| -> ! {
        log::say_error(why);
        sys::exit_now(FAILED)
    };
    let wanted = Wanted {
        report: args.report.take(),
        learn: args.learn.take(),
        store: args.roots.store.clone(),
        words: args.words.clone(),
    };
    if let Err(failure) = wanted.check() {
        fail(&failure);
    }
    let (nix, overlay) = (args.nix, args.overlay.take());
    let (mut settings, mut view) = match settings::settings(args, wishes, original, logs) {
        Ok(settings) => settings,
        Err(error @ ConfigError::NoCommand(_)) => {
            log::say_error(&error);
            sys::exit_now(NOT_FOUND)
        }
        Err(error) => fail(&error),
    };
    view.report = wanted.is_any();
    if nix {
        let Some(prepared) = inside::prepare(&view.source, view.store.as_deref(), overlay.as_deref()) else {
            sys::exit_now(FAILED);
        };
        settings.nix = Some(prepared.nix);
        // The same closure, whatever a profile is by now.
        if let Source::Roots(_) = view.source {
            view.source = Source::Roots(Roots { paths: prepared.roots, ..Roots::default() });
        }
    }
    match background::split(Session::Own) {
        Ok(Side::Background(caller)) => serve(Arc::new(caller), view),
        Ok(Side::Caller(background)) => {
            let ended = if wanted.is_any() {
                run::run_command(&settings, background).map(|left| finish(wanted, left, &settings))
            } else if run::takes_orphans() {
                run::run_command(&settings, background).map(|left| left.ended)
            } else {
                run::become_command(&settings, background)
            };
            run::end(ended)
        }
        Err(error) => fail(&run::RunError::Start(error)),
    }
}

/// Tells of a command that has ended. It ended as it did, whatever can be told.
fn finish(wanted: Wanted, left: Left, settings: &run::Settings) -> Ended {
    // It may take long, and somebody may want to end it.
    settings.original.unblock();
    let control = monitor::state::control(&state_in(&left.state));
    match wanted.tell(&control, &settings.hiding.store, left.ended.0 == 0) {
        // There was no view, and that was said.
        Err(Failure::Report(_)) if left.ended.0 == FAILED => {}
        Err(failure) => log::say_error(&failure),
        Ok(()) => {}
    }
    left.ended
}

/// Serves the view that the caller mounts.
fn serve(caller: Arc<Caller>, settings: monitor::Settings) -> ! {
    startup::begin_background();
    log::begin();
    // The state, and the lock of a layer: they end with this process, so with the command.
    let kept: Rc<OnceCell<Vec<OwnedFd>>> = Rc::default();
    let (keep, from) = (kept.clone(), caller.clone());
    let origin = Origin::Given(Awaited::new(move || {
        let (connection, given) = from.take()?;
        let mut given = given.into_iter();
        let (device, state, user) = (given.next()?, given.next()?, given.next()?);
        let directory = state_in(&state);
        let _ = keep.set([state].into_iter().chain(given).collect());
        Some((Given { device, connection: Number(connection), state: directory }, user))
    }));
    let exit = match monitor::run(settings, origin, Some(caller.clone())) {
        Ok(_) => 0,
        Err(error) => {
            let why = error::chain(&Failure::from(error));
            tracing::debug!("{why}");
            caller.failed(FAILED, &why);
            FAILED
        }
    };
    log::flush(LAST_WORDS);
    sys::exit_now(exit)
}

/// The state directory of a view, in the file system that is open and has no name.
fn state_in(state: &OwnedFd) -> PathBuf {
    sys::path_of(state).join("views/.state/run")
}
