//! Names of one file in an optimised store: each keeps working, whatever the kernel evicts of the others.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::util::load::evict_names;
use crate::util::mapped::Mapping;
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};

/// Names of one file, in directories of their own.
const NAMES: [&str; 4] = ["A/f", "B/f", "A2/f", "deep/er/still/f"];

/// The bytes of that file: several pages, no two alike.
fn contents() -> Vec<u8> {
    (0..50_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// A store with a store path in which [`NAMES`] are names of one file.
fn store() -> (NixStore, Member) {
    let store = NixStore::new();
    let linked = store.add("linked", &[], |path| {
        for name in NAMES {
            let name = path.join(name);
            fs::create_dir_all(name.parent().unwrap()).unwrap();
            fs::write(name, contents()).unwrap();
        }
        // Whoever looks one name up in a large directory need not list it.
        for number in 0..200 {
            fs::write(path.join("A").join(format!("n{number}")), number.to_string()).unwrap();
        }
    });
    store.nix("nix-store", ["--optimise"], b"");
    let links = store.physical().join(&linked.base).join(NAMES[0]).metadata().unwrap().nlink();
    assert!(links >= NAMES.len() as u64, "the store is not optimised: {links} links");
    (store, linked)
}

/// What a program keeps of a file.
enum Held {
    Open(File),
    Mapped(Mapping),
    /// Its place, to be opened later (`O_PATH`).
    Named(OwnedFd),
}

/// The same without the file.
#[derive(Clone, Copy, Debug)]
enum Way {
    Open,
    Mapped,
    Named,
}

impl Held {
    fn new(path: &Path, way: Way) -> std::io::Result<Self> {
        Ok(match way {
            Way::Open => Self::Open(File::open(path)?),
            Way::Mapped => Self::Mapped(Mapping::new(File::open(path)?, contents().len())?),
            Way::Named => Self::Named(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?),
        })
    }

    fn bytes(&self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Mapped(mapping) => mapping.bytes(),
            Self::Named(place) => fs::read(format!("/proc/self/fd/{}", place.as_raw_fd())),
            Self::Open(file) => {
                let mut bytes = vec![0; contents().len()];
                file.read_exact_at(&mut bytes, 0).map(|()| bytes)
            }
        }
    }
}

/// What is wrong with the names, and with the one that is held.
fn check(system: &Path, held: &Held, when: &str, wrong: &mut Vec<String>) {
    match held.bytes() {
        Ok(bytes) if bytes == contents() => {}
        Ok(_) => wrong.push(format!("{when}: the held file has other bytes")),
        Err(error) => wrong.push(format!("{when}: the held file: {error}")),
    }
    for name in NAMES {
        let path = system.join(name);
        match path.metadata().and_then(|meta| Ok((meta.len(), fs::read(&path)?))) {
            Ok((size, bytes)) if size == contents().len() as u64 && bytes == contents() => {}
            Ok((size, bytes)) => wrong.push(format!("{when}: {name}: size {size}, {} bytes", bytes.len())),
            Err(error) => wrong.push(format!("{when}: {name}: {error}")),
        }
    }
}

/// Holds each name in turn while the kernel evicts the name that was looked up first, with its directory.
fn evict_every_name(system: &Path, between: &mut dyn FnMut()) {
    let mut wrong = Vec::new();
    for (at, first) in NAMES.into_iter().enumerate() {
        // The name that is held, and the way back on the next round.
        for other in [NAMES[(at + 1) % NAMES.len()], NAMES[(at + NAMES.len() - 1) % NAMES.len()]] {
            for way in [Way::Open, Way::Mapped, Way::Named] {
                let when = format!("{first} first, {other} {way:?}");
                evict_names();
                // It may be out of reach already: then that is told below.
                let _known = system.join(first).metadata();
                let held = match Held::new(&system.join(other), way) {
                    Ok(held) => held,
                    Err(error) => {
                        wrong.push(format!("{when}: it cannot be held: {error}"));
                        continue;
                    }
                };
                for _ in 0..2 {
                    evict_names();
                }
                between();
                check(system, &held, &when, &mut wrong);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} answers are wrong, first:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
}

fn every_name_keeps_working(io: &str) {
    let (store, linked) = store();
    let view = Program::on(&store).args(["--system", &linked.path, "--io", io]).mount();
    evict_every_name(&view.path().join(&linked.base), &mut || ());
}

/// The kernel evicts a name and its directory while another name of the file is in use: all names keep working.
#[test]
fn names_of_one_file_keep_working_when_one_is_evicted_with_io_cached() {
    need!(Root, Fuse, Nix);
    every_name_keeps_working("cached");
}

/// The same when the kernel reads the files itself.
#[test]
fn names_of_one_file_keep_working_when_one_is_evicted_with_io_passthrough() {
    need!(Root, Fuse, Nix, Passthrough);
    every_name_keeps_working("passthrough");
}

/// The same when the server is killed after the eviction: its successor knows the file by the name that is left.
#[test]
fn names_of_one_file_keep_working_after_a_killed_server() {
    need!(Root, Fuse, Nix);
    let (store, linked) = store();
    let mut service = Service::new(&store).with(["--system", &linked.path]);
    service.start_ready();
    let system = service.path().join(&linked.base);
    let mut kills = 0;
    evict_every_name(&system, &mut || {
        service.kill(Victim::Server);
        kills += 1;
    });
    assert!(kills > 0);
    service.stop();
}
