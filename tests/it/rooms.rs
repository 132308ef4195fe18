//! Arrows point down: a room of the source uses those above it in the list of `src/lib.rs`, and itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, each with those that it may use besides itself.
const ROOMS: [(&str, &[&str]); 13] = [
    ("values", &[]),
    ("sandbox", &["sys"]),
    ("store", &["values", "mounts", "sys", "panics"]),
    ("closure", &["values", "mounts", "store"]),
    ("fuse", &["sys", "mounts", "startup"]),
    ("view", &["values", "sys", "error", "panics", "fuse"]),
    ("protocol", &["values", "sys", "error", "log", "sandbox", "fuse"]),
    ("prefetch", &["values", "sys", "error", "log", "sandbox", "view", "protocol"]),
    ("kernel", &["sys", "fuse", "protocol"]),
    (
        "server",
        &[
            "values", "sys", "error", "log", "panics", "startup", "sandbox", "fuse", "view", "protocol",
            "prefetch",
        ],
    ),
    (
        "monitor",
        &[
            "values",
            "mounts",
            "cdi",
            "sys",
            "error",
            "log",
            "startup",
            "background",
            "sandbox",
            "store",
            "closure",
            "fuse",
            "view",
            "protocol",
            "server",
        ],
    ),
    ("run", &["mounts", "sys", "error", "log", "startup", "background", "sandbox", "closure", "fuse"]),
    (
        "cli",
        &[
            "values",
            "mounts",
            "cdi",
            "sys",
            "error",
            "log",
            "panics",
            "startup",
            "background",
            "sandbox",
            "store",
            "closure",
            "protocol",
            "kernel",
            "server",
            "monitor",
            "run",
        ],
    ),
];

/// The modules of the monitor, each uses only those before it.
const MONITOR: [&str; 31] = [
    "debounce",
    "history",
    "memory",
    "poll",
    "user",
    "probe",
    "mount",
    "settings",
    "listers",
    "missed",
    "registrar",
    "state",
    "error",
    "child",
    "prefetching",
    "systemd",
    "watch",
    "mounting",
    "opening",
    "store_thread",
    "refusing",
    "supervisor",
    "clients",
    "runtime",
    "ahead",
    "describe",
    "inherit",
    "ending",
    "events",
    "actions",
    "mod",
];

/// The sources below `dir`.
pub(crate) fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// What follows `prefix` in the code of a file, without comments.
fn used(file: &Path, prefix: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split(prefix).skip(1).map(str::to_owned).collect::<Vec<_>>())
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => list.split(['}', ',']).map(|name| name.trim().to_owned()).collect(),
            None => vec![rest],
        })
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        .filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
        .collect()
}

#[test]
fn arrows_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, below) in ROOMS {
        let mut files = Vec::new();
        sources(&src.join(room), &mut files);
        assert!(!files.is_empty(), "{room} is gone");
        for file in files {
            for other in used(&file, "crate::") {
                assert!(other == room || below.contains(&other.as_str()), "{} uses {other}", file.display());
            }
        }
    }
}

#[test]
fn arrows_point_down_in_the_monitor() {
    let monitor = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/monitor");
    for (place, module) in MONITOR.iter().enumerate() {
        let alone = monitor.join(format!("{module}.rs"));
        let file = if alone.exists() { alone } else { monitor.join(module).join("mod.rs") };
        for other in used(&file, "super::").into_iter().chain(used(&file, "crate::monitor::")) {
            let Some(other) = MONITOR.iter().position(|known| *known == other) else { continue };
            assert!(other < place, "{module} uses {}", MONITOR[other]);
        }
    }
    let modules = fs::read_to_string(monitor.join("mod.rs")).unwrap();
    let declared: BTreeSet<&str> = modules
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(declared, MONITOR.into_iter().filter(|module| *module != "mod").collect());
}
