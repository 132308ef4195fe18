//! Requests served, by kind.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

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
    begun: AtomicBool,
    first: Sender<()>,
    flow: Option<Arc<Flow>>,
}

impl Counts {
    /// Nothing counted yet; the first request is told to `first`.
    #[must_use]
    pub fn new(first: Sender<()>) -> Self {
        Self { kinds: Default::default(), begun: AtomicBool::new(false), first, flow: None }
    }

    /// Shows each request to `flow` as well.
    #[must_use]
    pub fn showing(self, flow: Arc<Flow>) -> Self {
        Self { flow: Some(flow), ..self }
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
    }
}
