//! The life of the server, as values: whether there is one, when the next one starts, what it resumes from.

use std::time::{Duration, Instant};

/// Deaths in a row of servers that had not answered which are replaced at once; later ones wait.
const PATIENCE: u32 = 3;
/// First and longest pause before another server is started.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A server that lived for a shorter time than this counts as one that cannot live long...
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// ...and as many of those in a row are replaced at once even if they answered: a request that kills them comes again.
const SHORT_LIVES: u32 = 20;

/// Servers in a row that a monitor starts in vain before it gives up a new mount that none of them has served.
pub(super) const START_ATTEMPTS: u32 = 10;

/// The same for those that a fault of their own has ended: it comes again.
const START_FAULTS: u32 = 3;

/// Whether there is a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) enum ServerLife {
    /// There is none. The next one is started at this time; without one, when there is something to serve.
    Down(Option<Instant>),
    /// It was told what to serve, and has not reported that it does.
    Starting(Starting),
    /// It answers requests.
    Up {
        /// Whether it has answered one.
        answered: bool,
        /// Number of the switch that made the view that it shows.
        epoch: u32,
        /// When it was started.
        since: Instant,
    },
    /// It was killed, or its socket is closed. Its end is waited for until this time.
    Ending {
        /// When it is left to a thread that reaps it.
        until: Instant,
        /// What it had come to.
        past: Past,
        /// When it was started.
        since: Instant,
    },
    /// It has ended. Whether its connection to the kernel has is looked up.
    Ended {
        /// How, in words.
        how: String,
        /// What it had come to.
        past: Past,
        /// When it was started.
        since: Instant,
    },
}

/// A server that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Starting {
    /// When it was started.
    pub(in crate::monitor) since: Instant,
    /// Whether an earlier server may have taken requests.
    pub(in crate::monitor) resume: bool,
    /// Whether it has answered a request all the same.
    pub(in crate::monitor) answered: bool,
    /// Why it cannot begin, if it said so.
    pub(in crate::monitor) refusal: Option<String>,
    /// Whether it was logged that this takes long.
    pub(in crate::monitor) logged: bool,
}

/// What a server that ends had come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) enum Past {
    /// Requests were answered, or the monitor wanted another one.
    Useful,
    /// None was answered; the reason, if it gave one.
    Useless(Option<String>),
}

impl ServerLife {
    /// What it had come to by now.
    pub(super) fn past(&self) -> Past {
        match self {
            Self::Up { answered: true, .. } | Self::Starting(Starting { answered: true, .. }) => Past::Useful,
            Self::Starting(starting) => Past::Useless(starting.refusal.clone()),
            Self::Ending { past, .. } | Self::Ended { past, .. } => past.clone(),
            Self::Down(_) | Self::Up { answered: false, .. } => Past::Useless(None),
        }
    }

    /// When it was started, if there is one.
    pub(super) fn since(&self) -> Option<Instant> {
        match self {
            Self::Down(_) => None,
            Self::Starting(Starting { since, .. })
            | Self::Up { since, .. }
            | Self::Ending { since, .. }
            | Self::Ended { since, .. } => Some(*since),
        }
    }

    /// Whether orders reach it.
    pub(super) fn listens(&self) -> bool {
        matches!(self, Self::Starting(_) | Self::Up { .. })
    }
}

/// What the next server resumes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Successor {
    /// No server was given this mount.
    Fresh,
    /// The journal that an earlier monitor's servers wrote.
    Inherited,
    /// The journal that a server of this monitor may have written.
    Journalled,
    /// A server was given this mount without a journal: the kernel may know nodes whose meaning nobody knows.
    Lost,
}

impl Successor {
    /// Whether an earlier server may have taken requests.
    pub(super) fn resumes(self) -> bool {
        self != Self::Fresh
    }
}

/// How long to wait before the next server, and whether there is to be one: at once and always, unless they die again and again.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Backoff {
    /// Servers in a row that answered nothing.
    in_vain: u32,
    /// That lived for a short time.
    short: u32,
    /// That a fault of their own has ended.
    faults: u32,
}

impl Backoff {
    /// The process of a server has ended, by a fault of its own if it is `faulted`.
    pub(super) fn exited(&mut self, faulted: bool) {
        self.faults = count(self.faults, faulted);
    }

    /// A server is no more that had lived for so long. How long to wait.
    pub(super) fn death(&mut self, past: &Past, lived: Duration) -> Duration {
        self.in_vain = count(self.in_vain, *past != Past::Useful);
        self.short = count(self.short, lived < SHORT_LIFE);
        let pause = |in_a_row: u32, patience: u32| match in_a_row.checked_sub(patience + 1) {
            None => Duration::ZERO,
            Some(doublings) => PAUSE.saturating_mul(1 << doublings.min(16)).min(PAUSE_MAX),
        };
        pause(self.in_vain, PATIENCE).max(pause(self.short, SHORT_LIVES))
    }

    /// Whether a new mount that no server has served is given up.
    pub(super) fn gives_up(&self) -> bool {
        self.in_vain >= START_ATTEMPTS || self.faults >= START_FAULTS
    }
}

/// So many in a row.
fn count(before: u32, counts: bool) -> u32 {
    if counts { before.saturating_add(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn useful_servers_are_replaced_at_once_and_others_after_growing_pauses() {
        let mut backoff = Backoff::default();
        assert!((0..1000).all(|_| backoff.death(&Past::Useful, LONG).is_zero()));
        let pauses: Vec<_> = (0..20).map(|_| backoff.death(&Past::Useless(None), LONG).as_millis()).collect();
        assert_eq!(pauses[..11], [0, 0, 0, 50, 100, 200, 400, 800, 1600, 3200, 5000]);
        assert!(pauses[11..].iter().all(|pause| *pause == 5000));
        assert_eq!(backoff.in_vain, 20);
        assert!(backoff.death(&Past::Useful, LONG).is_zero());
        assert_eq!(backoff.in_vain, 0);
        assert!(backoff.death(&Past::Useless(None), LONG).is_zero());
    }

    #[test]
    fn a_mount_is_given_up_after_three_faults_or_ten_starts_in_vain_in_a_row() {
        let mut backoff = Backoff::default();
        for faulted in [true, true, false, true, true] {
            backoff.exited(faulted);
            assert!(!backoff.gives_up());
        }
        backoff.exited(true);
        assert!(backoff.gives_up());
        backoff.exited(false);
        for _ in 0..9 {
            backoff.death(&Past::Useless(None), LONG);
            assert!(!backoff.gives_up());
        }
        backoff.death(&Past::Useless(None), LONG);
        assert!(backoff.gives_up());
        backoff.death(&Past::Useful, LONG);
        assert!(!backoff.gives_up());
    }

    #[test]
    fn servers_that_answer_and_die_at_once_are_paced_in_the_end() {
        let mut backoff = Backoff::default();
        let short = SHORT_LIFE - Duration::from_millis(1);
        assert!((0..SHORT_LIVES).all(|_| backoff.death(&Past::Useful, short).is_zero()));
        let pauses: Vec<_> = (0..9).map(|_| backoff.death(&Past::Useful, short).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(backoff.death(&Past::Useful, SHORT_LIFE).is_zero());
    }
}
