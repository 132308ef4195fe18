//! What is told of a command that has ended: what it missed and used, and the roots that would have been enough.
//!
//! The process that tells it is outside of the command's namespaces: it asks the monitor, and the store, as any other would.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::super::exit::Failure;
use super::super::output::{Harmless, many};
use super::super::report::{self, Shown};
use crate::closure::Closure;
use crate::closure::enough::enough;
use crate::protocol::control::{self, report::Report};
use crate::store::Store;
use crate::values::StorePath;

/// How long it is waited for what is still looked into.
const PATIENCE: Duration = Duration::from_secs(5);
/// On standard error, people read along.
const FIRST: Shown = Shown::First("--report=FILE has all");
/// The pause before the monitor is asked again.
const PAUSE: Duration = Duration::from_millis(5);

/// What is to be told.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The report, to a file or standard error.
    pub(super) report: Option<Option<PathBuf>>,
    /// The file for roots.
    pub(super) learn: Option<PathBuf>,
    /// The store, as it was given.
    pub(super) store: Option<String>,
    /// The command.
    pub(super) words: Vec<OsString>,
}

impl Wanted {
    /// Whether anything is.
    pub(super) fn is_any(&self) -> bool {
        self.report.is_some() || self.learn.is_some()
    }

    /// Looks whether the files can be written, before it takes long to find out what is to be in them.
    ///
    /// # Errors
    /// [`Failure::Write`].
    pub(super) fn check(&self) -> Result<(), Failure> {
        for file in self.report.iter().flatten().chain(&self.learn) {
            may_write(file).map_err(|source| Failure::Write { path: file.clone(), source })?;
        }
        Ok(())
    }

    /// Tells what is wanted of a command that has ended `well`, and of the view whose monitor listens at `control`, of a store whose paths
    /// begin with `dir`.
    ///
    /// # Errors
    /// Those of asking, of the store, and of writing.
    pub(super) fn tell(self, control: &Path, dir: &Path, well: bool) -> Result<(), Failure> {
        let found = ask(control)?;
        let missed: BTreeSet<StorePath> =
            found.missed.iter().flat_map(|missed| &missed.names).map(|name| name.path.clone()).collect();
        let used = found.used.iter().flat_map(|used| &used.members).map(|member| member.path.clone());
        let needed: BTreeSet<StorePath> = missed.iter().cloned().chain(used).collect();
        let sets =
            [self.learn.as_ref().map(|_| needed.clone()), self.report.as_ref().map(|_| missed.clone())];
        let [roots, lacking] = few(self.store, sets.map(Option::unwrap_or_default))?;
        if let Some(file) = &self.learn {
            let spare: BTreeSet<&StorePath> =
                found.roots.iter().filter(|root| !needed.contains(root)).collect();
            // Who knows what comes after the first thing that is missing?
            let further = if well && missed.is_empty() { Further::NotNeeded } else { Further::Unknown };
            let text = roots_file(&self.words, dir, &roots, &spare, further);
            replace(file, &text).map_err(|source| Failure::Write { path: file.clone(), source })?;
        }
        if let Some(to) = &self.report {
            let written = match to {
                None => write(found, FIRST, dir, &lacking, &mut io::stderr().lock()),
                Some(file) => File::create(file).and_then(|file| {
                    let mut out = BufWriter::new(file);
                    write(found, Shown::All, dir, &lacking, &mut out)?;
                    out.flush()
                }),
            };
            let path = || to.clone().unwrap_or_else(|| "/dev/stderr".into());
            written.map_err(|source| Failure::Write { path: path(), source })?;
        }
        Ok(())
    }
}

/// What the monitor knows, once all that was asked of the view is looked into.
fn ask(control: &Path) -> Result<Report, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = control::ask_report(control).map_err(Failure::Report)?;
        let pending = found.missed.as_ref().map_or(0, |missed| missed.pending);
        if pending == 0 {
            return Ok(found);
        }
        if Instant::now() >= until {
            tracing::warn!("{} may be missing in the report", many(pending, "name", "names"));
            return Ok(found);
        }
        std::thread::sleep(PAUSE);
    }
}

/// For each set the fewest roots whose closures hold what of it the store has. For none of them, no store is opened.
fn few<const N: usize>(
    store: Option<String>,
    sets: [BTreeSet<StorePath>; N],
) -> Result<[Vec<StorePath>; N], Failure> {
    if sets.iter().all(BTreeSet::is_empty) {
        return Ok([const { Vec::new() }; N]);
    }
    // The store may take its thread into another mount namespace.
    let work = move || {
        let store = Store::open_given(store.as_deref())?;
        let few = sets.into_iter().map(|needed| few_of(&store, needed));
        few.collect::<Result<Vec<_>, Failure>>()
    };
    let all = std::thread::spawn(work).join().map_err(|_| Failure::Panicked)??;
    // As many as there were.
    all.try_into().map_err(|_| Failure::Panicked)
}

