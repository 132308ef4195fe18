//! Reading ahead of a walk: who reads the files of a view one after another, and what is to be brought for them.
//!
//! Responsibility: from the first reads of files, in the order in which they come, to jobs for a thread: which walk wants one file
//! more, and of which files the store's cached pages are to be dropped. What comes next in a walk is [`Cursor`]'s.
//!
//! Invariants:
//! - What is told of a read that belongs to no walk allocates nothing.
//! - Whatever was brought is dropped once: when the reader has come to a later file, when it is too far behind, or when the walk
//!   has ended.
//! - Of each walk at most [`BEHIND`] files behind the reader and [`WINDOW`] ahead are remembered.
//! - Whoever reads nothing more makes a bounded number of files be looked for.
//!
//! Hard points:
//! 1. Not each file of a walk is read here: an empty one never is, nor one of which the kernel has the pages already, by another
//!    name or another reader. So a file that is passed by is no sign that somebody does not walk; that nothing is hit is.
//! 2. Who reads a file in pieces is not told of. So what was brought stays until a later file is begun.
//! 3. A reader that is not ahead of the disk needs none of this. If what would be brought is in memory already, the store is warm:
//!    then nobody is looked for, for a while that doubles each time.
//!
//! Pure: no file, no thread, no time.

mod cursor;

use std::collections::VecDeque;
use std::ops::RangeInclusive;

pub(crate) use cursor::split;
pub use cursor::{Cursor, Kind, LONGEST, Listed, Next, Order, Tree};

/// First reads in a row, each of a later name in the same directory, that make a walk.
const RUN: u32 = 3;
/// Files that are brought ahead of a reader: from few to many, as they are hit.
const WINDOW: RangeInclusive<usize> = 2..=16;
/// Walks that are followed at once.
pub const WALKS: usize = 2;
/// Bytes ahead of a reader at which no more is brought.
const BYTES: u64 = 2 << 20;
/// Files behind a reader that may still be read: several threads share a walk.
const BEHIND: usize = 32;
/// First reads that are none of a walk's, one after another, after which it has ended.
const LOST: u32 = 64;
/// The same, after which another walk may take its place.
const STRAY: u32 = 16;
/// Searches without a file to bring, since the last read of a walk, after which none is looked for until the next.
const IN_VAIN: u32 = 64;
/// Files in a row that were in memory already.
const WARM: u32 = 8;
/// First reads for which nobody is looked for, after nothing was won.
const REST: RangeInclusive<u32> = 32..=1024;
/// Directories of which the last read is known.
const DIRECTORIES: usize = 4;
/// Bytes of the longest path that is looked at.
const PATH: usize = 384;

/// Whether the thread that brings has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Wake {
    /// It has.
    Now,
    /// It has not, or not enough.
    No,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Find the next file of this walk, which began behind a path, tell [`Walks::expect`] of it, bring it, and tell
    /// [`Walks::brought`].
    Bring {
        /// Which of the walks that are followed.
        place: usize,
        /// The walk that is followed there.
        walk: WalkId,
        /// Where it began.
        behind: Box<[u8]>,
        /// In which order.
        order: Order,
    },
    /// Drop what was brought of this file.
    Drop(Box<[u8]>, u64),
}

/// A walk: never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WalkId(u64);

/// What became of a file that was to be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// So many bytes of it, from its beginning, were asked for.
    Cold(u64),
    /// It was in memory, or nobody can tell whether it was.
    Warm,
    /// There is nothing to read.
    Nothing,
}

/// What is known of readers.
#[derive(Debug, Default)]
pub struct Walks {
    recent: [Recent; DIRECTORIES],
    walks: [Option<Walk>; WALKS],
    /// Brought for walks that have ended.
    left: Vec<(Box<[u8]>, u64)>,
    /// Which order the next walk is taken to have.
    order: Order,
    /// First reads for which nobody is looked for.
    rest: u32,
    /// How many it will be the next time, less than the first of [`REST`] at the beginning.
    next_rest: u32,
    /// How many walks there were.
    begun: u64,
}

/// The last file that was read in a directory.
#[derive(Debug)]
struct Recent {
    path: [u8; PATH],
    len: usize,
    run: u32,
}

#[derive(Debug)]
struct Walk {
    id: WalkId,
    behind: Box<[u8]>,
    order: Order,
    files: VecDeque<File>,
    /// How many of them are up to the last one that was read.
    passed: usize,
    window: usize,
    /// First reads of others since the last one of this.
    others: u32,
    /// Files in a row that were in memory.
    warm: u32,
    /// Searches since the last one of its files was read in which there was nothing to bring.
    in_vain: u32,
    won: Won,
    /// Whether it was told of a read since it was last asked.
    heard: bool,
    further: Further,
}

