//! `diff`: in what two closures differ.

use std::io::{self, Write};
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::args::LogArgs;
use super::closures::{Known, Resolved};
use super::exit::{Exit, Failure};
use super::output::{self, Color, Harmless, many, print};
use crate::closure::diff::{self, Change, Kind, Side};
use crate::closure::graph::{Graph, Node};
use crate::values::Size;

/// Version of what `--json` prints: docs/schema/diff.json.
const VERSION: u32 = 1;

/// Versions of a package that a line has: all are in the JSON.
const VERSIONS_MAX: usize = 6;
/// Columns that names and versions are padded to, at most.
const WIDTH_MAX: usize = 50;
/// What stands for a version where there is none.
const NONE: &str = "(none)";

/// Tell in what two closures differ, by package
///
/// "by NAME" is the reference of a root through which a path is reached first: the reason why it is there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 3: a system, or a file, cannot be used. All others: nix-store-fs --help")]
pub(super) struct Args {
    /// What was: a system, a profile, a generation (web-12-link), or a file to which --dump-closure=json was saved
    old: PathBuf,

    /// What is, in the same ways
    new: PathBuf,

    /// Resolve nothing through DIR, an absolute path, or anything in it; repeatable
    #[arg(long, value_name = "DIR")]
    untrusted: Vec<PathBuf>,

    /// The store, as Nix spells it [default: that of Nix's commands]
    #[arg(long, value_name = "URI")]
    store: Option<String>,

    /// Print JSON: docs/schema/diff.json
    #[arg(long, conflicts_with = "color")]
    json: bool,

    #[command(flatten)]
    color: Color,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// Two closures that have nothing to do with each other.
#[derive(Debug, thiserror::Error)]
#[error("OLD is of the store '{}' and NEW of '{}', whose paths cannot be compared; give two of one store", old.display(), new.display())]
pub struct OtherStore {
    /// The directory of the first one.
    old: PathBuf,
    /// The directory of the second one.
    new: PathBuf,
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    super::config::check_untrusted(&args.untrusted)?;
    let [old, new] = Known::systems([&args.old, &args.new], &args.untrusted, args.store)?;
    let (old, new) = (old.closure("'diff'")?, new.closure("'diff'")?);
    if old.dir != new.dir {
        return Err(OtherStore { old: old.dir, new: new.dir }.into());
    }
    let (before, after) = (Graph::new(&old.closure), Graph::new(&new.closure));
    let changes = diff::diff(&before, &after);
    let printer = Printer { names: [&args.old, &args.new], old: &old, new: &new, before, after, changes };
    if args.json {
        print(Color::NONE, |out| printer.json(out))?;
    } else {
        print(args.color, |out| printer.text(out))?;
    }
    Ok(Exit::Success)
}

struct Printer<'a> {
    names: [&'a PathBuf; 2],
    old: &'a Resolved,
    new: &'a Resolved,
    before: Graph<'a>,
    after: Graph<'a>,
    changes: Vec<Change<'a>>,
}

impl Printer<'_> {
    /// The reference of a root that is the reason for a change.
    fn cause(&self, change: &Change<'_>) -> Option<Node> {
        self.graph(change).brought_by(*change.paths().first()?)
    }

    /// Where what is told of a change is.
    fn graph(&self, change: &Change<'_>) -> &Graph<'_> {
        if change.kind == Kind::Removed { &self.before } else { &self.after }
    }

    fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        let bold = Style::new().bold();
        for (name, resolved) in self.names.into_iter().zip([self.old, self.new]) {
            let (paths, size) = (resolved.closure.len(), Size(resolved.closure.nar_size()));
            let paths = many(paths as u64, "path", "paths");
            writeln!(out, "{bold}{}{bold:#}: {paths}, {size}", Harmless::path(name))?;
        }
        let paths = self.new.closure.len().cast_signed().wrapping_sub(self.old.closure.len().cast_signed());
        let growth: i128 = self.changes.iter().map(Change::growth).sum();
        let what = if paths.abs() == 1 { "path" } else { "paths" };
        if self.changes.is_empty() {
            writeln!(out, "The closures have the same paths")?;
        } else {
            writeln!(out, "{paths:+} {what}, {}", Growth(growth))?;
        }
        for (kind, title, color) in [
            (Kind::Changed, "Other versions", AnsiColor::Yellow),
            (Kind::Added, "Added", AnsiColor::Green),
            (Kind::Removed, "Removed", AnsiColor::Red),
            (Kind::Rebuilt, "Rebuilt, the same versions", AnsiColor::Blue),
        ] {
            self.section(kind, title, color.on_default(), out)?;
        }
        Ok(())
    }

