//! A closure read from a file, instead of asking a store.
//!
//! What is read: JSON of `--dump-closure=json` (version 2, and 1, which earlier versions printed), what `nix path-info --json
//! --json-format 2 --recursive` prints, and lists of store paths, one a line.
//!
//! Invariants: every name is that of a store path, and names no file outside the store directory. Where references are known,
//! each of them and each root is a member, and each member is reached from a root: what was edited, cut off or put together by
//! hand is an error that names what is wrong. No file makes this module panic, or read more than [`LIMIT`] bytes.
//!
//! Hard points:
//! 1. What is quoted from a file in a message may be anything, of any length ([`shown`]).
//! 2. Whether the files are there is another question, which [`Saved::check_present`] asks the disk.

mod json;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::closure::Closure;
use crate::closure::dump::json::VERSION;
use crate::closure::saved::json::VERSION_1;
use crate::values::{InvalidStorePath, StorePath, View};

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;

/// Bytes that a file may have: a closure of 5,000 paths has 5 MB.
pub const LIMIT: u64 = 256 << 20;
/// Characters that are quoted from a file.
const SHOWN: usize = 120;
/// Paths that a message names before it only counts.
const NAMED: usize = 3;

/// A closure that was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    store_dir: PathBuf,
    content: Content,
}

/// What the file says of the closure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// JSON: roots, references and sizes.
    Closure(Closure),
    /// A list: names alone. Which of them were the roots is not known.
    Names(BTreeSet<StorePath>),
}

/// A file that no closure can be read from.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a closure from {}", shown(&.file.to_string_lossy()))]
pub struct SavedError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What is wrong with the contents of a file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file is not there or not readable.
    #[error("{0}; check its name and its permissions")]
    Read(io::Error),
    /// It cannot be the description of a closure.
    #[error("it is longer than {0} bytes, so it is not a closure; check its name")]
    TooLong(u64),
    /// Neither JSON nor a list.
    #[error(
        "it is neither JSON nor a list of store paths; write it with nix-store-fs --dump-closure=json or --dump-closure=store-paths"
    )]
    Format,
    /// JSON, but not of a closure.
    #[error(
        "its JSON is not that of a closure: line {}, column {}, {}; write it again with nix-store-fs --dump-closure=json",
        .0.line(), .0.column(), shown(&without_position(.0))
    )]
    Json(serde_json::Error),
    /// JSON without a version: among others, that of a Nix before 2.33.
    #[error(
        "its JSON has no version; write it with nix-store-fs --dump-closure=json, or with nix path-info --json --json-format {VERSION} --recursive"
    )]
    NoVersion,
    /// A version that this program does not know.
    #[error(
        "its JSON has version {}, and this nix-store-fs reads versions {VERSION_1} and {VERSION}; write it again with its --dump-closure=json",
        shown(.0)
    )]
    Version(String),
    /// The store directory of the file cannot be one.
    #[error("its store directory {} is not an absolute path without '.' and '..'; write it again", shown(&.0.to_string_lossy()))]
    StoreDir(PathBuf),
    /// A path in another directory than the others.
    #[error(
        "{} is not directly in its store directory {}; write it again with nix-store-fs --dump-closure=json or --dump-closure=store-paths",
        shown(.path), shown(&.store_dir.to_string_lossy())
    )]
    Outside {
        /// The path.
        path: String,
        /// Where it should be.
        store_dir: PathBuf,
    },
    /// A name that no store path has.
    #[error("{} is not the name of a store path: {}; was the file edited? Write it again", shown(&.0.text), .0.why)]
    Name(InvalidStorePath),
    /// A root that is not in the closure.
    #[error("the root '{0}' is not among its store paths; was the file edited? Write it again")]
    Root(StorePath),
    /// A reference to a path that is not in the closure.
    #[error(
        "'{from}' refers to '{to}', which is not among its store paths; was the file edited? Write it again"
    )]
    Reference {
        /// The path that refers.
        from: StorePath,
        /// The path that is not there.
        to: StorePath,
    },
    /// A path that does not belong to the closure.
    #[error("no root refers to '{0}', directly or not; was the file edited? Write it again")]
    Unreached(StorePath),
    /// The same path, root or reference twice.
    #[error("'{0}' is in it twice; was the file edited? Write it again")]
    Twice(StorePath),
    /// What Nix prints of a path that it was asked for and does not have.
    #[error("it says that '{0}' is not valid; build or copy that path, and write the file again")]
    NotValid(StorePath),
    /// Something else that is said of a path is wrong.
    #[error("it has no usable {what} of '{path}'; was the file edited? Write it again")]
    Fact {
        /// The key in its JSON.
        what: &'static str,
        /// Whose it is.
        path: StorePath,
    },
}

