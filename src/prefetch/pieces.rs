//! Bytes of files, asked of the view piece by piece, a few ahead of the one that is waited for.
//!
//! One that is asked for alone costs two wake-ups, of the server and of who asked. While others wait in the kernel's queue the server does not sleep, and
//! opens of the next file take place meanwhile.
//!
//! Nothing is copied: a piece is there when its last page is, of which one byte is read.
//!
//! Invariant: the view has [`DEPTH`] of these requests at most, so a request of who uses the view waits behind as many. Reads of all of
//! them share the kernel's limit for the whole mount (`max_background`), which is several times that.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::Advice;
use rustix::io::Errno;

use crate::view::trace::records::PAGE;

/// Bytes of a piece: one request, also where the kernel has less than the most.
const PIECE: u64 = 128 << 10;
/// Pieces that are asked for and not waited for.
const DEPTH: usize = 3;

/// See above. What is asked for belongs to steps, which end in their order.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    queue: VecDeque<Queued>,
    /// How many of the queue are pieces.
    pieces: usize,
}

#[derive(Debug)]
enum Queued {
    /// The last page of a piece.
    Piece(Rc<OwnedFd>, u64),
    /// All pieces of a step are before this.
    End(usize),
}

impl Pieces {
    /// Asks for `length` bytes of `file` from `from` on, none of which lies behind its end. `asks` is told before each piece how many bytes it has,
    /// and tells whether it may be asked for; `ends` is told of each step that has ended.
    ///
    /// # Errors
    /// Those of posix_fadvise(2), and of read(2) for this file: those of others keep nobody from reading this one.
    pub(super) fn ask(
        &mut self,
        file: &Rc<OwnedFd>,
        from: u64,
        length: u64,
        mut asks: impl FnMut(u64) -> bool,
        mut ends: impl FnMut(usize),
    ) -> Result<(), Errno> {
        let end = from.saturating_add(length);
        let mut at = from;
        while at < end {
            let piece = PIECE.min(end - at);
            if !asks(piece) {
                break;
            }
            rustix::fs::fadvise(file, at, NonZeroU64::new(piece), Advice::WillNeed)?;
            at += piece;
            self.queue.push_back(Queued::Piece(file.clone(), (at - 1) / PAGE * PAGE));
            self.pieces += 1;
            self.wait_of(DEPTH, Some(file), &mut ends)?;
        }
        Ok(())
    }

    /// All pieces of this step are asked for.
    pub(super) fn end_step(&mut self, step: usize, mut ends: impl FnMut(usize)) {
        match self.queue.is_empty() {
            true => ends(step),
            false => self.queue.push_back(Queued::End(step)),
        }
    }

    /// Waits until all but `left` pieces are there, or cannot be.
    ///
    /// # Errors
    /// Those of read(2), one of them.
    pub(super) fn wait(&mut self, left: usize, ends: impl FnMut(usize)) -> Result<(), Errno> {
        self.wait_of(left, None, ends)
    }

    /// The same; with a `file`, errors of others are not told.
    fn wait_of(
        &mut self,
        left: usize,
        file: Option<&Rc<OwnedFd>>,
        mut ends: impl FnMut(usize),
    ) -> Result<(), Errno> {
        let mut answer = Ok(());
        while self.pieces > left || matches!(self.queue.front(), Some(Queued::End(_))) {
            match self.queue.pop_front() {
                None => break,
                Some(Queued::End(step)) => ends(step),
                Some(Queued::Piece(of, at)) => {
                    self.pieces -= 1;
                    let read = read_at(&of, at);
                    if file.is_none_or(|file| Rc::ptr_eq(file, &of)) {
                        answer = read.and(answer);
                    }
                }
            }
        }
        answer
    }
}

/// Reads a byte.
fn read_at(file: &OwnedFd, at: u64) -> Result<(), Errno> {
    loop {
        match rustix::io::pread(file, &mut [0; 1], at) {
            Err(Errno::INTR) => {}
            answer => return answer.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(pages: u64) -> Rc<OwnedFd> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![b'x'; (pages * PAGE) as usize], 0).unwrap();
        Rc::new(file.into())
    }

    #[test]
    fn steps_end_in_their_order_when_their_pieces_are_there() {
        let (file, mut pieces, mut ended, mut asked) = (file(200), Pieces::default(), Vec::new(), Vec::new());
        pieces.end_step(7, |step| ended.push(step));
        assert_eq!(ended, [7], "it has no piece");
        let mut all = |pieces: &mut Pieces, from, length, ended: &mut Vec<usize>| {
            let asks = |bytes| {
                asked.push(bytes);
                true
            };
            pieces.ask(&file, from, length, asks, |step| ended.push(step)).unwrap();
        };
        all(&mut pieces, 0, 100 * PAGE, &mut ended);
        assert_eq!(pieces.pieces, DEPTH, "of four");
        pieces.end_step(8, |step| ended.push(step));
        pieces.end_step(9, |step| ended.push(step));
        all(&mut pieces, 100 * PAGE, 2 * PAGE, &mut ended);
        pieces.end_step(10, |step| ended.push(step));
        assert_eq!(ended, [7], "pieces of 8 are not there");
        all(&mut pieces, 150 * PAGE, PAGE, &mut ended);
        assert_eq!(ended, [7], "neither is its last one");
        all(&mut pieces, 160 * PAGE, 33 * PAGE, &mut ended);
        assert_eq!(ended, [7, 8, 9, 10]);
        pieces.end_step(11, |step| ended.push(step));
        pieces.wait(0, |step| ended.push(step)).unwrap();
        assert_eq!(ended, [7, 8, 9, 10, 11]);
        assert_eq!(asked, [32, 32, 32, 4, 2, 1, 32, 1].map(|pages| pages * PAGE));
    }

    #[test]
    fn what_may_not_be_asked_for_is_not() {
        let (file, mut pieces) = (file(64), Pieces::default());
        let mut room = 40 * PAGE;
        let asks = |bytes| {
            room = room.saturating_sub(bytes);
            room > 0
        };
        pieces.ask(&file, 0, 64 * PAGE, asks, |_| ()).unwrap();
        assert_eq!(pieces.pieces, 1);
    }

    #[test]
    fn an_error_of_one_file_is_none_of_the_next() {
        let directory: Rc<OwnedFd> = Rc::new(std::fs::File::open("/").unwrap().into());
        let (next, mut pieces) = (file(200), Pieces::default());
        pieces.queue.extend([Queued::Piece(directory, 0), Queued::End(1)]);
        pieces.pieces = 1;
        let (mut asked, mut ended) = (0, Vec::new());
        let asks = |bytes| {
            asked += bytes;
            true
        };
        assert_eq!(pieces.ask(&next, 0, 200 * PAGE, asks, |step| ended.push(step)), Ok(()));
        assert_eq!((asked, ended), (200 * PAGE, vec![1]));
    }

    #[test]
    fn an_error_is_told_and_the_steps_end() {
        let directory: Rc<OwnedFd> = Rc::new(std::fs::File::open("/").unwrap().into());
        let (mut pieces, mut ended) = (Pieces::default(), Vec::new());
        pieces.queue.extend([
            Queued::Piece(directory, 0),
            Queued::End(1),
            Queued::Piece(file(1), 0),
            Queued::End(2),
        ]);
        pieces.pieces = 2;
        assert_eq!(pieces.wait(0, |step| ended.push(step)), Err(Errno::ISDIR));
        assert_eq!((ended, pieces.pieces), (vec![1, 2], 0));
    }
}
