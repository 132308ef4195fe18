//! What somebody inside a view with `--report` learns about the host from the time that look-ups take.
//!
//! For each name, one that the host has outside of the view or one that nobody has, in random order: look it up, then time the look-ups
//! after it. If asking the disk about the first kind held anybody up, the two distributions would differ. The figure for that is the
//! probability that a sample of the first kind is larger than one of the second: 0.5 when nothing can be told from it.
//!
//!     nix-store-fs --report --system SYSTEM MOUNTPOINT &
//!     cargo bench --bench report -- MOUNTPOINT /nix/store

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a tool that ends with the first thing that is wrong"
)]

#[path = "shared/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use random::Random;

/// Look-ups right after the first one.
const NEXT: usize = 4;
/// Look-ups after those, and the pause before each: together longer than the longest random delay.
const LATER: usize = 60;
const PAUSE: Duration = Duration::from_millis(1);
/// Names of one kind at most.
const SAMPLES: usize = 400;

/// What was measured behind one name.
struct Sample {
    next: f64,
    longest: f64,
    all: f64,
}

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|word| word != "--bench").collect();
    let [view, store, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: cargo bench --bench report -- MOUNTPOINT STORE [SEED]");
        std::process::exit(2);
    };
    let seed = rest.first().and_then(|seed| seed.to_str()?.parse().ok()).unwrap_or(88_172_645_463_325_252);
    let mut random = Random(seed);
    let (view, names) = (PathBuf::from(view), |dir: &Path| -> BTreeSet<OsString> {
        let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        entries.map(|entry| entry.expect("an entry").file_name()).collect()
    });
    let (shown, all) = (names(&view), names(Path::new(store)));
    let mut hidden: Vec<PathBuf> =
        all.difference(&shown).filter(|name| name.len() > 33).map(|name| view.join(name)).collect();
    assert!(!hidden.is_empty(), "the store has nothing that the view has not");
    shuffle(&mut hidden, &mut random);
    hidden.truncate(SAMPLES);
    let mut asked: Vec<(bool, PathBuf)> = hidden.into_iter().map(|path| (true, path)).collect();
    let made_up: Vec<_> = asked.iter().map(|_| (false, view.join(name(&mut random)))).collect();
    asked.extend(made_up);
    shuffle(&mut asked, &mut random);
    let (mut there, mut nowhere) = (Vec::new(), Vec::new());
    for (is_there, path) in asked {
        let sample = sample(&view, &path, &mut random);
        if is_there { there.push(sample) } else { nowhere.push(sample) }
    }
    println!("{} names of each kind, seed {seed}", there.len());
    println!(
        "| | kind of name | 5 % | 25 % | 50 % | 75 % | 95 % | P(there > nowhere) |\n|---|---|---:|---:|---:|---:|---:|---:|"
    );
    show(&format!("the {NEXT} look-ups after it, us"), &there, &nowhere, |sample| sample.next);
    show(&format!("{LATER} more, {PAUSE:?} apart, us"), &there, &nowhere, |sample| sample.all);
    show("the longest of these, us", &there, &nowhere, |sample| sample.longest);
}

/// The name of a store path that nobody has.
fn name(random: &mut Random) -> String {
    random.hash() + "-name"
}

fn shuffle<T>(all: &mut [T], random: &mut Random) {
    for at in (1..all.len()).rev() {
        all.swap(at, (random.next() % (at as u64 + 1)) as usize);
    }
}

fn sample(view: &Path, path: &Path, random: &mut Random) -> Sample {
    let next: Vec<PathBuf> = (0..NEXT).map(|_| view.join(name(random))).collect();
    assert!(path.symlink_metadata().is_err(), "'{}' is in the view", path.display());
    let begun = Instant::now();
    for path in &next {
        let _absent = path.symlink_metadata();
    }
    let next = begun.elapsed();
    let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..LATER {
        // Asked faster than the monitor looks into them, questions would be dropped, those of interest as well.
        std::thread::sleep(PAUSE);
        let path = view.join(name(random));
        let before = Instant::now();
        let _absent = path.symlink_metadata();
        let taken = before.elapsed();
        (all, longest) = (all + taken, longest.max(taken));
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Sample { next: us(next), longest: us(longest), all: us(all) }
}

fn show(what: &str, there: &[Sample], nowhere: &[Sample], of: fn(&Sample) -> f64) {
    let sorted = |samples: &[Sample]| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (there, nowhere) = (sorted(there), sorted(nowhere));
    let larger: f64 = there
        .iter()
        .map(|value| {
            let below = nowhere.partition_point(|other| other < value);
            let equal = nowhere.partition_point(|other| other <= value) - below;
            below as f64 + equal as f64 / 2.0
        })
        .sum();
    let share = larger / (there.len() * nowhere.len()) as f64;
    for (kind, values, share) in
        [("the host has it", &there, format!("{share:.3}")), ("nobody has it", &nowhere, String::new())]
    {
        let at = |percent: usize| values[(values.len() - 1) * percent / 100];
        println!(
            "| {what} | {kind} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {share} |",
            at(5),
            at(25),
            at(50),
            at(75),
            at(95)
        );
    }
}
