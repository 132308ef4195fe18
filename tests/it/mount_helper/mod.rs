//! `mount.fuse.nix-store-fs`, called by the machine's own mount(8), in a mount namespace where it is installed.

mod calls;
mod host;
mod life;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use crate::util::fixture::Fixture;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The options that every view of a fixture has, with a name of its own.
fn options(fixture: &Fixture, name: &str) -> String {
    format!("store={},name={name}", fixture.store.uri())
}

/// What mounts the fixture's system at `at`, for a shell.
fn mount(fixture: &Fixture, at: &Path, name: &str) -> String {
    let options = options(fixture, name);
    format!("mount -t fuse.nix-store-fs {} {} -o {options}", fixture.system.path, at.display())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
