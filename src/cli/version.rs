//! `--version`: this program, the Nix it is linked with, and what the running kernel offers.

use std::io::{self, Write};

use crate::server::idle::halts_for_a_hypervisor;
use crate::store;

/// What the program makes use of, and the first Linux release that has it.
const FEATURES: [(&str, (u32, u32)); 4] = [
    ("passthrough of reads (--io passthrough)", (6, 9)),
    ("repeating what a dead server had taken", (6, 9)),
    ("idmapped mounts (private users)", (6, 12)),
    ("reads that are cached once (RWF_DONTCACHE)", (6, 14)),
];

const NAME: &str = concat!("nix-store-fs ", env!("CARGO_PKG_VERSION"));

pub(super) fn write(out: &mut dyn Write) -> io::Result<()> {
    // Kept in one piece by the optimiser: a test gives a copy of the program another version.
    writeln!(out, "{}", std::hint::black_box(NAME))?;
    writeln!(out, "libnixstore {}", store::nix_version())?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    writeln!(out, "Linux {kernel}")?;
    let running = parse(&kernel);
    for (feature, since) in FEATURES {
        let has = match running {
            Some(running) if running >= since => "yes".to_owned(),
            _ => format!("no, needs Linux {}.{}", since.0, since.1),
        };
        writeln!(out, "  {feature}: {has}")?;
    }
    let guest =
        if halts_for_a_hypervisor() { "yes" } else { "no, its idle processors are not a hypervisor's" };
    writeln!(out, "  processors kept awake while requests flow (--idle-polling auto): {guest}")?;
    Ok(())
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
}
