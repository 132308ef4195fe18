//! The columns of the table: each a way to show the closure, mounted afresh whenever a "first" is measured.
//!
//! Invariants: at most one view of a column is alive at a place; a view that goes out of scope is unmounted and
//! its program stopped, also after an error.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::caches;
use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};
use crate::rivals;
use crate::server::{self, Order, Server};

/// How a column shows the closure.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A bind mount of the whole store.
    Bind,
    /// The program under test with these arguments; it learns nothing from run to run.
    Program(Vec<String>),
    /// The same, and it learns from run to run: what is done to a view is played to the next one for the same scenario.
    Learnt {
        /// Its arguments.
        arguments: Vec<String>,
        /// The directory of what was learnt, this column's own.
        profiles: PathBuf,
    },
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
    /// What the view is called.
    pub(crate) name: String,
    /// The program behind it, if there is one.
    pub(crate) server: Option<Server>,
    /// What making it took; for the program this is start to READY.
    pub(crate) set_up: Duration,
    mounted: bool,
}

impl Column {
    /// Makes the column visible for `scenario` at the place so named, with nothing of it in any cache but the store's
    /// own. One that has learnt begins to play what it has learnt for this scenario and place.
    pub(crate) fn show(&self, ground: &Ground, scenario: &str, place: &str) -> Outcome<View> {
        let at = ground.work.join(place);
        let name = name(scenario, place);
        fs::create_dir_all(&at).doing(|| format!("creating {}", at.display()))?;
        let start = Instant::now();
        let program = |arguments: &[String]| {
            let Ground { corpus, program, work } = ground;
            Server::start(Order { program, arguments, corpus, name: &name, mountpoint: &at, work })
        };
        let started = match &self.kind {
            Kind::Bind => rivals::bind(&ground.corpus, &at).map(|()| None),
            Kind::Farm => rivals::farm(&ground.corpus, &at, &ground.work).map(|()| None),
            Kind::Overlay(tree) => rivals::overlay(&ground.corpus, tree, &at).map(|()| None),
            Kind::Program(arguments) => program(arguments).map(Some),
            Kind::Learnt { arguments, profiles } => {
                let mut arguments = arguments.clone();
                arguments.extend(["--cache-dir".to_owned(), profiles.to_string_lossy().into_owned()]);
                program(&arguments).map(Some)
            }
            Kind::Peer(directory) => {
                // Not ours to mount again: the kernel's caches are emptied, and those of the store filled.
                caches::drop_all()?;
                caches::warm(&ground.corpus)?;
                let root = directory.clone();
                return Ok(View { root, name, server: None, set_up: Duration::ZERO, mounted: false });
            }
        }?;
        let mounted = start.elapsed();
        let (server, set_up) = match started {
            Some((server, taken)) => (Some(server), taken),
            None => (None, mounted),
        };
        Ok(View { root: at, name, server, set_up, mounted: true })
    }

    /// Gives the view of `scenario` at `to` what that at `from` has learnt; false if there is nothing.
    pub(crate) fn lend(&self, scenario: &str, from: &str, to: &str) -> Outcome<bool> {
        match &self.kind {
            Kind::Learnt { profiles, .. } => {
                server::copy_profile(profiles, &name(scenario, from), &name(scenario, to))
            }
            _ => Ok(false),
        }
    }

    /// Whether it was mounted by somebody else.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.kind, Kind::Peer(_))
    }

    /// Whether it learns from run to run.
    pub(crate) fn learns(&self) -> bool {
        matches!(self.kind, Kind::Learnt { .. })
    }
}

/// What the program calls the view of a scenario at a place.
fn name(scenario: &str, place: &str) -> String {
    format!("bench-{}-{scenario}-{place}", std::process::id())
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
