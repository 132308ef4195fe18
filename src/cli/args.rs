//! Arguments as typed.

use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};

use super::output::When;
use super::{cdi, diff, reload, report, run, status, why};
use crate::closure::dump::Format;
use crate::log::{LogSettings, Sink};
use crate::protocol::handshake::Io;
use crate::protocol::task::Prefetch;
use crate::sandbox::Sandbox;
use crate::server::idle::IdlePolling;

const USAGE: &str = "\
nix-store-fs [OPTIONS] --system PATH [MOUNTPOINT]
       nix-store-fs --system PATH --dump-closure[=FORMAT]
       nix-store-fs COMMAND";

const AFTER_HELP: &str = "\
Exit codes:
  0   success: the view was unmounted, or what was asked for was printed
  1   another failure
  2   wrong usage
  3   a system, a root or the file of --from cannot be used: absent, dangling, not in the store,
      not a closure, writable by others
  4   a store path is not valid: the store does not have it
  5   the store cannot be opened or asked
  6   the mount point or the state directory cannot be used, or the view's name is taken
  7   something of the system cannot be used: /dev/fuse, fusermount3, what --io or --sandbox require
  8   the reload failed and nothing has changed
  9   a garbage collector root cannot be created in the directory of --gc-root
  10  what an earlier process left of the view (state, node journal) is damaged or of another version
  11  a view that was served has ended: its connection was aborted, or no server can resume it
  12  what was asked about is not there: a path that is no member of the closure, a view that is not served
  13  a running view does not tell of itself
  75  handed over (SIGUSR2): the mount is left to a successor

Signals: SIGTERM and SIGINT unmount; SIGHUP reloads; SIGUSR2 hands over to the next
process that the service manager starts.";

/// Serve a read-only Nix store that holds exactly the closure of one system.
#[derive(Debug, Parser)]
#[command(name = "nix-store-fs", disable_version_flag = true, args_conflicts_with_subcommands = true,
          override_usage = USAGE, after_help = AFTER_HELP, max_term_width = 100)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    /// Where to mount; made if absent, and then removed again at the end [default: /run/nix-store-fs/NAME]
    pub(super) mountpoint: Option<PathBuf>,

    #[command(flatten)]
    pub(super) roots: RootArgs,

    /// What the view is called [default: last component of PATH, or the name of the store path]
    #[arg(long)]
    pub(super) name: Option<String>,

    /// Print what would be served and exit
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text",
          conflicts_with_all = ["mountpoint", "reload", "name", "io", "idle_polling", "watch", "prune", "report",
                                "prefetch", "cache_dir", "gc_root", "sandbox", "threads"])]
    pub(super) dump_closure: Option<Format>,

    /// Whether --dump-closure=tree has colours; 'auto': on a terminal, unless NO_COLOR is set [default: auto]
    #[arg(long, value_name = "WHEN", value_enum, requires = "dump_closure")]
    pub(super) color: Option<When>,

    /// `reload`, as it was spelt before there were subcommands
    #[arg(long, value_name = "NAME|MOUNTPOINT", hide = true,
          conflicts_with_all = ["mountpoint", "system", "roots", "roots_file", "from", "untrusted", "store", "name", "io", "idle_polling",
                                "watch", "prune", "report", "prefetch", "cache_dir", "gc_root", "sandbox", "threads", "color"])]
    pub(super) reload: Option<PathBuf>,

    /// How files are read
    #[arg(long, value_enum, default_value_t)]
    pub(super) io: Io,

    /// Whether idle processors are kept awake while there are requests, so that answers come sooner
    #[arg(long, value_name = "WHERE", value_enum, default_value_t)]
    pub(super) idle_polling: IdlePolling,

    /// Reload by itself when a link or file that the roots depend on changes
    #[arg(long)]
    pub(super) watch: bool,

    /// At a reload, withdraw what is no longer reachable instead of keeping it
    #[arg(long)]
    pub(super) prune: bool,

    /// Log requests for store paths that exist on the host but not in the view, and which process made them
    #[arg(long, conflicts_with = "quiet")]
    pub(super) report: bool,

    /// What is asked of the view ahead of who uses it, so that its first use is as fast as the second
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub(super) prefetch: Prefetch,

    /// Where the view's profile of use is kept, DIR/NAME: what was used at the last starts; made if absent
    /// [default: CACHE_DIRECTORY, else /var/cache/nix-store-fs, for ordinary users ~/.cache/nix-store-fs/profiles]
    #[arg(long, value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,

    /// Create garbage collector roots in DIR, links that outlive this process and are removed when the view ends;
    /// DIR is made if absent
    #[arg(long, value_name = "DIR", conflicts_with = "from")]
    pub(super) gc_root: Option<PathBuf>,

    /// Whether monitor and servers give up every right that they do not need
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub(super) sandbox: Sandbox,

    /// Threads that answer requests [default: processors, at least 2, at most 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) threads: Option<u16>,

    #[command(flatten)]
    pub(super) log: LogArgs,

    /// Print versions and what the running kernel offers
    #[arg(short = 'V', long)]
    pub(super) version: bool,
}

/// What the program can do besides serving a view and dumping a closure. Each takes what it uses, and nothing else.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Run(Box<run::Args>),
    Reload(reload::Args),
    Status(status::Args),
    Report(report::Args),
    Why(why::Args),
    Diff(diff::Args),
    Cdi(cdi::Args),
}

