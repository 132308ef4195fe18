//! How long the commands take that tell of a closure, beside Nix's own that tell something like it.
//!
//! On a store of its own with two systems of 5,000 store paths (`--paths N`), most of which they share. The measure is what a command
//! takes longer than `--dump-closure`, which does nothing but ask the store. Each command runs once before it is timed.
//!
//!     cargo bench --bench closures -- [--paths N] [--rounds N]

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a tool that ends with the first thing that is wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nix-store-fs");
/// Paths that a member refers to, at most.
const REFERENCES: u64 = 16;
/// One in so many belongs to one system only.
const OWN: usize = 20;

/// xorshift64*, with one seed: the store is the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (mut paths, mut rounds) = (5000, 11);
    for pair in arguments.chunks(2) {
        let number = pair.get(1).and_then(|number| number.parse().ok());
        match (pair[0].as_str(), number) {
            ("--paths", Some(number)) => paths = number,
            ("--rounds", Some(number)) => rounds = number,
            _ => {
                eprintln!("usage: cargo bench --bench closures -- [--paths N] [--rounds N]");
                std::process::exit(2);
            }
        }
    }
    let dir = tempfile::tempdir().expect("a directory for the store");
    let store = Store::new(dir.path(), paths);
    let uri = store.uri.as_str();
    let [old, new] = &store.systems;
    let last = store.last.as_str();
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).args(["--store", uri]);
        command
    };
    let nix = |arguments: &[&str]| {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command", "--store", uri]).args(arguments);
        command.env_remove("LD_LIBRARY_PATH");
        command
    };
    let dump = |format: &str| ours(&["--system", new, &format!("--dump-closure={format}")]);
    let mut commands = vec![("--dump-closure".to_owned(), dump("text"))];
    for format in formats() {
        commands.push((format!("--dump-closure={format}"), dump(&format)));
    }
    commands.extend([
        ("why".to_owned(), ours(&["why", last, "--system", new])),
        ("why --all".to_owned(), ours(&["why", last, "--system", new, "--all"])),
        ("why --precise".to_owned(), ours(&["why", last, "--system", new, "--precise"])),
        ("diff".to_owned(), ours(&["diff", old, new])),
        ("nix path-info -r --json".to_owned(), nix(&["path-info", "-r", "--json", new])),
        ("nix why-depends".to_owned(), nix(&["why-depends", new, last])),
        ("nix why-depends --all".to_owned(), nix(&["why-depends", "--all", new, last])),
        ("nix why-depends --precise".to_owned(), nix(&["why-depends", "--precise", new, last])),
        ("nix store diff-closures".to_owned(), nix(&["store", "diff-closures", old, new])),
    ]);
    let mut table = String::from(
        "| command | ms, median | least | more than --dump-closure | output |\n|---|---|---|---|---|\n",
    );
    let mut least = None;
    for (name, mut command) in commands {
        let (median, fastest, bytes) = measure(&mut command, rounds);
        let base = *least.get_or_insert(median);
        let more = median.saturating_sub(base);
        let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
        let _ = writeln!(
            table,
            "| `{name}` | {} | {} | {} | {} KB |",
            ms(median),
            ms(fastest),
            ms(more),
            bytes / 1000
        );
    }
    println!("{paths} store paths, {rounds} rounds\n\n{table}");
}

/// The formats that the program has, but the first one.
fn formats() -> Vec<String> {
    let help = Command::new(PROGRAM).arg("-h").output().expect("the program's help").stdout;
    let help = String::from_utf8(help).expect("text").split_whitespace().collect::<Vec<_>>().join(" ");
    let after = help.split("--dump-closure[=<FORMAT>]").last().expect("the option");
    let values =
        after.split("[possible values: ").nth(1).and_then(|text| text.split(']').next()).expect("values");
    values.split(", ").filter(|format| *format != "text").map(str::to_owned).collect()
}

fn measure(command: &mut Command, rounds: usize) -> (Duration, Duration, usize) {
    let mut run = || {
        let begun = Instant::now();
        let output = command.stderr(Stdio::piped()).output().expect("a command");
        let took = begun.elapsed();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        (took, output.stdout.len())
    };
    let (_, bytes) = run();
    let mut times: Vec<Duration> = (0..rounds.max(1)).map(|_| run().0).collect();
    times.sort();
    (times[times.len() / 2], times[0], bytes)
}

struct Store {
    uri: String,
    systems: [String; 2],
    /// What everything leads to.
    last: String,
}

impl Store {
    fn new(dir: &Path, count: usize) -> Self {
        let uri = format!("local?root={}", dir.display());
        let mut random = Random(88_172_645_463_325_252);
        let names: Vec<String> = (0..count).map(|n| name(n, &mut random)).collect();
        let full = |n: usize| format!("/nix/store/{}", names[n]);
        nix_store(&uri, &["--init"], "");
        let mut registration = String::new();
        for (n, name) in names.iter().enumerate() {
            let mut references: Vec<usize> = Vec::new();
            if n < 2 {
                // Systems refer to one path in a hundred, of the shared ones and of their own.
                references.extend((2..count).filter(|to| to % 97 == 0 && (to % OWN > 1 || to % OWN == n)));
            }
            // Each is reached: it is what the one before it refers to, of those that it may refer to.
            let belongs =
                |to: usize| to % OWN > 1 || (n % OWN <= 1 && to % OWN == n % OWN) || (n < 2 && to % OWN == n);
            let next = (n.max(1) + 1..count).find(|to| belongs(*to));
            references.extend(next);
            if let Some(next) = next {
                let left = (count - next) as u64;
                let many = random.next() % REFERENCES;
                references.extend(
                    (0..many).map(|_| next + (random.next() % left) as usize).filter(|to| belongs(*to)),
                );
            }
            references.sort_unstable();
            references.dedup();
            let paths: Vec<String> = references.into_iter().map(full).collect();
            let text = paths.join("\n");
            let place = dir.join("nix/store").join(name);
            fs::write(&place, &text).expect("a store path");
            let size = 128 + random.next() % 4_000_000;
            let _ =
                writeln!(registration, "{}\nsha256:{}\n{size}\n\n{}", full(n), "0".repeat(64), paths.len());
            if !paths.is_empty() {
                let _ = writeln!(registration, "{text}");
            }
        }
        nix_store(&uri, &["--load-db"], &registration);
        let last = (0..count).rev().find(|n| n % OWN > 1).expect("a shared path");
        Self { uri, systems: [full(0), full(1)], last: full(last) }
    }
}

fn name(n: usize, random: &mut Random) -> String {
    const DIGITS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let hash: String = (0..32).map(|_| char::from(DIGITS[(random.next() % 32) as usize])).collect();
    match n {
        0 | 1 => format!("{hash}-nixos-system-bench-{n}"),
        _ => format!("{hash}-package{}x-{}.{}", n / 3, random.next() % 30, random.next() % 30),
    }
}

fn nix_store(uri: &str, arguments: &[&str], input: &str) {
    let mut command = Command::new("nix-store");
    command.args(arguments).env("NIX_REMOTE", uri).env_remove("LD_LIBRARY_PATH");
    command.env("NIX_CONFIG", "build-users-group =\nsubstitute = false\n");
    let mut child = command.stdin(Stdio::piped()).spawn().expect("nix-store");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("nix-store reads");
    assert!(child.wait().expect("nix-store").success(), "{command:?}");
}
