//! `why`: what leads from a root to a path of the closure, and where it is named.

use std::io::Write;
use std::path::{Path, PathBuf};

use anstyle::Style;

use super::args::{LogArgs, RootArgs};
use super::closures::{Known, Resolved};
use super::exit::{Exit, Failure};
use super::output::{Color, Harmless, print};
use crate::closure::graph::{Graph, Node};
use crate::closure::occurrences::{self, Occurrence, Place, SearchError};
use crate::closure::why::{self, Step};
use crate::values::StorePath;
use crate::values::package::Package;

/// Files in which a reference is shown to stand, without `--all`.
const FILES_MAX: usize = 3;
/// Levels that are indented: further ones are as far to the right, and say their number.
const INDENTED_MAX: usize = 40;
/// Names of the host that are told, at most.
const NAMES_MAX: usize = 5;

/// Tell why a path is in a closure: the shortest chain of references to it from a root
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 12: it is not in the closure. All others: nix-store-fs --help")]
pub(super) struct Args {
    /// A store path or a path in one, its base name, its hash or the beginning of it, or the name of a package with or
    /// without a version
    #[arg(value_name = "PATH")]
    path: PathBuf,

    #[command(flatten)]
    roots: RootArgs,

    /// Show everything through which it is reached, each path once
    #[arg(long)]
    all: bool,

    /// Show in which files each reference stands, by searching the files of who refers
    #[arg(long)]
    precise: bool,

    #[command(flatten)]
    color: Color,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// Why there is no chain to show.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// No member is meant.
    #[error("'{asked}' is not in the closure; {host}{}", near.as_ref().map(|near| format!(". Closest by name is '{near}'")).unwrap_or_default())]
    NotAMember {
        /// What was asked for.
        asked: String,
        /// Whether the host has it.
        host: String,
        /// What is there.
        near: Option<String>,
    },
    /// A path that is none of the store.
    #[error("'{}' is not in the store '{}', and no link into it; give a store path, or the name of a package", path.display(), store.display())]
    NotInStore {
        /// What was asked for.
        path: PathBuf,
        /// The store directory.
        store: PathBuf,
    },
    /// Files of a member cannot be searched.
    #[error(transparent)]
    Search(#[from] SearchError),
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    let resolved = Known::of(args.roots)?.closure("'why'")?;
    let graph = Graph::new(&resolved.closure);
    let asked = asked_for(&args.path, &resolved);
    let found = why::named(&graph, &asked);
    if found.is_empty() {
        if is_outside(&args.path, &asked) {
            return Err(WhyError::NotInStore { path: args.path, store: resolved.dir }.into());
        }
        let near = why::nearest(&graph, &asked).and_then(|node| graph.info(node));
        let near = near.map(|info| info.path.as_str().to_owned());
        return Err(WhyError::NotAMember { host: host_has(&asked, &resolved), asked, near }.into());
    }
    let printer = Printer { graph: &graph, resolved: &resolved, all: args.all, precise: args.precise };
    // What is searched is searched before anything is printed.
    let mut text = Vec::new();
    printer.explain(&asked, &found, &mut text)?;
    print(args.color, |out| out.write_all(&text))?;
    Ok(Exit::Success)
}

/// The base name that a path lies in, or what was typed.
fn asked_for(typed: &Path, resolved: &Resolved) -> String {
    let base = |path: &Path| {
        let below = path.strip_prefix(&resolved.dir).or_else(|_| path.strip_prefix(&resolved.real_dir));
        Some(below.ok()?.components().next()?.as_os_str().to_str()?.to_owned())
    };
    let by_links = || {
        let is_path = typed.components().count() > 1;
        is_path.then(|| typed.canonicalize().ok()).flatten().and_then(|path| base(&path))
    };
    base(typed).or_else(by_links).unwrap_or_else(|| typed.display().to_string())
}

/// Whether what was typed is a path, and leads to nothing of the store.
fn is_outside(typed: &Path, asked: &str) -> bool {
    typed.components().count() > 1 && StorePath::new(asked).is_err()
}

/// Whether the host's store has what is not in the closure, in words.
fn host_has(asked: &str, resolved: &Resolved) -> String {
    if StorePath::new(asked).is_ok() {
        let is_there = resolved.real_dir.join(asked).symlink_metadata().is_ok();
        return if is_there { "the host has it" } else { "the host does not have it either" }.to_owned();
    }
    let names = resolved.real_dir.read_dir().into_iter().flatten().flatten();
    let paths = names.filter_map(|entry| StorePath::new(entry.file_name().to_str()?).ok());
    let is_meant = |path: &StorePath| path.name() == asked || Package::parse(path.name()).name == asked;
    let mut there: Vec<StorePath> = paths.filter(is_meant).collect();
    there.sort_unstable();
    let shown: Vec<String> = there.iter().take(NAMES_MAX).map(|path| format!("'{path}'")).collect();
    match there.len() {
        0 => "the host has nothing of that name either".to_owned(),
        count if count > NAMES_MAX => {
            format!("the host has {count} of that name, among them {}", shown.join(", "))
        }
        _ => format!("the host has {}", shown.join(", ")),
    }
}

struct Printer<'a> {
    graph: &'a Graph<'a>,
    resolved: &'a Resolved,
    all: bool,
    precise: bool,
}

