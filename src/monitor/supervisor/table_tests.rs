//! Every event in every state: what is done, and which state follows.
//!
//! The expected table is `snapshots/…every_event_in_every_state.snap`; it is read and checked by hand against
//! docs/design.md when it changes.

use std::fmt::Write as _;

use super::content::Change;
use super::world::{World, found};
use super::*;

const KEEPS: Policy = Policy { prune: false, can_hand_over: true };
const PRUNES: Policy = Policy { prune: true, can_hand_over: false };

/// The event that comes when the supervisor wants to be woken; its time is set then.
const DUE: &str = "Time, due";

type Build = fn(&mut World);

fn mounted(world: &mut World) {
    world.resolve(Ok(1));
    world.mount(true, true);
}

fn served(world: &mut World) {
    mounted(world);
    world.report();
    world.answered_one();
}

fn told(world: &mut World) {
    served(world);
    world.probe(true);
}

fn resolving(world: &mut World) {
    told(world);
    world.client();
}

fn switching(world: &mut World) {
    resolving(world);
    world.resolve(Ok(3));
}

/// States by name: how the world comes there.
const STATES: &[(&str, Policy, Option<u8>, Build)] = &[
    ("Absent, Resolving", KEEPS, None, |_| ()),
    ("Absent, a client queued", KEEPS, None, World::client),
    ("Mounting", KEEPS, None, |world| world.resolve(Ok(1))),
    ("Ours, Starting, Journalled", KEEPS, None, mounted),
    ("Ours, Starting, Lost", KEEPS, None, |world| {
        world.resolve(Ok(1));
        world.mount(true, false);
    }),
    ("Ours, Starting, Inherited, Resolving", KEEPS, Some(1), |_| ()),
    ("Ours, Up, Inherited, Resolving", KEEPS, Some(1), |world| {
        world.report();
        world.probe(true);
    }),
    ("Ours, Up, asked", KEEPS, None, served),
    ("Ours, Up, told", KEEPS, None, told),
    ("Ours, Up, told, Lost", PRUNES, None, |world| {
        world.resolve(Ok(1));
        world.mount(true, false);
        world.report();
        world.probe(true);
    }),
    ("Ours, Up, told, Resolving for a client", KEEPS, None, resolving),
    ("Ours, Up, told, Switching for a client", PRUNES, None, switching),
    ("Ours, Up, told, Switching for a client for too long", PRUNES, None, |world| {
        switching(world);
        world.pass(SLOW);
    }),
    ("Ours, Starting again, Switching for a client", KEEPS, None, |world| {
        switching(world);
        world.exit();
        world.wake();
    }),
    ("Ours, Ending", KEEPS, None, |world| {
        told(world);
        world.hang_up(None);
    }),
    ("Ours, Down", KEEPS, None, |world| {
        told(world);
        world.exit();
    }),
    ("Ours, Down for a while", KEEPS, None, |world| {
        told(world);
        for _ in 0..5 {
            world.exit();
            world.wake();
        }
        world.exit();
    }),
    ("Mounting, a client queued", KEEPS, None, |world| {
        world.resolve(Ok(1));
        world.client();
    }),
    ("Ours, Starting, refused", KEEPS, None, |world| {
        mounted(world);
        world.refuse(Refusal::Passing("why".into()));
    }),
    ("Ours, Down, not started", KEEPS, None, |world| {
        world.resolve(Ok(1));
        world.fail_next_spawn();
        world.mount(true, true);
    }),
    ("Ours, Up, probed again", KEEPS, None, |world| {
        served(world);
        world.probe(false);
    }),
    ("Ours, Down for a while, Switching for a client", PRUNES, None, |world| {
        told(world);
        for _ in 0..5 {
            world.exit();
            world.wake();
        }
        world.client();
        world.resolve(Ok(2));
        world.exit();
    }),
    ("Ours, Up, told, changed and one queued", KEEPS, None, |world| {
        resolving(world);
        world.event(Event::Changed);
        world.client();
    }),
    ("Ours, Up, told, to be tried again", KEEPS, None, |world| {
        told(world);
        world.event(Event::Changed);
        world.wake();
        world.resolve(Err(true));
    }),
    ("Dead", KEEPS, None, |world| {
        told(world);
        world.abort();
        world.exit();
    }),
    ("Over", KEEPS, None, |world| {
        told(world);
        world.event(Event::Stop);
    }),
];

