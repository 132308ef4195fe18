//! Tests of the roots.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

fn root(number: usize) -> StorePath {
    StorePath::new(&format!("{}-r{number}", "0".repeat(32))).unwrap()
}

fn roots(numbers: &[usize]) -> BTreeSet<StorePath> {
    numbers.iter().map(|&number| root(number)).collect()
}

/// What happens to a view, as its owner tells it.
#[derive(Debug, Clone)]
enum Step {
    /// A resolution; whether all, or only some of its links can be made.
    Resolve(BTreeSet<usize>, usize),
    /// The newest resolution that was held is served.
    Settle,
    /// The directory is looked at, in which somebody has removed a link.
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (proptest::collection::btree_set(0..6_usize, 0..4), 0..8_usize)
            .prop_map(|(roots, limit)| Step::Resolve(roots, limit)),
        2 => Just(Step::Settle),
        1 => (0..6_usize).prop_map(Step::Lose),
    ]
}

/// The directory, and a second opinion about what is served.
struct World {
    targets: Targets,
    disk: BTreeSet<StorePath>,
    /// What a server may show at this moment.
    shown: BTreeSet<StorePath>,
}

impl World {
    fn complete(&mut self, limit: usize) -> bool {
        for (number, root) in self.targets.missing().into_iter().enumerate() {
            if number >= limit {
                return false;
            }
            self.disk.insert(root.clone());
            self.targets.made(root);
        }
        true
    }

    fn clear(&mut self) {
        for root in self.targets.outdated() {
            assert!(!self.shown.contains(&root), "{root} is served, and its link is removed");
            self.disk.remove(&root);
            self.targets.removed(&root);
        }
    }
}

proptest! {
    #[test]
    fn no_step_removes_the_link_of_what_is_served(
        left in proptest::collection::btree_set(0..6_usize, 0..4),
        served in proptest::collection::btree_set(0..6_usize, 0..4),
        prune: bool,
        steps in proptest::collection::vec(step(), 0..24),
    ) {
        let set = |numbers: &BTreeSet<usize>| numbers.iter().map(|&number| root(number)).collect::<BTreeSet<_>>();
        let (left, served) = (set(&left), set(&served));
        let shown = left.union(&served).cloned().collect();
        let mut world = World { targets: Targets::new(served), disk: left.clone(), shown };
        world.targets.found(left);
        let mut held: Vec<(u64, BTreeSet<StorePath>)> = Vec::new();
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Resolve(wanted, limit) => {
                    let before = world.disk.clone();
                    let wanted = set(&wanted);
                    if world.complete(usize::MAX) {
                        world.targets.announce(number, wanted.clone());
                        if world.complete(limit) {
                            prop_assert!(world.disk.is_superset(&wanted));
                            world.shown.extend(wanted.iter().cloned());
                            held.push((number, wanted));
                        } else {
                            world.targets.withdraw(number);
                            world.clear();
                            prop_assert!(world.disk.is_superset(&before));
                        }
                    }
                }
                Step::Settle => {
                    let Some((number, now)) = held.pop() else { continue };
                    held.clear();
                    world.targets.settle(number, prune);
                    if prune {
                        world.shown = now;
                    }
                    world.clear();
                    if prune {
                        let gone: Vec<_> = world.disk.difference(&world.shown).collect();
                        prop_assert!(gone.is_empty(), "{gone:?} is not served and still held");
                    }
                }
                Step::Lose(number) => {
                    world.disk.remove(&root(number));
                    world.shown.remove(&root(number)); // until it is made again
                    world.targets.found(world.disk.clone());
                    world.complete(usize::MAX);
                    let targets = &world.targets;
                    let held_again = |root: &&StorePath| targets.wanted().any(|wanted| wanted == *root);
                    world.shown.extend(world.disk.iter().filter(held_again).cloned());
                }
            }
            if world.targets.missing().is_empty() {
                let lost: Vec<_> = world.shown.difference(&world.disk).collect();
                prop_assert!(lost.is_empty(), "{lost:?} is served and not held");
            }
        }
        world.shown.clear();
        world.targets.release();
        world.clear();
        prop_assert!(world.disk.is_empty());
    }
}

