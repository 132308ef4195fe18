//! Readers of several kinds, and a thread that brings as it is told, in a store of numbered files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

/// Directories of so many files each, in a root.
const FILES: usize = 20;

/// The store: `NNN/NN`, of which some files are in memory, and none.
struct World {
    walks: Walks,
    cursors: BTreeMap<u64, Cursor>,
    directories: usize,
    size: u64,
    warm: bool,
    /// What lies in the store's cache because it was brought.
    brought: BTreeSet<Box<[u8]>>,
    bytes: u64,
    /// Whether the thread does something as soon as it is woken.
    is_fast: bool,
    bringing: usize,
    most: usize,
    hits: usize,
}

impl Tree for &World {
    fn list(&mut self, dir: &[u8]) -> Option<Vec<Listed>> {
        let names =
            |count, kind| (0..count).map(move |at| (format!("{at:03}").into_bytes().into(), kind)).collect();
        match dir {
            b"" => Some(names(self.directories, Kind::Unknown)),
            dir if dir.contains(&b'/') => None,
            _ => Some(names(FILES, Kind::File)),
        }
    }
}

fn file(number: usize) -> Box<[u8]> {
    format!("{:03}/{:03}", number / FILES, number % FILES).into_bytes().into()
}

impl World {
    fn new(directories: usize) -> Self {
        Self {
            walks: Walks::default(),
            cursors: BTreeMap::new(),
            directories,
            size: 4096,
            warm: false,
            brought: BTreeSet::new(),
            bytes: 0,
            is_fast: true,
            bringing: 0,
            most: 0,
            hits: 0,
        }
    }

    fn read(&mut self, number: usize) {
        let path = file(number);
        self.hits += usize::from(self.brought.contains(&path));
        if self.walks.read(&path) == Wake::Now && self.is_fast {
            self.work();
        }
    }

    fn work(&mut self) {
        while let Some(job) = self.walks.job() {
            match job {
                Job::Drop(path, bytes) => {
                    assert!(self.brought.remove(&path), "{path:?} dropped twice, or never brought");
                    assert_eq!(bytes, self.size);
                    self.bytes -= bytes;
                }
                Job::Bring { walk, behind, order, .. } => {
                    let mut cursor =
                        self.cursors.remove(&walk.0).unwrap_or_else(|| Cursor::behind(&behind, order));
                    match cursor.next(&mut &*self) {
                        Next::File(path) if self.walks.expect(walk, &path) => {
                            self.bringing += 1;
                            let found = if self.warm { Found::Warm } else { Found::Cold(self.size) };
                            if !self.warm {
                                assert!(self.brought.insert(path.clone()), "{path:?} brought twice");
                                self.bytes += self.size;
                            }
                            self.walks.brought(walk, &path, found);
                        }
                        Next::File(_) | Next::Later => {}
                        Next::End => self.walks.at_end(walk),
                    }
                    self.cursors.insert(walk.0, cursor);
                }
            }
            self.most = self.most.max(self.brought.len());
        }
    }

    fn end(&mut self) {
        self.walks.quiet();
        self.walks.quiet();
        self.work();
    }
}

#[test]
fn of_a_walk_all_but_the_first_files_are_there_before_they_are_read() {
    let mut world = World::new(50);
    (0..50 * FILES).for_each(|number| world.read(number));
    assert_eq!(world.hits, 50 * FILES - RUN as usize);
    assert!(world.most <= WINDOW.end() * 2 + 2, "{}", world.most);
    world.end();
    assert_eq!((world.brought.len(), world.walks.is_any()), (0, false));
}

#[test]
fn large_files_are_limited_by_their_bytes() {
    let mut world = World::new(5);
    world.size = 1 << 20;
    for number in 0..5 * FILES {
        world.read(number);
        assert!(world.bytes <= 5 << 20, "{}", world.bytes);
    }
    assert_eq!(world.hits, 5 * FILES - RUN as usize);
}

#[test]
fn two_walks_at_once_are_both_followed() {
    let mut world = World::new(100);
    for number in 0..40 * FILES {
        world.read(number);
        world.read(50 * FILES + number);
    }
    assert_eq!(world.hits, 2 * (40 * FILES - RUN as usize));
    world.end();
    assert_eq!(world.brought.len(), 0);
}

/// As the threads of one program that take the next few names of one list.
#[test]
fn a_walk_that_threads_share_is_brought_once() {
    let mut world = World::new(50);
    for batch in (0..40 * FILES).step_by(32) {
        for number in batch..batch + 16 {
            world.read(number);
            world.read(number + 16);
        }
    }
    let all = 40 * FILES;
    assert!(world.hits > all * 9 / 10, "{} of {all}", world.hits);
    assert!(world.bringing < all + 100, "{} of {all}", world.bringing);
    world.end();
    assert_eq!(world.brought.len(), 0);
}

#[test]
fn where_all_is_in_memory_hardly_anything_is_looked_at() {
    let mut world = World::new(300);
    world.warm = true;
    (0..300 * FILES).for_each(|number| world.read(number));
    assert!(world.bringing <= 15 * WARM as usize, "{}", world.bringing);
    // What turns cold is found again.
    world.warm = false;
    (0..300 * FILES).for_each(|number| world.read(number));
    assert!(world.hits > 200 * FILES, "{}", world.hits);
}

