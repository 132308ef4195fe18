//! What has happened to a view under this monitor, in a few numbers and one sentence. A plain value: it knows no clock.
//!
//! Servers come and go and it remains, as it is the monitor's. It ends with the monitor: a successor begins with nothing, and
//! what happened before is in the log.

use std::time::SystemTime;

use crate::error;
use crate::protocol::control::status::{Incident, Reloads, Seconds, Servers};

/// The longest message that is kept, in bytes: it may name paths of any length.
const MESSAGE_MAX: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    /// A server serves the view.
    Served,
    /// Other members are to be shown than before.
    Changed,
    /// A reload is visible.
    Reloaded,
    /// A reload has changed nothing; says why.
    NotReloaded(String),
    /// A server has ended.
    ServerEnded {
        /// Whether by a fault of its own.
        crashed: bool,
    },
    /// Something else went wrong; says what.
    Error(String),
}

/// All that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    served: Option<SystemTime>,
    changed: Option<SystemTime>,
    reloads: Reloads,
    servers: Servers,
    error: Option<(SystemTime, String)>,
}

impl History {
    /// Adds what happened at this time.
    pub(super) fn record(&mut self, fact: Fact, at: SystemTime) {
        match fact {
            Fact::Served => self.served = self.served.or(Some(at)),
            Fact::Changed => self.changed = Some(at),
            Fact::Reloaded => self.reloads.done = self.reloads.done.saturating_add(1),
            Fact::NotReloaded(why) => {
                self.reloads.failed = self.reloads.failed.saturating_add(1);
                self.error = Some((at, bounded(why)));
            }
            Fact::ServerEnded { crashed } => {
                self.servers.replaced = self.servers.replaced.saturating_add(1);
                self.servers.crashed = self.servers.crashed.saturating_add(crashed.into());
            }
            Fact::Error(what) => self.error = Some((at, bounded(what))),
        }
    }

    /// Since when the view has been served.
    pub(super) fn served_since(&self) -> Option<Seconds> {
        self.served.map(Seconds::from)
    }

    /// When its members last changed.
    pub(super) fn changed(&self) -> Option<Seconds> {
        self.changed.map(Seconds::from)
    }

    /// How its reloads went.
    pub(super) fn reloads(&self) -> Reloads {
        self.reloads
    }

    /// How its servers fared.
    pub(super) fn servers(&self) -> Servers {
        self.servers
    }

    /// What went wrong last.
    pub(super) fn last_error(&self) -> Option<Incident> {
        self.error.as_ref().map(|(at, message)| Incident { at: (*at).into(), message: message.clone() })
    }
}

/// The beginning of a text that is too long, in whole characters, with a mark that it is only that.
fn bounded(mut text: String) -> String {
    const MARK: &str = " ...";
    if text.len() > MESSAGE_MAX {
        text.truncate(error::beginning(&text, MESSAGE_MAX - MARK.len()).len());
        text.push_str(MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn fact() -> impl Strategy<Value = Fact> {
        prop_oneof![
            Just(Fact::Served),
            Just(Fact::Changed),
            Just(Fact::Reloaded),
            ".{0,9}|é{500,600}|[a-z]{1020,1030}|.{0,3}\u{1f600}{250,260}".prop_map(Fact::NotReloaded),
            any::<bool>().prop_map(|crashed| Fact::ServerEnded { crashed }),
            ".{0,2000}".prop_map(Fact::Error),
        ]
    }

    proptest! {
        /// Against the list of everything that happened, searched again for each answer.
        #[test]
        fn a_history_agrees_with_the_list_of_what_happened(facts in prop::collection::vec(fact(), 0..40)) {
            let at = |number: usize| SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64);
            let mut history = History::default();
            for (number, fact) in facts.iter().enumerate() {
                history.record(fact.clone(), at(number));
            }
            let count = |is: &dyn Fn(&Fact) -> bool| facts.iter().filter(|fact| is(fact)).count() as u64;
            let place = |place: Option<usize>| place.map(|place| Seconds(place as u64));
            prop_assert_eq!(history.served_since(), place(facts.iter().position(|fact| *fact == Fact::Served)));
            prop_assert_eq!(history.changed(), place(facts.iter().rposition(|fact| *fact == Fact::Changed)));
            prop_assert_eq!(history.reloads(), Reloads {
                done: count(&|fact| *fact == Fact::Reloaded),
                failed: count(&|fact| matches!(fact, Fact::NotReloaded(_))),
            });
            prop_assert_eq!(history.servers(), Servers {
                replaced: count(&|fact| matches!(fact, Fact::ServerEnded { .. })),
                crashed: count(&|fact| matches!(fact, Fact::ServerEnded { crashed: true })),
            });
            let text = |fact: &Fact| match fact {
                Fact::NotReloaded(text) | Fact::Error(text) => Some(text.clone()),
                _ => None,
            };
            let last = facts.iter().enumerate().rev().find_map(|(number, fact)| Some((number, text(fact)?)));
            let kept = history.last_error();
            prop_assert_eq!(kept.is_some(), last.is_some());
            if let (Some(kept), Some((number, text))) = (kept, last) {
                prop_assert_eq!(kept.at, Seconds(number as u64));
                prop_assert!(kept.message.len() <= MESSAGE_MAX);
                if text.len() <= MESSAGE_MAX {
                    prop_assert_eq!(kept.message, text);
                } else {
                    let begin = kept.message.strip_suffix(" ...").unwrap();
                    prop_assert!(text.starts_with(begin) && begin.len() > MESSAGE_MAX - 8);
                }
            }
        }
    }
}
