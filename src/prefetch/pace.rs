//! When it rests. Pure.
//!
//! What is used in the first moments of a view is asked for as fast as can be: the plan is in the order of time. Whoever has more to
//! ask for is no longer ahead of a start, but beside somebody's work: then it works in turns, and rests for three times as long as each took.
//!
//! Nothing tells well whether others want the processors or the disk, so it always rests. Stall times (PSI) count the player and the server
//! as well: with nobody else there, somebody waited for a processor for 31 % of a play, and beside a neighbour for 40 %. Nor is it waiting that makes
//! a neighbour slower: where two processors are threads of one core it is the other one's work, and neither tells the other.

use std::time::{Duration, Instant};

/// How long it works at first.
const FIRST: Duration = Duration::from_millis(300);
/// How long a turn is then, or longer, as one question may take longer.
const TURN: Duration = Duration::from_millis(4);
/// A rest is so many times as long as its turn,
const TIMES: u32 = 3;
/// but never longer than this.
const LONGEST: Duration = Duration::from_secs(1);

/// See above.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the turn ends.
    until: Instant,
    /// When it began.
    begun: Instant,
}

impl Pace {
    /// It begins to work.
    pub(super) fn new(now: Instant) -> Self {
        // Of the first turn no more is rested for than of another.
        Self { until: now + FIRST, begun: now + FIRST - TURN }
    }

    /// Between two questions: until when it rests, if it is to.
    pub(super) fn rests(&mut self, now: Instant) -> Option<Instant> {
        if now < self.until {
            return None;
        }
        let rested = now + ((now - self.begun) * TIMES).min(LONGEST);
        *self = Self { until: rested + TURN, begun: rested };
        Some(rested)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever questions take: three quarters of the time after the first turn belong to others, but for questions that take very long.
        #[test]
        fn others_have_three_quarters_of_the_time(questions in proptest::collection::vec(1u64..60_000, 1..3000)) {
            let begun = Instant::now();
            let (mut pace, mut now, mut worked, mut rested) = (Pace::new(begun), begun, Duration::ZERO, Duration::ZERO);
            for micros in questions {
                let is_first = now < begun + FIRST;
                if let Some(until) = pace.rests(now) {
                    prop_assert!(!is_first, "the first moments are at full speed");
                    prop_assert!(until > now && until - now <= LONGEST);
                    rested += until - now;
                    now = until;
                }
                let took = Duration::from_micros(micros);
                if !is_first {
                    worked += took;
                }
                now += took;
                // The turn that is not over.
                prop_assert!(rested + (TURN + Duration::from_millis(60)) * TIMES >= worked * TIMES);
                prop_assert!(rested <= (worked + Duration::from_millis(60) + TURN) * TIMES, "it rests for no more");
            }
        }
    }

    #[test]
    fn a_question_that_took_very_long_is_not_rested_for_as_long() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let now = begun + Duration::from_secs(20);
        assert_eq!(pace.rests(now), Some(now + LONGEST));
        assert_eq!(pace.rests(now + LONGEST), None);
    }
}
