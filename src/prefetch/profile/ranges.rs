//! Ranges of a file's pages: sorted, apart from each other, and few.

use crate::view::trace::records::Pages;

/// Most ranges of one file. Of more, those that are closest are joined.
pub const RANGES: usize = 64;

/// Which pages of a file were read. Sorted; between two ranges lies at least one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Pages>);

impl Ranges {
    /// None: of a file that was opened, of which nobody knows how much was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, sorted.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Pages> {
        self.0.iter().copied()
    }

    /// How many pages there are in all.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|pages| u64::from(pages.count)).sum()
    }

    /// Adds `more`, which may lie anywhere.
    pub fn extend(&mut self, more: impl IntoIterator<Item = Pages>) {
        self.0.extend(more);
        *self = std::mem::take(&mut self.0).into_iter().collect();
    }

    /// The same with ranges joined between which at most `gap` pages lie.
    #[must_use]
    pub fn joined(&self, gap: u64) -> Self {
        Self(join(&self.0, gap))
    }
}

impl FromIterator<Pages> for Ranges {
    fn from_iter<I: IntoIterator<Item = Pages>>(pages: I) -> Self {
        let mut pages: Vec<Pages> = pages.into_iter().filter(|pages| pages.count > 0).collect();
        pages.sort_unstable();
        let mut pages = join(&pages, 0);
        if let Some(more) = pages.len().checked_sub(RANGES + 1) {
            let mut gaps: Vec<u64> = pages
                .windows(2)
                .filter_map(|two| two.first().zip(two.last()))
                .map(|(one, next)| next.first.saturating_sub(end(*one)))
                .collect();
            gaps.sort_unstable();
            pages = join(&pages, gaps.get(more).copied().unwrap_or(u64::MAX));
            // More only where a range is too long for a count.
            pages.truncate(RANGES);
        }
        Self(pages)
    }
}

/// The page behind the last one.
fn end(pages: Pages) -> u64 {
    pages.first.saturating_add(pages.count.into())
}

fn join(sorted: &[Pages], gap: u64) -> Vec<Pages> {
    let mut joined: Vec<Pages> = Vec::new();
    for next in sorted {
        match joined.last_mut() {
            Some(last) if next.first <= end(*last).saturating_add(gap) => {
                let count = end(*last).max(end(*next)) - last.first;
                last.count = u32::try_from(count).unwrap_or(u32::MAX);
            }
            _ => joined.push(*next),
        }
    }
    joined
}
