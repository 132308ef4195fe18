//! Several changes in a row make one reload: a change is reported once it has been quiet.

use std::time::{Duration, Instant};

/// How long it has to be quiet.
const QUIET: Duration = Duration::from_millis(200);
/// Changes that never end are reported all the same after this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Changes that are not reported yet: the first and the last one.
#[derive(Debug, Default)]
pub(super) struct Debounce(Option<(Instant, Instant)>);

impl Debounce {
    /// Something has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        let first = self.0.map_or(now, |(first, _)| first);
        self.0 = Some((first, now));
    }

    /// When it is to be reported.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.map(|(first, last)| (last + QUIET).min(first + PATIENCE))
    }

    /// Whether it is to be reported now; true once.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.0 = None;
        }
        due
    }
}
