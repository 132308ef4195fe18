//! One run of the program under test: started, awaited, looked at, stopped.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;

use crate::corpus::Corpus;
use crate::fault::Outcome;
use crate::machine::{self, Usage};
use crate::service::Service;

/// The running program and the process of it that answers requests.
#[derive(Debug)]
pub(crate) struct Server {
    service: Service,
    process: Pid,
}

impl Server {
    /// Starts the program on `mountpoint`; returns it with the time from start to READY.
    pub(crate) fn start(
        program: &Path,
        arguments: &[String],
        corpus: &Corpus,
        mountpoint: &Path,
        work: &Path,
    ) -> Outcome<(Self, Duration)> {
        let place = mountpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.arg("--system").arg(&corpus.system);
        if let Some(uri) = &corpus.uri {
            command.args(["--store", uri]);
        }
        command.arg("--name").arg(format!("bench-{}-{place}", std::process::id()));
        command.args(arguments).arg(mountpoint);
        let (service, taken) = Service::start(command, work, &place)?;
        let process = machine::server_of(service.pid())?;
        Ok((Self { service, process }, taken))
    }

    /// Memory and processor time of the process that answers.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        machine::usage(self.process)
    }

    /// Ends the program; returns what it wrote to standard error.
    pub(crate) fn stop(self) -> Outcome<String> {
        self.service.stop()
    }
}
