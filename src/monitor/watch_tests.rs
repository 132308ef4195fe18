//! Watches on a real directory. The kernel queues an event before the call that causes it returns: nothing here waits.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::closure::profile::StoreDirs;
use crate::closure::resolve::{self, Roots};

fn follow_once(roots: &Roots) -> Followed {
    let store = Path::new("/nix/store");
    resolve::follow(roots, StoreDirs { logical: store, real: store })
}

fn store_path(number: u32) -> PathBuf {
    Path::new("/nix/store").join(format!("{}-s{number}", "0".repeat(32)))
}

/// A directory for links.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// Lets a link lead elsewhere, in one step as Nix does.
    fn switch(&self, link: &str, target: impl AsRef<Path>) {
        symlink(target, self.at("next")).unwrap();
        fs::rename(self.at("next"), self.at(link)).unwrap();
    }

    fn roots(&self, system: &str) -> Roots {
        Roots { system: Some(self.at(system)), ..Roots::default() }
    }
}

fn follow(arming: &mut Arming, roots: &Roots) -> String {
    meaning(&arming.follow(|| follow_once(roots)))
}

/// How many watches the kernel has, and how many are known.
fn watches(arming: &Arming) -> (usize, usize) {
    use std::os::fd::AsRawFd;
    let info = format!("/proc/self/fdinfo/{}", arming.shared.inotify.as_raw_fd());
    let info = fs::read_to_string(info).unwrap();
    let kernel = info.lines().filter(|line| line.starts_with("inotify wd:")).count();
    (kernel, arming.shared.names.lock().len())
}

fn meaning(followed: &Followed) -> String {
    match &followed.result {
        Ok(paths) => format!("{paths:?}"),
        Err(error) => crate::error::chain(error),
    }
}

fn readable(changes: &Changes) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(changes.events(), rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 1
}

#[test]
fn a_replaced_link_is_a_change_and_its_neighbour_is_none() {
    let (tree, (mut arming, mut changes)) = (Tree::new(), try_start().unwrap());
    symlink(store_path(1), tree.at("system")).unwrap();
    follow(&mut arming, &tree.roots("system"));
    assert!(!readable(&changes) && !changes.take());
    symlink(store_path(2), tree.at("other")).unwrap();
    assert!(readable(&changes) && !changes.take());
    fs::rename(tree.at("other"), tree.at("system")).unwrap();
    assert!(readable(&changes) && changes.take());
    assert!(!readable(&changes) && !changes.take(), "it is told once");
}

/// A change after the roots were followed and before the watches are added is no event: it is found.
#[test]
fn a_change_before_the_watches_are_added_is_found() {
    let link = |tree: &Tree| tree.switch("web/system", store_path(2));
    let directory = |tree: &Tree| {
        fs::rename(tree.at("web"), tree.at("old")).unwrap();
        fs::create_dir(tree.at("web")).unwrap();
        symlink(store_path(2), tree.at("web/system")).unwrap();
    };
    let file = |tree: &Tree| fs::write(tree.at("roots"), format!("{}\n", store_path(2).display())).unwrap();
    type Make = fn(&Tree);
    let made: [(&str, Make); 3] = [("a link", link), ("a directory", directory), ("a roots file", file)];
    for (what, change) in made {
        let (tree, (mut arming, mut changes)) = (Tree::new(), try_start().unwrap());
        fs::create_dir(tree.at("web")).unwrap();
        symlink(store_path(1), tree.at("web/system")).unwrap();
        fs::write(tree.at("roots"), "").unwrap();
        let roots = Roots { file: Some(tree.at("roots")), ..tree.roots("web/system") };
        let mut times = 0;
        let followed = arming.follow(|| {
            let followed = follow_once(&roots);
            times += 1;
            if times == 1 {
                change(&tree);
            }
            followed
        });
        assert_eq!(times, 2, "{what}");
        assert!(meaning(&followed).contains("-s2"), "{what}: {followed:?}");
        // What came instead is watched.
        assert!(!changes.take(), "{what}");
        tree.switch("web/system", store_path(3));
        assert!(changes.take(), "{what}");
    }
}

