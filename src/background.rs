//! A process that stays when the one that was typed ends, or becomes another program.
//!
//! It is forked twice, so it is no child of whatever the first becomes, and it is in a session of its own, at once or when it is ready
//! ([`Session`]): neither the terminal nor a program that waits for its children knows of it. A socket pair is between the two: the caller can send
//! descriptors, and the other one says once that it is ready, or why it cannot be.
//!
//! Invariants:
//! - It holds nothing of the caller's but standard error, and that until it has said something: whoever waits for the end of a
//!   pipe does not wait for it.
//! - If either ends, the other one notices. One that is ready knows whether its caller has heard so ([`Caller::answer`]).
//!
//! Hard points:
//! 1. A process is forked while it has one thread, and the copy never returns to what the caller was doing.
//! 2. A caller may be killed after it has said that it has heard, which is its last call: then whoever started it has not. How it has
//!    ended is known once its parent has waited for it, from a pidfd that was open before that ([`sys::end_of`], Linux 6.15).
//!    Older kernels tell nobody but the parent: what it has said counts there.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::{log, sys};

/// Descriptors in one message at most.
const GIVEN_MAX: usize = 4;
/// Bytes of the longest message.
const MESSAGE_MAX: usize = 8192;

/// Which of the two a process is after [`split`].
#[derive(Debug)]
pub enum Side {
    /// The one that was typed.
    Caller(Background),
    /// The one that stays.
    Background(Caller),
}

/// The process that stays, as the caller sees it.
#[derive(Debug)]
pub struct Background(OwnedFd);

/// The process that was typed, as the one that stays sees it.
#[derive(Debug)]
pub struct Caller {
    socket: OwnedFd,
    session: Session,
    /// Its pidfd. None: the kernel has none (Linux 5.3).
    process: Option<OwnedFd>,
    /// Once it has said that it has heard: readable when its parent has waited for it (epoll(7)).
    end: OnceLock<OwnedFd>,
}

/// When the process that stays leaves the session of the one that was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// At once.
    Own,
    /// When it is ready. Until then it is in the same process group: the kernel knows by it who is to mount on an automount
    /// point, and lets all others wait (`Documentation/filesystems/autofs.rst` of Linux).
    OwnWhenReady,
}

/// What the process that stays has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// What it is for is there.
    Ready,
    /// It ends with this code, for this reason.
    Failed {
        /// Never 0.
        exit: u8,
        /// One line.
        why: String,
    },
    /// It has ended without a word.
    Nothing,
}

/// Makes the second process. Called while this one has one thread.
///
/// # Errors
/// Those of socketpair(2), fork(2) and of opening `/dev/null`.
pub fn split(session: Session) -> io::Result<Side> {
    let (ours, theirs) = pair()?;
    // Before the fork: the copy cannot tell anybody.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // Of this process: later its number may be that of another one.
    let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).ok();
    if sys::fork_twice(session == Session::Own)? {
        drop(ours);
        sys::replace(io::stdin().as_fd(), &null)?;
        sys::replace(io::stdout().as_fd(), &null)?;
        drop(null);
        let kept: Vec<_> = [&theirs].into_iter().chain(&process).map(AsFd::as_fd).collect();
        sys::close_others(&kept);
        return Ok(Side::Background(Caller { socket: theirs, session, process, end: OnceLock::new() }));
    }
    Ok(Side::Caller(Background(ours)))
}

