//! From cold disk: every byte of the closure, and the start of a program or a container; then a second one.
//!
//! The order, for starts: caches are emptied, the view is started, and what is started from it begins when the view
//! is ready. So whatever a view plays, it plays beside its user, and what it costs is in the user's time. The time
//! with the start of the view is a row of its own: a bind mount is there at once, and a program has to be read from
//! disk like all else. Then, with the first view still there, a second one is shown, and the same is started from it:
//! the second container of a host, whose store is warm and whose view is not.

use std::time::{Duration, Instant};

use crate::columns::{Column, View};
use crate::fault::Outcome;
use crate::machine;
use crate::programs::{self, Program};
use crate::rounds::{Cell, Run};
use crate::timeline::{self, Timeline};
use crate::work::{self, Work};

/// What is started from cold disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Python,
    Script,
    Boot,
}

/// The rows of one start.
#[derive(Clone, Copy, Debug)]
struct Rows {
    scenario: &'static str,
    cold: &'static str,
    with_view: &'static str,
    second: &'static str,
    disk: &'static str,
    processors: &'static str,
}

impl Start {
    const ALL: [Self; 3] = [Self::Python, Self::Script, Self::Boot];

    fn rows(self) -> Rows {
        match self {
            Self::Python => Rows {
                scenario: "python-cold",
                cold: "python, cold disk",
                with_view: "python, cold disk, and the view's start",
                second: "python, second view",
                disk: "read from disk, python",
                processors: "program's CPU time, python from cold disk",
            },
            Self::Script => Rows {
                scenario: "script-cold",
                cold: "script, cold disk",
                with_view: "script, cold disk, and the view's start",
                second: "script, second view",
                disk: "read from disk, script",
                processors: "program's CPU time, script from cold disk",
            },
            Self::Boot => Rows {
                scenario: "boot-cold",
                cold: "boot, cold disk",
                with_view: "boot, cold disk, and the view's start",
                second: "boot, second view",
                disk: "read from disk, boot",
                processors: "program's CPU time, boot from cold disk",
            },
        }
    }

    /// Starts it once; None if there is no such thing here.
    fn run(self, run: &Run<'_>, view: &View) -> Outcome<Option<Duration>> {
        let once = |program: &Option<Program>| -> Outcome<Option<Duration>> {
            let Some(program) = program else { return Ok(None) };
            Ok(Some(program.start(&run.ground.corpus, &view.root, 1, 0)?.first))
        };
        match self {
            Self::Python => once(&run.starts.programs.python),
            Self::Script => once(&run.starts.programs.script),
            Self::Boot => {
                run.starts.boot.as_ref().map(|boot| boot.time(&run.ground.corpus, &view.root)).transpose()
            }
        }
    }
}

/// Everything that is started from cold disk, on every column in turn.
pub(crate) fn starts(run: &mut Run<'_>, round: usize) -> Outcome<()> {
    run.in_turn(round, |run, cell, column| start_from(run, cell, column, Start::Python))?;
    run.in_turn(round, |run, cell, column| start_from(run, cell, column, Start::Script))?;
    run.in_turn(round, |run, cell, column| start_from(run, cell, column, Start::Boot))
}

/// Lets a column that learns do all of this once.
pub(crate) fn teach(run: &mut Run<'_>, cell: Cell, column: &Column) -> Outcome<()> {
    for start in Start::ALL {
        start_from(run, cell, column, start)?;
    }
    let view = column.show(run.ground, EVERY_BYTE, "view")?;
    Work::Bytes.run(&run.ground.corpus, &view.root, 1)?;
    view.close().map(drop)
}