#[test]
fn a_walk_with_files_first_is_followed_once_it_is_known() {
    struct Mixed;
    impl Tree for Mixed {
        fn list(&mut self, dir: &[u8]) -> Option<Vec<Listed>> {
            let depth = if dir.is_empty() { 0 } else { dir.split(|byte| *byte == b'/').count() };
            let kind = |at| if at % 2 == 0 { Kind::Directory } else { Kind::File };
            let name = |at: i32| format!("{at:02}").into_bytes().into();
            match depth {
                0 => Some((0..8).map(|at| (name(at), Kind::Directory)).collect()),
                1 => Some((0..60).map(|at| (name(at), kind(at))).collect()),
                2 => Some((0..2).map(|at| (name(at), Kind::File)).collect()),
                _ => None,
            }
        }
    }
    for order in [Order::InTurn, Order::FilesFirst] {
        let mut all = Cursor::behind(b"00/00/00", order);
        let (mut walks, mut cursors) = (Walks::default(), HashMap::new());
        let (mut there, mut hits, mut read) = (BTreeSet::new(), 0, 0);
        loop {
            let path = match all.next(&mut Mixed) {
                Next::File(path) => path,
                Next::Later => continue,
                Next::End => break,
            };
            read += 1;
            hits += usize::from(there.contains(&path));
            let _always = walks.read(&path);
            while let Some(job) = walks.job() {
                let Job::Bring { walk, behind, order, .. } = job else { continue };
                let cursor = cursors.entry(walk).or_insert_with(|| Cursor::behind(&behind, order));
                match cursor.next(&mut Mixed) {
                    Next::File(path) if walks.expect(walk, &path) => {
                        walks.brought(walk, &path, Found::Cold(1));
                        there.insert(path);
                    }
                    Next::File(_) | Next::Later => {}
                    Next::End => walks.at_end(walk),
                }
            }
        }
        assert!(hits * 10 > read * 9, "{order:?}: {hits} of {read}");
    }
}

/// A disk that fails, or a tree of empty files: nobody looks through all of it for a reader who is not there.
#[test]
fn where_nothing_is_found_the_search_ends_until_somebody_reads() {
    let mut walks = Walks::default();
    for number in 0..RUN as usize {
        let _ = walks.read(&file(number));
    }
    let mut names = (RUN as usize..).map(file);
    let mut search = |walks: &mut Walks, found: &dyn Fn(usize) -> Found| {
        let mut looked = 0;
        while let Some(Job::Bring { walk, .. }) = walks.job() {
            let path = names.next().unwrap();
            assert!(looked < 10_000, "still looking");
            if walks.expect(walk, &path) {
                walks.brought(walk, &path, found(looked));
            }
            looked += 1;
        }
        looked
    };
    let first = search(&mut walks, &|at| if at == 0 { Found::Cold(1) } else { Found::Nothing });
    assert!(first > 8, "{first}");
    assert_eq!(walks.job(), None);
    // The one file that is there is read.
    assert_eq!(walks.read(&file(RUN as usize)), Wake::Now);
    assert!(search(&mut walks, &|_| Found::Nothing) > 8);
    let walk = walks.walks.iter().flatten().next().unwrap().id;
    let _ = walks.read(&file(RUN as usize));
    let steps = (0..10_000).take_while(|_| {
        let is_looking = matches!(walks.job(), Some(Job::Bring { .. }));
        walks.found_no_file(walk);
        is_looking
    });
    assert!(steps.count() < 10_000, "directories without a file");
}

/// Empty files are never read, and of some the kernel has the pages.
#[test]
fn files_that_are_passed_by_do_not_end_a_walk() {
    let mut world = World::new(100);
    let read: Vec<usize> = (0..100 * FILES).filter(|number| number % 7 < 4).collect();
    read.iter().for_each(|number| world.read(*number));
    assert!(world.hits + 30 > read.len(), "{} of {}", world.hits, read.len());
    world.end();
    assert_eq!(world.brought.len(), 0);
}

proptest! {
    /// Who reads at random is hardly ever taken for one who walks, and what is brought for nothing is dropped.
    #[test]
    fn a_random_reader_costs_little(order in Just((0..100 * FILES).collect::<Vec<_>>()).prop_shuffle()) {
        let mut world = World::new(100);
        order.iter().for_each(|number| world.read(*number));
        prop_assert!(world.bringing <= order.len() / 10, "{} for {}", world.bringing, order.len());
        world.end();
        prop_assert_eq!(world.brought.len(), 0);
    }

    /// Whatever is read in whatever order, with a thread that works now and then: what is remembered is bounded, and all that
    /// was brought is dropped, once.
    #[test]
    fn any_readers_leave_nothing(
        steps in prop::collection::vec((0..3_usize, 0..60_usize, prop::bool::weighted(0.3)), 0..600),
        size in 1..(1_u64 << 20),
    ) {
        let mut world = World::new(30);
        (world.size, world.is_fast) = (size, false);
        let mut at = [0, 200, 400];
        for (reader, jump, works) in steps {
            at[reader] = if jump < 50 { at[reader] + 1 } else { jump * 10 } % (30 * FILES);
            world.read(at[reader]);
            if works {
                world.work();
            }
            let kept = world.walks.walks.iter().flatten().map(|walk| walk.files.len()).sum::<usize>();
            prop_assert!(kept <= 2 * (BEHIND + WINDOW.end() + 1), "{kept}");
        }
        world.end();
        prop_assert_eq!((world.brought.len(), world.bytes), (0, 0));
    }
}