/// Whether anything was read that had been brought from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Won {
    Nothing,
    Something,
}

/// Whether there are more files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Further {
    Perhaps,
    Nothing,
}

#[derive(Debug)]
struct File {
    path: Box<[u8]>,
    /// Bytes that were asked for, of it.
    brought: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Expected,
    Read,
}

impl Default for Recent {
    fn default() -> Self {
        Self { path: [0; PATH], len: 0, run: 0 }
    }
}

impl Recent {
    fn path(&self) -> &[u8] {
        self.path.get(..self.len).unwrap_or_default()
    }

    fn set(&mut self, path: &[u8], run: u32) {
        if let Some(room) = self.path.get_mut(..path.len()) {
            room.copy_from_slice(path);
            (self.len, self.run) = (path.len(), run);
        }
    }
}

impl Walks {
    /// The file at `path` is read from its beginning.
    pub fn read(&mut self, path: &[u8]) -> Wake {
        let mut ended = false;
        for walk in self.walks.iter_mut().flatten() {
            if let Some(from_disk) = walk.hit(path) {
                if from_disk {
                    self.next_rest = *REST.start();
                }
                return if walk.is_due() { Wake::Now } else { Wake::No };
            }
            walk.others += 1;
            ended |= walk.others > LOST;
        }
        if ended {
            self.end_where(|walk| walk.others > LOST);
            return Wake::Now;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return Wake::No;
        }
        let run = self.run(path);
        if run.is_multiple_of(RUN) && run > 0 { self.begin(path) } else { Wake::No }
    }

    /// How many reads in a row were of a later name in the same directory, with this one.
    fn run(&mut self, path: &[u8]) -> u32 {
        if path.len() > PATH {
            return 0;
        }
        let (dir, name) = split(path);
        let known = |recent: &Recent| recent.len > 0 && split(recent.path()).0 == dir;
        let at = self.recent.iter().position(known).unwrap_or(DIRECTORIES - 1);
        let Some(recent) = self.recent.get_mut(at) else { return 0 };
        let later = known(recent) && split(recent.path()).1 < name;
        let run = if later { recent.run.saturating_add(1) } else { 1 };
        recent.set(path, run);
        if let Some(front) = self.recent.get_mut(..=at) {
            front.rotate_right(1);
        }
        run
    }

    /// Somebody may walk, and is at `path`.
    fn begin(&mut self, path: &[u8]) -> Wake {
        let dir = split(path).0;
        // It came by here and was lost: it has the other order. If it is still hit, this is another one.
        let is_lost = |walk: &Walk| walk.others >= RUN && split(walk.last()).0 == dir;
        if self.walks.iter().flatten().any(is_lost) {
            self.order = self.order.other();
            self.end_where(|walk| is_lost(walk));
        }
        if self.walks.iter().all(Option::is_some) {
            self.end_where(|walk| walk.others > STRAY);
        }
        let Some(free) = self.walks.iter_mut().find(|walk| walk.is_none()) else { return Wake::No };
        self.begun += 1;
        *free = Some(Walk {
            id: WalkId(self.begun),
            behind: path.into(),
            order: self.order,
            files: VecDeque::new(),
            passed: 0,
            window: *WINDOW.start(),
            others: 0,
            warm: 0,
            in_vain: 0,
            won: Won::Nothing,
            heard: true,
            further: Further::Perhaps,
        });
        Wake::Now
    }

    /// What is to be done next.
    pub fn job(&mut self) -> Option<Job> {
        if let Some((path, bytes)) = self.left.pop() {
            return Some(Job::Drop(path, bytes));
        }
        for walk in self.walks.iter_mut().flatten() {
            if let Some((path, bytes)) = walk.done_with() {
                return Some(Job::Drop(path, bytes));
            }
        }
        let all = self.walks.iter().enumerate().filter_map(|(place, walk)| Some((place, walk.as_ref()?)));
        // Who has least ahead comes first.
        let (place, walk) = all.filter(|(_, walk)| walk.wants()).min_by_key(|(_, walk)| walk.ahead().0)?;
        Some(Job::Bring { place, walk: walk.id, behind: walk.behind.clone(), order: walk.order })
    }

