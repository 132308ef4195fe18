//! The ledger: which requests a server has taken and not answered, in memory that outlives it.
//!
//! A killed server leaves requests behind that no kernel before 6.9 gives to another one: whoever asked would wait for ever. So
//! each thread reads its requests straight into a [`Slot`] of memory that the monitor holds as well, and the next server answers
//! what it finds there. See docs/design.md, "Requests in flight".
//!
//! Invariants:
//! - The kernel itself writes the id of a request into its slot, in the same call that hands the request over
//!   (`fuse_dev_do_read` of Linux `fs/fuse/dev.c`): there is no moment at which a request is taken and not in its slot.
//! - A slot is marked as answered after the kernel has the answer. A server that dies in between has its successor answer once
//!   more: the kernel knows the id no longer, as ids are never used twice, and refuses that.
//! - One server at a time has the ledger. The caller holds the lock, which is released when all threads of the last server have
//!   left the kernel.
//!
//! Hard point: a read into memory that is not there has to bring it in, which a process that is being killed cannot do any more:
//! the kernel ends the request with `EIO` then. So what ordinary requests need is kept in memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use zerocopy::FromBytes;

use super::Device;
use super::abi::{InHeader, MIN_READ_BUFFER};
use crate::sys::memory::{self, Part, Words};

/// Slots of a ledger: more than a server has threads. Those that are not used take no memory.
pub const SLOTS: usize = 64;
/// The longest request: an extended attribute of 64 KiB, its name, and headers, in whole pages.
pub const BUFFER: usize = 20 * PAGE;
/// What ordinary requests fill: all but extended attributes and long lists of forgotten nodes.
const USUAL: usize = MIN_READ_BUFFER;
const PAGE: usize = 4096;
/// A page of marks, then one with [`LINE`] bytes for each slot.
const HEAD: usize = 2 * PAGE;
/// Bytes of a ledger.
pub const BYTES: usize = HEAD + SLOTS * BUFFER;
/// Threads on two processors do not write into one line of their caches.
const LINE: usize = 64;
/// Crashes of servers after which a request is answered with an error: one at which each server crashes would keep the view from
/// answering anything.
const ATTEMPTS: u64 = 3;

/// Ids above are not believed: whoever counts on from there comes to no end of the numbers.
const ID_MAX: u64 = 1 << 62;

/// The first word: this program, and the version of this layout.
const MARK: u64 = u64::from_ne_bytes(*b"nsf-led1");
const MARK_AT: usize = 0;
/// Which mount it belongs to: [`token`].
const TOKEN_AT: usize = 8;
const OWED_AT: usize = 16;
/// Slots that were ever used, counted from the first: the others are not looked at, which would make a page of each.
const USED_AT: usize = 32;
/// The highest node id that the kernel may have been told of.
const HIGHEST_AT: usize = 40;
/// 1: every server of the mount has had this ledger, or what those before had taken is settled.
const WHOLE_AT: usize = 24;

const _: () = assert!(PAGE + SLOTS * LINE <= HEAD && SLOTS * BUFFER <= 8 << 20);

/// What all threads share.
#[derive(Debug, Clone)]
pub struct Ledger {
    words: Words,
}

/// A place for one request.
#[derive(Debug)]
pub struct Slot {
    number: usize,
    words: Words,
    buffer: Part,
}

/// A new ledger's memory, for a mount. `before`: servers without it may have answered there, and left something.
///
/// # Errors
/// Those of memfd_create(2).
pub fn create(before: bool) -> io::Result<OwnedFd> {
    let file = memory::memory_file_of("ledger", BYTES as u64)?;
    let mut token = [0; size_of::<u64>()];
    rustix::rand::getrandom(&mut token[..], GetRandomFlags::empty())?;
    file.write_all_at(&MARK.to_ne_bytes(), MARK_AT as u64)?;
    file.write_all_at(&token, TOKEN_AT as u64)?;
    // Nobody knows whether they had pages to drop.
    file.write_all_at(&u64::from(before).to_ne_bytes(), OWED_AT as u64)?;
    file.write_all_at(&u64::from(!before).to_ne_bytes(), WHOLE_AT as u64)?;
    Ok(file.into())
}

/// A number that only the ledger in `file` has; none: it is no ledger of this layout. Ids of requests begin again with each mount,
/// so another mount's ledger would have its requests answered to whoever waits in this one.
#[must_use]
pub fn token(file: &OwnedFd) -> Option<u64> {
    word(file, TOKEN_AT)
}

/// Whether whatever earlier servers of the mount had taken and not answered is in the ledger in `file`.
#[must_use]
pub fn is_whole(file: &OwnedFd) -> bool {
    word(file, WHOLE_AT).is_some_and(|whole| whole != 0)
}