fn unresolved(may_pass: bool) -> Event {
    Event::Resolved(Err(Unresolved { error: Box::new(MonitorError::Aborted), may_pass }))
}

fn events() -> Vec<(&'static str, Event)> {
    let why = || "why".to_owned();
    vec![
        ("Stop", Event::Stop),
        ("HandOver", Event::HandOver { kept: true }),
        ("HandOver, not kept", Event::HandOver { kept: false }),
        ("Reload", Event::Reload(Some(ClientId(9)))),
        ("Changed", Event::Changed),
        ("Resolved, the same", Event::Resolved(Ok(found(5, 1)))),
        ("Resolved, another", Event::Resolved(Ok(found(5, 4)))),
        ("Resolved, error", unresolved(false)),
        ("Resolved, passing error", unresolved(true)),
        ("Moved", Event::Moved),
        ("Mounted", Event::Mounted(Ok(true))),
        ("Mounted, no journal", Event::Mounted(Ok(false))),
        ("Mounted, error", Event::Mounted(Err(Box::new(MonitorError::Aborted)))),
        ("Serving 1", Event::Serving { epoch: 1, restored: 3 }),
        ("Answered", Event::Answered),
        ("Switched 1", Event::Switched { epoch: 1 }),
        ("Switched 2", Event::Switched { epoch: 2 }),
        ("Refused, leftovers", Event::Refused(Refusal::Leftovers(why()))),
        ("Refused, unsupported", Event::Refused(Refusal::Unsupported(why()))),
        ("Refused, passing", Event::Refused(Refusal::Passing(why()))),
        ("HungUp", Event::HungUp(None)),
        ("HungUp, garbage", Event::HungUp(Some(why()))),
        ("Exited", Event::Exited { how: why(), faulted: false }),
        ("NotStarted", Event::NotStarted(why())),
        ("MountIs Alive", Event::MountIs(Seen::Alive)),
        ("MountIs Dead", Event::MountIs(Seen::Dead)),
        ("MountIs Gone", Event::MountIs(Seen::Gone)),
        ("Answers", Event::Answers),
        ("NotProbed", Event::NotProbed),
        ("Overdue", Event::Overdue(why())),
        ("Time, early", Event::Time),
        (DUE, Event::Time),
    ]
}

fn state(world: &World) -> String {
    let supervisor = &world.supervisor;
    let next = supervisor.next().map(|next| next.saturating_duration_since(world.now.monotonic).as_millis());
    let next = next.map_or_else(|| "asleep".to_owned(), |next| format!("wakes in {next} ms"));
    let rest = supervisor.reloads.rest();
    let rest = if rest.is_empty() { rest } else { format!(", {rest}") };
    let server = match &supervisor.server {
        ServerLife::Down(None) => "Down".to_owned(),
        ServerLife::Down(Some(_)) => "Down until".to_owned(),
        ServerLife::Starting(Starting { refusal: Some(_), .. }) => "Starting (refused)".to_owned(),
        ServerLife::Starting(_) => "Starting".to_owned(),
        ServerLife::Up { answered, epoch, .. } => format!("Up {epoch}{}", if *answered { "+" } else { "" }),
        ServerLife::Ending { .. } => "Ending".to_owned(),
        ServerLife::Ended { .. } => "Ended".to_owned(),
    };
    let stage = match &supervisor.reloads.stage {
        Stage::Settled => "Settled",
        Stage::Resolving(_) => "Resolving",
        Stage::Switching { .. } => "Switching",
    };
    let mount = match supervisor.mount {
        MountLife::Dead(_) => "Dead".to_owned(),
        mount => format!("{mount:?}"),
    };
    let ready = match supervisor.readiness {
        Readiness::Probe(_) => "Probe".to_owned(),
        ready => format!("{ready:?}"),
    };
    format!("{mount}, {server}, {:?}, {stage}{rest}, {ready}; {next}", supervisor.successor)
}

