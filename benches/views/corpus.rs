//! The closure that is measured, as the lists of names that the timing loops walk.
//!
//! Invariants: every name is relative to the store directory, so that one list serves every column; the order
//! is that of a walk from the top, directories before what they hold; nothing is read from a view here, only
//! from the store itself, asked through the `nix-store` command (the program under test has no say in what it
//! is tested with).

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fault::{Doing, Fault, Outcome};

/// Files below this size are the ones that a start-up opens by the hundred.
const SMALL: u64 = 32 * 1024;
/// From this size on, reading is about bandwidth and no longer about opening.
const LARGE: u64 = 1024 * 1024;

/// Where the store lies, and what of it is measured.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// The top of the closure, as given to `--system`.
    pub(crate) system: PathBuf,
    /// The store as given to `--store`, if it was.
    pub(crate) uri: Option<String>,
    /// The directory that holds the store paths on disk.
    pub(crate) physical: PathBuf,
    /// The directory that store paths name (`/nix/store`), which may not exist for a store elsewhere.
    pub(crate) logical: PathBuf,
    /// Base names of the closure's store paths, sorted.
    pub(crate) members: Vec<CString>,
    /// Every entry, a member itself included.
    pub(crate) entries: Vec<CString>,
    /// Regular files under 32 KiB.
    pub(crate) small: Vec<CString>,
    /// Regular files of 1 MiB and more.
    pub(crate) large: Vec<CString>,
    /// Every regular file.
    pub(crate) files: Vec<CString>,
    /// A name that does not exist, beside every file.
    pub(crate) missing: Vec<CString>,
    /// Every directory, the store directory (".") first.
    pub(crate) directories: Vec<CString>,
    /// Entries that the directories hold together.
    pub(crate) listed: usize,
    /// Regular files whose name is that of a shared library.
    pub(crate) libraries: Vec<PathBuf>,
    /// Regular files in a directory `bin` that may be executed, relative to the store.
    pub(crate) programs: Vec<PathBuf>,
    /// Bytes of all regular files.
    pub(crate) bytes: u64,
    /// The same as a page cache holds them: in whole pages, and hard links to one file once.
    pub(crate) page_bytes: u64,
    /// Bytes of the files of 1 MiB and more.
    pub(crate) large_bytes: u64,
}

impl Corpus {
    /// Asks Nix for the closure of `system` and walks it on disk.
    pub(crate) fn load(system: &Path, uri: Option<&str>) -> Outcome<Self> {
        let (logical, physical) = places(uri);
        let mut command = Command::new("nix-store");
        if let Some(uri) = uri {
            command.args(["--store", uri]);
        }
        let output = command
            .args(["--query", "--requisites"])
            .arg(system)
            .output()
            .doing(|| "running nix-store, which tells the closure".into())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Fault::new(format!(
                "asking nix-store for the closure of {}: {said}",
                system.display()
            )));
        }
        let mut members: Vec<PathBuf> = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(|line| Path::new(OsStr::from_bytes(line)).file_name())
            .map(PathBuf::from)
            .collect();
        members.sort();
        let mut corpus = Self {
            system: system.to_owned(),
            uri: uri.map(str::to_owned),
            physical,
            logical,
            members: Vec::new(),
            entries: Vec::new(),
            small: Vec::new(),
            large: Vec::new(),
            files: Vec::new(),
            missing: Vec::new(),
            directories: vec![c".".to_owned()],
            listed: members.len(),
            libraries: Vec::new(),
            programs: Vec::new(),
            bytes: 0,
            page_bytes: 0,
            large_bytes: 0,
        };
        let mut seen = HashSet::new();
        for member in members {
            corpus.members.push(c_name(&member)?);
            corpus.add(member, &mut seen)?;
        }
        Ok(corpus)
    }

    fn add(&mut self, name: PathBuf, seen: &mut HashSet<(u64, u64)>) -> Outcome<()> {
        let path = self.physical.join(&name);
        let metadata = fs::symlink_metadata(&path).doing(|| format!("looking at {}", path.display()))?;
        let c_path = c_name(&name)?;
        self.entries.push(c_path.clone());
        if metadata.is_dir() {
            self.directories.push(c_path);
            let reading = || format!("listing {}", path.display());
            let mut below = Vec::new();
            for entry in fs::read_dir(&path).doing(reading)? {
                below.push(entry.doing(reading)?.file_name());
            }
            below.sort();
            self.listed += below.len();
            for child in below {
                self.add(name.join(child), seen)?;
            }
        } else if metadata.is_file() {
            if seen.insert((metadata.dev(), metadata.ino())) {
                self.page_bytes += metadata.len().next_multiple_of(rustix::param::page_size() as u64);
            }
            self.add_file(name, c_path, &metadata)?;
        }
        Ok(())
    }

    fn add_file(&mut self, name: PathBuf, c_path: CString, metadata: &fs::Metadata) -> Outcome<()> {
        let mut absent = name.clone().into_os_string();
        absent.push(".absent");
        // A name of 255 bytes has no room for the suffix and would be refused before anybody is asked.
        if Path::new(&absent).file_name().is_some_and(|last| last.len() <= 255) {
            self.missing.push(c_name(Path::new(&absent))?);
        }
        if metadata.len() < SMALL {
            self.small.push(c_path.clone());
        }
        if metadata.len() >= LARGE {
            self.large.push(c_path.clone());
            self.large_bytes += metadata.len();
        }
        self.bytes += metadata.len();
        self.files.push(c_path);
        let last = name.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if metadata.len() > 0 && (last.ends_with(b".so") || last.windows(4).any(|part| part == b".so.")) {
            self.libraries.push(name.clone());
        }
        if metadata.mode() & 0o111 != 0 && name.parent().is_some_and(|dir| dir.ends_with("bin")) {
            self.programs.push(name);
        }
        Ok(())
    }
}

fn c_name(path: &Path) -> Outcome<CString> {
    CString::new(path.as_os_str().as_bytes()).doing(|| format!("taking the name {}", path.display()))
}

/// The directory that store paths name, and the one where they lie on disk, as far as a store's URI tells.
fn places(uri: Option<&str>) -> (PathBuf, PathBuf) {
    let logical = PathBuf::from(std::env::var_os("NIX_STORE_DIR").unwrap_or_else(|| "/nix/store".into()));
    let setting = |wanted: &str| {
        let (_, settings) = uri?.split_once('?')?;
        settings.split('&').find_map(|setting| setting.strip_prefix(wanted)?.strip_prefix('='))
    };
    let below = |root: &str| Path::new(root).join(logical.strip_prefix("/").unwrap_or(&logical));
    let physical = match (setting("real"), setting("root"), uri) {
        (Some(real), _, _) => PathBuf::from(real),
        (None, Some(root), _) => below(root),
        (None, None, Some(root)) if root.starts_with('/') => below(root),
        _ => logical.clone(),
    };
    (logical, physical)
}
