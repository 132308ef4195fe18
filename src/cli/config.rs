//! Arguments checked, and what was left out filled in.

use std::io;
use std::path::{Path, PathBuf};

use super::args::Args;
use super::exit::Failure;
use crate::closure::dump::Format;
use crate::closure::profile;
use crate::closure::resolve::Roots;
use crate::monitor::Settings;
use crate::monitor::mount::MountError;
use crate::protocol::control::ReloadError;

/// Fewer than two threads cost a wake-up more a request (60 against 15 to 20 microseconds, measured); more than
/// eight have nothing to do.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// Why the arguments do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to serve.
    #[error("nothing to serve: give --system, --root or --roots-file (see --help)")]
    NoRoots,
    /// No name for the view can be made up.
    #[error("cannot make up a name for the view; give one with --name")]
    NoName,
    /// The name is not fit for a directory and a mount table.
    #[error(
        "'{0}' cannot be the name of a view: letters, digits and +-._=@: only, 200 at most, no '.' first; give another with --name"
    )]
    BadName(String),
    /// A directory that is not trusted is relative.
    #[error("'{}' cannot be given to --untrusted, because it is not absolute; give its absolute path", .0.display())]
    Untrusted(PathBuf),
    /// The directory for garbage collector roots cannot be made absolute.
    #[error("'{}' cannot be the directory for garbage collector roots; give another with --gc-root", path.display())]
    GcRoot {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What is to be done, checked.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) action: Action,
}

/// The things that the program can do.
#[derive(Debug)]
pub(super) enum Action {
    Version,
    Mount(Box<Settings>),
    Dump { roots: Roots, store: Option<String>, format: Format },
    Reload { view: PathBuf, states: PathBuf },
}

impl Config {
    /// Checks `args` without touching the store, FUSE or the mount point.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn check(args: Args) -> Result<Self, ConfigError> {
        let base = base();
        let states = base.join(".state");
        let action = if args.version {
            Action::Version
        } else if let Some(view) = args.reload {
            Action::Reload { view, states }
        } else {
            let log = args.log();
            // The directory that a change shows in is watched: a bare name has none. What cannot be read is said later.
            let file = args.roots_file.map(|path| std::path::absolute(&path).unwrap_or(path));
            if let Some(relative) = args.untrusted.iter().find(|dir| !dir.is_absolute()) {
                return Err(ConfigError::Untrusted(relative.clone()));
            }
            let roots = Roots { system: args.system, paths: args.roots, file, untrusted: args.untrusted };
            if roots.is_empty() {
                return Err(ConfigError::NoRoots);
            }
            match args.dump_closure {
                Some(format) => Action::Dump { roots, store: args.store, format },
                None => {
                    let name = args.name.or_else(|| made_up(&roots)).ok_or(ConfigError::NoName)?;
                    check_name(&name)?;
                    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                    Action::Mount(Box::new(Settings {
                        mountpoint: args.mountpoint.unwrap_or_else(|| base.join(&name)),
                        state: states.join(&name),
                        roots,
                        store: args.store,
                        threads: args
                            .threads
                            .map_or(cores.clamp(*THREADS.start(), *THREADS.end()), usize::from),
                        io: args.io,
                        sandbox: args.sandbox,
                        idle_polling: args.idle_polling,
                        watch: args.watch,
                        prune: args.prune,
                        report: args.report,
                        gc_root: args.gc_root.map(absolute).transpose()?,
                        log,
                        name,
                    }))
                }
            }
        };
        Ok(Self { action })
    }
}

/// Where views and their state are: `/run/nix-store-fs`, for ordinary users in their own runtime directory.
fn base() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return "/run/nix-store-fs".into();
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let own = || std::env::temp_dir().join(format!("nix-store-fs-{}", user.as_raw()));
    runtime.map_or_else(own, |dir| dir.join("nix-store-fs"))
}

/// Nix wants the absolute path of a root, and a successor may be started in another directory.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|source| ConfigError::GcRoot { path, source })
}

fn made_up(roots: &Roots) -> Option<String> {
    let path = roots.system.as_ref().or(roots.paths.first());
    let from_file = || Some(roots.file.as_ref()?.file_stem()?.to_str()?.to_owned());
    path.map_or_else(from_file, |path| profile::view_name(path))
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "+-._=@:".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(fits) {
        return Err(ConfigError::BadName(name.to_owned()));
    }
    Ok(())
}

