//! `cdi`: tells container engines where running views are mounted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::LogArgs;
use super::exit::{Exit, Failure};
use super::output::{Color, Harmless, print};
use super::status;
use super::views::{NoAnswer, Unanswered};
use crate::cdi::{Entry, NoDevice, Spec, SpecFile};
use crate::error;
use crate::monitor::mount::{self, MountError};
use crate::mounts::{self, Mount};
use crate::protocol::control::status::{State, Status};

/// How long others may take to change the file: each writes what it knows already, so that is a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often views are asked again because somebody has changed the file meanwhile.
const ROUNDS: usize = 20;
/// `--output` for standard output.
const STANDARD_OUTPUT: &str = "-";

/// Write running views as devices for podman, docker and other container engines (CDI)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints the devices, one a line. With a user namespace of the container's own, NAME:idmap leaves the
files root's; without one it is an error. Run the command again when a view has been started. A view
that ends removes its entry from the default file.

Exit codes: 1: the file cannot be written, or is not this program's; 12: with '--output -', there is no
view to write. All others: nix-store-fs --help")]
pub(super) struct Args {
    /// The file; '-': standard output [default: /run/cdi/nix-store-fs.json, and for ordinary users
    /// $XDG_RUNTIME_DIR/cdi/nix-store-fs.json]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Remove the file
    #[arg(long)]
    remove: bool,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// Why it is not known which file is meant.
#[derive(Debug, thiserror::Error)]
pub enum NoFile {
    /// There is nothing to remove.
    #[error("--remove removes a file, and '--output -' names none")]
    StandardOutput,
    /// An ordinary user has no place where others look.
    #[error("XDG_RUNTIME_DIR is not set to a directory; give the file with --output")]
    NoRuntimeDirectory,
}

/// Why a running view is left out.
#[derive(Debug, thiserror::Error)]
enum LeftOut {
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    #[error("it is not mounted at '{}', as this process sees it", Harmless::path(.0))]
    Elsewhere(PathBuf),
    #[error(
        "it has not asked its store yet where a container expects the files; run 'nix-store-fs cdi' again"
    )]
    NotKnown,
}

/// What views have answered.
struct Answers {
    views: Vec<Status>,
    unanswered: Vec<Unanswered>,
}

/// What is to be written, and what is not.
struct Found {
    entries: Vec<Entry>,
    left_out: Vec<(String, LeftOut)>,
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    match (args.output, args.remove) {
        (Some(output), remove) if output.as_os_str() == STANDARD_OUTPUT => {
            if remove {
                return Err(NoFile::StandardOutput.into());
            }
            to_standard_output()
        }
        (output, remove) => {
            let file = output.map_or_else(SpecFile::usual, |path| Some(SpecFile::at(path)));
            let file = file.ok_or(NoFile::NoRuntimeDirectory)?;
            if remove {
                file.lock(PATIENCE)?.replace(&Spec::of(&[]))?
            } else {
                write(&file)?
            }
            Ok(Exit::Success)
        }
    }
}

fn to_standard_output() -> Result<Exit, Failure> {
    let answers = ask()?;
    let found = find(&answers, None, &mounts::mounts().map_err(MountError::from)?);
    complain(&answers, &found);
    if found.entries.is_empty() {
        return Err(Failure::NoViews);
    }
    print(Color::NONE, |out| out.write_all(Spec::of(&found.entries).text().as_bytes()))?;
    Ok(Exit::Success)
}

fn write(file: &SpecFile) -> Result<(), Failure> {
    let mut rounds = 0;
    let (answers, found) = loop {
        let stamp = file.stamp();
        let answers = ask()?;
        let locked = file.lock(PATIENCE)?;
        rounds += 1;
        if locked.is_changed(stamp) && rounds < ROUNDS {
            continue;
        }
        let earlier = locked.read()?;
        let found = find(&answers, earlier.as_ref(), &mounts::mounts().map_err(MountError::from)?);
        locked.replace(&Spec::of(&found.entries))?;
        break (answers, found);
    };
    complain(&answers, &found);
    let path = Harmless::path(file.path());
    if found.entries.is_empty() {
        tracing::info!("there is no view to write, and so no file '{path}'");
    }
    print(Color::NONE, |out| {
        found.entries.iter().flat_map(Entry::devices).try_for_each(|device| writeln!(out, "{device}"))
    })
}

fn ask() -> Result<Answers, Failure> {
    let (views, unanswered) = status::ask_all()?;
    Ok(Answers { views, unanswered })
}

/// The entries of views that are mounted where `table` is read. A view that has not answered keeps its `earlier` one, if somebody
/// serves it.
fn find(answers: &Answers, earlier: Option<&Spec>, table: &[Mount]) -> Found {
    let mut found = Found { entries: Vec::new(), left_out: Vec::new() };
    for view in answers.views.iter().filter(|view| view.state != State::Ending) {
        match entry(view, table) {
            Ok(entry) => found.entries.push(entry),
            Err(why) => found.left_out.push((view.name.clone(), why)),
        }
    }
    let alive = answers.unanswered.iter().filter(|error| !matches!(error.why, NoAnswer::Ended(_)));
    let kept = alive.filter_map(|error| earlier?.entry(&error.view));
    found.entries.extend(kept.filter(|entry| is_mounted(entry.view(), entry.at(), table)));
    found.entries.sort_by(|a, b| a.view().cmp(b.view()));
    found
}

fn entry(view: &Status, table: &[Mount]) -> Result<Entry, LeftOut> {
    // Where a container expects the files, wherever the host has them.
    let dir = view.store.logical_directory.as_deref().ok_or(LeftOut::NotKnown)?;
    let entry = Entry::new(&view.name, &view.mount_point, dir)?;
    if is_mounted(&view.name, &view.mount_point, table) {
        Ok(entry)
    } else {
        Err(LeftOut::Elsewhere(view.mount_point.clone()))
    }
}

/// Whether the view is what a process finds there: later mounts cover earlier ones.
fn is_mounted(view: &str, at: &Path, table: &[Mount]) -> bool {
    let top = table.iter().rfind(|mount| mount.at == at);
    top.is_some_and(|mount| mount.is_own_view_from(&mount::source(view)))
}

fn complain(answers: &Answers, found: &Found) {
    for error in &answers.unanswered {
        let kept = found.entries.iter().any(|entry| entry.view() == error.view);
        let what = if kept { "its entry stays as it was" } else { "it is left out" };
        tracing::warn!("{}; {what}", error::chain(error));
    }
    for (view, why) in &found.left_out {
        tracing::warn!("view '{view}' is left out: {}", error::chain(why));
    }
}

#[cfg(test)]
#[path = "cdi_tests.rs"]
mod tests;
