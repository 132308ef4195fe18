//! Where a test can stop a server, to kill it there: in builds for tests only.
//!
//! `NSF_STOP=POINT:FILE` stops (SIGSTOP) the first server that comes to POINT and can remove FILE, so one server stops for each
//! time that FILE is made. `NSF_PANIC=POINT:FILE` makes the first thread panic that comes to POINT and can remove FILE, of a server or
//! of the monitor. `NSF_CRASH=POINT:FILE` crashes every server that comes to POINT while FILE exists. `NSF_HOLD=DIR` holds
//! back one thread: where there is a pipe `DIR/POINT` (mkfifo(3)), the first that comes to POINT and can rename it to `POINT.held`
//! waits there until whoever has it open for writing closes it; others continue. `NSF_RESEND=no` keeps a server from asking the kernel for what an earlier
//! one had taken, as on kernels before 6.9. `NSF_FORGETS=no` keeps the kernel from forgetting names at the root one by one, as
//! absences on Linux 6.19 and 7.0; `NSF_EPOCH=no` from forgetting all names, as before 6.16. `NSF_TELLS=endless` lets a server tell
//! what may change for ever, as earlier versions did. `NSF_WAITS=yes` lets it forget names under the lock of their directory, as if
//! an earlier version had told everything.

/// A point in the life of a request, or of what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is in the server's memory, and nothing was done about it.
    Taken,
    /// It is about to be answered.
    Begun,
    /// The answer is known, and what the journal has to hold is in it.
    Decided,
    /// The kernel has the answer.
    Answered,
    /// The ledger knows that it was answered.
    Free,
    /// Pages are to be invalidated, and are not.
    Owed,
    /// A view was switched, and nothing is invalidated.
    Switched,
    /// The monitor is about to resolve the roots.
    Resolving,
    /// A mount helper is about to tell the monitor that it has heard of the view.
    Keeping,
    /// It has, and ends.
    Kept,
}

#[cfg(debug_assertions)]
mod active {
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Stop;

    static STOP: OnceLock<Option<(Stop, String)>> = OnceLock::new();
    static PANIC: OnceLock<Option<(Stop, String)>> = OnceLock::new();
    static CRASH: OnceLock<Option<(Stop, String)>> = OnceLock::new();
    static HOLD: OnceLock<Option<PathBuf>> = OnceLock::new();

    fn wanted(variable: &str) -> Option<(Stop, String)> {
        let value = std::env::var(variable).ok()?;
        let (point, file) = value.split_once(':')?;
        let all = [
            Stop::Taken,
            Stop::Begun,
            Stop::Decided,
            Stop::Answered,
            Stop::Free,
            Stop::Owed,
            Stop::Switched,
            Stop::Resolving,
            Stop::Keeping,
            Stop::Kept,
        ];
        let point = all.into_iter().find(|stop| format!("{stop:?}").eq_ignore_ascii_case(point))?;
        Some((point, file.to_owned()))
    }

    /// The file of `variable`, if that names this `point`.
    fn file(
        of: &'static OnceLock<Option<(Stop, String)>>,
        variable: &str,
        point: Stop,
    ) -> Option<&'static str> {
        let (wanted, file) = of.get_or_init(|| wanted(variable)).as_ref()?;
        (*wanted == point).then_some(file)
    }

    /// Stops, panics or crashes here, if a test wants it.
    #[expect(clippy::panic, reason = "a test wants it")]
    pub fn at(point: Stop) {
        let is_first = |file| std::fs::remove_file(file).is_ok();
        if file(&PANIC, "NSF_PANIC", point).is_some_and(is_first) {
            panic!("a test wants a panic here");
        }
        if file(&CRASH, "NSF_CRASH", point).is_some_and(|file| std::fs::exists(file).is_ok_and(|there| there))
        {
            std::process::abort();
        }
        if file(&STOP, "NSF_STOP", point).is_some_and(is_first) {
            let _ = kill_process(getpid(), Signal::STOP);
        }
        if let Some(dir) = HOLD.get_or_init(|| std::env::var_os("NSF_HOLD").map(PathBuf::from)) {
            hold(dir.join(format!("{point:?}").to_lowercase()));
        }
    }

    /// The new name says that a thread is here. It comes first: a server that is killed here leaves no pipe to its successor.
    fn hold(pipe: PathBuf) {
        let held = pipe.with_extension("held");
        if fs::rename(pipe, &held).is_ok()
            && let Ok(mut held) = File::open(held)
        {
            let _ = held.read(&mut [0]);
        }
    }

    /// Whether the kernel is told which names at the root to forget.
    pub fn forgets() -> bool {
        std::env::var_os("NSF_FORGETS").is_none_or(|value| value != "no")
    }

    /// Whether the kernel can be told to ask for every name again.
    pub fn renews() -> bool {
        std::env::var_os("NSF_EPOCH").is_none_or(|value| value != "no")
    }

    /// Whether names are forgotten under a lock, whatever was promised.
    pub fn waits() -> bool {
        std::env::var_os("NSF_WAITS").is_some_and(|value| value == "yes")
    }

    /// Whether what may change is told for a limited time.
    pub fn limits() -> bool {
        static LIMITS: OnceLock<bool> = OnceLock::new();
        *LIMITS.get_or_init(|| std::env::var_os("NSF_TELLS").is_none_or(|value| value != "endless"))
    }

    /// Whether the kernel is asked for what an earlier server had taken.
    pub fn resends() -> bool {
        std::env::var_os("NSF_RESEND").is_none_or(|value| value != "no")
    }
}

#[cfg(not(debug_assertions))]
mod active {
    use super::Stop;

    /// Nothing: this build is not for tests.
    pub fn at(_: Stop) {}

    /// Always.
    pub fn forgets() -> bool {
        true
    }

    /// Always.
    pub fn renews() -> bool {
        true
    }

    /// Never.
    pub fn waits() -> bool {
        false
    }

    /// Always.
    pub fn limits() -> bool {
        true
    }

    /// Always.
    pub fn resends() -> bool {
        true
    }
}

pub use active::{at, forgets, limits, renews, resends, waits};
