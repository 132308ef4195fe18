//! The log of a process: lines for standard error or syslog, written by a thread that may have to wait for whoever reads them.
//!
//! Invariants:
//! - Whoever logs never waits. What does not fit into the queue is dropped and counted; the count comes in its place.
//! - Lines are written one at a time, whole and in order. One that cannot be written, as the terminal is gone or nobody
//!   has the pipe open, is dropped.
//! - A message is one line of printable text, whatever is in it: names of processes and files are chosen by others, and
//!   a line break in one would begin a line of theirs, ESC a command for the operator's terminal.
//! - The thread takes no signal, and has no descriptor open but standard error: a process that ends while the thread
//!   waits in the kernel keeps no lock, no device and no socket.
//!
//! Syslog is a connected datagram socket in the place of standard error, and a line one datagram (RFC 3164, without a time:
//! whoever receives it has one). syslog(3) of the C library reads files and connects when it likes, which a server that has given up
//! its rights cannot.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::{error, sys};

/// Bytes that wait to be written, at most.
const ROOM: usize = 1 << 20;

/// Where a syslog daemon or the journal listens (syslog(3), systemd-journald.service(8)).
const SYSLOG: &str = "/dev/log";
/// `LOG_DAEMON` of `syslog.h`.
const FACILITY: u8 = 3 << 3;

/// Whether lines are written for syslog: set by whoever writes them.
static TAGGED: AtomicBool = AtomicBool::new(false);

/// The log of this process.
static LOG: Log = Log::new();

thread_local! {
    /// Whether this is the thread that writes.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Line(Level, Box<[u8]>),
    /// So many lines that did not fit.
    Dropped(u64),
    /// From here on they are for syslog.
    Syslog,
}

#[derive(Debug)]
struct Queue {
    entries: VecDeque<Entry>,
    /// Of all lines in it.
    bytes: usize,
    /// Whether an entry has been taken out and not been written yet.
    writing: bool,
    /// Whether a thread writes what is put in.
    served: bool,
    /// Whether that thread has been started, which has descriptors of its own.
    started: bool,
}

#[derive(Debug)]
struct Log {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Log {
    const fn new() -> Self {
        let queue =
            Queue { entries: VecDeque::new(), bytes: 0, writing: false, served: false, started: false };
        Self { queue: Mutex::new(queue), changed: Condvar::new() }
    }

    /// Puts `line` in, or counts it. False: no thread writes what is put in.
    fn push(&self, level: Level, line: &[u8]) -> bool {
        let mut queue = self.queue.lock();
        if !queue.served {
            return false;
        }
        if queue.entries.is_empty() || queue.bytes.saturating_add(line.len()) <= ROOM {
            queue.bytes += line.len();
            queue.entries.push_back(Entry::Line(level, line.into()));
        } else if let Some(Entry::Dropped(count)) = queue.entries.back_mut() {
            *count += 1;
        } else {
            queue.entries.push_back(Entry::Dropped(1));
        }
        drop(queue);
        self.changed.notify_all();
        true
    }

    /// Waits for an entry. The one that was returned before has been written.
    fn next(&self) -> Entry {
        let mut queue = self.queue.lock();
        queue.writing = false;
        loop {
            if let Some(entry) = queue.entries.pop_front() {
                if let Entry::Line(_, line) = &entry {
                    queue.bytes -= line.len();
                }
                queue.writing = true;
                return entry;
            }
            self.changed.notify_all();
            self.changed.wait(&mut queue);
        }
    }

    /// Writes what is kept: from now on nobody else does.
    fn write_kept(&self) {
        let entries = {
            let mut queue = self.queue.lock();
            queue.served = false;
            std::mem::take(&mut queue.entries)
        };
        for entry in entries {
            match entry {
                Entry::Line(level, line) => write(level, &line),
                Entry::Dropped(_) => {}
                Entry::Syslog => open_syslog(),
            }
        }
    }

    fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut queue = self.queue.lock();
        while queue.writing || !queue.entries.is_empty() {
            if self.changed.wait_until(&mut queue, until).timed_out() {
                return false;
            }
        }
        true
    }
}

/// How a process writes its log: the monitor's choice, followed by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogSettings {
    /// 0 errors, 1 warnings, 2 what happens, 3 details, 4 everything.
    pub verbosity: u8,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Where it goes.
    pub sink: Sink,
}

/// Where a process writes its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Sink {
    /// To whatever it has as standard error.
    #[default]
    Stderr,
    /// To syslog or the journal, and nowhere if there is none: the process has no terminal.
    Syslog,
}

/// From here on nothing of this process waits for whoever reads standard error. Lines are kept until [`start`].
pub fn begin() {
    LOG.queue.lock().served = true;
}

