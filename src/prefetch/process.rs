//! The process, from its order to its report: what it opens, what it gives up, then what it parses.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::ClockId;

use super::learn::{Run, learn};
use super::limits::Limits;
use super::outside::Outside;
use super::plan::{Plan, Rest};
use super::play;
use super::profile::{self, Profile};
use crate::protocol::task::{Common, Given, Known, Learn, Learnt, Play, Played, Prefetch, Task, Told};
use crate::protocol::wire;
use crate::sys::apart;
use crate::values::StorePath;
use crate::view::trace::{Marks, records};
use crate::{error, log, sandbox, sys};

/// How long it plays what it has learnt, and how long where somebody asked for everything.
const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
/// It is there for others: nice(1), but not so much that they would wait long for a name that it is about to know.
const NICE: i32 = 5;
/// Bytes of memory: a hostile profile within its bounds takes half of that.
const MEMORY: u64 = 512 << 20;
/// How long it waits for others who play, and how often it looks.
const WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// How long its last lines may take to be written.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Why it could not.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error("a descriptor is missing: {0:?}")]
    Missing(Given),
    #[error("the monitor has ended")]
    Orphaned,
    #[error(transparent)]
    Sandbox(#[from] sandbox::Missing),
    #[error("the view cannot be opened in a mount namespace of its own")]
    View(#[source] io::Error),
    #[error("the view was unmounted before it was asked for anything")]
    Unmounted,
    #[error("another file system is mounted over the view")]
    Covered,
    #[error("the trace cannot be read")]
    Trace(#[source] io::Error),
    #[error("the profile cannot be written")]
    Profile(#[source] io::Error),
    #[error("it cannot be tied to the monitor")]
    Tie(#[source] io::Error),
}

/// Does `task` with `descriptors`, and tells `monitor`.
pub fn perform(task: Task, descriptors: Vec<OwnedFd>, monitor: impl AsFd) {
    let common = match &task {
        Task::Play(task) => &task.common,
        Task::Learn(task) => &task.common,
    };
    log::set_up(common.log);
    // A server is called otherwise.
    let _ = rustix::thread::set_name(c"nix-store-ahead");
    let told = begin(common)
        .and_then(|()| match &task {
            Task::Play(task) => Descriptors::sort(&task.common, descriptors).play(task).map(Told::Played),
            Task::Learn(task) => Descriptors::sort(&task.common, descriptors).learn(task).map(Told::Learnt),
        })
        .unwrap_or_else(|failure| Told::Failed(bounded(&error::chain(&failure))));
    let _ = wire::send_report(monitor, &told);
    log::flush(LAST_WORDS);
}

/// So that its report fits into a packet, whatever it consists of.
fn bounded(text: &str) -> String {
    error::beginning(text, 500).to_owned()
}

/// How badly a view's unit may be missed is a server's matter (proc_pid_oom_score_adj(5)).
const EASILY_MISSED: &str = "500";

fn begin(common: &Common) -> Result<(), TaskError> {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", EASILY_MISSED) {
        tracing::debug!(%error, "it is missed as a server would be");
    }
    let monitor = i32::try_from(common.monitor).ok().and_then(rustix::process::Pid::from_raw);
    match sys::die_with(monitor).map_err(TaskError::Tie)? {
        true => {}
        false => return Err(TaskError::Orphaned),
    }
    let most = rustix::process::Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Data, most) {
        tracing::debug!(%error, "its memory has no limit of its own");
    }
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "it runs at the priority of others");
    }
    if let Err(error) = sys::ask_the_disk_last() {
        tracing::debug!(%error, "it asks the disk at the priority of others");
    }
    Ok(())
}

struct Descriptors(Vec<(Given, OwnedFd)>);

impl Descriptors {
    fn sort(common: &Common, descriptors: Vec<OwnedFd>) -> Self {
        Self(common.given.iter().copied().zip(descriptors).collect())
    }

