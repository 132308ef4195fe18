//! The order of measuring: rounds, and in each round every scenario on every column in turn.
//!
//! Interleaving is what makes ratios trustworthy: a machine that is slow for a minute is slow for every column.
//! The column that begins moves on by one each round, so that none is always the one after the slowest.

use std::path::Path;
use std::time::Duration;

use crate::boot::Boot;
use crate::columns::{Column, Ground, Kind, View};
use crate::corpus::Corpus;
use crate::fault::{Doing, Outcome};
use crate::machine;
use crate::page_cache::PageCache;
use crate::programs::Programs;
use crate::samples::{Sample, Samples, Unit, float};
use crate::work::{self, Work};

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
    /// Whether the machine's caches may be emptied; else only the closure's own files are let go.
    pub(crate) drop_caches: bool,
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
    ground: &'a Ground,
    columns: &'a [Column],
    starts: &'a Starts,
    page_cache: &'a PageCache,
    extent: &'a Extent,
    samples: Samples,
    notes: Vec<String>,
}

/// Where a figure belongs.
#[derive(Clone, Copy)]
struct Cell {
    round: usize,
    threads: usize,
    column: usize,
}

/// Measures everything; returns the figures, and what a reader has to know about them.
pub(crate) fn measure(
    ground: &Ground,
    columns: &[Column],
    starts: &Starts,
    page_cache: &PageCache,
    extent: &Extent,
) -> Outcome<(Samples, Vec<String>)> {
    let mut run =
        Run { ground, columns, starts, page_cache, extent, samples: Samples::default(), notes: Vec::new() };
    for round in 1..=extent.rounds {
        eprintln!("bench: round {round} of {}", extent.rounds);
        run.in_turn(round, Run::closure_alone)?;
        for threads in &extent.threads {
            run.each(round, *threads, Run::names)?;
            run.each(round, *threads, Run::contents)?;
            run.each(round, *threads, Run::programs)?;
        }
        run.each(round, 1, Run::libraries)?;
        if starts.boot.is_some() {
            run.each(round, 1, Run::boots)?;
        }
    }
    for round in 1..=extent.cold_rounds {
        eprintln!("bench: from cold disk, round {round} of {}", extent.cold_rounds);
        run.in_turn(round, Run::cold)?;
    }
    run.in_turn(1, Run::census)?;
    Ok((run.samples, run.notes))
}

