//! The record of missed names that `report` gives: pure, and bounded whatever is asked for.
//!
//! Invariants:
//! - It has [`NAMES_MAX`] names at most; the one that nobody asked for for longest makes room. A name takes some 1.5 KiB at most,
//!   as names of store paths have a length, and commands get one here.
//! - Nothing is lost without being counted: the counts of the names, and what was left out, are the questions that came.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{Asker, Verdict};
use crate::protocol::control::report::{self, LeftOut, MissedName};
use crate::values::StorePath;

/// Names in the record.
pub(super) const NAMES_MAX: usize = 4096;
/// Bytes of a command. The kernel gives shorter ones (proc_pid_comm(5)).
const COMMAND_MAX: usize = 64;

/// What was asked for in vain.
#[derive(Debug, Default)]
pub(super) struct Record {
    names: BTreeMap<StorePath, Entry>,
    /// The same names by when somebody last asked for them, the longest ago first.
    order: BTreeMap<u64, StorePath>,
    /// Questions so far for what was missed.
    clock: u64,
    /// All that were looked into.
    looked_into: u64,
    left_out: LeftOut,
}

#[derive(Debug)]
struct Entry {
    count: u64,
    first: SystemTime,
    last: SystemTime,
    first_asker: Asker,
    last_asker: Asker,
    /// Its place in [`Record::order`].
    asked: u64,
}

impl Record {
    /// Keeps a question, if it was for something missed.
    pub(super) fn note(&mut self, Verdict { path, asker, asked, missed }: &Verdict) {
        self.looked_into += 1;
        // Looked up in any case: see the hard points of the module.
        match self.names.get_mut(path) {
            _ if !missed => {}
            Some(entry) => {
                self.clock += 1;
                entry.count += 1;
                entry.last = *asked;
                entry.last_asker = bounded(asker);
                if let Some(path) = self.order.remove(&entry.asked) {
                    self.order.insert(self.clock, path);
                }
                entry.asked = self.clock;
            }
            None => self.add(path, bounded(asker), *asked),
        }
    }

    fn add(&mut self, path: &StorePath, asker: Asker, at: SystemTime) {
        while self.names.len() >= NAMES_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(entry) = self.names.remove(&oldest) {
                self.left_out.names += 1;
                self.left_out.questions += entry.count;
            }
        }
        self.clock += 1;
        let entry = Entry {
            count: 1,
            first: at,
            last: at,
            first_asker: asker.clone(),
            last_asker: asker,
            asked: self.clock,
        };
        self.names.insert(path.clone(), entry);
        self.order.insert(self.clock, path.clone());
    }

    /// The names, sorted, each with whether it is `served` now.
    pub(super) fn names(&self, served: impl Fn(&StorePath) -> bool) -> Vec<MissedName> {
        let name = |(path, entry): (&StorePath, &Entry)| MissedName {
            path: path.clone(),
            count: entry.count,
            first: entry.first.into(),
            last: entry.last.into(),
            first_asker: (&entry.first_asker).into(),
            last_asker: (&entry.last_asker).into(),
            served: served(path),
        };
        self.names.iter().map(name).collect()
    }

    /// How many names it has, and how many questions have come for names that were missed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.names.len() as u64, self.clock)
    }

    /// How many questions were looked into, for what was missed or not.
    pub(super) fn looked_into(&self) -> u64 {
        self.looked_into
    }

    /// What is not in it, but for questions that were not looked into.
    pub(super) fn left_out(&self) -> LeftOut {
        self.left_out
    }
}

fn bounded(asker: &Asker) -> Asker {
    let command = asker.command.as_deref().map(|command| {
        let end = (0..=COMMAND_MAX.min(command.len())).rev().find(|end| command.is_char_boundary(*end));
        command.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
    });
    Asker { pid: asker.pid, command }
}

