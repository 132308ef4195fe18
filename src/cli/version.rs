//! `--version`: this program, the Nix it is linked with, and what the running kernel gives.
//!
//! What can be tried is tried, which needs root; the rest is told by the release. In the words of docs/semantics.md.

use std::io::{self, Write};

use crate::kernel::{Finding, Findings, TrialError, trial};
use crate::server::idle;
use crate::store;
use crate::{error, sandbox};

const NAME: &str = concat!("nix-store-fs ", env!("CARGO_PKG_VERSION"));

/// The first Linux that the tests are run on: docs/kernels.md.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn write(out: &mut dyn Write) -> io::Result<()> {
    let root = rustix::process::geteuid().is_root();
    let tried = root.then(trial::findings);
    // Kept in one piece by the optimiser: a test gives a copy of the program another version.
    writeln!(out, "{}", std::hint::black_box(NAME))?;
    writeln!(out, "libnixstore {}", store::nix_version())?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let release = parse(&kernel);
    writeln!(out, "Linux {kernel}, {}", how(tried.as_ref()))?;
    if release.is_some_and(|release| release < OLDEST) {
        writeln!(out, "  Linux {}.{} or newer is needed", OLDEST.0, OLDEST.1)?;
    }
    let findings = tried.and_then(Result::ok).unwrap_or_default();
    for (promise, answer) in promises(findings, release) {
        writeln!(out, "  {promise}: {answer}")?;
    }
    let polls = if root { polls() } else { "not tried, as only root can".to_owned() };
    writeln!(out, "  processors kept awake while requests flow (--idle-polling auto): {polls}")?;
    Ok(())
}

/// How the answers were found.
fn how(tried: Option<&Result<Findings, TrialError>>) -> String {
    let why = match tried {
        Some(Ok(_)) => return "tried just now".to_owned(),
        Some(Err(error)) => format!("not tried: {}", error::chain(error)),
        None => "not tried, as only root can".to_owned(),
    };
    format!("{why}; what it has by its release")
}

/// What is promised, and whether the kernel gives it.
fn promises(findings: Findings, release: Option<(u32, u32)>) -> Vec<(&'static str, String)> {
    let known = |finding, since: (u32, u32)| match finding {
        Finding::Yes => "yes".to_owned(),
        Finding::Unknown if release.is_some_and(|release| release >= since) => {
            "yes, by its release".to_owned()
        }
        Finding::Denied => "no, needs CAP_SYS_ADMIN in the initial user namespace".to_owned(),
        Finding::No | Finding::Unknown => format!("no, needs Linux {}.{}", since.0, since.1),
    };
    vec![
        ("a killed server is replaced, and nobody notices", "yes".to_owned()),
        ("a reload shows names that were asked for before", "yes".to_owned()),
        ("`--prune` withdraws names", "yes".to_owned()),
        (
            "the kernel reads files itself (`--io passthrough`, root only)",
            known(findings.passthrough, (6, 9)),
        ),
        ("private users (idmapped mounts, root only)", known(findings.idmap, (6, 12))),
        ("a server opens nothing but the store and its journal (Landlock)", landlock()),
        ("reads that are cached once (RWF_DONTCACHE)", known(Finding::Unknown, (6, 14))),
        ("all names forgotten at once (nice to have)", known(findings.forgets_all_names, (6, 16))),
        ("requests of a killed server given again (nice to have)", known(findings.resends, (6, 9))),
    ]
}

/// A server tries it after its first request, and now and then.
fn polls() -> String {
    match idle::try_here() {
        Ok(trial) => trial.to_string(),
        Err(error) => format!("no, the kernel cannot be asked: {}", error::chain(&error)),
    }
}

/// Any user can ask.
fn landlock() -> String {
    if sandbox::confines_files() {
        "yes".to_owned()
    } else {
        "no, needs Linux 5.13, started with Landlock, and no system call filter that refuses it".to_owned()
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert_eq!(parse("6.18.44-rc1+deb13"), Some((6, 18)));
        assert!(parse("6.9.0") < parse("6.12"));
        assert_eq!(parse("unknown"), None);
    }

    #[test]
    fn what_was_tried_counts_more_than_the_release() {
        let tried = Findings { passthrough: Finding::No, ..Findings::default() };
        let told = promises(tried, Some((6, 18)));
        let answer =
            |start: &str| told.iter().find(|(promise, _)| promise.starts_with(start)).unwrap().1.as_str();
        assert_eq!(answer("the kernel reads files"), "no, needs Linux 6.9");
        assert_eq!(answer("private users"), "yes, by its release");
    }

    /// The table of docs/semantics.md has the same promises, in the same words.
    #[test]
    fn the_words_are_those_of_the_documentation() {
        let page = include_str!("../../docs/semantics.md");
        let table = page.split("| promise | by kernel |").nth(1).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
        let told: Vec<&str> = rows.filter_map(|row| row.split(" | ").next()?.strip_prefix("| ")).collect();
        let promises: Vec<&str> =
            promises(Findings::default(), None).iter().map(|(label, _)| *label).collect();
        assert_eq!(told, promises);
    }
}
