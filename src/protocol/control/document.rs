//! An answer of any length: a memory file that crosses with a line.
//!
//! Invariants:
//! - Nobody who has it can write to it or make it longer.
//! - Whoever gave it can empty it ([`Document::withdraw`]): what a client never takes from its socket takes no memory for longer
//!   than the giver wants. So it is not sealed against becoming shorter, and is read, never mapped.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::SealFlags;

use crate::sys::memory;

/// The longest: some 300,000 store paths.
pub(super) const LONGEST: usize = 64 << 20;

/// A memory file with an answer.
#[derive(Debug)]
pub struct Document(File);

impl Document {
    /// One with these contents.
    ///
    /// # Errors
    /// Those of memfd_create(2), write(2) and fcntl(2); `FileTooLarge` for what nobody would read.
    pub fn new(contents: &[u8]) -> io::Result<Self> {
        if contents.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the answer is too long to be read"));
        }
        let mut file = memory::memory_file("answer")?;
        file.write_all(contents)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self(file))
    }

    /// Empties it, also for those who have it.
    pub fn withdraw(&self) {
        if let Err(error) = self.0.set_len(0) {
            tracing::debug!(%error, "an answer that nobody reads cannot be emptied");
        }
    }
}

impl AsFd for Document {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a memory file holds, that came from whomever; empty if it was withdrawn.
///
/// # Errors
/// `InvalidData` for what is no document; those of fstat(2) and read(2).
pub(super) fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    // Anything else could keep its reader waiting.
    let sealed = SealFlags::WRITE | SealFlags::GROW;
    if !rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(sealed)) {
        return Err(invalid("it comes with something else than a sealed memory file"));
    }
    let file = File::from(file);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(invalid("it is too long"));
    }
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
        answer => answer.map(|()| bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(document: &Document) -> OwnedFd {
        document.as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn what_was_put_in_is_read_and_nobody_changes_it() {
        let document = Document::new(b"all of it").unwrap();
        assert_eq!(read(copy(&document)).unwrap(), b"all of it");
        let mut theirs = File::from(copy(&document));
        assert!(theirs.write_all(b"x").is_err() && theirs.set_len(100).is_err());
        assert_eq!(read(copy(&document)).unwrap(), b"all of it");
        document.withdraw();
        assert_eq!(read(copy(&document)).unwrap(), b"");
    }

    #[test]
    fn nothing_but_a_sealed_memory_file_is_read() {
        let refused = |file: OwnedFd| {
            let error = read(file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        };
        refused(rustix::pipe::pipe().unwrap().0);
        refused(tempfile::tempfile().unwrap().into());
        refused(File::open("/dev/zero").unwrap().into());
        refused(memory::memory_file("open").unwrap().into());
        let long = memory::memory_file("long").unwrap();
        long.set_len(LONGEST as u64 + 1).unwrap();
        rustix::fs::fcntl_add_seals(&long, SealFlags::WRITE | SealFlags::GROW).unwrap();
        refused(long.into());
        assert_eq!(Document::new(&vec![0; LONGEST + 1]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
