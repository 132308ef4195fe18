//! `mount.fuse.nix-store-fs`: what mount(8) calls for a view (mount(8), "EXTERNAL HELPERS").
//!
//! It is the same program by another name. It forks who serves the view ([`background`]), waits until the view answers or cannot,
//! and ends: then the view is there, and its monitor stays behind with its log in syslog.
//!
//! Invariants:
//! - A failure is one line on standard error and an exit code of mount(8), and leaves neither mount nor process.
//! - A process that mount(8) has not heard of does not stay: who serves the view ends with this one, until it was told to stay.
//!
//! Hard points:
//! 1. mount(8) follows the links of a source that exists. A link that is to be followed at each reload is the option `system`.
//! 2. `mount -a` knows what is mounted by its source: `nix-store-fs:NAME` is accepted as one.

mod options;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgAction, CommandFactory, Parser};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::args;
use super::config::ConfigError;
use super::exit::Failure;
use super::views::Running;
use super::{LAST_WORDS, serve as serving};
use crate::background::{self, Caller, Session, Side, Told};
use crate::closure::source;
use crate::log::{LogSettings, Sink};
use crate::monitor::{self, Origin, Settings};
use crate::protocol::control::status::Status;
use crate::protocol::control::{self, ReloadError};
use crate::protocol::wire::Outlasts;
use crate::server::stops::{self, Stop};
use crate::startup::{self, Stored};
use crate::{error, log, mounts, sys};
use options::{OptionError, Options};

/// The names that the program has as a mount helper: for `-t fuse.nix-store-fs`, and for `-t nix-store-fs`.
const NAMES: [&str; 2] = ["mount.fuse.nix-store-fs", "mount.nix-store-fs"];
/// What begins the source of a view in the mount table.
const LABEL: &str = "nix-store-fs:";
/// Sources that name nothing.
const NO_SOURCE: [&str; 2] = ["none", "nix-store-fs"];

/// How a mount helper ends (mount(8), "EXIT STATUS").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    Success = 0,
    Usage = 1,
    System = 2,
    Mount = 32,
}

const AFTER_HELP: &str = "\
Options of -o (what each means: nix-store-fs(1), at the option of that name):
  system=PATH         what the view shows, in place of SOURCE
  root=PATH[:PATH]    further roots; a colon in one is written '\\:'
  roots-file=FILE     a file with roots
  from=FILE           a saved closure, in place of a system
  untrusted=DIR[:DIR]
  store=URI, name=NAME, gc-root=DIR
  io=passthrough|cached, idle-polling=WHERE, threads=N, sandbox=HOW, prefetch=WHAT,
  cache-dir=DIR
  watch, prune, report
  quiet               log errors only
  remount             reload the view that is mounted at MOUNTPOINT
  noexec, nosymfollow as for other file systems; for root only

A value with a comma is written in quotation marks, or the comma as '\\,'; in fstab(5) a space is '\\040'.

A view is read-only, nosuid and nodev, and its times never change: rw, suid, dev, atime and the like are accepted and change
nothing. So do auto, noauto, nofail, _netdev, user and the other options that are for mount(8), and x-*. Others are errors,
unless -s is given.

Exit codes:
  0   the view answers; or it was reloaded
  1   wrong usage: an unknown option, nothing to serve
  2   an error of the system
  32  the view cannot be mounted, or not reloaded";

/// Mount a view of a Nix store for mount(8), and return when it answers
///
/// SOURCE is what --system of nix-store-fs(1) takes. mount(8) replaces a link by what it leads to: give a link that is to be followed again
/// at a reload as system=PATH. Then, or with other roots, SOURCE is 'none', or 'nix-store-fs:NAME' as in the mount table, which
/// names the view.
#[derive(Debug, Parser)]
#[command(name = "mount.fuse.nix-store-fs", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Args {
    /// What the view shows
    source: PathBuf,

    /// Where to mount; it has to exist
    mountpoint: PathBuf,

    /// Options, separated by commas; repeatable
    #[arg(short, value_name = "OPTIONS", action = ArgAction::Append, allow_hyphen_values = true)]
    options: Vec<OsString>,

    /// Check everything that can be checked without mounting, and mount nothing
    #[arg(short)]
    fake: bool,

    /// Ignore unknown options
    #[arg(short)]
    sloppy: bool,

    /// Log more; twice for everything
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,

    /// Changes nothing: there is no /etc/mtab
    #[arg(short)]
    no_mtab: bool,

    /// The type that was asked for; changes nothing
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,

    /// A mount namespace; refused
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
}