/// Whose closure is meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct RootArgs {
    /// A NixOS system: a directory of profiles, a profile, anything that links into the store, a store path, or a
    /// store path's base name
    #[arg(long, value_name = "PATH")]
    pub(super) system: Option<PathBuf>,

    /// Another path whose closure is served; repeatable
    #[arg(long = "root", value_name = "PATH")]
    pub(super) roots: Vec<PathBuf>,

    /// A file with one root a line, read again at each reload; '#' begins a comment, a leading '?' marks a root
    /// that may not exist yet
    #[arg(long, value_name = "FILE")]
    pub(super) roots_file: Option<PathBuf>,

    /// A file with the closure itself, as --dump-closure=json or =store-paths has printed it: the store is not opened, and nothing
    /// keeps the garbage collector away
    #[arg(long, value_name = "FILE", conflicts_with_all = ["system", "roots", "roots_file"])]
    pub(super) from: Option<PathBuf>,

    /// Resolve no root and read no file through DIR, an absolute path, or anything in it; repeatable. For what others can write as root:
    /// what a container without private users has bound writable
    #[arg(long, value_name = "DIR")]
    pub(super) untrusted: Vec<PathBuf>,

    /// The store, as Nix spells it: auto, local, daemon, unix://SOCKET, local?root=DIR [default: as for Nix's
    /// commands, the setting 'store' in nix.conf, else NIX_REMOTE, else auto]
    #[arg(long, value_name = "URI")]
    pub(super) store: Option<String>,
}

/// How much is said, and in which form.
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// Log more; twice for everything
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,

    /// Say only what went wrong
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Form of the log on standard error
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
}

/// Forms of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum LogFormat {
    /// One line of text for each event
    #[default]
    Text,
    /// One JSON object for each event
    Json,
}

impl LogArgs {
    /// How to log.
    pub(super) fn settings(&self) -> LogSettings {
        let verbosity = if self.quiet { 0 } else { self.verbose.saturating_add(2) };
        LogSettings { verbosity, json: self.log_format == LogFormat::Json, sink: Sink::Stderr }
    }
}

impl Args {
    /// How to log.
    pub(super) fn log(&self) -> LogSettings {
        match &self.command {
            None => self.log.settings(),
            Some(Command::Run(args)) => args.log(),
            Some(Command::Reload(args)) => args.log.settings(),
            Some(Command::Status(args)) => args.log.settings(),
            Some(Command::Report(args)) => args.log.settings(),
            Some(Command::Why(args)) => args.log.settings(),
            Some(Command::Diff(args)) => args.log.settings(),
            Some(Command::Cdi(args)) => args.log.settings(),
        }
    }
}

/// The command that is most like `word`, if any is.
pub(super) fn command_like(word: &str) -> Option<String> {
    let command = Args::command();
    let likeness = |name: &str| strsim::damerau_levenshtein(name, word);
    let nearest = command.get_subcommands().map(clap::Command::get_name).min_by_key(|name| likeness(name))?;
    // A letter too many, too few, another one, or two in the other order; and another such in a longer word.
    (likeness(nearest) <= nearest.len() / 3).then(|| nearest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    /// What means nothing beside `--reload` or `--dump-closure` is refused, whatever options there will be.
    #[test]
    fn options_that_mean_nothing_are_refused() {
        let everywhere = ["verbose", "quiet", "log_format", "version", "help"];
        let roots_and_store = ["store", "system", "roots", "roots_file", "from", "untrusted"];
        let dumped = [roots_and_store.as_slice(), &["color"]].concat();
        let cases = [
            ("--reload=web", "reload", [].as_slice()),
            ("--dump-closure", "dump_closure", dumped.as_slice()),
        ];
        for (mode, own, allowed) in cases {
            for argument in Args::command().get_arguments() {
                let id = argument.get_id().as_str();
                if id == own {
                    continue;
                }
                let value = match id {
                    "threads" => "2",
                    "color" => "never",
                    "io" => "cached",
                    "sandbox" => "best",
                    "idle_polling" => "never",
                    "prefetch" => "names",
                    "log_format" => "json",
                    _ => "web",
                };
                let takes_value = argument.get_action().takes_values();
                let typed: Vec<String> = match argument.get_long() {
                    Some("dump-closure") => vec!["--dump-closure".to_owned()],
                    Some(long) if takes_value => vec![format!("--{long}"), value.to_owned()],
                    Some(long) => vec![format!("--{long}")],
                    None => vec![value.to_owned()],
                };
                let words = ["nix-store-fs", mode].into_iter().map(str::to_owned).chain(typed);
                let refused = Args::try_parse_from(words)
                    .is_err_and(|error| error.kind() == clap::error::ErrorKind::ArgumentConflict);
                let fits = everywhere.contains(&id) || allowed.contains(&id);
                assert_eq!(refused, !fits, "{mode} with {id}");
            }
        }
    }

    #[test]
    fn quiet_is_less_than_nothing_said_and_verbose_is_more() {
        let verbosity = |args: &[&str]| Args::parse_from([&["nix-store-fs"], args].concat()).log().verbosity;
        assert_eq!(
            [verbosity(&["-q"]), verbosity(&[]), verbosity(&["-v"]), verbosity(&["-vv"])],
            [0, 2, 3, 4]
        );
    }
}
