//! The scenarios with warm caches: what is done to one fresh view, in which rows.

use crate::columns::View;
use crate::fault::{Doing, Outcome};
use crate::rounds::{Cell, Run};
use crate::work::{self, Work};

/// What is done to one view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Names and small files: what every start-up is made of.
    Names,
    /// Listing, then every byte.
    Contents,
    /// Python and a script.
    Programs,
    /// Shared libraries are mapped.
    Libraries,
    /// A container is booted, twice.
    Boots,
}

impl Scenario {
    /// All, in the order of measuring.
    pub(crate) const ALL: [Self; 5] =
        [Self::Names, Self::Contents, Self::Programs, Self::Libraries, Self::Boots];

    /// As in the rows that are named by it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Contents => "contents",
            Self::Programs => "programs",
            Self::Libraries => "libraries",
            Self::Boots => "boots",
        }
    }

    /// Whether it begins when the view is ready, as a container does, and not when what was learnt has been played.
    pub(crate) fn at_once(self) -> bool {
        self == Self::Boots
    }

    /// Whether it is done by several threads as well.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::Names | Self::Contents | Self::Programs)
    }

    /// Does it to `view`.
    pub(crate) fn run(self, run: &mut Run<'_>, cell: Cell, view: &View) -> Outcome<()> {
        match self {
            Self::Names => names(run, cell, view),
            Self::Contents => contents(run, cell, view),
            Self::Programs => programs(run, cell, view),
            Self::Libraries => libraries(run, cell, view),
            Self::Boots => boots(run, cell, view),
        }
    }
}

fn names(run: &mut Run<'_>, cell: Cell, view: &View) -> Outcome<()> {
    let alone = cell.threads == 1;
    if let (true, Some(_)) = (alone, &view.server) {
        let floor = work::floor(&view.root)?;
        run.time(cell, "FUSE floor", 1, floor);
    }
    run.work(cell, "lstat, first", Work::Lstat, view)?;
    if let (true, Some(server)) = (alone, &view.server) {
        let usage = server.usage()?;
        run.memory(cell, "resident after every lstat", usage.resident);
        run.memory(cell, "private after every lstat", usage.private);
    }
    run.work(cell, "lstat, again", Work::Lstat, view)?;
    run.work(cell, "open small, first", Work::OpenSmall, view)?;
    run.work(cell, "open small, again", Work::OpenSmall, view)?;
    run.work(cell, "missing, first", Work::Missing, view)?;
    run.work(cell, "missing, again", Work::Missing, view)
}

fn contents(run: &mut Run<'_>, cell: Cell, view: &View) -> Outcome<()> {
    run.work(cell, "list, first", Work::List, view)?;
    run.work(cell, "list, again", Work::List, view)?;
    run.work(cell, "bytes, first", Work::Bytes, view)?;
    run.work(cell, "bytes, again", Work::Bytes, view)?;
    run.work(cell, "large bytes, again", Work::LargeBytes, view)
}

fn programs(run: &mut Run<'_>, cell: Cell, view: &View) -> Outcome<()> {
    let programs = &run.starts.programs;
    for (first, again, program, starts) in [
        ("python, first", "python, again", &programs.python, run.extent.starts),
        ("script, first", "script, again", &programs.script, cell.threads),
    ] {
        let Some(program) = program else { continue };
        let started = program.start(&run.ground.corpus, &view.root, cell.threads, starts)?;
        run.time(cell, first, 1, started.first);
        run.time(cell, again, starts, started.again);
    }
    Ok(())
}

fn libraries(run: &mut Run<'_>, cell: Cell, view: &View) -> Outcome<()> {
    let mapped = run.starts.programs.map_libraries(&run.ground.corpus, &view.root);
    if let Some(mapped) = mapped.doing(|| "mmap".into())? {
        run.time(cell, "mmap, first", mapped.count, mapped.first);
        run.time(cell, "mmap, again", mapped.count, mapped.again);
    }
    Ok(())
}

fn boots(run: &mut Run<'_>, cell: Cell, view: &View) -> Outcome<()> {
    for row in ["boot, first", "boot, again"] {
        if let Some(boot) = &run.starts.boot {
            let taken = boot.time(&run.ground.corpus, &view.root)?;
            run.time(cell, row, 1, taken);
        }
    }
    Ok(())
}
