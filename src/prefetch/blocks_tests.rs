use std::fs::File;
use std::os::fd::AsFd;

use super::*;
use crate::prefetch::plan::Rest;
use crate::sys::cached::overlay::over_an_overlay;
use crate::sys::cached::{QUESTION, cached_pages};
use crate::view::trace::records::{PAGE, Pages};

/// Bytes of each file, of which none is written.
const LARGE: u64 = 8 << 30;

/// Asks for all of `files` files in the store `dir`, and each by ranges that are longer than it.
fn plan(dir: &std::path::Path, files: usize, size: u64) -> Plan {
    let step = |number: usize| {
        let name = number.to_string();
        File::create(dir.join(&name)).unwrap().set_len(size).unwrap();
        let most = |part: u64| Pages { first: part << 33, count: u32::MAX };
        Step::Read { path: name.into_bytes(), ranges: (0..64).map(most).collect() }
    };
    let bytes = (0..files).map(step).collect();
    Plan { blocks: Vec::new(), names: Vec::new(), bytes, members: Vec::new(), rest: Rest::Nothing }
}

fn asked(blocks: &Blocks<'_>) -> u64 {
    blocks.asked.load(Ordering::SeqCst)
}

fn served(blocks: &Blocks<'_>) -> u64 {
    blocks.served.as_ref().unwrap().load(Ordering::SeqCst)
}

#[test]
fn of_a_file_no_more_is_brought_than_may_be_ahead_and_it_ends_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, store) = (plan(dir.path(), 1, LARGE), File::open(dir.path()).unwrap());
    let blocks = Blocks::new(&plan, store.as_fd(), true, u64::MAX);
    std::thread::scope(|scope| {
        scope.spawn(|| blocks.work());
        while asked(&blocks) < AHEAD {
            std::thread::yield_now();
        }
        blocks.stop();
    });
    assert!(asked(&blocks) <= AHEAD + QUESTION, "{} bytes", asked(&blocks));
}

#[test]
fn of_a_file_no_more_is_brought_than_the_budget_has() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, store) = (plan(dir.path(), 3, LARGE), File::open(dir.path()).unwrap());
    let blocks = Blocks::new(&plan, store.as_fd(), false, AHEAD);
    blocks.work();
    assert!(blocks.is_done());
    // The piece that was refused is counted as well.
    assert!(asked(&blocks) <= AHEAD + 2 * QUESTION, "{} bytes", asked(&blocks));
}

#[test]
fn what_the_view_has_got_first_is_not_brought() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, store) = (plan(dir.path(), 4, QUESTION), File::open(dir.path()).unwrap());
    let blocks = Blocks::new(&plan, store.as_fd(), true, u64::MAX);
    let mut below = Below::new(store.as_fd());
    blocks.served(&mut below, 1);
    blocks.leave(2);
    blocks.work();
    assert_eq!(asked(&blocks), 2 * QUESTION);
    // The first one, which is left when users are elsewhere, keeps nobody from what is ahead of the view.
    blocks.jump(3);
    assert_eq!(served(&blocks), 2 * QUESTION);
    blocks.served(&mut below, 0);
    assert_eq!(served(&blocks), 2 * QUESTION, "no byte counts twice");
}

/// As for who reads ahead of a walk: there the pages are the lower file system's, and what is dropped may be somebody else's.
#[test]
fn what_others_have_cached_stays_where_nobody_can_tell_whether_it_is_cached() {
    const SIZE: u64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), 1, SIZE);
    let file = File::options().read(true).write(true).open(dir.path().join("0")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![b'x'; SIZE as usize], 0).unwrap();
    file.sync_all().unwrap();
    let pages = Pages { first: 0, count: 74 };
    plan.bytes = vec![Step::Read { path: b"0".to_vec(), ranges: [pages].into_iter().collect() }];
    over_an_overlay(dir.path(), |merged| {
        let store = File::open(merged).unwrap();
        let blocks = Blocks::new(&plan, store.as_fd(), true, u64::MAX);
        blocks.work();
        blocks.served(&mut Below::new(store.as_fd()), 0);
        if let Ok(pages) = cached_pages(&file, 0, SIZE) {
            assert_eq!(pages, SIZE.div_ceil(PAGE));
        }
    });
}
