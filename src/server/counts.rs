//! Requests served, by kind. They are counted in the memory of the mount ([`Usage`]); what one server did is what was added since it
//! began.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::panics::Panic;
use crate::server::idle::Flow;
use crate::view::usage::{Kind, Usage};

/// How often each kind was asked of this server.
#[derive(Debug)]
pub struct Counts {
    usage: Usage,
    /// What earlier servers had counted. A hostile one may have written anything.
    before: [u64; Kind::ALL.len()],
    /// Those that ended with a panic, by its place: there are no more entries than places in the program.
    panics: Mutex<HashMap<String, u64>>,
    begun: AtomicBool,
    first: Sender<()>,
    flow: Option<Arc<Flow>>,
}

impl Counts {
    /// Counts in `usage`; the first request is told to `first`.
    #[must_use]
    pub fn new(usage: Usage, first: Sender<()>) -> Self {
        let before = Kind::ALL.map(|kind| usage.requests(kind));
        Self { usage, before, panics: Mutex::default(), begun: AtomicBool::new(false), first, flow: None }
    }

    /// Shows each request to `flow` as well.
    #[must_use]
    pub fn showing(self, flow: Arc<Flow>) -> Self {
        Self { flow: Some(flow), ..self }
    }

    /// Counts a request that ended with `panic`; returns how often it has happened at the same place.
    pub fn panicked(&self, panic: &Panic) -> u64 {
        self.usage.panicked();
        let mut panics = self.panics.lock();
        let times = panics.entry_ref(&panic.place).or_default();
        *times += 1;
        *times
    }

    /// Counts a store path that the view has not.
    pub fn absent(&self) {
        self.usage.absent();
    }

    /// Counts one request.
    pub fn add(&self, kind: Kind) {
        self.usage.add(kind);
        self.played();
    }

    /// A request of who plays what was learnt: it flows as any other, and is none that anybody asked for.
    pub fn played(&self) {
        if let Some(flow) = &self.flow {
            flow.note();
        }
        if !self.begun.load(Ordering::Relaxed) && !self.begun.swap(true, Ordering::Relaxed) {
            // Nobody listens once the monitor is gone.
            let _ = self.first.send(());
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, before)) in Kind::ALL.into_iter().zip(self.before).enumerate() {
            let count = self.usage.requests(kind).wrapping_sub(before);
            write!(f, "{}{}={count}", if at == 0 { "" } else { " " }, kind.name())?;
        }
        let panics: u64 = self.panics.lock().values().sum();
        if panics > 0 {
            write!(f, " panicked={panics}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_count() {
        let (first, told) = std::sync::mpsc::channel();
        let usage = Usage::open(None);
        // By an earlier server.
        usage.add(Kind::Forget);
        let counts = Counts::new(usage, first);
        counts.add(Kind::Lookup);
        counts.add(Kind::Other);
        counts.add(Kind::Other);
        assert_eq!(told.try_iter().count(), 1, "the first request is told, and no other");
        assert_eq!(
            counts.to_string(),
            "lookup=1 forget=0 getattr=0 readlink=0 open=0 read=0 readdirplus=0 statfs=0 refused=0 other=2"
        );
        let panic = |place: &str| counts.panicked(&Panic { place: place.to_owned(), ..Panic::default() });
        assert_eq!([panic("a"), panic("b"), panic("a")], [1, 1, 2], "each place has its own count");
        assert!(counts.to_string().ends_with("other=2 panicked=3"));
    }
}