    fn section(&self, kind: Kind, title: &str, style: Style, out: &mut dyn Write) -> io::Result<()> {
        let of_kind: Vec<&Change<'_>> = self.changes.iter().filter(|change| change.kind == kind).collect();
        if of_kind.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{style}{title}{style:#}")?;
        let versions: Vec<String> = of_kind.iter().map(|change| versions(change)).collect();
        let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or_default().min(WIDTH_MAX);
        let name = width(&mut of_kind.iter().map(|change| change.name.len()));
        let version = width(&mut versions.iter().map(|text| text.chars().count()));
        for (change, versions) in of_kind.into_iter().zip(versions) {
            let growth = Growth(change.growth()).to_string();
            write!(out, "  {:name$}  {versions:version$}  {growth:>11}", change.name)?;
            let cause = self.cause(change).and_then(|node| self.graph(change).info(node));
            match cause {
                Some(info) => writeln!(out, "  by {}", info.path.name())?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    }

    fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        let packages = self.changes.iter().map(|change| {
            let side = |side: &Side<'_>, graph: &Graph<'_>| {
                let paths = side.paths.iter().filter_map(|node| graph.info(*node));
                Told {
                    versions: side.versions.iter().map(|&version| version.to_owned()).collect(),
                    paths: paths.map(|info| info.path.as_str().to_owned()).collect(),
                    nar_size: side.nar_size,
                }
            };
            let cause = self.cause(change).and_then(|node| self.graph(change).info(node));
            Package {
                name: change.name,
                change: change.kind,
                old: side(&change.old, &self.before),
                new: side(&change.new, &self.after),
                cause: cause.map(|info| info.path.as_str()),
            }
        });
        let [old, new] = [self.old, self.new].map(|resolved| Summary {
            store_dir: resolved.dir.display().to_string(),
            roots: resolved.closure.roots().iter().map(|root| root.as_str().to_owned()).collect(),
            paths: resolved.closure.len(),
            nar_size: resolved.closure.nar_size(),
        });
        let all = All { version: VERSION, old, new, packages: packages.collect() };
        output::json(&all, true, out)
    }
}

/// `3.0.14 → 3.0.15`; nothing for a package without versions.
fn versions(change: &Change<'_>) -> String {
    let side = |side: &Side<'_>| {
        if side.versions.iter().all(|version| version.is_empty()) {
            return String::new();
        }
        let named = side.versions.iter().map(|&version| if version.is_empty() { NONE } else { version });
        let mut text = named.take(VERSIONS_MAX).collect::<Vec<_>>().join(", ");
        if let Some(more) = side.versions.len().checked_sub(VERSIONS_MAX).filter(|more| *more > 0) {
            text.push_str(&format!(" and {more} more"));
        }
        text
    };
    match change.kind {
        Kind::Changed => {
            let [old, new] = [&change.old, &change.new].map(side);
            let named = |text: String| if text.is_empty() { NONE.to_owned() } else { text };
            format!("{} → {}", named(old), named(new))
        }
        Kind::Removed => side(&change.old),
        Kind::Added | Kind::Rebuilt => side(&change.new),
    }
}

/// How much more it is: `+1.5 KiB`.
struct Growth(i128);

impl std::fmt::Display for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = Size(u64::try_from(self.0.unsigned_abs()).unwrap_or(u64::MAX));
        write!(f, "{}{size}", if self.0 < 0 { '-' } else { '+' })
    }
}

#[derive(Serialize)]
struct All<'a> {
    version: u32,
    old: Summary,
    new: Summary,
    packages: Vec<Package<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    store_dir: String,
    roots: Vec<String>,
    paths: usize,
    nar_size: u64,
}

#[derive(Serialize)]
struct Package<'a> {
    name: &'a str,
    change: Kind,
    old: Told,
    new: Told,
    cause: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    versions: Vec<String>,
    paths: Vec<String>,
    nar_size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A width above 65,535 ends a program with a panic: thousands of versions of one package are no line.
    #[test]
    fn a_package_of_any_number_of_versions_has_a_line() {
        let all: Vec<String> = (0..20_000).map(|n| format!("1.{n:05}")).collect();
        let side = |count: usize| Side {
            versions: all.iter().take(count).map(String::as_str).collect(),
            ..Side::default()
        };
        let change = |kind, old, new| Change { kind, name: "many", old: side(old), new: side(new) };
        assert_eq!(versions(&change(Kind::Changed, 1, 2)), "1.00000 → 1.00000, 1.00001");
        assert_eq!(versions(&change(Kind::Changed, 0, 1)), "(none) → 1.00000");
        let many = versions(&change(Kind::Added, 0, 20_000));
        assert!(many.ends_with("1.00005 and 19994 more"), "{many}");
    }
}
