//! What was typed, as what is run and what its view is made from. Nothing is opened.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::parser::ArgMatches;

use super::super::config::ConfigError;
use super::super::serve as serving;
use super::{Args, inside};
use crate::closure::resolve::Roots;
use crate::closure::source::Source;
use crate::log::{LogSettings, Sink};
use crate::monitor;
use crate::protocol::handshake::Io;
use crate::protocol::task::Prefetch;
use crate::protocol::wire::Outlasts;
use crate::run::{self, Access, Hiding, Hint, Network, ProcessTable, Wish};
use crate::sandbox::{self, Sandbox};
use crate::server::idle::IdlePolling;
use crate::startup::Original;
use crate::store::Place;

/// Where Nix keeps what is not in the store: database, profiles, logs, the daemon's socket.
const STATE: &str = "/nix/var";
/// Where the daemon listens, if not there.
const SOCKET: &str = "NIX_DAEMON_SOCKET_PATH";
/// The store that Nix's commands open.
const REMOTE: &str = "NIX_REMOTE";
/// What follows the state directory of a store.
const BELOW_STATE: &str = "nix";

/// What is run, and what its view is made from.
///
/// # Errors
/// [`ConfigError`].
pub(super) fn settings(
    args: Args,
    wishes: Vec<Wish>,
    original: Original,
    log: LogSettings,
) -> Result<(run::Settings, monitor::Settings), ConfigError> {
    let mut variables = variables(args.clearenv, &args.setenv);
    let value = |name: &str| {
        let found = variables.iter().rfind(|(variable, _)| variable == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    };
    let store = args.roots.store.clone();
    // An address that cannot be used is an error when it is.
    let remote = || std::env::var(REMOTE).ok().filter(|remote| !remote.is_empty());
    let place = Place::of(store.clone().or_else(remote).as_deref()).unwrap_or_default();
    let dir = place.usual_dir();
    let name = args.words.first().cloned().unwrap_or_default();
    let found = run::found(&name, value("PATH"));
    let real = place.real_dir(&dir);
    let hint = hint(&name, found.as_deref(), &dir, &real);
    let is_set_id = found.as_deref().is_some_and(run::is_set_id);
    if is_set_id {
        tracing::warn!("'{}' would change its user; in there it does not", name.display());
    }
    let (mut source, store) = match (args.roots.check(), &hint) {
        (Err(ConfigError::NoRoots), Some(hint)) => {
            let paths = vec![hint.root.clone()];
            (Source::Roots(Roots { paths, ..Roots::default() }), store)
        }
        (Err(ConfigError::NoRoots), None) if found.is_none() => return Err(ConfigError::NoCommand(name)),
        (Err(ConfigError::NoRoots), None) => return Err(ConfigError::NoRootsOf(name)),
        (checked, _) => checked?,
    };
    if let Source::Roots(roots) = &mut source {
        // Who serves the view is in another directory.
        roots.directory = std::env::current_dir().ok();
    }
    let view = format!("run-{}", std::process::id());
    let directories = [Some(STATE.into()), place.state_dir().map(whole_state)];
    let sockets = [place.socket(), std::env::var_os(SOCKET).map(PathBuf::from)];
    let hiding = Hiding {
        source: monitor::mount::source(&view),
        real,
        store: dir.clone(),
        directories: directories.into_iter().flatten().collect(),
        sockets: sockets.into_iter().flatten().collect(),
    };
    if args.nix {
        inside::set_variables(&mut variables);
    }
    let settings = run::Settings {
        hiding,
        // It is made later.
        nix: None,
        wishes,
        network: if args.unshare_net { Network::Own } else { Network::Shared },
        processes: if args.unshare_pid { ProcessTable::Own } else { ProcessTable::Shared },
        rights: if args.keep_caps { sandbox::Command::Keeps } else { sandbox::Command::Powerless },
        directory: args.chdir.map(|dir| std::path::absolute(&dir).unwrap_or(dir)),
        variables,
        words: args.words,
        hint,
        original,
    };
    let view = monitor::Settings {
        name: view,
        mountpoint: dir,
        source,
        store,
        hidden: Some(place),
        threads: serving::threads(),
        io: Io::default(),
        idle_polling: IdlePolling::default(),
        watch: false,
        prune: false,
        report: false,
        // A command is over before anything is learnt.
        prefetch: Prefetch::Off,
        profiles: None,
        gc_root: None,
        // Known when it is given.
        state: PathBuf::new(),
        sandbox: Sandbox::default(),
        outlasts: Outlasts::Users,
        // A server outlives whoever reads the caller's standard error.
        log: LogSettings { sink: Sink::Syslog, ..log },
    };
    Ok((settings, view))
}

/// The directory of all of Nix's state, where that of the store is `dir`.
fn whole_state(dir: PathBuf) -> PathBuf {
    if dir.ends_with(BELOW_STATE) { dir.parent().map_or_else(|| dir.clone(), Path::to_owned) } else { dir }
}

/// The variables of the command: those of this process, unless `clear`, and then pairs of `set`.
fn variables(clear: bool, set: &[OsString]) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> =
        if clear { Vec::new() } else { std::env::vars_os().collect() };
    for pair in set.chunks_exact(2) {
        if let [name, value] = pair {
            self::set(&mut variables, name.clone(), value.clone());
        }
    }
    variables
}