/// Files of a closure are not in a store.
#[derive(Debug, thiserror::Error)]
pub enum AbsentError {
    /// Some are not there.
    #[error(
        "{} lacks {count} of the {all} store paths of the saved closure, the first being {}; build or copy them to this store, or save the closure again",
        .dir.display(), quoted(.first)
    )]
    Absent {
        /// Where they should be.
        dir: PathBuf,
        /// The first of them, three at most.
        first: Vec<StorePath>,
        /// How many are not there.
        count: usize,
        /// How many the closure has.
        all: usize,
    },
    /// It cannot be told.
    #[error("cannot examine {}; check the permissions of the store", .path.display())]
    Examine {
        /// What was to be examined.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Saved {
    /// Reads `file`: to its end, so it may be a pipe.
    ///
    /// # Errors
    /// [`SavedError`] names the file, what is wrong in it and what to do.
    pub fn read(file: &Path) -> Result<Self, SavedError> {
        read_at_most(file, LIMIT)
            .and_then(|bytes| Self::parse(&bytes))
            .map_err(|problem| SavedError { file: file.to_owned(), problem })
    }

    /// What the contents of a file mean.
    ///
    /// # Errors
    /// [`Problem`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        match (bytes.first(), bytes.iter().find(|byte| !byte.is_ascii_whitespace())) {
            (Some(b'/'), _) => from_lines(bytes),
            (_, Some(b'{')) => json::read(bytes),
            _ => Err(Problem::Format),
        }
    }

    /// The directory that its paths begin with: of the store that it was written from, and that it is good for.
    #[must_use]
    pub fn store_dir(&self) -> &Path {
        &self.store_dir
    }

    /// What is known of the closure.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The same, without the file's store directory.
    #[must_use]
    pub fn into_content(self) -> Content {
        self.content
    }

    /// Every member, in the order of their names.
    #[must_use]
    pub fn members(&self) -> Vec<&StorePath> {
        match &self.content {
            Content::Closure(closure) => closure.members().map(|info| &info.path).collect(),
            Content::Names(names) => names.iter().collect(),
        }
    }

    /// The roots; all members, where it is not known which of them were.
    #[must_use]
    pub fn roots(&self) -> Vec<&StorePath> {
        match &self.content {
            Content::Closure(closure) => closure.roots().iter().collect(),
            Content::Names(names) => names.iter().collect(),
        }
    }

    /// What a server has to know of it; sizes are 0 where they are not known.
    #[must_use]
    pub fn view(&self) -> View {
        match &self.content {
            Content::Closure(closure) => closure.view(),
            Content::Names(names) => names.iter().map(|name| (name.clone(), 0)).collect(),
        }
    }

    /// Whether every member is in `dir`, the directory that a store's files are in: there, not whole.
    ///
    /// # Errors
    /// [`AbsentError`] names the first that are not there, and says how many are not.
    pub fn check_present(&self, dir: &Path) -> Result<(), AbsentError> {
        let members = self.members();
        let mut first = Vec::new();
        let mut count = 0;
        for member in &members {
            let path = dir.join(member.as_str());
            match fs::symlink_metadata(&path) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    count += 1;
                    if first.len() < NAMED {
                        first.push((*member).clone());
                    }
                }
                Err(source) => return Err(AbsentError::Examine { path, source }),
            }
        }
        if count == 0 {
            return Ok(());
        }
        Err(AbsentError::Absent { dir: dir.to_owned(), first, count, all: members.len() })
    }
}

/// Reads one byte more than `limit` at most.
fn read_at_most(file: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let file = File::open(file).map_err(Problem::Read)?;
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Problem::Read)?;
    match u64::try_from(read) {
        Ok(read) if read <= limit => Ok(bytes),
        _ => Err(Problem::TooLong(limit)),
    }
}

/// One store path a line. The first says which the store directory is.
fn from_lines(bytes: &[u8]) -> Result<Saved, Problem> {
    let mut names = BTreeSet::new();
    let mut store_dir = None;
    for line in bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|byte| *byte == b'\n') {
        let slash = line.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let dir = match &store_dir {
            Some(dir) => dir,
            None => {
                let dir = line.get(..slash).unwrap_or_default();
                store_dir.insert(checked_dir(Path::new(OsStr::from_bytes(dir)))?)
            }
        };
        let name = member(line, dir)?;
        if let Some(twice) = names.replace(name) {
            return Err(Problem::Twice(twice));
        }
    }
    let store_dir = store_dir.ok_or(Problem::Format)?;
    Ok(Saved { store_dir, content: Content::Names(names) })
}

/// An absolute path, spelt in the only way that store paths can be compared by.
fn checked_dir(dir: &Path) -> Result<PathBuf, Problem> {
    let mut components = dir.components();
    let is_spelt_plainly = components.next() == Some(Component::RootDir)
        && dir.components().skip(1).all(|component| matches!(component, Component::Normal(_)))
        && dir.components().count() > 1
        && dir.components().collect::<PathBuf>().as_os_str() == dir.as_os_str()
        && !dir.as_os_str().as_bytes().iter().any(u8::is_ascii_control);
    if is_spelt_plainly { Ok(dir.to_owned()) } else { Err(Problem::StoreDir(dir.to_owned())) }
}

/// The name of a path directly in `store_dir`.
fn member(path: &[u8], store_dir: &Path) -> Result<StorePath, Problem> {
    let within = path.strip_prefix(store_dir.as_os_str().as_bytes()).and_then(|rest| rest.strip_prefix(b"/"));
    let text = || String::from_utf8_lossy(path).into_owned();
    match within {
        Some(name) if !name.contains(&b'/') => match str::from_utf8(name) {
            Ok(name) => StorePath::new(name).map_err(Problem::Name),
            Err(_) => Err(Problem::Name(InvalidStorePath { text: text(), why: "it is not UTF-8" })),
        },
        _ => Err(Problem::Outside { path: text(), store_dir: store_dir.to_owned() }),
    }
}

/// Text of others in a message: in quotation marks, without control characters, and not too long.
fn shown(text: &str) -> String {
    let mut shown = String::from("'");
    for c in text.chars().take(SHOWN) {
        // `escape_debug` would escape quotation marks as well, of which messages of parsers have many.
        if matches!(c, '\'' | '"') { shown.push(c) } else { shown.extend(c.escape_debug()) }
    }
    shown.push_str(if text.chars().nth(SHOWN).is_some() { "…'" } else { "'" });
    shown
}

/// What a parser says besides where.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

fn quoted(paths: &[StorePath]) -> String {
    paths.iter().map(|path| format!("'{path}'")).collect::<Vec<_>>().join(", ")
}
