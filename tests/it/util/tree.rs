//! Trees of files, as values that can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// All that the view promises about one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) what: What,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum What {
    Directory(Vec<PathBuf>),
    Link { target: PathBuf, size: u64 },
    File { bytes: Vec<u8>, size: u64 },
}

impl std::fmt::Debug for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(names) => write!(f, "directory of {names:?}"),
            Self::Link { target, size } => write!(f, "link of size {size} to {}", target.display()),
            Self::File { bytes, size } => write!(f, "file of size {size}, {} bytes read", bytes.len()),
        }
    }
}

/// One entry as it is now.
pub(crate) fn entry(path: &Path) -> std::io::Result<Entry> {
    let meta = fs::symlink_metadata(path)?;
    let what = if meta.is_dir() {
        What::Directory(list(path)?)
    } else if meta.is_symlink() {
        What::Link { target: fs::read_link(path)?, size: meta.size() }
    } else {
        assert!(meta.is_file(), "{} is neither directory, link nor file", path.display());
        What::File { bytes: fs::read(path)?, size: meta.size() }
    };
    Ok(Entry {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        what,
    })
}

/// The names in a directory, sorted. A name that is listed twice stays twice.
pub(crate) fn list(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut names = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().into()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    names.sort();
    Ok(names)
}

/// Everything at and below a path, by its path relative to `base`.
pub(crate) fn walk(base: &Path, below: &str) -> BTreeMap<PathBuf, Entry> {
    try_walk(base, below).unwrap_or_else(|(path, error)| panic!("{}: {error}", path.display()))
}

/// The same of a tree that may change meanwhile; or what could not be examined.
pub(crate) fn try_walk(
    base: &Path,
    below: &str,
) -> Result<BTreeMap<PathBuf, Entry>, (PathBuf, std::io::Error)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::from(below)];
    while let Some(path) = todo.pop() {
        let full = base.join(&path);
        let entry = entry(&full).map_err(|error| (full, error))?;
        if let What::Directory(names) = &entry.what {
            todo.extend(names.iter().map(|name| path.join(name)));
        }
        found.insert(path, entry);
    }
    Ok(found)
}

/// Fails with the first entry in which two trees differ.
pub(crate) fn assert_same(real: &BTreeMap<PathBuf, Entry>, view: &BTreeMap<PathBuf, Entry>) {
    for (path, entry) in real {
        let seen = view.get(path).unwrap_or_else(|| panic!("{} is not in the view", path.display()));
        assert_eq!(entry, seen, "{} differs", path.display());
    }
    let extra: Vec<_> = view.keys().filter(|path| !real.contains_key(*path)).collect();
    assert!(extra.is_empty(), "in the view alone: {extra:?}");
}