    fn take(&mut self, kind: Given) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(found, _)| *found == kind)?;
        Some(self.0.swap_remove(at).1)
    }

    fn need(&mut self, kind: Given) -> Result<OwnedFd, TaskError> {
        self.take(kind).ok_or(TaskError::Missing(kind))
    }

    fn play(mut self, task: &Play) -> Result<Played, TaskError> {
        let (store, trace) = (self.need(Given::Store)?, self.need(Given::Trace)?);
        let (profile, profiles) = (self.take(Given::Profile), self.take(Given::Profiles));
        let common = &task.common;
        let remembers = profiles.is_some();
        let mut outside = Outside::open(task.connection).map_err(TaskError::View)?;
        let alone = profiles.map(|dir| lock(dir, &mut outside)).transpose().unwrap_or_else(|error| {
            tracing::debug!(%error, "views may be asked ahead at the same time");
            None
        });
        if outside.has_lost_it() {
            return Err(TaskError::Unmounted);
        }
        let begun = Instant::now();
        let time = if common.prefetch == Prefetch::Auto { SOON } else { LONG };
        let mut limits = Limits::new(time, outside);
        let view = open_view(task, self.take(Given::View))?;
        let names: Vec<&str> = common.view.names().map(StorePath::as_str).collect();
        sandbox::Player { view: view.as_fd(), store: store.as_fd(), members: &names }
            .confine(common.sandbox)?;
        log::start();
        // From here on it parses what others have written.
        let (profile, known) = read_profile(profile);
        let profile = profile.filter(|profile| !profile.is_doubtful()).unwrap_or_default();
        let profile = profile.mapped(common.view.names());
        let marks = Marks::of(&trace).unwrap_or(Marks::new(0, 0));
        let mut plan = Plan::new(&profile, common.view.names(), marks, common.prefetch);
        if common.prefetch == Prefetch::Auto && remembers {
            // What would be played now would hide what is used, and nothing would be learnt.
            plan.rest = Rest::Nothing;
        }
        let (view, store, trace) = (view.as_fd(), store.as_fd(), trace.as_fd());
        let outcome = play::play(&plan, view, store, trace, task.bytes, &mut limits, alone);
        let processor = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        let of = |part: i64| u64::try_from(part).unwrap_or_default();
        Ok(Played {
            known,
            done: outcome.done,
            names: outcome.names,
            files: outcome.files,
            bytes: outcome.bytes,
            milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            processor: of(processor.tv_sec) * 1000 + of(processor.tv_nsec) / 1_000_000,
            stopped: outcome.stopped,
        })
    }

    fn learn(mut self, task: &Learn) -> Result<Learnt, TaskError> {
        let (trace, mut next) = (self.need(Given::Trace)?, File::from(self.need(Given::Next)?));
        let profile = self.take(Given::Profile);
        let common = &task.common;
        sandbox::Learner.confine(common.sandbox)?;
        log::start();
        let (last, _) = read_profile(profile);
        let records = records::read(&trace).map_err(TaskError::Trace)?;
        let marks = Marks::of(&trace).unwrap_or(Marks::new(0, 0));
        let lasted = records::lasted(&trace, &records).map_err(TaskError::Trace)?;
        let run = Run { records: &records, done: task.done, marks, lasted };
        let (profile, judged) = learn(last.as_ref(), common.view.names(), task.later.names(), &run);
        next.write_all(&profile.write()).map_err(TaskError::Profile)?;
        Ok(Learnt {
            runs: profile.runs(),
            uses: profile.len() as u64,
            marked: judged.marked,
            used: judged.used,
        })
    }
}

/// Waits until nobody else plays whose profiles are in `dir`; until the result is closed, nobody does. A view that is unmounted is not waited for.
fn lock(dir: OwnedFd, outside: &mut Outside) -> io::Result<OwnedFd> {
    // The lock belongs to what was opened (flock(2)), which the monitor has as well.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    let until = Instant::now() + WAIT;
    while let Err(error) = rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive) {
        if error != Errno::WOULDBLOCK || until < Instant::now() || outside.has_lost_it() {
            return Err(error.into());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(own)
}

/// The place of the view, if it is the view's: another file system may have been mounted over it.
fn open_view(task: &Play, given: Option<OwnedFd>) -> Result<OwnedFd, TaskError> {
    let own = || apart::open(&task.at, apart::Owner::User);
    let view = given.map_or_else(own, Ok).map_err(TaskError::View)?;
    let stat = rustix::fs::fstat(&view).map_err(|error| TaskError::View(error.into()))?;
    let is_view =
        rustix::fs::major(stat.st_dev) == 0 && u64::from(rustix::fs::minor(stat.st_dev)) == task.connection;
    if is_view { Ok(view) } else { Err(TaskError::Covered) }
}

fn read_profile(file: Option<OwnedFd>) -> (Option<Profile>, Known) {
    let Some(file) = file else { return (None, Known::Nothing) };
    let mut bytes = Vec::new();
    let most = profile::BYTES as u64 + 1;
    // Other processes may have read it.
    let file = File::from(file);
    let read = io::Seek::seek(&mut &file, io::SeekFrom::Start(0))
        .and_then(|_| (&file).take(most).read_to_end(&mut bytes));
    match read
        .map_err(|error| error.to_string())
        .and_then(|_| Profile::read(&bytes).map_err(|error| error::chain(&error)))
    {
        Ok(profile) => {
            let runs = profile.runs();
            (Some(profile), Known::Profile(runs))
        }
        Err(why) => (None, Known::Unusable(bounded(&why))),
    }
}
