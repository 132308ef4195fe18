//! `--version`: this program, the Nix it is linked with, and what the running kernel gives.
//!
//! What can be tried is tried, which needs root; the rest is told by the release. In the words of docs/semantics.md.

use std::io::{self, Write};

use crate::kernel::{Finding, Findings, Trial};
use crate::server::idle::halts_for_a_hypervisor;
use crate::store;

const NAME: &str = concat!("nix-store-fs ", env!("CARGO_PKG_VERSION"));

pub(super) fn write(out: &mut dyn Write) -> io::Result<()> {
    let trial = rustix::process::geteuid().is_root().then(Trial::start);
    // Kept in one piece by the optimiser: a test gives a copy of the program another version.
    writeln!(out, "{}", std::hint::black_box(NAME))?;
    writeln!(out, "libnixstore {}", store::nix_version())?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    writeln!(out, "Linux {kernel}")?;
    for (promise, answer) in promises(trial.map(Trial::findings).unwrap_or_default(), parse(&kernel)) {
        writeln!(out, "  {promise}: {answer}")?;
    }
    let guest =
        if halts_for_a_hypervisor() { "yes" } else { "no, its idle processors are not a hypervisor's" };
    writeln!(out, "  processors kept awake while requests flow (--idle-polling auto): {guest}")?;
    Ok(())
}

/// What is promised, and whether the kernel gives it.
fn promises(findings: Findings, release: Option<(u32, u32)>) -> Vec<(&'static str, String)> {
    let known = |finding, since: (u32, u32)| match finding {
        Finding::Yes => "yes".to_owned(),
        Finding::No => format!("no, needs Linux {}.{}", since.0, since.1),
        Finding::Unknown if release.is_some_and(|release| release >= since) => {
            "yes, by its release".to_owned()
        }
        Finding::Unknown => format!("no, by its release: needs Linux {}.{}", since.0, since.1),
    };
    let absences = match findings.forgets_absences {
        Finding::Yes => "yes; absent names are cached until then",
        Finding::No => "yes; absent names are asked for each time, as this kernel does not forget them",
        Finding::Unknown => {
            "yes; absent names are asked for each time, as it could not be tried whether this kernel forgets them"
        }
    };
    vec![
        ("a killed server is replaced, and nobody notices", "yes".to_owned()),
        (
            "what a killed server had taken is given again by the kernel as well",
            known(findings.resends, (6, 9)),
        ),
        ("a reload shows names that were asked for before", absences.to_owned()),
        (
            "a takeover makes the kernel ask for every name again where it has to",
            known(findings.forgets_all_names, (6, 16)),
        ),
        ("passthrough of reads (--io passthrough)", known(findings.passthrough, (6, 9))),
        ("private users (idmapped mounts)", known(findings.idmap, (6, 12))),
        ("reads that are cached once (RWF_DONTCACHE)", known(Finding::Unknown, (6, 14))),
    ]
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
        assert_eq!(answer("passthrough"), "no, needs Linux 6.9");
        assert_eq!(answer("private users"), "yes, by its release");
    }
}
