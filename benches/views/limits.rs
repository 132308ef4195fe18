//! The figures that the program is held to, each as an upper limit that depends on the same run's bind mount or other
//! columns, so that it means the same on every machine.

use std::borrow::Cow;

use crate::corpus::Corpus;
use crate::rounds::{self, play_row};
use crate::samples::{Samples, float};
use crate::scenarios::Scenario;
use crate::{many, neighbour};

/// Which of the program's ways a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `--io cached`, with nothing learnt.
    Cached,
    /// `--io passthrough`, with nothing learnt.
    Passthrough,
    /// `--io cached`, with what a view of the same scenario has learnt.
    Learnt,
}

/// The columns that a verdict looks at, by their places.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// The one that is judged.
    pub(crate) column: usize,
    /// The bind mount.
    pub(crate) bind: usize,
    /// The same program with nothing learnt, if it is in the run.
    pub(crate) cached: Option<usize>,
}

/// An upper limit for one operation of a row.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// So many times what the bind mount takes.
    Bind(f64),
    /// So many times the pages that the closure fills.
    Content(f64),
    /// So many bytes.
    Bytes(f64),
    /// So many times what another row of the column takes.
    Row(&'static str, f64),
    /// So many seconds more than the program that has learnt nothing.
    OverCached(f64),
}

const MIB: f64 = 1024.0 * 1024.0;

/// By row: the limits of `cached`, of `passthrough` and of `learnt`.
type Limit = (&'static str, Option<Bound>, Option<Bound>, Option<Bound>);

const LIMITS: [Limit; 24] = [
    ("lstat, first", None, None, Some(Bound::Bind(1.6))),
    ("lstat, again", Some(Bound::Bind(1.25)), Some(Bound::Bind(1.25)), Some(Bound::Bind(1.25))),
    ("open small, first", None, None, Some(Bound::Bind(2.0))),
    ("open small, again", Some(Bound::Bind(1.3)), None, Some(Bound::Bind(1.3))),
    ("missing, first", None, None, Some(Bound::Bind(2.0))),
    ("missing, again", Some(Bound::Bind(1.5)), Some(Bound::Bind(1.5)), Some(Bound::Bind(1.5))),
    ("list, first", Some(Bound::Bind(3.5)), Some(Bound::Bind(3.5)), Some(Bound::Bind(1.4))),
    ("list, again", Some(Bound::Bind(1.15)), Some(Bound::Bind(1.15)), Some(Bound::Bind(1.15))),
    ("bytes, again", Some(Bound::Bind(1.35)), None, Some(Bound::Bind(1.35))),
    ("large bytes, again", None, Some(Bound::Bind(1.1)), None),
    ("bytes, cold disk", Some(Bound::Bind(1.25)), Some(Bound::Bind(1.1)), None),
    ("mmap, first", None, None, Some(Bound::Bind(2.2))),
    ("python, again", Some(Bound::Bind(1.1)), Some(Bound::Bind(1.5)), Some(Bound::Bind(1.1))),
    ("python, cold disk", None, None, Some(Bound::Bind(1.0))),
    ("script, again", Some(Bound::Bind(1.1)), Some(Bound::Bind(1.5)), Some(Bound::Bind(1.1))),
    ("script, cold disk", None, None, Some(Bound::Bind(1.0))),
    ("boot, first", None, None, Some(Bound::Bind(1.05))),
    ("boot, again", Some(Bound::Bind(1.1)), Some(Bound::Bind(1.15)), Some(Bound::Bind(1.1))),
    ("boot, cold disk", None, None, Some(Bound::Bind(1.0))),
    ("set-up", None, None, Some(Bound::OverCached(0.001))),
    ("page cache added", Some(Bound::Content(1.15)), Some(Bound::Content(1.05)), Some(Bound::Content(1.15))),
    ("private after every lstat", MEMORY, MEMORY, MEMORY),
    (neighbour::READ_BESIDE, None, None, Some(Bound::Row(neighbour::READ_ALONE, 1.1))),
    (neighbour::NAME_BESIDE, None, None, Some(Bound::Row(neighbour::NAME_ALONE, 1.1))),
];

const MEMORY: Option<Bound> = Some(Bound::Bytes(12.0 * MIB));
const ALL_VIEWS: f64 = 300.0 * MIB;
/// What nobody used of what was played, at most as much as was used.
const UNUSED: f64 = 1.0;

/// A limit beside what was measured, in terms of the limit's own unit.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The row.
    pub(crate) row: Cow<'static, str>,
    /// The limit in words.
    pub(crate) limit: String,
    /// What was measured, in the same terms.
    pub(crate) measured: f64,
    /// Whether it is within the limit.
    pub(crate) reached: bool,
}