/// Why there is no view, or no other one.
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("{0}; 'mount.fuse.nix-store-fs --help' tells more")]
    Usage(String),
    #[error(transparent)]
    Options(#[from] OptionError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("-N is not supported: run mount in that namespace, with 'nsenter --mount={} mount …'", .0.display())]
    Namespace(OsString),
    #[error("the source '{}' and the option '{option}' both say what the view shows; give 'none' or 'nix-store-fs:NAME' as source", given.display())]
    TwoSources { given: PathBuf, option: &'static str },
    #[error("the mount point '{}' does not exist; make it, or let 'mount --mkdir' make it", .0.display())]
    NoMountPoint(PathBuf),
    #[error("'{}' is not a directory, so nothing can be mounted there; give another mount point", .0.display())]
    NotADirectory(PathBuf),
    #[error(
        "noexec and nosymfollow can be given by root only; add exec, which 'user' takes away, to the options"
    )]
    NotRoot,
    #[error("cannot make '{}' noexec or nosymfollow; unmounted it again", at.display())]
    Flags {
        at: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start a process for the view")]
    Start(#[source] io::Error),
    #[error("{0}")]
    NotServed(String),
    #[error("the process that serves the view has ended; the log of the system may say why")]
    Lost,
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("a remount reloads a view and changes none of its options: {0}; unmount it and mount it again")]
    Other(String),
}

impl HelperError {
    fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Options(_) | Self::Config(_) | Self::TwoSources { .. } | Self::NotRoot => {
                Exit::Usage
            }
            Self::Namespace(_) => Exit::Usage,
            Self::Start(_) => Exit::System,
            _ => Exit::Mount,
        }
    }
}

/// What can be typed, for the manual page.
#[must_use]
pub fn mount_helper_command() -> clap::Command {
    Args::command()
}

/// Whether mount(8) has started the program.
pub(super) fn is_meant() -> bool {
    std::env::args_os().next().is_some_and(|name| is_name(&name))
}

fn is_name(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| NAMES.iter().any(|own| name == *own))
}

/// The whole program.
pub(super) fn main() -> ! {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            sys::exit_now(Exit::Success as u8);
        }
        Err(error) => end(&HelperError::Usage(one_line(&error))),
    };
    match perform(args) {
        Ok(()) => sys::exit_now(Exit::Success as u8),
        Err(error) => end(&error),
    }
}

fn end(why: &HelperError) -> ! {
    log::say(&format!("{}: {}", NAMES[0], error::chain(why)));
    sys::exit_now(why.exit() as u8)
}

/// What clap says of a mistake, without its advice.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = what.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

fn perform(args: Args) -> Result<(), HelperError> {
    if let Some(namespace) = args.namespace {
        return Err(HelperError::Namespace(namespace));
    }
    let options = Options::parse(args.options.iter().map(OsString::as_os_str), args.sloppy)?;
    let at = std::path::absolute(&args.mountpoint)
        .map_err(|_| HelperError::NoMountPoint(args.mountpoint.clone()))?;
    let view = view(&args.source, &options, &at)?;
    if options.remount {
        return reload(&at, &args.source, &view, args.fake);
    }
    let log = LogSettings {
        // The log of a mount that fails is not what is looked at first.
        verbosity: view.log().verbosity.max(if args.verbose > 0 { 2 + args.verbose } else { 0 }),
        json: false,
        sink: Sink::Syslog,
    };
    let mut settings = serving::check(view)?;
    settings.log = log;
    settings.outlasts = Outlasts::Users;
    if let source::Source::Roots(roots) = &mut settings.source {
        // Those in a file may be relative as well.
        roots.directory = std::env::current_dir().ok();
    }
    check_place(&at)?;
    let is_root = rustix::process::geteuid().is_root();
    let flags = Flags::of(&options);
    if flags.is_some() && !is_root {
        return Err(HelperError::NotRoot);
    }
    if args.fake {
        return Ok(());
    }
    mount(settings, &at, flags)
}

/// The command line that would serve the view.
fn view(source: &Path, options: &Options, at: &Path) -> Result<args::Args, HelperError> {
    let mut words: Vec<OsString> = vec!["nix-store-fs".into()];
    words.extend(options.words.iter().cloned());
    match Source::of(source) {
        Source::Nothing => {}
        Source::Name(name) => words.push(format!("--name={name}").into()),
        Source::System(system) => {
            let given = |option: &str| {
                let begin = format!("--{option}=");
                options.words.iter().any(|word| word.as_encoded_bytes().starts_with(begin.as_bytes()))
            };
            if let Some(option) = ["system", "from"].into_iter().find(|option| given(option)) {
                return Err(HelperError::TwoSources { given: source.to_owned(), option });
            }
            let mut word = OsString::from("--system=");
            word.push(system);
            words.push(word);
        }
    }
    words.extend(["--".into(), at.into()]);
    let mut args = args::Args::try_parse_from(words).map_err(|error| HelperError::Usage(one_line(&error)))?;
    // Who serves the view is in another directory.
    args.roots.system.iter_mut().chain(&mut args.roots.roots).for_each(|root| *root = absolute(root));
    Ok(args)
}