    /// Whether there is a walk.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.walks.iter().any(Option::is_some)
    }

    /// The next file of `walk` is the one at `path`. Whether it is to be brought: not if it was already, for another walk.
    pub fn expect(&mut self, walk: WalkId, path: &[u8]) -> bool {
        let mut known = self.walks.iter().flatten().flat_map(|walk| &walk.files);
        if known.any(|file| *file.path == *path) {
            return false;
        }
        self.find(walk).is_some_and(|walk| {
            walk.files.push_back(File { path: path.into(), brought: 0, state: State::Expected });
            true
        })
    }

    /// `walk` has no next file.
    pub fn at_end(&mut self, walk: WalkId) {
        if let Some(walk) = self.find(walk) {
            walk.further = Further::Nothing;
        }
    }

    /// None of many names that come next in `walk` is a file.
    pub fn found_no_file(&mut self, walk: WalkId) {
        if let Some(walk) = self.find(walk) {
            walk.in_vain += 1;
        }
    }

    /// What became of a file that `walk` expects.
    pub fn brought(&mut self, walk: WalkId, path: &[u8], found: Found) {
        let Some(walk) = self.find(walk) else {
            if let Found::Cold(bytes) = found {
                self.left.push((path.into(), bytes));
            }
            return;
        };
        let at = walk.files.iter().rposition(|file| *file.path == *path);
        match (found, at.and_then(|at| walk.files.get_mut(at))) {
            (Found::Cold(bytes), Some(file)) => {
                file.brought = bytes;
                walk.warm = 0;
            }
            (Found::Cold(bytes), None) => self.left.push((path.into(), bytes)),
            (Found::Warm, _) => {
                walk.warm += 1;
                self.end_where(|walk| walk.warm >= WARM);
            }
            (Found::Nothing, _) => {
                walk.in_vain += 1;
                if let Some(at) = at {
                    walk.files.remove(at);
                    walk.passed -= usize::from(at < walk.passed);
                }
            }
        }
    }

    /// Nothing was to be done for a long time: walks that nobody was heard of have ended.
    pub fn quiet(&mut self) {
        self.end_where(|walk| !std::mem::take(&mut walk.heard));
    }

    fn find(&mut self, id: WalkId) -> Option<&mut Walk> {
        self.walks.iter_mut().flatten().find(|walk| walk.id == id)
    }

    fn end_where(&mut self, mut ends: impl FnMut(&mut Walk) -> bool) {
        for place in &mut self.walks {
            let Some(walk) = place.take_if(|walk| ends(walk)) else { continue };
            if walk.won == Won::Nothing || walk.warm >= WARM {
                self.next_rest = self.next_rest.clamp(*REST.start(), *REST.end());
                self.rest = self.next_rest;
                self.next_rest *= 2;
            }
            let brought = walk.files.into_iter().filter(|file| file.brought > 0);
            self.left.extend(brought.map(|file| (file.path, file.brought)));
        }
    }
}

impl Walk {
    /// The last file that was read of it.
    fn last(&self) -> &[u8] {
        let last = self.passed.checked_sub(1).and_then(|at| self.files.get(at));
        last.map_or(&*self.behind, |file| &*file.path)
    }

    /// If it is this walk's that is read: whether it was brought from the disk.
    fn hit(&mut self, path: &[u8]) -> Option<bool> {
        let order = (self.passed..self.files.len()).chain(0..self.passed);
        let at = order.into_iter().find(|at| self.files.get(*at).is_some_and(|file| *file.path == *path))?;
        let file = self.files.get_mut(at)?;
        let first = file.state == State::Expected;
        file.state = State::Read;
        let from_disk = file.brought > 0;
        if first {
            self.window = (self.window + 1).min(*WINDOW.end());
        }
        if from_disk {
            self.won = Won::Something;
        }
        (self.others, self.in_vain, self.heard) = (0, 0, true);
        self.passed = self.passed.max(at + 1);
        Some(from_disk)
    }

    /// How many files are ahead of the reader, and how many bytes were brought of them.
    fn ahead(&self) -> (usize, u64) {
        let ahead = self.files.iter().skip(self.passed);
        (self.files.len() - self.passed.min(self.files.len()), ahead.map(|file| file.brought).sum())
    }

    fn wants(&self) -> bool {
        let (files, bytes) = self.ahead();
        self.is_searching() && files < self.window && bytes < BYTES
    }

    fn is_searching(&self) -> bool {
        self.further == Further::Perhaps && self.in_vain < IN_VAIN
    }

    /// Whether it is worth waking somebody.
    fn is_due(&self) -> bool {
        let (files, bytes) = self.ahead();
        self.is_searching() && files <= self.window / 2 && bytes < BYTES
    }

    /// A file that is not needed any more, of which something was brought.
    fn done_with(&mut self) -> Option<(Box<[u8]>, u64)> {
        // The last one that was read may be read on.
        while self.passed > 1 {
            let front = self.files.front()?;
            if front.state == State::Expected {
                if self.passed <= BEHIND {
                    return None;
                }
                self.window = (self.window - 1).max(*WINDOW.start());
            }
            self.passed -= 1;
            let file = self.files.pop_front()?;
            if file.brought > 0 {
                return Some((file.path, file.brought));
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
