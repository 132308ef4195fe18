//! The timing loops: what is done to a view, how often, and how long it took.
//!
//! Invariants: the loops allocate nothing (names are made before, buffers belong to the thread); every thread
//! takes the next few names of the same list, so that one slow directory does not leave the others idle; any
//! error ends the run, since a view that fails quickly would look fast.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};

/// Names that a thread takes at once: enough to make the shared counter cheap, few enough to share fairly.
const BATCH: usize = 16;
/// What `cp` and most readers use.
const READ_BUFFER: usize = 128 * 1024;
/// One read that holds any file called small.
const SMALL_BUFFER: usize = 32 * 1024;
/// What the C library gives to getdents.
const LIST_BUFFER: usize = 32 * 1024;
/// Calls of which the FUSE floor is the mean.
const FLOOR_CALLS: u32 = 3_000;

/// Something done to every name of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// lstat of every entry.
    Lstat,
    /// open, one read and close of every file under 32 KiB.
    OpenSmall,
    /// lstat of a name beside every file that is not there.
    Missing,
    /// open and list every directory, lstat every entry in it, read every link: `find -ls`.
    List,
    /// open, read to the end and close every file.
    Bytes,
    /// The same for the files of 1 MiB and more.
    LargeBytes,
}

impl Work {
    fn names(self, corpus: &Corpus) -> &[CString] {
        match self {
            Self::Lstat => &corpus.entries,
            Self::OpenSmall => &corpus.small,
            Self::Missing => &corpus.missing,
            Self::List => &corpus.directories,
            Self::Bytes => &corpus.files,
            Self::LargeBytes => &corpus.large,
        }
    }

    /// What one operation is: a name, except that listing counts the entries listed.
    pub(crate) fn operations(self, corpus: &Corpus) -> usize {
        match self {
            Self::List => corpus.listed,
            other => other.names(corpus).len(),
        }
    }

    /// Does it once over the view at `root` with so many threads; returns the time it took.
    pub(crate) fn run(self, corpus: &Corpus, root: &Path, threads: usize) -> Outcome<Duration> {
        let directory = open_root(root)?;
        let names = self.names(corpus);
        let next = AtomicUsize::new(0);
        let mut hands: Vec<Hand<'_>> =
            (0..threads.max(1)).map(|_| Hand::new(self, &corpus.members)).collect();
        let start = Instant::now();
        let results: Vec<Outcome<u64>> = match hands.as_mut_slice() {
            [only] => vec![only.work(directory.as_fd(), names, &next)],
            several => std::thread::scope(|scope| {
                let started: Vec<_> = several
                    .iter_mut()
                    .map(|hand| scope.spawn(|| hand.work(directory.as_fd(), names, &next)))
                    .collect();
                started
                    .into_iter()
                    .map(|thread| {
                        thread.join().unwrap_or_else(|_| Err(Fault::new("a timing thread panicked")))
                    })
                    .collect()
            }),
        };
        let taken = start.elapsed();
        let mut counted = 0;
        for result in results {
            counted += result?;
        }
        self.check(corpus, root, counted)?;
        Ok(taken)
    }

    /// A view that shows less than the closure would win every race.
    fn check(self, corpus: &Corpus, root: &Path, counted: u64) -> Outcome<()> {
        let wanted = match self {
            Self::List => corpus.listed as u64,
            Self::Bytes => corpus.bytes,
            Self::LargeBytes => corpus.large_bytes,
            Self::Lstat | Self::OpenSmall | Self::Missing => return Ok(()),
        };
        if counted == wanted {
            return Ok(());
        }
        let what = if matches!(self, Self::List) { "entries" } else { "bytes" };
        Err(Fault::new(format!("{} shows {counted} {what}, the store {wanted}", root.display())))
    }
}

/// One thread's buffers.
struct Hand<'a> {
    work: Work,
    members: &'a [CString],
    bytes: Vec<u8>,
    entries: Vec<MaybeUninit<u8>>,
}

impl<'a> Hand<'a> {
    fn new(work: Work, members: &'a [CString]) -> Self {
        let (bytes, entries) = match work {
            Work::Lstat | Work::Missing => (0, 0),
            Work::OpenSmall => (SMALL_BUFFER, 0),
            Work::List => (0, LIST_BUFFER),
            Work::Bytes | Work::LargeBytes => (READ_BUFFER, 0),
        };
        Self { work, members, bytes: vec![0; bytes], entries: vec![MaybeUninit::uninit(); entries] }
    }

    fn work(&mut self, root: BorrowedFd<'_>, names: &[CString], next: &AtomicUsize) -> Outcome<u64> {
        let mut counted = 0;
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) =
                names.get(from..names.len().min(from + BATCH)).filter(|batch| !batch.is_empty())
            else {
                return Ok(counted);
            };
            for name in batch {
                counted += self.once(root, name).doing(|| format!("at {}", name.to_string_lossy()))?;
            }
        }
    }

    fn once(&mut self, root: BorrowedFd<'_>, name: &CStr) -> Result<u64, Errno> {
        match self.work {
            Work::Lstat => rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).map(|_| 0),
            Work::Missing => match rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(0),
                Err(error) => Err(error),
                Ok(_) => Err(Errno::EXIST),
            },
            Work::OpenSmall => {
                let file = open(root, name, OFlags::RDONLY)?;
                rustix::io::read(&file, self.bytes.as_mut_slice()).map(|_| 0)
            }
            Work::Bytes | Work::LargeBytes => {
                let file = open(root, name, OFlags::RDONLY)?;
                let mut sum = 0;
                loop {
                    match rustix::io::read(&file, self.bytes.as_mut_slice())? {
                        0 => return Ok(sum),
                        read => sum += read as u64,
                    }
                }
            }
            Work::List => self.list(root, name),
        }
    }

    /// In the store directory only members count: a bind mount of the store shows its neighbours as well, and
    /// looking at those would be work that the other columns do not have.
    fn list(&mut self, root: BorrowedFd<'_>, name: &CStr) -> Result<u64, Errno> {
        let top = name == c".";
        let directory = open(root, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut listing = RawDir::new(&directory, &mut self.entries);
        let mut counted = 0;
        let mut target = [MaybeUninit::<u8>::uninit(); 4096];
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let child = entry.file_name();
            let unwanted =
                top && self.members.binary_search_by(|member| member.as_c_str().cmp(child)).is_err();
            if child == c"." || child == c".." || unwanted {
                continue;
            }
            let attributes = rustix::fs::statat(&directory, child, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(attributes.st_mode) == FileType::Symlink {
                rustix::fs::readlinkat_raw(&directory, child, &mut target)?;
            }
            counted += 1;
        }
        Ok(counted)
    }
}

fn open(root: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(root, name, flags | OFlags::CLOEXEC, Mode::empty())
}

fn open_root(root: &Path) -> Outcome<OwnedFd> {
    rustix::fs::openat(CWD, root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening the view at {}", root.display()))
}

/// The round trip of one request that the server answers from memory: the kernel passes every statfs on to it.
/// Returns the time of one call.
pub(crate) fn floor(root: &Path) -> Outcome<Duration> {
    let directory = open_root(root)?;
    let doing = || format!("statfs of {}", root.display());
    rustix::fs::fstatvfs(&directory).doing(doing)?;
    let start = Instant::now();
    for _ in 0..FLOOR_CALLS {
        rustix::fs::fstatvfs(&directory).doing(doing)?;
    }
    Ok(start.elapsed() / FLOOR_CALLS)
}
