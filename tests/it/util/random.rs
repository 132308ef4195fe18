//! Numbers that differ from run to run, from a seed that is printed.

use std::time::{SystemTime, UNIX_EPOCH};

use super::load::say;
use super::number;

/// The number that the environment gives (`NSF_SEED`), for a run that is to be repeated, or another one each time. It is
/// printed with the name of what it is for.
pub(crate) fn seed(what: &str) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = number("NSF_SEED", u64::from(now.subsec_nanos()));
    say(&format!("{what}: NSF_SEED={seed}"));
    seed
}

/// Pseudo-random numbers (xorshift).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 1
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap() % end
    }
}
