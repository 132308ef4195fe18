//! The order of measuring: rounds, and in each round every scenario on every column in turn.
//!
//! Interleaving is what makes ratios trustworthy: a machine that is slow for a minute is slow for every column.
//! The column that begins moves on by one each round, so that none is always the one after the slowest.
//!
//! A column that learns is shown once for each scenario before all rounds, has the scenario done to it, and is ended
//! like a service. That view's figures are dropped. Each later view of the scenario is given what it has learnt, and
//! learns again, as the views of a container do that is started day after day. The clock of a "first" starts when
//! the play is over, and what the play took stands beside it; where a container starts when its view is ready, as in
//! life, so does the clock.

use std::borrow::Cow;
use std::time::Duration;

use crate::boot::Boot;
use crate::caches::{self, Caches};
use crate::columns::{Column, Ground, Kind, View};
use crate::fault::{Doing, Outcome};
use crate::page_cache::{Filled, PageCache};
use crate::programs::Programs;
use crate::samples::{Sample, Samples, Unit, float};
use crate::scenarios::Scenario;
use crate::timeline::Timeline;
use crate::work::Work;
use crate::{cold, many, neighbour};

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Extent {
    /// Rounds with warm caches.
    pub(crate) rounds: usize,
    /// Rounds from cold disk, which take longest.
    pub(crate) cold_rounds: usize,
    /// Numbers of client threads.
    pub(crate) threads: Vec<usize>,
    /// How often each program is started after the first time.
    pub(crate) starts: usize,
    /// How many views of the closure there are at once in the row of many views.
    pub(crate) views: usize,
    /// What may be done to the machine's caches.
    pub(crate) caches: Caches,
}

/// What is started from each view.
#[derive(Debug)]
pub(crate) struct Starts {
    /// Programs of the closure.
    pub(crate) programs: Programs,
    /// The container, if one can be booted.
    pub(crate) boot: Option<Boot>,
}

/// A run in progress.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// What is measured.
    pub(crate) ground: &'a Ground,
    /// Ways to show it; the first is the bind mount.
    pub(crate) columns: &'a [Column],
    /// What is started from it.
    pub(crate) starts: &'a Starts,
    /// What counts the memory that fills.
    pub(crate) page_cache: &'a PageCache,
    /// How much is measured.
    pub(crate) extent: &'a Extent,
    outcome: Measured,
}

/// What comes of a run.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// The figures.
    pub(crate) samples: Samples,
    /// What a reader has to know about them.
    pub(crate) notes: Vec<String>,
    /// How containers from cold disk filled the page cache, by column.
    pub(crate) timelines: Vec<Timeline>,
}

/// Where a figure belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    /// Which round, from 1.
    pub(crate) round: usize,
    /// Client threads.
    pub(crate) threads: usize,
    /// The column, by its place.
    pub(crate) column: usize,
}

/// Measures everything.
pub(crate) fn measure(
    ground: &Ground,
    columns: &[Column],
    starts: &Starts,
    page_cache: &PageCache,
    extent: &Extent,
) -> Outcome<Measured> {
    let outcome = Measured::default();
    let mut run = Run { ground, columns, starts, page_cache, extent, outcome };
    run.teach()?;
    for round in 1..=extent.rounds {
        eprintln!("bench: round {round} of {}", extent.rounds);
        run.in_turn(round, Run::closure_alone)?;
        for threads in &extent.threads {
            for scenario in Scenario::ALL.into_iter().filter(|scenario| scenario.is_shared()) {
                run.each(round, *threads, scenario)?;
            }
        }
        run.each(round, 1, Scenario::Libraries)?;
        if starts.boot.is_some() {
            run.each(round, 1, Scenario::Boots)?;
            run.in_turn(round, Run::play_alone)?;
        }
    }
    for round in 1..=extent.cold_rounds {
        eprintln!("bench: from cold disk, round {round} of {}", extent.cold_rounds);
        run.in_turn(round, cold::every_byte)?;
        cold::starts(&mut run, round)?;
        neighbour::beside_plays(&mut run, round)?;
    }
    run.in_turn(1, many::views)?;
    run.in_turn(1, Run::census)?;
    Ok(run.outcome)
}