/// A reload that was begun before the first view was served overtakes it.
#[test]
fn what_is_settled_late_keeps_what_came_after() {
    for only in [false, true] {
        let mut targets = Targets::default();
        targets.found(BTreeSet::new());
        for number in [1, 2, 3] {
            targets.announce(number, [root(usize::try_from(number).unwrap())]);
            targets.missing().into_iter().for_each(|root| targets.made(root));
        }
        targets.settle(2, only);
        assert_eq!(targets.outdated(), if only { vec![root(1)] } else { vec![] });
        targets.settle(1, only);
        assert!(targets.missing().is_empty());
        targets.settle(3, only);
        assert_eq!(targets.outdated(), if only { vec![root(1), root(2)] } else { vec![] });
    }
}

/// Replaces a link, as Nix does.
fn by_link(root: &StorePath, link: &Path) -> Result<bool, StoreError> {
    if link.is_symlink() {
        std::fs::remove_file(link).unwrap();
    }
    symlink(Path::new("/nix/store").join(root.as_str()), link)
        .map(|()| true)
        .map_err(|_| StoreError::Invalid { store: "local".to_owned(), path: root.clone() })
}

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_failure_takes_back_its_own_links_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut links = RootLinks::new(dir.path(), "web", BTreeSet::new(), Trust::of_process(None));
    symlink("/nowhere", links.link(&root(7))).unwrap();
    std::fs::write(links.link(&root(3)), "in the way").unwrap();
    links.examine().unwrap();
    links.announce(1, &[root(1)], by_link).unwrap();
    let before = names(dir.path());
    let error = links.announce(2, &[root(2), root(3)], by_link).unwrap_err();
    assert!(matches!(error, RootsError::Make(_)), "{error}");
    assert_eq!(names(dir.path()), before);
    links.abandon();
    assert_eq!(names(dir.path()), [3, 7].map(|n| format!("web--{}", root(n))).into());
    links.release();
    assert_eq!(names(dir.path()), [format!("web--{}", root(3))].into());
}

#[test]
fn only_links_of_the_view_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut links = RootLinks::new(dir.path(), "web", BTreeSet::new(), Trust::of_process(None));
    let others = ["web--note".to_owned(), format!("other--{}", root(1))];
    for name in others.iter().chain([&format!("web--{}", root(1))]) {
        symlink("/nowhere", dir.path().join(name)).unwrap();
    }
    links.release();
    assert_eq!(names(dir.path()), others.into());
}

fn links_of(numbers: &[usize]) -> BTreeSet<String> {
    numbers.iter().map(|&number| format!("web--{}", root(number))).collect()
}

/// Links of an earlier process (1, 2), of what was served (2, 3), and of what is about to be served (1, 4).
fn links_of_each_kind(dir: &Path) -> RootLinks {
    let mut links = RootLinks::new(dir, "web", roots(&[2, 3]), Trust::of_process(None));
    for number in [1, 2] {
        symlink("/nowhere", links.link(&root(number))).unwrap();
    }
    links.examine().unwrap();
    links.announce(1, &[root(1), root(4)], by_link).unwrap();
    assert_eq!(names(dir), links_of(&[1, 2, 3, 4]));
    links
}

#[test]
fn a_released_ledger_leaves_no_link_and_allows_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut links = links_of_each_kind(dir.path());
    assert_eq!(links.ledger().release(), None);
    assert_eq!(names(dir.path()), links_of(&[]));
    assert!(matches!(links.announce(2, &[root(5)], by_link), Err(RootsError::Closed)));
    links.settle(1, true);
    links.release();
    assert_eq!(names(dir.path()), links_of(&[]));
}

/// The links are in the directory that they were made in, wherever that is by now, and what others have put in its place stays.
#[test]
fn links_are_removed_from_a_directory_that_was_moved() {
    for (put_there, ends_by_ledger) in [(false, false), (true, false), (false, true), (true, true)] {
        let home = tempfile::tempdir().unwrap();
        let (dir, moved) = (home.path().join("roots"), home.path().join("moved"));
        std::fs::create_dir(&dir).unwrap();
        let mut links = links_of_each_kind(&dir);
        let ledger = links.ledger();
        std::fs::rename(&dir, &moved).unwrap();
        if put_there {
            std::fs::create_dir(&dir).unwrap();
            symlink("elsewhere", dir.join("other--link")).unwrap();
        }
        if ends_by_ledger {
            assert_eq!(ledger.release(), None);
        } else {
            links.release();
        }
        assert_eq!(names(&moved), links_of(&[]), "put there: {put_there}, by the ledger: {ends_by_ledger}");
        assert_eq!(dir.join("other--link").symlink_metadata().is_ok(), put_there);
    }
}

