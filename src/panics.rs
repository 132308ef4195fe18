//! What a panic does. It is an internal error: it is logged and ends the process, so that whoever watches the process starts
//! another one. Inside [`contain`] it ends the work that was begun there, and nothing else.
//!
//! Invariants:
//! - A panic outside [`contain`] ends the process (abort(3)), on whatever thread it happens: nobody would notice that a thread is
//!   missing.
//! - State that threads share is whole after a contained panic. Locks are released on the way and know nothing of it, so what
//!   changes such state in several steps that belong together announces them with [`changing`]: a panic meanwhile ends the
//!   process, also inside [`contain`].
//!
//! Hard point: this is decided in the panic hook, before anything is unwound. So a core dump shows the place, and no destructor
//! runs over state that is half changed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::thread;
use std::time::Duration;

use crate::log;

/// How long the end of the process waits for its last line to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

thread_local! {
    /// Whether a panic is to end the work of [`contain`] only.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
    /// How many changes are under way that must not be left half made.
    static CHANGES: Cell<u32> = const { Cell::new(0) };
    /// The panic that unwinds this thread.
    static LAST: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// A panic that was contained.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Panic {
    /// File, line and column of the source.
    pub place: String,
    /// Its message.
    pub message: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked at {}: {}", self.place, self.message)
    }
}

impl Panic {
    fn of(panic: &PanicHookInfo<'_>) -> Self {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        Self { place, message: message(panic.payload()).to_owned() }
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let formatted = payload.downcast_ref::<String>().map(String::as_str);
    formatted.or_else(|| payload.downcast_ref().copied()).unwrap_or("no message")
}

/// From here on a panic does in this process what this module says.
pub fn begin() {
    std::panic::set_hook(Box::new(|panic| {
        let panic = Panic::of(panic);
        // A second one, while the first unwinds, has no way on.
        let is_first = || LAST.try_with(|last| last.borrow().is_none()).unwrap_or_default();
        if CONTAINED.get() && CHANGES.get() == 0 && is_first() {
            LAST.set(Some(panic));
            return;
        }
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        log::say(&format!("nix-store-fs: internal error, please report this bug: thread '{name}' {panic}"));
        log::flush(LAST_WORDS);
        std::process::abort();
    }));
}

/// Does `work`, which a panic ends without ending the process.
///
/// # Errors
/// The panic. What `work` was about is in whatever state it was, but for what [`changing`] protects.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    result.map_err(|payload| {
        let last = LAST.take();
        last.unwrap_or_else(|| Panic { message: message(&*payload).to_owned(), ..Panic::default() })
    })
}

/// A change under way, of which no part may be left. Of this thread.
#[derive(Debug)]
#[must_use]
pub struct Changing(PhantomData<*const ()>);

/// Until what this returns is dropped, a panic ends the process.
pub fn changing() -> Changing {
    CHANGES.set(CHANGES.get() + 1);
    Changing(PhantomData)
}

impl Drop for Changing {
    fn drop(&mut self) {
        CHANGES.set(CHANGES.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// What the process that is to panic is asked for.
    const JOB: &str = "NSF_PANICS";

    struct PanicsAgain;

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            let _ = catch_unwind(|| panic!("while the first one unwinds"));
        }
    }

    fn panic_at(job: &str) {
        begin();
        let ended = match job {
            "contained" => contain(|| panic!("a message")),
            "changing" => contain(|| {
                let _change = changing();
                panic!("a message")
            }),
            "again" => contain(|| {
                let _again = PanicsAgain;
                panic!("a message")
            }),
            _ => {
                let thread = thread::Builder::new().name("other".to_owned());
                let _ = thread.spawn(|| panic!("a message")).unwrap().join();
                return;
            }
        };
        let panic: Panic = ended.map(|()| 0).unwrap_err();
        assert!(panic.place.starts_with("src/panics.rs:"), "{panic}");
        assert_eq!(panic.message, "a message");
    }

    /// In a process of its own: this test once more.
    #[test]
    fn a_panic_ends_the_process_unless_it_is_contained_and_interrupts_no_change() {
        if let Ok(job) = std::env::var(JOB) {
            return panic_at(&job);
        }
        let test = "panics::tests::a_panic_ends_the_process_unless_it_is_contained_and_interrupts_no_change";
        for (job, signal) in
            [("contained", None), ("changing", Some(6)), ("again", Some(6)), ("elsewhere", Some(6))]
        {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let output = child.args(["--exact", test, "--nocapture"]).env(JOB, job).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), signal, "{job}: {said}");
            assert_eq!(output.status.success(), signal.is_none(), "{job}: {said}");
            assert_eq!(said.contains("please report this bug"), signal.is_some(), "{job}: {said}");
        }
    }

    #[test]
    fn a_contained_panic_ends_the_work_and_no_more() {
        assert_eq!(contain(|| 7), Ok(7));
        let ended = contain(|| {
            let nested = contain(|| panic!("inner"));
            assert_eq!(nested.unwrap_err().message, "inner");
            assert!(CONTAINED.get(), "the outer work is still contained");
            panic!("outer {}", 1)
        });
        assert_eq!(ended.map(|()| 0).unwrap_err().message, "outer 1");
        assert!(!CONTAINED.get());
    }

    #[test]
    fn a_change_is_under_way_until_it_is_made() {
        let one = changing();
        let other = changing();
        drop(one);
        assert_eq!(CHANGES.get(), 1);
        drop(other);
        assert_eq!(CHANGES.get(), 0);
    }
}
