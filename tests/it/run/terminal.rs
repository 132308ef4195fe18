//! On a terminal: interrupts, stops and hang-ups, with a shell around the command and as the command.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use super::{BOTH, Runs, Who, nothing_is_left};
use crate::util::DEADLINE;

/// A program on a terminal of its own, which script(1) makes.
struct Terminal {
    child: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn start(command: &str, runs: &Runs) -> Self {
        let mut script = Command::new("script");
        script
            .args(["-q", "-e", "-c", command, "/dev/null"])
            .env("PS1", "")
            .env("TERM", "dumb")
            .env("HOME", "/nonexistent");
        crate::util::store::nix_environment(&mut script);
        runs.environment(&mut script);
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let keys: std::os::fd::OwnedFd = child.stdin.take().unwrap().into();
        let mut output = child.stdout.take().unwrap();
        let (tell, shown) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(got @ 1..) = output.read(&mut bytes) {
                if tell.send(bytes[..got].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keys: keys.into(), shown, text: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Lets the shell say when it is ready, in words that are not those of the command line.
    fn prompt(&mut self) {
        self.press("PS1=ready'> '\n");
        self.shows(PROMPT);
    }

    /// Waits until `text` was shown, after what was waited for before.
    fn shows(&mut self, text: &str) {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.text.find(text) {
                self.text.drain(..at + text.len());
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("never showed {text:?} ({error}): {:?}", self.text),
            }
        }
    }

    fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// What the shell says when it is ready.
const PROMPT: &str = "ready> ";

/// Words for a shell.
fn quoted(program: &crate::util::program::Program) -> String {
    let words = program.words();
    let quoted: Vec<String> =
        words.iter().map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"))).collect();
    quoted.join(" ")
}

/// A program of a shell that says when it begins and when it runs again after a stop, and a pipe that it waits for. It does not read the
/// terminal: a reader that has not stopped yet may take a key that is for the shell. Nor does it make processes: one that is
/// stopped before it is another program keeps a shell that has called vfork(2) from stopping.
fn waiter(dir: &tempfile::TempDir) -> String {
    let pipe = dir.path().join("pipe");
    crate::util::pipe_for_all(&pipe);
    let pipe = pipe.display();
    format!("exec 3<>{pipe}; trap 'echo resumed.' CONT; echo begun.; while :; do read line <&3; done")
}

const FORMS: [&[&str]; 3] = [&[], &["--report=/dev/null"], &["--unshare-pid"]];

#[test]
fn keys_reach_the_command_and_the_shell_around_it() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        for form in FORMS {
            let dir = crate::util::scratch();
            let waiter = quoted(&runs.with(form, &["sh", "-c", &waiter(&dir)]));
            let mut terminal = Terminal::start("bash --norc -i", &runs);
            terminal.prompt();
            terminal.press(&format!("{waiter}\n"));
            terminal.shows("begun.\r\n");
            terminal.press("\x03");
            // What is typed before that is thrown away with the interrupt.
            terminal.shows(PROMPT);
            terminal.press("echo interrupted $?.\n");
            terminal.shows("interrupted 130.");
            terminal.press(&format!("{waiter}\n"));
            terminal.shows("begun.\r\n");
            terminal.press("\x1a");
            terminal.shows("Stopped");
            terminal.shows(PROMPT);
            terminal.press("jobs | grep -c Stopped; echo counted.\n");
            terminal.shows("1\r\ncounted.");
            terminal.press("fg >/dev/null\n");
            terminal.shows("resumed.\r\n");
            terminal.press("\x1c");
            terminal.shows(PROMPT);
            terminal.press("echo quit $?.\n");
            terminal.shows("quit 131.");
            terminal.press("exit 7\n");
            assert_eq!(terminal.end(), Some(7), "{who:?} {form:?}");
        }
        nothing_is_left(runs.fixture.store.root());
    }
}

/// A shell with job control as the command.
#[test]
fn a_shell_within_controls_its_jobs() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        for form in FORMS {
            let dir = crate::util::scratch();
            let mut terminal = Terminal::start(&quoted(&runs.with(form, &["bash", "--norc", "-i"])), &runs);
            terminal.prompt();
            terminal.press("tty && echo has $?.; stty size; ls /nix/store | wc -l\n");
            terminal.shows("/dev/pts/");
            terminal.shows("has 0.");
            terminal.press(&format!("sh -c \"{}\"\n", waiter(&dir)));
            terminal.shows("begun.\r\n");
            terminal.press("\x1a");
            terminal.shows("Stopped");
            terminal.shows(PROMPT);
            terminal.press("fg >/dev/null\n");
            terminal.shows("resumed.\r\n");
            terminal.press("\x03");
            // What is typed before that is thrown away with the interrupt.
            terminal.shows(PROMPT);
            terminal.press("echo interrupted $?.\n");
            terminal.shows("interrupted 130.");
            terminal.press("exit 5\n");
            assert_eq!(terminal.end(), Some(5), "{who:?} {form:?}");
        }
        nothing_is_left(runs.fixture.store.root());
    }
}

/// A terminal that is closed ends a shell, and with it all else.
#[test]
fn a_terminal_that_is_closed_leaves_nothing() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in [Who::Root, Who::Nobody] {
        let runs = Runs::by(who);
        for form in FORMS {
            let mut terminal = Terminal::start(&quoted(&runs.with(form, &["bash", "--norc", "-i"])), &runs);
            terminal.prompt();
            terminal.press("echo begun.$((1 + 1))\n");
            terminal.shows("begun.2");
            terminal.child.kill().unwrap();
            terminal.child.wait().unwrap();
            nothing_is_left(runs.fixture.store.root());
        }
    }
}
