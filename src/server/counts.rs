//! Requests served, by kind.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::panics::Panic;
use crate::server::idle::Flow;

/// The kinds of request that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A name was looked up.
    Lookup,
    /// References were dropped.
    Forget,
    /// Attributes were asked for.
    Getattr,
    /// A link was read.
    Readlink,
    /// A file was opened.
    Open,
    /// Bytes were read.
    Read,
    /// A directory was listed with attributes.
    Readdirplus,
    /// Totals were asked for.
    Statfs,
    /// A change was asked for and refused.
    Refused,
    /// Anything else.
    Other,
}

const NAMES: [&str; 10] =
    ["lookup", "forget", "getattr", "readlink", "open", "read", "readdirplus", "statfs", "refused", "other"];

/// How often each kind was asked.
#[derive(Debug)]
pub struct Counts {
    kinds: [AtomicU64; NAMES.len()],
    /// Those that ended with a panic, by its place: there are no more entries than places in the program.
    panics: Mutex<HashMap<String, u64>>,
    begun: AtomicBool,
    first: Sender<()>,
    flow: Option<Arc<Flow>>,
}

impl Counts {
    /// Nothing counted yet; the first request is told to `first`.
    #[must_use]
    pub fn new(first: Sender<()>) -> Self {
        let (kinds, panics) = Default::default();
        Self { kinds, panics, begun: AtomicBool::new(false), first, flow: None }
    }

    /// Shows each request to `flow` as well.
    #[must_use]
    pub fn showing(self, flow: Arc<Flow>) -> Self {
        Self { flow: Some(flow), ..self }
    }

    /// Counts a request that ended with `panic`; returns how often it has happened at the same place.
    pub fn panicked(&self, panic: &Panic) -> u64 {
        let mut panics = self.panics.lock();
        let times = panics.entry_ref(&panic.place).or_default();
        *times += 1;
        *times
    }

    /// Counts one request.
    pub fn add(&self, op: Op) {
        if let Some(count) = self.kinds.get(op as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
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
        for (at, (name, count)) in NAMES.iter().zip(&self.kinds).enumerate() {
            write!(f, "{}{name}={}", if at == 0 { "" } else { " " }, count.load(Ordering::Relaxed))?;
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
        let counts = Counts::new(first);
        counts.add(Op::Lookup);
        counts.add(Op::Other);
        counts.add(Op::Other);
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
