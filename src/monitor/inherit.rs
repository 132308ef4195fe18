//! How a monitor begins: what it opens, and what earlier monitors of the same name left to it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use nix::sys::signalfd::SignalFd;

use super::child::{Program, Server};
use super::clients::Clients;
use super::error::{MonitorError, system};
use super::history::History;
use super::missed::Inquiry;
use super::mount::{self, Connection, Detach, Mounted, Number};
use super::mounting;
use super::prefetching::Prefetching;
use super::registrar::Registrar;
use super::runtime::{Place, Runtime};
use super::settings::{Origin, Settings};
use super::state::{State, StateDir, StateError};
use super::store_thread::{Left, StoreThread, Task};
use super::supervisor::Content;
use super::systemd;
use super::user::User;
use super::watch::{self, Changes};
use crate::background::Caller;
use crate::closure::roots::RootLinks;
use crate::closure::trust::Trust;
use crate::fuse::ledger;
use crate::protocol::handshake::Promised;
use crate::startup::Stored;
use crate::values::View;
use crate::view::usage;

/// What a monitor begins with.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) runtime: Runtime,
    /// What an earlier monitor's view shows, if it is taken over.
    pub(super) inherited: Option<Content>,
}

/// A view that can be taken over: the device, and what an earlier monitor wrote of the mount.
#[derive(Debug)]
struct Inherited {
    device: OwnedFd,
    /// None: the service manager had no room for it.
    ledger: Option<OwnedFd>,
    /// The same.
    usage: Option<OwnedFd>,
    mounted: Mounted,
    state: State,
}

/// What earlier monitors of this name left.
#[derive(Debug)]
enum Earlier {
    Nothing,
    /// A view that nobody can take over any more. Links of it may be in these directories.
    Dead(BTreeSet<PathBuf>),
    View(Box<Inherited>),
}

/// What works while the rest is being prepared.
#[derive(Debug)]
struct Started {
    store_thread: StoreThread,
    watch: Option<Changes>,
    /// A server that waits for its order.
    spare: Option<Server>,
}

impl Started {
    /// `earlier` is of the view that is taken over; links of earlier ones may be in `link_dirs`.
    fn new(
        settings: &Settings,
        program: &Program,
        earlier: Option<&State>,
        link_dirs: &BTreeSet<PathBuf>,
    ) -> Result<Self, MonitorError> {
        // The store's owner joins them when it is open.
        let trust = Trust::of_process(None).with_untrusted(settings.source.untrusted());
        let former = link_dirs.iter().filter(|dir| settings.gc_root.as_ref() != Some(*dir));
        let former =
            former.map(|dir| RootLinks::new(dir, &settings.name, BTreeSet::new(), trust.clone())).collect();
        let roots = earlier.map(|state| state.roots.clone()).unwrap_or_default();
        let held = earlier.map_or_else(View::default, |state| state.view.clone());
        let links = settings.gc_root.as_ref().map(|dir| RootLinks::new(dir, &settings.name, roots, trust));
        let (arming, watch) = settings.watch.then(watch::start).flatten().unzip();
        let task = Task {
            uri: settings.store.clone(),
            source: settings.source.clone(),
            hidden: settings.hidden.clone(),
            held,
            links,
            former,
            watch: arming,
            sandbox: settings.sandbox,
        };
        let store_thread = StoreThread::start(task).map_err(system("start a thread"))?;
        // Loading the program takes longer than resolving. If it cannot be started, that is found out when it is needed.
        let spare = Server::spawn(program, settings.log.sink).ok();
        Ok(Self { store_thread, watch, spare })
    }
}

