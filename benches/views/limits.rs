//! The figures that the program is held to, each as an upper limit that depends on the same run's bind mount or
//! FUSE floor, so that it means the same on every machine.

use crate::corpus::Corpus;
use crate::samples::{Samples, float};

/// Which of the program's ways to read a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    /// `--io cached`.
    Cached,
    /// `--io passthrough`.
    Passthrough,
}

/// An upper limit for one operation of a row.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// So many times what the bind mount takes.
    Bind(f64),
    /// So many FUSE floors.
    Floor(f64),
    /// So many FUSE floors on top of what the bind mount takes.
    FloorAndBind(f64),
    /// So many times the pages that the closure fills.
    Content(f64),
    /// So many bytes.
    Bytes(f64),
}

const MIB: f64 = 1024.0 * 1024.0;

const LIMITS: [(&str, Option<Bound>, Option<Bound>); 16] = [
    ("lstat, again", Some(Bound::Bind(1.25)), Some(Bound::Bind(1.25))),
    ("open small, again", Some(Bound::Bind(1.3)), Some(Bound::Floor(2.5))),
    ("missing, again", Some(Bound::Bind(1.5)), Some(Bound::Bind(1.5))),
    ("list, again", Some(Bound::Bind(1.15)), Some(Bound::Bind(1.15))),
    ("bytes, again", Some(Bound::Bind(1.35)), None),
    ("large bytes, again", None, Some(Bound::Bind(1.1))),
    ("lstat, first", Some(Bound::Floor(1.3)), Some(Bound::Floor(1.3))),
    ("open small, first", Some(Bound::FloorAndBind(2.0)), Some(Bound::FloorAndBind(2.5))),
    ("list, first", Some(Bound::Floor(0.6)), Some(Bound::Floor(0.6))),
    ("list, first", Some(Bound::Bind(3.5)), Some(Bound::Bind(3.5))),
    ("bytes, cold disk", Some(Bound::Bind(1.25)), Some(Bound::Bind(1.1))),
    ("python, again", Some(Bound::Bind(1.1)), Some(Bound::Bind(1.5))),
    ("script, again", Some(Bound::Bind(1.1)), Some(Bound::Bind(1.5))),
    ("boot, again", Some(Bound::Bind(1.1)), Some(Bound::Bind(1.15))),
    ("page cache added", Some(Bound::Content(1.15)), Some(Bound::Content(1.05))),
    ("private after every lstat", Some(Bound::Bytes(12.0 * MIB)), Some(Bound::Bytes(12.0 * MIB))),
];

/// A limit beside what was measured, in terms of the limit's own unit.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The row.
    pub(crate) row: &'static str,
    /// The limit in words.
    pub(crate) limit: String,
    /// What was measured, in the same terms.
    pub(crate) measured: f64,
    /// Whether it is within the limit.
    pub(crate) reached: bool,
}

/// Every limit that this run can judge for the column `column`, against the bind mount at `bind`.
pub(crate) fn judge(samples: &Samples, corpus: &Corpus, io: Io, column: usize, bind: usize) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let floor = samples.median("FUSE floor", 1, column);
    for (row, cached, passthrough) in LIMITS {
        let bound = if io == Io::Cached { cached } else { passthrough };
        let (Some(bound), Some(value)) = (bound, samples.median(row, 1, column)) else {
            continue;
        };
        let native = samples.median(row, 1, bind);
        let judged = match bound {
            Bound::Bind(times) => native.map(|native| (value / native, times, format!("{times} x bind"))),
            Bound::Floor(times) => floor.map(|floor| (value / floor, times, format!("{times} x floor"))),
            Bound::FloorAndBind(times) => native
                .zip(floor)
                .map(|(native, floor)| ((value - native) / floor, times, format!("{times} x floor + bind"))),
            Bound::Content(times) => {
                let bytes = float(corpus.page_bytes.max(1));
                Some((value / bytes, times, format!("{times} x the pages")))
            }
            Bound::Bytes(bytes) => Some((value / MIB, bytes / MIB, format!("{} MiB", bytes / MIB))),
        };
        if let Some((measured, limit, words)) = judged {
            verdicts.push(Verdict { row, limit: words, measured, reached: measured <= limit });
        }
    }
    let grown = samples
        .median("private after every lstat", 1, column)
        .zip(samples.median("private at READY", 1, column))
        .map(|(after, before)| (after - before) / float(corpus.entries.len().max(1) as u64));
    if let Some(measured) = grown {
        let limit = 120.0;
        let words = format!("{limit} bytes per entry");
        let row = "private memory, growth";
        verdicts.push(Verdict { row, limit: words, measured, reached: measured <= limit });
    }
    let over = samples
        .median("set-up", 1, column)
        .zip(samples.median("--dump-closure", 1, column))
        .map(|(start, dump)| (start - dump) * 1e3);
    if let Some(measured) = over {
        let limit = 15.0;
        let words = format!("{limit} ms over --dump-closure");
        verdicts.push(Verdict { row: "start to READY", limit: words, measured, reached: measured <= limit });
    }
    verdicts
}
