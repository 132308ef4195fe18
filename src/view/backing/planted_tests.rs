//! What somebody has put in the place of a file that was looked up: it is neither opened nor read.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::tests::{backing, place};
use super::*;

/// Makes something at this path. False: that takes rights that the test has not.
type Plant = fn(&Path) -> bool;

const PLANTS: [(&str, Plant); 6] = [
    ("pipe", |at| rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).is_ok()),
    ("socket", |at| UnixListener::bind(at).is_ok()),
    // No driver has this number (Documentation/admin-guide/devices.txt): to open it is an error of its own, ENXIO.
    ("character device", |at| {
        let device = rustix::fs::makedev(120, 5);
        rustix::fs::mknodat(CWD, at, FileType::CharacterDevice, Mode::RUSR, device).is_ok()
    }),
    ("block device", |at| {
        let device = rustix::fs::makedev(120, 5);
        rustix::fs::mknodat(CWD, at, FileType::BlockDevice, Mode::RUSR, device).is_ok()
    }),
    ("directory", |at| std::fs::create_dir(at).is_ok()),
    ("link", |at| symlink("../outside", at).is_ok()),
];

/// Whatever it is, a reader is told that the file is not there any more, and not what opening it gives: for a pipe the
/// end of the file, for a device what its driver does at an open.
#[test]
fn what_was_put_in_the_place_of_a_file_is_not_opened() {
    for (name, plant) in PLANTS {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("outside"), b"outside").unwrap();
        let at = dir.path().join("d/f");
        std::fs::write(&at, b"inside").unwrap();
        let [kept, fresh] = [(); 2].map(|()| backing(dir.path()));
        let place = place(b"d", b"f");
        let mut buffer = [0; 64];
        assert_eq!(kept.read(NodeId(9), place, 0, &mut buffer).unwrap().len, 6);
        std::fs::remove_file(&at).unwrap();
        if !plant(&at) {
            continue;
        }
        for backing in [&kept, &fresh] {
            let stale = BackingError::Host(Errno::STALE);
            assert_eq!(backing.read(NodeId(9), place, 0, &mut buffer), Err(stale), "{name}");
            assert_eq!(backing.seek(NodeId(9), place, 0, false), Err(stale), "{name}");
            assert_eq!(backing.file(NodeId(9), place).map(drop), Err(stale), "{name}");
        }
        // Not even for a moment: whoever opens a pipe for writing without waiting is told that nobody reads.
        if name == "pipe" {
            let writing = rustix::fs::open(&at, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
            assert_eq!(writing.unwrap_err(), Errno::NXIO);
        }
    }
}

/// Between the look at a name and its opening, too: then it was opened, without waiting, and nothing is read of it.
#[test]
fn what_was_put_there_at_the_last_moment_is_not_read() {
    for (name, plant) in PLANTS {
        for moment in 0..6 {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("d")).unwrap();
            std::fs::write(dir.path().join("outside"), b"outside").unwrap();
            let at = dir.path().join("d/f");
            std::fs::write(&at, b"inside").unwrap();
            let backing = backing(dir.path());
            let exchange = move || {
                std::fs::remove_file(&at).unwrap();
                plant(&at);
            };
            let mut buffer = [0; 64];
            let read = || backing.read(NodeId(9), place(b"d", b"f"), 0, &mut buffer);
            match faults::happening(moment, exchange, read).0 {
                Ok(read) => assert_eq!(buffer[..read.len], *b"inside", "{name} {moment}"),
                // A socket or a device without a driver cannot be opened, nor a link.
                Err(BackingError::Host(Errno::STALE | Errno::NXIO | Errno::LOOP)) => {}
                Err(error) => {
                    assert!(matches!(error, BackingError::Absent { .. }), "{name} {moment}: {error}")
                }
            }
        }
    }
}