/// Opens what a monitor needs, and finds out what there is to take over. Nothing is mounted yet.
pub(super) fn begin(
    mut settings: Settings,
    signals: SignalFd,
    origin: Origin,
    caller: Option<Arc<Caller>>,
) -> Result<Begin, MonitorError> {
    let program = Program::find()?;
    let (started, state, place, inherited, link_dirs) = match origin {
        Origin::Own(stored) => {
            let state = open_state(&settings)?;
            let (inherited, link_dirs) = match inherit(state.as_ref(), &settings, stored)? {
                Earlier::Nothing => (None, BTreeSet::new()),
                Earlier::Dead(link_dirs) => (None, link_dirs),
                Earlier::View(inherited) => {
                    let link_dirs = inherited.state.link_dirs.clone();
                    (Some(*inherited), link_dirs)
                }
            };
            let earlier = inherited.as_ref().map(|inherited| &inherited.state);
            let started = Started::new(&settings, &program, earlier, &link_dirs)?;
            (started, state, Place::Path, inherited, link_dirs)
        }
        Origin::Given(awaited) => {
            // A new view: nobody has left anything to it.
            let started = Started::new(&settings, &program, None, &BTreeSet::new())?;
            let opened = awaited.wait().ok_or(MonitorError::Unwanted).and_then(|(given, user)| {
                settings.state = given.state.clone();
                Ok((given, user, open_state(&settings)?))
            });
            // What Nix keeps for this process goes with the store.
            let (given, user, state) = opened.inspect_err(|_| started.store_thread.end(Left::Nothing))?;
            (started, state, Place::Given(Some(given), User::There(user)), None, BTreeSet::new())
        }
    };
    let Started { store_thread, watch, spare } = started;
    let start = || Inquiry::start(settings.sandbox);
    let inquiry = settings.report.then(start).transpose().map_err(system("start a thread"))?;
    let clients = Clients::listen(state.as_ref().map(StateDir::control).as_deref());
    let profiles = settings.profiles.as_ref().filter(|_| matches!(place, Place::Path));
    let prefetching = Prefetching::new(settings.prefetch, profiles, &settings.name);
    let mut runtime = Runtime {
        signals,
        program,
        store_thread,
        written: false,
        clients,
        history: History::default(),
        watch,
        place,
        caller,
        mounting: None,
        mounted: None,
        device: None,
        ledger: None,
        usage: None,
        whole: Cell::default(),
        agreement: None,
        store_path: PathBuf::new(),
        store_dir: None,
        store: None,
        opening: None,
        link_dirs: link_dirs.into_iter().chain(settings.gc_root.clone()).collect(),
        server: None,
        crashed: false,
        inquiry,
        prefetching,
        asked_ahead: false,
        registrar: Registrar::default(),
        spare,
        probe: None,
        knock: None,
        search: None,
        state,
        settings,
    };
    let inherited = inherited.map(|inherited| take_over(&mut runtime, inherited));
    Ok(Begin { runtime, inherited })
}

fn take_over(runtime: &mut Runtime, inherited: Inherited) -> Content {
    let Inherited { device, ledger, usage, mounted, state } = inherited;
    let was_counted = state.usage.is_some();
    let State { view, roots, epoch, unsettled, mut agreement, store, store_dir, .. } = state;
    agreement.promised = Promised::new(runtime.settings.prune).after(agreement.promised);
    tracing::info!(mountpoint = %mounted.at().display(), "taking over the view of an earlier monitor");
    if mounted.at() != runtime.settings.mountpoint {
        tracing::debug!(asked = %runtime.settings.mountpoint.display(), "the view stays where it is mounted");
    }
    let ledger = ledger.or_else(|| {
        systemd::forget_ledgers();
            tracing::warn!(
                "the service manager has not kept what the last server was answering; some readers may get errors on kernels before 6.9. FileDescriptorStoreMax= has to be 2 at least"
            );
            mounting::begin_ledger(true)
    });
    let usage = usage.or_else(|| {
        systemd::forget_usages();
        if was_counted {
            tracing::info!(
                "the service manager has not kept what was counted of the view; counting from now on. FileDescriptorStoreMax= has to be 3 at least"
            );
        }
        mounting::begin_usage(false)
    });
    systemd::store_device(&device);
    ledger.iter().for_each(systemd::store_ledger);
    usage.iter().for_each(systemd::store_usage);
    runtime.ledger = ledger;
    runtime.usage = usage;
    runtime.store_path = store;
    runtime.store_dir = store_dir;
    runtime.mounted = Some(mounted);
    runtime.device = Some(device);
    runtime.agreement = Some(agreement);
    Content { view, roots, epoch, unsettled: unsettled.into_iter().collect(), since: SystemTime::now() }
}

/// A view can do without a state directory, but not with somebody else's.
fn open_state(settings: &Settings) -> Result<Option<StateDir>, MonitorError> {
    match StateDir::open(&settings.state, &settings.name) {
        Ok(state) => Ok(Some(state)),
        Err(error @ (StateError::Taken { .. } | StateError::NotOwn { .. })) => Err(error.into()),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "no state directory: 'reload' does not work, and the view would not survive a crash"
            );
            Ok(None)
        }
    }
}

