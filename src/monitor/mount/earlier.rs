//! A server that an earlier monitor of the same view left behind.
//!
//! Where no service manager keeps the device, a server whose monitor was killed serves on until the view is unmounted in
//! every mount namespace. It holds the lock that the next server needs, so a view mounted now would not be answered.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::processes::{self, Holder};
use super::{MountError, source};
use crate::mounts::mounts;
use crate::sys::lock;

/// How long a server that was just unmounted may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// How long it is looked for who has the view mounted.
const SEARCH: Duration = Duration::from_secs(1);

/// The view is still served by a server without a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    name: String,
    /// The server's process id, if it has said it.
    server: Option<u32>,
    /// Where it is mounted in this mount namespace.
    here: Vec<PathBuf>,
    /// Who has it mounted in another.
    elsewhere: Vec<Holder>,
}

/// Refuses to begin while a server of the view `name`, whose lock is `server_lock`, is alive. The caller holds the name.
///
/// # Errors
/// [`MountError::Served`], [`MountError::ServerLock`].
pub fn refuse_served(server_lock: &Path, name: &str) -> Result<(), MountError> {
    let fail = |source| MountError::ServerLock { path: server_lock.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = match rustix::fs::open(server_lock, flags, Mode::empty()) {
        Ok(file) => file.into(),
        // No server has ever begun.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(fail(error.into())),
    };
    if lock::take_within(&file, LAST_BREATH).map_err(fail)? {
        return Ok(());
    }
    let mut said = String::new();
    let server = file.read_to_string(&mut said).ok().and_then(|_| said.trim().parse().ok());
    let source = source(name);
    let here =
        mounts()?.into_iter().filter(|mount| mount.is_own_view_from(&source)).map(|mount| mount.at).collect();
    let elsewhere = processes::holders(&source, SEARCH);
    Err(MountError::Served(Box::new(Served { name: name.to_owned(), server, here, elsewhere })))
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, server, here, elsewhere } = self;
        let server = server.map_or_else(|| "a server".to_owned(), |pid| format!("the server (pid {pid})"));
        write!(f, "the view '{name}' is still served, by {server} of a monitor that has died; ")?;
        if let [first, rest @ ..] = here.as_slice() {
            write!(f, "it is mounted on '{}'", first.display())?;
            rest.iter().try_for_each(|at| write!(f, ", '{}'", at.display()))?;
            if !elsewhere.is_empty() {
                write!(f, ", and ")?;
            }
        }
        if !elsewhere.is_empty() {
            let holders: Vec<String> = elsewhere
                .iter()
                .map(|Holder { process, at, .. }| format!("{process} on '{}'", at.display()))
                .collect();
            write!(f, "it is mounted in the mount namespace of {}", processes::named(&holders))?;
        }
        match (here.first(), elsewhere.first()) {
            (Some(at), None) => write!(f, ": run 'umount {}', then start again", at.display()),
            (None, Some(_)) => write!(f, ": unmount it there or end these processes, then start again"),
            (Some(_), Some(_)) => write!(f, ": unmount it in all of these places, then start again"),
            (None, None) => {
                write!(
                    f,
                    "no mount of it was found: wait until that server has ended, or kill it, then start again"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_a_server_is_said() {
        let served = |here: &[&str], elsewhere: &[(&str, &str)]| {
            let holder = |(process, at): &(&str, &str)| Holder {
                process: (*process).to_owned(),
                at: at.into(),
                way: PathBuf::new(),
            };
            Served {
                name: "web".to_owned(),
                server: Some(7),
                here: here.iter().map(PathBuf::from).collect(),
                elsewhere: elsewhere.iter().map(holder).collect(),
            }
            .to_string()
        };
        let begin = "the view 'web' is still served, by the server (pid 7) of a monitor that has died; ";
        for (here, elsewhere, end) in [
            (&["/a"][..], &[][..], "it is mounted on '/a': run 'umount /a', then start again"),
            (
                &[],
                &[("sh (1)", "/b"), ("sh (2)", "/c")],
                "it is mounted in the mount namespace of sh (1) on '/b', sh (2) on '/c': unmount it there or end these \
                 processes, then start again",
            ),
            (
                &["/a", "/d"],
                &[("sh (1)", "/b")],
                "it is mounted on '/a', '/d', and it is mounted in the mount namespace of sh (1) on '/b': unmount it in \
                 all of these places, then start again",
            ),
            (
                &[],
                &[],
                "no mount of it was found: wait until that server has ended, or kill it, then start again",
            ),
        ] {
            assert_eq!(served(here, elsewhere), format!("{begin}{end}"));
        }
    }

    #[test]
    fn a_lock_is_free_when_nobody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server");
        refuse_served(&path, "no-such-view").unwrap();
        let holder = File::create(&path).unwrap();
        std::fs::write(&path, "7\n").unwrap();
        rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let refused = refuse_served(&path, "no-such-view").unwrap_err();
        assert!(matches!(&refused, MountError::Served(served) if served.server == Some(7)), "{refused}");
        drop(holder);
        refuse_served(&path, "no-such-view").unwrap();
    }
}
