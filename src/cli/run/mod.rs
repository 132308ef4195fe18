//! `run`: a command that sees the view of a closure at the store directory, and nothing else of the store.
//!
//! Hard point: this process becomes the command, so it changes nothing of what it was started with ([`Original`]), and has no
//! thread. What serves the view is forked first ([`background`]).

mod after;

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::parser::ArgMatches;
use clap::{ArgAction, CommandFactory, FromArgMatches};

use after::Wanted;

use super::args::{self, RootArgs};
use super::config::ConfigError;
use super::exit::Failure;
use super::{LAST_WORDS, explain, serve as serving};
use crate::background::{self, Caller, Side};
use crate::closure::resolve::Roots;
use crate::closure::source::Source;
use crate::log::LogSettings;
use crate::monitor::mount::Number;
use crate::monitor::{self, Given, Origin};
use crate::protocol::handshake::Io;
use crate::run::{self, Access, Ended, Hiding, Hint, Left, Network, ProcessTable, Wish};
use crate::sandbox::Sandbox;
use crate::server::idle::IdlePolling;
use crate::startup::{self, Original};
use crate::store::Place;
use crate::{error, log, sandbox, sys};

/// The code of a failure of this program's own, as that of env(1).
const FAILED: u8 = 125;
/// Where Nix keeps what is not in the store: database, profiles, logs, the daemon's socket.
const STATE: &str = "/nix/var";
/// Where the daemon listens, if not there.
const SOCKET: &str = "NIX_DAEMON_SOCKET_PATH";
/// The store that Nix's commands open.
const REMOTE: &str = "NIX_REMOTE";
/// What follows the state directory of a store.
const BELOW_STATE: &str = "nix";

/// Run a command that sees the closure of the roots as its store, and nothing else of the store
///
/// Without roots: the closure of COMMAND itself. An ordinary user needs user namespaces and /dev/fuse, nothing else. COMMAND has no
/// capabilities, and Nix's database and daemon are hidden from it. It hides the store; it confines nothing else: who can ask a
/// process outside (D-Bus, a container daemon) can have it read the store.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    roots: RootArgs,

    /// Show SRC, a file or directory of outside, at DST; repeatable
    #[arg(long, num_args = 2, value_names = ["SRC", "DST"], action = ArgAction::Append)]
    bind: Vec<PathBuf>,

    /// The same, read-only
    #[arg(long, num_args = 2, value_names = ["SRC", "DST"], action = ArgAction::Append)]
    ro_bind: Vec<PathBuf>,

    /// An empty directory in memory at DIR; repeatable
    #[arg(long, value_name = "DIR")]
    tmpfs: Vec<PathBuf>,

    /// The current directory of COMMAND [default: this one]
    #[arg(long, value_name = "DIR", overrides_with = "chdir")]
    chdir: Option<PathBuf>,

    /// Set a variable for COMMAND; repeatable
    #[arg(long, num_args = 2, value_names = ["VAR", "VALUE"], action = ArgAction::Append)]
    setenv: Vec<OsString>,

    /// Give COMMAND no variables but those of --setenv
    #[arg(long)]
    clearenv: bool,

    /// Give COMMAND a network of its own, on which nobody is
    #[arg(long)]
    unshare_net: bool,

    /// Give COMMAND a process namespace of its own, with a /proc; who is left in there when COMMAND ends is killed
    #[arg(long)]
    unshare_pid: bool,

    /// Let COMMAND have the capabilities of its user namespace; as root without one: those of root, with which it can unmount the view
    #[arg(long)]
    keep_caps: bool,

    /// When COMMAND has ended, tell what it missed and used, on standard error or in FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    report: Option<Option<PathBuf>>,

    /// When COMMAND has ended, write the roots that would have been enough into FILE, for --roots-file: what it used, and what it missed
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    learn: Option<PathBuf>,

    #[command(flatten)]
    log: RunLogArgs,

    /// The command, and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// How much is said.
