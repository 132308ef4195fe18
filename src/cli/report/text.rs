//! A report for people.

use std::collections::BTreeSet;
use std::io::{self, Write};

use anstyle::Style;

use super::super::output::{Harmless, many};
use super::super::status::text::{ahead_of_use, utc};
use super::{Sum, Told, Unused, Usage};
use crate::protocol::control::report::{Asker, Missed, MissedName};
use crate::protocol::control::status::Seconds;
use crate::values::{Size, StorePath};

/// Lines of a list, unless all are wanted.
const LINES: usize = 15;

/// How much of a list is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Shown {
    All,
    /// The first lines, and how to have all of them.
    First(&'static str),
}
const BOLD: Style = Style::new().bold();

pub(super) fn write(told: &Told, shown: Shown, out: &mut dyn Write) -> io::Result<()> {
    if told.served.paths == 0 {
        return writeln!(out, "{BOLD}{}{BOLD:#}: nothing is served yet", told.name);
    }
    writeln!(out, "{BOLD}{}{BOLD:#}: {}", told.name, sum(told.served))?;
    match &told.missed {
        Some(found) => missed(found, shown, out)?,
        None => writeln!(out, "\n{BOLD}Missed{BOLD:#}: not recorded; serve the view with --report")?,
    }
    match &told.usage {
        Some(counted) => usage(counted, told.served, shown, out)?,
        None => writeln!(out, "\n{BOLD}Used{BOLD:#}: not counted: there was no memory for it")?,
    }
    match told.prefetch.as_ref().filter(|ahead| ahead.played.is_some()) {
        Some(ahead) => {
            writeln!(out, "Asked for ahead, and not counted as read or opened: {}", ahead_of_use(ahead))
        }
        None => Ok(()),
    }
}

fn sum(Sum { paths, nar_size }: Sum) -> String {
    format!("{}, {}", many(paths as u64, "store path", "store paths"), Size(nar_size))
}

fn since(at: Option<Seconds>) -> String {
    at.map_or_else(|| "an unknown time".to_owned(), utc)
}

fn missed(found: &Missed, shown: Shown, out: &mut dyn Write) -> io::Result<()> {
    let names = match found.names.len() {
        0 => "nothing".to_owned(),
        count => many(count as u64, "store path", "store paths"),
    };
    writeln!(out, "\n{BOLD}Missed{BOLD:#} since {}: {names}", utc(found.since))?;
    let mut names: Vec<&MissedName> = found.names.iter().collect();
    names.sort_by(|a, b| (b.last, &a.path).cmp(&(a.last, &b.path)));
    list(&names, shown, out, |name, out| {
        let served = if name.served { "; it is there since a reload" } else { "" };
        let asker = asker(&name.first_asker);
        match name.count {
            1 => writeln!(out, "  {}\n    asked for once, {} by {asker}{served}", name.path, utc(name.last)),
            count => writeln!(
                out,
                "  {}\n    asked for {count} times, first {} by {asker}, last {}{served}",
                name.path,
                utc(name.first),
                utc(name.last)
            ),
        }
    })?;
    let left = found.left_out;
    if left.names > 0 {
        let names = many(left.names, "earlier name is", "earlier names are");
        let questions = many(left.questions, "time", "times");
        writeln!(out, "  {names} not listed any more; asked for {questions}")?;
    }
    if left.not_examined > 0 {
        let questions = many(left.not_examined, "more question was", "more questions were");
        writeln!(out, "  {questions} not looked into, as too many came at once")?;
    }
    Ok(())
}

fn asker(Asker { pid, command }: &Asker) -> String {
    let command = match command {
        Some(name) => format!("'{}'", Harmless::text(name)),
        None => "an unknown process".to_owned(),
    };
    match pid {
        Some(pid) => format!("{command} ({pid})"),
        None => command,
    }
}

fn usage(counted: &Usage, served: Sum, shown: Shown, out: &mut dyn Write) -> io::Result<()> {
    let used = many(counted.used.len() as u64, "store path", "store paths");
    writeln!(out, "\n{BOLD}Used{BOLD:#} since {}: {used}", since(counted.since))?;
    list(&counted.used, shown, out, |member, out| {
        let read = Size(member.bytes_read).to_string();
        let opens = many(member.opens, "file opened", "files opened");
        writeln!(out, "  {read:>10} read, {opens:>18}  {}", member.path)
    })?;
    let unused = Sum {
        paths: counted.unused.len(),
        nar_size: served.nar_size.saturating_sub(counted.enough.nar_size),
    };
    let title = if counted.complete { "Never used" } else { "Not used since then, perhaps before" };
    writeln!(out, "\n{BOLD}{title}{BOLD:#}: {}", sum(unused))?;
    // What leads to used ones cannot go.
    let (bridges, rest): (Vec<_>, Vec<_>) =
        counted.unused.iter().partition(|member| member.brings_used.is_some_and(|used| used > 0));
    // What another one brings in goes with that, and is no line of its own.
    let bridge_names: BTreeSet<&StorePath> = bridges.iter().map(|bridge| &bridge.path).collect();
    let is_bridge = |path: &StorePath| bridge_names.contains(path);
    let tops: Vec<&Unused> =
        rest.into_iter().filter(|member| member.within.as_ref().is_none_or(is_bridge)).collect();
    list(&tops, shown, out, |member, out| {
        let alone = Size(member.alone.unwrap_or(member.nar_size)).to_string();
        let with = match member.alone {
            Some(alone) if alone > member.nar_size => {
                format!(", with what only it needs; itself {}", Size(member.nar_size))
            }
            _ => String::new(),
        };
        writeln!(out, "  {alone:>10}  {}{with}", member.path)
    })?;
    if !bridges.is_empty() {
        writeln!(out, "  Of these, what was used is reached only through:")?;
        list(&bridges, shown, out, |member, out| {
            let used = many(member.brings_used.unwrap_or_default() as u64, "used one", "used ones");
            let size = Size(member.nar_size).to_string();
            writeln!(out, "  {size:>10}  {}, which leads to {used}", member.path)
        })?;
    }
    let percent = counted.enough.nar_size.saturating_mul(100).checked_div(served.nar_size).unwrap_or(100);
    let enough = sum(counted.enough);
    writeln!(out, "\nThe roots and what was used: {enough}, {percent} % of what is served")
}

/// The first lines of a list, and how many more there are.
fn list<T>(
    items: &[T],
    shown: Shown,
    out: &mut dyn Write,
    line: impl Fn(&T, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let (most, hint) = match shown {
        Shown::All => (items.len(), ""),
        Shown::First(hint) => (LINES, hint),
    };
    items.iter().take(most).try_for_each(|item| line(item, &mut *out))?;
    match items.len().saturating_sub(most) {
        0 => Ok(()),
        more => writeln!(out, "  … and {more} more ({hint})"),
    }
}