fn inherit(
    state: Option<&StateDir>,
    settings: &Settings,
    Stored { device, ledgers, usages }: Stored,
) -> Result<Earlier, MonitorError> {
    let Some(dir) = state else { return Ok(Earlier::Nothing) };
    let Some(device) = device else {
        // Of no use without it, and in the way of what is stored of the next mount.
        if !ledgers.is_empty() || !usages.is_empty() {
            systemd::forget_device();
        }
        return Ok(dead(dir));
    };
    if mount::has_ended(&device) {
        // Somebody has unmounted or aborted it meanwhile. What is in the mount table has no server.
        systemd::forget_device();
        let earlier = dead(dir);
        unmount_earlier(settings, dir, device, "its connection to the kernel has ended")?;
        return Ok(earlier);
    }
    let Some(state) = dir.read()? else {
        // A mount of which nothing is known can never be taken over. It has no server: the name is ours.
        tracing::warn!(
            view = %settings.name,
            "the service manager kept a mount, and there is no state of a view of this name: it may be another view's, whose readers get errors now"
        );
        systemd::forget_device();
        unmount_earlier(settings, dir, device, "there is no state of it")?;
        return Ok(Earlier::Nothing);
    };
    if !dir.journal().exists() {
        // It was mounted without a journal: nobody knows what the kernel knows of it.
        systemd::forget_device();
        unmount_earlier(settings, dir, device, "there is no node journal of it")?;
        return Ok(Earlier::Dead(state.link_dirs));
    }
    // Its connection lives. It may have been moved, covered by another mount, or be mounted in a container alone.
    let connection = state.connection.map(Number);
    let made = state.made.clone();
    let mounted = Mounted::inherited(&state.mountpoint, &settings.name, state.mount_id, connection, made);
    if !mounted.is_there()? {
        tracing::warn!(
            mountpoint = %state.mountpoint.display(),
            "the view is not mounted here any more; serving it where it still is. To mount it here again, stop the view and start it"
        );
    }
    let of_this_mount = |found: &OwnedFd| state.ledger.is_some() && ledger::token(found) == state.ledger;
    let ledger = ledgers.into_iter().find(of_this_mount);
    let counts_this_mount = |found: &OwnedFd| state.usage.is_some() && usage::token(found) == state.usage;
    let usage = usages.into_iter().find(counts_this_mount);
    Ok(Earlier::View(Box::new(Inherited { device, ledger, usage, mounted, state })))
}

/// Unmounts what an earlier monitor left and nobody can take over, where it was and where the view is to be, and ends the
/// connection of its `device`: whoever waits gets an error.
fn unmount_earlier(
    settings: &Settings,
    dir: &StateDir,
    device: OwnedFd,
    why: &str,
) -> Result<(), MonitorError> {
    let state = dir.read().ok().flatten();
    let mut number = state.as_ref().and_then(|state| state.connection).map(Number);
    let was = state.map(|state| (state.mountpoint, state.made));
    for (at, made) in was.into_iter().chain([(settings.mountpoint.clone(), Vec::new())]) {
        if let Some(mounted) = Mounted::found(&at, &settings.name, made)? {
            tracing::warn!(
                "an earlier monitor left a mount that cannot be taken over: {why}; unmounting it and mounting the view again"
            );
            number = number.or(mounted.connection());
            mounted.unmount(Detach::Gently, |_| ())?;
        }
    }
    if !mount::has_ended(&device)
        && let Err(error) = Connection::open(number, &device).and_then(|connection| connection.abort())
    {
        tracing::debug!(%error, "cannot abort the connection of the earlier view");
    }
    Ok(())
}

/// What is left of a view whose device nobody kept. The new view needs nothing of it, so a state that cannot be read
/// does not prevent the start.
fn dead(dir: &StateDir) -> Earlier {
    match dir.read() {
        Ok(None) => Earlier::Nothing,
        Ok(Some(state)) => Earlier::Dead(state.link_dirs),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot read the state of the earlier view; if it had another --gc-root directory, its links there remain: remove them by hand"
            );
            Earlier::Nothing
        }
    }
}