fn action(action: &Action) -> String {
    match action {
        Action::Record(Fact::NotReloaded(_)) => "Record(NotReloaded)".to_owned(),
        Action::Record(Fact::Error(_)) => "Record(Error)".to_owned(),
        Action::Answer(client, Outcome::Ok(_)) => format!("Answer({}, ok)", client.0),
        Action::Answer(client, Outcome::Error(why)) => format!("Answer({}, error: {why})", client.0),
        Action::End(Plan { verdict, mount, links }) => {
            let verdict = match verdict {
                Verdict::Failed(error) => format!("Failed({error:?})"),
                other => format!("{other:?}"),
            };
            format!("End({verdict}, mount {mount:?}, links {links:?})")
        }
        Action::Note(Note::Switching(Change { added, removed, .. })) => format!("Note(+{added} -{removed})"),
        Action::Notify(Notice::Ready(_)) => "Notify(Ready)".to_owned(),
        Action::Notify(Notice::Status(_)) => "Notify(Status)".to_owned(),
        Action::Note(Note::Unresolved { first, retry, .. }) => {
            format!("Note(Unresolved, first {first}, retry {retry:?})")
        }
        Action::Note(note) => format!("Note({note:?})"),
        other => format!("{other:?}"),
    }
}

#[test]
fn every_event_in_every_state() {
    let mut table = String::new();
    for (name, policy, inherited, build) in STATES {
        let number_of_events = events().len();
        let mut heading = true;
        for index in 0..number_of_events {
            let mut world = World::new(*policy, *inherited);
            build(&mut world);
            let (event, value) = events().into_iter().nth(index).unwrap();
            let before = state(&world);
            if std::mem::take(&mut heading) {
                writeln!(table, "{name}: {before}").unwrap();
            }
            if event == DUE {
                let next = world.supervisor.next().unwrap_or(world.now.monotonic);
                world.now.monotonic = next.max(world.now.monotonic);
            }
            let actions = world.supervisor.handle(world.now, value);
            let after = state(&world);
            if actions.is_empty() && before == after {
                continue;
            }
            let actions: Vec<String> = actions.iter().map(action).collect();
            let follows = if before == after { "-".to_owned() } else { after };
            writeln!(table, "  {event}\n      {}\n      -> {follows}", actions.join(", ")).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

/// What is logged while something takes long, and the pauses, by the clock.
#[test]
fn waits_are_logged_once_and_the_service_manager_is_asked_to_wait() {
    let mut world = World::new(KEEPS, None);
    world.pass(SLOW - Duration::from_millis(1));
    assert!(world.notes.is_empty());
    world.pass(Duration::from_millis(1));
    assert_eq!(world.notes, [Note::Slow(Slow::Store)]);
    world.pass(SLOW);
    assert_eq!(world.notes.len(), 1);
    let extended =
        world.supervisor.handle(Now { monotonic: world.now.monotonic + EXTEND, ..world.now }, Event::Time);
    assert!(matches!(extended[..], [Action::Notify(Notice::Starting(Slow::Store))]), "{extended:?}");
    world.resolve(Ok(1));
    world.pass(SLOW);
    assert_eq!(world.notes.last(), Some(&Note::Slow(Slow::Mount)));
    world.mount(true, true);
    world.pass(SLOW);
    assert_eq!(world.notes.last(), Some(&Note::Slow(Slow::Server)));
    world.report();
    world.probe(true);
    assert_eq!(world.ready, 1);
    world.client();
    world.resolve(Ok(2));
    world.pass(SLOW);
    assert_eq!(world.notes.last(), Some(&Note::Slow(Slow::Switch)));
    world.report();
    assert!(world.waiting.is_empty());
    assert_eq!(world.supervisor.next(), None, "nothing to wake for");

    let mut taken_over = World::new(KEEPS, Some(1));
    taken_over.resolve(Err(false));
    let later = Now { monotonic: taken_over.now.monotonic + EXTEND, ..taken_over.now };
    let actions = taken_over.supervisor.handle(later, Event::Time);
    let told = actions.iter().find(|action| matches!(action, Action::Notify(_)));
    assert!(matches!(told, Some(Action::Notify(Notice::Starting(Slow::Server)))), "{actions:?}");
}

/// Who waits for a switch that takes too long is told why, once that was looked up; who asks meanwhile is told with them, and a switch
/// that ends before is told as what it is.
#[test]
fn a_switch_that_takes_too_long_is_told_when_it_is_known_why() {
    let mut world = World::new(KEEPS, None);
    switching(&mut world);
    world.pass(SLOW);
    assert_eq!(world.waiting.len(), 1, "it is looked up");
    world.client();
    world.listers();
    assert!(world.waiting.is_empty());
    world.client();
    assert_eq!(world.waiting.len(), 1, "it is looked up once more");
    world.report();
    world.resolve(Ok(3));
    world.report();
    assert!(world.waiting.is_empty(), "it has ended");
    world.client();
    world.resolve(Ok(1));
    world.listers();
    assert_eq!(world.waiting.len(), 1, "a late answer is about another switch");
}

/// A new view whose servers never serve is given up; one that was taken over never is.
#[test]
fn a_new_view_that_nobody_serves_ends_with_the_reason() {
    let die = |world: &mut World| {
        let mut pauses = Vec::new();
        for _ in 0..40 {
            world.refuse(Refusal::Passing("no memory".into()));
            world.exit();
            if world.plan.is_some() {
                break;
            }
            let before = world.now.monotonic;
            while world.process.is_none() {
                world.wake();
            }
            pauses.push((world.now.monotonic - before).as_millis());
        }
        pauses
    };
    let mut new = World::new(KEEPS, None);
    mounted(&mut new);
    assert_eq!(die(&mut new), [0, 0, 0, 50, 100, 200, 400, 800, 1600]);
    let plan = new.plan.unwrap();
    let Verdict::Failed(error) = plan.verdict else { panic!() };
    assert_eq!(error.to_string(), "the server failed to start: exit status: 1: no memory");
    assert_eq!(plan.mount, MountEnd::Unmount);

    let mut taken_over = World::new(KEEPS, Some(1));
    taken_over.resolve(Ok(1));
    let pauses = die(&mut taken_over);
    assert_eq!(pauses.len(), 40);
    assert!(pauses[11..].iter().all(|pause| *pause == 5000), "{pauses:?}");
    taken_over.client();
    taken_over.exit();
    assert_eq!(taken_over.waiting.len(), 0, "told that nobody answers now");
}

/// A watch's resolution that failed for a reason that may pass is tried again; one that somebody asked for is not.
#[test]
fn a_failed_resolution_that_nobody_asked_for_is_tried_again() {
    let mut world = World::new(KEEPS, None);
    told(&mut world);
    world.event(Event::Changed);
    world.wake();
    assert_eq!((world.resolving, world.reloading), (1, true));
    for seconds in [1, 2, 4] {
        world.resolve(Err(true));
        assert!(!world.reloading);
        assert_eq!(world.supervisor.next(), Some(world.now.monotonic + Duration::from_secs(seconds)));
        world.wake();
        assert_eq!(world.resolving, 1);
    }
    world.resolve(Err(false));
    assert_eq!(world.supervisor.next(), None, "only a change can help");
    world.client();
    world.resolve(Err(true));
    assert!(world.supervisor.next().is_some(), "the change has not been followed, whoever asked besides");
    world.wake();
    world.resolve(Ok(1));
    world.report();
    world.client();
    world.resolve(Err(true));
    assert_eq!(world.supervisor.next(), None, "who asked was told");
}

/// A reload that began before READY=1 is none for the service manager, which is told the new status all the same.
#[test]
fn a_reload_that_was_not_announced_changes_the_status() {
    let mut world = World::new(KEEPS, None);
    world.event(Event::Reload(None));
    told(&mut world);
    assert_eq!((world.ready, world.resolving), (1, 1));
    world.resolve(Ok(3));
    let actions = world.supervisor.handle(world.now, Event::Switched { epoch: 2 });
    let status = actions.iter().find_map(|action| match action {
        Action::Notify(Notice::Status(status)) => Some(status.as_str()),
        _ => None,
    });
    assert!(status.is_some_and(|status| status.starts_with("serving 2 store paths")), "{actions:?}");
}
