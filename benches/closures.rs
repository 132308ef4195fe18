//! How long the commands take that tell of a closure, beside Nix's own that tell something like it.
//!
//! On a store of its own with two systems of 5,000 store paths (`--paths N`), most of which they share. The measure is what a command
//! takes longer than `--dump-closure`, which does nothing but ask the store. Each command runs once before it is timed, and then once in each
//! round, so that a moment in which the machine is busy is one for all of them. Processor time, also that of a command's own children,
//! is little troubled by others.
//!
//!     scripts/bench --closures [--paths N] [--rounds N]

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a tool that ends with the first thing that is wrong"
)]

#[path = "shared/nix_store.rs"]
mod nix_store;
#[path = "shared/random.rs"]
mod random;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix_store::{load, nix_store};
use random::Random;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nix-store-fs");
/// Paths that a member refers to, at most.
const REFERENCES: u64 = 16;
/// One in so many belongs to one system only.
const OWN: usize = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (mut paths, mut rounds) = (5000, 11);
    for pair in arguments.chunks(2) {
        let number = pair.get(1).and_then(|number| number.parse().ok());
        match (pair[0].as_str(), number) {
            ("--paths", Some(number)) => paths = number,
            ("--rounds", Some(number)) => rounds = number,
            _ => {
                eprintln!("usage: scripts/bench --closures [--paths N] [--rounds N]");
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
    let load = load();
    let mut figures: Vec<Figures> = commands.into_iter().map(Figures::warm).collect();
    for _ in 0..rounds.max(1) {
        figures.iter_mut().for_each(Figures::measure);
    }
    println!("{paths} store paths, {rounds} rounds; load of the machine before: {load}\n");
    println!(
        "| command | ms, median | least | more than --dump-closure | ms of processors, median | output |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
    let base = median(&figures[0].times);
    for Figures { name, times, cpu, bytes, .. } in &figures {
        let (median, cpu) = (median(times), median(cpu));
        let least = times.iter().min().copied().unwrap_or_default();
        let more = (median.as_secs_f64() - base.as_secs_f64()) * 1e3;
        println!(
            "| `{name}` | {} | {} | {more:+.0} | {} | {} KB |",
            ms(median),
            ms(least),
            ms(cpu),
            bytes / 1000
        );
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
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

/// What a command took.
struct Figures {
    name: String,
    command: Command,
    times: Vec<Duration>,
    cpu: Vec<Duration>,
    /// Length of its output.
    bytes: usize,
}

impl Figures {
    /// Runs the command once, untimed.
    fn warm((name, command): (String, Command)) -> Self {
        let mut figures = Self { name, command, times: Vec::new(), cpu: Vec::new(), bytes: 0 };
        figures.measure();
        figures.times.clear();
        figures.cpu.clear();
        figures
    }

    fn measure(&mut self) {
        let (begun, cpu) = (Instant::now(), cpu_of_children());
        let output = self.command.stderr(Stdio::piped()).output().expect("a command");
        self.times.push(begun.elapsed());
        self.cpu.push(cpu_of_children().saturating_sub(cpu));
        self.bytes = output.stdout.len();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {why}", self.command);
    }
}

/// Processor time of all children that were waited for: `cutime` and `cstime` of proc_pid_stat(5).
fn cpu_of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let after = stat.rsplit(')').next().expect("what follows the name");
    // The first of them is the third of all.
    let ticks: u64 =
        after.split_whitespace().skip(13).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
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
        // One seed: the store is the same each time.
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
    let hash = random.hash();
    match n {
        0 | 1 => format!("{hash}-nixos-system-bench-{n}"),
        _ => format!("{hash}-package{}x-{}.{}", n / 3, random.next() % 30, random.next() % 30),
    }
}
