//! An ordinary user, played by root: nobody, as a rule, with a runtime directory and a `/dev/fuse` of a mode of our choosing.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Pid;
use tempfile::TempDir;

use super::program::{Mounted, Program, unique_name};
use super::store;

/// The user whom tests borrow when they must not be root.
pub(crate) const NOBODY: u32 = 65534;

/// What the user has: a runtime directory, and a copy of the program, since the build may be closed to others.
#[derive(Debug)]
pub(crate) struct User {
    dir: TempDir,
    uid: u32,
}

impl User {
    pub(crate) fn new() -> Self {
        Self::of(NOBODY)
    }

    /// A user of a number of one's own.
    pub(crate) fn of(uid: u32) -> Self {
        let dir = super::scratch();
        Program::install(dir.path());
        fs::create_dir(dir.path().join("dev")).unwrap();
        copy_nix_libraries(dir.path());
        let runtime = dir.path().join("runtime");
        fs::create_dir(&runtime).unwrap();
        chown(&runtime, Some(uid), Some(uid)).unwrap();
        Self { dir, uid }
    }

    /// Where the program lies, and Nix's libraries.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.dir.path().join("runtime")
    }

    /// The directory with the program, and with the libraries that it needs.
    pub(crate) fn programs(&self) -> &Path {
        self.dir.path()
    }

    /// What the program's directories below the runtime directory still hold.
    pub(crate) fn left_behind(&self) -> Vec<PathBuf> {
        let views = self.runtime().join("nix-store-fs");
        let state = views.join(".state");
        let held = |path: &Path| super::tree::list(path).unwrap_or_default();
        held(&views).into_iter().filter(|name| name.as_os_str() != ".state").chain(held(&state)).collect()
    }

    /// The program as this user, on the machine as it is.
    pub(crate) fn plain(&self, program: Program) -> Program {
        self.wrapped(program, &["setpriv"])
    }

    /// The program as this user, in a mount namespace where `/dev/fuse` has this mode, with this `PATH`.
    pub(crate) fn with_device(&self, program: Program, mode: &str, path: &str) -> Program {
        let script = format!(
            "mount -t tmpfs none {0} && mknod {0}/fuse c 10 229 && chmod {mode} {0}/fuse && \
             mount --bind {0}/fuse /dev/fuse && setpriv=$(command -v setpriv) && PATH={path} && exec $setpriv \"$@\"",
            self.dir.path().join("dev").display()
        );
        self.wrapped(program, &["unshare", "-m", "sh", "-c", &script, "sh"])
    }

    /// Mounts at the user's default mount point; returns the name of the view as well.
    pub(crate) fn mount(&self, program: Program) -> (Mounted, String) {
        let name = unique_name();
        let at = self.runtime().join("nix-store-fs").join(&name);
        let program = self.with_device(program.args(["--name", &name]), "0666", "/usr/bin:/bin");
        (program.mount_at(at), name)
    }

    fn wrapped(&self, program: Program, wrapper: &[&str]) -> Program {
        let user = store::as_user(self.uid);
        program
            .inside(wrapper.iter().copied().chain(user.iter().map(String::as_str)))
            .binary(self.dir.path().join("nix-store-fs"))
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env("LD_LIBRARY_PATH", self.dir.path())
    }

    /// Runs a command as some user in the mount namespace of a process.
    pub(crate) fn beside(process: Pid, uid: u32, command: &[&str]) -> Output {
        let pid = process.as_raw_nonzero().to_string();
        Command::new("nsenter")
            .args(["-t", &pid, "-m", "setpriv"])
            .args(store::as_user(uid))
            .args(command)
            .output()
            .unwrap()
    }
}

/// Nix's libraries may lie in root's home directory, which others cannot enter.
fn copy_nix_libraries(to: &Path) {
    let output = Command::new("ldd").arg(Program::PATH).output().unwrap();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, "=>", file, ..] = words[..]
            && name.starts_with("libnix")
        {
            fs::copy(file, to.join(name)).unwrap();
        }
    }
}
