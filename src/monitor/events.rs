//! Descriptors become events.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::error::MonitorError;
use super::listers::overdue;
use super::runtime::{Place, Runtime};
use super::supervisor::{Event, Found, Refusal, Unresolved};
use super::user::User;
use super::watch::Changes;
use super::{mount, poll, systemd};
use crate::background::{Answer, Caller};
use crate::protocol::handshake::Promised;
use crate::protocol::wire::{Cause, Received, Report};

/// How long the loop rests when the kernel cannot wait for it (ENOMEM of poll(2)).
const REST: Duration = Duration::from_millis(100);

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Caller,
    Store,
    Mounting,
    /// Its socket, or its end.
    Server,
    Clients,
    Links,
    Probe,
    Knock,
    Listers,
    User,
    Ahead,
}

impl Runtime {
    /// Waits until something has happened or `until` has come.
    pub(super) fn wait(&mut self, until: Option<Instant>) -> Vec<Event> {
        let user_due = self.user().and_then(User::due);
        let until =
            until.into_iter().chain(self.clients.due()).chain(user_due).chain(self.prefetching.due()).min();
        let sources = self.sources();
        let descriptors: Vec<_> = sources.iter().map(|(_, fd)| *fd).collect();
        let readable = poll::readable(&descriptors, until).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot wait for events");
            std::thread::sleep(REST);
            Vec::new()
        });
        let mut happened: Vec<Source> =
            sources.iter().zip(readable).filter(|(_, is)| *is).map(|((source, _), _)| *source).collect();
        happened.dedup();
        if self.clients.due().is_some_and(|due| due <= Instant::now()) && !happened.contains(&Source::Clients)
        {
            happened.push(Source::Clients);
        }
        if user_due.is_some_and(|due| due <= Instant::now()) {
            happened.push(Source::User);
        }
        let mut events = Vec::new();
        for source in happened {
            self.take(source, &mut events);
        }
        events
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let mut sources =
            vec![(Source::Signals, self.signals.as_fd()), (Source::Store, self.store_thread.ready())];
        sources.extend(self.caller_of_mount().map(|caller| (Source::Caller, caller.as_fd())));
        sources.extend(self.mounting.as_ref().map(|thread| (Source::Mounting, thread.ready())));
        if let Some(server) = &self.server {
            sources.extend(server.socket().into_iter().chain([server.end()]).map(|fd| (Source::Server, fd)));
        }
        sources.extend(self.clients.sockets().into_iter().map(|socket| (Source::Clients, socket)));
        sources.extend(self.watch.as_ref().map(|watch| (Source::Links, watch.events())));
        sources.extend(self.probe.as_ref().map(|probe| (Source::Probe, probe.done())));
        sources.extend(self.knock.as_ref().map(|knock| (Source::Knock, knock.done())));
        sources.extend(self.search.as_ref().map(|search| (Source::Listers, search.done())));
        sources.extend(self.prefetching.end().map(|end| (Source::Ahead, end)));
        sources.extend(self.user().and_then(User::end).map(|end| (Source::User, end)));
        sources
    }

    fn take(&mut self, source: Source, events: &mut Vec<Event>) {
        match source {
            Source::Signals => events.extend(self.take_signals()),
            Source::Caller => events.extend(self.take_caller()),
            Source::Store => self.take_resolution(events),
            Source::Mounting => events.extend(self.take_mount()),
            Source::Server => self.take_server(events),
            Source::Clients => {
                let clients = self.clients.take(Instant::now());
                events.extend(clients.into_iter().map(|client| Event::Reload(Some(client))));
            }
            Source::Links => {
                if self.watch.as_mut().is_some_and(Changes::take) {
                    events.push(Event::Changed);
                }
            }
            Source::Probe => events.extend(self.take_probe()),
            Source::Knock => self.knock = None,
            Source::Listers => events.extend(self.take_listers()),
            Source::User => self.take_user(),
            Source::Ahead => self.asked_ahead = true,
        }
    }

    /// The signals that have come. Whoever asks for the end does not want a successor, so [`Event::Stop`] is the first of them.
    pub(super) fn take_signals(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            events.extend(match signal {
                // A service manager sends it to whoever uses the view as well, and the view is there until they have ended.
                _ if matches!(self.place, Place::Given(..)) => None,
                Some(Signal::SIGTERM | Signal::SIGINT) => Some(Event::Stop),
                Some(Signal::SIGHUP) => Some(Event::Reload(None)),
                Some(Signal::SIGUSR2) => {
                    Some(Event::HandOver { kept: systemd::keeps_device() && self.is_told() })
                }
                // It would end the monitor, and is easily sent by mistake.
                Some(Signal::SIGUSR1) => {
                    tracing::warn!("ignoring SIGUSR1; SIGUSR2 hands over, SIGHUP reloads");
                    None
                }
                _ => None,
            });
        }
        // They come in the order of their numbers.
        events.sort_by_key(|event| !matches!(event, Event::Stop));
        events
    }

    /// Who waits for a view that is mounted here. One of others ends with them.
    fn caller_of_mount(&self) -> Option<&Caller> {
        self.caller.as_deref().filter(|_| matches!(self.place, Place::Path))
    }

    /// Whoever has mounted the view, if that was not this process.
    fn user(&self) -> Option<&User> {
        match &self.place {
            Place::Path => None,
            Place::Given(_, user) => Some(user),
        }
    }

    /// The process that has mounted the view has ended, or did so some time ago. A server that has not noticed that nobody has the view
    /// is killed.
    fn take_user(&mut self) {
        let has_ended = self.device.as_ref().is_some_and(mount::has_ended);
        let Place::Given(_, user) = &mut self.place else { return };
        let is_due = user.due().is_some();
        user.advance(Instant::now());
        if is_due && has_ended {
            self.kill_server();
        }
    }

    /// Whoever waited and has ended without having heard of the view does not want it.
    fn take_caller(&mut self) -> Option<Event> {
        let answer = self.caller.as_ref()?.answer();
        if answer != Answer::Nothing {
            self.caller = None;
        }
        (answer == Answer::Gone).then(|| {
            tracing::warn!(
                "ending, because the process that asked for the view has ended before it was there"
            );
            Event::Stop
        })
    }

    /// Tells whoever waits that the view answers.
    pub(super) fn tell_caller(&mut self) {
        self.caller.iter().for_each(|caller| caller.ready());
        if self.caller_of_mount().is_none() {
            self.caller = None;
        }
    }

    /// Whether a successor would find what it has to know.
    fn is_told(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.is_written() || self.mounted.is_none())
    }

    fn take_resolution(&mut self, events: &mut Vec<Event>) {
        let Some(answer) = self.store_thread.answer() else { return };
        let unresolved = |error: MonitorError, may_pass| {
            Event::Resolved(Err(Unresolved { error: Box::new(error), may_pass }))
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let may_pass = matches!(&error, MonitorError::Resolve(error) if error.may_pass());
                return events.push(unresolved(error, may_pass));
            }
        };
        self.store_dir = Some(answer.store_dir);
        if self.store.is_none() || self.store_path != answer.store {
            match answer.opened {
                Ok(store) => {
                    self.store_path = answer.store;
                    self.opening = None;
                    if self.store.replace(store).is_some() {
                        events.push(Event::Moved);
                    }
                }
                Err(error) => return events.push(unresolved(error, true)),
            }
        }
        let found = Found { number: answer.number, view: answer.view, roots: answer.roots };
        events.push(Event::Resolved(Ok(found)));
    }

    fn take_mount(&mut self) -> Option<Event> {
        let result = self.mounting.as_ref()?.result()?;
        self.mounting = None;
        Some(Event::Mounted(self.keep_mount(result).map_err(Box::new)))
    }

    /// Reports first, and its end last: what it had to say is taken in though it has ended. There are not many ([`super::child::Server::report`]).
    fn take_server(&mut self, events: &mut Vec<Event>) {
        let Some(server) = &mut self.server else { return };
        let hung_up = loop {
            match server.report() {
                Ok(Received::Message(report)) => {
                    if let (Report::Serving { renewed: true, .. }, Some(agreement)) =
                        (&report, &mut self.agreement)
                    {
                        agreement.promised = Promised::new(self.settings.prune);
                    }
                    events.push(event(report));
                }
                Ok(Received::Nothing) => break None,
                Ok(Received::Closed) => break Some(Event::HungUp(None)),
                Err(error) => break Some(Event::HungUp(Some(error.to_string()))),
            }
        };
        if hung_up.is_some() {
            // Otherwise it would stay readable.
            server.hang_up();
        }
        match server.ended() {
            Ok(None) => events.extend(hung_up),
            Ok(Some(status)) => {
                events.push(exited(status));
                self.crashed = status.signal() != Some(Signal::SIGKILL as i32);
                self.server = None;
            }
            Err(error) => {
                events.push(Event::Exited { how: format!("cannot be waited for: {error}"), faulted: false });
                self.server = None;
            }
        }
    }

    fn take_listers(&mut self) -> Option<Event> {
        let found = self.search.as_ref()?.found()?;
        self.search = None;
        Some(Event::Overdue(overdue(&found)))
    }

    fn take_probe(&mut self) -> Option<Event> {
        let answer = self.probe.as_ref()?.answer()?;
        self.probe = None;
        Some(match answer {
            Ok(()) => Event::Answers,
            Err(error) => {
                tracing::debug!(%error, "the view does not answer");
                Event::NotProbed
            }
        })
    }
}

fn exited(status: ExitStatus) -> Event {
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    let how = match signal {
        Some(Signal::SIGSYS) => format!(
            "{status}: its own filter refused a system call; please report it, and use --sandbox none until then"
        ),
        _ => status.to_string(),
    };
    Event::Exited { how, faulted: status.signal().is_some() && signal != Some(Signal::SIGKILL) }
}

fn event(report: Report) -> Event {
    match report {
        Report::Serving { epoch, restored, .. } => Event::Serving { epoch, restored },
        Report::Answered => Event::Answered,
        Report::Switched { epoch } => Event::Switched { epoch },
        Report::Failed { cause, why } => Event::Refused(match cause {
            Cause::Leftovers => Refusal::Leftovers(why),
            Cause::Unsupported => Refusal::Unsupported(why),
            Cause::Passing => Refusal::Passing(why),
        }),
    }
}
