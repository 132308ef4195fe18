//! Steps become calls: the view is asked for what will be asked of it.
//!
//! Invariant: one thread asks the view, for one name at a time or a few pieces of files ([`super::pieces`]), so a request of who uses the view waits behind a few
//! of these at most.
//!
//! Where that is, the users decide ([`super::course`]): it is never where they are.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, RawDir};
use rustix::io::Errno;

use super::below::{self, Below};
use super::blocks::{Blocks, THREADS};
use super::course::{Courses, Steps};
use super::limits::Limits;
use super::pace::Pace;
use super::pieces::Pieces;
use super::plan::{Plan, Rest, Step};
use crate::protocol::task::{Done, Stopped};
use crate::view::trace::following::Following;

/// Bytes of entries that a listing takes at once.
const LISTING: usize = 32 << 10;
/// How long all names of a closure of which nothing is known may take.
const SHORT: Duration = Duration::from_millis(500);
/// Of so many files that were left to users lately, each may be read of the store just now. Of others it is dropped what was brought.
const READING: usize = 32;
/// How long it rests where others ask.
const REST: Duration = Duration::from_millis(1);
/// Levels of directories in a member that are walked.
const DEPTH: usize = 64;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) done: Done,
    pub(super) names: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) stopped: Stopped,
}

/// Asks `view` by `plan`, and `store` for its blocks, elsewhere than users do, who are seen in `trace`. `reads`: bytes are read through the view; otherwise the kernel reads the store's.
/// `alone` is closed when others may play as well: what was learnt is there, or it begins to rest.
pub(super) fn play(
    plan: &Plan,
    view: BorrowedFd<'_>,
    store: BorrowedFd<'_>,
    trace: BorrowedFd<'_>,
    reads: bool,
    limits: &mut Limits,
    alone: Option<OwnedFd>,
) -> Outcome {
    let blocks = Blocks::new(plan, store, reads, limits.budget());
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let work = std::thread::Builder::new().name(format!("blocks-{number}"));
            if let Err(error) = work.spawn_scoped(scope, || blocks.work()) {
                tracing::debug!(%error, "the disk is asked by fewer threads");
            }
        }
        let mut player = Player {
            below: Below::new(view),
            store: Below::new(store),
            users: Users {
                trace: Following::new(trace),
                steps: Steps::of(plan),
                courses: Courses::new(plan),
                blocks: &blocks,
                left: VecDeque::new(),
            },
            limits,
            turns: Turns { alone, pace: Pace::new(Instant::now()), blocks: &blocks },
            outcome: Outcome { done: Done::default(), names: 0, files: 0, bytes: 0, stopped: Stopped::Done },
            blocks: &blocks,
            pieces: Pieces::default(),
        };
        let end = player.all(plan, &blocks, reads);
        blocks.stop();
        if reads {
            blocks.drop_rest(&mut player.store);
        }
        let courses = &player.users.courses;
        // Files that the kernel reads of the store are asked for beside the names, all of them.
        let bytes = match reads {
            true => courses.bytes.reach(),
            false if courses.names.is_over() => plan.bytes.len(),
            false => 0,
        };
        let done = Done { names: courses.names.reach(), bytes };
        Outcome { done, stopped: end.err().unwrap_or(Stopped::Done), ..player.outcome }
    })
}

struct Player<'a> {
    below: Below<'a>,
    store: Below<'a>,
    users: Users<'a>,
    limits: &'a mut Limits,
    turns: Turns<'a>,
    outcome: Outcome,
    blocks: &'a Blocks<'a>,
    pieces: Pieces,
}

/// When it asks, and when it leaves the processors and the disk to others.
struct Turns<'a> {
    /// Closed when others may play as well.
    alone: Option<OwnedFd>,
    pace: Pace,
    blocks: &'a Blocks<'a>,
}

impl Turns<'_> {
    /// Rests for a moment, if it is time.
    fn rest(&mut self) {
        if let Some(until) = self.pace.rests(Instant::now()) {
            self.alone = None;
            self.blocks.rest(until);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }
}

/// Where users are, and where the player is therefore.
struct Users<'a> {
    trace: Following<'a>,
    steps: Steps<'a>,
    courses: Courses,
    blocks: &'a Blocks<'a>,
    /// Files that were left to users lately.
    left: VecDeque<usize>,
}

impl Users<'_> {
    fn next_name(&mut self, store: &mut Below<'_>) -> Option<usize> {
        self.look(store);
        self.courses.names.turn();
        self.courses.names.next()
    }

    fn next_file(&mut self, store: &mut Below<'_>) -> Option<usize> {
        self.look(store);
        self.jump();
        self.courses.bytes.next()
    }

    /// Goes out of their way among files.
    fn jump(&mut self) {
        if let Some(at) = self.courses.bytes.turn() {
            self.blocks.jump(at);
        }
    }

    /// Leaves files to those who read them, and drops of the `store` what nobody reads any more.
    fn look(&mut self, store: &mut Below<'_>) {
        let Self { trace, steps, courses, blocks, left } = self;
        trace.look(|record| {
            if let Some(at) = steps.tell(courses, record) {
                blocks.leave(at);
                left.push_back(at);
            }
        });
        while left.len() > READING {
            left.pop_front().into_iter().for_each(|at| blocks.drop_file(store, at));
        }
    }
}

