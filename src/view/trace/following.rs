//! Records of the trace while a server writes them: each time those that are new.
//!
//! Invariant: whatever a hostile server writes, each look takes a bounded time and all of them together do.

use std::os::fd::BorrowedFd;

use super::records::{self, Record};
use super::{BYTES, END_AT, HEAD, read_word};

/// Bytes of records of one look.
const LOOK: usize = 64 << 10;
/// Bytes of all their paths: beyond that nobody looks any more.
const ALL_PATHS: usize = 64 << 20;

/// What was read of a trace.
#[derive(Debug)]
pub struct Following<'a> {
    trace: BorrowedFd<'a>,
    /// Bytes of records that were read. None: what follows cannot be understood.
    at: Option<usize>,
    /// The path of the last record.
    last: Vec<u8>,
    /// Bytes of all paths.
    paths: usize,
}

impl<'a> Following<'a> {
    /// Follows `trace` from its beginning.
    #[must_use]
    pub fn new(trace: BorrowedFd<'a>) -> Self {
        Self { trace, at: Some(0), last: Vec::new(), paths: 0 }
    }

    /// Calls `each` with what is new, or the beginning of it.
    pub fn look(&mut self, each: impl FnMut(&Record)) {
        if let Some(at) = self.at {
            self.at = self.read(at, each);
        }
    }

    fn read(&mut self, from: usize, mut each: impl FnMut(&Record)) -> Option<usize> {
        let end = usize::try_from(read_word(self.trace, END_AT).ok()?).ok()?.min(BYTES - HEAD);
        if end <= from {
            return Some(from);
        }
        let mut bytes = vec![0; (end - from).min(LOOK)];
        let read = rustix::io::pread(self.trace, &mut bytes, (HEAD + from) as u64).ok()?;
        let mut rest = bytes.get(..read)?;
        while let Some((record, next)) = records::next(rest, &self.last) {
            self.paths += record.path.len();
            if self.paths > ALL_PATHS {
                return None;
            }
            each(&record);
            (self.last, rest) = (record.path, next);
        }
        // One that was cut off is whole at the next look. One that was not is none.
        (rest.len() < read).then_some(from + read - rest.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::super::records::{Kind, Pages};
    use super::super::{Trace, create, write};
    use super::*;

    fn looked(following: &mut Following<'_>) -> Vec<Record> {
        let mut all = Vec::new();
        following.look(|record| all.push(record.clone()));
        all
    }

    proptest! {
        /// Each record comes once, in order, whenever somebody looks.
        #[test]
        fn what_is_new_is_seen_once(
            all in proptest::collection::vec(("[ab/]{0,4}", 0usize..3000, any::<bool>(), any::<bool>()), 0..80),
        ) {
            let memory = create().unwrap();
            let trace = Trace::open(Some(memory.try_clone().unwrap()));
            let mut following = Following::new(memory.as_fd());
            let mut seen = Vec::new();
            for (dir, length, is_read, then) in all {
                let (kind, pages) = if is_read { (Kind::Read, Some(Pages { first: 1, count: 2 })) } else { (Kind::Name, None) };
                trace.note(kind, pages, || Some([dir.as_bytes(), &vec![b'x'; length]].concat()));
                if then {
                    seen.extend(looked(&mut following));
                }
            }
            // More than one look takes.
            (0..4).for_each(|_| seen.extend(looked(&mut following)));
            prop_assert_eq!(seen, records::read(&memory).unwrap());
            prop_assert!(looked(&mut following).is_empty());
        }

        #[test]
        fn whatever_is_there_does_no_harm(garbage in proptest::collection::vec(any::<u8>(), 0..400), ends in proptest::collection::vec(any::<u64>(), 1..5)) {
            let memory = create().unwrap();
            rustix::io::pwrite(&memory, &garbage, HEAD as u64).unwrap();
            let mut following = Following::new(memory.as_fd());
            for end in ends {
                write(&memory, END_AT, end).unwrap();
                prop_assert!(looked(&mut following).len() <= garbage.len());
            }
        }
    }

    #[test]
    fn a_trace_that_only_repeats_the_longest_path_is_left_alone_in_the_end() {
        let memory = create().unwrap();
        let trace = Trace::open(Some(memory.try_clone().unwrap()));
        let path = || Some(vec![b'x'; 4000]);
        (0..20_000).for_each(|_| trace.note(Kind::Name, None, path));
        let mut following = Following::new(memory.as_fd());
        let seen: usize = (0..100).map(|_| looked(&mut following).len()).sum();
        assert!(seen > 0 && seen * 4000 <= ALL_PATHS, "{seen}");
        assert!(following.at.is_none());
    }
}