/// Two sockets that are connected, for [`give`] and [`take`].
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends a number and `descriptors`, at most four.
///
/// # Errors
/// Those of sendmsg(2): `EPIPE` if nobody is at the other end.
pub fn give(socket: &OwnedFd, number: u32, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GIVEN_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if descriptors.len() > GIVEN_MAX || !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOMANYREFS.into());
    }
    let number = number.to_ne_bytes();
    rustix::net::sendmsg(socket, &[IoSlice::new(&number)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for a number and descriptors. None: nobody is at the other end.
#[must_use]
pub fn take(socket: &OwnedFd) -> Option<(u32, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GIVEN_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut number = [0; 4];
    let got = loop {
        let buffer = &mut [io::IoSliceMut::new(&mut number)];
        match rustix::net::recvmsg(socket, buffer, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other.ok()?.bytes,
        }
    };
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let given = rights.flatten().collect();
    (got == number.len()).then(|| (u32::from_ne_bytes(number), given))
}

impl Background {
    /// Gives it a number, and `descriptors`: see [`give`].
    ///
    /// # Errors
    /// Those of [`give`].
    pub fn give(&self, number: u32, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        give(&self.0, number, descriptors)
    }

    /// Waits for what it says.
    #[must_use]
    pub fn wait(&self) -> Told {
        let mut message = [0; MESSAGE_MAX];
        let got = loop {
            match rustix::net::recv(&self.0, &mut message, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Ok((got, _)) => break got,
                // It had not read what it was given.
                Err(_) => break 0,
            }
        };
        match message.get(..got).unwrap_or_default() {
            [] => Told::Nothing,
            [0, ..] => Told::Ready,
            [exit, why @ ..] => Told::Failed { exit: *exit, why: String::from_utf8_lossy(why).into_owned() },
        }
    }

    /// Tells it that it was heard, and is to stay: see [`Caller::answer`].
    pub fn keep(self) {
        let _ = rustix::net::send(&self.0, &[0], SendFlags::NOSIGNAL);
    }
}

/// What a caller does about a process that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not known yet.
    Nothing,
    /// It has heard so, and has ended or ends now.
    Keep,
    /// It has ended without a word, or was killed: whoever wanted this process has not heard of it.
    Gone,
}

impl AsFd for Caller {
    /// Readable once there may be an answer. What it is may change with each call of [`Self::answer`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.get().unwrap_or(&self.socket).as_fd()
    }
}

impl Caller {
    /// What the caller does; does not wait.
    #[must_use]
    pub fn answer(&self) -> Answer {
        if let (Some(process), Some(_)) = (&self.process, self.end.get()) {
            return how_ended(process);
        }
        match rustix::net::recv(&self.socket, &mut [0], RecvFlags::DONTWAIT) {
            Ok((1.., _)) => self.process.as_ref().map_or(Answer::Keep, |process| self.wait_for(process)),
            Err(Errno::AGAIN | Errno::INTR) => Answer::Nothing,
            // Its end, or what it was told lay there unread when it ended.
            Ok((0, _)) | Err(_) => Answer::Gone,
        }
    }

    /// It has heard: the rest is how it ends.
    fn wait_for(&self, process: &OwnedFd) -> Answer {
        let watch = || {
            let end = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            // Nothing but EPOLLHUP: a pidfd is readable already when the process has ended and nobody has waited for it.
            epoll::add(&end, process, epoll::EventData::new_u64(0), epoll::EventFlags::empty())?;
            Ok::<_, Errno>(end)
        };
        let Ok(end) = watch() else { return Answer::Keep };
        let _ = self.end.set(end);
        how_ended(process)
    }

    /// Waits for what the caller gives. None: it has ended.
    #[must_use]
    pub fn take(&self) -> Option<(u32, Vec<OwnedFd>)> {
        take(&self.socket)
    }

    /// What this process is for is there. From here on it has nothing of the caller's, and logs to syslog. Said once; later calls say
    /// nothing.
    pub fn ready(&self) {
        if self.session == Session::OwnWhenReady {
            // Refused once it is done.
            let _ = rustix::process::setsid();
        }
        log::to_syslog();
        self.say(&[0]);
    }

    /// This process ends, with the code `exit`, as `why` says in one line. Returns whether the caller can be told: not after
    /// [`Self::ready`], nor when it has ended.
    pub fn failed(&self, exit: u8, why: &str) -> bool {
        // A character that is cut is one that cannot be read.
        let fits = why.as_bytes().get(..MESSAGE_MAX - 1).unwrap_or(why.as_bytes());
        self.say(&[&[exit.max(1)], fits].concat())
    }