/// A path of a root, as it is from every directory. The base name of a store path has none.
fn absolute(root: &Path) -> PathBuf {
    let is_path = root.as_os_str().as_encoded_bytes().contains(&b'/');
    let absolute = is_path.then(|| std::path::absolute(root).ok()).flatten();
    absolute.unwrap_or_else(|| root.to_owned())
}

/// What the first word names.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    System(PathBuf),
    /// The view, as the mount table does.
    Name(String),
    Nothing,
}

impl Source {
    fn of(source: &Path) -> Self {
        let text = source.to_str();
        if let Some(name) = text.and_then(|text| text.strip_prefix(LABEL)) {
            return Self::Name(name.to_owned());
        }
        if text.is_some_and(|text| NO_SOURCE.contains(&text)) {
            return Self::Nothing;
        }
        Self::System(source.to_owned())
    }
}

/// Refuses what is no directory. Whatever is mounted there is not asked: it may not answer.
fn check_place(at: &Path) -> Result<(), HelperError> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(CWD, at, flags, StatxFlags::TYPE) {
        Ok(found) if FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory => Ok(()),
        Ok(_) => Err(HelperError::NotADirectory(at.to_owned())),
        Err(rustix::io::Errno::NOENT) => Err(HelperError::NoMountPoint(at.to_owned())),
        // Who mounts says why.
        Err(_) => Ok(()),
    }
}

/// What is changed about a mount that is there.
#[derive(Debug, Clone, Copy)]
struct Flags(MountFlags);

impl Flags {
    /// `MS_NOSYMFOLLOW` of `linux/mount.h`, Linux 5.10.
    const NOSYMFOLLOW: MountFlags = MountFlags::from_bits_retain(256);

    fn of(options: &Options) -> Option<Self> {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NOEXEC, options.noexec);
        flags.set(Self::NOSYMFOLLOW, options.nosymfollow);
        (!flags.is_empty()).then_some(Self(flags))
    }

    fn set(self, at: &Path) -> io::Result<()> {
        // Those that a view has, which would be taken away otherwise.
        let own = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RELATIME;
        Ok(rustix::mount::mount_remount(at, MountFlags::BIND | own | self.0, c"")?)
    }
}

/// Mounts the view, and returns when it answers.
fn mount(settings: Settings, at: &Path, flags: Option<Flags>) -> Result<(), HelperError> {
    // The server is started from there as well.
    mounts::mounts().map_err(|error| Failure::Mount(monitor::mount::MountError::Table(error)))?;
    let background = match background::split(Session::OwnWhenReady).map_err(HelperError::Start)? {
        Side::Background(caller) => serve(Arc::new(caller), settings),
        Side::Caller(background) => background,
    };
    match background.wait() {
        Told::Ready => {}
        Told::Failed { why, .. } => return Err(HelperError::NotServed(why)),
        Told::Nothing => return Err(HelperError::Lost),
    }
    if let Some(Err(source)) = flags.map(|flags| flags.set(at)) {
        // Its processes end as well.
        let _ = rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        return Err(HelperError::Flags { at: at.to_owned(), source });
    }
    stops::at(Stop::Keeping);
    background.keep();
    stops::at(Stop::Kept);
    Ok(())
}

/// Serves the view to its end.
fn serve(caller: Arc<Caller>, settings: Settings) -> ! {
    startup::begin_background();
    log::begin();
    log::set_up(settings.log);
    let exit = match monitor::run(settings, Origin::Own(Stored::default()), Some(caller.clone())) {
        Ok(_) => Exit::Success,
        Err(error) => {
            let why = error::chain(&Failure::from(error));
            if !caller.failed(Exit::Mount as u8, &why) {
                tracing::error!("{why}");
            }
            Exit::Mount
        }
    };
    log::flush(LAST_WORDS);
    sys::exit_now(exit as u8)
}

/// Reloads the view at `at`, unless what is asked for is another one.
fn reload(at: &Path, source: &Path, asked: &args::Args, fake: bool) -> Result<(), HelperError> {
    let view = Running::find(at)?.ok_or_else(|| Failure::Reload(ReloadError::NoView(at.to_owned())))?;
    let explain = |error| HelperError::Failure(Failure::Unanswered(view.unanswered(error)));
    let status = control::ask_status(&view.control()).map_err(explain)?;
    if let Some(other) = difference(source, asked, &status) {
        return Err(HelperError::Other(other));
    }
    if !fake {
        control::reload(&view.name, &view.control()).map_err(|error| Failure::Reload(view.explain(error)))?;
    }
    Ok(())
}

