//! Answers to questions about the view, put together from what the monitor knows already. Nothing here waits for a disk, a
//! server or the store.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::memory;
use super::mount::Mounted;
use super::runtime::Runtime;
use super::supervisor::{Content, Supervisor};
use crate::closure::source::Source;
use crate::protocol::control::report::{self, Member, Report, Used, UsedMember};
use crate::protocol::control::status::{self, Asked, Process, Seconds, Settings, Status, Store, Usage};
use crate::protocol::control::{Document, Question};
use crate::view::usage::{self, Snapshot, Uses};

/// How long the record of missed names is waited for. Whoever has it needs it for microseconds, and runs when others let it.
const RECORD: Duration = Duration::from_millis(250);

impl Runtime {
    /// Answers whoever has asked since the last turn of the loop. Who asks the same gets the same: however many they are, a turn
    /// makes two answers at most.
    pub(super) fn answer_questions(&mut self, supervisor: &Supervisor) {
        for question in self.clients.questions() {
            let answer = match question {
                Question::Status => document(&self.status(supervisor)),
                Question::Report => self.report(supervisor).and_then(|report| document(&report)),
            };
            self.clients.tell(question, answer);
        }
    }

    fn status(&self, supervisor: &Supervisor) -> Status {
        let content = supervisor.content();
        let process = |pid| Process { pid, memory: memory::of(pid) };
        let settings = &self.settings;
        Status {
            version: status::VERSION,
            name: settings.name.clone(),
            state: supervisor.state(),
            reload: supervisor.reload_stage(),
            mount_point: self.mounted.as_ref().map_or(&*settings.mountpoint, Mounted::at).to_owned(),
            store: self.told_store(),
            asked: self.asked(),
            roots: content.map(|content| content.roots.iter().cloned().collect()).unwrap_or_default(),
            paths: content.map_or(0, |content| content.view.len() as u64),
            nar_size: content.map_or(0, |content| content.view.nar_size()),
            settings: Settings {
                io: self.agreement.as_ref().map_or(settings.io, |agreement| agreement.io),
                report: settings.report,
                watch: settings.watch,
                prune: settings.prune,
            },
            monitor: process(std::process::id()),
            server: self.server.as_ref().map(|server| process(server.id())),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            served_since: self.history.served_since(),
            content_changed: self.history.changed(),
            epoch: content.map_or(0, |content| content.epoch),
            reloads: self.history.reloads(),
            servers: self.history.servers(),
            last_error: self.history.last_error(),
            missed: self.inquiry.as_ref().and_then(|inquiry| inquiry.counts(RECORD)),
            usage: self.usage(),
            prefetch: self.prefetching.status(),
        }
    }

    fn report(&self, supervisor: &Supervisor) -> io::Result<Report> {
        let content = supervisor.content();
        let served = |path: &_| content.is_some_and(|content| content.view.contains(path));
        let asked = self.counted().map(|counted| counted.absent);
        let missed = match &self.inquiry {
            Some(inquiry) => Some(inquiry.missed(served, asked, RECORD).ok_or_else(|| {
                io::Error::other("the record of missed names is being written; the machine may be overloaded")
            })?),
            None => None,
        };
        let members = content.into_iter().flat_map(|content| content.view.members());
        Ok(Report {
            version: report::VERSION,
            name: self.settings.name.clone(),
            store: self.told_store(),
            asked: self.asked(),
            roots: content.map(|content| content.roots.iter().cloned().collect()).unwrap_or_default(),
            members: members.map(|(path, nar_size)| Member { path: path.clone(), nar_size }).collect(),
            missed,
            used: content.and_then(|content| self.used(content)),
            prefetch: self.prefetching.status(),
        })
    }

    fn told_store(&self) -> Store {
        let known = !self.store_path.as_os_str().is_empty();
        Store {
            address: self.settings.store.clone(),
            directory: known.then(|| self.store_path.clone()),
            logical_directory: self.store_dir.clone(),
        }
    }

    fn asked(&self) -> Asked {
        match &self.settings.source {
            Source::Roots(roots) => Asked {
                system: roots.system.clone(),
                roots: roots.paths.clone(),
                roots_file: roots.file.clone(),
                from: None,
            },
            Source::Saved(file) => {
                Asked { system: None, roots: Vec::new(), roots_file: None, from: Some(file.path.clone()) }
            }
        }
    }

    // ---- what servers count ------------------------------------------------------------------------------------

    /// The counters that servers and this monitor share, as they are now.
    pub(super) fn counted(&self) -> Option<Snapshot> {
        let counted = Snapshot::read(self.usage.as_ref()?);
        counted.inspect_err(|error| tracing::warn!(%error, "cannot read what was asked of the view")).ok()
    }

    /// What was asked of the view.
    fn usage(&self) -> Option<Usage> {
        let counted = self.counted()?;
        Some(Usage {
            since: counted.since.map(Seconds::from),
            whole: counted.whole,
            requests: counted.requests.iter().map(|(kind, count)| (kind.name().to_owned(), *count)).collect(),
            bytes_read: counted.bytes,
            names_known: counted.nodes,
            panics: counted.panics,
        })
    }

    /// Members that were used.
    fn used(&self, content: &Content) -> Option<Used> {
        let counted = self.counted()?;
        let members = content.view.names().filter_map(|path| match counted.of(path) {
            usage::Asked::For(Uses { opens, bytes }) => {
                Some(UsedMember { path: path.clone(), opens, bytes_read: bytes })
            }
            usage::Asked::Never | usage::Asked::Unknown => None,
        });
        Some(Used {
            since: counted.since.map(Seconds::from),
            complete: counted.whole && counted.unknown == 0,
            members: members.collect(),
        })
    }
}

fn document(answer: &impl Serialize) -> io::Result<Document> {
    Document::new(&serde_json::to_vec(answer)?)
}