fn start_from(run: &mut Run<'_>, cell: Cell, column: &Column, start: Start) -> Outcome<()> {
    let present = match start {
        Start::Python => run.starts.programs.python.is_some(),
        Start::Script => run.starts.programs.script.is_some(),
        Start::Boot => run.starts.boot.is_some(),
    };
    if !present {
        return Ok(());
    }
    let rows = start.rows();
    run.extent.caches.cool(&run.ground.corpus)?;
    let disk = machine::read_from_disk()?;
    let drawn = cell.round == 1 && start == Start::Boot;
    let begin = Instant::now();
    let (view, taken, timeline) = if drawn {
        let (result, points) = timeline::watch(run.page_cache, begin, || first(run, column, start, rows))?;
        let (view, taken) = result?;
        let ready = view.set_up;
        let up = ready + taken.unwrap_or_default();
        (view, taken, Some(Timeline { column: cell.column, points, ready, up }))
    } else {
        let (view, taken) = first(run, column, start, rows)?;
        (view, taken, None)
    };
    if let Some(taken) = taken {
        run.time(cell, rows.cold, 1, taken);
        run.time(cell, rows.with_view, 1, view.set_up + taken);
        run.memory(cell, rows.disk, machine::read_from_disk()?.saturating_sub(disk));
    }
    if let Some(server) = &view.server {
        server.await_end_of_play()?;
        run.time(cell, rows.processors, 1, server.spent()?.cpu);
    }
    run.play_told(column, &view, rows.scenario);
    if let Some(timeline) = timeline {
        run.keep_timeline(timeline);
    }
    if !column.is_peer() {
        let second = column.show(run.ground, rows.scenario, "second-view")?;
        if let Some(taken) = start.run(run, &second)? {
            run.time(cell, rows.second, 1, taken);
        }
        second.close()?;
    }
    view.close().map(drop)
}

/// The view, and what is started from it as soon as it is ready.
fn first(run: &Run<'_>, column: &Column, start: Start, rows: Rows) -> Outcome<(View, Option<Duration>)> {
    let view = column.show(run.ground, rows.scenario, "view")?;
    let taken = start.run(run, &view)?;
    Ok((view, taken))
}

const EVERY_BYTE: &str = "bytes-cold";

/// Every byte from cold disk; what that leaves in the page cache, and what a second view of the same adds.
///
/// Caches are emptied behind the start of the view, so that the start brings nothing in that the reader would need.
/// A view that plays begins to do so at its start; so there they are emptied before, and the program, its libraries
/// and the store's database are brought back by asking for the closure.
pub(crate) fn every_byte(run: &mut Run<'_>, cell: Cell, column: &Column) -> Outcome<()> {
    let corpus = &run.ground.corpus;
    let (view, before) = if column.learns() {
        run.extent.caches.cool(corpus)?;
        programs::dump_closure(run.ground)?;
        let before = run.page_cache.bytes()?;
        (column.show(run.ground, EVERY_BYTE, "view")?, before)
    } else {
        let view = column.show(run.ground, EVERY_BYTE, "view")?;
        run.extent.caches.cool(corpus)?;
        (view, run.page_cache.bytes()?)
    };
    run.work(cell, "bytes, cold disk", Work::Bytes, &view)?;
    let once = run.page_cache.bytes()?;
    run.memory(cell, "page cache added", once.saturating_sub(before));
    if !column.is_peer() {
        let second = column.show(run.ground, EVERY_BYTE, "second-view")?;
        Work::Bytes.run(corpus, &second.root, 1)?;
        let added = run.page_cache.bytes()?.saturating_sub(once);
        run.memory(cell, "page cache added by a second view", added);
        second.close()?;
    }
    if let Some(server) = &view.server {
        Work::Lstat.run(corpus, &view.root, 1)?;
        let walked = server.usage()?.private;
        run.extent.caches.cool(corpus)?;
        // FORGET has no answer to wait for, and requests overtake it: the server is asked when it has caught up.
        settle(&view)?;
        let usage = server.usage()?;
        run.memory(cell, "private after reading all", walked);
        run.memory(cell, "private after the kernel forgot", usage.private);
    }
    view.close().map(drop)
}

fn settle(view: &View) -> Outcome<()> {
    for _ in 0..3 {
        work::floor(&view.root)?;
    }
    Ok(())
}
