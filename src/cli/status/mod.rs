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
use super::output::{self, Color, Reader, print_more};
use super::views::{self, NoAnswer, Running, Unanswered};
use crate::error;
use crate::protocol::control::{self, status::Status};

/// Version of what `--json` prints: docs/schema/status.json.
const VERSION: u32 = 1;
/// How long each monitor has to answer where all are asked: whoever scrapes metrics waits for 10 s, as a rule.
const PATIENCE: Duration = Duration::from_secs(3);
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
        let clear = args.watch.is_some() && !args.json && io::stdout().is_terminal();
        let reader = show(args, &look, &earlier, clear)?;
        let Some(seconds) = args.watch.filter(|_| reader == Reader::There) else { break };
        earlier = look.views.iter().map(|view| (view.name.clone(), (look.at, requests(view)))).collect();
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
    Ok(Exit::Success)
}

/// Asks the view that is meant, or all at the same time: one that does not answer keeps no other one back.
fn look(args: &Args) -> Result<Look, Failure> {
    let at = Instant::now();
    if let Some(view) = &args.view {
        let status = ask(&Running::asked_about(view)?, control::PATIENCE)?;
        return Ok(Look { at, views: vec![status], unanswered: Vec::new() });
    }
    let (views, unanswered) = ask_all()?;
    Ok(Look { at, views, unanswered })
}

fn ask(view: &Running, patience: Duration) -> Result<Status, Unanswered> {
    match control::ask_status_within(&view.control(), patience) {
        // Whatever the monitor calls itself.
        Ok(status) => Ok(Status { name: view.name.clone(), ..status }),
        Err(why) => Err(view.unanswered(why)),
    }
}

/// What all views of this user answer, in the order of their names; those that do not, but should, come apart.
///
/// # Errors
/// Those of [`views::all`].
pub(super) fn ask_all() -> Result<(Vec<Status>, Vec<Unanswered>), Failure> {
    let all = views::all()?;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = all.iter().map(|view| scope.spawn(|| ask(view, PATIENCE))).collect();
        asked.into_iter().map(|thread| thread.join().map_err(|_| Failure::Panicked)).collect::<Result<_, _>>()
    })?;
    let (mut views, mut unanswered) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(status) => views.push(status),
            // It has ended since it was found.
            Err(Unanswered { why: NoAnswer::Absent, .. }) => {}
            Err(error) => unanswered.push(error),
        }
    }
    Ok((views, unanswered))
}

fn show(args: &Args, look: &Look, earlier: &Earlier, clear: bool) -> Result<Reader, Failure> {
    if args.json {
        let pretty = args.watch.is_none();
        return print_more(Color::NONE, |out| json(look, pretty, out));
    }
    if args.metrics {
        return print_more(Color::NONE, |out| metrics::write(&look.views, &look.unanswered, out));
    }
    if clear && print_more(Color::NONE, |out| out.write_all(CLEAR))? == Reader::Gone {
        return Ok(Reader::Gone);
    }
    for error in &look.unanswered {
        tracing::warn!("{}", error::chain(error));
    }
    print_more(args.color, |out| match (&args.view, look.views.as_slice()) {
        (Some(_), [view]) => text::all(view, rate(view, look.at, earlier), out),
        (_, []) if look.unanswered.is_empty() => writeln!(out, "no view is being served"),
        (_, views) => {
            let views = views.iter().map(|view| (view, rate(view, look.at, earlier)));
            text::lines(views, &look.unanswered, out)
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
    (!time.is_zero()).then(|| count as f64 / time.as_secs_f64())
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
    output::json(&all, pretty, out)
}
