//! Reloads, as values: who waits for which, and when the next one is due.

use std::time::{Duration, Instant};

use super::events::ClientId;
use crate::monitor::debounce::Debounce;

/// First and longest pause before a resolution that nobody waits for, and that may succeed by itself, is tried again.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Where a reload stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) enum Stage {
    /// None is under way.
    Settled,
    /// The store thread works.
    Resolving(Waiting),
    /// The new view is ordered, or waits for a server.
    Switching {
        /// Who waits, and since when.
        waiting: Waiting,
        /// The number of the resolution that is to be shown.
        number: u64,
    },
}

/// A reload under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Waiting {
    /// Who gets its outcome.
    pub(super) clients: Vec<ClientId>,
    /// Why it began.
    pub(super) cause: Cause,
    /// When it came to where it stands.
    pub(super) since: Instant,
    /// Whether it was logged that this takes long.
    pub(super) logged: bool,
    /// Whether the service manager was told that it began, and waits for its end.
    pub(super) announced: bool,
}

/// Why a resolution began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Cause {
    /// The monitor started.
    Start,
    /// A signal or a client asked for it, and is told if it fails.
    Asked,
    /// A watched link has changed, or the last attempt failed: nobody would ask again.
    Watched,
}

/// Whether the resolution with which a monitor starts is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum First {
    /// It is under way, or not shown yet.
    Pending,
    /// It is shown, or has failed.
    Over,
}

/// All reloads of a monitor.
#[derive(Debug)]
pub(in crate::monitor) struct Reloads {
    pub(super) stage: Stage,
    pub(super) first: First,
    /// Who waits for the reload after the one under way.
    queued: Vec<ClientId>,
    /// Why there is to be one after it.
    wanted: Option<Cause>,
    debounce: Debounce,
    /// Whether the roots have changed, or may have, since they were last resolved, and nobody would ask again.
    owed: Owed,
    retry: Option<Instant>,
    retries: u32,
    search: Search,
}

/// Whether it is being looked up what keeps a switch from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    Idle,
    UnderWay,
}

/// Whether a resolution is owed to somebody who does not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// To a change that was seen, or to the start.
    Resolution,
}

