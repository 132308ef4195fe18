//! Whose page cache holds what is read through a view.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::util;
use crate::util::cached::{evict, resident};
use crate::util::fixture::Fixture;
use crate::util::load;

/// With `--io passthrough` two views and the host use one copy of a file's pages, whoever read it.
#[test]
fn two_views_and_the_host_share_one_copy() {
    need!(Root, Fuse, Nix, Disk, Passthrough);
    let _undisturbed = load::keep_caches();
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

/// Names of one inode below have one cache in the view, so that an optimised store is as small there as on the host.
#[test]
fn hard_linked_files_are_cached_once() {
    need!(Root, Fuse, Nix);
    let _undisturbed = load::keep_caches();
    let scratch = util::scratch();
    let helper = util::compile("resident.c", scratch.path());
    let fixture = Fixture::new();
    fixture.store.nix("nix-store", ["--optimise"], b"");
    let view = fixture.mount();
    let data = view.path().join(&fixture.data.base);
    let (one, other) = (data.join("same"), data.join("same-again"));
    assert_eq!((resident(&helper, &one), resident(&helper, &other)), ((0, 1), (0, 1)));
    fs::read(&one).unwrap();
    assert_eq!(resident(&helper, &other), (1, 1), "read by its other name");
    for file in [&one, &other] {
        assert_eq!(file.metadata().unwrap().nlink(), 1, "how often it occurs is the host's affair");
    }
}

/// With `--io cached` what a view reads from a cold store is kept by the view alone.
#[test]
fn a_cached_view_leaves_no_second_copy_in_the_host() {
    need!(Root, Fuse, Nix, Disk, DontCache);
    let _undisturbed = load::keep_caches();
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