/// The name of the view that a person calls `view`: by its name, or by where it is mounted. A name that is served wins.
///
/// # Errors
/// [`ReloadError::NoView`], and those of `mounted`.
pub(super) fn view_of(
    view: &Path,
    served: impl Fn(&str) -> bool,
    mounted: impl Fn(&Path) -> Result<Option<String>, MountError>,
) -> Result<String, Failure> {
    let name = view.to_str().filter(|name| check_name(name).is_ok());
    if let Some(name) = name.filter(|name| served(name)) {
        return Ok(name.to_owned());
    }
    // The mount table has what somebody asked for at the mount, and a name is a part of paths here.
    let mounted = mounted(view)?.filter(|name| check_name(name).is_ok());
    // A name that nobody serves is looked for all the same: that says where.
    let found = mounted.or_else(|| name.map(str::to_owned));
    Ok(found.ok_or_else(|| ReloadError::NoView(view.to_owned()))?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn check(args: &[&str]) -> Result<Action, ConfigError> {
        Config::check(Args::parse_from([&["nix-store-fs"], args].concat())).map(|config| config.action)
    }

    fn name(args: &[&str]) -> String {
        match check(args).unwrap() {
            Action::Mount(settings) => settings.name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_name_comes_from_what_is_served() {
        assert_eq!(name(&["--system", "/profiles/per-container/web"]), "web");
        assert_eq!(name(&["--root", "/a/b", "--roots-file", "/c"]), "b");
        assert_eq!(name(&["--roots-file", "/etc/nix-store-fs/db.roots"]), "db");
        assert_eq!(name(&["--system", "/a", "--name", "other"]), "other");
    }

    #[test]
    fn names_that_would_do_harm_are_refused() {
        for bad in ["", ".state", "..", "a/b", "a b", "a\n", "ä", &"x".repeat(201)] {
            assert!(
                matches!(check(&["--system", "/a", "--name", bad]), Err(ConfigError::BadName(_))),
                "{bad:?}"
            );
        }
        assert!(matches!(check(&["--system", "/"]), Err(ConfigError::NoName)));
    }

    #[test]
    fn a_roots_file_is_watched_where_it_lies() {
        let file = |file: &str| match check(&["--roots-file", file, "--watch"]).unwrap() {
            Action::Mount(settings) => settings.roots.file.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(file("/etc/web.roots"), Path::new("/etc/web.roots"));
        assert_eq!(file("roots"), std::env::current_dir().unwrap().join("roots"));
    }

    #[test]
    fn the_directory_of_roots_is_absolute() {
        let gc_root = |dir: &str| match check(&["--system", "/a/web", "--gc-root", dir]).unwrap() {
            Action::Mount(settings) => settings.gc_root.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(gc_root("/roots"), Path::new("/roots"));
        assert_eq!(gc_root("a/roots"), std::env::current_dir().unwrap().join("a/roots"));
    }

    #[test]
    fn nothing_to_serve_is_said() {
        assert!(matches!(check(&[]), Err(ConfigError::NoRoots)));
        assert!(matches!(check(&["--dump-closure"]), Err(ConfigError::NoRoots)));
        assert!(matches!(check(&["--untrusted", "/a"]), Err(ConfigError::NoRoots)));
    }

    #[test]
    fn what_is_not_trusted_is_absolute() {
        let untrusted = |dir: &str| match check(&["--system", "/a", "--untrusted", dir, "--untrusted", "/c"])
        {
            Ok(Action::Mount(settings)) => Some(settings.roots.untrusted),
            Err(ConfigError::Untrusted(path)) if path == Path::new(dir) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(untrusted("/b"), Some(vec!["/b".into(), "/c".into()]));
        for relative in ["b", "./b", "../b"] {
            assert_eq!(untrusted(relative), None, "{relative:?}");
        }
    }

    #[test]
    fn a_view_is_reloaded_by_name_or_by_place() {
        let mounted = |at: &Path| {
            let hostile = [("/up", "../../tmp/x"), ("/absolute", "/tmp/x"), ("/empty", ""), ("/hidden", ".")];
            let hostile = hostile.into_iter().find(|(place, _)| Path::new(place) == at).map(|(_, name)| name);
            let view = ["/mnt", ".", "here", "db"].map(Path::new).contains(&at).then_some("web");
            Ok(view.or(hostile).map(str::to_owned))
        };
        let served = |name: &str| ["web", "db"].contains(&name);
        for (view, expected) in [
            ("web", Some("web")),
            ("/mnt", Some("web")),
            (".", Some("web")),
            ("here", Some("web")),
            // Both a view's name and a mount point.
            ("db", Some("db")),
            ("nosuch", Some("nosuch")),
            ("./nosuch", None),
            ("/other", None),
            ("..", None),
            ("/up", None),
            ("/absolute", None),
            ("/empty", None),
            ("/hidden", None),
        ] {
            let found = view_of(Path::new(view), served, mounted);
            match expected {
                Some(name) => assert_eq!(found.unwrap(), name, "{view}"),
                None => assert!(matches!(found, Err(Failure::Reload(ReloadError::NoView(_)))), "{view}"),
            }
        }
    }
}