/// Gives a variable this value, whatever it had.
pub(super) fn set(variables: &mut Vec<(OsString, OsString)>, name: OsString, value: OsString) {
    variables.retain(|(known, _)| *known != name);
    variables.push((name, value));
}

/// The store path of a program that lies in the store `dir`, whose files are in `real`: by where it was `found`, or by its name, if
/// the store is somewhere else.
fn hint(name: &OsStr, found: Option<&Path>, dir: &Path, real: &Path) -> Option<Hint> {
    let below = |file: &Path, dir: &Path| run::object(file, &dir.canonicalize().ok()?);
    let by_name = || {
        let named = run::object(Path::new(name), dir)?;
        real.join(&named).symlink_metadata().ok().map(|_| named)
    };
    let object = found.and_then(|file| below(file, dir).or_else(|| below(file, real))).or_else(by_name)?;
    let file = found.map_or_else(|| PathBuf::from(name), Path::to_owned);
    Some(Hint { file, root: dir.join(object) })
}

/// What is to be seen besides the view, in the order in which it was typed.
pub(super) fn wishes(matches: &ArgMatches) -> Vec<Wish> {
    let mut all: Vec<(usize, Wish)> = Vec::new();
    let mut add = |id: &str, size: usize, wish: &dyn Fn(&[&PathBuf]) -> Option<Wish>| {
        let indices = matches.indices_of(id).into_iter().flatten().step_by(size);
        let values: Vec<&PathBuf> = matches.get_many(id).into_iter().flatten().collect();
        for (index, values) in indices.zip(values.chunks_exact(size)) {
            all.extend(wish(values).map(|wish| (index, wish)));
        }
    };
    // Before the root directory may become another one.
    let here = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let bind = |access| {
        move |values: &[&PathBuf]| match values {
            [from, at] => Some(Wish::Bind { from: here(from), at: here(at), access }),
            _ => None,
        }
    };
    add("bind", 2, &bind(Access::Same));
    add("ro_bind", 2, &bind(Access::ReadOnly));
    add("tmpfs", 1, &|values| values.first().map(|at| Wish::Tmpfs(here(at))));
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, wish)| wish).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::super::super::args;
    use super::*;

    fn parse(words: &[&str]) -> (Args, Vec<Wish>) {
        let all = [&["nix-store-fs", "run"], words].concat();
        let matches = args::Args::command().try_get_matches_from(all).unwrap();
        let wishes = wishes(matches.subcommand_matches("run").unwrap());
        match args::Args::from_arg_matches(&matches).unwrap().command {
            Some(args::Command::Run(args)) => (*args, wishes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_seen_comes_in_the_order_in_which_it_was_typed() {
        let (_, wishes) = parse(&[
            "--ro-bind",
            "/a",
            "/b",
            "--tmpfs",
            "/c",
            "--bind",
            "/d",
            "/e",
            "--ro-bind",
            "/f",
            "/g",
            "sh",
        ]);
        let bind = |from: &str, at: &str, access| Wish::Bind { from: from.into(), at: at.into(), access };
        assert_eq!(
            wishes,
            [
                bind("/a", "/b", Access::ReadOnly),
                Wish::Tmpfs("/c".into()),
                bind("/d", "/e", Access::Same),
                bind("/f", "/g", Access::ReadOnly),
            ]
        );
    }

    #[test]
    fn what_follows_the_command_is_its_own() {
        for words in [&["ls", "-l", "--root", "/a"][..], &["--", "ls", "-l", "--root", "/a"]] {
            let (args, _) = parse(words);
            assert_eq!(args.words, ["ls", "-l", "--root", "/a"], "{words:?}");
            assert!(args.roots.roots.is_empty());
        }
        let (args, _) = parse(&["--", "--odd"]);
        assert_eq!(args.words, ["--odd"]);
    }

    #[test]
    fn variables_are_those_of_this_process_and_those_that_are_set() {
        let set = ["A", "1", "B", "2", "A", "3"].map(OsString::from);
        let own = variables(true, &set);
        assert_eq!(own, [("B".into(), "2".into()), ("A".into(), "3".into())]);
        assert!(variables(false, &[]).iter().any(|(name, _)| name == "PATH"));
    }

    #[test]
    fn the_whole_state_is_hidden_where_it_is_known() {
        assert_eq!(whole_state("/a/nix/var/nix".into()), Path::new("/a/nix/var"));
        assert_eq!(whole_state("/a/state".into()), Path::new("/a/state"));
    }
}
