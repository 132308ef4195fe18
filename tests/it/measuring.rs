//! `scripts/bench` measures: every step, on a small store of its own. Its times are not looked at.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::util::scratch;

/// Rows that every column has on a machine with an `sh`, also in a quick run.
const ROWS: [&str; 12] = [
    "lstat, first",
    "lstat, again",
    "open small, first",
    "missing, first",
    "list, first",
    "bytes, first",
    "bytes, cold disk",
    "script, first",
    "script, cold disk",
    "script, second view",
    "set-up",
    "inodes cached before",
];
/// Those of a column of the program.
const OF_THE_PROGRAM: [&str; 4] =
    ["private at READY", "program's CPU time, names", "memory added, programs", "--dump-closure"];
/// Those of a program that has learnt nothing.
const UNTAUGHT: [&str; 1] = ["100 views, Pss of all processes"];
/// Those that stand behind a column that has learnt.
const OF_A_PLAY: [&str; 3] =
    ["play for names: time", "play for names: processor time", "play for contents: page cache"];

/// The pairs of column and row of a file of raw figures. No name in one has a quote.
fn measured(csv: &str) -> BTreeSet<(String, String)> {
    let quoted = |line: &str| -> Option<(String, String)> {
        let words: Vec<&str> = line.split('"').collect();
        Some(((*words.get(3)?).to_owned(), (*words.get(5)?).to_owned()))
    };
    csv.lines().skip(1).filter_map(quoted).collect()
}

fn with_ending(directory: &Path, ending: &str) -> String {
    let found = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == ending));
    fs::read_to_string(found.unwrap_or_else(|| panic!("no .{ending} in {}", directory.display()))).unwrap()
}

/// Measures this program quickly, with these further arguments.
fn quick_run(out: &Path, work: &Path, further: &[&str]) -> Output {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench"));
    command.args(["--quick", "--program", env!("CARGO_BIN_EXE_nix-store-fs")]).args(further);
    command.arg("--out").arg(out).arg("--work").arg(work).output().unwrap()
}

/// A quick run has a figure for every row of every column, says under which conditions, and leaves nothing behind.
#[test]
fn a_quick_run_tries_every_step() {
    need!(Root, Fuse, Nix);
    let (out, work) = (scratch(), scratch());
    let run = quick_run(out.path(), work.path(), &[]);
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");

    let help = Command::new(env!("CARGO_BIN_EXE_nix-store-fs")).arg("--help").output().unwrap();
    let learns = String::from_utf8_lossy(&help.stdout).contains("--prefetch");
    let measured = measured(&with_ending(out.path(), "csv"));
    let mut wanted: Vec<(&str, &[&str])> = vec![
        ("bind", &ROWS),
        ("cached", &ROWS),
        ("cached", &OF_THE_PROGRAM),
        ("cached", &UNTAUGHT),
        ("farm", &ROWS),
    ];
    if learns {
        wanted.extend([("learnt", &ROWS[..]), ("learnt", &OF_THE_PROGRAM), ("learnt", &OF_A_PLAY)]);
    }
    for (column, rows) in wanted {
        for row in rows {
            assert!(measured.contains(&(column.to_owned(), (*row).to_owned())), "{column}: {row}\n{said}");
        }
    }

    let report = with_ending(out.path(), "md");
    assert!(report.contains("hash tables"), "{report}");
    assert!(report.contains("inodes cached"), "{report}");
    assert_eq!(report.contains("`learnt` is left out"), !learns, "{report}");
    // What is no picture does not begin so.
    assert!(with_ending(out.path(), "svg").starts_with("<svg "));
    let left: Vec<_> = fs::read_dir(work.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}\n{said}");
}

/// A column that there is not is refused: without it, a run would be of fewer columns than somebody believes.
#[test]
fn an_unknown_column_is_refused() {
    need!(Root, Fuse, Nix);
    let (out, work) = (scratch(), scratch());
    let run = quick_run(out.path(), work.path(), &["--only", "cached,view"]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("--only view: the columns are cached,"), "{said}");
}