#[derive(Debug, clap::Args)]
struct RunLogArgs {
    /// Log more; twice and three times for details
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

const AFTER_HELP: &str = "\
Exit codes: those of COMMAND, and
  125  the command was not run: wrong usage, no view, no namespace
  126  COMMAND cannot be executed
  127  COMMAND is not found, or its interpreter
  128+N  COMMAND was ended by signal N, where it was waited for (--report, --learn, --unshare-pid)";

impl Args {
    /// How to log.
    pub(super) fn log(&self) -> LogSettings {
        LogSettings { verbosity: self.log.verbose.saturating_add(1), ..LogSettings::default() }
    }
}

/// Whether the first word asks for it.
pub(super) fn is_meant() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == "run")
}

/// The whole program.
pub(super) fn main() -> ! {
    let original = Original::keep();
    let matches = args::Args::command().try_get_matches();
    let parsed = matches.and_then(|matches| {
        let wishes = matches.subcommand_matches("run").map(wishes).unwrap_or_default();
        args::Args::from_arg_matches(&matches).map(|args| (args, wishes))
    });
    let (mut args, wishes) = match parsed {
        Ok((args::Args { command: Some(args::Command::Run(args)), .. }, wishes)) => (*args, wishes),
        Ok(_) => sys::exit_now(FAILED),
        Err(error) => {
            let asked = !error.use_stderr();
            let _ = explain(error);
            sys::exit_now(if asked { 0 } else { FAILED });
        }
    };
    let logs = args.log();
    log::set_up(logs);
    let fail = |why: &dyn std::error::Error| -> ! {
        log::say(&format!("nix-store-fs: {}", error::chain(why)));
        sys::exit_now(FAILED)
    };
    let wanted = Wanted {
        report: args.report.take(),
        learn: args.learn.take(),
        store: args.roots.store.clone(),
        words: args.words.clone(),
    };
    let (settings, mut view) = match settings(args, wishes, original, logs) {
        Ok(settings) => settings,
        Err(error) => fail(&error),
    };
    view.report = wanted.is_any();
    match background::split() {
        Ok(Side::Background(caller)) => serve(Arc::new(caller), view),
        Ok(Side::Caller(background)) => {
            let ended = if wanted.is_any() {
                run::run_command(&settings, background).map(|left| finish(wanted, left))
            } else if run::takes_orphans() {
                run::run_command(&settings, background).map(|left| left.ended)
            } else {
                run::become_command(&settings, background)
            };
            sys::exit_now(ended.map_or_else(
                |error| {
                    error.say();
                    error.exit()
                },
                |ended| ended.0,
            ))
        }
        Err(error) => fail(&run::RunError::Start(error)),
    }
}

/// Tells of a command that has ended. It ended as it did, whatever can be told.
fn finish(wanted: Wanted, left: Left) -> Ended {
    if let Err(failure) = wanted.tell(&monitor::state::control(&state_in(&left.state))) {
        log::say(&format!("nix-store-fs: {}", error::chain(&failure)));
    }
    left.ended
}

/// Serves the view that the caller mounts.
fn serve(caller: Arc<Caller>, mut settings: monitor::Settings) -> ! {
    startup::begin_background();
    log::begin();
    let Some((connection, given)) = caller.take() else { sys::exit_now(0) };
    let mut given = given.into_iter();
    let (Some(device), Some(state)) = (given.next(), given.next()) else { sys::exit_now(FAILED) };
    settings.state = state_in(&state);
    let origin = Origin::Given(Given { device, connection: Number(connection) });
    let exit = match monitor::run(settings, origin, Some(caller.clone())) {
        Ok(_) => 0,
        Err(error) => {
            let why = error::chain(&Failure::from(error));
            tracing::debug!("{why}");
            caller.failed(FAILED, &why);
            FAILED
        }
    };
    log::flush(LAST_WORDS);
    sys::exit_now(exit)
}