impl Player<'_> {
    fn all(&mut self, plan: &Plan, blocks: &Blocks<'_>, reads: bool) -> Result<(), Stopped> {
        self.check()?;
        while let Some(step) = self.users.next_name(&mut self.store).and_then(|at| plan.names.get(at)) {
            self.step(step)?;
            self.check()?;
        }
        while reads
            && let Some((at, step)) =
                self.users.next_file(&mut self.store).and_then(|at| Some((at, plan.bytes.get(at)?)))
        {
            self.step(step)?;
            let Self { store, pieces, .. } = self;
            pieces.end_step(at, |at| blocks.served(store, at));
            self.check()?;
        }
        self.wait()?;
        // The kernel reads the store's files by itself.
        while !reads && !blocks.is_done() {
            self.check()?;
            self.users.look(&mut self.store);
            self.users.jump();
            std::thread::sleep(REST);
        }
        self.turns.alone = None;
        let (until, bytes) = match plan.rest {
            Rest::Nothing => return Ok(()),
            Rest::NamesInShort => (Some(self.limits.begun() + SHORT), false),
            Rest::Names => (None, false),
            Rest::Bytes => (None, reads),
        };
        for member in &plan.members {
            self.walk(member.as_str().as_bytes(), DEPTH, until, bytes)?;
        }
        self.wait()
    }

    /// Between two questions.
    fn check(&mut self) -> Result<(), Stopped> {
        self.turns.rest();
        self.limits.exceeded().map_or(Ok(()), Err)
    }

    fn step(&mut self, step: &Step) -> Result<(), Stopped> {
        let asked = match step {
            Step::Look { path } => {
                self.outcome.names += 1;
                self.below.stat(path).map(drop)
            }
            Step::Follow { path } => self.below.follow(path),
            Step::List { dir, at_most } => self.list(dir, *at_most, |_, _| ()),
            Step::Read { path, ranges } => {
                self.outcome.files += 1;
                self.below.file(path).and_then(|file| {
                    let (file, size) = prepare(file)?;
                    ranges.iter().try_for_each(|pages| {
                        let (from, length) = pages.within(size);
                        self.read(&file, from, length)
                    })
                })
            }
        };
        asked.or_else(unless_of_all)
    }

    fn read(&mut self, file: &Rc<OwnedFd>, from: u64, length: u64) -> Result<(), Errno> {
        let Self { pieces, limits, turns, outcome, blocks, store, .. } = self;
        let asks = |bytes| {
            turns.rest();
            let may = limits.exceeded().is_none();
            if may {
                outcome.bytes += bytes;
                blocks.asks(bytes);
                limits.count(bytes);
            }
            may
        };
        pieces.ask(file, from, length, asks, |at| blocks.served(store, at))
    }

    /// Waits for what was asked for.
    fn wait(&mut self) -> Result<(), Stopped> {
        let Self { pieces, blocks, store, .. } = self;
        pieces.wait(0, |at| blocks.served(store, at)).or_else(unless_of_all)
    }

    /// Lists `dir`, and calls `each` with what its entries are called and whether they are directories, if that is known.
    fn list(
        &mut self,
        dir: &[u8],
        at_most: usize,
        mut each: impl FnMut(&[u8], rustix::fs::FileType),
    ) -> Result<(), Errno> {
        let open = self.below.list(dir)?;
        let mut buffer = vec![MaybeUninit::uninit(); LISTING];
        let mut entries = RawDir::new(&open, &mut buffer);
        let mut listed = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                listed += 1;
                each(name, entry.file_type());
            }
            if listed >= at_most || self.limits.exceeded().is_some() {
                break;
            }
        }
        self.outcome.names += listed as u64;
        Ok(())
    }

    /// Lists the directory at `path`, if it is one, and all below it.
    fn walk(
        &mut self,
        path: &[u8],
        depth: usize,
        until: Option<Instant>,
        bytes: bool,
    ) -> Result<(), Stopped> {
        use rustix::fs::FileType;
        self.check()?;
        if until.is_some_and(|until| until < Instant::now()) {
            return Err(Stopped::Time);
        }
        let mut below = Vec::new();
        let listed = self.list(path, usize::MAX, |name, kind| {
            if matches!(kind, FileType::Directory) || bytes && matches!(kind, FileType::RegularFile) {
                below.push((kind, [path, b"/", name].concat()));
            }
        });
        match listed {
            Ok(()) => {}
            Err(error) => {
                unless_of_all(error)?;
                // A member that is a file or a link.
                return if bytes { self.read_all(path) } else { Ok(()) };
            }
        }
        for (kind, path) in below {
            match kind {
                FileType::Directory if depth > 0 => self.walk(&path, depth - 1, until, bytes)?,
                FileType::RegularFile => self.read_all(&path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_all(&mut self, path: &[u8]) -> Result<(), Stopped> {
        self.check()?;
        let (file, size) = match self.below.file(path).and_then(prepare) {
            Ok(prepared) => prepared,
            Err(error) => return unless_of_all(error),
        };
        self.outcome.files += 1;
        self.read(&file, 0, size).or_else(unless_of_all)
    }
}

/// An error of one name is for who uses it to see. One that every other name would have as well ends the play.
fn unless_of_all(error: Errno) -> Result<(), Stopped> {
    match error {
        Errno::NOTCONN | Errno::CONNABORTED | Errno::STALE => Err(Stopped::View),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Err(Stopped::Resources),
        _ => Ok(()),
    }
}

/// A file of which nothing is asked for but what is asked for here, and its size.
fn prepare(file: OwnedFd) -> Result<(Rc<OwnedFd>, u64), Errno> {
    rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
    let size = below::size(&file)?;
    Ok((Rc::new(file), size))
}
