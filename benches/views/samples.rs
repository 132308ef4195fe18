//! What was measured: single figures as they came, and what a table makes of them.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Time for all operations together.
    Seconds,
    /// Memory.
    Bytes,
    /// Things.
    Count,
}

impl Unit {
    /// As written in the raw figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "B",
            Self::Count => "1",
        }
    }
}

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Which round, from 1.
    pub(crate) round: usize,
    /// Client threads.
    pub(crate) threads: usize,
    /// What was measured.
    pub(crate) row: Cow<'static, str>,
    /// The column, by its place.
    pub(crate) column: usize,
    /// How many operations the value covers.
    pub(crate) operations: usize,
    /// The figure.
    pub(crate) value: f64,
    /// What it counts.
    pub(crate) unit: Unit,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// In the order in which they were taken.
    pub(crate) all: Vec<Sample>,
}

impl Samples {
    /// The median over the rounds of what one operation took, if it was measured at all.
    pub(crate) fn median(&self, row: &str, threads: usize, column: usize) -> Option<f64> {
        let values = self
            .all
            .iter()
            .filter(|sample| sample.row == row && sample.threads == threads && sample.column == column)
            .map(|sample| sample.value / float(sample.operations.max(1) as u64));
        median(values.collect())
    }

    /// How many rounds a row has, for each number of rounds that occurs.
    pub(crate) fn rounds(&self, row: &str) -> usize {
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for sample in self.all.iter().filter(|sample| sample.row == row) {
            *counts.entry((sample.threads, sample.column)).or_default() += 1;
        }
        counts.values().copied().min().unwrap_or(0)
    }
}

/// The middle value; of an even number, the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
    Some((lower + upper) / 2.0)
}

/// A count as a float; from 2^53 on it would be rounded, which no count here comes near.
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
