//! How a monitor comes to have a mount: a new one, or one that an earlier monitor left.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::fs::{Mode, OFlags};

use super::child::Server;
use super::resolver::{Answer, Left, Resolver, Task};
use super::state::{State, StateDir, StateError};
use super::watch::Watch;
use super::{
    Backoff, Monitor, MonitorError, Reload, Settings, clean_up, event, next_signal, system, systemd, unmount,
    wait,
};
use crate::closure::resolve::ResolveError;
use crate::closure::roots::RootLinks;
use crate::monitor::mount::{Mounted, Point};
use crate::protocol::handshake::{self, Io, Wishes};
use crate::values::{StorePath, View};

/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAYFS: u32 = 0x794c_7630;

/// A view that can be taken over: the device, and what an earlier monitor wrote of the mount.
struct Inherited {
    device: OwnedFd,
    mounted: Mounted,
    state: State,
}

/// What earlier monitors of this name left.
enum Earlier {
    Nothing,
    /// A view that nobody can take over any more. Links of it may be in these directories.
    Dead(BTreeSet<PathBuf>),
    View(Box<Inherited>),
}

/// Everything that a monitor needs and that can fail.
struct Prepared {
    mounted: Mounted,
    device: OwnedFd,
    agreement: handshake::Agreement,
    store: OwnedFd,
    store_path: PathBuf,
    watch: Option<Watch>,
    probe: OwnedFd,
    view: View,
    roots: BTreeSet<StorePath>,
    resolution: Option<u64>,
    epoch: u32,
    unsettled: Vec<StorePath>,
    spare: Server,
}

/// Resolves, mounts or takes over, and puts the monitor together. `None`: a signal came first.
pub(super) fn set_up(settings: Settings, signals: SignalFd) -> Result<Option<Monitor>, MonitorError> {
    let state = open_state(&settings)?;
    let (inherited, held, roots, mut link_dirs) = match inherit(state.as_ref(), &settings)? {
        Earlier::Nothing => Default::default(),
        Earlier::Dead(link_dirs) => (None, View::default(), BTreeSet::new(), link_dirs),
        Earlier::View(inherited) => {
            let State { view, roots, link_dirs, .. } = inherited.state.clone();
            (Some(*inherited), view, roots, link_dirs)
        }
    };
    let former = link_dirs.iter().filter(|dir| settings.gc_root.as_ref() != Some(*dir));
    let former = former.map(|dir| RootLinks::new(dir, &settings.name, BTreeSet::new())).collect();
    link_dirs.extend(settings.gc_root.clone());
    let links = settings.gc_root.as_ref().map(|dir| RootLinks::new(dir, &settings.name, roots));
    let task = Task { uri: settings.store.clone(), roots: settings.roots.clone(), held, links, former };
    let resolver = Resolver::start(task).map_err(system("start a thread"))?;
    resolver.ask();
    let resume = inherited.is_some();
    let prepared = match prepare(&settings, &signals, &resolver, inherited) {
        Ok(Begun::Prepared(prepared)) => prepared,
        Ok(Begun::Stopped(None)) => {
            resolver.end(Left::Earlier);
            return Ok(None);
        }
        Ok(Begun::Stopped(Some(earlier))) => {
            let Inherited { device, mounted, .. } = *earlier;
            systemd::stopping();
            unmount(&mounted)?;
            drop(device);
            clean_up(&mounted, state, &resolver);
            return Ok(None);
        }
        Err(error) => {
            resolver.end(Left::Earlier);
            return Err(error);
        }
    };
    systemd::store_device(&prepared.device);
    let control = state.as_ref().and_then(listen);
    let Prepared {
        mounted,
        device,
        agreement,
        store,
        store_path,
        watch,
        probe,
        view,
        roots,
        resolution,
        epoch,
        unsettled,
        spare,
    } = *prepared;
    let monitor = Monitor {
        settings,
        signals,
        resolver,
        state,
        control,
        watch,
        mounted,
        device,
        store,
        store_path,
        agreement,
        view,
        roots,
        link_dirs,
        resolution,
        epoch,
        unsettled,
        server: None,
        spare: Some(spare),
        resume,
        journal: false,
        served: false,
        restart: None,
        backoff: Backoff::default(),
        probe,
        ready: false,
        since: SystemTime::now(),
        reload: Reload::Idle,
        queue: Vec::new(),
        again: false,
    };
    monitor.write_state();
    Ok(Some(monitor))
}

/// How far a start came.
enum Begun {
    Prepared(Box<Prepared>),
    /// A signal asked for the end; with what an earlier monitor left.
    Stopped(Option<Box<Inherited>>),
}