    /// Nobody may be there any more.
    fn say(&self, message: &[u8]) -> bool {
        let sent = rustix::net::send(&self.socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        // The caller reads one message.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        sent.is_ok()
    }
}

/// What is to be done about a process that has heard.
fn how_ended(process: &OwnedFd) -> Answer {
    match sys::end_of(process) {
        Ok(None) => Answer::Nothing,
        Ok(Some(status)) if status.signal().is_some() => Answer::Gone,
        // The kernel does not know.
        Ok(Some(_)) | Err(_) => Answer::Keep,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    use super::*;

    fn both() -> (Background, Caller) {
        let (ours, theirs) = pair().unwrap();
        (
            Background(ours),
            Caller { socket: theirs, session: Session::Own, process: None, end: OnceLock::new() },
        )
    }

    fn is_readable(caller: &Caller) -> bool {
        let mut polled = [PollFd::new(caller, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&Timespec::default())).unwrap();
        !polled[0].revents().is_empty()
    }

    /// It has heard in each case. Before its parent has waited for it there is nothing to be known, and to be woken up for.
    #[test]
    fn a_caller_that_is_killed_when_it_has_heard_is_gone() {
        for (script, answer) in [
            ("read x", Answer::Keep),
            ("read x; exit 3", Answer::Keep),
            ("read x; kill -KILL $$", Answer::Gone),
        ] {
            let (background, mut caller) = both();
            let mut process = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
            let opened = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
            if sys::end_of(&opened).is_err() {
                eprintln!("not tried: this kernel does not tell how a process has ended (Linux 6.15)");
                caller.process = Some(opened);
                background.keep();
                assert_eq!(caller.answer(), Answer::Keep);
                drop(process.stdin.take());
                process.wait().unwrap();
                continue;
            }
            caller.process = Some(opened);
            background.keep();
            assert!(is_readable(&caller));
            assert_eq!(caller.answer(), Answer::Nothing, "{script}");
            assert!(!is_readable(&caller), "{script}");
            drop(process.stdin.take());
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(Pid::from_child(&process)), ended).unwrap();
            assert!(!is_readable(&caller), "{script}");
            assert_eq!(caller.answer(), Answer::Nothing, "{script}");
            process.wait().unwrap();
            assert!(is_readable(&caller), "{script}");
            assert_eq!(caller.answer(), answer, "{script}");
        }
    }

    /// Its parent was faster than this process.
    #[test]
    fn a_caller_may_have_ended_before_its_word_is_read() {
        for (script, answer) in [("exit 0", Answer::Keep), ("kill -KILL $$", Answer::Gone)] {
            let (background, mut caller) = both();
            let mut process = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let opened = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
            let is_known = sys::end_of(&opened).is_ok();
            caller.process = Some(opened);
            background.keep();
            process.wait().unwrap();
            assert_eq!(caller.answer(), if is_known { answer } else { Answer::Keep }, "{script}");
        }
    }

    #[test]
    fn what_is_said_is_told() {
        for (exit, why, told) in [
            (5, "no store", Told::Failed { exit: 5, why: "no store".to_owned() }),
            (0, "", Told::Failed { exit: 1, why: String::new() }),
        ] {
            let (background, caller) = both();
            caller.failed(exit, why);
            assert_eq!(background.wait(), told);
        }
        let (background, caller) = both();
        caller.failed(7, &"\u{e9}".repeat(MESSAGE_MAX));
        let Told::Failed { exit: 7, why } = background.wait() else { panic!() };
        assert!(why.starts_with(&"\u{e9}".repeat(MESSAGE_MAX / 2 - 1)), "{}", why.len());
    }

    #[test]
    fn the_end_of_either_is_noticed() {
        let (background, caller) = both();
        drop(caller);
        assert_eq!(background.wait(), Told::Nothing);
        let (background, caller) = both();
        drop(background);
        assert!(caller.take().is_none());
        caller.failed(1, "nobody reads this");
        let (background, caller) = both();
        background.give(0, &[background.0.as_fd()]).unwrap();
        drop(caller);
        assert_eq!(background.wait(), Told::Nothing, "what was given was not read");
    }

    #[test]
    fn whoever_is_ready_learns_whether_that_was_heard() {
        let (background, caller) = both();
        assert_eq!(caller.answer(), Answer::Nothing);
        assert!(caller.say(&[0]));
        assert_eq!(caller.answer(), Answer::Nothing);
        assert_eq!(background.wait(), Told::Ready);
        assert_eq!(caller.answer(), Answer::Nothing);
        background.keep();
        assert_eq!(caller.answer(), Answer::Keep);
        assert!(!caller.failed(1, "nobody reads this"));
        for is_heard in [false, true] {
            let (background, caller) = both();
            assert!(caller.say(&[0]));
            if is_heard {
                assert_eq!(background.wait(), Told::Ready);
            }
            drop(background);
            assert_eq!(caller.answer(), Answer::Gone, "{is_heard}");
        }
    }

    #[test]
    fn what_is_given_is_open_there() {
        use std::os::unix::fs::FileExt;
        let (background, caller) = both();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "text").unwrap();
        let file = File::open(dir.path().join("a")).unwrap();
        background.give(7, &[file.as_fd(), file.as_fd()]).unwrap();
        let (number, given) = caller.take().unwrap();
        assert_eq!((number, given.len()), (7, 2));
        let mut text = [0; 4];
        File::from(given.into_iter().next().unwrap()).read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"text");
        assert!(background.give(0, &[file.as_fd(); GIVEN_MAX + 1]).is_err());
    }
}
