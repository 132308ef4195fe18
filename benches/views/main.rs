//! Measures views of one closure beside each other: a bind mount of the store, this program, and its rivals.
//!
//! Started by `scripts/bench`; what each row and column means is told in `docs/performance.md`. The parts:
//! `corpus` says what is measured, `columns` (with `rivals` and `server`) show it, `work` and `programs` hold the
//! timing loops, `rounds` the order of measuring, with `scenarios`, `cold`, `neighbour` and `many`, on the ground that
//! `caches` prepares; `samples`, `limits`, `report`, `plot` and `timeline` what becomes of it.

mod boot;
mod caches;
mod cold;
mod columns;
mod corpus;
mod fault;
mod limits;
mod machine;
mod many;
mod neighbour;
mod page_cache;
mod plot;
mod programs;
mod report;
mod rivals;
mod rounds;
mod samples;
mod scenarios;
mod server;
mod service;
mod small_store;
mod timeline;
mod work;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sched::CloneFlags;
use rustix::mount::MountPropagationFlags;

use crate::boot::Boot;
use crate::caches::Caches;
use crate::columns::{Column, Ground, Kind};
use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};
use crate::machine::Machine;
use crate::page_cache::PageCache;
use crate::programs::Programs;
use crate::report::Report;
use crate::rounds::{Extent, Measured, Starts};
use crate::samples::{Sample, Samples, Unit};
use crate::timeline::Timeline;

/// Measure views of one closure beside each other.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", bin_name = "scripts/bench")]
struct Arguments {
    /// The closure to measure: a store path or a link to one, such as a system profile.
    #[arg(long, value_name = "PATH", required_unless_present = "quick")]
    system: Option<PathBuf>,
    /// The store that holds it.
    #[arg(long, value_name = "URI")]
    store: Option<String>,
    /// One more column: a directory that shows the same closure.
    #[arg(long, value_name = "NAME=DIR")]
    peer: Vec<String>,
    /// One more column: the program with other arguments.
    #[arg(long, value_name = "NAME=ARGUMENTS")]
    variant: Vec<String>,
    /// Measure these columns only, beside the bind mount.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// One more row: the boot of this container, a root directory whose systemd comes from the closure.
    #[arg(long, value_name = "DIR")]
    boot: Option<PathBuf>,
    /// Rounds with warm caches.
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Rounds from cold disk.
    #[arg(long, value_name = "N", default_value_t = 3)]
    cold_rounds: usize,
    /// Numbers of client threads.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Leave the names that the machine has cached where they are before each "first".
    #[arg(long)]
    keep_names: bool,
    /// Try every step on a small store made on the spot; leaves the machine's caches alone.
    #[arg(long, conflicts_with_all = ["system", "store"])]
    quick: bool,
    /// Where the results go; benches/results if not given, with the build for a quick run.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The program to measure; the one built with this if not given.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// A directory on the store's kind of disk, for mount points and the overlay's metadata.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A directory of this run's own; the mounts in it vanish with the mount namespace.
#[derive(Debug)]
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        // Removing must never reach into a store: nothing is removed while anything is mounted below.
        if rivals::unmount_below(&self.0).is_ok() {
            fs::remove_dir_all(&self.0).ok();
        } else {
            eprintln!("bench: {} stays: something is still mounted in it", self.0.display());
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match words.split_first() {
        Some((first, rest)) if first == programs::LAUNCH => programs::launch(rest),
        Some((first, rest)) if first == boot::CONTAINER => boot::enter(rest),
        _ if !words.iter().any(|word| word == "--bench") => {
            println!("nothing is measured unless asked for: see scripts/bench --help");
            Ok(())
        }
        _ => run(Arguments::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Outcome<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Fault::new("mounting the columns needs root"));
    }
    let executable = std::env::current_exe().doing(|| "finding this program".into())?;
    // It lies in target/PROFILE/deps, the program itself in target/PROFILE.
    let built = executable.ancestors().nth(2).unwrap_or(Path::new("."));
    let out = match &arguments.out {
        Some(out) => out.clone(),
        // What a quick run measures is nothing to keep beside real results.
        None if arguments.quick => built.join("bench-quick"),
        None => PathBuf::from("benches/results"),
    };
    let out = std::path::absolute(&out).doing(|| format!("finding {}", out.display()))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).doing(|| "taking a mount namespace".into())?;
    let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", propagation).doing(|| "keeping mounts to ourselves".into())?;
    let work = Work(arguments.work.join(format!("nix-store-fs-bench-{}", std::process::id())));
    fs::create_dir_all(&work.0).doing(|| format!("creating {}", work.0.display()))?;

