//! Whether polling saves time on this machine: round trips between two threads, with it and without.
//!
//! Invariants:
//! - The kernel's wish is as before when a trial ends, by an error too.
//! - No more than [`PAIRS`] times [`ROUNDS`] round trips of each kind are made, and none begins after [`PATIENCE`].
//!
//! Hard point: the threads do as little between two wake-ups as client and server do. After a longer sleep hardware would be in a
//! deep state, from which it takes long to wake; while requests flow it never gets there.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{AT_ONCE, NO_WISH};

/// How often both kinds are measured, in turn: other work may disturb one.
const PAIRS: usize = 3;
/// Round trips of which the median counts, after one that does not.
const ROUNDS: usize = 9;
/// A governor that has polled polls no longer after this (a tick is 10 ms at most).
const PAUSE: Duration = Duration::from_millis(12);
/// A machine on which a trial takes longer is busy.
const PATIENCE: Duration = Duration::from_millis(200);
/// What has to be saved of a round trip. Two halted processors of a virtual machine cost 25 to 170 µs (docs/performance.md); two in
/// the lightest sleep of hardware a few.
const GAIN: Duration = Duration::from_micros(10);
/// What part of a round trip that has to be, at least: on a busy machine both kinds take long, and differ by as much.
const PART: u32 = 3;

/// The median time of a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    without: Duration,
    with: Duration,
}

impl Pair {
    fn gain(self) -> Duration {
        self.without.saturating_sub(self.with)
    }

    fn pays(self) -> bool {
        self.gain() >= GAIN.max(self.without / PART)
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    pairs: Vec<Pair>,
}

impl Trial {
    /// Measures. `ask` asks the kernel for so many microseconds.
    ///
    /// # Errors
    /// Those of `ask`, and of making a thread.
    pub fn make(ask: &mut dyn FnMut(i32) -> io::Result<()>) -> io::Result<Self> {
        let until = Instant::now() + PATIENCE;
        let mut pairs = Vec::with_capacity(PAIRS);
        with_partner(|partner| {
            while pairs.len() < PAIRS && Instant::now() < until {
                thread::sleep(PAUSE);
                let without = partner.round_trips(until);
                let with = ask(AT_ONCE).map(|()| partner.round_trips(until));
                ask(NO_WISH)?;
                if let (Some(without), Some(with)) = (without, with?) {
                    pairs.push(Pair { without, with });
                }
            }
            Ok(())
        })?;
        Ok(Self { pairs })
    }

    /// Whether polling saves enough to be worth its price. Not if that could not be found out.
    #[must_use]
    pub fn pays(&self) -> bool {
        self.pairs.iter().filter(|pair| pair.pays()).count() > PAIRS / 2
    }

    /// The pair in the middle, by what is gained. None: there are too few to tell.
    fn middle(&self) -> Option<Pair> {
        let mut pairs = self.pairs.clone();
        if pairs.len() <= PAIRS / 2 {
            return None;
        }
        pairs.sort_by_key(|pair| pair.gain());
        pairs.get(pairs.len() / 2).copied()
    }
}

/// For people.
impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Pair { without, with }) = self.middle() else {
            return f.write_str("no, the machine is too busy to find out");
        };
        let answer = if self.pays() { "yes" } else { "no" };
        write!(
            f,
            "{answer}, two wake-ups take {} µs, {} µs while processors poll",
            rounded(without),
            rounded(with)
        )
    }
}

/// In microseconds.
fn rounded(time: Duration) -> u128 {
    (time.as_nanos() + 500) / 1000
}

/// Whose turn it is. Not to be given to either: it is over.
const MINE: u8 = 0;
const THEIRS: u8 = 1;
const OVER: u8 = 2;

/// A thread that answers.
struct Partner<'a> {
    turn: &'a AtomicU8,
    thread: &'a Thread,
}

impl Partner<'_> {
    /// The median time of some round trips. None: they were not over in time.
    fn round_trips(&self, until: Instant) -> Option<Duration> {
        let mut times = [Duration::ZERO; ROUNDS];
        self.round_trip();
        for time in &mut times {
            let since = Instant::now();
            if since >= until {
                return None;
            }
            self.round_trip();
            *time = since.elapsed();
        }
        times.sort_unstable();
        times.get(ROUNDS / 2).copied()
    }

    fn round_trip(&self) {
        self.turn.store(THEIRS, Ordering::Release);
        self.thread.unpark();
        while self.turn.load(Ordering::Acquire) == THEIRS {
            thread::park();
        }
    }
}

