//! From what a user asked for to a closure that the collector cannot take away, in two steps: [`follow`] reads links and
//! files, [`closure`] asks the store. What is to be watched is known after the first, whether it succeeds or not.
//!
//! Invariant: every root has a temporary root in the store before its closure is asked for, and the collector
//! keeps what a root refers to: so nothing of a resolved closure can vanish while the [`Store`] is open.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use crate::closure::dependency::Dependency;
use crate::closure::profile::{self, ProfileError, StoreDirs};
use crate::closure::roots::RootsError;
use crate::closure::saved::{AbsentError, Problem, SavedError};
use crate::closure::trust::Trust;
use crate::closure::{Closure, NotAClosure};
use crate::store::{Store, StoreError};
use crate::values::{StorePath, View};

/// Bytes that a file of roots may have.
const FILE_LIMIT: u64 = 16 << 20;

/// What is to be served, as the user names it; any of it may be a link and lead elsewhere the next time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    /// The system.
    pub system: Option<PathBuf>,
    /// More paths.
    pub paths: Vec<PathBuf>,
    /// A file with more paths, read each time.
    pub file: Option<PathBuf>,
    /// Directories through which none of them may lead.
    pub untrusted: Vec<PathBuf>,
    /// The directory in which relative ones are; none: the current one.
    pub directory: Option<PathBuf>,
}

impl Roots {
    /// Whether there is nothing to serve.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.system.is_none() && self.paths.is_empty() && self.file.is_none()
    }

    /// A path of a root, where it is meant. The base name of a store path is in no directory.
    fn meant<'a>(&self, path: &'a Path) -> Cow<'a, Path> {
        let is_base = || path.to_str().is_some_and(|name| StorePath::new(name).is_ok());
        match &self.directory {
            Some(directory) if path.is_relative() && !is_base() => Cow::Owned(directory.join(path)),
            _ => Cow::Borrowed(path),
        }
    }
}

/// Why the roots do not give a closure.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A path leads to no store path.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A line of a file of roots has no closure.
    #[error("line {number} of the roots file '{}'", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        number: usize,
        /// Why not.
        #[source]
        why: Box<ResolveError>,
    },
    /// The file of roots cannot be read.
    #[error("cannot read the roots file '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No closure can be read from a file.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A file names another store than the address.
    #[error(
        "the closure in '{}' is one of the store directory '{}', and --store means a store of '{}'; give the store that it was saved from",
        file.display(), saved.display(), dir.display()
    )]
    OtherStore {
        /// The file.
        file: PathBuf,
        /// The store directory in it.
        saved: PathBuf,
        /// That of the address.
        dir: PathBuf,
    },
    /// Members of a closure from a file are not there.
    #[error(transparent)]
    Absent(#[from] AbsentError),
    /// The store answered nonsense.
    #[error(transparent)]
    NotAClosure(#[from] NotAClosure),
    /// What they lead to cannot be held beyond this process, as was asked for.
    #[error(transparent)]
    Roots(#[from] RootsError),
}

impl ResolveError {
    /// The error itself, whichever line of a file it is about.
    #[must_use]
    pub fn cause(&self) -> &Self {
        match self {
            Self::Line { why, .. } => why.cause(),
            error => error,
        }
    }

    /// Whether another resolution may succeed although no file or link that the roots depend on has changed. A watch
    /// does not report that: it has to be tried.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Profile(error) => error.may_pass(),
            Self::Store(error) => error.may_pass(),
            // A new file, or other contents, are a change. Permissions are not watched.
            Self::File { source, .. } | Self::Saved(SavedError { problem: Problem::Read(source), .. }) => {
                !matches!(
                    source.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::InvalidData
                        | io::ErrorKind::FileTooLarge
                )
            }
            Self::Saved(_) | Self::OtherStore { .. } => false,
            // The store itself is not watched.
            Self::NotAClosure(_) | Self::Absent(_) => true,
            Self::Roots(error) => error.may_pass(),
            Self::Line { why, .. } => why.may_pass(),
        }
    }
}

/// The line of a file of roots that a root is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    file: PathBuf,
    number: usize,
}