impl Run<'_> {
    fn in_turn(&mut self, round: usize, act: fn(&mut Self, Cell, &Column) -> Outcome<()>) -> Outcome<()> {
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

    /// One scenario on a fresh view of every column.
    fn each(
        &mut self,
        round: usize,
        threads: usize,
        scenario: fn(&mut Self, Cell, &View) -> Outcome<()>,
    ) -> Outcome<()> {
        let columns = self.columns;
        for place in 0..columns.len() {
            let column = (place + round) % columns.len();
            let Some(shown) = columns.get(column) else {
                continue;
            };
            let cell = Cell { round, threads, column };
            let mut on_fresh_view = || -> Outcome<()> {
                let view = shown.show(self.ground, "view")?;
                scenario(self, cell, &view)?;
                let said = view.close()?;
                self.remark(shown, &said);
                Ok(())
            };
            on_fresh_view().doing(|| format!("column {}", shown.name))?;
        }
        Ok(())
    }

    /// Warnings of the program belong to the figures: passthrough that fell back is not passthrough.
    fn remark(&mut self, column: &Column, said: &str) {
        let known = self.notes.iter().any(|known| known.starts_with(&format!("`{}` said: ", column.name)));
        if said.to_lowercase().contains("warn") && !known {
            self.notes.push(format!("`{}` said: {said}", column.name));
        }
    }

    /// What the program was asked in each scenario, by its own count, which it tells at its end if made talkative.
    fn census(&mut self, cell: Cell, column: &Column) -> Outcome<()> {
        let Kind::Program(arguments) = &column.kind else {
            return Ok(());
        };
        let arguments = arguments.iter().cloned().chain(["-v".to_owned()]).collect();
        let talkative = Column { name: column.name.clone(), kind: Kind::Program(arguments) };
        for (scenario, works) in [
            ("names", [Work::Lstat, Work::OpenSmall, Work::Missing].as_slice()),
            ("contents", &[Work::List, Work::Bytes]),
        ] {
            let view = talkative.show(self.ground, "view")?;
            for work in works {
                work.run(&self.ground.corpus, &view.root, cell.threads)?;
                work.run(&self.ground.corpus, &view.root, cell.threads)?;
            }
            if let Some(counts) = requests(&view.close()?) {
                self.notes.push(format!("requests that `{}` saw for {scenario}: {counts}", column.name));
            }
        }
        Ok(())
    }

    fn keep(&mut self, cell: Cell, row: &'static str, operations: usize, value: f64, unit: Unit) {
        let Cell { round, threads, column } = cell;
        self.samples.all.push(Sample { round, threads, row, column, operations, value, unit });
    }

    fn time(&mut self, cell: Cell, row: &'static str, operations: usize, taken: Duration) {
        self.keep(cell, row, operations, taken.as_secs_f64(), Unit::Seconds);
    }

    fn work(&mut self, cell: Cell, row: &'static str, work: Work, view: &View) -> Outcome<()> {
        let corpus = &self.ground.corpus;
        let operations = work.operations(corpus);
        if operations > 0 {
            let taken = work.run(corpus, &view.root, cell.threads).doing(|| row.to_owned())?;
            self.time(cell, row, operations, taken);
        }
        Ok(())
    }

    fn memory(&mut self, cell: Cell, row: &'static str, bytes: u64) {
        self.keep(cell, row, 1, float(bytes), Unit::Bytes);
    }

    /// Names and small files: what every start-up is made of.
    fn names(&mut self, cell: Cell, view: &View) -> Outcome<()> {
        let alone = cell.threads == 1;
        if alone {
            self.time(cell, "set-up", 1, view.set_up);
            if let Some(server) = &view.server {
                let usage = server.usage()?;
                self.memory(cell, "resident at READY", usage.resident);
                self.memory(cell, "private at READY", usage.private);
                let floor = work::floor(&view.root)?;
                self.time(cell, "FUSE floor", 1, floor);
            }
        }
        self.work(cell, "lstat, first", Work::Lstat, view)?;
        if let (true, Some(server)) = (alone, &view.server) {
            let usage = server.usage()?;
            self.memory(cell, "resident after every lstat", usage.resident);
            self.memory(cell, "private after every lstat", usage.private);
        }
        self.work(cell, "lstat, again", Work::Lstat, view)?;
        self.work(cell, "open small, first", Work::OpenSmall, view)?;
        self.work(cell, "open small, again", Work::OpenSmall, view)?;
        self.work(cell, "missing, first", Work::Missing, view)?;
        self.work(cell, "missing, again", Work::Missing, view)?;
        self.processor_time(cell, view, "server's CPU time, names")
    }

    /// Listing, then every byte.
    fn contents(&mut self, cell: Cell, view: &View) -> Outcome<()> {
        self.work(cell, "list, first", Work::List, view)?;
        self.work(cell, "list, again", Work::List, view)?;
        self.work(cell, "bytes, first", Work::Bytes, view)?;
        self.work(cell, "bytes, again", Work::Bytes, view)?;
        self.work(cell, "large bytes, again", Work::LargeBytes, view)?;
        self.processor_time(cell, view, "server's CPU time, contents")
    }

    fn processor_time(&mut self, cell: Cell, view: &View, row: &'static str) -> Outcome<()> {
        if let (1, Some(server)) = (cell.threads, &view.server) {
            let usage = server.usage()?;
            self.time(cell, row, 1, usage.cpu);
        }
        Ok(())
    }

    fn libraries(&mut self, cell: Cell, view: &View) -> Outcome<()> {
        if let Some(mapped) = self.starts.programs.map_libraries(&self.ground.corpus, &view.root)? {
            self.time(cell, "mmap, first", mapped.count, mapped.first);
            self.time(cell, "mmap, again", mapped.count, mapped.again);
        }
        Ok(())
    }

    fn boots(&mut self, cell: Cell, view: &View) -> Outcome<()> {
        for row in ["boot, first", "boot, again"] {
            if let Some(boot) = &self.starts.boot {
                let taken = boot.time(&self.ground.corpus, &view.root)?;
                self.time(cell, row, 1, taken);
            }
        }
        Ok(())
    }

    fn programs(&mut self, cell: Cell, view: &View) -> Outcome<()> {
        let programs = &self.starts.programs;
        for (first, again, program, starts) in [
            ("python, first", "python, again", &programs.python, self.extent.starts),
            ("script, first", "script, again", &programs.script, cell.threads),
        ] {
            let Some(program) = program else { continue };
            let started = program.start(&self.ground.corpus, &view.root, cell.threads, starts)?;
            self.time(cell, first, 1, started.first);
            self.time(cell, again, starts, started.again);
        }
        Ok(())
    }

    /// What asking the store for the closure takes without any mount: the part of the start that is not ours.
    fn closure_alone(&mut self, cell: Cell, column: &Column) -> Outcome<()> {
        if let Kind::Program(_) = &column.kind {
            let taken = crate::programs::dump_closure(self.ground)?;
            self.time(cell, "--dump-closure", 1, taken);
        }
        Ok(())
    }

    /// Every byte from cold disk; what that leaves in the page cache, and what a second view of the same adds.
    fn cold(&mut self, cell: Cell, column: &Column) -> Outcome<()> {
        let view = column.show(self.ground, "view")?;
        self.cool()?;
        let before = self.page_cache.bytes()?;
        self.work(cell, "bytes, cold disk", Work::Bytes, &view)?;
        let once = self.page_cache.bytes()?;
        self.memory(cell, "page cache added", once.saturating_sub(before));
        if !matches!(column.kind, Kind::Peer(_)) {
            let second = column.show(self.ground, "second-view")?;
            Work::Bytes.run(&self.ground.corpus, &second.root, 1)?;
            self.memory(
                cell,
                "page cache added by a second view",
                self.page_cache.bytes()?.saturating_sub(once),
            );
            second.close()?;
        }
        if let Some(server) = &view.server {
            Work::Lstat.run(&self.ground.corpus, &view.root, 1)?;
            let walked = server.usage()?.private;
            self.cool()?;
            // FORGET has no answer to wait for, and requests overtake it: the server is asked when it has caught up.
            settle(&view.root)?;
            let usage = server.usage()?;
            self.memory(cell, "private after reading all", walked);
            self.memory(cell, "private after the kernel forgot", usage.private);
        }
        view.close().map(drop)
    }

    fn cool(&self) -> Outcome<()> {
        if self.extent.drop_caches { machine::drop_caches() } else { let_go(&self.ground.corpus) }
    }
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

/// Takes the pages of the closure's files out of the cache, and leaves all else on the machine alone.
fn let_go(corpus: &Corpus) -> Outcome<()> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    for name in &corpus.files {
        let path = corpus.physical.join(Path::new(OsStr::from_bytes(name.to_bytes())));
        let doing = || format!("letting go of {}", path.display());
        let file = std::fs::File::open(&path).doing(doing)?;
        rustix::fs::fdatasync(&file).doing(doing)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).doing(doing)?;
    }
    Ok(())
}

fn settle(root: &Path) -> Outcome<()> {
    for _ in 0..3 {
        work::floor(root)?;
    }
    Ok(())
}