impl Run<'_> {
    /// Does `act` for every column.
    pub(crate) fn in_turn(
        &mut self,
        round: usize,
        act: fn(&mut Self, Cell, &Column) -> Outcome<()>,
    ) -> Outcome<()> {
        let columns = self.columns;
        for place in 0..columns.len() {
            let column = (place + round) % columns.len();
            if let Some(shown) = columns.get(column) {
                act(self, Cell { round, threads: 1, column }, shown)
                    .doing(|| format!("column {}", shown.name))?;
            }
        }
        Ok(())
    }

    /// Lets every column that learns do each scenario once.
    fn teach(&mut self) -> Outcome<()> {
        let columns = self.columns;
        for (column, shown) in columns.iter().enumerate().filter(|(_, shown)| shown.learns()) {
            let cell = Cell { round: 0, threads: 1, column };
            let kept = self.outcome.samples.all.len();
            let mut all = || -> Outcome<()> {
                for scenario in Scenario::ALL {
                    let view = shown.show(self.ground, scenario.name(), "view")?;
                    scenario.run(self, cell, &view)?;
                    let said = view.close()?;
                    self.remark(shown, &said);
                }
                cold::teach(self, cell, shown)?;
                neighbour::teach(self, shown)
            };
            all().doing(|| format!("teaching column {}", shown.name))?;
            self.outcome.samples.all.truncate(kept);
        }
        // Some of it was done from cold disk.
        if columns.iter().any(Column::learns) { self.warm_again() } else { Ok(()) }
    }

    /// Brings back what lies below the columns: the store, and for an overlay its tree, of which it reads more than names.
    fn warm_again(&self) -> Outcome<()> {
        caches::warm(&self.ground.corpus)?;
        for column in self.columns.iter().filter(|column| matches!(column.kind, Kind::Overlay(_))) {
            let view = column.show(self.ground, "warm", "warm-view")?;
            Work::Bytes.run(&self.ground.corpus, &view.root, 1)?;
            view.close()?;
        }
        Ok(())
    }

    /// One scenario on a fresh view of every column.
    fn each(&mut self, round: usize, threads: usize, scenario: Scenario) -> Outcome<()> {
        let columns = self.columns;
        for place in 0..columns.len() {
            let column = (place + round) % columns.len();
            let Some(shown) = columns.get(column) else {
                continue;
            };
            let cell = Cell { round, threads, column };
            self.on_fresh_view(cell, shown, scenario).doing(|| format!("column {}", shown.name))?;
        }
        Ok(())
    }

    fn on_fresh_view(&mut self, cell: Cell, shown: &Column, scenario: Scenario) -> Outcome<()> {
        self.refresh(shown, scenario)?;
        let held = caches::held()?;
        let alone = cell.threads == 1;
        let before = self.page_cache.now()?;
        let view = shown.show(self.ground, scenario.name(), "view")?;
        self.keep(cell, "names cached before", 1, float(held.names), Unit::Count);
        self.keep(cell, "inodes cached before", 1, float(held.inodes), Unit::Count);
        // Whatever is done next: a start is a start.
        self.time(Cell { threads: 1, ..cell }, "set-up", 1, view.set_up);
        if let (true, Scenario::Names, Some(server)) = (alone, scenario, &view.server) {
            let usage = server.usage()?;
            self.memory(cell, "resident at READY", usage.resident);
            self.memory(cell, "private at READY", usage.private);
        }
        if !scenario.at_once() {
            self.await_play(cell, shown, &view, scenario.name())?;
        }
        scenario.run(self, cell, &view)?;
        if alone {
            if let Some(server) = &view.server {
                // One that began beside its user may not have ended with it, and counts whole.
                server.await_end_of_play()?;
                self.time(cell, format!("program's CPU time, {}", scenario.name()), 1, server.spent()?.cpu);
            }
            let added = self.page_cache.now()?.since(before);
            self.memory(cell, format!("memory added, {}", scenario.name()), added.total());
            self.play_told(shown, &view, scenario.name());
        }
        let said = view.close()?;
        self.remark(shown, &said);
        Ok(())
    }

    /// The same ground for every "first": see [`Caches::refresh`].
    fn refresh(&mut self, shown: &Column, scenario: Scenario) -> Outcome<()> {
        self.extent.caches.refresh(self.ground, shown)?;
        if self.extent.caches != Caches::Emptied {
            return Ok(());
        }
        let Starts { programs, boot } = self.starts;
        let bind = Column { name: String::new(), kind: Kind::Bind };
        let corpus = &self.ground.corpus;
        let view = bind.show(self.ground, "warm", "warm-view")?;
        match scenario {
            Scenario::Programs => {
                for program in programs.python.iter().chain(&programs.script) {
                    program.start(corpus, &view.root, 1, 0)?;
                }
            }
            Scenario::Boots => {
                if let Some(boot) = boot {
                    boot.time(corpus, &view.root)?;
                }
            }
            Scenario::Names | Scenario::Contents | Scenario::Libraries => {}
        }
        view.close().map(drop)
    }

    /// Waits until a view has played what it has learnt, and keeps what that took.
    fn await_play(&mut self, cell: Cell, shown: &Column, view: &View, scenario: &str) -> Outcome<()> {
        let (true, Some(server)) = (shown.learns(), &view.server) else {
            return Ok(());
        };
        let before = self.page_cache.now()?;
        let Some(play) = server.await_play()? else {
            self.note_once(format!("`{}` did not play before {scenario}", shown.name));
            return Ok(());
        };
        let Filled { pages, kernel } = self.page_cache.now()?.since(before);
        let cell = Cell { threads: 1, ..cell };
        self.time(cell, play_row(scenario, TIME), 1, play.taken);
        self.time(cell, play_row(scenario, PROCESSORS), 1, play.spent.cpu);
        self.memory(cell, play_row(scenario, DISK), play.spent.disk);
        self.memory(cell, play_row(scenario, PAGES), pages);
        self.memory(cell, play_row(scenario, KERNEL), kernel);
        Ok(())
    }

    /// What a play takes that a container does not wait for: another view is given the same to play, and is not used.
    fn play_alone(&mut self, cell: Cell, column: &Column) -> Outcome<()> {
        let scenario = Scenario::Boots;
        if !column.learns() || !column.lend(scenario.name(), "view", "alone")? {
            return Ok(());
        }
        self.extent.caches.refresh(self.ground, column)?;
        let view = column.show(self.ground, scenario.name(), "alone")?;
        self.await_play(cell, column, &view, scenario.name())?;
        view.close().map(drop)
    }

    /// What the program tells of its play belongs to the notes: once for each scenario, the last time.
    pub(crate) fn play_told(&mut self, shown: &Column, view: &View, scenario: &str) {
        let (true, Some(server)) = (shown.learns(), &view.server) else {
            return;
        };
        let beginning = format!("`{}` told of its play for {scenario}: ", shown.name);
        if let Some(told) = server.told_of_play(&self.ground.program, &view.name) {
            self.outcome.notes.retain(|note| !note.starts_with(&beginning));
            self.outcome.notes.push(beginning + &told);
        }
    }

    /// Keeps a note, but not twice.
    pub(crate) fn note_once(&mut self, note: String) {
        if !self.outcome.notes.contains(&note) {
            self.outcome.notes.push(note);
        }
    }

    /// Keeps how a container filled the page cache.
    pub(crate) fn keep_timeline(&mut self, timeline: Timeline) {
        self.outcome.timelines.push(timeline);
    }

    /// Warnings of the program belong to the figures: passthrough that fell back is not passthrough.
    fn remark(&mut self, column: &Column, said: &str) {
        let known =
            self.outcome.notes.iter().any(|known| known.starts_with(&format!("`{}` said: ", column.name)));
        if said.to_lowercase().contains("warn") && !known {
            self.outcome.notes.push(format!("`{}` said: {said}", column.name));
        }
    }

    /// What the program was asked in each scenario, by its own count, which it tells at its end if made talkative.
    fn census(&mut self, cell: Cell, column: &Column) -> Outcome<()> {
        let talkative = |arguments: &[String]| -> Vec<String> {
            arguments.iter().cloned().chain(["-v".to_owned()]).collect()
        };
        let kind = match &column.kind {
            Kind::Program(arguments) => Kind::Program(talkative(arguments)),
            Kind::Learnt { arguments, profiles } => {
                Kind::Learnt { arguments: talkative(arguments), profiles: profiles.clone() }
            }
            Kind::Bind | Kind::Farm | Kind::Overlay(_) | Kind::Peer(_) => return Ok(()),
        };
        let talkative = Column { name: column.name.clone(), kind };
        for (scenario, works) in [
            (Scenario::Names, [Work::Lstat, Work::OpenSmall, Work::Missing].as_slice()),
            (Scenario::Contents, &[Work::List, Work::Bytes]),
        ] {
            let view = talkative.show(self.ground, scenario.name(), "view")?;
            if let (true, Some(server)) = (column.learns(), &view.server) {
                server.await_play()?;
            }
            for work in works {
                work.run(&self.ground.corpus, &view.root, cell.threads)?;
                work.run(&self.ground.corpus, &view.root, cell.threads)?;
            }
            if let Some(counts) = requests(&view.close()?) {
                self.outcome.notes.push(format!(
                    "requests that `{}` saw for {}: {counts}",
                    column.name,
                    scenario.name()
                ));
            }
        }
        Ok(())
    }

    /// Keeps a figure.
    pub(crate) fn keep(
        &mut self,
        cell: Cell,
        row: impl Into<Cow<'static, str>>,
        operations: usize,
        value: f64,
        unit: Unit,
    ) {
        let Cell { round, threads, column } = cell;
        let row = row.into();
        self.outcome.samples.all.push(Sample { round, threads, row, column, operations, value, unit });
    }

    /// Keeps a time.
    pub(crate) fn time(
        &mut self,
        cell: Cell,
        row: impl Into<Cow<'static, str>>,
        operations: usize,
        taken: Duration,
    ) {
        self.keep(cell, row, operations, taken.as_secs_f64(), Unit::Seconds);
    }

    /// Keeps a number of bytes.
    pub(crate) fn memory(&mut self, cell: Cell, row: impl Into<Cow<'static, str>>, bytes: u64) {
        self.keep(cell, row, 1, float(bytes), Unit::Bytes);
    }

    /// Does something to every name of a list, and keeps the time.
    pub(crate) fn work(&mut self, cell: Cell, row: &'static str, work: Work, view: &View) -> Outcome<()> {
        let corpus = &self.ground.corpus;
        let operations = work.operations(corpus);
        if operations > 0 {
            let taken = work.run(corpus, &view.root, cell.threads).doing(|| row.to_owned())?;
            self.time(cell, row, operations, taken);
        }
        Ok(())
    }

    /// What asking the store for the closure takes without any mount: the part of the start that is not ours.
    fn closure_alone(&mut self, cell: Cell, column: &Column) -> Outcome<()> {
        if let Kind::Program(_) | Kind::Learnt { .. } = &column.kind {
            let taken = crate::programs::dump_closure(self.ground)?;
            self.time(cell, "--dump-closure", 1, taken);
        }
        Ok(())
    }
}

/// From READY to the end of the player.
pub(crate) const TIME: &str = "time";
/// Processor time of the whole program.
pub(crate) const PROCESSORS: &str = "processor time";
/// What it read from disk.
pub(crate) const DISK: &str = "read from disk";
/// Page cache that it filled.
pub(crate) const PAGES: &str = "page cache";
/// The kernel's memory that it filled: names and inodes.
pub(crate) const KERNEL: &str = "kernel memory";

/// The row of a figure of the play before a scenario.
pub(crate) fn play_row(scenario: &str, figure: &str) -> String {
    format!("play for {scenario}: {figure}")
}

/// The counts in a line such as `… requests=lookup=12 read=3 nodes=7`: words of the form `kind=number`.
fn requests(said: &str) -> Option<String> {
    let (_, after) = said.rsplit_once("requests=")?;
    let counts: Vec<&str> = after
        .trim_start_matches('"')
        .split_whitespace()
        .map(|word| word.trim_end_matches('"'))
        .take_while(|word| word.split_once('=').is_some_and(|(_, count)| count.parse::<u64>().is_ok()))
        .filter(|word| !word.ends_with("=0") && !word.starts_with("nodes="))
        .collect();
    (!counts.is_empty()).then(|| counts.join(" "))
}