/// Lets `work` have a partner, who ends with it.
fn with_partner<T>(work: impl FnOnce(&Partner<'_>) -> io::Result<T>) -> io::Result<T> {
    let turn = AtomicU8::new(MINE);
    let caller = thread::current();
    thread::scope(|scope| {
        let answers = || loop {
            match turn.load(Ordering::Acquire) {
                THEIRS => {
                    turn.store(MINE, Ordering::Release);
                    caller.unpark();
                }
                OVER => break,
                _ => thread::park(),
            }
        };
        let thread = thread::Builder::new().name("idle-trial".to_owned()).spawn_scoped(scope, answers)?;
        let result = work(&Partner { turn: &turn, thread: thread.thread() });
        turn.store(OVER, Ordering::Release);
        thread.thread().unpark();
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(pairs: &[(u64, u64)]) -> Trial {
        let pair = |(without, with): &(u64, u64)| Pair {
            without: Duration::from_micros(*without),
            with: Duration::from_micros(*with),
        };
        Trial { pairs: pairs.iter().map(pair).collect() }
    }

    #[test]
    fn polling_pays_where_most_pairs_show_it() {
        for (pairs, pays, text) in [
            // Halted by a hypervisor.
            (
                &[(88, 8), (84, 8), (95, 9)][..],
                true,
                "yes, two wake-ups take 88 µs, 8 µs while processors poll",
            ),
            (
                &[(51, 25), (44, 24), (54, 27)],
                true,
                "yes, two wake-ups take 51 µs, 25 µs while processors poll",
            ),
            (&[(18, 8), (18, 8), (18, 8)], true, "yes, two wake-ups take 18 µs, 8 µs while processors poll"),
            // Both threads on one processor, and light sleep of hardware.
            (&[(5, 5), (5, 5), (5, 6)], false, "no, two wake-ups take 5 µs, 5 µs while processors poll"),
            (&[(9, 3), (10, 3), (9, 3)], false, "no, two wake-ups take 9 µs, 3 µs while processors poll"),
            // Other work: in one pair, in both kinds alike, in the wrong one.
            (&[(54, 5), (5, 5), (5, 5)], false, "no, two wake-ups take 5 µs, 5 µs while processors poll"),
            (&[(88, 8), (5, 5), (95, 9)], true, "yes, two wake-ups take 88 µs, 8 µs while processors poll"),
            (
                &[(4000, 4000), (88, 8), (8, 4000)],
                false,
                "no, two wake-ups take 8 µs, 4000 µs while processors poll",
            ),
            (
                &[(252, 236), (240, 200), (300, 210)],
                false,
                "no, two wake-ups take 240 µs, 200 µs while processors poll",
            ),
            // Given up, and what is there may be chance.
            (&[(88, 8)], false, "no, the machine is too busy to find out"),
            (&[(88, 8), (88, 8)], true, "yes, two wake-ups take 88 µs, 8 µs while processors poll"),
            (&[], false, "no, the machine is too busy to find out"),
        ] {
            let trial = trial(pairs);
            assert_eq!((trial.pays(), trial.to_string().as_str()), (pays, text), "{pairs:?}");
        }
    }

    /// However long a round trip takes here.
    #[test]
    fn the_wish_is_withdrawn_after_each_part() {
        let mut asked = Vec::new();
        let trial = Trial::make(&mut |wish| {
            asked.push(wish);
            Ok(())
        });
        assert!(trial.unwrap().pairs.len() <= PAIRS);
        assert!(asked.len() <= 2 * PAIRS && asked.len() % 2 == 0, "{asked:?}");
        assert!(asked.chunks(2).all(|both| both == [AT_ONCE, NO_WISH]), "{asked:?}");
    }

    #[test]
    fn a_kernel_that_refuses_ends_a_trial() {
        let mut asked = Vec::new();
        let trial = Trial::make(&mut |wish| {
            asked.push(wish);
            if wish == AT_ONCE { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        });
        assert_eq!(trial.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(asked, [AT_ONCE, NO_WISH]);
    }

    /// The partner ends with the work, and answers each time: otherwise this does not return.
    #[test]
    fn a_partner_answers_until_it_is_over() {
        let medians = with_partner(|partner| {
            let later = Instant::now() + Duration::from_secs(600);
            Ok([partner.round_trips(later), partner.round_trips(Instant::now())])
        });
        let [measured, late] = medians.unwrap();
        assert!(measured.is_some() && late.is_none(), "{measured:?} {late:?}");
        assert!(with_partner(|_| Err::<(), _>(io::ErrorKind::Other.into())).is_err());
    }
}
