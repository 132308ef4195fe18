//! The kernel's caches of names, inodes and pages: how many they hold, how they are emptied, and how they are filled
//! with what a row takes for granted.
//!
//! Hard points:
//!
//! 1. A first look-up walks a chain of the hash tables of names and of inodes, and how long the chains are depends on
//!    everything that the machine has cached. So names and inodes are dropped before each fresh view, and those of
//!    the store brought back ([`Caches::refresh`]): a row does not depend on what was measured or compiled before it.
//! 2. An inode with pages in the page cache is not dropped with the names (from Linux 5.16 on it is not even tried).
//!    So a run begins by dropping everything, pages as well.
//! 3. A "first" is the first look through the view, on a host that has used its store. So what lies below a view is
//!    warm for every column: names, attributes and bytes of the store, the metadata tree for the overlay, and for
//!    programs and containers what they read beside the store, by doing the same once from a bind mount.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Advice, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::columns::{Column, Ground, Kind};
use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};
use crate::programs;
use crate::work::Work;

/// What may be done to the caches of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caches {
    /// They may be emptied.
    Emptied,
    /// Pages may be dropped before rows from cold disk, but names are left as they are before a "first". To see what
    /// [`Caches::Emptied`] changes.
    NamesKept,
    /// They are left alone; only pages of the closure's own files are dropped.
    LeftAlone,
}

impl Caches {
    /// Drops everything that may be dropped, once, before anything is measured.
    pub(crate) fn begin(self) -> Outcome<()> {
        if self == Self::Emptied { drop_caches("3") } else { Ok(()) }
    }

    /// Makes the ground of a "first" the same for every row and column: no names and inodes but the store's.
    pub(crate) fn refresh(self, ground: &Ground, column: &Column) -> Outcome<()> {
        if self != Self::Emptied {
            return Ok(());
        }
        drop_caches("2")?;
        for work in [Work::List, Work::Missing] {
            work.run(&ground.corpus, &ground.corpus.physical, 1)?;
        }
        match &column.kind {
            Kind::Overlay(tree) => Work::List.run(&ground.corpus, tree, 1).map(drop),
            // The program, its libraries and the store's database.
            Kind::Program(_) | Kind::Learnt { .. } => programs::dump_closure(ground).map(drop),
            Kind::Bind | Kind::Farm | Kind::Peer(_) => Ok(()),
        }
    }

    /// Makes the closure's bytes, and with [`Caches::Emptied`] everything else, have to come from disk.
    pub(crate) fn cool(self, corpus: &Corpus) -> Outcome<()> {
        if self == Self::LeftAlone { drop_pages(corpus) } else { drop_caches("3") }
    }
}

/// Drops page cache, names and inodes that nobody holds; for a peer, whose caches nothing else empties.
pub(crate) fn drop_all() -> Outcome<()> {
    drop_caches("3")
}

/// Fills the store's own caches: names, attributes and bytes, each once.
pub(crate) fn warm(corpus: &Corpus) -> Outcome<()> {
    for work in [Work::List, Work::Bytes, Work::Missing] {
        work.run(corpus, &corpus.physical, 1)?;
    }
    Ok(())
}

/// 2: names and inodes; 3: pages as well (admin-guide/sysctl/vm.rst of the kernel). 4 before: nothing of it in the
/// kernel's log, where hundreds of lines would push out those of the boot, with the sizes of the hash tables.
fn drop_caches(what: &str) -> Outcome<()> {
    rustix::fs::sync();
    let write = |what| fs::write("/proc/sys/vm/drop_caches", what);
    write("4").and_then(|()| write(what)).doing(|| "writing /proc/sys/vm/drop_caches".into())
}

/// Drops the pages of the closure's files, and leaves all else on the machine alone.
fn drop_pages(corpus: &Corpus) -> Outcome<()> {
    for name in &corpus.files {
        drop_pages_of(&corpus.physical.join(Path::new(OsStr::from_bytes(name.to_bytes()))))?;
    }
    Ok(())
}

/// Drops the pages of one file.
pub(crate) fn drop_pages_of(path: &Path) -> Outcome<()> {
    let doing = || format!("dropping the pages of {}", path.display());
    let file = fs::File::open(path).doing(doing)?;
    rustix::fs::fdatasync(&file).doing(doing)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).doing(doing)
}

/// How many names and inodes the kernel has cached, of all file systems.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Names, absent ones as well (the first number of `/proc/sys/fs/dentry-state`).
    pub(crate) names: u64,
    /// Inodes (the first number of `/proc/sys/fs/inode-nr`).
    pub(crate) inodes: u64,
}

/// Asks the kernel for it.
pub(crate) fn held() -> Outcome<Held> {
    let first = |path: &str| -> Outcome<u64> {
        let text = fs::read_to_string(path).doing(|| format!("reading {path}"))?;
        let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
        number.ok_or_else(|| Fault::new(format!("{path} does not begin with a number")))
    };
    Ok(Held { names: first("/proc/sys/fs/dentry-state")?, inodes: first("/proc/sys/fs/inode-nr")? })
}

/// Buckets of the kernel's hash tables of names and of inodes, which it tells in its log when it boots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    /// Of names.
    pub(crate) names: u64,
    /// Of inodes.
    pub(crate) inodes: u64,
}

/// Reads them from the kernel's log; None if it may not be read, or has lost its beginning.
pub(crate) fn buckets() -> Option<Buckets> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::openat(CWD, c"/dev/kmsg", flags, Mode::empty()).ok()?;
    let (mut names, mut inodes) = (None, None);
    // A read returns one record, and no record is longer (dev-kmsg of the kernel's ABI documentation).
    let mut record = [0; 8192];
    loop {
        let text = match rustix::io::read(&log, &mut record) {
            Ok(length) => String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned(),
            // Overwritten meanwhile: the next read continues behind it.
            Err(Errno::PIPE) => continue,
            Err(_) => break,
        };
        names = names.or_else(|| entries(&text, "Dentry cache hash table entries: "));
        inodes = inodes.or_else(|| entries(&text, "Inode-cache hash table entries: "));
    }
    Some(Buckets { names: names?, inodes: inodes? })
}

fn entries(record: &str, before: &str) -> Option<u64> {
    record.split_once(before)?.1.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}
