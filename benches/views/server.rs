//! One run of the program under test: started, awaited, looked at, stopped.
//!
//! The monitor starts a process that *plays* what the view has learnt, and waits for it when it ends. It is known by
//! what everybody sees: a child of the monitor that is not the server. So nothing of the program has to be believed
//! to say when a play is over and what it took.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};
use crate::machine::{self, Spent, Usage};
use crate::service::Service;

/// A player is started when the view is ready; who has none after this time plays nothing.
const APPEARS: Duration = Duration::from_millis(500);
/// Longer than any play may take.
const DEADLINE: Duration = Duration::from_secs(90);
/// How long to wait before /proc is asked again.
const PAUSE: Duration = Duration::from_millis(1);

/// What the program is asked to show, where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its arguments, besides those that follow from the rest.
    pub(crate) arguments: &'a [String],
    /// The closure.
    pub(crate) corpus: &'a Corpus,
    /// What the view is called.
    pub(crate) name: &'a str,
    /// Where it is mounted.
    pub(crate) mountpoint: &'a Path,
    /// A directory for socket and log.
    pub(crate) work: &'a Path,
}

/// The running program and the process of it that answers requests.
#[derive(Debug)]
pub(crate) struct Server {
    service: Service,
    process: Pid,
    ready: Instant,
    /// What both had spent when the view was ready.
    begun: Spent,
}

/// A process that plays.
#[derive(Debug)]
pub(crate) struct Player(OwnedFd);

/// What a play took, of the whole program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Play {
    /// From the view's READY to the end of the player.
    pub(crate) taken: Duration,
    /// What monitor, server and player have spent since then.
    pub(crate) spent: Spent,
}

impl Server {
    /// Starts the program; returns it with the time from start to READY.
    pub(crate) fn start(order: Order<'_>) -> Outcome<(Self, Duration)> {
        let place = order.mountpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(order.program);
        command.arg("--system").arg(&order.corpus.system);
        if let Some(uri) = &order.corpus.uri {
            command.args(["--store", uri]);
        }
        command.args(["--name", order.name]).args(order.arguments).arg(order.mountpoint);
        let (service, taken) = Service::start(command, order.work, &place)?;
        let ready = Instant::now();
        // The server is started first, and answers when the view is ready.
        let Some(process) = machine::children_of(service.pid())?.first().copied() else {
            return Err(Fault::new(format!("process {} has no server", service.pid().as_raw_nonzero())));
        };
        let mut server = Self { service, process, ready, begun: Spent::default() };
        server.begun = server.spent()?;
        Ok((server, taken))
    }

    /// Memory of the process that answers.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        machine::usage(self.process)
    }

    /// Memory of the monitor.
    pub(crate) fn monitor_usage(&self) -> Outcome<Usage> {
        machine::usage(self.service.pid())
    }

    /// What the program has spent since it was started, its players that have ended included.
    pub(crate) fn spent(&self) -> Outcome<Spent> {
        Ok(machine::spent(self.service.pid())?.and(machine::spent(self.process)?))
    }

    /// The process that plays, as soon as it is there; None if there is none.
    pub(crate) fn player(&self) -> Outcome<Option<Player>> {
        loop {
            for pid in self.others()? {
                // One that has just ended and been waited for has nothing to wait for any more.
                if let Ok(end) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                    return Ok(Some(Player(end)));
                }
            }
            if self.ready.elapsed() > APPEARS {
                return Ok(None);
            }
            thread::sleep(PAUSE);
        }
    }

    fn others(&self) -> Outcome<Vec<Pid>> {
        let mut children = machine::children_of(self.service.pid())?;
        children.retain(|child| *child != self.process);
        Ok(children)
    }

    /// Waits until what the view has learnt was played; None if nothing was.
    pub(crate) fn await_play(&self) -> Outcome<Option<Play>> {
        let Some(player) = self.player()? else {
            return Ok(None);
        };
        player.await_end()?;
        let taken = self.ready.elapsed();
        self.await_end_of_play()?;
        Ok(Some(Play { taken, spent: self.spent()?.since(self.begun) }))
    }

    /// Waits for the end of a play that may have begun, so that what it has spent counts.
    pub(crate) fn await_end_of_play(&self) -> Outcome<()> {
        // A player that has ended counts as the monitor's when that has waited for it.
        let start = Instant::now();
        while !self.others()?.is_empty() {
            if start.elapsed() > DEADLINE {
                return Err(Fault::new(format!("a play has not ended within {} s", DEADLINE.as_secs())));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// What the program itself tells of its play (`prefetch` of `status --json`), on one line.
    pub(crate) fn told_of_play(&self, program: &Path, name: &str) -> Option<String> {
        let output = Command::new(program).args(["status", name, "--json"]).output().ok()?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let play = told.get("views")?.get(0)?.get("prefetch")?;
        (!play.is_null()).then(|| play.to_string())
    }

    /// Ends the program; returns what it wrote to standard error.
    pub(crate) fn stop(self) -> Outcome<String> {
        self.service.stop()
    }
}

impl Player {
    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> Outcome<bool> {
        self.poll(Duration::ZERO)
    }

    fn await_end(&self) -> Outcome<()> {
        if self.poll(DEADLINE)? {
            return Ok(());
        }
        Err(Fault::new(format!("a play has not ended within {} s", DEADLINE.as_secs())))
    }

    fn poll(&self, left: Duration) -> Outcome<bool> {
        let doing = || "waiting for the end of a play".to_owned();
        let left = Timespec::try_from(left).doing(doing)?;
        let mut events = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        Ok(rustix::event::poll(&mut events, Some(&left)).doing(doing)? > 0)
    }
}

/// Copies the profile of the view called `from` for one called `to`.
pub(crate) fn copy_profile(profiles: &Path, from: &str, to: &str) -> Outcome<bool> {
    let (from, to) = (profiles.join(from), profiles.join(to));
    if !from.exists() {
        return Ok(false);
    }
    fs::copy(&from, &to).doing(|| format!("copying {}", from.display()))?;
    Ok(true)
}
