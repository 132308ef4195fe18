//! Arguments in, exit code out.
//!
//! [`args`] has what is typed, and a file for each thing that the program does has its own arguments, what it prints and how it
//! ends: [`serve`], [`run`], [`mount_helper`], [`dump`], [`reload`], [`status`], [`report`], [`why`], [`diff`], [`cdi`], [`version`]. What they share: whose closure is meant ([`config`], [`closures`]), which view
//! ([`views`]), standard output ([`output`]), exit codes ([`exit`]). Help, version and a wrong flag need no store, no
//! `/dev/fuse` and no rights.

mod args;
mod cdi;
mod closures;
mod config;
mod diff;
mod dump;
mod exit;
mod mount_helper;
mod output;
mod reload;
mod report;
mod run;
mod serve;
mod status;
mod version;
mod views;
mod why;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use crate::startup::Stored;
use crate::{error, log, panics, startup, sys};
use args::{Args, Command};
pub use cdi::NoFile;
pub use closures::NamesOnly;
pub use config::ConfigError;
pub use diff::OtherStore;
pub use exit::{Exit, Failure};
pub use mount_helper::mount_helper_command;
pub use run::PlaceError;
pub use views::{NoAnswer, Unanswered};
pub use why::WhyError;

/// How long the end of a process waits for whoever reads its log.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The whole program, but for its servers.
pub fn main() -> ! {
    panics::begin();
    if mount_helper::is_meant() {
        mount_helper::main();
    }
    if run::is_meant() {
        run::main();
    }
    let inherited = startup::begin();
    // A monitor gives up its rights before it has a thread.
    log::begin();
    let args = Args::try_parse().unwrap_or_else(|error| end(explain(error), LAST_WORDS));
    let settings = args.log();
    log::set_up(settings);
    inherited.complain();
    let exit = match perform(args, inherited.stored) {
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

/// What can be typed, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

/// Ends the process, and runs nothing of what libraries have registered for its end: see [`sys::exit_now`].
fn end(exit: Exit, patience: Duration) -> ! {
    let _ = io::stdout().flush();
    log::flush(patience);
    sys::exit_now(exit as u8)
}

/// Prints what is wrong with the arguments, or the help that they ask for.
fn explain(error: clap::Error) -> Exit {
    let error = further_word(error);
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

/// clap takes a word that is one too many for a command that does not belong there.
fn further_word(error: clap::Error) -> clap::Error {
    let is_conflict = error.kind() == ErrorKind::ArgumentConflict;
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand).filter(|_| is_conflict)
    else {
        return error;
    };
    let mut command = Args::command();
    let typed = std::env::args_os().nth(1).and_then(|first| first.into_string().ok()).unwrap_or_default();
    if let Some(meant) = args::command_like(&typed).filter(|meant| *meant != typed) {
        let why = format!("there is no command '{typed}'; is '{meant}' meant?");
        return command.error(ErrorKind::InvalidSubcommand, why);
    }
    let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let why = format!(
        "'{word}' is one word too many: a view has one mount point, and a command is the first word ({})",
        names.join(", ")
    );
    command.error(ErrorKind::UnknownArgument, why)
}

fn perform(args: Args, stored: Stored) -> Result<Exit, Failure> {
    let serves =
        args.command.is_none() && !args.version && args.dump_closure.is_none() && args.reload.is_none();
    if serves {
        return serve::run(args, stored);
    }
    startup::do_not_take_signals();
    log::start();
    match args.command {
        // It is the first word, and was taken before.
        Some(Command::Run(_)) => Ok(Exit::Usage),
        Some(Command::Reload(args)) => reload::run(&args),
        Some(Command::Status(args)) => status::run(&args),
        Some(Command::Report(args)) => report::run(&args),
        Some(Command::Why(args)) => why::run(args),
        Some(Command::Diff(args)) => diff::run(args),
        Some(Command::Cdi(args)) => cdi::run(args),
        None if args.version => {
            output::print(output::Color::NONE, |out| version::write(out))?;
            Ok(Exit::Success)
        }
        None => match (args.reload, args.dump_closure) {
            (Some(view), _) => {
                tracing::warn!("'--reload NAME' is 'reload NAME' now; a later version will not take it");
                reload::reload(&view)
            }
            (None, format) => dump::run(args.roots, format.unwrap_or_default(), args.color),
        },
    }
}