impl Printer<'_> {
    fn explain(&self, asked: &str, found: &[Node], out: &mut dyn Write) -> Result<(), Failure> {
        let output = Failure::Output;
        if found.len() > 1 {
            writeln!(out, "'{}' means {} paths of the closure:", Harmless::text(asked), found.len())
                .map_err(output)?;
        }
        for (number, node) in (1..).zip(found) {
            if found.len() > 1 {
                let name = self.graph.info(*node).map(|info| info.path.name()).unwrap_or_default();
                writeln!(out, "\n{number}. {name}").map_err(output)?;
            }
            let steps = if self.all { why::all(self.graph, *node) } else { why::chain(self.graph, *node) };
            if steps.is_empty() {
                writeln!(out, "{}\n  no root leads to it", self.path(*node)).map_err(output)?;
            }
            for step in steps {
                self.step(step, *node, out)?;
            }
        }
        Ok(())
    }

    /// A line of a chain to `target`, below those that say where its reference stands.
    fn step(&self, step: Step, target: Node, out: &mut dyn Write) -> Result<(), Failure> {
        let dimmed = Style::new().dimmed();
        for occurrence in self.occurrences(step)? {
            let indent = indentation(step.depth);
            writeln!(out, "{indent}{dimmed}{occurrence}{dimmed:#}").map_err(Failure::Output)?;
        }
        let style = if step.node == target { Style::new().bold() } else { Style::new() };
        let arrow = if step.depth == 0 { "" } else { "→ " };
        let depth = if step.depth > INDENTED_MAX { format!("({}) ", step.depth) } else { String::new() };
        let (indent, path) = (indentation(step.depth), self.path(step.node));
        let elsewhere = if step.elsewhere { " (its references are shown elsewhere)" } else { "" };
        writeln!(out, "{indent}{arrow}{depth}{style}{path}{style:#}{elsewhere}").map_err(Failure::Output)
    }

    /// Where the reference that led here stands.
    fn occurrences(&self, step: Step) -> Result<Vec<String>, WhyError> {
        let from = step.from.and_then(|from| self.graph.info(from)).filter(|_| self.precise);
        let (Some(from), Some(to)) = (from, self.graph.info(step.node)) else { return Ok(Vec::new()) };
        let found = occurrences::search(&self.resolved.real_dir.join(from.path.as_str()), &to.path)?;
        if found.is_empty() {
            return Ok(vec!["(in none of its files: the store says so)".to_owned()]);
        }
        let most = if self.all { usize::MAX } else { FILES_MAX };
        let mut lines: Vec<String> = found.iter().take(most).map(line).collect();
        if let Some(more) = found.len().checked_sub(most).filter(|more| *more > 0) {
            lines.push(format!("and in {more} more files"));
        }
        Ok(lines)
    }

    fn path(&self, node: Node) -> String {
        let base = self.graph.info(node).map(|info| info.path.as_str()).unwrap_or_default();
        Harmless::path(&self.resolved.dir.join(base)).to_string()
    }
}

fn line(Occurrence { file, place, excerpt }: &Occurrence) -> String {
    let file = Harmless::path(file).to_string();
    let file = if file.is_empty() { "the file itself" } else { &file };
    match place {
        Place::Byte(at) => format!("{file}, byte {at}: {excerpt}"),
        Place::Target => format!("{file}, link to {excerpt}"),
    }
}

fn indentation(depth: usize) -> String {
    "  ".repeat(depth.min(INDENTED_MAX))
}
