//! Names that a reload withdrew, asked for through listings that began before it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{RawDir, SeekFrom};

use crate::util::systems::Systems;
use crate::util::{service::Service, tree};

/// Switches in a position of the root's listing (`src/view/root.rs`): 7 bits above 24 that number the entry.
const SWITCHES: u64 = 128;

/// Whatever position a container asks for, a listing brings back nothing that was withdrawn.
#[test]
fn no_listing_of_an_earlier_set_brings_a_name_back() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(4);
    let mut service = systems.service().with(["--prune"]);
    service.start_ready();
    let begun = File::open(service.path()).unwrap();
    let mut overtaken = File::open(service.path()).unwrap();
    let mut ever: BTreeSet<PathBuf> = BTreeSet::new();
    for round in 1..8 {
        ever.extend(systems.names((round - 1) % 4));
        // One that a reload overtakes, in its middle.
        let first = entries(&overtaken, 512);
        assert!(!first.is_empty());
        systems.select(round % 4);
        service.reload_well();
        while !entries(&overtaken, 512).is_empty() {}
        overtaken = File::open(service.path()).unwrap();
        for at in (0..SWITCHES).flat_map(|switch| [0, 1, 2, 30].map(|number| switch << 24 | number)) {
            rustix::fs::seek(&begun, SeekFrom::Start(at)).unwrap();
            while !entries(&begun, 8192).is_empty() {}
        }
        only_these(&service, &ever, &systems.names(round % 4));
    }
    service.stop();
}

/// Of all names that `ever` were shown, exactly the `present` ones can be looked up and opened, also below.
fn only_these(service: &Service, ever: &BTreeSet<PathBuf>, present: &BTreeSet<PathBuf>) {
    for name in ever.difference(present) {
        for path in [name.clone(), name.join("number")].map(|path| service.path().join(path)) {
            let errors = [path.symlink_metadata().map(drop), File::open(&path).map(drop)];
            for error in errors.map(|answer| answer.map_err(|error| error.kind())) {
                assert_eq!(error, Err(ErrorKind::NotFound), "{}", path.display());
            }
        }
    }
    let listed: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();
    assert_eq!(listed, *present);
}

/// What one getdents64(2) with room for `room` bytes tells; nothing at the end.
fn entries(directory: &File, room: usize) -> Vec<PathBuf> {
    let mut buffer = vec![MaybeUninit::uninit(); room];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        names.push(Path::new(std::ffi::OsStr::from_bytes(entry.unwrap().file_name().to_bytes())).to_owned());
        if listing.is_buffer_empty() {
            break;
        }
    }
    names
}