/// The state directory of a view, in the file system that is open and has no name.
fn state_in(state: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/views/.state/run", state.as_raw_fd()).into()
}

/// What is run, and what its view is made from. Nothing is opened.
fn settings(
    args: Args,
    wishes: Vec<Wish>,
    original: Original,
    log: LogSettings,
) -> Result<(run::Settings, monitor::Settings), ConfigError> {
    let variables = variables(args.clearenv, &args.setenv);
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
    let hint = found.as_deref().and_then(|file| hint(file, &dir));
    let is_set_id = found.as_deref().is_some_and(run::is_set_id);
    if is_set_id {
        tracing::warn!("'{}' would change its user; in there it does not", name.display());
    }
    let (source, store) = match (args.roots.check(), &hint) {
        (Err(ConfigError::NoRoots), Some(hint)) => {
            let paths = vec![hint.root.clone()];
            (Source::Roots(Roots { paths, ..Roots::default() }), store)
        }
        (Err(ConfigError::NoRoots), None) => return Err(ConfigError::NoRootsOf(name)),
        (checked, _) => checked?,
    };
    let view = format!("run-{}", std::process::id());
    let directories = [Some(STATE.into()), place.state_dir().map(whole_state)];
    let sockets = [place.socket(), std::env::var_os(SOCKET).map(PathBuf::from)];
    let hiding = Hiding {
        source: monitor::mount::source(&view),
        real: place.real_dir(&dir),
        store: dir.clone(),
        directories: directories.into_iter().flatten().collect(),
        sockets: sockets.into_iter().flatten().collect(),
    };
    let settings = run::Settings {
        hiding,
        wishes,
        network: if args.unshare_net { Network::Own } else { Network::Shared },
        processes: if args.unshare_pid { ProcessTable::Own } else { ProcessTable::Shared },
        rights: if args.keep_caps { sandbox::Command::Keeps } else { sandbox::Command::Powerless },
        directory: args.chdir,
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
        threads: serving::threads(),
        io: Io::default(),
        idle_polling: IdlePolling::default(),
        watch: false,
        prune: false,
        report: false,
        gc_root: None,
        // Known when it is given.
        state: PathBuf::new(),
        sandbox: Sandbox::default(),
        log,
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
            variables.retain(|(known, _)| known != name);
            variables.push((name.clone(), value.clone()));
        }
    }
    variables
}

/// The store path of a program that lies in the store `dir`.
fn hint(file: &Path, dir: &Path) -> Option<Hint> {
    let dir = dir.canonicalize().ok()?;
    let name = file.strip_prefix(&dir).ok()?.components().next()?;
    Some(Hint { file: file.to_owned(), root: dir.join(name) })
}

/// What is to be seen besides the view, in the order in which it was typed.
fn wishes(matches: &ArgMatches) -> Vec<Wish> {
    let mut all: Vec<(usize, Wish)> = Vec::new();
    let mut add = |id: &str, size: usize, wish: &dyn Fn(&[&PathBuf]) -> Option<Wish>| {
        let indices = matches.indices_of(id).into_iter().flatten().step_by(size);
        let values: Vec<&PathBuf> = matches.get_many(id).into_iter().flatten().collect();
        for (index, values) in indices.zip(values.chunks_exact(size)) {
            all.extend(wish(values).map(|wish| (index, wish)));
        }
    };
    let bind = |access| {
        move |values: &[&PathBuf]| match values {
            [from, at] => Some(Wish::Bind { from: (*from).clone(), at: (*at).clone(), access }),
            _ => None,
        }
    };
    add("bind", 2, &bind(Access::Same));
    add("ro_bind", 2, &bind(Access::ReadOnly));
    add("tmpfs", 1, &|values| values.first().map(|at| Wish::Tmpfs((*at).clone())));
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, wish)| wish).collect()
}

#[cfg(test)]
mod tests {
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
