//! A status for people.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};

use super::super::output::{Harmless, many};
use super::super::views::{NoAnswer, Unanswered};
use crate::protocol::control::status::{Prefetch, Process, Seconds, Stage, State, Status, Usage};
use crate::protocol::task::{Known, Stopped};
use crate::values::{Size, StorePath};

const BOLD: Style = Style::new().bold();

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    Seconds::from(SystemTime::now()).0
}

/// A line for each view, below a line of titles, in the order of their names.
pub(super) fn lines<'a>(
    views: impl Iterator<Item = (&'a Status, Option<f64>)>,
    unanswered: &[Unanswered],
    out: &mut dyn Write,
) -> io::Result<()> {
    let titles =
        ["NAME", "STATE", "PATHS", "SIZE", "REQUESTS", "PER SECOND", "MEMORY", "SINCE", "MOUNT POINT"];
    let rows = views.map(|(view, rate)| {
        let memory =
            [Some(view.monitor), view.server].into_iter().flatten().filter_map(|process| process.memory);
        let since = view.served_since.map_or_else(|| "-".to_owned(), ago);
        [
            view.name.clone(),
            state(view).to_owned(),
            view.paths.to_string(),
            Size(view.nar_size).to_string(),
            view.usage.as_ref().map_or_else(|| "-".to_owned(), |_| super::requests(view).to_string()),
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
            Size(memory.fold(0, u64::saturating_add)).to_string(),
            since,
            Harmless::path(&view.mount_point).to_string(),
        ]
    });
    let silent = unanswered.iter().map(|Unanswered { view, why }| {
        let state = match why {
            NoAnswer::Absent | NoAnswer::Ended(_) => "has ended",
            NoAnswer::Unmonitored(_) => "no monitor",
            NoAnswer::Ask(_) => "no answer",
        };
        let mut row = titles.map(|_| "-".to_owned());
        for (cell, text) in row.iter_mut().zip([view.as_str(), state]) {
            *cell = text.to_owned();
        }
        row
    });
    let mut rows: Vec<_> = rows.chain(silent).collect();
    rows.sort();
    rows.insert(0, titles.map(str::to_owned));
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    // The last column is as long as it is.
    let widths: Vec<usize> = (0..titles.len() - 1).map(width).collect();
    for (number, row) in rows.iter().enumerate() {
        let style = if number == 0 { BOLD } else { Style::new() };
        write!(out, "{style}")?;
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or_default();
            match column {
                2..=6 => write!(out, "{cell:>width$}  ")?,
                _ if column + 1 == row.len() => write!(out, "{cell}")?,
                _ => write!(out, "{cell:<width$}  ")?,
            }
        }
        writeln!(out, "{style:#}")?;
    }
    Ok(())
}

/// All of one view.
pub(super) fn all(view: &Status, rate: Option<f64>, out: &mut dyn Write) -> io::Result<()> {
    let good = matches!(view.state, State::Serving);
    let color = if good { AnsiColor::Green } else { AnsiColor::Yellow }.on_default();
    writeln!(
        out,
        "{BOLD}{}{BOLD:#}: {color}{}{color:#} at {}",
        view.name,
        state(view),
        Harmless::path(&view.mount_point)
    )?;
    let mut line = |title: &str, text: String| writeln!(out, "  {title:<13} {text}");
    if let Some(since) = view.served_since {
        line("served since", format!("{} ({})", utc(since), ago(since)))?;
    }
    line("asked for", asked(view))?;
    line("roots", names(&view.roots))?;
    let changed = view.content_changed.map(|at| format!(", changed {}", utc(at))).unwrap_or_default();
    let paths = many(view.paths, "store path", "store paths");
    line("closure", format!("{paths}, {}{changed}", Size(view.nar_size)))?;
    line("settings", settings(view))?;
    let stage = match view.reload {
        Some(Stage::Resolving) => "; one is under way: the store is asked",
        Some(Stage::Switching) => "; one is under way: not visible yet",
        None => "",
    };
    line("reloads", format!("{} done, {} failed{stage}", view.reloads.done, view.reloads.failed))?;
    let crashed = match view.servers.crashed {
        0 => String::new(),
        count => format!(", {count} of them after a crash: please report this bug"),
    };
    line("servers", format!("{} replaced{crashed}", view.servers.replaced))?;
    if let Some(usage) = &view.usage {
        let rate = rate.map(|rate| format!(", {rate:.1} a second")).unwrap_or_default();
        line("requests", format!("{}{rate}: {}", super::requests(view), kinds(usage)))?;
        let since = usage.since.map_or_else(|| "an unknown time".to_owned(), utc);
        let whole = if usage.whole { "" } else { ", later than it was mounted" };
        line("counted since", format!("{since}{whole}"))?;
        line("read", Size(usage.bytes_read).to_string())?;
        line("names known", usage.names_known.to_string())?;
        if usage.panics > 0 {
            let requests = many(usage.panics, "request", "requests");
            line("panics", format!("{requests} ended by an internal error: please report this bug"))?;
        }
    }
    let server = view.server.map_or_else(|| "no server".to_owned(), |server| process("server", server));
    line("memory", format!("{}; {server}", process("monitor", view.monitor)))?;
    let missed = view.missed.map(|missed| {
        let (names, times) = (many(missed.names, "name", "names"), many(missed.questions, "time", "times"));
        let unknown = match missed.not_examined {
            0 => String::new(),
            count => format!("; {} not looked into", many(count, "more question was", "more questions were")),
        };
        match (missed.names, missed.questions) {
            (0, 0) => format!("nothing{unknown}"),
            _ => format!("{names}, asked for {times}{unknown}"),
        }
    });
    let unknown =
        if view.settings.report { "not known now" } else { "not recorded (serve the view with --report)" };
    line("missed", missed.unwrap_or_else(|| unknown.to_owned()))?;
    if let Some(ahead) = &view.prefetch {
        line("asked ahead", ahead_of_use(ahead))?;
        if let Some(why) = &ahead.failed {
            line("", Harmless::text(why).to_string())?;
        }
    }
    if let Some(error) = &view.last_error {
        line("last error", format!("{}: {}", utc(error.at), Harmless::text(&error.message)))?;
    }
    line("program", format!("nix-store-fs {}", Harmless::text(&view.program_version)))
}

