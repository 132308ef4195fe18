//! What those keep who play and learn: who reads what a view shows, and who writes one file that is open already.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Missing, Role, Sandbox, calls, files, give_up_all};

/// Members that are opened by one thread at once.
const PART: usize = 64;
/// Threads that open members: on a disk that is asked for the first time, each waits for it.
const THREADS: usize = 4;
/// Bytes of the longest file that is written.
const LONGEST: u64 = 32 << 20;

/// Who asks a view for what will be asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Player<'a> {
    /// The view: to be read.
    pub view: BorrowedFd<'a>,
    /// The store, of which the members are to be read.
    pub store: BorrowedFd<'a>,
    /// Their names.
    pub members: &'a [&'a str],
}

impl Player<'_> {
    /// Gives up everything else.
    ///
    /// # Errors
    /// [`Missing`], where `wanted` is [`Sandbox::Require`].
    pub fn confine(self, wanted: Sandbox) -> Result<(), Missing> {
        let files = || {
            files::confine_to_reading_below(|allow| {
                allow(self.view)?;
                for part in self.members.chunks(PART * THREADS) {
                    // One that cannot be a rule, such as a link, is asked of the view alone.
                    open(self.store, part).iter().for_each(|member| drop(allow(member.as_fd())));
                }
                Ok(())
            })
        };
        give_up_all(Role::Player, wanted, || LONGEST, &files, calls::OF_PLAYERS)
    }
}

/// The members of these names that are there.
fn open(store: BorrowedFd<'_>, names: &[&str]) -> Vec<OwnedFd> {
    let one = |name: &&str| {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(store, *name, flags, Mode::empty(), how).ok()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .chunks(PART)
            .map(|part| scope.spawn(move || part.iter().filter_map(one).collect::<Vec<_>>()))
            .collect();
        // A panic has ended the process.
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// Who makes the next profile of what was asked: it opens nothing.
#[derive(Debug, Clone, Copy)]
pub struct Learner;

impl Learner {
    /// Gives up everything but what is open.
    ///
    /// # Errors
    /// [`Missing`], where `wanted` is [`Sandbox::Require`].
    pub fn confine(self, wanted: Sandbox) -> Result<(), Missing> {
        let files = || files::confine_to_reading_below(|_| Ok(()));
        give_up_all(Role::Learner, wanted, || LONGEST, &files, &[])
    }
}