/// Links that change as often as they are followed: the last result is returned, and it is a change at once.
#[test]
fn a_result_that_is_outdated_each_time_is_a_change() {
    let (tree, (mut arming, mut changes)) = (Tree::new(), try_start().unwrap());
    let (outdated, _) = Dependency::examine(&tree.at("system"));
    symlink(store_path(1), tree.at("system")).unwrap();
    let mut times = 0;
    arming.follow(|| {
        times += 1;
        Followed { result: Ok(()), depends_on: vec![outdated.clone()] }
    });
    assert_eq!(times, ATTEMPTS);
    assert!(readable(&changes) && changes.take());
    assert!(!readable(&changes) && !changes.take(), "it is told once");
}

/// The start of a path may come, go and come again; what it depends on at each moment is watched.
#[test]
fn what_does_not_exist_is_watched_from_above() {
    let (tree, (mut arming, mut changes)) = (Tree::new(), try_start().unwrap());
    let roots = tree.roots("a/b/system");
    for round in 0..2 {
        assert!(follow(&mut arming, &roots).contains("does not exist"), "round {round}");
        fs::create_dir(tree.at("a")).unwrap();
        assert!(changes.take(), "round {round}");
        follow(&mut arming, &roots);
        fs::create_dir(tree.at("a/b")).unwrap();
        assert!(changes.take(), "round {round}");
        follow(&mut arming, &roots);
        symlink(store_path(1), tree.at("a/b/system")).unwrap();
        assert!(changes.take(), "round {round}");
        assert!(follow(&mut arming, &roots).contains("-s1"), "round {round}");
        fs::remove_dir_all(tree.at("a")).unwrap();
        assert!(changes.take(), "round {round}");
    }
}

#[test]
fn what_nothing_depends_on_is_watched_no_longer() {
    let (tree, (mut arming, mut changes)) = (Tree::new(), try_start().unwrap());
    fs::create_dir_all(tree.at("one/two")).unwrap();
    symlink("one/two/system", tree.at("system")).unwrap();
    symlink(store_path(1), tree.at("one/two/system")).unwrap();
    let above = tree.at("system").ancestors().skip(1).count();
    follow(&mut arming, &tree.roots("system"));
    assert_eq!(watches(&arming), (above + 2, above + 2));
    tree.switch("system", store_path(2));
    assert!(changes.take());
    follow(&mut arming, &tree.roots("system"));
    assert_eq!(watches(&arming), (above, above));
    tree.switch("one/two/system", store_path(3));
    assert!(!changes.take());
    arming.arm(&[]);
    assert_eq!(watches(&arming), (0, 0));
    // The kernel reports the end of each watch, which is no change.
    assert!(!changes.take());
}

#[test]
fn a_directory_comes_before_those_in_it() {
    let paths = ["/a/b/c", "/a-b/c", "/a/b/d", "/"].map(Path::new);
    let expected: [(&str, &[&str]); 4] =
        [("/", &["a", "a-b"]), ("/a", &["b"]), ("/a/b", &["c", "d"]), ("/a-b", &["c"])];
    let expected = expected.map(|(dir, names)| (Path::new(dir), names.iter().map(OsStr::new).collect()));
    let found: Vec<(&Path, BTreeSet<&OsStr>)> = names_by_directory(paths.into_iter()).into_iter().collect();
    assert_eq!(found, expected);
}

#[test]
fn a_reached_limit_is_named() {
    assert!(advice(Errno::MFILE).contains("fs.inotify.max_user_instances may be reached"));
    assert!(advice(Errno::NOSPC).contains("fs.inotify.max_user_watches is reached"));
    assert!(!advice(Errno::NOMEM).contains("limit"));
}

/// A place in the tree of a random case: up to three names of which each is one of two.
type Place = Vec<u8>;

/// What is done to the tree.
#[derive(Debug, Clone)]
enum Change {
    Directory(Place),
    Link(Place, Target),
    Remove(Place),
    Rename(Place, Place),
    Exchange(Place, Place),
}

#[derive(Debug, Clone)]
enum Target {
    Store(u32),
    Absolute(Place),
    Relative(Place),
    /// The place as seen from the directory above.
    Up(Place),
}

/// Changes; then the events are read, and if there are any the roots are followed, between the last changes.
type Round = (Vec<Change>, Vec<Change>);

