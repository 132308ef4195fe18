//! Random orders of events in a [`World`], whose invariants are checked after each; then everything that can go well goes
//! well, and the view has to come to rest: served, or ended with a reason.
//!
//! `NSF_ORDERS` says how many orders; `scripts/stress` runs more.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::world::{Connection, World};
use super::*;

/// One thing that may happen. What is not possible at that moment does nothing.
#[derive(Debug, Clone, Copy)]
enum Step {
    Stop,
    HandOver { kept: bool },
    Hup,
    Client,
    Changed,
    Resolve(u8),
    Unresolved { may_pass: bool },
    Moved,
    Mount { succeeds: bool, journal: bool },
    Report,
    Answered,
    Refuse(u8),
    HangUp { garbage: bool },
    Exit,
    Unmounted { everywhere: bool },
    Abort,
    Probe { answers: bool },
    Listers,
    FailSpawn,
    Pass(u16),
    Wake,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Stop),
        1 => any::<bool>().prop_map(|kept| Step::HandOver { kept }),
        3 => Just(Step::Hup),
        6 => Just(Step::Client),
        4 => Just(Step::Changed),
        12 => (1..64u8).prop_map(Step::Resolve),
        4 => any::<bool>().prop_map(|may_pass| Step::Unresolved { may_pass }),
        1 => Just(Step::Moved),
        6 => (prop::bool::weighted(0.9), prop::bool::weighted(0.8)).prop_map(|(succeeds, journal)| Step::Mount { succeeds, journal }),
        16 => Just(Step::Report),
        8 => Just(Step::Answered),
        2 => (0..6u8).prop_map(Step::Refuse),
        3 => any::<bool>().prop_map(|garbage| Step::HangUp { garbage }),
        8 => Just(Step::Exit),
        1 => any::<bool>().prop_map(|everywhere| Step::Unmounted { everywhere }),
        1 => Just(Step::Abort),
        6 => prop::bool::weighted(0.8).prop_map(|answers| Step::Probe { answers }),
        3 => Just(Step::Listers),
        1 => Just(Step::FailSpawn),
        4 => (0..20_000u16).prop_map(Step::Pass),
        8 => Just(Step::Wake),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        if let Step::HandOver { kept } = step {
            self.kept = kept;
        }
        match step {
            Step::Stop => self.event(Event::Stop),
            Step::HandOver { kept } => self.event(Event::HandOver { kept }),
            Step::Hup => self.event(Event::Reload(None)),
            Step::Client => self.client(),
            Step::Changed => self.event(Event::Changed),
            Step::Resolve(which) => self.resolve(Ok(which)),
            Step::Unresolved { may_pass } => self.resolve(Err(may_pass)),
            // Only a mount that was taken over has a journal and another store.
            Step::Moved if self.journal => self.moved(),
            Step::Moved => {}
            Step::Mount { succeeds, journal } => self.mount(succeeds, journal),
            Step::Report => self.report(),
            Step::Answered => self.answered_one(),
            Step::Refuse(which) => self.refuse(match which {
                0 => Refusal::Leftovers("damaged".into()),
                1 => Refusal::Unsupported("too old".into()),
                _ => Refusal::Passing("no memory".into()),
            }),
            Step::HangUp { garbage } => self.hang_up(garbage.then_some("malformed")),
            Step::Exit => self.exit(),
            Step::Unmounted { everywhere } => self.unmounted_by_others(everywhere),
            Step::Abort => self.abort(),
            Step::Probe { answers } => self.probe(answers),
            Step::Listers => self.listers(),
            Step::FailSpawn => self.fail_next_spawn(),
            Step::Pass(millis) => self.pass(Duration::from_millis(millis.into())),
            Step::Wake => self.wake(),
        }
    }

    /// From here on nothing fails any more: it has to come to rest.
    fn rest(&mut self) {
        for _ in 0..200 {
            if self.plan.is_some() {
                return;
            }
            self.resolve(Ok(3));
            self.mount(true, true);
            match &self.process {
                // Nobody can serve a connection that has ended.
                Some(process) if process.killed || self.connection == Connection::Ended => self.exit(),
                _ => self.report(),
            }
            self.answered_one();
            self.probe(true);
            self.listers();
            let served =
                self.process.as_ref().is_some_and(|process| process.orders.is_empty() && !process.killed);
            if served && self.resolving == 0 && self.waiting.is_empty() && self.ready > 0 && !self.reloading {
                return;
            }
            self.wake();
        }
        panic!("it does not come to rest: {self:?}");
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    (any::<bool>(), any::<bool>()).prop_map(|(prune, can_hand_over)| Policy { prune, can_hand_over })
}

fn run(orders: u32) {
    let mut runner =
        TestRunner::new(Config { cases: orders, failure_persistence: None, ..Config::default() });
    let world = (policies(), prop::option::of(1..64u8), prop::collection::vec(step(), 1..60));
    let answer = runner.run(&world, |(policy, inherited, steps)| {
        let mut world = World::new(policy, inherited);
        for step in steps {
            world.step(step);
        }
        world.rest();
        // And from wherever it is, SIGTERM ends it.
        world.event(Event::Stop);
        prop_assert!(world.plan.is_some());
        Ok(())
    });
    if let Err(error) = answer {
        panic!("{error}\n{runner}");
    }
}

/// Whatever happens in whatever order, every invariant holds, and the view comes to rest.
#[test]
fn orders_of_events() {
    let orders = std::env::var("NSF_ORDERS").map_or(2000, |text| text.parse().expect("a number"));
    run(orders);
}