impl Origin {
    /// The same error, with where what it is about was found, if that was in a file.
    fn name(origin: Option<&Self>, error: impl Into<ResolveError>) -> ResolveError {
        let error = error.into();
        match origin.cloned() {
            Some(Self { file, number }) => ResolveError::Line { file, number, why: Box::new(error) },
            None => error,
        }
    }
}

/// A root that was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Where it led.
    pub path: StorePath,
    /// Where it was found. None: the user gave it.
    pub origin: Option<Origin>,
}

/// What links and files led to: roots, unless it says otherwise.
#[derive(Debug)]
pub struct Followed<T = Vec<Root>> {
    /// What they lead to.
    pub result: Result<T, ResolveError>,
    /// Everything whose change may change that: whatever was at the paths that were examined.
    pub depends_on: Vec<Dependency>,
}

/// One line of a file of roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What stands in it.
    pub path: PathBuf,
    /// Whether the path may not exist yet.
    pub awaited: bool,
    /// Its number, counted from 1.
    pub number: usize,
}

/// One root a line; `#` begins a comment, a leading `?` marks a root that is waited for.
#[must_use]
pub fn parse(text: &str) -> Vec<Line> {
    (1..)
        .zip(text.lines())
        .map(|(number, line)| (number, line.split('#').next().unwrap_or_default().trim()))
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| match line.strip_prefix('?') {
            Some(path) => Line { path: path.trim_start().into(), awaited: true, number },
            None => Line { path: line.into(), awaited: false, number },
        })
        .collect()
}

/// Whom to trust with `roots`, as things are now.
#[must_use]
pub fn trust(roots: &Roots, dirs: StoreDirs<'_>) -> Trust {
    Trust::of_process(Some(dirs.real)).with_untrusted(&roots.untrusted)
}

/// Follows `roots` to store paths; asks no store.
#[must_use]
pub fn follow(roots: &Roots, dirs: StoreDirs<'_>) -> Followed {
    follow_trusting(roots, dirs, &trust(roots, dirs))
}

fn follow_trusting(roots: &Roots, dirs: StoreDirs<'_>, trust: &Trust) -> Followed {
    let mut depends_on = Vec::new();
    let result = follow_all(roots, dirs, trust, &mut depends_on);
    Followed { result, depends_on }
}

fn follow_all(
    roots: &Roots,
    dirs: StoreDirs<'_>,
    trust: &Trust,
    depends_on: &mut Vec<Dependency>,
) -> Result<Vec<Root>, ResolveError> {
    let given = roots.system.iter().chain(&roots.paths);
    let mut all: Vec<(&Path, bool, Option<Origin>)> =
        given.map(|path| (path.as_path(), false, None)).collect();
    let lines: Vec<Line>;
    if let Some(path) = &roots.file {
        let read = profile::read_file(path, dirs, trust, FILE_LIMIT);
        depends_on.extend(read.depends_on);
        let text = read.result?.and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        let text = text.map_err(|source| ResolveError::File { path: path.clone(), source })?;
        lines = parse(&text);
        let origin = |number| Some(Origin { file: path.clone(), number });
        all.extend(lines.iter().map(|line| (line.path.as_path(), line.awaited, origin(line.number))));
    }
    if let Some(path) = roots.file.as_ref().filter(|_| all.is_empty()) {
        tracing::warn!(file = %path.display(), "the roots file names no root: nothing is served until it does and the view is reloaded");
    }
    let mut found = Vec::with_capacity(all.len());
    for (path, awaited, origin) in all {
        let path = &*roots.meant(path);
        let followed = profile::follow(path, dirs, trust);
        depends_on.extend(followed.depends_on);
        match followed.result {
            Ok(path) => found.push(Root { path, origin }),
            Err(error) if awaited && error.is_absence() => {
                let line = origin.map(|origin| origin.number);
                tracing::warn!(root = %path.display(), line, "not there yet, and left out until the next reload: {error}");
            }
            Err(error) => return Err(Origin::name(origin.as_ref(), error)),
        }
    }
    Ok(found)
}

