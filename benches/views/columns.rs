//! The columns of the table: each a way to show the closure, mounted afresh whenever a "first" is measured.
//!
//! Invariants: at most one view of a column is alive at a place; a view that goes out of scope is unmounted and
//! its program stopped, also after an error.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};
use crate::machine;
use crate::rivals;
use crate::server::Server;
use crate::work::Work;

/// How a column shows the closure.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A bind mount of the whole store.
    Bind,
    /// The program under test with these arguments.
    Program(Vec<String>),
    /// A farm of binds.
    Farm,
    /// An overlay over this metadata tree.
    Overlay(PathBuf),
    /// A directory that something else keeps mounted.
    Peer(PathBuf),
}

/// One column.
#[derive(Debug)]
pub(crate) struct Column {
    /// What stands above it.
    pub(crate) name: String,
    /// How it is made.
    pub(crate) kind: Kind,
}

/// What every view is made from.
#[derive(Debug)]
pub(crate) struct Ground {
    /// The closure.
    pub(crate) corpus: Corpus,
    /// The program under test.
    pub(crate) program: PathBuf,
    /// A directory of this run's own.
    pub(crate) work: PathBuf,
}

/// A column made visible.
#[derive(Debug)]
pub(crate) struct View {
    /// The directory that shows the closure.
    pub(crate) root: PathBuf,
    /// The program behind it, if there is one.
    pub(crate) server: Option<Server>,
    /// What making it took; for the program this is start to READY.
    pub(crate) set_up: Duration,
    mounted: bool,
}

impl Column {
    /// Makes the column visible at the place so named, with nothing of it in any cache but the store's own.
    pub(crate) fn show(&self, ground: &Ground, place: &str) -> Outcome<View> {
        let at = ground.work.join(place);
        fs::create_dir_all(&at).doing(|| format!("creating {}", at.display()))?;
        let start = Instant::now();
        let (mut server, mut set_up) = (None, None);
        match &self.kind {
            Kind::Bind => rivals::bind(&ground.corpus, &at)?,
            Kind::Farm => rivals::farm(&ground.corpus, &at, &ground.work)?,
            Kind::Overlay(tree) => rivals::overlay(&ground.corpus, tree, &at)?,
            Kind::Program(arguments) => {
                let (started, taken) =
                    Server::start(&ground.program, arguments, &ground.corpus, &at, &ground.work)?;
                (server, set_up) = (Some(started), Some(taken));
            }
            Kind::Peer(directory) => {
                // Not ours to mount again: the kernel's caches are emptied, and those of the store filled.
                machine::drop_caches()?;
                warm(&ground.corpus)?;
                return Ok(View { root: directory.clone(), server, set_up: Duration::ZERO, mounted: false });
            }
        }
        let set_up = set_up.unwrap_or_else(|| start.elapsed());
        Ok(View { root: at, server, set_up, mounted: true })
    }
}

impl View {
    /// Takes the view down, and says so when that fails; returns what its program wrote to standard error.
    pub(crate) fn close(mut self) -> Outcome<String> {
        let mut said = String::new();
        if let Some(server) = self.server.take() {
            said = server.stop()?;
            self.mounted = !rivals::mounts_below(&self.root)?.is_empty();
            if self.mounted {
                return Err(Fault::new("the program ended and left its mount behind"));
            }
        }
        if std::mem::take(&mut self.mounted) {
            rivals::unmount(&self.root)?;
        }
        Ok(said)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.mounted {
            // Upon an error elsewhere, which is the one to report.
            drop(self.server.take());
            rivals::unmount(&self.root).ok();
        }
    }
}

/// Fills the store's own caches: names, attributes and bytes, each once.
pub(crate) fn warm(corpus: &Corpus) -> Outcome<()> {
    for work in [Work::List, Work::Bytes, Work::Missing] {
        work.run(corpus, &corpus.physical, 1)?;
    }
    Ok(())
}
