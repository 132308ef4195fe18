//! A report for people.

use std::io::{self, Write};

use anstyle::Style;

use super::super::output::{Harmless, many};
use super::super::status::text::utc;
use super::{Sum, Told, Usage};
use crate::protocol::control::report::{Asker, Missed, MissedName};
use crate::protocol::control::status::Seconds;
use crate::values::Size;

/// Lines of a list, unless all are wanted.
const LINES: usize = 15;
const BOLD: Style = Style::new().bold();

pub(super) fn write(told: &Told, all: bool, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{BOLD}{}{BOLD:#}: {}", told.name, sum(told.served))?;
    match &told.missed {
        Some(found) => missed(found, all, out)?,
        None => writeln!(out, "\n{BOLD}Missed{BOLD:#}: not recorded; serve the view with --report")?,
    }
    match &told.usage {
        Some(counted) => usage(counted, told.served, all, out),
        None => writeln!(out, "\n{BOLD}Used{BOLD:#}: not counted: there was no memory for it"),
    }
}

fn sum(Sum { paths, nar_size }: Sum) -> String {
    format!("{}, {}", many(paths as u64, "store path", "store paths"), Size(nar_size))
}

fn since(at: Option<Seconds>) -> String {
    at.map_or_else(|| "an unknown time".to_owned(), utc)
}

fn missed(found: &Missed, all: bool, out: &mut dyn Write) -> io::Result<()> {
    let names = many(found.names.len() as u64, "name", "names");
    writeln!(out, "\n{BOLD}Missed{BOLD:#} since {}: {names}", utc(found.since))?;
    let mut names: Vec<&MissedName> = found.names.iter().collect();
    names.sort_by(|a, b| (b.last, &a.path).cmp(&(a.last, &b.path)));
    list(&names, all, out, |name, out| {
        let served = if name.served { " (there since a reload)" } else { "" };
        let times = format!("{} to {}", utc(name.first), utc(name.last));
        let count = many(name.count, "time", "times");
        let asker = asker(&name.first_asker);
        writeln!(out, "  {}{served}\n    {count}, {times}, first by {asker}", name.path)
    })?;
    let left = found.left_out;
    if left.names > 0 {
        let names = many(left.names, "more name", "more names");
        let questions = many(left.questions, "time", "times");
        writeln!(out, "  {names} had to make room, asked for {questions}")?;
    }
    if left.not_examined > 0 {
        let questions = many(left.not_examined, "more question was", "more questions were");
        writeln!(out, "  {questions} not looked into, as too many came at once")?;
    }
    Ok(())
}

fn asker(Asker { pid, command }: &Asker) -> String {
    let command =
        command.as_ref().map_or_else(|| "a process".to_owned(), |name| format!("'{}'", Harmless::text(name)));
    match pid {
        Some(pid) => format!("{command} ({pid})"),
        None => command,
    }
}

fn usage(counted: &Usage, served: Sum, all: bool, out: &mut dyn Write) -> io::Result<()> {
    let used = many(counted.used.len() as u64, "store path", "store paths");
    writeln!(out, "\n{BOLD}Used{BOLD:#} since {}: {used}", since(counted.since))?;
    list(&counted.used, all, out, |member, out| {
        writeln!(
            out,
            "  {:>10} read, {:>5} opens  {}",
            Size(member.bytes_read).to_string(),
            member.opens,
            member.path
        )
    })?;
    let unused = Sum {
        paths: counted.unused.len(),
        nar_size: served.nar_size.saturating_sub(counted.enough.nar_size),
    };
    let title = if counted.complete { "Never used" } else { "Not used since then, perhaps before" };
    writeln!(out, "\n{BOLD}{title}{BOLD:#}: {}", sum(unused))?;
    // What another one brings in goes with that.
    let tops: Vec<_> = counted.unused.iter().filter(|member| member.within.is_none()).collect();
    list(&tops, all, out, |member, out| {
        let alone = member.alone.map_or_else(|| "unknown".to_owned(), |alone| Size(alone).to_string());
        let used = member.brings_used.filter(|used| *used > 0);
        let used = used.map(|used| format!(", {used} used ones with it")).unwrap_or_default();
        writeln!(
            out,
            "  {alone:>10} alone, {:>10} itself  {}{used}",
            Size(member.nar_size).to_string(),
            member.path
        )
    })?;
    let percent = counted.enough.nar_size.saturating_mul(100).checked_div(served.nar_size).unwrap_or(100);
    writeln!(out, "\nEnough would have been {}: {percent} % of what is served", sum(counted.enough))
}

/// The first lines of a list, and how many more there are.
fn list<T>(
    items: &[T],
    all: bool,
    out: &mut dyn Write,
    line: impl Fn(&T, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let most = if all { items.len() } else { LINES };
    items.iter().take(most).try_for_each(|item| line(item, &mut *out))?;
    match items.len().saturating_sub(most) {
        0 => Ok(()),
        more => writeln!(out, "  … and {more} more (--all)"),
    }
}
