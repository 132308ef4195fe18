//! The figures for readers: raw as CSV, the tables as Markdown.

use std::fmt::Write;

use crate::caches::{Buckets, Caches};
use crate::columns::{Column, Kind};
use crate::corpus::Corpus;
use crate::limits::{self, Places, Way};
use crate::machine::Machine;
use crate::many;
use crate::neighbour;
use crate::rounds::{self, Extent};
use crate::samples::{Samples, Unit, float};
use crate::scenarios::Scenario;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// A row of the table of ratios.
#[derive(Debug)]
pub(crate) struct Row {
    /// As in the raw figures.
    pub(crate) name: &'static str,
    /// What one operation is.
    pub(crate) operation: &'static str,
}

/// The rows that have a ratio to the bind mount, in the order of the table.
pub(crate) const ROWS: [Row; 29] = [
    Row { name: "lstat, first", operation: "entry" },
    Row { name: "lstat, again", operation: "entry" },
    Row { name: "open small, first", operation: "file under 32 KiB" },
    Row { name: "open small, again", operation: "file under 32 KiB" },
    Row { name: "missing, first", operation: "name" },
    Row { name: "missing, again", operation: "name" },
    Row { name: "list, first", operation: "entry" },
    Row { name: "list, again", operation: "entry" },
    Row { name: "bytes, first", operation: "file" },
    Row { name: "bytes, again", operation: "file" },
    Row { name: "large bytes, again", operation: "file of 1 MiB and more" },
    Row { name: "bytes, cold disk", operation: "file" },
    Row { name: "mmap, first", operation: "library" },
    Row { name: "mmap, again", operation: "library" },
    Row { name: "python, first", operation: "start" },
    Row { name: "python, again", operation: "start" },
    Row { name: "python, cold disk", operation: "start" },
    Row { name: "python, cold disk, and the view's start", operation: "start" },
    Row { name: "python, second view", operation: "start" },
    Row { name: "script, first", operation: "script of 100 commands" },
    Row { name: "script, again", operation: "script of 100 commands" },
    Row { name: "script, cold disk", operation: "script of 100 commands" },
    Row { name: "script, cold disk, and the view's start", operation: "script of 100 commands" },
    Row { name: "script, second view", operation: "script of 100 commands" },
    Row { name: "boot, first", operation: "boot to READY" },
    Row { name: "boot, again", operation: "boot to READY" },
    Row { name: "boot, cold disk", operation: "boot to READY" },
    Row { name: "boot, cold disk, and the view's start", operation: "boot to READY" },
    Row { name: "boot, second view", operation: "boot to READY" },
];

const EXTRA: [&str; 35] = [
    "set-up",
    "--dump-closure",
    "FUSE floor",
    "resident at READY",
    "private at READY",
    "resident after every lstat",
    "private after every lstat",
    "private after reading all",
    "private after the kernel forgot",
    many::PROPORTIONAL,
    many::PRIVATE,
    many::SERVERS,
    "program's CPU time, names",
    "program's CPU time, contents",
    "program's CPU time, programs",
    "program's CPU time, libraries",
    "program's CPU time, boots",
    "program's CPU time, python from cold disk",
    "program's CPU time, script from cold disk",
    "program's CPU time, boot from cold disk",
    "memory added, names",
    "memory added, contents",
    "memory added, programs",
    "memory added, libraries",
    "memory added, boots",
    "read from disk, python",
    "read from disk, script",
    "read from disk, boot",
    "page cache added",
    "page cache added by a second view",
    neighbour::READ_ALONE,
    neighbour::READ_BESIDE,
    neighbour::NAME_ALONE,
    neighbour::NAME_BESIDE,
    "metadata tree",
];

/// A finished run.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// Where it was done.
    pub(crate) machine: &'a Machine,
    /// On what.
    pub(crate) corpus: &'a Corpus,
    /// In which columns; the first is the bind mount.
    pub(crate) columns: &'a [Column],
    /// How much.
    pub(crate) extent: &'a Extent,
    /// The kernel's hash tables, if it tells.
    pub(crate) buckets: Option<Buckets>,
    /// The figures.
    pub(crate) samples: &'a Samples,
    /// What a reader has to know about them.
    pub(crate) notes: &'a [String],
}

