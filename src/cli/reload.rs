//! `reload`: a running view looks up its roots again.

use std::path::{Path, PathBuf};

use super::args::LogArgs;
use super::exit::{Exit, Failure};
use super::output::{Color, print};
use super::views::Running;
use crate::protocol::control::{self, ReloadError};

/// Have a running view look up its roots again; returns when the new closure is visible
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 8: the reload failed, or there is no such view. All others: nix-store-fs --help"
)]
pub(super) struct Args {
    /// The view: its name, or where it is mounted
    #[arg(value_name = "NAME|MOUNTPOINT")]
    view: PathBuf,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    reload(&args.view)
}

/// Asks for a reload of `view`, and prints what became of it.
pub(super) fn reload(view: &Path) -> Result<Exit, Failure> {
    let view = Running::find(view)?.ok_or_else(|| ReloadError::NoView(view.to_owned()))?;
    let said = control::reload(&view.name, &view.control()).map_err(|error| view.explain(error))?;
    print(Color::NONE, |out| writeln!(out, "{said}"))?;
    Ok(Exit::Success)
}