/// From here on what happens is logged, as far as `settings` want it.
pub fn set_up(settings: LogSettings) {
    let level = match settings.verbosity {
        0 => LevelFilter::ERROR,
        1 => LevelFilter::WARN,
        2 => LevelFilter::INFO,
        3 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = Targets::new().with_default(level);
    let layer = tracing_subscriber::fmt::layer().with_writer(AllLines);
    let registry = tracing_subscriber::registry().with(filter);
    let done = if settings.json {
        registry.with(layer.json()).try_init()
    } else {
        registry.with(layer.with_ansi(false).without_time().with_target(false)).try_init()
    };
    if let Err(error) = done {
        say(&format!("nix-store-fs: nothing will be logged: {error}"));
    }
    if settings.sink == Sink::Syslog {
        to_syslog();
    }
}

/// From here on this process writes its log to [`Sink::Syslog`], and has nothing open of what it had as standard error.
pub fn to_syslog() {
    let started = {
        let mut queue = LOG.queue.lock();
        if queue.started {
            queue.entries.push_back(Entry::Syslog);
        }
        queue.started
    };
    LOG.changed.notify_all();
    if !started {
        // The thread will have what is opened here: when it begins, the process may be allowed to open nothing more.
        TAGGED.store(true, Ordering::Relaxed);
    }
    open_syslog();
}

/// Puts syslog in the place of this thread's standard error; where there is none, `/dev/null`.
fn open_syslog() {
    let stderr = io::stderr();
    let connect = || {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SYSLOG)?;
        sys::replace(stderr.as_fd(), &socket)
    };
    let connected: io::Result<()> = connect();
    if connected.is_err()
        && let Ok(null) = std::fs::File::options().write(true).open("/dev/null")
    {
        let _ = sys::replace(stderr.as_fd(), &null);
    }
}

/// Starts the thread that writes, if it has not been. Where it cannot be made, who logs writes, and may have to wait.
pub fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        if let Err(error) = start_thread() {
            LOG.write_kept();
            say(&format!("nix-store-fs: the log is written without a thread of its own: {error}"));
        }
    });
}

fn start_thread() -> io::Result<()> {
    let work = || {
        WRITES.set(true);
        if let Err(error) = sys::keep_descriptor(io::stderr().as_raw_fd()) {
            tracing::debug!(%error, "the thread that writes the log keeps the descriptors of the process open");
        }
        loop {
            match LOG.next() {
                Entry::Line(level, line) => write(level, &line),
                Entry::Syslog => {
                    TAGGED.store(true, Ordering::Relaxed);
                    open_syslog();
                }
                // Logged as any other message, so in the same form; from this thread it is written at once.
                Entry::Dropped(count) => tracing::error!(
                    count,
                    "dropped log messages, because nobody read standard error or not fast enough"
                ),
            }
        }
    };
    LOG.queue.lock().started = true;
    // Signals are for the other threads: the mask is inherited.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let thread = thread::Builder::new().name("log".to_owned()).spawn(work);
    before.thread_set_mask()?;
    thread?;
    Ok(())
}

/// What is unprintable in `line` but for its end, as escapes of JSON (RFC 8259, section 7): a line of JSON stays one.
fn printable(line: &[u8]) -> Cow<'_, [u8]> {
    let (text, end) = line.split_at(line.len() - usize::from(line.ends_with(b"\n")));
    if text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(line);
    }
    let mut printable = String::with_capacity(line.len());
    for c in String::from_utf8_lossy(text).chars() {
        if is_unprintable(c) {
            // Into a string it does not fail.
            let _ = write!(printable, "\\u{:04x}", u32::from(c));
        } else {
            printable.push(c);
        }
    }
    Cow::Owned([printable.as_bytes(), end].concat())
}

/// Control characters, and those that end a line or change the direction of text (Unicode Standard Annex #9, table 2).
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Puts a line of its own into the log, in no particular form: the last words of a process.
pub fn say(line: &str) {
    let _ = Lines(Level::ERROR).write_all(format!("{line}\n").as_bytes());
}

/// The same for what went wrong, and why.
pub fn say_error(error: &dyn std::error::Error) {
    say(&format!("nix-store-fs: {}", error::chain(error)));
}

/// Waits until all of the log has been written, for `limit` at most: nobody may be reading it.
pub fn flush(limit: Duration) {
    start();
    LOG.flush(limit);
}

/// Makes a [`Lines`] for each message.
#[derive(Debug, Clone, Copy)]
struct AllLines;

impl<'a> MakeWriter<'a> for AllLines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        Lines(Level::INFO)
    }

    fn make_writer_for(&'a self, message: &Metadata<'_>) -> Lines {
        Lines(*message.level())
    }
}