fn place() -> impl Strategy<Value = Place> {
    proptest::collection::vec(0..2_u8, 1..4)
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => (0..3_u32).prop_map(Target::Store),
        2 => place().prop_map(Target::Absolute),
        2 => place().prop_map(Target::Relative),
        1 => place().prop_map(Target::Up),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => place().prop_map(Change::Directory),
        6 => (place(), target()).prop_map(|(at, target)| Change::Link(at, target)),
        2 => place().prop_map(Change::Remove),
        3 => (place(), place()).prop_map(|(from, to)| Change::Rename(from, to)),
        2 => (place(), place()).prop_map(|(from, to)| Change::Exchange(from, to)),
    ]
}

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 0..=most)
}

fn path(root: &Path, place: &Place) -> PathBuf {
    place.iter().fold(root.to_owned(), |path, name| path.join(["a", "system"][usize::from(*name)]))
}

/// Makes a change, as far as it is possible.
fn make(root: &Path, change: &Change) {
    let remove = |at: &Path| fs::remove_file(at).or_else(|_| fs::remove_dir_all(at));
    let _ = match change {
        Change::Directory(at) => fs::create_dir_all(path(root, at)),
        Change::Link(at, target) => {
            let target = match target {
                Target::Store(number) => store_path(*number),
                Target::Absolute(place) => path(root, place),
                Target::Relative(place) => path(Path::new(""), place),
                Target::Up(place) => path(Path::new(".."), place),
            };
            let (at, next) = (path(root, at), root.join("next"));
            symlink(target, &next).unwrap();
            fs::rename(&next, &at).or_else(|_| fs::remove_file(&next))
        }
        Change::Remove(at) => remove(&path(root, at)),
        Change::Rename(from, to) => fs::rename(path(root, from), path(root, to)),
        Change::Exchange(from, to) => rustix::fs::renameat_with(
            rustix::fs::CWD,
            path(root, from),
            rustix::fs::CWD,
            path(root, to),
            rustix::fs::RenameFlags::EXCHANGE,
        )
        .map_err(Into::into),
    };
}

/// Whatever is done to directories and links: when a path means something else than at the last arming, there is an
/// event. Some changes come between the following and the arming.
#[test]
fn no_change_of_meaning_goes_unreported() {
    let tree = Tree::new();
    let (root, roots) = (tree.at("tree"), tree.roots("tree/a"));
    let watch = RefCell::new(try_start().unwrap());
    let followed = Cell::new(0);
    let rounds = proptest::collection::vec((changes(2), changes(2)), 1..24);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(changes(12), rounds), |(before, rounds): (Vec<Change>, Vec<Round>)| {
        let (arming, changes) = &mut *watch.borrow_mut();
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        before.iter().for_each(|change| make(&root, change));
        let mut armed = follow(arming, &roots);
        // What is left of the case before.
        changes.take();
        for (before, meanwhile) in rounds {
            before.iter().for_each(|change| make(&root, change));
            let now = meaning(&follow_once(&roots));
            let reported = changes.take();
            prop_assert!(reported || now == armed, "{armed} became {now}, and there was no event");
            if reported {
                followed.set(followed.get() + usize::from(now != armed));
                let mut meanwhile = meanwhile.iter();
                armed = meaning(&arming.follow(|| {
                    let followed = follow_once(&roots);
                    meanwhile.by_ref().take(1).for_each(|change| make(&root, change));
                    followed
                }));
            }
        }
        Ok(())
    });
    result.unwrap();
    assert!(followed.get() > 100, "only {} changes of meaning", followed.get());
}

/// Whoever makes events without end, of names that matter to nobody as well, does not keep who reads them.
#[test]
fn a_flood_is_read_in_parts() {
    let tree = Tree::new();
    symlink(store_path(1), tree.at("system")).unwrap();
    let (mut arming, mut changes) = start().unwrap();
    let _ = follow(&mut arming, &tree.roots("system"));
    while readable(&changes) {
        changes.take();
    }
    // Fewer than fs.inotify.max_queued_events.
    for number in 0..4 * AT_ONCE {
        fs::write(tree.at(&format!("n{number}")), "").unwrap();
    }
    assert!(!changes.take(), "none of them matters");
    assert!(readable(&changes), "all were read at once");
    tree.switch("system", store_path(2));
    let mut parts = 1;
    while !changes.take() {
        parts += 1;
    }
    assert!(parts >= 3, "{parts}");
}