/// Holds the store paths `found` and asks for their closure.
///
/// # Errors
/// [`ResolveError`]; roots already held stay held, which harms nobody.
pub fn closure(store: &Store, found: Vec<Root>) -> Result<Closure, ResolveError> {
    let (roots, infos) = held(store, found, |roots| store.closure(roots))?;
    Ok(Closure::new(roots, infos)?)
}

/// The same for one who only serves it, in less time: the roots, in the order of `found`, and the view of their closure.
///
/// # Errors
/// [`ResolveError`].
pub fn view(store: &Store, found: Vec<Root>) -> Result<(Vec<StorePath>, View), ResolveError> {
    let (roots, view) = held(store, found, |roots| store.view(roots))?;
    match roots.iter().find(|root| !view.contains(root)) {
        Some(root) => Err(NotAClosure(root.clone()).into()),
        None => Ok((roots, view)),
    }
}

/// Holds `found`, and asks for what they lead to.
fn held<T>(
    store: &Store,
    found: Vec<Root>,
    ask: impl FnOnce(&[StorePath]) -> Result<T, StoreError>,
) -> Result<(Vec<StorePath>, T), ResolveError> {
    for root in &found {
        store.add_temp_root(&root.path).map_err(|error| Origin::name(root.origin.as_ref(), error))?;
    }
    let (roots, origins): (Vec<_>, Vec<_>) = found.into_iter().map(|root| (root.path, root.origin)).unzip();
    let answer = ask(&roots).map_err(|error| {
        let refused = match &error {
            StoreError::Invalid { path, .. } => roots.iter().position(|root| root == path),
            _ => None,
        };
        Origin::name(refused.and_then(|at| origins.get(at)?.as_ref()), error)
    })?;
    Ok((roots, answer))
}

/// Both steps, for one who neither watches nor serves: where somebody else decides what the roots mean, a warning says that
/// a view of it would be refused.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(store: &Store, roots: &Roots) -> Result<Closure, ResolveError> {
    let dirs = StoreDirs::of(store);
    closure(store, follow_trusting(roots, dirs, &trust(roots, dirs).warning_only()).result?)
}

