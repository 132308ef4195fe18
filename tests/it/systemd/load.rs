//! Readers of a view, for as long as the view is put through something.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::Advice;

use super::machine::eventually;
use crate::util::tree::{self, Entry};

/// Threads that read, and stop at the first thing that is not as it should be.
#[derive(Debug)]
pub(super) struct Readers {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Readers {
    /// Starts readers of a store path, which is compared with the real one in every round.
    pub(super) fn start(view: &Path, real: &Path, base: &str) -> Self {
        let expected = Arc::new(tree::walk(real, base));
        let mut readers = Self { stop: Arc::default(), rounds: Arc::default(), threads: Vec::new() };
        for number in 0..2 {
            let (view, base, expected) = (view.to_owned(), base.to_owned(), Arc::clone(&expected));
            let (stop, rounds) = (Arc::clone(&readers.stop), Arc::clone(&readers.rounds));
            readers.threads.push(std::thread::spawn(move || {
                let mut round = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    for (path, entry) in expected.iter() {
                        look(&view.join(path), entry)?;
                    }
                    // A name that the kernel cannot know yet: it has to ask.
                    round += 1;
                    let missing = view.join(&base).join(format!("absent-{number}-{round}"));
                    match fs::symlink_metadata(&missing) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        other => return Err(format!("{}: {other:?}", missing.display())),
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        readers.work();
        readers
    }

    /// Waits until every reader can have finished a round that began after this call.
    pub(super) fn work(&self) {
        let enough = self.rounds.load(Ordering::Relaxed) + 4;
        let done = eventually(|| {
            self.rounds.load(Ordering::Relaxed) >= enough || self.threads.iter().any(JoinHandle::is_finished)
        });
        assert!(done, "the readers hang");
    }

    /// Stops them; fails if anything failed for one of them.
    pub(super) fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(error) = thread.join().expect("a reader panicked") {
                panic!("a reader failed: {error}");
            }
        }
        eprintln!("{} rounds of reading, no failure", self.rounds.load(Ordering::Relaxed));
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn look(path: &PathBuf, expected: &Entry) -> Result<(), String> {
    let found = tree::entry(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if found != *expected {
        return Err(format!("{} differs: {found:?}", path.display()));
    }
    // The next reader of this file has to ask for its contents again.
    if matches!(found.what, tree::What::File { .. }) {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        rustix::fs::fadvise(file.as_fd(), 0, None, Advice::DontNeed)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
