//! What `status` and `report` print, run as a person or a program runs them: against what the test has done, what Nix knows, and the
//! grammar or the schema of each form.

pub(crate) mod documents;
mod forms;
mod report;
mod status;

use std::ffi::OsStr;

use crate::util::program::{Finished, Program};

/// Runs the program, which has to end well, and returns what it prints.
fn tell<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> String {
    let finished = run(arguments);
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    finished.stdout
}

fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Finished {
    Program::new().args(arguments).run()
}

/// Everything but lines of what can be seen, and the colours that the program itself has chosen.
fn assert_harmless(text: &str) {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 2..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(rest.len());
        assert_eq!(&rest[end..=end], "m", "not a colour: {text:?}");
        rest = &rest[end + 1..];
    }
    plain.push_str(rest);
    let direction = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    let harmful = |c: char| {
        c != '\n' && c.is_control()
            || direction.contains(&c)
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
    };
    assert!(!plain.contains(harmful), "{text:?}");
}
