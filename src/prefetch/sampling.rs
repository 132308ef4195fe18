//! Which questions to the disk are asked: all as long as it has to be asked, few where memory answers. Pure.
//!
//! A store that is in the kernel's caches needs nobody to bring it there, and threads that do it all the same take processor time from who starts.

use std::sync::atomic::{AtomicUsize, Ordering};

/// After so many answers of memory in a row few are asked,
const ENOUGH: usize = 256;
/// one of so many.
const ONE_OF: usize = 16;

/// What threads have in common that ask one list of questions.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// Answers of memory since the disk was last asked.
    quiet: AtomicUsize,
}

impl Sampling {
    /// Whether this question is worth asking.
    pub(super) fn asks(&self, number: usize) -> bool {
        self.quiet.load(Ordering::Relaxed) < ENOUGH || number.is_multiple_of(ONE_OF)
    }

    /// A question was answered; `waited`: not by memory.
    pub(super) fn told(&self, waited: bool) {
        match waited {
            true => self.quiet.store(0, Ordering::Relaxed),
            false => drop(self.quiet.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the numbers up to `all` are asked where the disk has those that `is_cold`.
    fn asked(all: usize, is_cold: impl Fn(usize) -> bool) -> Vec<usize> {
        let sampling = Sampling::default();
        let ask = |number: &usize| {
            let asks = sampling.asks(*number);
            if asks {
                sampling.told(is_cold(*number));
            }
            asks
        };
        (0..all).filter(ask).collect()
    }

    #[test]
    fn where_memory_answers_one_of_sixteen_is_asked() {
        let warm = asked(10_000, |_| false);
        assert!(warm.iter().take(ENOUGH).copied().eq(0..ENOUGH));
        assert_eq!(warm.len(), ENOUGH + (10_000 - ENOUGH) / ONE_OF);
        assert_eq!(asked(10_000, |_| true).len(), 10_000);
        assert_eq!(
            asked(10_000, |number| number % 100 == 99).len(),
            10_000,
            "a disk that is asked now and then"
        );
    }

    #[test]
    fn once_the_disk_answers_again_all_are_asked() {
        let half = asked(10_000, |number| number >= 5_000);
        let cold: Vec<usize> = half.into_iter().filter(|number| *number >= 5_000).collect();
        let from = 5_000_usize.next_multiple_of(ONE_OF);
        assert!(cold.into_iter().eq(from..10_000));
    }
}