/// Resolves, and mounts or takes over. A failure leaves no new mount; the links are the caller's.
fn prepare(
    settings: &Settings,
    signals: &SignalFd,
    resolver: &Resolver,
    inherited: Option<Inherited>,
) -> Result<Begun, MonitorError> {
    let spare = Server::spawn().map_err(system("start the server"))?;
    let Some(answer) = first_answer(resolver, signals)? else {
        return Ok(Begun::Stopped(inherited.map(Box::new)));
    };
    let (found, found_roots, resolution, store_path, depends_on) = match (answer, &inherited) {
        (Ok(Answer { number, resolution, store }), _) => {
            let roots = resolution.closure.roots().iter().cloned().collect();
            (resolution.closure.view(), roots, Some(number), store, resolution.depends_on)
        }
        (Err(error), Some(Inherited { state, .. })) => {
            let why = crate::error::chain(&error);
            tracing::error!("keeping the closure of the earlier monitor until a reload succeeds: {why}");
            (state.view.clone(), state.roots.clone(), None, state.store.clone(), Vec::new())
        }
        (Err(error), None) => return Err(error.into()),
    };
    let store = open_store(&store_path)?;
    // Whatever may fail comes before the mount, or takes it back.
    let mut watch = settings.watch.then(Watch::new).transpose().map_err(MonitorError::Watch)?;
    watch.iter_mut().for_each(|watch| watch.set(&depends_on));
    let probe = event()?;
    let (mounted, device, agreement, view, roots, epoch, unsettled) = match inherited {
        Some(Inherited { device, mounted, state }) => {
            let view = if settings.prune { found } else { state.view.union(&found) };
            let roots = if settings.prune { found_roots } else { &state.roots | &found_roots };
            let mut unsettled = state.unsettled;
            unsettled.extend(view.difference(&state.view).chain(state.view.difference(&view)).cloned());
            tracing::info!(mountpoint = %mounted.at().display(), "taking over the view of an earlier monitor");
            (mounted, device, state.agreement, view, roots, state.epoch.wrapping_add(1), unsettled)
        }
        None => {
            let (mounted, device) =
                Point::prepare(&settings.mountpoint, &settings.name)?.mount(&settings.name)?;
            let agreement = agree(settings, &mounted, &device, &store)?;
            (mounted, device, agreement, found, found_roots, 1, Vec::new())
        }
    };
    Ok(Begun::Prepared(Box::new(Prepared {
        mounted,
        device,
        agreement,
        store,
        store_path,
        watch,
        probe,
        view,
        roots,
        resolution,
        epoch,
        unsettled,
        spare,
    })))
}

/// A view can do without a state directory, but not with somebody else's.
fn open_state(settings: &Settings) -> Result<Option<StateDir>, MonitorError> {
    match StateDir::open(&settings.state, &settings.name) {
        Ok(state) => Ok(Some(state)),
        Err(error @ StateError::Taken { .. }) => Err(error.into()),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "no state directory: --reload does not work, and the view would not survive a crash"
            );
            Ok(None)
        }
    }
}

fn inherit(state: Option<&StateDir>, settings: &Settings) -> Result<Earlier, MonitorError> {
    let device = systemd::stored_device();
    let Some(dir) = state else { return Ok(Earlier::Nothing) };
    let Some(device) = device else { return Ok(dead(dir)) };
    let Some(state) = dir.read()? else {
        // A mount of which nothing is known can never be taken over. It has no server: the name is ours.
        systemd::forget_device();
        if let Some(mounted) = Mounted::found(&settings.mountpoint, &settings.name, false)? {
            tracing::warn!(
                "an earlier monitor left a mount without a state; unmounting it and mounting the view again"
            );
            mounted.unmount(|_| ())?;
        }
        return Ok(Earlier::Nothing);
    };
    let Some(mounted) = Mounted::found(&state.mountpoint, &settings.name, state.created)? else {
        systemd::forget_device();
        return Ok(Earlier::Dead(state.link_dirs));
    };
    Ok(Earlier::View(Box::new(Inherited { device, mounted, state })))
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

type FirstAnswer = Option<Result<Answer, ResolveError>>;

fn first_answer(resolver: &Resolver, signals: &SignalFd) -> Result<FirstAnswer, MonitorError> {
    loop {
        wait(&[resolver.ready(), signals.as_fd()], None).map_err(system("wait for the store"))?;
        if let Some(answer) = resolver.answer() {
            return Ok(Some(answer));
        }
        if matches!(next_signal(signals), Some(Signal::SIGTERM | Signal::SIGINT)) {
            return Ok(None);
        }
    }
}

fn open_store(path: &Path) -> Result<OwnedFd, MonitorError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| MonitorError::Store { path: PathBuf::from(path), source: error.into() })
}

fn listen(dir: &StateDir) -> Option<super::Control> {
    let path = dir.control();
    super::Control::listen(&path)
        .inspect_err(
            |error| tracing::warn!(%error, path = %path.display(), "cannot listen on the control socket; --reload will not work"),
        )
        .ok()
}

fn agree(
    settings: &Settings,
    mounted: &Mounted,
    device: &OwnedFd,
    store: &OwnedFd,
) -> Result<handshake::Agreement, MonitorError> {
    let root = rustix::process::geteuid().is_root();
    let stacked = rustix::fs::fstatfs(store).is_ok_and(|fs| u32::try_from(fs.f_type) == Ok(OVERLAYFS));
    let io = if root { settings.io } else { Io::Cached };
    let wishes = Wishes { io, idmap: root, store_depth: u32::from(stacked) };
    let agreement = handshake::answer(device, wishes).inspect_err(|_| {
        let _ = mounted.unmount(|_| ());
    })?;
    if root && let Err(error) = mounted.set_read_ahead(handshake::READ_MAX) {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "cannot raise the read-ahead; files are read in smaller requests"
        );
    }
    if agreement.io != settings.io {
        tracing::warn!(
            "falling back to --io cached: passthrough needs CAP_SYS_ADMIN, Linux 6.9 or newer, and a store that is not on a \
             nested overlayfs"
        );
    }
    if !root {
        tracing::warn!(
            "mounted as an ordinary user: only you can see the view, not root and no container of another user"
        );
    }
    Ok(agreement)
}
