//! The view under a model of the kernel, with generated orders of events.
//!
//! The model keeps what Linux keeps (`fs/fuse/dir.c`, `inode.c`, `readdir.c`, `fs/dcache.c`): inodes with the number of
//! times they were told, dentries that pin their parents, open files and directories, files opened by handle that
//! pin no dentry, absences that are cached, replies that have not been taken in yet, and FORGETs that have not been
//! delivered. The host has its own part: calls on the store fail, a store path is damaged and repaired in steps, the
//! optimiser links files. Every answer is compared with a real directory tree, and at the end, with everything
//! forgotten, the trie has to be empty again.
//!
//! `NSF_CASES` sets the number of sequences (`scripts/stress --model` runs the long form).

mod host;
mod kernel;
mod requests;
mod steps;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

use host::make_tree;
use kernel::Kernel;
use steps::{Host, steps};

fn cases(default: u32, host: Host) -> Config {
    let asked: Option<u32> = std::env::var("NSF_CASES").ok().and_then(|text| text.parse().ok());
    // A host that changes needs a tree of its own for each sequence, which takes ten times as long.
    let cases = asked.map_or(default, |cases| if host.changes > 0 { cases / 10 } else { cases });
    let failure_persistence = Some(Box::new(FileFailurePersistence::Off) as _);
    Config { cases, failure_persistence, max_shrink_iters: 20_000, ..Config::default() }
}

fn check(default: u32, host: Host) {
    let store = tempfile::tempdir().unwrap();
    make_tree(store.path());
    proptest!(cases(default, host), |(history in steps(host))| {
        let mut kernel = Kernel::new(store.path(), host.changes > 0);
        for step in &history {
            kernel.run(step)?;
        }
        kernel.finish()?;
    });
}

/// In any order of what the kernel may do, what it holds can be reached and is what it was; one file has one inode; and
/// what it has forgotten takes no room.
#[test]
fn whatever_the_kernel_holds_stays_reachable() {
    check(400, Host { faults: 0, changes: 0 });
}

/// An error of the host is an error of the request, is cached by nobody and counts no node: the next request is right.
#[test]
fn a_fault_of_the_host_is_an_error_and_over_when_it_is_over() {
    check(400, Host { faults: 25, changes: 0 });
}

/// While a store path is damaged, repaired or optimised the view shows what is there, and nothing of what is half there is
/// cached.
#[test]
fn a_store_path_that_changes_is_shown_as_it_is() {
    check(120, Host { faults: 0, changes: 2 });
    check(60, Host { faults: 10, changes: 2 });
}