impl Report<'_> {
    /// One line for each figure as it came; the conditions in every line, so that files can be put together.
    pub(crate) fn csv(&self) -> String {
        let mut out = String::from("date,kernel,cpu,column,threads,row,round,operations,value,unit\n");
        let Machine { date, kernel, cpu, .. } = self.machine;
        for sample in &self.samples.all {
            let column = self.columns.get(sample.column).map_or("", |column| &column.name);
            // Writing to a String cannot fail.
            writeln!(
                out,
                "{date},{kernel},\"{}\",\"{}\",{},\"{}\",{},{},{:.9},{}",
                quoted(cpu),
                quoted(column),
                sample.threads,
                sample.row,
                sample.round,
                sample.operations,
                sample.value,
                sample.unit.name()
            )
            .ok();
        }
        out
    }

    /// Everything a reader sees first.
    pub(crate) fn markdown(&self) -> String {
        let Self { machine, corpus, extent, .. } = self;
        let mut out = format!(
            "# Views of one closure, measured in one run\n\n\
             {}, Linux {}, {}, {} cores, {:.1} GiB of memory, load {} before the run. \
             {} store paths, {} entries, {} files, {:.2} GB. \
             Medians of {} rounds, from cold disk of {}; each round on fresh mounts, columns in turn.\n",
            machine.date,
            machine.kernel,
            machine.cpu,
            machine.cores,
            float(machine.memory) / GIB,
            machine.load,
            corpus.members.len(),
            corpus.entries.len(),
            corpus.files.len(),
            float(corpus.bytes) / 1e9,
            self.samples.rounds("lstat, first"),
            self.samples.rounds("bytes, cold disk"),
        );
        self.names_of_the_kernel(&mut out);
        for threads in &extent.threads {
            self.ratios(&mut out, *threads);
        }
        self.extra(&mut out);
        self.plays(&mut out);
        // A quick run proves that the command works; its times are not judged.
        if extent.caches != Caches::LeftAlone {
            self.limits(&mut out);
        }
        if !self.notes.is_empty() {
            out.push_str("\n## Notes\n\n");
            for note in self.notes {
                writeln!(out, "- {note}").ok();
            }
        }
        out
    }

    /// What a first look-up depends on besides the view.
    fn names_of_the_kernel(&self, out: &mut String) {
        let buckets = self.buckets.map_or_else(
            || {
                "The kernel's log does not tell (any more) how big its hash tables of names and inodes are"
                    .to_owned()
            },
            |Buckets { names, inodes }| {
                format!("The kernel's hash tables have {names} buckets for names and {inodes} for inodes")
            },
        );
        write!(out, "\n{buckets}. ").ok();
        let range = |row: &str| -> Option<String> {
            let of_row =
                || self.samples.all.iter().filter(|sample| sample.row == row).map(|sample| sample.value);
            let (least, most) = (of_row().reduce(f64::min)?, of_row().reduce(f64::max)?);
            Some(format!("{least:.0} to {most:.0}"))
        };
        if let (Some(names), Some(inodes)) = (range("names cached before"), range("inodes cached before")) {
            let dropped = match self.extent.caches {
                Caches::Emptied => "after those of others were dropped",
                Caches::NamesKept | Caches::LeftAlone => "none were dropped",
            };
            writeln!(out, "Before each view it had {names} names and {inodes} inodes cached; {dropped}.")
                .ok();
        }
    }

    /// The heading of a table with some columns of words, then one for each column of the run.
    fn heading(&self, out: &mut String, words: &[&str], bind: &str) {
        let rivals = self.columns.iter().skip(1).map(|column| column.name.as_str());
        let figures: Vec<&str> = std::iter::once(bind).chain(rivals).collect();
        write!(out, "\n| {} | {} |", words.join(" | "), figures.join(" | ")).ok();
        writeln!(out, "\n|{}{}", "---|".repeat(words.len()), "---:|".repeat(figures.len())).ok();
    }

    fn ratios(&self, out: &mut String, threads: usize) {
        let plural = if threads == 1 { "" } else { "s" };
        write!(out, "\n## {threads} client thread{plural}: times the bind mount\n").ok();
        self.heading(out, &["row", "per"], "bind, µs");
        for row in &ROWS {
            let Some(bind) = self.samples.median(row.name, threads, 0) else {
                continue;
            };
            write!(out, "| {} | {} | {} |", row.name, row.operation, figure(bind * 1e6)).ok();
            for column in 1..self.columns.len() {
                match self.samples.median(row.name, threads, column) {
                    Some(value) => write!(out, " {} |", figure(value / bind)).ok(),
                    None => write!(out, " - |").ok(),
                };
            }
            out.push('\n');
        }
    }

    fn extra(&self, out: &mut String) {
        out.push_str("\n## Other figures\n");
        self.heading(out, &["figure"], "bind");
        for row in EXTRA {
            let Some((unit, scale)) = self.unit_of(row) else { continue };
            write!(out, "| {row}, {unit} |").ok();
            for column in 0..self.columns.len() {
                self.cell(out, row, column, scale);
            }
            out.push('\n');
        }
    }

    /// How a row is written, and what its figures are multiplied with for that; None if it was not measured.
    fn unit_of(&self, row: &str) -> Option<(&'static str, f64)> {
        let sample = self.samples.all.iter().find(|sample| sample.row == row)?;
        Some(match (sample.unit, sample.operations) {
            // One of many: a call.
            (Unit::Seconds, 2..) => ("µs", 1e6),
            (Unit::Seconds, _) => ("ms", 1e3),
            (Unit::Bytes, _) => ("MiB", 1.0 / (1024.0 * 1024.0)),
            (Unit::Count, _) => ("number", 1.0),
        })
    }

    fn cell(&self, out: &mut String, row: &str, column: usize, scale: f64) {
        match self.samples.median(row, 1, column) {
            Some(value) => write!(out, " {} |", figure(value * scale)).ok(),
            None => write!(out, " - |").ok(),
        };
    }

    /// What stands behind each row of a column that has learnt.
    fn plays(&self, out: &mut String) {
        let figures =
            [rounds::TIME, rounds::PROCESSORS, rounds::DISK, rounds::PAGES, rounds::KERNEL].map(|figure| {
                let row = |scenario: Scenario| rounds::play_row(scenario.name(), figure);
                let unit = Scenario::ALL.into_iter().find_map(|scenario| self.unit_of(&row(scenario)));
                (figure, unit)
            });
        for (column, shown) in self.columns.iter().enumerate().filter(|(_, shown)| shown.learns()) {
            write!(out, "\n## What was played before a view was used: {}\n\n| scenario |", shown.name).ok();
            for (figure, unit) in figures {
                write!(out, " {figure}, {} |", unit.map_or("-", |(name, _)| name)).ok();
            }
            writeln!(out, "\n|---|{}", "---:|".repeat(figures.len())).ok();
            let played = |scenario: &Scenario| {
                self.unit_of(&rounds::play_row(scenario.name(), rounds::TIME)).is_some()
            };
            for scenario in Scenario::ALL.into_iter().filter(played) {
                write!(out, "| {} |", scenario.name()).ok();
                for (figure, unit) in figures {
                    let scale = unit.map_or(1.0, |(_, scale)| scale);
                    self.cell(out, &rounds::play_row(scenario.name(), figure), column, scale);
                }
                out.push('\n');
            }
        }
    }

    fn limits(&self, out: &mut String) {
        for (column, shown) in self.columns.iter().enumerate() {
            let way = match &shown.kind {
                Kind::Learnt { .. } => Way::Learnt,
                Kind::Program(arguments) if arguments.iter().any(|word| word == "passthrough") => {
                    Way::Passthrough
                }
                Kind::Program(_) => Way::Cached,
                Kind::Bind | Kind::Farm | Kind::Overlay(_) | Kind::Peer(_) => continue,
            };
            let cached = self.columns.iter().position(|column| column.name == "cached");
            let places = Places { column, bind: 0, cached };
            write!(out, "\n## Limits: {}\n\n| row | limit | measured | |\n|---|---|---:|---|\n", shown.name)
                .ok();
            for verdict in limits::judge(self.samples, self.corpus, way, places) {
                let word = if verdict.reached { "reached" } else { "missed" };
                let measured = figure(verdict.measured);
                writeln!(out, "| {} | {} | {measured} | {word} |", verdict.row, verdict.limit).ok();
            }
        }
    }
}

fn quoted(text: &str) -> String {
    text.replace('"', "\"\"")
}

/// Three digits that mean something.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}
