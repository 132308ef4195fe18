//! `--io passthrough`: the kernel reads files by itself, though the server has no right to have it do so.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};

use crate::util::DEADLINE;
use crate::util::fixture::Fixture;
use crate::util::program::Mounted;
use crate::util::tree;

/// Stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(process: Pid) -> Self {
        kill_process(process, Signal::STOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _gone = kill_process(self.0, Signal::CONT);
    }
}

/// Whether `file` is read without its server, in time.
fn is_read_by_the_kernel(view: &Mounted, file: &Path) -> bool {
    let file = File::open(file).unwrap();
    // What the view has cached of it would be read in any case.
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let server = Stopped::new(view.server_now().unwrap());
    let (read, is_read) = mpsc::channel();
    let reader = std::thread::spawn(move || read.send(rustix::io::pread(&file, &mut [0; 16], 0)).unwrap());
    let alone = is_read.recv_timeout(Duration::from_secs(2)).is_ok_and(|read| read.unwrap() > 0);
    drop(server);
    reader.join().unwrap();
    alone
}

/// The witness: with the server stopped, the file is read all the same.
#[test]
fn the_kernel_reads_files_of_a_server_that_has_no_right() {
    need!(Root, Fuse, Nix, Landlock, Passthrough);
    let fixture = Fixture::new();
    let program = fixture.program().args(["--io", "passthrough", "--sandbox", "require"]);
    let view = program.mount();
    assert!(is_read_by_the_kernel(&view, &view.path().join(&fixture.data.base).join("text")));
    let cached = fixture.mount();
    assert!(!is_read_by_the_kernel(&cached, &cached.path().join(&fixture.data.base).join("text")));
}

/// A monitor that does nothing holds up one reader for a moment; what is opened meanwhile is read through the server. When it
/// works again, so does the kernel.
#[test]
fn files_are_read_while_the_monitor_is_stopped() {
    need!(Root, Fuse, Nix, Passthrough);
    let fixture = Fixture::new();
    let view = fixture.program().args(["--io", "passthrough"]).mount();
    let stopped = Stopped::new(view.pid());
    let base = &fixture.data.base;
    tree::assert_same(&tree::walk(&fixture.store.physical(), base), &tree::walk(view.path(), base));
    assert_eq!(view.said_soon("does not read this file by itself"), 1, "{}", view.stderr());
    drop(stopped);
    let init = view.path().join(&fixture.system.base).join("init");
    let until = Instant::now() + DEADLINE;
    // The late answer may not be there yet.
    while !is_read_by_the_kernel(&view, &init) {
        assert!(Instant::now() < until, "files are read through the server for ever; {}", view.stderr());
    }
}