fn few_of(store: &Store, needed: BTreeSet<StorePath>) -> Result<Vec<StorePath>, Failure> {
    let mut valid = BTreeSet::new();
    for path in needed {
        if store.is_valid(&path)? {
            valid.insert(path);
        }
    }
    let roots: Vec<StorePath> = valid.iter().cloned().collect();
    let infos = store.closure(&roots)?;
    let closure = Closure::new(roots, infos).map_err(|error| Failure::Resolve(error.into()))?;
    Ok(enough(&closure, &valid))
}

/// What roots are for that were given and not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Further {
    /// For nothing that was done.
    NotNeeded,
    /// The command did not come to its end as it should.
    Unknown,
}

/// A file for `--roots-file`. What was given and not used is in it as comments, unless it may be needed.
fn roots_file(
    words: &[OsString],
    dir: &Path,
    roots: &[StorePath],
    spare: &BTreeSet<&StorePath>,
    further: Further,
) -> String {
    let line = |path: &StorePath| format!("{}\n", dir.join(path.as_str()).display());
    let words: Vec<String> = words.iter().map(|word| Harmless::os(word).to_string()).collect();
    let mut text = format!("# The roots that were enough for: {}\n", words.join(" "));
    text.extend(roots.iter().map(line));
    match further {
        _ if spare.is_empty() => {}
        Further::NotNeeded => {
            text.push_str("# Given, and not used:\n");
            text.extend(spare.iter().map(|path| format!("# {}", line(path))));
        }
        Further::Unknown => {
            text.push_str("# Given, and not used, but something was missing or failed:\n");
            text.extend(spare.iter().map(|path| line(path)));
        }
    }
    text
}

/// Whether `file` can be written, or made.
fn may_write(file: &Path) -> io::Result<()> {
    let exists = file.metadata().map(|found| found.is_dir());
    let (path, wanted) = match (exists, file.parent()) {
        (Ok(true), _) => return Err(io::ErrorKind::IsADirectory.into()),
        (Ok(false), _) => (file, Access::WRITE_OK),
        (Err(_), Some(parent)) if parent.as_os_str().is_empty() => (Path::new("."), Access::WRITE_OK),
        (Err(_), parent) => (parent.unwrap_or(file), Access::WRITE_OK | Access::EXEC_OK),
    };
    Ok(rustix::fs::access(path, wanted)?)
}

/// Puts `text` in the place of what is in `file`: whole, if it is a regular file or none. A link leads to the file.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let file = &file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let is_regular = file.symlink_metadata().map_or(true, |found| found.is_file());
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = file.with_file_name(name);
    if !is_regular {
        return std::fs::write(file, text);
    }
    // In a directory that cannot be written, the file may be.
    let Ok(mut made) = File::create_new(&new) else { return std::fs::write(file, text) };
    let replaced = made.write_all(text.as_bytes()).and_then(|()| std::fs::rename(&new, file));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    replaced
}

/// The report for people, and what to add.
fn write(
    found: Report,
    shown: Shown,
    dir: &Path,
    roots: &[StorePath],
    out: &mut dyn Write,
) -> io::Result<()> {
    report::write(found, shown, out)?;
    if !roots.is_empty() {
        write!(out, "\nTo have what was missed:")?;
        for root in roots {
            write!(out, " --root {}", dir.join(root.as_str()).display())?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roots_file_says_what_it_is_for() {
        let path = |name: &str| StorePath::new(&format!("00000000000000000000000000000000-{name}")).unwrap();
        let (a, b) = (path("a"), path("b"));
        let words = ["make", "a\nb"].map(OsString::from);
        let (dir, spare) = (Path::new("/nix/store"), BTreeSet::from([&b]));
        let text = roots_file(&words, dir, std::slice::from_ref(&a), &spare, Further::Unknown);
        assert!(text.ends_with("failed:\n/nix/store/00000000000000000000000000000000-b\n"), "{text}");
        let text = roots_file(&words, dir, &[a], &spare, Further::NotNeeded);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1..],
            [
                "/nix/store/00000000000000000000000000000000-a",
                "# Given, and not used:",
                "# /nix/store/00000000000000000000000000000000-b",
            ]
        );
        assert!(lines[0].starts_with("# The roots that were enough for: make "), "{text}");
    }
}
