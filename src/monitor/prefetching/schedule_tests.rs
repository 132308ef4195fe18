use proptest::prelude::*;

use super::*;

const BOTH: Abilities = Abilities { plays: true, learns: true };
const PLAY: Wish = Wish::Begin(Work::Play);
const LEARN: Wish = Wish::Begin(Work::Learn);

#[test]
fn a_mount_is_played_once_and_learnt_from_within_a_minute_of_its_first_use_and_nine_minutes_later() {
    let mut schedule = Schedule::new(BOTH);
    let start = Instant::now();
    assert_eq!(schedule.served(start), [PLAY]);
    assert_eq!(schedule.ended(), []);
    assert_eq!(schedule.time(start, true), [], "it is not time yet");
    let first = schedule.due().unwrap();
    assert_eq!(first, start + EARLY);
    assert_eq!(schedule.time(first, false), [], "nobody has used it");
    let second = schedule.due().unwrap();
    assert_eq!(schedule.time(second, true), [LEARN]);
    assert_eq!(schedule.ended(), []);
    let last = schedule.due().unwrap();
    assert_eq!(last, second + LATE);
    assert_eq!(schedule.time(last, true), [LEARN]);
    assert_eq!(schedule.due(), None);
    assert!(schedule.end(true), "it is being learnt, and is to be whole");
    let mut schedule = Schedule::new(BOTH);
    let _ = (schedule.served(start), schedule.ended(), schedule.time(first, true), schedule.ended());
    assert_eq!(schedule.time(first + LATE, true), [LEARN]);
    assert_eq!(schedule.ended(), [Wish::Close]);
    assert!(!schedule.end(true), "everything was learnt");
}

#[test]
fn what_is_played_ends_with_its_server_and_at_a_switch() {
    let mut schedule = Schedule::new(BOTH);
    assert_eq!(schedule.served(Instant::now()), [PLAY]);
    assert_eq!(schedule.server_ended(), [Wish::StopPlay]);
    assert_eq!(schedule.ended(), []);
    assert_eq!(schedule.server_ended(), []);
    let mut schedule = Schedule::new(BOTH);
    let _ = schedule.served(Instant::now());
    assert_eq!(schedule.switched(false, true), [], "the same members");
    assert!(schedule.plays());
    assert_eq!(schedule.switched(true, true), [Wish::StopPlay]);
    assert_eq!(schedule.ended(), [LEARN]);
    assert_eq!(schedule.switched(true, true), [], "one after the other");
    assert_eq!(Schedule::new(BOTH).switched(true, true), [], "nobody has served");
    assert_eq!(schedule.ended(), [LEARN]);
}

#[test]
fn nothing_is_done_that_cannot_be() {
    let now = Instant::now();
    let mut none = Schedule::new(Abilities { plays: false, learns: false });
    assert_eq!((none.served(now), none.switched(true, true), none.time(now, true)), (vec![], vec![], vec![]));
    assert!(!none.end(true) && none.due().is_none());
    let mut plays = Schedule::new(Abilities { plays: true, learns: false });
    assert_eq!(plays.served(now), [PLAY]);
    assert!(!plays.end(true));
    let mut learns = Schedule::new(Abilities { plays: false, learns: true });
    assert_eq!(learns.served(now), []);
    assert!(!learns.end(false), "nothing was used");
    let mut learns = Schedule::new(Abilities { plays: false, learns: true });
    let _ = learns.served(now);
    assert!(learns.end(true));
    assert!(!learns.end(true), "once");
}

proptest! {
    /// Whatever happens in whatever order: one task at a time, one play a mount, and nothing after the last learning.
    #[test]
    fn one_thing_at_a_time(steps in proptest::collection::vec((0u8..6, any::<bool>(), 0u64..700), 0..60)) {
        let mut schedule = Schedule::new(BOTH);
        let mut now = Instant::now();
        let (mut running, mut plays, mut learns, mut closed) = (None, 0, 0, false);
        for (step, used, seconds) in steps {
            now += Duration::from_secs(seconds);
            let wishes = match step {
                0 => schedule.served(now),
                1 => schedule.server_ended(),
                2 => schedule.switched(seconds % 2 == 0, used),
                3 | 4 => schedule.time(now, used),
                _ if running.take().is_some() => schedule.ended(),
                _ => Vec::new(),
            };
            for wish in wishes {
                prop_assert!(!closed);
                match wish {
                    Wish::Begin(work) => {
                        prop_assert!(running.replace(work).is_none());
                        *(if work == Work::Play { &mut plays } else { &mut learns }) += 1;
                    }
                    Wish::StopPlay => prop_assert_eq!(running, Some(Work::Play)),
                    Wish::Close => {
                        prop_assert!(learns >= 1);
                        closed = true;
                    }
                }
            }
        }
        prop_assert!(plays <= 1);
    }
}