/// Holds what an earlier process served and this one continues to serve. What is no longer valid is left out.
///
/// # Errors
/// [`StoreError`].
pub fn hold(store: &Store, view: &View) -> Result<(), StoreError> {
    for path in view.names() {
        if store.is_valid(path)? {
            store.add_temp_root(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closure::dependency::Seen;
    use crate::closure::trust::Reason;

    #[test]
    fn a_file_of_roots_has_comments_and_awaited_lines() {
        let text = "# all of it\n/nix/store/a  # one\n\n?/profiles/system\n ? /run/opengl-driver\n";
        let line = |path: &str, awaited, number| Line { path: path.into(), awaited, number };
        let expected = vec![
            line("/nix/store/a", false, 2),
            line("/profiles/system", true, 4),
            line("/run/opengl-driver", true, 5),
        ];
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), vec![]);
    }

    /// Whatever ends the following, everything examined before it is among the dependencies, and the end as well.
    #[test]
    fn what_failed_depends_on_what_was_examined() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let dirs = StoreDirs { logical: Path::new("/nix/store"), real: Path::new("/nix/store") };
        let roots =
            |system: &str| Roots { system: Some(at(system)), file: Some(at("roots")), ..Roots::default() };
        let seen = |followed: &Followed, name: &str| {
            let found = followed.depends_on.iter().rfind(|one| one.path() == at(name));
            found.map(|one| one.seen().clone())
        };

        let no_file = follow(&roots("system"), dirs);
        assert!(matches!(no_file.result, Err(ResolveError::File { .. })));
        assert_eq!(seen(&no_file, "roots"), Some(Seen::Absent));

        std::fs::write(at("roots"), format!("?{}\n", at("awaited").display())).unwrap();
        let no_system = follow(&roots("system"), dirs);
        assert!(matches!(no_system.result, Err(ResolveError::Profile(ProfileError::Absent(_)))));
        assert!(matches!(seen(&no_system, "roots"), Some(Seen::File { .. })));
        assert_eq!(seen(&no_system, "system"), Some(Seen::Absent));

        let system = format!("/nix/store/{}-system", "0".repeat(32));
        std::os::unix::fs::symlink(&system, at("system")).unwrap();
        let awaiting = follow(&roots("system"), dirs);
        assert_eq!(awaiting.result.as_ref().unwrap().len(), 1);
        assert_eq!(seen(&awaiting, "system"), Some(Seen::Link(system.into())));
        assert_eq!(seen(&awaiting, "awaited"), Some(Seen::Absent));
    }

    #[test]
    fn an_error_passes_by_itself_or_with_a_change_that_is_watched() {
        let root = || StorePath::new(&format!("{}-system", "0".repeat(32))).unwrap();
        let io = |kind: io::ErrorKind| io::Error::from(kind);
        let file = |kind| ResolveError::File { path: "/roots".into(), source: io(kind) };
        let profile = |error: ProfileError| ResolveError::Profile(error);
        let daemon = || StoreError::Daemon { uri: "daemon".into(), cause: String::new() };
        let in_line = |why| ResolveError::Line { file: "/roots".into(), number: 3, why: Box::new(why) };
        let saved = |problem| ResolveError::from(SavedError { file: "/saved".into(), problem });
        let bad = || StoreError::UnknownUri { uri: "ssh://".into() };
        let cases = [
            (profile(ProfileError::Absent("/a".into())), false),
            (profile(ProfileError::Dangling { link: "/a".into(), target: "/b".into() }), false),
            (profile(ProfileError::NotInStore { path: "/a".into(), store: "/nix/store".into() }), false),
            (profile(ProfileError::TheStore("/nix/store".into())), false),
            (profile(ProfileError::NoSystem("/a".into())), false),
            (profile(ProfileError::TooManyLinks("/a".into())), false),
            (profile(ProfileError::Untrusted { entry: "/a".into(), why: Reason::Named("/a".into()) }), false),
            (
                profile(ProfileError::Io { path: "/a".into(), source: io(io::ErrorKind::PermissionDenied) }),
                true,
            ),
            (file(io::ErrorKind::NotFound), false),
            (in_line(profile(ProfileError::Absent("/a".into()))), false),
            (in_line(daemon().into()), true),
            (file(io::ErrorKind::InvalidData), false),
            (file(io::ErrorKind::PermissionDenied), true),
            (daemon().into(), true),
            (StoreError::Open { uri: "local".into(), cause: String::new() }.into(), true),
            (StoreError::NoSuchStore { uri: "local".into(), missing: "/nix".into() }.into(), true),
            (StoreError::Configured(Box::new(daemon())).into(), true),
            (StoreError::Invalid { store: "local".into(), path: root() }.into(), true),
            (StoreError::Query { operation: "ask", path: root(), cause: String::new() }.into(), true),
            (StoreError::TempRoot { path: root(), cause: String::new() }.into(), true),
            (bad().into(), false),
            (StoreError::Configured(Box::new(bad())).into(), false),
            (StoreError::Initialise { cause: String::new() }.into(), false),
            (StoreError::Version { built: "2.26", loaded: "2.27".into() }.into(), false),
            (NotAClosure(root()).into(), true),
            (saved(Problem::Read(io(io::ErrorKind::NotFound))), false),
            (saved(Problem::Read(io(io::ErrorKind::PermissionDenied))), true),
            (saved(Problem::Read(io(io::ErrorKind::ResourceBusy))), true),
            (saved(Problem::Format), false),
            (saved(Problem::TooLong(1)), false),
            (ResolveError::OtherStore { file: "/a".into(), saved: "/b".into(), dir: "/c".into() }, false),
            (AbsentError::Absent { dir: "/a".into(), first: vec![root()], count: 1, all: 1 }.into(), true),
            (RootsError::NotADirectory("/roots".into()).into(), true),
            (
                RootsError::Untrusted {
                    dir: "/roots".into(),
                    entry: "/".into(),
                    why: Reason::Named("/".into()),
                }
                .into(),
                true,
            ),
            (RootsError::Make(StoreError::Invalid { store: "local".into(), path: root() }).into(), true),
            (RootsError::Closed.into(), false),
        ];
        for (error, passes) in cases {
            assert_eq!(error.may_pass(), passes, "{error}");
        }
    }
}
