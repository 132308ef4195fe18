//! `run`: a command that sees the closure as its store, as an ordinary user and as root.

mod answers;
mod faults;
mod isolation;
mod kills;
mod many;
mod nix;
mod seen;
mod terminal;
mod told;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::util::fixture::Fixture;
use crate::util::program::{Finished, Program};
use crate::util::store::NixStore;
use crate::util::user::{NOBODY, User};
use crate::util::{DEADLINE, mounts};

/// Who runs the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    Nobody,
}

/// Both, for tests that hold for each.
pub(crate) const BOTH: [Who; 2] = [Who::Root, Who::Nobody];

/// A closure, and somebody who runs commands over it.
#[derive(Debug)]
pub(crate) struct Runs {
    pub(crate) fixture: Fixture,
    user: Option<User>,
}

impl Runs {
    pub(crate) fn by(who: Who) -> Self {
        match who {
            Who::Root => Self { fixture: Fixture::new(), user: None },
            Who::Nobody => {
                Self { fixture: Fixture::in_store(NixStore::owned_by(NOBODY)), user: Some(User::new()) }
            }
        }
    }

    /// `run` with these words behind it, on the store of the test.
    pub(crate) fn program(&self, words: &[&str]) -> Program {
        let program = Program::new().arg("run").arg("--store").arg(self.fixture.store.uri());
        // The directory that the tests run in may be closed to others.
        self.as_user(program.args(["--chdir", "/"]).args(words))
    }

    pub(crate) fn as_user(&self, program: Program) -> Program {
        match &self.user {
            Some(user) => user.with_device(program, "0666", "/usr/bin:/bin"),
            None => program,
        }
    }

    /// The same with the fixture's system, and options before the command.
    pub(crate) fn with(&self, options: &[&str], command: &[&str]) -> Program {
        let roots = ["--root", self.fixture.system.path.as_str()];
        self.program(&[&roots, options, &["--"], command].concat())
    }

    /// A shell script over the fixture's system.
    pub(crate) fn script(&self, options: &[&str], script: &str) -> Finished {
        self.with(options, &["sh", "-c", script]).run()
    }

    /// What the command line of [`Program::words`] needs in its environment.
    pub(crate) fn environment(&self, command: &mut Command) {
        if let Some(user) = &self.user {
            command.env("LD_LIBRARY_PATH", user.dir()).env("XDG_RUNTIME_DIR", user.runtime());
        }
    }

    /// `run` by an ordinary user who finds `/dev/fuse` with this mode.
    pub(crate) fn with_device_of(&self, mode: &str, words: &[&str]) -> Program {
        let program = Program::new().arg("run").arg("--store").arg(self.fixture.store.uri());
        let user = self.user.as_ref().expect("an ordinary user");
        user.with_device(program.args(["--chdir", "/"]).args(words), mode, "/usr/bin:/bin")
    }

    /// A directory that whoever runs the command may write.
    pub(crate) fn own_dir(&self) -> tempfile::TempDir {
        let dir = crate::util::scratch();
        if self.user.is_some() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        dir
    }
}

/// Waits until no process of the program has to do with `store`; then no view of a run is mounted where the tests see it.
pub(crate) fn nothing_is_left(store: &Path) {
    let until = Instant::now() + DEADLINE;
    loop {
        let left = processes_with(store);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "still there: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        !mounts::all().iter().any(|mount| mount.source.starts_with("nix-store-fs:run-") && mount.at.exists()),
        "a view is mounted outside"
    );
}

/// Processes of the program that have something open in `store`, and those that were started for it.
pub(crate) fn processes_with(store: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !comm.starts_with("nix-store-fs") || pid == std::process::id() {
            continue;
        }
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let named = String::from_utf8_lossy(&words).contains(&*store.to_string_lossy());
        let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let holds =
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.starts_with(store));
        if named || holds {
            let name = words.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = Path::new(std::str::from_utf8(name).unwrap_or_default()).file_name();
            found.push((pid, name.unwrap_or_default().to_string_lossy().into_owned()));
        }
    }
    found
}