impl From<&Asker> for report::Asker {
    fn from(asker: &Asker) -> Self {
        Self { pid: asker.pid, command: asker.command.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn path(number: u32) -> StorePath {
        StorePath::new(&format!("{number:032}-{}", "n".repeat(211))).unwrap()
    }

    fn ask(record: &mut Record, number: u32, pid: u32, at: u64) {
        let asker = Asker { pid: Some(pid), command: Some("\u{1f600}".repeat(pid as usize % 40)) };
        let asked = UNIX_EPOCH + Duration::from_secs(at);
        record.note(&Verdict { path: path(number), asker: asker.clone(), asked, missed: true });
        // Neither a name that is in it, nor another one.
        for number in [number, number + 1_000_000] {
            record.note(&Verdict { path: path(number), asker: asker.clone(), asked, missed: false });
        }
    }

    fn total(record: &Record) -> u64 {
        record.names(|_| false).iter().map(|name| name.count).sum::<u64>() + record.left_out().questions
    }

    #[test]
    fn a_name_has_its_first_and_its_last_question() {
        let mut record = Record::default();
        for (number, pid, at) in [(1, 10, 100), (2, 11, 101), (1, 12, 102), (1, 13, 103)] {
            ask(&mut record, number, pid, at);
        }
        let [first, second] = &record.names(|name| *name == path(2))[..] else { panic!() };
        assert_eq!((first.count, first.first.0, first.last.0, first.served), (3, 100, 103, false));
        assert_eq!((first.first_asker.pid, first.last_asker.pid), (Some(10), Some(13)));
        assert_eq!((second.count, second.first, second.served), (1, second.last, true));
        assert_eq!(record.left_out(), LeftOut::default());
    }

    #[test]
    fn ten_thousand_names_are_bounded_and_counted() {
        let mut record = Record::default();
        for number in 0..10_000 {
            ask(&mut record, number, number, number.into());
            // It stays, as it is asked for again and again.
            ask(&mut record, 0, number, number.into());
        }
        let names = record.names(|_| false);
        assert_eq!((names.len(), record.order.len()), (NAMES_MAX, NAMES_MAX));
        assert_eq!(names[0].count, 10_001);
        assert!(
            names[1..]
                .iter()
                .map(|name| &name.path)
                .eq(&(10_001 - NAMES_MAX as u32..10_000).map(path).collect::<Vec<_>>())
        );
        assert_eq!(record.left_out().names, 10_000 - NAMES_MAX as u64);
        assert_eq!(total(&record), 20_000);
        assert_eq!(record.counts(), (NAMES_MAX as u64, 20_000));
        let longest = names.iter().filter_map(|name| name.last_asker.command.as_ref()).map(String::len).max();
        assert_eq!(longest, Some(COMMAND_MAX));
        let json = serde_json::to_vec(&names).unwrap().len();
        assert!(json < NAMES_MAX * 1024, "{json}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
        /// Against a list in the order of the last questions, whatever is asked for in whatever order.
        #[test]
        fn a_record_agrees_with_a_list(seed in any::<u64>()) {
            let (mut record, mut model) = (Record::default(), VecDeque::<(u32, u64)>::new());
            let (mut state, mut names, mut questions) = (seed | 1, 0, 0);
            for at in 0..9000u64 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let number = (state % 5000) as u32;
                ask(&mut record, number, 1, at);
                let known = model.iter().position(|(known, _)| *known == number);
                let count = known.and_then(|place| model.remove(place)).map_or(0, |(_, count)| count);
                if model.len() == NAMES_MAX {
                    names += 1;
                    questions += model.pop_front().unwrap().1;
                }
                model.push_back((number, count + 1));
            }
            let mut expected: Vec<_> = model.into_iter().map(|(number, count)| (path(number), count)).collect();
            expected.sort();
            let found: Vec<_> = record.names(|_| false).into_iter().map(|name| (name.path, name.count)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(record.left_out(), LeftOut { names, questions, not_examined: 0 });
            prop_assert_eq!(total(&record), 9000);
        }
    }
}
