//! A mount that nobody sees, to try what the kernel does with absent names and notifications.
//!
//! Two threads: one asks, as a reader of a view does, and one answers, as a server does.
//!
//! Invariants:
//! - It never holds up or fails a start: whoever wants to know waits for a limited time, and whatever fails is "unknown".
//! - The end of the process ends it. Whoever asks cannot be killed while a question is unanswered, and so has nothing
//!   open but the mount: the device closes with the process, the connection ends, and with it every question.
//!
//! Hard point: to forget a name the kernel waits for whoever looks at the directory. So nobody is looking then: a look-up of a
//! name that is never asked for twice says that the one before is over, and it is answered first.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use zerocopy::FromZeros;

use super::{Finding, Findings};
use crate::fuse::abi::{AttrOut, EntryOut, MIN_READ_BUFFER, ROOT_ID};
use crate::fuse::device::Registration;
use crate::fuse::{Device, Operation, Request};
use crate::protocol::handshake::{self, Absences, Agreement, HandshakeError, Io, Passthrough, Wishes};
use crate::sys;

/// How long the whole may take. It takes some milliseconds.
const LIMIT: Duration = Duration::from_secs(1);
/// Seconds for which answers may be cached: longer than the trial takes.
const LONG: u64 = 3600;
/// The name whose absence is cached.
const NAME: &str = "absent";
/// A directory (`S_IFDIR`) that everybody may look into.
const DIRECTORY: u32 = 0o040_555;

/// A trial that is under way.
#[derive(Debug)]
pub struct Trial {
    outcome: Result<Receiver<Outcome>, TrialError>,
    until: Instant,
}

type Outcome = Result<Findings, TrialError>;

impl Trial {
    /// Begins on threads of its own.
    #[must_use]
    pub fn start() -> Self {
        let until = Instant::now() + LIMIT;
        let (tell, outcome) = channel();
        let work = move || run(until, &tell);
        let begun = thread::Builder::new().name("trial".to_owned()).spawn(work);
        Self { outcome: begun.map(|_| outcome).map_err(failed("start a thread")), until }
    }

    /// What was found out. Waits for it, but not for long.
    #[must_use]
    pub fn findings(self) -> Findings {
        let found = self.outcome().inspect_err(|error| {
            tracing::debug!(error = error as &dyn std::error::Error, "cannot try what the kernel does");
        });
        pretended(found.unwrap_or_default())
    }

    /// The same, or why nothing was found out.
    ///
    /// # Errors
    /// [`TrialError`].
    pub fn outcome(self) -> Result<Findings, TrialError> {
        let left = self.until.saturating_duration_since(Instant::now());
        self.outcome?.recv_timeout(left).unwrap_or(Err(TrialError::Late))
    }
}

/// In builds for tests `NSF_ABSENCES` says what was found out about them: `forgotten`, `kept` or
/// `unknown`; anything else: what was.
fn pretended(findings: Findings) -> Findings {
    #[cfg(debug_assertions)]
    if let Ok(wanted) = std::env::var("NSF_ABSENCES") {
        let forgets_absences = match wanted.as_str() {
            "forgotten" => Finding::Yes,
            "kept" => Finding::No,
            "unknown" => Finding::Unknown,
            _ => findings.forgets_absences,
        };
        return Findings { forgets_absences, ..findings };
    }
    findings
}

