//! Which view a person means, and where views and their state are.

use std::io;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use crate::error;
use crate::monitor;
use crate::monitor::mount::{self, MountError};
use crate::protocol::control::{AskError, ReloadError};

/// Where views and their state are: `/run/nix-store-fs`, for ordinary users in their own runtime directory.
pub(super) fn base() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return "/run/nix-store-fs".into();
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let own = || std::env::temp_dir().join(format!("nix-store-fs-{}", user.as_raw()));
    runtime.map_or_else(own, |dir| dir.join("nix-store-fs"))
}

/// Where the state directories of views are.
pub(super) fn states() -> PathBuf {
    base().join(".state")
}

/// Where profiles of use are, where nobody has said: a cache, which a service manager may have made (systemd.exec(5), `CacheDirectory=`).
pub(super) fn profiles() -> Option<PathBuf> {
    let variable = |name| {
        // One of them, where there are several.
        let value = std::env::var_os(name)?;
        std::env::split_paths(&value).next().filter(|dir| dir.is_absolute())
    };
    if rustix::process::geteuid().is_root() {
        return Some(variable("CACHE_DIRECTORY").unwrap_or_else(|| "/var/cache/nix-store-fs".into()));
    }
    let own = || variable("HOME").map(|home| home.join(".cache"));
    variable("XDG_CACHE_HOME").or_else(own).map(|dir| dir.join("nix-store-fs/profiles"))
}

/// Whether `name` can be the name of a view: a directory, and a word of the mount table.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "+-._=@:".contains(c);
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(fits)
}

/// Why a view has not told of itself.
#[derive(Debug, thiserror::Error)]
#[error("view '{view}'")]
pub struct Unanswered {
    /// The view.
    pub view: String,
    /// Why not.
    #[source]
    pub why: NoAnswer,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// There is no such view, or it has ended.
    #[error("no view of this name is being served; 'nix-store-fs status' lists those that are")]
    Absent,
    /// Its processes are gone, and what it has on disk is there.
    #[error(
        "it is not served any more: its processes were killed; start it again, which clears away what they have left in '{}'",
        .0.display()
    )]
    Ended(PathBuf),
    /// A server without a monitor serves it.
    #[error("nobody is there to tell: {0}")]
    Unmonitored(String),
    /// Its monitor is there.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// A running view's name, and its state directory, which is this user's own.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) state: PathBuf,
}

impl Running {
    /// The view that a person calls `view`; none: that is no view's name or mount point. A view of the name need not be there.
    ///
    /// # Errors
    /// Those of [`name_of`], and of a state directory that somebody else may have made.
    pub(super) fn find(view: &Path) -> Result<Option<Self>, Failure> {
        let states = states();
        let served = |name: &str| monitor::state::control(&states.join(name)).exists();
        let Some(name) = name_of(view, served, mount::view_at)? else { return Ok(None) };
        let state = states.join(&name);
        monitor::state::examine(&state)?;
        Ok(Some(Self { name, state }))
    }

    /// The view that a person asks about.
    ///
    /// # Errors
    /// [`Failure::NoView`], and those of [`Self::find`].
    pub(super) fn asked_about(view: &Path) -> Result<Self, Failure> {
        Self::find(view)?.ok_or_else(|| Failure::NoView(view.to_owned()))
    }

    /// Its monitor has not answered, maybe because there is none.
    pub(super) fn unanswered(&self, error: AskError) -> Unanswered {
        let why = match error {
            AskError::NotServed(_) => self.without_monitor(),
            error => NoAnswer::Ask(error),
        };
        Unanswered { view: self.name.clone(), why }
    }

    fn without_monitor(&self) -> NoAnswer {
        if !self.control().exists() {
            return NoAnswer::Absent;
        }
        match self.refuse_served() {
            Ok(()) => NoAnswer::Ended(self.state.clone()),
            Err(served) => NoAnswer::Unmonitored(error::chain(&served)),
        }
    }

    /// An error if a server serves it.
    fn refuse_served(&self) -> Result<(), MountError> {
        mount::refuse_served(&monitor::state::server_lock(&self.state), &self.name)
    }

    /// Where its monitor listens.
    pub(super) fn control(&self) -> PathBuf {
        monitor::state::control(&self.state)
    }

    /// Nobody may listen because the monitor has died, though its server still serves.
    pub(super) fn explain(&self, error: ReloadError) -> ReloadError {
        if !matches!(error, ReloadError::NotServed { .. }) {
            return error;
        }
        match self.refuse_served() {
            Err(served @ MountError::Served(_)) => ReloadError::Unmonitored(served.to_string()),
            _ => error,
        }
    }
}

/// All views of this user that somebody serves, or should, in the order of their names.
///
/// # Errors
/// [`Failure::Views`].
pub(super) fn all() -> Result<Vec<Running>, Failure> {
    let states = states();
    let entries = match states.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let names = entries
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
    let names = names.map_err(|source| Failure::Views { path: states.clone(), source })?;
    let names = names.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| is_name(name));
    let mut all: Vec<Running> = names.map(|name| Running { state: states.join(&name), name }).collect();
    // One that begins has no socket yet, and one that has ended has none any more.
    all.retain(|view| view.control().exists() && monitor::state::examine(&view.state).is_ok());
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The name of the view that a person calls `view`: by its name, or by where it is mounted. A name that is served wins.
///
/// # Errors
/// Those of `mounted`.
fn name_of(
    view: &Path,
    served: impl Fn(&str) -> bool,
    mounted: impl Fn(&Path) -> Result<Option<String>, MountError>,
) -> Result<Option<String>, MountError> {
    let name = view.to_str().filter(|name| is_name(name));
    if let Some(name) = name.filter(|name| served(name)) {
        return Ok(Some(name.to_owned()));
    }
    // The mount table has what somebody asked for at the mount, and a name is a part of paths here.
    let mounted = mounted(view)?.filter(|name| is_name(name));
    // A name that nobody serves is looked for all the same: that says where.
    Ok(mounted.or_else(|| name.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_reloaded_by_name_or_by_place() {
        let mounted = |at: &Path| {
            let hostile = [("/up", "../../tmp/x"), ("/absolute", "/tmp/x"), ("/empty", ""), ("/hidden", ".")];
            let hostile = hostile.into_iter().find(|(place, _)| Path::new(place) == at).map(|(_, name)| name);
            let view = ["/mnt", ".", "here", "db"].map(Path::new).contains(&at).then_some("web");
            Ok(view.or(hostile).map(str::to_owned))
        };
        let served = |name: &str| ["web", "db"].contains(&name);
        for (view, expected) in [
            ("web", Some("web")),
            ("/mnt", Some("web")),
            (".", Some("web")),
            ("here", Some("web")),
            // Both a view's name and a mount point.
            ("db", Some("db")),
            ("nosuch", Some("nosuch")),
            ("./nosuch", None),
            ("/other", None),
            ("..", None),
            ("/up", None),
            ("/absolute", None),
            ("/empty", None),
            ("/hidden", None),
        ] {
            assert_eq!(name_of(Path::new(view), served, mounted).unwrap().as_deref(), expected, "{view}");
        }
    }
}
