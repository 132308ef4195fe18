//! Serving a view: arguments checked, what was left out filled in, and the monitor.

use std::path::{Path, PathBuf};

use super::args::{self, Args};
use super::config::ConfigError;
use super::exit::{Exit, Failure};
use super::views;
use crate::closure::profile;
use crate::closure::source::Source;
use crate::monitor::{self, Ending, Origin, Settings, mount};
use crate::mounts;
use crate::protocol::wire::Outlasts;
use crate::startup::Stored;

/// Fewer than two threads cost a wake-up more a request (60 against 15 to 20 microseconds, measured); more than
/// eight have nothing to do.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// Serves the view to its end.
pub(super) fn run(args: Args, stored: Stored) -> Result<Exit, Failure> {
    let settings = check(args)?;
    // The server is started from there as well.
    mounts::mounts().map_err(mount::MountError::Table)?;
    match monitor::run(settings, Origin::Own(stored), None)? {
        Ending::Unmounted => Ok(Exit::Success),
        Ending::HandedOver => Ok(Exit::HandedOver),
    }
}

/// Checks `args` without touching the store, FUSE or the mount point.
pub(super) fn check(args: Args) -> Result<Settings, ConfigError> {
    let log = args.log();
    let (source, store) = args.roots.check().map_err(|error| {
        match (error, args.mountpoint.as_deref().and_then(Path::to_str)) {
            (ConfigError::NoRoots, Some(word)) => no_roots(word),
            (error, _) => error,
        }
    })?;
    let name = args.name.or_else(|| made_up(&source)).ok_or(ConfigError::NoName)?;
    check_name(&name)?;
    Ok(Settings {
        mountpoint: args.mountpoint.unwrap_or_else(|| views::base().join(&name)),
        state: views::states().join(&name),
        source,
        store,
        hidden: None,
        threads: args.threads.map_or_else(threads, usize::from),
        io: args.io,
        sandbox: args.sandbox,
        idle_polling: args.idle_polling,
        watch: args.watch,
        prune: args.prune,
        report: args.report,
        prefetch: args.prefetch,
        profiles: profiles(args.cache_dir),
        gc_root: args.gc_root.map(absolute).transpose()?,
        outlasts: Outlasts::Nobody,
        log,
        name,
    })
}

/// How many threads answer requests, where nobody has said.
pub(super) fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.clamp(*THREADS.start(), *THREADS.end())
}

/// Nothing is to be served: the word that would be the mount point may have been meant for a command.
fn no_roots(word: &str) -> ConfigError {
    match args::command_like(word) {
        Some(meant) if meant == word => ConfigError::CommandLater(meant),
        Some(meant) => ConfigError::Mistyped { typed: word.to_owned(), meant },
        None => ConfigError::NoRoots,
    }
}

/// Where the profile of use is kept.
fn profiles(dir: Option<PathBuf>) -> Option<monitor::Profiles> {
    dir.map(monitor::Profiles::Asked).or_else(|| views::profiles().map(monitor::Profiles::Default))
}

/// Nix wants the absolute path of a root, and a successor may be started in another directory.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|source| ConfigError::GcRoot { path, source })
}

fn made_up(source: &Source) -> Option<String> {
    let stem = |file: &Path| Some(file.file_stem()?.to_str()?.to_owned());
    match source {
        Source::Roots(roots) => match roots.system.as_ref().or(roots.paths.first()) {
            Some(path) => profile::view_name(path),
            None => stem(roots.file.as_ref()?),
        },
        Source::Saved(file) => stem(&file.path),
    }
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    if views::is_name(name) { Ok(()) } else { Err(ConfigError::BadName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::closure::source::SavedFile;

    fn check(args: &[&str]) -> Result<Settings, ConfigError> {
        super::check(Args::parse_from([&["nix-store-fs"], args].concat()))
    }

    fn name(args: &[&str]) -> String {
        check(args).unwrap().name
    }

    #[test]
    fn the_name_comes_from_what_is_served() {
        assert_eq!(name(&["--system", "/profiles/per-container/web"]), "web");
        assert_eq!(name(&["--root", "/a/b", "--roots-file", "/c"]), "b");
        assert_eq!(name(&["--roots-file", "/etc/nix-store-fs/db.roots"]), "db");
        assert_eq!(name(&["--from", "/etc/nix-store-fs/db.json"]), "db");
        assert_eq!(name(&["--from", "closure"]), "closure");
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
        let file = |file: &str| match check(&["--roots-file", file, "--watch"]).unwrap().source {
            Source::Roots(roots) => roots.file.unwrap(),
            Source::Saved(file) => panic!("{file:?}"),
        };
        assert_eq!(file("/etc/web.roots"), Path::new("/etc/web.roots"));
        assert_eq!(file("roots"), std::env::current_dir().unwrap().join("roots"));
        let from = check(&["--from", "saved", "--untrusted", "/a"]).unwrap().source;
        let path = std::env::current_dir().unwrap().join("saved");
        assert_eq!(from, Source::Saved(SavedFile { path, untrusted: vec!["/a".into()] }));
    }

    #[test]
    fn the_directory_of_roots_is_absolute() {
        let gc_root = |dir: &str| check(&["--system", "/a/web", "--gc-root", dir]).unwrap().gc_root.unwrap();
        assert_eq!(gc_root("/roots"), Path::new("/roots"));
        assert_eq!(gc_root("a/roots"), std::env::current_dir().unwrap().join("a/roots"));
    }

    #[test]
    fn nothing_to_serve_is_said() {
        assert!(matches!(check(&[]), Err(ConfigError::NoRoots)));
        // An option came first.
        assert!(matches!(check(&["satus"]), Err(ConfigError::Mistyped { meant, .. }) if meant == "status"));
        assert!(matches!(check(&["/mnt"]), Err(ConfigError::NoRoots)));
        assert!(matches!(check(&["-v", "reload"]), Err(ConfigError::CommandLater(word)) if word == "reload"));
        assert!(matches!(check(&["--untrusted", "/a"]), Err(ConfigError::NoRoots)));
    }

    #[test]
    fn what_is_not_trusted_is_absolute() {
        let untrusted = |dir: &str| match check(&["--system", "/a", "--untrusted", dir, "--untrusted", "/c"])
        {
            Ok(settings) => Some(settings.source.untrusted().to_vec()),
            Err(ConfigError::Untrusted(path)) if path == Path::new(dir) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(untrusted("/b"), Some(vec!["/b".into(), "/c".into()]));
        for relative in ["b", "./b", "../b"] {
            assert_eq!(untrusted(relative), None, "{relative:?}");
        }
    }
}
