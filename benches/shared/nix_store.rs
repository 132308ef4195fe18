//! Nix's own command on a store of a benchmark's own, and how busy the machine is.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs `nix-store` on the store at `uri` with `input`; it has to succeed.
pub(crate) fn nix_store(uri: &str, arguments: &[&str], input: &str) {
    let mut command = Command::new("nix-store");
    command.args(arguments).env("NIX_REMOTE", uri).env_remove("LD_LIBRARY_PATH");
    command.env("NIX_CONFIG", "build-users-group =\nsubstitute = false\n");
    let mut child = command.stdin(Stdio::piped()).spawn().expect("nix-store");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("nix-store reads");
    assert!(child.wait().expect("nix-store").success(), "{command:?}");
}

/// Processes that ran or wanted to, on average, in the last minute (proc_loadavg(5)).
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("/proc/loadavg");
    text.split(' ').next().unwrap_or_default().to_owned()
}