#[test]
fn an_abandoned_ledger_leaves_what_was_served_and_what_others_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut links = links_of_each_kind(dir.path());
    assert_eq!(links.ledger().abandon(), None);
    assert_eq!(names(dir.path()), links_of(&[1, 2, 3]));
    assert!(matches!(links.announce(2, &[root(5)], by_link), Err(RootsError::Closed)));
    links.abandon();
    assert_eq!(names(dir.path()), links_of(&[1, 2, 3]));
}

/// What [`Ledger::release`] and [`Ledger::abandon`] do while a call makes the link of 5, before or after it.
#[test]
fn a_call_in_progress_is_known_by_its_link() {
    type Close = fn(&Ledger) -> Option<PathBuf>;
    let cases: [(Close, usize, &[usize], bool); 4] = [
        (Ledger::release, 5, &[], true),
        (Ledger::abandon, 5, &[1, 2, 3], true),
        (Ledger::release, 1, &[], true),
        // A link that has to stay is nobody's business.
        (Ledger::abandon, 1, &[1, 2, 3], false),
    ];
    for (close, number, left, known) in cases {
        for first in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut links = links_of_each_kind(dir.path());
            links.targets.made.remove(&root(number));
            let (ledger, making) = (links.ledger(), links.link(&root(number)));
            let make = |root: &StorePath, link: &Path| {
                let _ = std::fs::remove_file(link);
                if first {
                    by_link(root, link)?;
                }
                assert_eq!(close(&ledger).as_deref(), known.then_some(making.as_path()));
                // Only this call can make a link now.
                if !first {
                    by_link(root, link)?;
                }
                Ok(true)
            };
            links.announce(2, &[root(number)], make).unwrap();
            let created: BTreeSet<_> =
                if first { links_of(left) } else { &links_of(left) | &links_of(&[number]) };
            assert_eq!(names(dir.path()), created);
            // If the process lives long enough, the owner removes that link as well.
            if left.is_empty() {
                links.release()
            } else {
                links.abandon()
            }
            assert_eq!(names(dir.path()), links_of(left));
        }
    }
}

/// The owner of the links makes and removes them as fast as it can, and another thread closes the ledger.
#[test]
fn no_link_survives_a_ledger_that_is_closed_at_any_moment() {
    for round in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let mut links = RootLinks::new(dir.path(), "web", BTreeSet::new(), Trust::of_process(None));
        links.examine().unwrap();
        let ledger = links.ledger();
        let owner = std::thread::spawn(move || {
            for number in 1.. {
                if links.announce(number, &[root(usize::try_from(number).unwrap())], by_link).is_err() {
                    return links;
                }
                links.settle(number, true);
            }
            links
        });
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while names(dir.path()).is_empty() {
            assert!(std::time::Instant::now() < until, "no link is made");
        }
        let making = ledger.release();
        owner.join().unwrap();
        let allowed =
            making.iter().filter_map(|link| link.file_name()?.to_str().map(str::to_owned)).collect();
        assert!(names(dir.path()).is_subset(&allowed), "round {round}: {:?}, {allowed:?}", names(dir.path()));
    }
}

#[test]
fn a_closed_ledger_removes_nothing_that_is_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let links = links_of_each_kind(dir.path());
    std::fs::remove_file(links.link(&root(4))).unwrap();
    std::fs::write(links.link(&root(4)), "another").unwrap();
    assert_eq!(links.ledger().release(), None);
    assert_eq!(names(dir.path()), links_of(&[4]));
}

#[test]
fn a_place_for_links_is_a_directory_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let examine = |path: &Path| RootLinks::new(path, "web", roots(&[1]), Trust::of_process(None)).examine();
    assert!(matches!(examine(&file), Err(RootsError::NotADirectory(path)) if path == file));
    assert!(matches!(examine(&file.join("below")), Err(RootsError::NotADirectory(_))));
    examine(&dir.path().join("absent")).unwrap();
    // Nobody makes a directory there.
    let mut nowhere = RootLinks::new(Path::new("/proc/absent"), "web", roots(&[1]), Trust::of_process(None));
    nowhere.examine().unwrap();
    let error = nowhere.complete(by_link).unwrap_err();
    assert!(matches!(&error, RootsError::List { path, .. } if path == Path::new("/proc/absent")), "{error}");
}