    let machine = Machine::look()?;
    let (system, store) = match &arguments.system {
        Some(system) => (system.clone(), arguments.store.clone()),
        None => {
            let (uri, system) = small_store::make(&work.0)?;
            (system, Some(uri))
        }
    };
    let corpus = Corpus::load(&system, store.as_deref())?;
    let ground = Ground {
        corpus,
        program: arguments.program.clone().unwrap_or_else(|| built.join("nix-store-fs")),
        work: work.0.clone(),
    };
    eprintln!(
        "bench: {} entries in {} store paths",
        ground.corpus.entries.len(),
        ground.corpus.members.len()
    );
    let extent = extent(&arguments);
    // Before anything is dropped: the kernel logs that, and may lose the beginning of its log for it.
    let buckets = caches::buckets();
    extent.caches.begin()?;
    caches::warm(&ground.corpus)?;

    let mut notes = Vec::new();
    let page_cache = PageCache::watch(&mut notes);
    let (columns, metadata) = choose(&arguments, &ground, &mut notes)?;
    let starts = {
        let all = Column { name: String::new(), kind: Kind::Bind };
        let view = all.show(&ground, "trial", "view")?;
        let programs = Programs::find(&ground.corpus, &view.root, &mut notes);
        let boot =
            Boot::find(arguments.boot.as_deref(), &ground.corpus, &view.root, &ground.work, &mut notes);
        view.close()?;
        Starts { programs, boot }
    };
    if extent.caches == Caches::LeftAlone {
        notes.push(
            "a quick run: too little to judge by, and `cold disk` means the closure's files alone".into(),
        );
    }
    let measured = rounds::measure(&ground, &columns, &starts, &page_cache, &extent)?;
    let Measured { mut samples, notes: said, timelines } = measured;
    notes.extend(said);
    add_metadata(&mut samples, &columns, metadata);
    let report = Report {
        machine: &machine,
        corpus: &ground.corpus,
        columns: &columns,
        extent: &extent,
        buckets,
        samples: &samples,
        notes: &notes,
    };
    publish(&report, &timelines, &out, arguments.quick)
}

fn extent(arguments: &Arguments) -> Extent {
    if arguments.quick {
        return Extent {
            rounds: 2,
            cold_rounds: 1,
            threads: vec![1, 2],
            starts: 3,
            views: 3,
            caches: Caches::LeftAlone,
        };
    }
    Extent {
        rounds: arguments.rounds.max(1),
        cold_rounds: arguments.cold_rounds,
        threads: arguments.threads.clone(),
        starts: 20,
        views: many::VIEWS,
        caches: if arguments.keep_names { Caches::NamesKept } else { Caches::Emptied },
    }
}

