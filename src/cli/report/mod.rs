//! `report`: what was asked of a running view in vain, what was used of it, and what was not.
//!
//! The monitor knows what was asked and how large each member is. What a member alone brings in is the store's to tell: it is asked for the
//! closure of the same roots. Where it cannot be, that part is left out, and a warning says why.

mod text;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anstream::{AutoStream, ColorChoice};
use serde::Serialize;

use super::args::LogArgs;
use super::closures::{Known, Resolved};
use super::exit::{Exit, Failure};
use super::output::{self, Color, print};
use super::views::Running;
use crate::closure::graph::{Graph, Node};
use crate::error;
use crate::protocol::control;
use crate::protocol::control::report::{Missed, Report, Used, UsedMember};
use crate::protocol::control::status::{Asked, Prefetch, Seconds, Store};
use crate::values::{StorePath, total};
pub(super) use text::Shown;

/// Version of what `--json` prints: docs/schema/report.json.
const VERSION: u32 = 1;

/// Tell what was missed in a running view, what was used of it, and what was never asked for
///
/// What was missed is recorded by views that are served with --report. What was used is what a look-up, a read or a listing
/// has named: a walk through the whole view uses all of it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 12: there is no such view; 13: it does not answer. All others: nix-store-fs --help"
)]
pub(super) struct Args {
    /// The view: its name, or where it is mounted
    #[arg(value_name = "NAME|MOUNTPOINT")]
    view: PathBuf,

    /// Print JSON: docs/schema/report.json
    #[arg(long, conflicts_with_all = ["color", "all"])]
    json: bool,

    /// Show all lines of each list, and not only the first ones
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    color: Color,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let view = Running::asked_about(&args.view)?;
    let report = control::ask_report(&view.control()).map_err(|why| view.unanswered(why))?;
    // Whatever the monitor calls itself.
    let report = Report { name: view.name, ..report };
    let resolved = if report.members.is_empty() { None } else { resolve(&report) };
    let graph = resolved.as_ref().map(|resolved| Graph::new(&resolved.closure));
    let told = tell(report, graph.as_ref());
    if args.json {
        print(Color::NONE, |out| output::json(&told, true, out))?;
    } else {
        print(args.color, |out| {
            text::write(&told, if args.all { Shown::All } else { Shown::First("--all") }, out)
        })?;
    }
    Ok(Exit::Success)
}

/// Writes `report` for people, without colours.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(report: Report, shown: Shown, out: &mut dyn Write) -> io::Result<()> {
    let resolved = if report.members.is_empty() { None } else { resolve(&report) };
    let graph = resolved.as_ref().map(|resolved| Graph::new(&resolved.closure));
    let mut plain = AutoStream::new(Vec::new(), ColorChoice::Never);
    text::write(&tell(report, graph.as_ref()), shown, &mut plain)?;
    out.write_all(&plain.into_inner())
}

/// The closure of the view's roots, if the store tells it.
fn resolve(report: &Report) -> Option<Resolved> {
    let known = Known::shown(report.asked.from.clone(), &report.roots, report.store.address.clone());
    let why = match known.and_then(|known| Ok(known.closure("what each path alone brings in")?)) {
        Ok(resolved) => return Some(resolved),
        Err(failure) => error::chain(&failure),
    };
    tracing::warn!("what each path alone brings in is left out, as the store does not tell: {why}");
    None
}

/// All that is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    version: u32,
    name: String,
    store: Store,
    asked: Asked,
    roots: Vec<StorePath>,
    /// All that is served.
    served: Sum,
    missed: Option<Missed>,
    usage: Option<Usage>,
    prefetch: Option<Prefetch>,
}

/// What was used, and what was not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    since: Option<Seconds>,
    complete: bool,
    /// The roots and what was used: the closure that would have been enough.
    enough: Sum,
    used: Vec<UsedMember>,
    unused: Vec<Unused>,
}

/// Store paths, and the sum of their sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sum {
    paths: usize,
    nar_size: u64,
}

/// A member that was not used.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unused {
    path: StorePath,
    nar_size: u64,
    /// Bytes that would go with it.
    alone: Option<u64>,
    /// Used members that would go with it as well.
    brings_used: Option<usize>,
    /// Another unused member that alone brings it in.
    within: Option<StorePath>,
}

impl Sum {
    fn of(sizes: impl Iterator<Item = u64> + Clone) -> Self {
        Self { paths: sizes.clone().count(), nar_size: total(sizes) }
    }
}

/// Puts together what the monitor and the store have told.
fn tell(report: Report, graph: Option<&Graph<'_>>) -> Told {
    let sizes: BTreeMap<&StorePath, u64> =
        report.members.iter().map(|member| (&member.path, member.nar_size)).collect();
    let served = Sum::of(sizes.values().copied());
    // Each path of a list was asked for, which does not say that it is needed.
    let is_list = report.asked.from.is_some() && graph.is_none() && report.roots.len() == sizes.len();
    let roots = if is_list { &[] } else { report.roots.as_slice() };
    let usage = report.used.as_ref().map(|used| usage(used, roots, &sizes, graph));
    let Report { name, store, asked, roots, missed, prefetch, .. } = report;
    Told { version: VERSION, name, store, asked, roots, served, missed, usage, prefetch }
}

fn usage(
    used: &Used,
    roots: &[StorePath],
    sizes: &BTreeMap<&StorePath, u64>,
    graph: Option<&Graph<'_>>,
) -> Usage {
    let by_path: BTreeMap<&StorePath, &UsedMember> =
        used.members.iter().map(|member| (&member.path, member)).collect();
    let used_nodes: Vec<Node> =
        by_path.keys().filter_map(|path| graph.and_then(|graph| graph.node(path))).collect();
    let is_needed = |path: &StorePath| by_path.contains_key(path) || roots.contains(path);
    let enough = sizes.iter().filter(|(path, _)| is_needed(path)).map(|(_, size)| *size);
    let unused = sizes.iter().filter(|(path, _)| !is_needed(path)).map(|(path, size)| {
        let node = graph.and_then(|graph| Some((graph, graph.node(path)?)));
        let above = node.and_then(|(graph, node)| graph.info(graph.dominator(node)?)).map(|info| &info.path);
        let brings =
            node.map(|(graph, node)| used_nodes.iter().filter(|used| graph.dominates(node, **used)).count());
        Unused {
            path: (*path).clone(),
            nar_size: *size,
            alone: node.map(|(graph, node)| graph.alone(node)),
            brings_used: brings,
            within: above.filter(|above| !is_needed(above)).cloned(),
        }
    });
    let mut unused: Vec<Unused> = unused.collect();
    unused.sort_by(|a, b| (b.alone, b.nar_size, &a.path).cmp(&(a.alone, a.nar_size, &b.path)));
    let mut members = used.members.clone();
    members.sort_by(|a, b| (b.bytes_read, b.opens, &a.path).cmp(&(a.bytes_read, a.opens, &b.path)));
    Usage { since: used.since, complete: used.complete, enough: Sum::of(enough), used: members, unused }
}
