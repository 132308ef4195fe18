//! Somebody else on the machine, who reads files from disk and looks names up, while a view plays what it has learnt.
//!
//! The neighbour works in short turns: a few files from disk, and some names that are in the kernel's caches, timed
//! apart. It takes as many turns as fit into the play of a view on a host with empty caches, and some before the view
//! is started and some after the play, which are what the others are compared with. Of each round, the median turn is
//! kept. Its files are its own, their pages are dropped before each turn, off the clock, and all were read once before,
//! so that no turn is the first.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::caches;
use crate::columns::Column;
use crate::fault::{Doing, Outcome};
use crate::rounds::{Cell, Run};
use crate::samples::{self, Unit};
use crate::work::Work;

const FILES: usize = 400;
const FILE_SIZE: usize = 64 * 1024;
/// What one turn reads, and how many names it looks up: some milliseconds of each where the disk is a fast one.
const FILES_IN_TURN: usize = 16;
const NAMES_IN_TURN: usize = 1_000;
const TURNS_ALONE: usize = 30;
const SCENARIO: &str = "neighbour";

/// A file from disk, by itself.
pub(crate) const READ_ALONE: &str = "neighbour's file from disk";
/// A file from disk, beside a play.
pub(crate) const READ_BESIDE: &str = "neighbour's file from disk, beside a play";
/// A name, by itself.
pub(crate) const NAME_ALONE: &str = "neighbour's look-up";
/// A name, beside a play.
pub(crate) const NAME_BESIDE: &str = "neighbour's look-up, beside a play";

/// The neighbour.
struct Neighbour {
    files: Vec<PathBuf>,
    next: usize,
    buffer: Vec<u8>,
}

/// Seconds that one turn took: its files, and its names.
#[derive(Clone, Copy)]
struct Turn {
    reading: f64,
    looking: f64,
}

/// Lets a column learn what it will play: names and small files of the whole closure, so that the play is long.
pub(crate) fn teach(run: &Run<'_>, column: &Column) -> Outcome<()> {
    let view = column.show(run.ground, SCENARIO, "view")?;
    for work in [Work::Lstat, Work::OpenSmall] {
        work.run(&run.ground.corpus, &view.root, 1)?;
    }
    view.close().map(drop)
}

/// The neighbour beside each column that learns.
pub(crate) fn beside_plays(run: &mut Run<'_>, round: usize) -> Outcome<()> {
    if !run.columns.iter().any(Column::learns) {
        return Ok(());
    }
    let mut neighbour = Neighbour::settle(&run.ground.work.join("neighbour"))?;
    let columns = run.columns;
    for (column, shown) in columns.iter().enumerate().filter(|(_, shown)| shown.learns()) {
        let cell = Cell { round, threads: 1, column };
        beside(run, cell, shown, &mut neighbour).doing(|| format!("column {}", shown.name))?;
    }
    Ok(())
}

fn beside(run: &mut Run<'_>, cell: Cell, column: &Column, neighbour: &mut Neighbour) -> Outcome<()> {
    // Each round plays the same: what a view that nobody uses learns would be forgotten.
    column.lend(SCENARIO, "view", "beside")?;
    run.extent.caches.cool(&run.ground.corpus)?;
    neighbour.turns(FILES / FILES_IN_TURN)?;
    let mut alone = neighbour.turns(TURNS_ALONE)?;
    let view = column.show(run.ground, SCENARIO, "beside")?;
    let mut beside = Vec::new();
    if let Some(player) = view.server.as_ref().map(|server| server.player()).transpose()?.flatten() {
        loop {
            let turn = neighbour.turn()?;
            // The play was there for all of the turn.
            if player.has_ended()? {
                break;
            }
            beside.push(turn);
        }
    }
    if let Some(server) = &view.server {
        server.await_end_of_play()?;
    }
    run.play_told(column, &view, SCENARIO);
    alone.extend(neighbour.turns(TURNS_ALONE)?);
    view.close()?;
    if beside.is_empty() {
        run.note_once(format!("`{}` played for no whole turn of the neighbour", column.name));
        return Ok(());
    }
    for (turns, read, name) in [(&alone, READ_ALONE, NAME_ALONE), (&beside, READ_BESIDE, NAME_BESIDE)] {
        // A play has thousands of turns.
        for (row, operations, took) in [
            (read, FILES_IN_TURN, turns.iter().map(|turn| turn.reading).collect()),
            (name, NAMES_IN_TURN, turns.iter().map(|turn| turn.looking).collect()),
        ] {
            if let Some(middle) = samples::median(took) {
                run.keep(cell, row, operations, middle, Unit::Seconds);
            }
        }
    }
    Ok(())
}

impl Neighbour {
    /// Writes the neighbour's files.
    fn settle(directory: &Path) -> Outcome<Self> {
        let doing = || format!("writing the neighbour's files in {}", directory.display());
        fs::create_dir_all(directory).doing(doing)?;
        let mut files = Vec::with_capacity(FILES);
        for number in 0..FILES {
            let path = directory.join(format!("file-{number}"));
            if !path.exists() {
                fs::write(&path, number.to_ne_bytes().repeat(FILE_SIZE / size_of::<usize>())).doing(doing)?;
            }
            files.push(path);
        }
        Ok(Self { files, next: 0, buffer: vec![0; FILE_SIZE] })
    }

    fn turns(&mut self, count: usize) -> Outcome<Vec<Turn>> {
        (0..count).map(|_| self.turn()).collect()
    }

    fn turn(&mut self) -> Outcome<Turn> {
        let doing = || "the neighbour's turn".to_owned();
        let wanted: Vec<PathBuf> =
            (0..FILES_IN_TURN).filter_map(|add| self.files.get((self.next + add) % FILES).cloned()).collect();
        self.next = (self.next + FILES_IN_TURN) % FILES;
        for path in &wanted {
            caches::drop_pages_of(path)?;
        }
        let start = Instant::now();
        for path in &wanted {
            use std::io::Read as _;
            fs::File::open(path).and_then(|mut file| file.read_exact(&mut self.buffer)).doing(doing)?;
        }
        let reading = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for path in self.files.iter().cycle().take(NAMES_IN_TURN) {
            rustix::fs::lstat(path).doing(doing)?;
        }
        Ok(Turn { reading, looking: start.elapsed().as_secs_f64() })
    }
}