/// A number of the head page; none: it is no ledger of this layout.
fn word(file: &OwnedFd, at: usize) -> Option<u64> {
    let file = File::from(file.try_clone().ok()?);
    let word = |at: usize| {
        let mut word = [0; size_of::<u64>()];
        file.read_exact_at(&mut word, at as u64).ok().map(|()| u64::from_ne_bytes(word))
    };
    (memory::cannot_shrink(&file) && word(MARK_AT)? == MARK).then(|| word(at)).flatten()
}

impl Ledger {
    /// The ledger in `file`, which [`create`] made, with its slots. Without a file, or with another one: a ledger that ends with
    /// this process.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn open(file: Option<OwnedFd>) -> io::Result<(Self, Vec<Slot>)> {
        let shared = file.map(File::from).and_then(|file| {
            Self::map(Some(&file))
                .inspect_err(|error| {
                    tracing::warn!(%error, "the ledger cannot be used: what this server has taken is lost if it is killed, on kernels before 6.9");
                })
                .ok()
        });
        match shared {
            Some(ledger) => Ok(ledger),
            None => Self::map(None),
        }
    }

    fn map(file: Option<&File>) -> io::Result<(Self, Vec<Slot>)> {
        let (words, parts) = memory::map(file, HEAD, SLOTS, BUFFER)?;
        let mark = words.get(MARK_AT).map(|mark| mark.load(Ordering::Acquire));
        if file.is_some() && mark != Some(MARK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version"));
        }
        let slots = parts
            .into_iter()
            .enumerate()
            .map(|(number, buffer)| Slot { number, words: words.clone(), buffer })
            .collect();
        Ok((Self { words }, slots))
    }

    /// Whether whatever an earlier server of the mount had taken and not answered is in a slot.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.words.get(WHOLE_AT).is_some_and(|whole| whole.load(Ordering::Acquire) != 0)
    }

    /// What was taken by servers without this ledger is settled.
    pub fn set_whole(&self) {
        if let Some(whole) = self.words.get(WHOLE_AT) {
            whole.store(1, Ordering::Release);
        }
    }

    /// The highest node id that an earlier server may have told the kernel of; 0: none, or it wrote none down.
    #[must_use]
    pub fn highest(&self) -> u64 {
        // No server comes near it; a hostile one may have written anything.
        self.words.get(HIGHEST_AT).map_or(0, |highest| highest.load(Ordering::Acquire)).min(ID_MAX)
    }

    /// The kernel may be told of `id`. To be called before it is.
    pub fn names(&self, id: u64) {
        if let Some(highest) = self.words.get(HIGHEST_AT)
            && highest.load(Ordering::Relaxed) < id
        {
            highest.fetch_max(id, Ordering::AcqRel);
        }
    }

    /// How many invalidations of pages were promised and not made.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.words.get(OWED_AT).map_or(0, |owed| owed.load(Ordering::Acquire))
    }

    /// Promises one. To be called before the answer that makes it necessary.
    pub fn promise(&self) {
        if let Some(owed) = self.words.get(OWED_AT) {
            owed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// `kept` promises are kept.
    pub fn keep(&self, kept: u64) {
        if let Some(owed) = self.words.get(OWED_AT) {
            owed.fetch_sub(kept, Ordering::AcqRel);
        }
    }
}

impl Slot {
    /// Takes the next request from `device` into this slot; the one that was here is answered.
    ///
    /// # Errors
    /// Those of [`Device::read`], but for a request that was taken back and an interrupted wait: then it waits for the next.
    pub fn take(&mut self, device: &Device) -> Result<(), Errno> {
        if let Some(used) = self.words.get(USED_AT)
            && used.load(Ordering::Relaxed) <= self.number as u64
        {
            used.fetch_max(self.number as u64 + 1, Ordering::AcqRel);
        }
        loop {
            match device.read(self.buffer.bytes_mut()) {
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                answer => return answer.map(drop),
            }
        }
    }

    /// The request that is here, answered or not, and whatever lies behind it.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// The request that is here was taken and not answered.
    #[must_use]
    pub fn is_left_over(&self) -> bool {
        let used = self.words.get(USED_AT).map_or(0, |used| used.load(Ordering::Acquire));
        if self.number as u64 >= used {
            return false;
        }
        let unique = self.unique();
        unique != 0 && self.answered().is_some_and(|answered| answered.load(Ordering::Acquire) != unique)
    }

    /// Begins to answer a request that was left over by a server that has crashed, and not been killed. False: too often; an error
    /// is to be its answer. To be called for one slot after another, so that only the guilty one is begun and never answered.
    #[must_use]
    pub fn begin_after_crash(&self) -> bool {
        self.attempts().is_none_or(|begun| begun.fetch_add(1, Ordering::AcqRel) < ATTEMPTS)
    }

    /// The kernel has the answer, or wants none.
    pub fn set_answered(&self) {
        if let Some(answered) = self.answered() {
            answered.store(self.unique(), Ordering::Release);
        }
    }

    /// The same for a request that was begun again.
    pub fn set_answered_again(&self) {
        self.set_answered();
        if let Some(attempts) = self.attempts() {
            attempts.store(0, Ordering::Release);
        }
    }

    /// Keeps the part in memory that ordinary requests fill.
    ///
    /// # Errors
    /// Those of mlock(2).
    pub fn keep_in_memory(&self) -> io::Result<()> {
        self.buffer.keep_in_memory(USUAL)
    }

    /// The id of the request that is here; 0: none ever was.
    #[must_use]
    pub fn unique(&self) -> u64 {
        InHeader::read_from_prefix(self.request()).map_or(0, |(header, _)| header.unique)
    }

    fn answered(&self) -> Option<&AtomicU64> {
        self.words.get(PAGE + self.number * LINE)
    }

    fn attempts(&self) -> Option<&AtomicU64> {
        self.words.get(PAGE + self.number * LINE + size_of::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use zerocopy::IntoBytes;

    use super::*;

    fn request(unique: u64) -> Vec<u8> {
        let header = InHeader { len: 40, opcode: 17, unique, node: 1, uid: 0, gid: 0, pid: 0, extensions: 0 };
        header.as_bytes().to_vec()
    }

    /// A ledger as two servers, one after the other, see it, and what they read from.
    fn begun() -> (OwnedFd, Vec<Slot>, Device, UnixDatagram) {
        let file = create(false).unwrap();
        let (kernel, device) = UnixDatagram::pair().unwrap();
        let (_, slots) = Ledger::open(Some(file.try_clone().unwrap())).unwrap();
        (file, slots, Device::from(OwnedFd::from(device)), kernel)
    }

    fn left_over(file: &OwnedFd) -> Vec<(usize, u64)> {
        let (_, slots) = Ledger::open(Some(file.try_clone().unwrap())).unwrap();
        slots.iter().filter(|slot| slot.is_left_over()).map(|slot| (slot.number, slot.unique())).collect()
    }

    #[test]
    fn what_was_taken_and_not_answered_is_left_over() {
        let (file, mut slots, device, kernel) = begun();
        assert_eq!((slots.len(), left_over(&file)), (SLOTS, vec![]));
        for (slot, unique) in [(0, 2), (3, 4), (63, 1 << 63 | 6)] {
            kernel.send(&request(unique)).unwrap();
            slots[slot].take(&device).unwrap();
        }
        slots[3].set_answered();
        assert_eq!(left_over(&file), [(0, 2), (63, 1 << 63 | 6)]);
        kernel.send(&request(8)).unwrap();
        slots[3].take(&device).unwrap();
        slots[0].set_answered();
        assert_eq!(left_over(&file), [(3, 8), (63, 1 << 63 | 6)]);
        assert_eq!(slots[3].request()[..40], request(8));
    }

    #[test]
    fn a_request_at_which_servers_die_is_not_begun_for_ever() {
        let (_, mut slots, device, kernel) = begun();
        kernel.send(&request(2)).unwrap();
        slots[0].take(&device).unwrap();
        assert_eq!([(); 4].map(|()| slots[0].begin_after_crash()), [true, true, true, false]);
        slots[0].set_answered_again();
        assert!(slots[0].begin_after_crash(), "the next one has attempts of its own");
    }

    #[test]
    fn promises_outlive_who_made_them() {
        let file = create(false).unwrap();
        let (ledger, _) = Ledger::open(Some(file.try_clone().unwrap())).unwrap();
        (0..3).for_each(|_| ledger.promise());
        ledger.keep(1);
        drop(ledger);
        assert_eq!(Ledger::open(Some(file)).unwrap().0.owed(), 2);
    }

    /// Before it, something may have been taken, and pages may have to be dropped.
    #[test]
    fn a_ledger_that_comes_late_is_whole_once_that_is_settled() {
        let open = |file: &OwnedFd| Ledger::open(Some(file.try_clone().unwrap())).unwrap().0;
        let (first, late) = (create(false).unwrap(), create(true).unwrap());
        assert_eq!((open(&first).is_whole(), open(&first).owed()), (true, 0));
        assert_eq!((open(&late).is_whole(), open(&late).owed()), (false, 1));
        open(&late).set_whole();
        assert!(open(&late).is_whole() && !Ledger::open(None).unwrap().0.is_whole());
    }

    #[test]
    fn what_is_no_ledger_is_left_alone() {
        let (one, other) = (create(false).unwrap(), create(false).unwrap());
        assert!(token(&one).is_some() && token(&one) != token(&other));
        assert_eq!(token(&File::open("/dev/null").unwrap().into()), None);
        let other = File::from(other);
        other.write_all_at(b"something", 0).unwrap();
        let (ledger, slots) = Ledger::open(Some(other.into())).unwrap();
        ledger.promise();
        assert_eq!((ledger.owed(), slots.len()), (1, SLOTS));
        let null = File::open("/dev/null").unwrap();
        assert!(Ledger::open(Some(null.into())).is_ok() && Ledger::open(None).is_ok());
    }
}
