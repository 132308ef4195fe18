//! Many views of one closure at once: the memory of all their processes.

use crate::columns::{Column, Kind, View};
use crate::fault::{Fault, Outcome};
use crate::rounds::{Cell, Run};

/// The number that a limit is for; a quick run has fewer.
pub(crate) const VIEWS: usize = 100;

/// Memory of monitors and servers, of each shared page its share.
pub(crate) const PROPORTIONAL: &str = "100 views, Pss of all processes";
/// Memory that is one process's alone.
pub(crate) const PRIVATE: &str = "100 views, private memory of all processes";
/// The same of servers.
pub(crate) const SERVERS: &str = "100 views, private memory of all servers";

/// Shows the closure so many times, and adds up.
pub(crate) fn views(run: &mut Run<'_>, cell: Cell, column: &Column) -> Outcome<()> {
    if !matches!(column.kind, Kind::Program(_)) {
        return Ok(());
    }
    let mut shown: Vec<View> = Vec::new();
    for number in 0..run.extent.views {
        shown.push(column.show(run.ground, "many", &format!("view-{number}"))?);
    }
    let (mut proportional, mut private, mut servers) = (0, 0, 0);
    for view in &shown {
        let server = view.server.as_ref().ok_or_else(|| Fault::new("a view without a server"))?;
        let (monitor, answering) = (server.monitor_usage()?, server.usage()?);
        proportional += monitor.proportional + answering.proportional;
        private += monitor.private + answering.private;
        servers += answering.private;
    }
    for view in shown {
        view.close()?;
    }
    if run.extent.views != VIEWS {
        run.note_once(format!("`{VIEWS} views` were {} in this run", run.extent.views));
    }
    run.memory(cell, PROPORTIONAL, proportional);
    run.memory(cell, PRIVATE, private);
    run.memory(cell, SERVERS, servers);
    Ok(())
}