impl Verdict {
    fn new(row: impl Into<Cow<'static, str>>, limit: String, measured: f64, most: f64) -> Self {
        Self { row: row.into(), limit, measured, reached: measured <= most }
    }
}

/// Every limit that this run can judge for a column that works in this way.
pub(crate) fn judge(samples: &Samples, corpus: &Corpus, way: Way, places: Places) -> Vec<Verdict> {
    let Places { column, bind, cached } = places;
    let mut verdicts = Vec::new();
    for (row, for_cached, for_passthrough, for_learnt) in LIMITS {
        let bound = match way {
            Way::Cached => for_cached,
            Way::Passthrough => for_passthrough,
            Way::Learnt => for_learnt,
        };
        let (Some(bound), Some(value)) = (bound, samples.median(row, 1, column)) else {
            continue;
        };
        let other = |row: &str, column: usize| samples.median(row, 1, column);
        let judged = match bound {
            Bound::Bind(times) => {
                other(row, bind).map(|native| (value / native, times, format!("{times} x bind")))
            }
            Bound::Content(times) => {
                let bytes = float(corpus.page_bytes.max(1));
                Some((value / bytes, times, format!("{times} x the pages")))
            }
            Bound::Bytes(bytes) => Some((value / MIB, bytes / MIB, format!("{} MiB", bytes / MIB))),
            Bound::Row(base, times) => {
                other(base, column).map(|base| (value / base, times, format!("{times} x without")))
            }
            Bound::OverCached(seconds) => cached.and_then(|cached| other(row, cached)).map(|without| {
                ((value - without) * 1e3, seconds * 1e3, format!("{} ms over cached", seconds * 1e3))
            }),
        };
        if let Some((measured, most, words)) = judged {
            verdicts.push(Verdict::new(row, words, measured, most));
        }
    }
    verdicts.extend(growth(samples, corpus, column));
    verdicts.extend(start(samples, column));
    if let Some(measured) = samples.median(many::PROPORTIONAL, 1, column) {
        let words = format!("{} MiB", ALL_VIEWS / MIB);
        verdicts.push(Verdict::new(many::PROPORTIONAL, words, measured / MIB, ALL_VIEWS / MIB));
    }
    if let (Way::Learnt, Some(cached)) = (way, cached) {
        let each = Scenario::ALL.into_iter();
        verdicts.extend(each.filter_map(|scenario| unused(samples, scenario, column, cached)));
    }
    verdicts
}

fn growth(samples: &Samples, corpus: &Corpus, column: usize) -> Option<Verdict> {
    let after = samples.median("private after every lstat", 1, column)?;
    let before = samples.median("private at READY", 1, column)?;
    let measured = (after - before) / float(corpus.entries.len().max(1) as u64);
    let limit = 120.0;
    Some(Verdict::new("private memory, growth", format!("{limit} bytes per entry"), measured, limit))
}

fn start(samples: &Samples, column: usize) -> Option<Verdict> {
    let (start, dump) = (samples.median("set-up", 1, column)?, samples.median("--dump-closure", 1, column)?);
    let limit = 15.0;
    let words = format!("{limit} ms over --dump-closure");
    Some(Verdict::new("start to READY", words, (start - dump) * 1e3, limit))
}

/// What was played for a scenario and not used, over what was used. The scenario fills so much memory in a view that
/// plays, and so much in one that does not: what is between them nobody asked for.
fn unused(samples: &Samples, scenario: Scenario, column: usize, cached: usize) -> Option<Verdict> {
    let played = samples.median(&play_row(scenario.name(), rounds::PAGES), 1, column)?
        + samples.median(&play_row(scenario.name(), rounds::KERNEL), 1, column)?;
    let row = format!("memory added, {}", scenario.name());
    let unused = (samples.median(&row, 1, column)? - samples.median(&row, 1, cached)?).max(0.0);
    let used = (played - unused).max(0.0);
    // A play that filled nothing took nothing that nobody used.
    let measured = if unused == 0.0 { 0.0 } else { unused / used };
    let row = format!("memory played and not used, {}", scenario.name());
    Some(Verdict::new(row, format!("{UNUSED} x what was used"), measured, UNUSED))
}
