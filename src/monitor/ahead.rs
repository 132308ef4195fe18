//! What has happened to the view becomes what [`Prefetching`] is told, with what it needs to start a process.

use std::time::Instant;

use super::history::Fact;
use super::prefetching::{Prefetching, With};
use super::runtime::{Place, Runtime};
use super::supervisor::Supervisor;
use crate::protocol::handshake::Io;

impl Runtime {
    /// The service manager was told that the view answers: what takes time comes after that.
    pub(super) fn ask_ahead_when_ready(&mut self, supervisor: &Supervisor) {
        self.ask_ahead(supervisor, |ahead, with| ahead.served(Instant::now(), with));
    }

    /// Something has happened.
    pub(super) fn ask_ahead_after(&mut self, fact: &Fact, supervisor: &Supervisor) {
        match fact {
            Fact::Reloaded => {
                self.ask_ahead(supervisor, Prefetching::switched);
            }
            Fact::ServerEnded { .. } => self.prefetching.server_ended(),
            Fact::Served | Fact::Changed | Fact::NotReloaded(_) | Fact::Error(_) => {}
        }
    }

    /// Time has passed, or what was begun has ended.
    pub(super) fn ask_ahead_later(&mut self, supervisor: &Supervisor) {
        if self.asked_ahead {
            self.asked_ahead = false;
            if !self.ask_ahead(supervisor, Prefetching::ended) {
                self.prefetching.over();
            }
        }
        let now = Instant::now();
        if self.prefetching.due().is_some_and(|due| due <= now) {
            self.ask_ahead(supervisor, |ahead, with| ahead.time(now, with));
        }
    }

    /// The view ends.
    pub(super) fn end_asking_ahead(&mut self, supervisor: &Supervisor) {
        if !self.ask_ahead(supervisor, |ahead, with| ahead.begin_end(Some(with))) {
            self.prefetching.begin_end(None);
        }
    }

    /// False: nothing is shown, or nothing can be read.
    fn ask_ahead(&mut self, supervisor: &Supervisor, tell: impl FnOnce(&mut Prefetching, With<'_>)) -> bool {
        let Self { prefetching, program, settings, store, mounted, agreement, place, .. } = self;
        let (Some(content), Some(store)) = (supervisor.content(), store.as_deref()) else { return false };
        let seen = mounted.as_ref().filter(|_| matches!(place, Place::Path));
        let at = seen.and_then(|mounted| Some((mounted.at(), mounted.connection()?.0.into())));
        let with = With {
            program,
            sandbox: settings.sandbox,
            log: settings.log,
            view: &content.view,
            store,
            at,
            bytes: agreement.as_ref().is_none_or(|agreement| agreement.io != Io::Passthrough),
        };
        tell(prefetching, with);
        true
    }
}
