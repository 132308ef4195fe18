//! A container whose `/nix/store` is a view, booted until its systemd says that it is up.
//!
//! The container is that of `--boot DIR`: a root directory whose systemd comes from the closure. Hard points:
//!
//! 1. systemd-nspawn wants a cgroup tree of version 2 only; a machine with another gets one in a mount and cgroup
//!    namespace of the container's own, which a process (this same executable, see [`enter`]) takes before it
//!    becomes systemd-nspawn.
//! 2. The very first boot of a root sets up more than later ones; [`Boot::find`] does that one.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::corpus::Corpus;
use crate::fault::{Doing, Outcome};
use crate::service::Service;

/// The argument by which this executable knows that it shall become a container.
pub(crate) const CONTAINER: &str = "container";

const CGROUPS: &str = "/sys/fs/cgroup";

/// What it takes to boot.
#[derive(Debug)]
pub(crate) struct Boot {
    root: PathBuf,
    work: PathBuf,
}

impl Boot {
    /// Boots the root once from `view`, which lacks nothing; notes why it cannot be done.
    pub(crate) fn find(
        root: Option<&Path>,
        corpus: &Corpus,
        view: &Path,
        work: &Path,
        notes: &mut Vec<String>,
    ) -> Option<Self> {
        let Some(root) = root else {
            notes.push("`boot` is left out: no container was given with --boot".into());
            return None;
        };
        let boot = Self { root: root.to_owned(), work: work.to_owned() };
        match boot.time(corpus, view) {
            Ok(_) => Some(boot),
            Err(fault) => {
                notes.push(format!("`boot` is left out: {fault}"));
                None
            }
        }
    }

    /// Boots with the store from `view`, and shuts down; returns the time from start to systemd's READY.
    pub(crate) fn time(&self, corpus: &Corpus, view: &Path) -> Outcome<Duration> {
        let doing = || format!("booting {}", self.root.display());
        let mut command = Command::new(std::env::current_exe().doing(doing)?);
        command.arg(CONTAINER).arg(format!("--directory={}", self.root.display()));
        command.arg(format!("--bind-ro={}:{}", view.display(), corpus.logical.display()));
        let (service, taken) = Service::start(command, &self.work, "boot").doing(doing)?;
        service.stop().doing(doing)?;
        Ok(taken)
    }
}

/// The other life of this executable: becomes systemd-nspawn with these arguments.
pub(crate) fn enter(arguments: &[OsString]) -> Outcome<()> {
    let doing = || "making a cgroup tree for the container".to_owned();
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).doing(doing)?;
    let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", propagation).doing(doing)?;
    if !Path::new(CGROUPS).join("cgroup.controllers").exists() {
        rustix::mount::unmount(CGROUPS, UnmountFlags::DETACH).doing(doing)?;
        rustix::mount::mount(c"cgroup2", CGROUPS, c"cgroup2", MountFlags::empty(), None).doing(doing)?;
    }
    let mut command = Command::new("systemd-nspawn");
    command.args(["--quiet", "--register=no", "--keep-unit", "--machine=nix-store-fs-bench"]);
    command.args(["--notify-ready=yes", "--console=pipe", "--boot"]).args(arguments);
    Err(command.exec()).doing(|| "becoming systemd-nspawn".into())
}
