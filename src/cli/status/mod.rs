//! `status`: how running views are, as their monitors tell it.

mod metrics;
pub(super) mod text;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::LogArgs;
use super::exit::{Exit, Failure};
use super::output::{Color, print};
use super::views::{self, Running};
use crate::error;
use crate::protocol::control::{self, AskError, status::Status};

/// Version of what `--json` prints: docs/schema/status.json.
const VERSION: u32 = 1;
/// Puts the cursor into the first place of an empty screen (ECMA-48: CUP, ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Tell how running views are: one line for each, or all of one
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 12: there is no such view; 13: it does not answer. All others: nix-store-fs --help"
)]
pub(super) struct Args {
    /// The view: its name, or where it is mounted [default: all of this user]
    #[arg(value_name = "NAME|MOUNTPOINT")]
    view: Option<PathBuf>,

    /// Print JSON: docs/schema/status.json; with --watch, one line each time
    #[arg(long, conflicts_with_all = ["color", "metrics"])]
    json: bool,

    /// Print metrics in the text format of Prometheus
    #[arg(long, conflicts_with_all = ["color", "watch"])]
    metrics: bool,

    /// Print again every so many seconds, until interrupted [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    watch: Option<u16>,

    #[command(flatten)]
    color: Color,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// Why a view has not told of itself.
#[derive(Debug, thiserror::Error)]
#[error("view '{view}'")]
pub struct Unanswered {
    /// The view.
    pub view: String,
    /// Why not.
    #[source]
    pub why: AskError,
}

/// All that was asked, once.
#[derive(Debug)]
struct Look {
    at: Instant,
    views: Vec<Status>,
    unanswered: Vec<Unanswered>,
}

/// Requests that each view had answered at an earlier look.
type Earlier = BTreeMap<String, (Instant, u64)>;

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut earlier = Earlier::new();
    loop {
        let look = look(args)?;
        if args.watch.is_some() && !args.json && io::stdout().is_terminal() {
            print(Color::NONE, |out| out.write_all(CLEAR))?;
        }
        show(args, &look, &earlier)?;
        let Some(seconds) = args.watch else { break };
        earlier = look.views.iter().map(|view| (view.name.clone(), (look.at, requests(view)))).collect();
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
    Ok(Exit::Success)
}

/// Asks the view that is meant, or all at the same time: one that does not answer keeps no other one back.
fn look(args: &Args) -> Result<Look, Failure> {
    let at = Instant::now();
    let ask = |view: &Running| {
        control::ask_status(&view.control()).map_err(|why| Unanswered { view: view.name.clone(), why })
    };
    if let Some(view) = &args.view {
        let status = ask(&Running::find(view)?)?;
        return Ok(Look { at, views: vec![status], unanswered: Vec::new() });
    }
    let all = views::all()?;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = all.iter().map(|view| scope.spawn(|| ask(view))).collect();
        asked.into_iter().map(|thread| thread.join().map_err(|_| Failure::Panicked)).collect::<Result<_, _>>()
    })?;
    let mut look = Look { at, views: Vec::new(), unanswered: Vec::new() };
    for answer in answers {
        match answer {
            Ok(status) => look.views.push(status),
            Err(error) => look.unanswered.push(error),
        }
    }
    Ok(look)
}

fn show(args: &Args, look: &Look, earlier: &Earlier) -> Result<(), Failure> {
    if args.json {
        let pretty = args.watch.is_none();
        return print(Color::NONE, |out| json(look, pretty, out));
    }
    if args.metrics {
        return print(Color::NONE, |out| metrics::write(&look.views, &look.unanswered, out));
    }
    for error in &look.unanswered {
        tracing::warn!("{}", error::chain(error));
    }
    print(args.color, |out| match (&args.view, look.views.as_slice()) {
        (Some(_), [view]) => text::all(view, rate(view, look.at, earlier), out),
        (_, []) => writeln!(out, "no view is being served"),
        (_, views) => {
            let rates: Vec<_> = views.iter().map(|view| rate(view, look.at, earlier)).collect();
            text::lines(views, &rates, out)
        }
    })
}

/// Requests of all kinds.
fn requests(view: &Status) -> u64 {
    view.usage
        .iter()
        .flat_map(|usage| usage.requests.values())
        .fold(0, |sum, count| sum.saturating_add(*count))
}

/// Requests in a second: since the last look, or else since they are counted. None: nobody counts.
fn rate(view: &Status, now: Instant, earlier: &Earlier) -> Option<f64> {
    let usage = view.usage.as_ref()?;
    let (count, time) = match earlier.get(&view.name) {
        Some((at, before)) => (requests(view).saturating_sub(*before), now.saturating_duration_since(*at)),
        None => (requests(view), Duration::from_secs(text::now().saturating_sub(usage.since?.0))),
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    (!time.is_zero()).then(|| f64::from(count) / time.as_secs_f64())
}

#[derive(Serialize)]
struct All<'a> {
    version: u32,
    views: &'a [Status],
    unanswered: Vec<Reason<'a>>,
}

#[derive(Serialize)]
struct Reason<'a> {
    name: &'a str,
    why: String,
}

fn json(look: &Look, pretty: bool, out: &mut dyn Write) -> io::Result<()> {
    let reason = |error: &'_ Unanswered| error::chain(&error.why);
    let unanswered = look.unanswered.iter().map(|error| Reason { name: &error.view, why: reason(error) });
    let all = All { version: VERSION, views: &look.views, unanswered: unanswered.collect() };
    if pretty {
        serde_json::to_writer_pretty(&mut *out, &all)?;
    } else {
        serde_json::to_writer(&mut *out, &all)?;
    }
    writeln!(out)
}
