//! Names that are exchanged while they are read: however the two race, nothing comes from outside the member.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use super::{directory, read};
use crate::util::fixture::Fixture;
use crate::util::number;
use crate::util::service::Service;
use crate::util::tree;

/// How often a name is read while it is exchanged; 100,000 by hand.
fn races() -> u64 {
    number("NSF_RACES", 2000)
}

const INSIDE: &[u8] = b"inside\n";
const OUTSIDE: &str = "outside\n";

/// Reads `read` again and again while `change` is made again and again. Returns how many readers got the bytes of the
/// member, and how many an error.
fn race(
    change: impl Fn() + Sync,
    read: impl Fn() -> io::Result<Vec<u8>> + Sync,
    is_right: impl Fn(&[u8]) -> bool + Sync,
) -> (u64, u64) {
    let (over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut right, mut errors) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                change();
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        // However the test ends.
        let _stop = Stop(&over);
        let wanted = races();
        while right + errors < wanted || changes.load(Ordering::Relaxed) < wanted.min(100) {
            match read() {
                Ok(bytes) => {
                    assert!(is_right(&bytes), "{}", String::from_utf8_lossy(&bytes));
                    right += 1;
                }
                Err(_) => errors += 1,
            }
        }
    });
    (right, errors)
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn exchange(one: &Path, other: &Path) {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// A directory or a file, against a link that leads out of the store, into another store path that is not in the closure, and
/// against what cannot be read without waiting.
#[test]
fn what_is_read_is_never_from_outside() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let elsewhere = crate::util::scratch();
    let outside = fixture.store.add("neighbour", &[], |at| {
        fs::create_dir(at).unwrap();
        fs::write(at.join("leaf"), OUTSIDE).unwrap();
    });
    fs::write(elsewhere.path().join("leaf"), OUTSIDE).unwrap();
    let leaf = elsewhere.path().join("leaf");
    let neighbour = format!("../{}", outside.base);
    let neighbour_leaf = format!("../{}/leaf", outside.base);
    let physical = fixture.store.physical().join(&fixture.data.base);

    // Nothing of it is settled: the kernel asks for each name each time.
    fs::create_dir(physical.join("dir")).unwrap();
    fs::write(physical.join("dir/leaf"), INSIDE).unwrap();
    fs::write(physical.join("file"), INSIDE).unwrap();
    symlink(elsewhere.path(), physical.join("dir-out")).unwrap();
    symlink(&neighbour, physical.join("dir-beside")).unwrap();
    symlink(&leaf, physical.join("file-out")).unwrap();
    symlink(&neighbour_leaf, physical.join("file-beside")).unwrap();
    rustix::fs::mknodat(CWD, physical.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    rustix::fs::mknodat(
        CWD,
        physical.join("zero"),
        FileType::CharacterDevice,
        Mode::RUSR,
        rustix::fs::makedev(1, 5),
    )
    .unwrap();

    for io in ["cached", "passthrough"] {
        let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path, "--io", io]);
        service.start_ready();
        let server = service.server();
        let top = directory(&service.path().join(&fixture.data.base));
        let mut seen = (0, 0);
        for (mine, theirs, path) in [
            ("dir", "dir-out", "dir/leaf"),
            ("dir", "dir-beside", "dir/leaf"),
            ("file", "file-out", "file"),
            ("file", "file-beside", "file"),
            ("file", "pipe", "file"),
            ("file", "zero", "file"),
        ] {
            let change = || {
                exchange(&physical.join(mine), &physical.join(theirs));
                exchange(&physical.join(mine), &physical.join(theirs));
            };
            let (right, errors) = race(change, || read(&top, path), |bytes| bytes == INSIDE);
            seen = (seen.0 + right, seen.1 + errors);
            assert_eq!(read(&top, path).unwrap(), INSIDE, "{path} against {theirs}, when all is over");
        }
        assert!(seen.0 > 0 && seen.1 > 0, "nothing raced: {seen:?}");
        assert_eq!(service.server(), server, "the server had to be replaced");
        service.stop();
    }
}

/// A file that is cut and written again gives bytes that it had, zeros, or an error: never those of another file, and the
/// reader of a mapping or the server is not killed by it.
#[test]
fn a_file_that_shrinks_while_it_is_read_gives_no_foreign_bytes() {
    need!(Root, Fuse, Nix);
    const SIZE: usize = 1 << 20;
    let fixture = Fixture::new();
    let at = fixture.store.physical().join(&fixture.data.base).join("shrinking");
    let full = vec![b'a'; SIZE];
    fs::write(&at, &full).unwrap();
    let file = File::options().write(true).open(&at).unwrap();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let server = service.server();
    let top = directory(&service.path().join(&fixture.data.base));
    let change = || {
        for length in [SIZE / 2 + 17, 0, 4096] {
            file.set_len(length as u64).unwrap();
        }
        file.write_all_at(&full, 0).unwrap();
    };
    let is_right = |bytes: &[u8]| bytes.len() <= SIZE && bytes.iter().all(|byte| matches!(byte, b'a' | 0));
    race(change, || read(&top, "shrinking"), is_right);
    assert_eq!(service.server(), server, "the server had to be replaced");
    // Finished, it is read as it is.
    crate::util::store::canonicalise(&at);
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}
