use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// What a step costs whom nobody was before, and whom somebody was.
const UNKNOWN: u64 = 8;
const KNOWN: u64 = 1;
/// What it costs each of them that the other asks for the same, or for what lies next to it, at the same time.
const BESIDE: u64 = 2;
/// One in so many is marked: its first user asks for it in any case.
const MARKED: usize = 64;

/// A user and a player with a processor for each. What both ask for at the same time, the user gets when the player has it.
#[derive(Debug, Clone)]
struct Scene {
    steps: usize,
    /// The steps of the user, in his order.
    order: Vec<usize>,
    /// What he does with each.
    thinks: u64,
    /// When he begins, and when the player does.
    begins: u64,
    player_begins: u64,
}

/// Who is out of the way of others, or is not.
trait Plays {
    fn asked(&mut self, at: usize);
    fn next(&mut self) -> Option<usize>;
}

impl Plays for Course {
    fn asked(&mut self, at: usize) {
        Self::asked(self, at, true);
        self.turn();
    }

    fn next(&mut self) -> Option<usize> {
        Self::next(self)
    }
}

/// As it would be without looking at users.
struct Straight(std::ops::Range<usize>);

impl Plays for Straight {
    fn asked(&mut self, _: usize) {}

    fn next(&mut self) -> Option<usize> {
        self.0.next()
    }
}

impl Scene {
    /// How long the user takes alone.
    fn alone(&self) -> u64 {
        let mut known = BTreeSet::new();
        self.order.iter().map(|at| self.thinks + if known.insert(*at) { UNKNOWN } else { KNOWN }).sum()
    }

    /// How long he takes beside `player`.
    fn beside(&self, mut player: impl Plays) -> u64 {
        let (mut known, mut asked) = (vec![false; self.steps], BTreeSet::new());
        let (mut user, mut play) = (self.begins, self.player_begins);
        // What the player does, until when; what the user has asked for, which the player sees then.
        let (mut doing, mut unseen) = (None::<(usize, u64)>, Vec::<(u64, usize)>::new());
        for at in &self.order {
            let now = user + self.thinks;
            let beside = |step: usize| if step.abs_diff(*at) <= 1 { BESIDE } else { 0 };
            // All that the player does until then.
            loop {
                if let Some((done, until)) = doing {
                    if until > now {
                        break;
                    }
                    known[done] = true;
                    (doing, play) = (None, until);
                }
                if play > now {
                    break;
                }
                unseen.retain(|(when, at)| {
                    let is_seen = *when <= play;
                    if is_seen {
                        player.asked(*at);
                    }
                    !is_seen
                });
                let Some(next) = player.next() else { break };
                let cost = if known[next] { KNOWN } else { UNKNOWN };
                doing = Some((next, play + cost + beside(next)));
            }
            let is_marked = at % MARKED == 9 && asked.insert(*at);
            let (cost, is_seen) = match doing {
                _ if known[*at] => {
                    if is_marked {
                        (UNKNOWN, true)
                    } else {
                        (KNOWN, false)
                    }
                }
                // He waits, and has it then.
                Some((same, until)) if same == *at => {
                    (until - now + if is_marked { UNKNOWN } else { KNOWN }, is_marked)
                }
                _ => (UNKNOWN, true),
            };
            let cost = cost + doing.map_or(0, |(step, _)| beside(step));
            // What the kernel answers by itself nobody sees.
            if is_seen {
                unseen.push((now + cost, *at));
                known[*at] = true;
            }
            user = now + cost;
        }
        user - self.begins
    }

    fn straight(&self) -> u64 {
        self.beside(Straight(0..self.steps))
    }

    fn course(&self) -> u64 {
        self.beside(Course::new(self.steps))
    }
}

fn walk(steps: usize, begins: u64, player_begins: u64, thinks: u64) -> Scene {
    Scene { steps, order: (0..steps).collect(), thinks, begins, player_begins }
}

#[test]
fn a_user_and_a_player_share_a_walk() {
    let lockstep = walk(10_000, 0, 0, 0);
    let (straight, alone) = (lockstep.straight(), lockstep.alone());
    assert!(straight > alone + alone / 8, "this is what it is for: {straight}, {alone} alone");
    for (case, scene, part) in [
        ("together", lockstep, 0.6),
        ("the player is a little later", walk(10_000, 0, 300, 0), 0.6),
        ("the player comes when half is over", walk(10_000, 0, 40_000, 0), 0.8),
        ("the user is a little later", walk(10_000, 300, 0, 0), 0.6),
        ("a short one", walk(400, 0, 0, 0), 0.85),
        ("the user is as slow as the player", walk(10_000, 0, 0, 8), 0.6),
        ("the user is slow", walk(10_000, 0, 0, 40), 0.9),
    ] {
        let (alone, beside) = (scene.alone(), scene.course());
        assert!(beside as f64 <= part * alone as f64, "{case}: {beside}, {alone} alone");
    }
}