/// What is asked for and is not so in a running view, as far as that tells: in words. What is not asked for is no difference: a remount
/// may name no option at all.
fn difference(source: &Path, asked: &args::Args, running: &Status) -> Option<String> {
    let path = |option: &str, asked: Option<&PathBuf>, running: Option<&PathBuf>| {
        let asked = asked.filter(|asked| Some(*asked) != running)?;
        let running = running.map_or_else(|| "none".to_owned(), |path| format!("'{}'", path.display()));
        Some(format!("{option} is '{}', and that of the view is {running}", asked.display()))
    };
    let flag = |option: &str, asked: bool, running: bool| {
        (asked && !running).then(|| format!("the view was mounted without {option}"))
    };
    let text = |option: &str, asked: Option<&String>, running: Option<&String>| {
        path(option, asked.map(PathBuf::from).as_ref(), running.map(PathBuf::from).as_ref())
    };
    let system = match Source::of(source) {
        Source::System(_) => "the source",
        _ => "system",
    };
    let (roots, settings) = (&asked.roots, &running.settings);
    path(system, roots.system.as_ref(), running.asked.system.as_ref())
        .or_else(|| path("roots-file", roots.roots_file.as_ref(), running.asked.roots_file.as_ref()))
        .or_else(|| path("from", roots.from.as_ref(), running.asked.from.as_ref()))
        .or_else(|| {
            let other = !roots.roots.is_empty() && roots.roots != running.asked.roots;
            other.then(|| "the view has other roots".to_owned())
        })
        .or_else(|| text("name", asked.name.as_ref(), Some(&running.name)))
        .or_else(|| text("store", roots.store.as_ref(), running.store.address.as_ref()))
        .or_else(|| flag("watch", asked.watch, settings.watch))
        .or_else(|| flag("prune", asked.prune, settings.prune))
        .or_else(|| flag("report", asked.report, settings.report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_by_its_name() {
        for name in ["mount.fuse.nix-store-fs", "/sbin/mount.nix-store-fs", "./mount.fuse.nix-store-fs"] {
            assert!(is_name(OsStr::new(name)), "{name}");
        }
        for name in
            ["", "/", "nix-store-fs", "/sbin/mount", "mount.fuse.nix-store-fs/a", "mount.fuse.nix-store-fs2"]
        {
            assert!(!is_name(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_source_is_a_system_or_the_name_of_a_view() {
        let system = |path: &str| Source::System(path.into());
        for (source, expected) in [
            ("/nix/store/a", system("/nix/store/a")),
            ("abc-hello", system("abc-hello")),
            ("./result", system("./result")),
            ("none", Source::Nothing),
            ("nix-store-fs", Source::Nothing),
            ("nix-store-fs:web", Source::Name("web".to_owned())),
            ("/none", system("/none")),
        ] {
            assert_eq!(Source::of(Path::new(source)), expected, "{source}");
        }
    }

    #[test]
    fn roots_are_the_same_from_every_directory() {
        let here = std::env::current_dir().unwrap();
        let options = Options::parse([OsStr::new("root=a/b:/c:abc-d")], false).unwrap();
        let roots = view(Path::new("./result"), &options, Path::new("/mnt")).unwrap().roots;
        assert_eq!(roots.system.unwrap(), here.join("result"));
        assert_eq!(roots.roots, [here.join("a/b"), "/c".into(), "abc-d".into()]);
    }

    #[test]
    fn arguments_are_read_as_mount_writes_them() {
        Args::command().debug_assert();
        let parse = |words: &[&str]| Args::try_parse_from([&["mount.fuse.nix-store-fs"], words].concat());
        let args =
            parse(&["/a", "/b", "-s", "-f", "-n", "-v", "-o", "rw", "-t", "fuse.nix-store-fs"]).unwrap();
        assert!(args.sloppy && args.fake && args.no_mtab && args.verbose == 1);
        let args = parse(&["-sfnvv", "-orw,watch", "/a", "/b", "-o", "x"]).unwrap();
        assert_eq!((args.options, args.verbose), (vec!["rw,watch".into(), "x".into()], 2));
        let said = one_line(&parse(&["/a"]).unwrap_err());
        assert_eq!(said, "the following required arguments were not provided: <MOUNTPOINT>");
        assert_eq!(one_line(&parse(&["/a", "/b", "-x"]).unwrap_err()), "unexpected argument '-x' found");
    }
}