fn run(until: Instant, tell: &Sender<Outcome>) {
    let begun = Instant::now();
    let (device, mount) = match mount() {
        Ok(both) => both,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    let mount = Arc::new(mount);
    let mut answerer = Answerer { device: Arc::new(Device::from(device)), until, looks: 0 };
    match Looker::start(&mount) {
        Ok(looker) => {
            let outcome = answerer.all(&looker);
            tracing::debug!(?outcome, elapsed = ?begun.elapsed(), "tried what the kernel does");
            let found = outcome.is_ok();
            let _ = tell.send(outcome);
            // Otherwise it may wait for an answer: the end of the connection is one.
            if found {
                looker.end();
            }
        }
        Err(error) => {
            let _ = tell.send(Err(error));
        }
    }
    // The connection ends, and with it whoever still looks.
    drop(answerer);
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The operating system refused something.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The device could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Kernel and program did not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Something took too long.
    #[error("the kernel sent no request within {} s", LIMIT.as_secs())]
    Late,
    /// So it cannot be seen what it forgets.
    #[error("the kernel does not cache an absent name")]
    Uncached,
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> TrialError {
    move |error| TrialError::System { doing, source: error.into() }
}

impl From<Errno> for TrialError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A connection, and its mount, which is in no mount table.
fn mount() -> Result<(OwnedFd, OwnedFd), TrialError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open /dev/fuse"))?;
    let mount = attach(&device).map_err(failed("mount FUSE"))?;
    Ok((device, mount))
}

fn attach(device: &OwnedFd) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    let mode = format!("{DIRECTORY:o}");
    let options = [
        ("source", "nix-store-fs"),
        ("fd", &number),
        ("rootmode", &mode),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    // Without it the kernel refuses a connection whose mounts can be idmapped.
    rustix::mount::fsconfig_set_flag(context.as_fd(), "default_permissions")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The thread that asks: for each number, for the name, and then for one that says that it has been asked for.
#[derive(Debug)]
struct Looker {
    numbers: Sender<usize>,
    /// Closed when it holds the mount no more.
    ended: Receiver<()>,
}

impl Looker {
    fn start(mount: &Arc<OwnedFd>) -> Result<Self, TrialError> {
        let mount = mount.clone();
        let (numbers, wanted) = channel::<usize>();
        let (holds, ended) = channel::<()>();
        let (tell, alone) = channel();
        let work = move || {
            let kept = sys::keep_descriptor(mount.as_raw_fd());
            let is_alone = kept.is_ok();
            let _ = tell.send(kept);
            if is_alone {
                wanted.into_iter().for_each(|number| {
                    look(&mount, NAME);
                    look(&mount, &marker(number));
                });
            }
            // The other thread drops it last: that closes it in the process's own table.
            drop(mount);
            drop(holds);
        };
        let begun = thread::Builder::new().name("trial-looks".to_owned()).spawn(work);
        begun.map_err(failed("start a thread"))?;
        let kept = alone.recv_timeout(LIMIT).map_err(|_| TrialError::Late)?;
        kept.map_err(failed("give a thread descriptors of its own"))?;
        Ok(Self { numbers, ended })
    }

    fn end(self) {
        drop(self.numbers);
        let _ = self.ended.recv_timeout(LIMIT);
    }
}

fn look(mount: &OwnedFd, name: &str) {
    let _ = rustix::fs::statat(mount, name, AtFlags::SYMLINK_NOFOLLOW);
}

fn marker(number: usize) -> String {
    format!("end-of-{number}")
}

/// The thread that answers.
struct Answerer {
    device: Arc<Device>,
    until: Instant,
    /// How often it was looked.
    looks: usize,
}

impl Answerer {
    fn all(&mut self, looker: &Looker) -> Result<Findings, TrialError> {
        self.wait()?;
        let wishes = Wishes {
            passthrough: Passthrough::IfOffered,
            idmap: true,
            store_depth: 0,
            absences: Absences::Cached,
        };
        let Agreement { io, idmap, .. } = handshake::answer(&*self.device, wishes)?;
        let mut findings =
            Findings { passthrough: self.registers(io), idmap: Finding::from(idmap), ..Findings::default() };
        self.asks_after(looker, |_| Ok(()))?;
        if self.asks_after(looker, |_| Ok(()))? {
            return Err(TrialError::Uncached);
        }
        let by_name = self.asks_after(looker, |device| device.forget_name(ROOT_ID, NAME.as_bytes()))?;
        findings.forgets_absences = Finding::from(by_name);
        findings.forgets_all_names = match self.asks_after(looker, Device::forget_all_names) {
            Ok(asks) => Finding::from(asks),
            Err(TrialError::Io(error)) => refused(&error),
            Err(error) => return Err(error),
        };
        findings.resends = match self.device.resend() {
            Ok(()) => Finding::Yes,
            Err(error) => refused(&error),
        };
        Ok(findings)
    }

    /// Whether the kernel reads files by itself. That it can is told by the exchange, which led to `io`; whether this process may
    /// have it do so is decided for each file (fuse_backing_open() in fs/fuse/backing.c).
    fn registers(&self, io: Io) -> Finding {
        if io != Io::Passthrough {
            return Finding::No;
        }
        let file = rustix::fs::memfd_create("trial", MemfdFlags::CLOEXEC).map_err(io::Error::from);
        match file.and_then(|file| Registration::new(&self.device, file)) {
            Ok(_) => Finding::Yes,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => Finding::Denied,
            Err(_) => Finding::Unknown,
        }
    }

    /// Has the name looked for after `action`: whether the kernel asks for it.
    fn asks_after(
        &mut self,
        looker: &Looker,
        action: impl FnOnce(&Device) -> io::Result<()>,
    ) -> Result<bool, TrialError> {
        action(&self.device)?;
        self.looks += 1;
        let end = marker(self.looks);
        looker.numbers.send(self.looks).map_err(|_| TrialError::Late)?;
        let mut asked = false;
        let mut buffer = vec![0; MIN_READ_BUFFER];
        loop {
            self.wait()?;
            let read = match self.device.read(&mut buffer) {
                Ok(read) => read,
                // Somebody took it back.
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(request) = Request::parse(buffer.get(..read).unwrap_or_default()) else { continue };
            let answer = self.device.answer(request.unique);
            match request.operation {
                Operation::Lookup { name } => {
                    let ends = name.0 == end.as_bytes();
                    asked |= name.0 == NAME.as_bytes();
                    answer.value(&EntryOut { entry_valid: LONG, ..EntryOut::new_zeroed() });
                    if ends {
                        return Ok(asked);
                    }
                }
                Operation::Getattr => answer.value(&root()),
                Operation::Forget { .. } | Operation::BatchForget(_) | Operation::NotifyReply => {
                    answer.none()
                }
                _ => answer.error(Errno::NOSYS),
            }
        }
    }

    /// Waits until the kernel asks something.
    fn wait(&self) -> Result<(), TrialError> {
        let left = self.until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| TrialError::Late)?;
        let mut polled = [PollFd::new(&*self.device, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) => Err(TrialError::Late),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a kernel says that does not know a notification.
fn refused(error: &io::Error) -> Finding {
    match Errno::from_io_error(error) {
        Some(Errno::INVAL) => Finding::No,
        _ => Finding::Unknown,
    }
}

fn root() -> AttrOut {
    let mut out = AttrOut::new_zeroed();
    out.valid = LONG;
    out.attr.ino = ROOT_ID;
    out.attr.mode = DIRECTORY;
    out.attr.nlink = 2;
    out.attr.blksize = 4096;
    out
}
