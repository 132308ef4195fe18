//! Kinds of entries that a store may hold and a file system may stumble over.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::util::program::Program;
use crate::util::store::NixStore;
use crate::util::tree;

/// A system that is a plain file, and one that is a link, are served as that.
#[test]
fn a_store_path_need_not_be_a_directory() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let file = store.add("file", &[], |path| fs::write(path, "contents\n").unwrap());
    let link = store.add("link", &[&file], |path| std::os::unix::fs::symlink(&file.base, path).unwrap());
    let view = Program::on(&store).args(["--system", &link.path]).mount();
    assert_eq!(fs::read_to_string(view.path().join(&file.base)).unwrap(), "contents\n");
    assert_eq!(fs::read_to_string(view.path().join(&link.base)).unwrap(), "contents\n", "through the link");
    for member in [&file, &link] {
        tree::assert_same(
            &tree::walk(&store.physical(), &member.base),
            &tree::walk(view.path(), &member.base),
        );
    }
    let alone = Program::on(&store).args(["--system", &file.path]).mount();
    assert_eq!(tree::list(alone.path()).unwrap(), [std::path::PathBuf::from(&file.base)]);
}

/// 100,000 names in one directory: all listed, each once, and found, before the listing as after it.
#[test]
fn a_directory_of_a_hundred_thousand_entries() {
    need!(Root, Fuse, Nix);
    const ENTRIES: usize = 100_000;
    let name = |number: usize| format!("an entry with a name of some length, number {number:06}");
    let store = NixStore::new();
    let wide = store.add_in_place("wide", &[], |path| {
        fs::create_dir(path).unwrap();
        for number in 0..ENTRIES {
            File::create(path.join(name(number))).unwrap();
        }
    });
    let view = Program::on(&store).args(["--system", &wide.path]).mount();
    let directory = view.path().join(&wide.base);
    assert!(directory.join(name(ENTRIES - 1)).symlink_metadata().is_ok());
    for _ in 0..2 {
        let listed = tree::list(&directory).unwrap();
        assert_eq!(listed.len(), ENTRIES);
        assert!(listed.iter().enumerate().all(|(number, found)| found.as_os_str() == name(number).as_str()));
    }
    assert!(directory.join(name(ENTRIES)).symlink_metadata().is_err());
    for number in (0..ENTRIES).step_by(997) {
        assert!(directory.join(name(number)).symlink_metadata().unwrap().is_file());
    }
}

/// Offsets beyond 32 bits reach the right bytes.
#[test]
fn a_file_over_four_gibibytes() {
    need!(Root, Fuse, Nix);
    const END: u64 = (5 << 30) + 17;
    let marks = [0, (1 << 31) - 3, (1 << 32) - 3, (1 << 32) + 4096, END - 6];
    let store = NixStore::new();
    let big = store.add_in_place("big", &[], |path| {
        let file = File::create(path).unwrap();
        file.set_len(END).unwrap();
        for (mark, offset) in (b'a'..).zip(marks) {
            file.write_all_at(&[mark; 6], offset).unwrap();
        }
    });
    let view = Program::on(&store).args(["--system", &big.path]).mount();
    let file = File::open(view.path().join(&big.base)).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.size(), END);
    for (mark, offset) in (b'a'..).zip(marks) {
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, [mark; 6], "at {offset}");
    }
    let mut bytes = [1; 4096];
    file.read_exact_at(&mut bytes, 3 << 30).unwrap();
    assert_eq!(bytes, [0; 4096], "in a hole");
    assert_eq!(file.read_at(&mut bytes, END - 6).unwrap(), 6, "a read over the end");
    assert_eq!(file.read_at(&mut bytes, END).unwrap(), 0, "a read at the end");
}

/// A name of 255 bytes is found, one of 256 is an error of its own kind, as on any file system.
#[test]
fn the_longest_names() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let names = store.add("names", &[], |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("n".repeat(255)), "long").unwrap();
    });
    let view = Program::on(&store).args(["--system", &names.path]).mount();
    for directory in [view.path().join(&names.base), store.physical().join(&names.base)] {
        assert_eq!(fs::read(directory.join("n".repeat(255))).unwrap(), b"long");
        let error = directory.join("n".repeat(256)).symlink_metadata().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
    }
}

/// A member that is registered but gone from disk: ENOENT there, one warning names it, the rest is served.
#[test]
fn a_member_gone_from_disk() {
    need!(Root, Fuse, Nix);
    let fixture = crate::util::fixture::Fixture::new();
    fs::remove_file(fixture.store.physical().join(&fixture.file.base)).unwrap();
    let mut view = fixture.mount();
    for _ in 0..3 {
        let error = view.path().join(&fixture.file.base).symlink_metadata().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
    for base in fixture.members().iter().filter(|base| **base != fixture.file.base) {
        tree::assert_same(&tree::walk(&fixture.store.physical(), base), &tree::walk(view.path(), base));
    }
    view.signal(rustix::process::Signal::TERM);
    assert_eq!(view.end().code(), Some(0));
    let said = view.stderr();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains(&fixture.file.base)).collect();
    assert_eq!(warnings.len(), 1, "exactly one warning names it: {said}");
}
