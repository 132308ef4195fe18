//! The server's part of the supervisor: its start, its reports, its death.

use std::time::{Duration, Instant};

use super::{
    Action, Fact, Links, MonitorError, MountEnd, MountLife, Note, Now, Outcome, Past, Readiness, Refusal,
    Seen, Served, ServerLife, Starting, Successor, Supervisor, Verdict,
};

/// How long the end of a killed server is waited for, so that it can be logged.
const REAP_GRACE: Duration = Duration::from_millis(250);
/// How long an unmount by somebody else may take after the connection has ended: `umount -f` ends it first.
const UNMOUNT_BY_OTHERS: Duration = Duration::from_millis(200);
/// The least pause before a process is started again that could not be.
const SPAWN_PAUSE: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn start_server(&mut self, now: Instant) {
        let resume = self.successor.resumes();
        let starting = Starting { since: now, resume, answered: false, refusal: None, logged: false };
        self.server = ServerLife::Starting(starting);
        self.actions.push(Action::StartServer { resume });
        // It may answer before it reports: from now on the kernel may know what it said.
        if self.successor == Successor::Fresh {
            self.successor = if self.journal { Successor::Journalled } else { Successor::Lost };
        }
    }

    pub(super) fn serving(&mut self, epoch: u32, restored: usize, now: Now) {
        let ServerLife::Starting(Starting { answered, since, .. }) = self.server else { return };
        match self.served {
            Served::Once => self.note(Note::TakenOver { restored }),
            Served::NotYet => self.record(Fact::Served),
        }
        self.served = Served::Once;
        if self.successor == Successor::Inherited {
            self.successor = Successor::Journalled;
        }
        self.server = ServerLife::Up { answered, epoch, since };
        if self.readiness == Readiness::Unasked {
            self.readiness = Readiness::Asked;
            self.actions.push(Action::Probe);
        }
        self.settle_if_shown(now);
    }

    pub(super) fn switched(&mut self, shown: u32, now: Now) {
        if let ServerLife::Up { epoch, .. } = &mut self.server {
            *epoch = shown;
            self.settle_if_shown(now);
        }
    }

    pub(super) fn refused(&mut self, refusal: Refusal) {
        let ServerLife::Starting(starting) = &mut self.server else { return };
        let why = match refusal {
            Refusal::Passing(why) => {
                starting.refusal = Some(why);
                return;
            }
            Refusal::Leftovers(why) | Refusal::Unsupported(why) if self.served == Served::Once => {
                return self.end(Verdict::failed(MonitorError::Damaged(why)), MountEnd::Unmount, Links::None);
            }
            Refusal::Leftovers(why) => MonitorError::Leftovers(why),
            Refusal::Unsupported(why) => MonitorError::Unsupported(why),
        };
        self.end_unserved(why);
    }

    /// No server can serve. A new view is unmounted again; one that was taken over is left to who understands it.
    pub(super) fn end_unserved(&mut self, why: MonitorError) {
        match self.successor {
            Successor::Inherited => self.end(Verdict::failed(why), MountEnd::Leave, Links::Earlier),
            _ => self.end(Verdict::failed(why), MountEnd::Unmount, Links::None),
        }
    }

    pub(super) fn hung_up(&mut self, why: Option<String>, now: Instant) {
        if !self.server.listens() {
            return;
        }
        let past = match (self.server.past(), why) {
            (Past::Useless(None), Some(why)) => Past::Useless(Some(why)),
            (past, Some(why)) => {
                self.note(Note::Misunderstood(why));
                past
            }
            (past, None) => past,
        };
        self.kill_server(past, now);
    }

    pub(super) fn kill_server(&mut self, past: Past, now: Instant) {
        let since = self.server.since().unwrap_or(now);
        self.server = ServerLife::Ending { until: now + REAP_GRACE, past, since };
        self.actions.push(Action::KillServer);
    }

    /// The store's files are in another directory, which a server gets when it starts.
    pub(super) fn replace_server(&mut self, now: Instant) {
        // Without a journal it would be the last one.
        if self.server.listens() && self.successor != Successor::Lost {
            self.kill_server(Past::Useful, now);
        }
    }

    pub(super) fn exited(&mut self, how: String, faulted: bool) {
        let (past, Some(since)) = (self.server.past(), self.server.since()) else { return };
        if let ServerLife::Ended { .. } = self.server {
            return;
        }
        self.backoff.exited(faulted);
        self.record(Fact::ServerEnded { crashed: faulted });
        self.server = ServerLife::Ended { how, past, since };
        self.actions.push(Action::LookAtMount);
    }

    pub(super) fn mount_is(&mut self, seen: Seen, now: Instant) {
        let ended = match (self.mount, &self.server) {
            (MountLife::Ours, ServerLife::Ended { how, past, since }) => {
                Some((how.clone(), past.clone(), *since))
            }
            (MountLife::Dead(_), _) => None,
            _ => return,
        };
        match (seen, ended) {
            (Seen::Alive, Some((how, _, _))) if self.successor == Successor::Lost => {
                self.end(Verdict::failed(MonitorError::Lost(how)), MountEnd::Unmount, Links::None);
            }
            (Seen::Alive, Some((how, past, since))) => {
                self.died(how, past, now.saturating_duration_since(since), Duration::ZERO, now);
            }
            (Seen::Dead, Some(_)) => {
                self.server = ServerLife::Down(None);
                self.mount = MountLife::Dead(now + UNMOUNT_BY_OTHERS);
            }
            // A connection does not come to life again: whatever was seen, it is cleared away.
            (Seen::Dead | Seen::Alive, None) => {
                self.end(Verdict::failed(MonitorError::Aborted), MountEnd::Unmount, Links::None);
            }
            (Seen::Gone, _) => {
                self.note(Note::Unmounted);
                self.end(Verdict::Unmounted, MountEnd::Gone, Links::None);
            }
        }
    }

    pub(super) fn not_started(&mut self, why: String, now: Instant) {
        if let ServerLife::Starting(Starting { resume, .. }) = self.server {
            if !resume {
                // The device was given to nobody.
                self.successor = Successor::Fresh;
            }
            self.died(why.clone(), Past::Useless(Some(why)), Duration::ZERO, SPAWN_PAUSE, now);
        }
    }

    /// A server that `lived` for so long is no more, and its mount is. The next one starts after at least `pause`.
    pub(super) fn died(&mut self, how: String, past: Past, lived: Duration, pause: Duration, now: Instant) {
        let said = match &past {
            Past::Useless(Some(why)) if *why != how => format!("{how}: {why}"),
            _ => how,
        };
        let pause = self.backoff.death(&past, lived).max(pause);
        let is_new = self.served == Served::NotYet && self.successor != Successor::Inherited;
        if is_new && self.backoff.gives_up() {
            return self.end_unserved(MonitorError::Server(said));
        }
        self.server = ServerLife::Down(Some(now + pause));
        self.note(Note::Died { how: said.clone(), pause });
        self.record(Fact::Error(format!("a server ended ({said})")));
        if !pause.is_zero() {
            let clients = self.reloads.take_switching();
            let why = format!("no server answers now ({said}); the new closure is shown when one does");
            self.answer(clients, &Outcome::Error(why));
        }
    }
}