/// Takes whole lines of this level for the log, one with each call; never waits and never fails.
#[derive(Debug, Clone, Copy)]
struct Lines(Level);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let printable = printable(line);
        if WRITES.get() || !LOG.push(self.0, &printable) {
            write(self.0, &printable);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `line` as a datagram for syslog: priority, name and process first.
fn tagged(level: Level, line: &[u8]) -> Vec<u8> {
    // LOG_ERR to LOG_DEBUG of syslog.h; what happens is LOG_INFO.
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let tag = format!("<{}>nix-store-fs[{}]: ", FACILITY | severity, std::process::id());
    [tag.as_bytes(), line.trim_ascii_end()].concat()
}

/// Writes to standard error; what cannot be written is dropped.
fn write(level: Level, line: &[u8]) {
    if TAGGED.load(Ordering::Relaxed) { write_all(&tagged(level, line)) } else { write_all(line) }
}

fn write_all(mut line: &[u8]) {
    let stderr = io::stderr();
    while !line.is_empty() {
        match rustix::io::write(&stderr, line) {
            Ok(0) => return,
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody who has the same file open has made it so.
            Err(Errno::AGAIN) => {
                let mut room = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
                if !matches!(rustix::event::poll(&mut room, None), Ok(_) | Err(Errno::INTR)) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Log {
        let log = Log::new();
        log.queue.lock().served = true;
        log
    }

    fn line(number: usize) -> Vec<u8> {
        format!("{number:1000}").into_bytes()
    }

    #[test]
    fn a_message_is_one_line_of_printable_text() {
        for (message, line) in [
            ("", ""),
            ("\n", "\n"),
            ("plain ~ text\n", "plain ~ text\n"),
            ("no end", "no end"),
            ("gr\u{fc}n \u{1f600}\n", "gr\u{fc}n \u{1f600}\n"),
            ("a\nnix-store-fs: fake line\x1b[2J\n", "a\\u000anix-store-fs: fake line\\u001b[2J\n"),
            ("\n\n", "\\u000a\n"),
            ("\0\t\r\x7f\u{9b}\n", "\\u0000\\u0009\\u000d\\u007f\\u009b\n"),
            ("\u{2028}\u{202e}\u{2066}\u{200f}\u{61c}\n", "\\u2028\\u202e\\u2066\\u200f\\u061c\n"),
        ] {
            assert_eq!(printable(message.as_bytes()), line.as_bytes(), "{message:?}");
        }
        assert_eq!(printable(b"\xff\xc2\n"), "\u{fffd}\u{fffd}\n".as_bytes());
        let json = format!("{{\"a\":{}}}\n", serde_json::to_string("\n\u{9b}\u{7f}\u{202e}").unwrap());
        let printed = String::from_utf8(printable(json.as_bytes()).into_owned()).unwrap();
        assert!(!printed.trim_end().chars().any(is_unprintable), "{printed:?}");
        let parsed: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(parsed["a"], "\n\u{9b}\u{7f}\u{202e}");
    }

    /// However much is put in, it does not grow; the count stands where the lines are missing.
    #[test]
    fn what_does_not_fit_is_counted_in_its_place() {
        let log = log();
        let fit = ROOM / 1000;
        assert!((0..fit + 7).all(|number| log.push(Level::INFO, &line(number))));
        for number in 0..fit {
            assert_eq!(log.next(), Entry::Line(Level::INFO, line(number).into()));
        }
        assert!(log.push(Level::INFO, &line(0)));
        assert_eq!(log.next(), Entry::Dropped(7));
        assert_eq!(log.next(), Entry::Line(Level::INFO, line(0).into()));
        let queue = log.queue.lock();
        assert_eq!((queue.bytes, queue.entries.len()), (0, 0));
    }

    /// A line that is longer than the room for all is not lost while nothing waits.
    #[test]
    fn a_line_of_any_length_fits_into_an_empty_queue() {
        let log = log();
        let long = vec![b'x'; 2 * ROOM];
        assert!(log.push(Level::INFO, &long) && log.push(Level::INFO, b"next"));
        assert_eq!(log.next(), Entry::Line(Level::INFO, long.into()));
        assert_eq!(log.next(), Entry::Dropped(1));
    }

    #[test]
    fn flushing_waits_for_what_is_being_written_and_not_for_ever() {
        let log = std::sync::Arc::new(log());
        assert!(log.flush(Duration::ZERO));
        log.push(Level::INFO, b"one");
        assert!(!log.flush(Duration::from_millis(1)), "it has not been taken out");
        assert_eq!(log.next(), Entry::Line(Level::INFO, b"one".as_slice().into()));
        assert!(!log.flush(Duration::from_millis(1)), "it has not been written");
        let writer = log.clone();
        // Never ends: it waits for a next line.
        thread::spawn(move || writer.next());
        assert!(log.flush(Duration::from_secs(60)));
    }

    /// Before a process has started its thread, and when it cannot.
    #[test]
    fn without_a_thread_nothing_is_kept() {
        let log = Log::new();
        assert!(!log.push(Level::INFO, b"one"));
        assert!(log.flush(Duration::ZERO));
    }

    #[test]
    fn a_line_for_syslog_says_how_bad_it_is_and_whose() {
        let own = std::process::id();
        for (level, priority) in
            [(Level::ERROR, 27), (Level::WARN, 28), (Level::INFO, 30), (Level::DEBUG, 31), (Level::TRACE, 31)]
        {
            let expected = format!("<{priority}>nix-store-fs[{own}]:  WARN text");
            assert_eq!(tagged(level, b" WARN text\n"), expected.as_bytes());
        }
    }
}