#[test]
fn a_slow_user_loses_little_by_a_jump() {
    let slow = walk(300, 0, 0, 40);
    let lost = slow.course() - slow.straight().min(slow.course());
    assert!(lost <= 16 * UNKNOWN, "{lost}");
}

/// As while the player does names, and a user reads files.
#[test]
fn a_user_who_was_there_before_it_began_is_jumped_over_shortly() {
    let mut course = Course::new(1000);
    for at in 0..100 {
        course.asked(at, true);
    }
    assert_eq!(course.turn(), Some(100 + LEAP));
    assert_eq!((course.next(), course.turn()), (Some(100 + LEAP), None));
}

fn scene() -> impl Strategy<Value = Scene> {
    let order = prop_oneof![
        (1usize..2000).prop_map(|steps| (steps, (0..steps).collect())),
        (1usize..2000).prop_map(|steps| (steps, (0..steps).rev().collect())),
        (1usize..500).prop_flat_map(|steps| (Just(steps), proptest::collection::vec(0..steps, 0..800))),
        // A part of it, or several programs by turns.
        (1usize..500, 1usize..40)
            .prop_map(|(steps, by)| (steps, (0..by).flat_map(|from| (from..steps).step_by(by)).collect())),
    ];
    (order, 0u64..50, 0u64..5000, 0u64..5000).prop_map(|((steps, order), thinks, begins, player_begins)| {
        Scene { steps, order, thinks, begins, player_begins }
    })
}

proptest! {
    /// Whatever users do, in whichever order, and however fast they are.
    #[test]
    fn no_user_is_later_than_without_a_player(scene in scene()) {
        let (alone, beside) = (scene.alone(), scene.course());
        prop_assert!(beside <= alone + 4 * UNKNOWN, "{} instead of {}", beside, alone);
    }

    #[test]
    fn each_step_is_done_once_or_left_to_a_user(
        steps in 0usize..200,
        asked in proptest::collection::vec((0usize..220, any::<bool>(), 0usize..10), 0..100),
    ) {
        let mut course = Course::new(steps);
        let (mut played, mut users) = (BTreeSet::new(), BTreeSet::new());
        for (at, all, then) in asked {
            course.asked(at, all);
            if all && at < steps && !played.contains(&at) {
                users.insert(at);
            }
            if let Some(front) = course.turn() {
                prop_assert!(front > at && !played.contains(&front) && !users.contains(&front));
            }
            for _ in 0..then {
                let Some(next) = course.next() else { break };
                prop_assert!(played.insert(next) && !users.contains(&next), "{} again", next);
            }
            prop_assert!(played.last().is_none_or(|last| course.reach() > *last), "what was played would be forgotten");
            prop_assert!(course.is_over() || course.reach() <= played.last().map_or(0, |last| last + 1));
        }
        while let Some(next) = course.next() {
            prop_assert!(played.insert(next) && !users.contains(&next), "{} again", next);
        }
        prop_assert_eq!(played.len() + users.len(), steps);
        prop_assert!(course.is_over());
        prop_assert_eq!(course.reach(), steps);
    }
}

fn plan() -> Plan {
    let path = |path: &str| path.as_bytes().to_vec();
    Plan {
        blocks: Vec::new(),
        names: vec![
            Step::Look { path: path("m/a") },
            Step::List { dir: path("m/lib"), at_most: 9 },
            Step::Follow { path: path("m/lib/link") },
            Step::Look { path: path("m/lib/absent") },
        ],
        bytes: vec![Step::Read { path: path("m/lib/file"), ranges: [].into_iter().collect() }],
        members: Vec::new(),
        rest: plan::Rest::Nothing,
    }
}

#[test]
fn what_is_asked_for_concerns_a_step() {
    use Kind::*;
    let plan = plan();
    let steps = Steps::of(&plan);
    for (kind, path, names, bytes) in [
        (Name, "m/a", Some((0, true)), None),
        (Absent, "m/a", Some((0, true)), None),
        (Listed, "m/lib", Some((1, true)), None),
        (Name, "m/lib", Some((1, false)), None),
        (Name, "m/lib/file", Some((1, false)), None),
        (Name, "m/lib/other", Some((1, false)), None),
        (Link, "m/lib/link", Some((2, true)), None),
        (Absent, "m/lib/absent", Some((3, true)), None),
        (Read, "m/lib/file", None, Some(0)),
        (Opened, "m/lib/file", None, Some(0)),
        (Read, "m/lib/other", None, None),
        (Listed, "m/a", None, None),
        (Name, "m", None, None),
        (Name, "m/lib/deeper/x", None, None),
        (Name, "", None, None),
        (Name, "/", None, None),
    ] {
        let mut courses = Courses::new(&plan);
        let record = Record { kind, after: Duration::ZERO, path: path.into(), pages: None };
        steps.tell(&mut courses, &record);
        let of = |course: &Course| Some((course.user?, course.done[course.user?]));
        assert_eq!(of(&courses.names), names, "{kind:?} {path}");
        assert_eq!(of(&courses.bytes), bytes.map(|at| (at, true)), "{kind:?} {path}");
    }
}
