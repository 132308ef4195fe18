//! Whose page cache holds what is read through a view.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rustix::fs::Advice;

use crate::util;
use crate::util::fixture::Fixture;

/// How many pages of `file` are in memory for whoever maps it, and how many it has.
fn resident(helper: &Path, file: &Path) -> (usize, usize) {
    let output = Command::new(helper).arg(file).output().expect("the helper runs");
    assert!(output.status.success(), "{}: {output:?}", file.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn evict(file: &Path) {
    let file = File::open(file).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// With `--io passthrough` two views and the host use one copy of a file's pages, whoever read it.
#[test]
fn two_views_and_the_host_share_one_copy() {
    need!(Root, Fuse, Nix, Passthrough);
    let scratch = util::scratch();
    let helper = util::compile("resident.c", scratch.path());
    let fixture = Fixture::new();
    let mount = |io| fixture.program().args(["--io", io]).mount();
    let (one, two, cached) = (mount("passthrough"), mount("passthrough"), mount("cached"));
    let name = Path::new(&fixture.data.base).join("long");
    let host = fixture.store.physical().join(&name);
    let [one, two, cached] = [&one, &two, &cached].map(|view| view.path().join(&name));

    evict(&host);
    for file in [&host, &one, &two] {
        assert_eq!(resident(&helper, file).0, 0, "{} is not in memory yet", file.display());
    }
    fs::read(&one).unwrap();
    for file in [&host, &one, &two] {
        let (in_memory, pages) = resident(&helper, file);
        assert_eq!(in_memory, pages, "read through one view, {} is in memory", file.display());
    }
    assert_eq!(resident(&helper, &cached).0, 0, "a view with a cache of its own has not got it");

    evict(&host);
    assert_eq!((resident(&helper, &one).0, resident(&helper, &two).0), (0, 0), "one copy, and it is gone");
}

/// With `--io cached` what a view reads from a cold store is kept by the view alone.
#[test]
fn a_cached_view_leaves_no_second_copy_in_the_host() {
    need!(Root, Fuse, Nix, DontCache);
    let scratch = util::scratch();
    let helper = util::compile("resident.c", scratch.path());
    let fixture = Fixture::new();
    let view = fixture.mount();
    let name = Path::new(&fixture.data.base).join("long");
    let (host, seen) = (fixture.store.physical().join(&name), view.path().join(&name));
    evict(&host);
    fs::read(&seen).unwrap();
    let (in_memory, pages) = resident(&helper, &seen);
    assert_eq!(in_memory, pages);
    let (left, _) = resident(&helper, &host);
    assert!(left * 20 <= pages, "{left} of {pages} pages are in memory twice");
}
