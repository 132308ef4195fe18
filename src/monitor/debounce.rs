//! When to act on changes that come in a row: once it has been quiet for [`QUIET`], or [`PATIENCE`] after the first.
//!
//! A plain value: the caller passes the time in.

use std::time::{Duration, Instant};

/// How long there must have been no change.
const QUIET: Duration = Duration::from_millis(200);
/// After this time it is acted on changes that do not end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Changes that nobody has acted on yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Debounce {
    /// When the first and the last of them came.
    pending: Option<(Instant, Instant)>,
}

impl Debounce {
    /// Something has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        let first = self.pending.map_or(now, |(first, _)| first);
        self.pending = Some((first, now));
    }

    /// When to act. `None`: nothing has changed.
    #[must_use]
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.map(|(first, last)| (last + QUIET).min(first + PATIENCE))
    }

    /// Whether to act now; true once for all changes so far.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.pending = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes at the given milliseconds, and when it is acted on them.
    #[test]
    fn changes_in_a_row_are_acted_on_once() {
        let cases: [(&[u64], &[u64]); 6] = [
            (&[], &[]),
            (&[0], &[200]),
            (&[0, 0, 0], &[200]),
            (&[0, 199, 398], &[598]),
            (&[0, 201], &[200, 401]),
            // One each 150 ms, from 0 to 2250: the first is 2 s old after that of 1950.
            (
                &[0, 150, 300, 450, 600, 750, 900, 1050, 1200, 1350, 1500, 1650, 1800, 1950, 2100, 2250],
                &[2000, 2450],
            ),
        ];
        let begun = Instant::now();
        for (changes, expected) in cases {
            let mut debounce = Debounce::default();
            let mut acted = Vec::new();
            for millisecond in 0..4000 {
                let now = begun + Duration::from_millis(millisecond);
                if debounce.take_due(now) {
                    acted.push(millisecond);
                }
                for _ in changes.iter().filter(|change| **change == millisecond) {
                    debounce.changed(now);
                }
            }
            assert_eq!(acted, expected, "changes at {changes:?}");
        }
    }

    #[test]
    fn it_is_due_when_it_can_be_taken() {
        let begun = Instant::now();
        let mut debounce = Debounce::default();
        assert_eq!((debounce.due(), debounce.take_due(begun)), (None, false));
        debounce.changed(begun);
        let due = debounce.due().unwrap();
        assert!(!debounce.take_due(due - Duration::from_nanos(1)));
        assert_eq!(debounce.due(), Some(due));
        assert!(debounce.take_due(due));
        assert_eq!((debounce.due(), debounce.take_due(due)), (None, false));
    }
}
