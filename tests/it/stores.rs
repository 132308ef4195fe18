//! Without `--store`, the program opens the store that Nix's own commands open in the same environment.

use std::fs;
use std::process::{Command, Stdio};

use crate::util::program::Program;
use crate::util::scratch;
use crate::util::store::{Member, NixStore, nix_environment};

/// Stores `A` and `B`, each with a path that the other does not have.
struct Two {
    a: (NixStore, Member),
    b: (NixStore, Member),
}

impl Two {
    fn new() -> Self {
        let [a, b] = ["only-in-a", "only-in-b"].map(|name| {
            let store = NixStore::new();
            let member = store.add(name, &[], |path| fs::write(path, name).unwrap());
            (store, member)
        });
        Self { a, b }
    }

    /// `A` or `B` if the words that begin a command print the closure of that store's path and fail for the
    /// other's.
    fn opened_by(&self, name: &str, says: impl Fn(&str) -> Option<String>) -> &'static str {
        let found =
            [&self.a, &self.b].map(|(_, member)| says(&member.path) == Some(format!("{}\n", member.path)));
        match found {
            [true, false] => "A",
            [false, true] => "B",
            _ => panic!("{name} opened neither A nor B: {found:?}"),
        }
    }
}

/// The environment and `nix.conf` decide, in Nix's order, and `--store` overrides both.
#[test]
fn the_store_is_the_one_that_nix_opens() {
    need!(Nix);
    let two = Two::new();
    let (a, b) = (two.a.0.uri(), two.b.0.uri());
    let conf_of_b = scratch();
    fs::write(conf_of_b.path().join("nix.conf"), format!("build-users-group =\nstore = {b}\n")).unwrap();
    let conf_of_b = conf_of_b.path().to_str().unwrap().to_owned();
    let config_of_b = format!("build-users-group =\nstore = {b}\n");
    let root_of_a = two.a.0.root().to_str().unwrap().to_owned();
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>, &'a str);
    let cases: &[Case<'_>] = &[
        ("NIX_REMOTE", &[("NIX_REMOTE", &a)], None, "A"),
        ("NIX_REMOTE is a directory", &[("NIX_REMOTE", &root_of_a)], None, "A"),
        ("NIX_CONFIG", &[("NIX_CONFIG", &config_of_b)], None, "B"),
        ("nix.conf", &[("NIX_CONF_DIR", &conf_of_b)], None, "B"),
        // For Nix, NIX_REMOTE is the default of the setting: a setting wins.
        ("nix.conf and NIX_REMOTE", &[("NIX_CONF_DIR", &conf_of_b), ("NIX_REMOTE", &a)], None, "B"),
        ("--store and NIX_REMOTE", &[("NIX_REMOTE", &b)], Some(&a), "A"),
        ("--store and nix.conf", &[("NIX_CONF_DIR", &conf_of_b)], Some(&a), "A"),
    ];
    for (name, environment, option, expected) in cases {
        let nix = |path: &str| {
            let mut command = Command::new("nix-store");
            nix_environment(&mut command).envs(environment.iter().copied()).env_remove("LD_LIBRARY_PATH");
            command.args(option.iter().flat_map(|uri| ["--store", uri])).args(["-qR", path]);
            let output = command.stdin(Stdio::null()).output().unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        };
        let ours = |path: &str| {
            let mut program = Program::new().args(option.iter().flat_map(|uri| ["--store", uri]));
            for (key, value) in *environment {
                program = program.env(key, value);
            }
            let finished = program.args(["--dump-closure", "--system", path]).run();
            finished.status.success().then_some(finished.stdout)
        };
        assert_eq!(two.opened_by(name, nix), *expected, "{name}, nix-store");
        assert_eq!(two.opened_by(name, ours), *expected, "{name}");
    }
}

/// A view is served from that store as well.
#[test]
fn a_view_is_served_from_the_store_of_the_environment() {
    need!(Root, Fuse, Nix);
    let two = Two::new();
    let (store, member) = &two.a;
    let view = Program::new().env("NIX_REMOTE", store.uri()).args(["--system", &member.path]).mount();
    assert_eq!(fs::read(view.path().join(&member.base)).unwrap(), b"only-in-a");
}

/// `--store auto` is the local store or the daemon, as for Nix's commands, whatever the environment names.
#[test]
fn an_explicit_auto_ignores_the_environment() {
    need!(Nix);
    let two = Two::new();
    let (store, member) = &two.a;
    let empty = scratch();
    let program = Program::new().env("NIX_REMOTE", store.uri()).env("NIX_STATE_DIR", empty.path());
    let finished = program.args(["--store", "auto", "--dump-closure", "--system", &member.path]).run();
    assert_eq!(finished.status.code(), Some(5), "{finished:?}");
    assert!(finished.stderr.contains("there is no Nix store at 'auto'"), "{finished:?}");
}

/// A message about a store that nobody gave on the command line says where its address comes from.
#[test]
fn a_message_names_the_origin_of_the_address() {
    for (remote, code) in [("dummy://", 5), ("gopher://example", 5), ("local?root=/nonexistent", 5)] {
        let program = Program::new().env("NIX_REMOTE", remote);
        let finished = program.args(["--dump-closure", "--system", &NixStore::name("x").path]).run();
        assert_eq!(finished.status.code(), Some(code), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        for part in [remote, "NIX_REMOTE", "nix.conf", "--store"] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
    }
}
