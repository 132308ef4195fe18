//! The reloads' part of the supervisor: from a wish to an answer.

use super::{
    Action, Cause, Content, Fact, First, Found, Links, MountEnd, MountLife, Note, Notice, Now, Outcome,
    Readiness, ServerLife, Stage, Supervisor, Unresolved, Verdict, Waiting,
};

impl Supervisor {
    /// Begins the reload that somebody wants, unless one is under way: what changed since it began counts.
    pub(super) fn reload(&mut self, now: Now) {
        let announce = self.readiness == Readiness::Told;
        if self.mount == MountLife::Ours && self.reloads.begin(announce, now.monotonic) {
            if announce {
                self.actions.push(Action::Notify(Notice::Reloading));
            }
            self.actions.push(Action::Resolve);
        }
    }

    pub(super) fn resolved(&mut self, found: &Found, now: Now) {
        let stage = std::mem::replace(&mut self.reloads.stage, Stage::Settled);
        let mut waiting = match stage {
            Stage::Resolving(waiting) => waiting,
            other => {
                self.reloads.stage = other;
                return;
            }
        };
        self.reloads.succeeded();
        waiting.since = now.monotonic;
        waiting.logged = false;
        let cause = waiting.cause;
        self.reloads.stage = Stage::Switching { waiting, number: found.number };
        let Some(content) = &mut self.content else {
            self.content = Some(Content::new(found, now.wall));
            self.mount = MountLife::Mounting;
            self.record(Fact::Changed);
            self.actions.push(Action::Mount);
            return;
        };
        let change = content.show(found, self.policy.prune);
        // Also to the same view: the server then examines its members, of which some may have been repaired. At the start
        // it does that by itself.
        let switches = cause != Cause::Start || !change.is_none() || !content.unsettled.is_empty();
        if switches {
            content.number(now.wall);
        }
        if !change.is_none() {
            self.note(Note::Switching(change));
            self.record(Fact::Changed);
        }
        if switches || change.roots {
            self.actions.push(Action::WriteState);
        }
        if switches && self.server.listens() {
            self.actions.push(Action::Switch);
        }
        self.settle_if_shown(now);
    }

    pub(super) fn unresolved(&mut self, error: Unresolved, now: Now) {
        let stage = std::mem::replace(&mut self.reloads.stage, Stage::Settled);
        let waiting = match stage {
            Stage::Resolving(waiting) => waiting,
            other => {
                self.reloads.stage = other;
                return;
            }
        };
        let Unresolved { error, may_pass } = error;
        if self.mount == MountLife::Absent {
            self.reloads.stage = Stage::Resolving(waiting);
            return self.end(Verdict::Failed(error), MountEnd::Nothing, Links::Earlier);
        }
        let why = crate::error::chain(&*error);
        let retry = self.reloads.failed(may_pass, now.monotonic);
        self.note(Note::Unresolved { why: why.clone(), first: waiting.cause == Cause::Start, retry });
        self.record(if waiting.cause == Cause::Start {
            Fact::Error(why.clone())
        } else {
            Fact::NotReloaded(why.clone())
        });
        self.over(waiting, &Outcome::Error(why), now);
    }

    /// Ends a switch if a server shows what it was told to show.
    pub(super) fn settle_if_shown(&mut self, now: Now) {
        let Some(content) = &mut self.content else { return };
        if !matches!(self.server, ServerLife::Up { epoch, .. } if epoch == content.epoch) {
            return;
        }
        if !content.unsettled.is_empty() {
            content.unsettled.clear();
            self.actions.push(Action::WriteState);
        }
        let status = content.status();
        match std::mem::replace(&mut self.reloads.stage, Stage::Settled) {
            Stage::Switching { waiting, number } => {
                self.actions.push(Action::Settle { number, only: self.policy.prune });
                if waiting.cause != Cause::Start {
                    self.record(Fact::Reloaded);
                }
                self.over(waiting, &Outcome::Ok(status), now);
            }
            other => self.reloads.stage = other,
        }
    }

    /// A reload is over.
    pub(super) fn over(&mut self, waiting: Waiting, outcome: &Outcome, now: Now) {
        self.answer(waiting.clients, outcome);
        match (self.readiness, &self.content) {
            (Readiness::Told, Some(content)) if waiting.announced => {
                self.actions.push(Action::Notify(Notice::Ready(content.status())));
            }
            (Readiness::Told, Some(content)) => {
                self.actions.push(Action::Notify(Notice::Status(content.status())));
            }
            (Readiness::Answering, _) => self.tell_ready(),
            _ => {}
        }
        self.reloads.first = First::Over;
        self.reload(now);
    }
}
