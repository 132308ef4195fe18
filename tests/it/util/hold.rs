//! Threads of a server that a test holds back: `NSF_HOLD` in `src/server/stops.rs`.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};

/// A point of the server at which a thread is held back, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "dropping it lets the thread go")] File);

/// Has the first thread held back that comes to `point` of a server whose `NSF_HOLD` is `hold`; and the path that exists when it
/// is there.
pub(crate) fn arm(hold: &Path, point: &str) -> (Held, PathBuf) {
    let pipe = hold.join(point);
    rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    // For reading as well: then opening it waits for nobody.
    let held = File::options().read(true).write(true).open(&pipe).unwrap();
    (Held(held), pipe.with_extension("held"))
}
