//! Trees that a file system may stumble over: very deep ones, and every name that Linux allows.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::{directory, read};
use crate::util::program::Program;
use crate::util::store::NixStore;
use crate::util::tree;

const LEVELS: usize = 4000;

fn below(directory: &OwnedFd) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, "d", flags, Mode::empty()).unwrap()
}

/// Twice as deep as the longest path that a call takes: the bottom is reached level by level, and read.
#[test]
fn a_tree_of_four_thousand_levels() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let member = store.add_in_place("deep", &[], |at| fs::create_dir(at).unwrap());
    let physical = store.physical().join(&member.base);
    let mut at = directory(&physical);
    for _ in 0..LEVELS {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = below(&at);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let leaf = rustix::fs::openat(&at, "leaf", flags, Mode::RUSR).unwrap();
    rustix::io::write(&leaf, b"the bottom\n").unwrap();
    drop(leaf);

    let view = Program::on(&store).args(["--root", &member.path]).mount();
    let mut seen = directory(&view.path().join(&member.base));
    for _ in 0..LEVELS {
        seen = below(&seen);
    }
    assert_eq!(read(&seen, "leaf").unwrap(), b"the bottom\n");
    drop(seen);
    drop(view);

    // From the top, as no path is long enough, and what removes the scratch directory opens every level at once.
    rustix::fs::unlinkat(&at, "leaf", AtFlags::empty()).unwrap();
    drop(at);
    let (top, rest) = (physical.join("d"), store.root().join("rest"));
    for _ in 1..LEVELS {
        rustix::fs::renameat(CWD, top.join("d"), CWD, &rest).unwrap();
        fs::remove_dir(&top).unwrap();
        fs::rename(&rest, &top).unwrap();
    }
}

/// Every byte that a name may have, alone and together.
#[test]
fn names_of_all_bytes() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let member = store.add("bytes", &[], |at| {
        fs::create_dir(at).unwrap();
        let all = at.join(OsStr::from_bytes(&bytes));
        fs::create_dir(&all).unwrap();
        for byte in bytes.iter().filter(|byte| **byte != b'.') {
            let name = [*byte];
            fs::write(at.join(OsStr::from_bytes(&name)), name).unwrap();
            fs::create_dir(all.join(OsStr::from_bytes(&name))).unwrap();
            std::os::unix::fs::symlink(OsStr::from_bytes(&name), all.join(OsStr::from_bytes(&[b'l', *byte])))
                .unwrap();
        }
    });
    let view = Program::on(&store).args(["--root", &member.path]).mount();
    let real = tree::walk(&store.physical(), &member.base);
    assert_eq!(real.len(), 1 + 1 + 3 * (bytes.len() - 1));
    tree::assert_same(&real, &tree::walk(view.path(), &member.base));
}