/// What was asked for ahead of who uses a view.
pub(in crate::cli) fn ahead_of_use(ahead: &Prefetch) -> String {
    let Some(played) = &ahead.played else {
        return match (ahead.playing, ahead.remembers) {
            (true, _) => "under way".to_owned(),
            (false, true) => {
                "nothing, or it was ended; what is used is remembered for the next start".to_owned()
            }
            (false, false) => "nothing".to_owned(),
        };
    };
    let known = match &played.known {
        Known::Nothing => "without a profile of use".to_owned(),
        Known::Profile(runs) => format!("learnt from {}", many((*runs).into(), "start", "starts")),
        Known::Unusable(_) => "the profile of use was not usable".to_owned(),
    };
    let stopped = match played.stopped {
        Stopped::Done => "",
        Stopped::Memory => ", stopped as memory was short",
        Stopped::Time => ", stopped as its time was over",
        Stopped::View => ", stopped as the view did not answer",
        Stopped::Resources => {
            ", stopped as there were too few descriptors (ulimit -n, LimitNOFILE=) or no memory for a call"
        }
    };
    let used = ahead.learnt.filter(|learnt| learnt.marked > 0).map(|learnt| {
        let percent = u64::from(learnt.used) * 100 / u64::from(learnt.marked);
        format!(
            "; about {percent} % of what was learnt was used ({} of a sample of {})",
            learnt.used, learnt.marked
        )
    });
    format!(
        "{}, {} ({}) in {} ms, {} ms of processor time, {known}{stopped}{}",
        many(played.names, "name", "names"),
        many(played.files, "file", "files"),
        Size(played.bytes),
        played.milliseconds,
        played.processor,
        used.unwrap_or_default()
    )
}

fn state(view: &Status) -> &'static str {
    match view.state {
        State::Starting => "starting",
        State::Serving => "serving",
        State::Replacing => "replacing its server",
        State::Ending => "ending",
    }
}

fn asked(view: &Status) -> String {
    let system = view.asked.system.iter().map(|path| format!("--system {}", Harmless::path(path)));
    let roots = view.asked.roots.iter().map(|path| format!("--root {}", Harmless::path(path)));
    let file = view.asked.roots_file.iter().map(|path| format!("--roots-file {}", Harmless::path(path)));
    let from = view.asked.from.iter().map(|path| format!("--from {}", Harmless::path(path)));
    let store = view.store.address.iter().map(|address| format!("--store {}", Harmless::text(address)));
    system.chain(roots).chain(file).chain(from).chain(store).collect::<Vec<_>>().join(" ")
}

fn names(paths: &[StorePath]) -> String {
    paths.iter().map(StorePath::as_str).collect::<Vec<_>>().join(" ")
}

fn settings(view: &Status) -> String {
    let set = &view.settings;
    let options = [("--watch", set.watch), ("--prune", set.prune), ("--report", set.report)];
    let options = options.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| format!(" {name}"));
    format!("--io {}{}", set.io.name(), options.collect::<String>())
}

fn kinds(usage: &Usage) -> String {
    let mut kinds: Vec<_> = usage.requests.iter().filter(|(_, count)| **count > 0).collect();
    kinds.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    kinds
        .into_iter()
        .map(|(kind, count)| format!("{} {count}", Harmless::text(kind)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn process(what: &str, process: Process) -> String {
    let memory =
        process.memory.map_or_else(|| "memory not known".to_owned(), |bytes| Size(bytes).to_string());
    format!("{what} {memory} (process {})", process.pid)
}

/// A time of day, as the log writes it.
pub(in crate::cli) fn utc(at: Seconds) -> String {
    // The first second of the year 10000 is the first that the format has no place for.
    let time = UNIX_EPOCH + Duration::from_secs(at.0.min(253_402_300_799));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// How long ago it was, in the largest unit.
fn ago(at: Seconds) -> String {
    let seconds = now().saturating_sub(at.0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => many(seconds / 86_400, "day", "days"),
    }
}