impl Reloads {
    /// The resolution of the start is under way.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Resolving(Waiting::new(Vec::new(), Cause::Start, now)),
            first: First::Pending,
            queued: Vec::new(),
            wanted: None,
            debounce: Debounce::default(),
            owed: Owed::Resolution,
            retry: None,
            retries: 0,
            search: Search::Idle,
        }
    }

    /// A watched link has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.debounce.changed(now);
    }

    /// Somebody waits for the next reload.
    pub(super) fn queue(&mut self, client: Option<ClientId>, cause: Cause) {
        self.queued.extend(client);
        if cause == Cause::Watched {
            self.owed = Owed::Resolution;
        }
        self.wanted = Some(match self.wanted {
            Some(Cause::Asked) => Cause::Asked,
            _ => cause,
        });
    }

    /// Begins the reload that is wanted, unless one is under way, and `announced` it is or is not to the service manager.
    /// Whether the store thread is to be asked.
    pub(super) fn begin(&mut self, announced: bool, now: Instant) -> bool {
        if self.stage != Stage::Settled {
            return false;
        }
        let Some(cause) = self.wanted.take() else { return false };
        self.retry = None;
        let waiting = Waiting::new(std::mem::take(&mut self.queued), cause, now);
        self.stage = Stage::Resolving(Waiting { announced, ..waiting });
        true
    }

    /// A resolution has failed, and `may_pass`: whether the same may succeed later. When it is tried again, if it is:
    /// whoever asked for it is told, and nobody else is.
    pub(super) fn failed(&mut self, may_pass: bool, now: Instant) -> Option<Duration> {
        if self.owed == Owed::Nothing || !may_pass {
            return None;
        }
        let pause = RETRY.saturating_mul(1 << self.retries.min(16)).min(RETRY_MAX);
        self.retries = self.retries.saturating_add(1);
        self.retry = Some(now + pause);
        Some(pause)
    }

    /// A resolution has succeeded.
    pub(super) fn succeeded(&mut self) {
        self.owed = Owed::Nothing;
        self.retry = None;
        self.retries = 0;
    }

    /// Whether one is due because a link has changed.
    pub(super) fn take_changed(&mut self, now: Instant) -> bool {
        self.debounce.take_due(now)
    }

    /// Whether one is due because the last one failed.
    pub(super) fn take_retry(&mut self, now: Instant) -> bool {
        self.retry.take_if(|at| *at <= now).is_some()
    }

    /// When one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.debounce.due().into_iter().chain(self.retry).min()
    }

    /// Everything that is not in the stage, for a table.
    #[cfg(test)]
    pub(super) fn rest(&self) -> String {
        let mut rest = Vec::new();
        rest.extend((!self.queued.is_empty()).then(|| format!("{} queued", self.queued.len())));
        rest.extend(self.wanted.map(|cause| format!("wanted ({cause:?})")));
        rest.extend(self.debounce.due().map(|_| "changed".to_owned()));
        rest.extend(self.retry.map(|_| "retry".to_owned()));
        rest.extend((self.search == Search::UnderWay).then(|| "search".to_owned()));
        rest.join(", ")
    }

    /// Whether a switch takes too long.
    fn is_overdue(&self) -> bool {
        matches!(&self.stage, Stage::Switching { waiting, .. } if waiting.logged)
    }

    /// Whether a search is to begin for what keeps a switch from its end: somebody waits for one that takes too long, and none is
    /// under way.
    pub(super) fn begin_search(&mut self) -> bool {
        let Stage::Switching { waiting, .. } = &self.stage else { return false };
        let somebody = !waiting.clients.is_empty() || !self.queued.is_empty();
        let begins = somebody && self.is_overdue() && self.search == Search::Idle;
        if begins {
            self.search = Search::UnderWay;
        }
        begins
    }

    /// The search is over. Whoever waits for a switch that still takes too long, or for the reload after it; none of them waits any
    /// more.
    pub(super) fn end_search(&mut self) -> Vec<ClientId> {
        self.search = Search::Idle;
        if self.is_overdue() { self.take_switching() } else { Vec::new() }
    }

    /// Everybody who waits for a switch or for the next reload; none of them waits any more.
    pub(super) fn take_switching(&mut self) -> Vec<ClientId> {
        let mut clients = std::mem::take(&mut self.queued);
        if let Stage::Switching { waiting, .. } = &mut self.stage {
            clients.append(&mut waiting.clients);
        }
        clients
    }

    /// Everybody who waits; none of them waits any more.
    pub(super) fn take_all(&mut self) -> Vec<ClientId> {
        let mut clients = self.take_switching();
        if let Stage::Resolving(waiting) = &mut self.stage {
            clients.append(&mut waiting.clients);
        }
        clients
    }

    /// The reload under way, if there is one.
    pub(super) fn waiting(&mut self) -> Option<&mut Waiting> {
        match &mut self.stage {
            Stage::Settled => None,
            Stage::Resolving(waiting) | Stage::Switching { waiting, .. } => Some(waiting),
        }
    }
}

impl Waiting {
    pub(super) fn new(clients: Vec<ClientId>, cause: Cause, since: Instant) -> Self {
        Self { clients, cause, since, logged: false, announced: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_would_ask_for_again_is_tried_again_after_growing_pauses() {
        let now = Instant::now();
        let mut reloads = Reloads::new(now);
        let mut pauses = (0..8).map(|_| reloads.failed(true, now).unwrap().as_secs());
        assert!(pauses.by_ref().eq([1, 2, 4, 8, 16, 32, 60, 60]));
        assert_eq!(reloads.due(), Some(now + RETRY_MAX));
        assert!(!reloads.take_retry(now));
        assert!(reloads.take_retry(now + RETRY_MAX) && !reloads.take_retry(now + RETRY_MAX));
        assert_eq!(reloads.failed(false, now), None);
        reloads.succeeded();
        reloads.queue(Some(ClientId(1)), Cause::Asked);
        assert_eq!(reloads.failed(true, now), None, "who asked is told");
        reloads.queue(None, Cause::Watched);
        reloads.queue(Some(ClientId(2)), Cause::Asked);
        assert_eq!(reloads.failed(true, now), Some(RETRY), "also if somebody asked besides");
    }

    #[test]
    fn one_reload_at_a_time_and_the_next_has_everybody_who_came_meanwhile() {
        let now = Instant::now();
        let mut reloads = Reloads::new(now);
        reloads.queue(Some(ClientId(1)), Cause::Asked);
        reloads.queue(None, Cause::Watched);
        assert!(!reloads.begin(false, now), "the first one is under way");
        reloads.stage = Stage::Settled;
        assert!(reloads.begin(false, now));
        assert_eq!(reloads.waiting().unwrap().clients, [ClientId(1)]);
        assert_eq!(reloads.waiting().unwrap().cause, Cause::Asked);
        reloads.stage = Stage::Settled;
        assert!(!reloads.begin(false, now), "nobody wants another one");
    }
}