/// The columns that can be shown here, and how long the overlay's metadata took to write.
fn choose(
    arguments: &Arguments,
    ground: &Ground,
    notes: &mut Vec<String>,
) -> Outcome<(Vec<Column>, Option<Duration>)> {
    let words = |words: &str| words.split_whitespace().map(str::to_owned).collect();
    let pair = |text: &String| {
        text.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .ok_or_else(|| Fault::new(format!("{text}: NAME=… is wanted")))
    };
    let tree = ground.work.join("metadata");
    let plays = programs::knows(&ground.program, "--prefetch")?;
    // A view without the option has nothing to switch off.
    let program = |name: String, mut arguments: Vec<String>| {
        let words = arguments.iter().flat_map(|word| word.split('='));
        let mode = words.skip_while(|word| *word != "--prefetch").nth(1);
        let kind = match mode {
            Some("off") => Kind::Program(arguments),
            Some(_) => Kind::Learnt { profiles: ground.work.join("profiles").join(&name), arguments },
            None if plays => {
                arguments.extend(["--prefetch".to_owned(), "off".to_owned()]);
                Kind::Program(arguments)
            }
            None => Kind::Program(arguments),
        };
        Column { name, kind }
    };
    let mut wanted = vec![program("cached".into(), words("--io cached"))];
    if plays {
        wanted.push(program("learnt".into(), words("--io cached --prefetch auto")));
    } else {
        notes.push("`learnt` is left out: the program has no --prefetch".into());
    }
    wanted.extend([
        program("passthrough".into(), words("--io passthrough")),
        Column { name: "farm".into(), kind: Kind::Farm },
        Column { name: "overlay".into(), kind: Kind::Overlay(tree.clone()) },
    ]);
    for variant in &arguments.variant {
        let (name, value) = pair(variant)?;
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+ ".contains(&byte)) {
            return Err(Fault::new(format!("{variant}: a variant's name has letters, digits and -_.+ only")));
        }
        wanted.push(program(name, words(&value)));
    }
    for peer in &arguments.peer {
        let (name, value) = pair(peer)?;
        wanted.push(Column { name, kind: Kind::Peer(PathBuf::from(value)) });
    }
    if !arguments.only.is_empty() {
        let is_known = |name: &&String| wanted.iter().any(|column| column.name == **name);
        if let Some(name) = arguments.only.iter().find(|name| !is_known(name)) {
            let known: Vec<&str> = wanted.iter().map(|column| column.name.as_str()).collect();
            return Err(Fault::new(format!("--only {name}: the columns are {}", known.join(", "))));
        }
        wanted.retain(|column| arguments.only.contains(&column.name));
    }
    for column in &wanted {
        if let Kind::Learnt { profiles, .. } = &column.kind {
            // As systemd makes it (CacheDirectoryMode=0700).
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(profiles).doing(|| format!("creating {}", profiles.display()))?;
        }
    }
    let mut metadata = None;
    if wanted.iter().any(|column| matches!(column.kind, Kind::Overlay(_))) {
        let start = Instant::now();
        match rivals::metadata_tree(&ground.corpus, &tree) {
            Ok(()) => metadata = Some(start.elapsed()),
            // The trial below fails as well, and leaves the column out.
            Err(fault) => notes.push(format!("the overlay's metadata could not be written: {fault}")),
        }
    }
    let mut columns = vec![Column { name: "bind".into(), kind: Kind::Bind }];
    for column in wanted {
        match try_out(&column, ground) {
            Ok(()) => columns.push(column),
            Err(fault) if matches!(column.kind, Kind::Program(_) | Kind::Learnt { .. } | Kind::Peer(_)) => {
                return Err(fault);
            }
            Err(fault) => notes.push(format!("`{}` is left out: {fault}", column.name)),
        }
    }
    Ok((columns, metadata))
}

/// Shows a column once, and lets it prove that it shows the whole closure.
fn try_out(column: &Column, ground: &Ground) -> Outcome<()> {
    let look = || {
        let view = column.show(ground, "trial", "view")?;
        work::Work::List.run(&ground.corpus, &view.root, 1)?;
        work::Work::Bytes.run(&ground.corpus, &view.root, 2)?;
        view.close().map(drop)
    };
    look().doing(|| format!("column {}", column.name))
}

fn add_metadata(samples: &mut Samples, columns: &[Column], taken: Option<Duration>) {
    let overlay = columns.iter().position(|column| matches!(column.kind, Kind::Overlay(_)));
    if let (Some(column), Some(taken)) = (overlay, taken) {
        let value = taken.as_secs_f64();
        let row = "metadata tree".into();
        samples.all.push(Sample {
            round: 1,
            threads: 1,
            row,
            column,
            operations: 1,
            value,
            unit: Unit::Seconds,
        });
    }
}

/// Prints the tables, and keeps them with the raw figures and the plot under one name.
fn publish(report: &Report<'_>, timelines: &[Timeline], out: &Path, quick: bool) -> Outcome<()> {
    let Machine { date, kernel, cpu, .. } = report.machine;
    let plain = |text: &str| -> String {
        let letters = text.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { ' ' });
        letters.collect::<String>().to_lowercase().split_whitespace().collect::<Vec<_>>().join("-")
    };
    let quick = if quick { "quick-" } else { "" };
    let name = format!("{quick}{date}-linux-{}-{}", kernel.split('-').next().unwrap_or(kernel), plain(cpu));
    fs::create_dir_all(out).doing(|| format!("creating {}", out.display()))?;
    let mut markdown = format!("{}\n![The table as bars]({name}.svg)\n", report.markdown());
    if let Some(picture) = timeline::svg(report, timelines) {
        let path = out.join(format!("{name}-boot.svg"));
        fs::write(&path, picture).doing(|| format!("writing {}", path.display()))?;
        writeln!(markdown, "\n![How a container from cold disk fills the page cache]({name}-boot.svg)").ok();
    }
    for (ending, text) in [("csv", report.csv()), ("md", markdown), ("svg", plot::svg(report))] {
        let path = out.join(format!("{name}.{ending}"));
        fs::write(&path, text).doing(|| format!("writing {}", path.display()))?;
    }
    print!("{}", report.markdown());
    eprintln!("bench: kept as {}", out.join(format!("{name}.{{csv,md,svg}}")).display());
    Ok(())
}
