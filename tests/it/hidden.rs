//! A path outside the closure cannot be told from one that exists nowhere, and the root tells nothing of the host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::util::fixture::Fixture;
use crate::util::store::NixStore;
use crate::util::tree;

/// What each way of asking for a path answers.
fn ask(path: &Path) -> Vec<(&'static str, Option<Errno>)> {
    fn errno<T>(result: rustix::io::Result<T>) -> Option<Errno> {
        result.err()
    }
    let mode = Mode::empty();
    vec![
        ("lstat", errno(rustix::fs::lstat(path))),
        ("stat", errno(rustix::fs::stat(path))),
        ("statx", errno(rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::ALL))),
        ("statfs", errno(rustix::fs::statfs(path))),
        ("access", errno(rustix::fs::access(path, Access::EXISTS))),
        ("readlink", errno(rustix::fs::readlink(path, Vec::new()))),
        ("open", errno(rustix::fs::open(path, OFlags::RDONLY, mode))),
        ("open as a place", errno(rustix::fs::open(path, OFlags::PATH, mode))),
        ("open as a directory", errno(rustix::fs::open(path, OFlags::DIRECTORY, mode))),
        ("open as a link", errno(rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW, mode))),
        ("openat2", errno(rustix::fs::openat2(CWD, path, OFlags::RDONLY, mode, ResolveFlags::NO_MAGICLINKS))),
        ("getxattr", errno(rustix::fs::getxattr_query(path, "user.x"))),
        ("listxattr", errno(rustix::fs::listxattr_query(path))),
        ("a file in it", errno(rustix::fs::lstat(path.join("secret")))),
        ("itself", errno(rustix::fs::lstat(path.join(".")))),
        ("through it", errno(rustix::fs::lstat(path.join("..")))),
    ]
}

#[test]
fn outside_looks_like_nothing() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let physical = fixture.store.physical();
    let unregistered = NixStore::name("unregistered");
    fs::create_dir(physical.join(&unregistered.base)).unwrap();
    fs::write(physical.join(format!("{}.lock", fixture.data.base)), "").unwrap();
    let names = [
        fixture.outside.base.clone(),
        unregistered.base,
        format!("{}.lock", fixture.data.base),
        ".links".into(),
        format!("{}/../{}", fixture.data.base, fixture.outside.base),
        format!("{}/deep/er/../../../.links", fixture.data.base),
    ];
    for name in &names {
        assert!(
            physical.join(name).symlink_metadata().is_ok(),
            "{name} has to be in the store for this test"
        );
    }
    let nowhere = NixStore::name("nowhere").base;
    // What is told to the host changes nothing here.
    for arguments in [&[][..], &["--report"]] {
        let view = fixture.program().args(arguments).mount();
        for round in ["first", "again", "after listing"] {
            let absent = ask(&view.path().join(&nowhere));
            assert!(absent.iter().all(|(_, errno)| *errno == Some(Errno::NOENT)), "{absent:?}");
            for name in &names {
                assert_eq!(ask(&view.path().join(name)), absent, "{name}, {round}, {arguments:?}");
            }
            let mut members = fixture.members();
            members.sort();
            assert_eq!(
                tree::list(view.path()).unwrap(),
                members.iter().map(std::path::PathBuf::from).collect::<Vec<_>>()
            );
            assert_eq!(
                tree::list(&view.path().join(&fixture.data.base).join("..")).unwrap(),
                tree::list(view.path()).unwrap(),
                "a member's parent is the view's root"
            );
        }
    }
}

/// Links in the closure are served as they are, and where they lead is for whoever follows them.
#[test]
fn a_relative_link_to_outside_dangles() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let pointer = fixture.store.add("pointer", &[], |path| {
        std::os::unix::fs::symlink(&fixture.outside.base, path).unwrap();
    });
    let view = fixture.program().args(["--root", &pointer.path]).mount();
    let link = view.path().join(&pointer.base);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(&fixture.outside.base));
    assert_eq!(rustix::fs::stat(&link).unwrap_err(), Errno::NOENT);
    assert!(
        fixture.store.physical().join(&pointer.base).join("secret").exists(),
        "it leads somewhere outside"
    );
}

/// What the root tells of itself, as far as a caller can see it.
fn root_attributes(view: &Path) -> Vec<u64> {
    let meta = fs::metadata(view).unwrap();
    let space = rustix::fs::statvfs(view).unwrap();
    vec![
        meta.mode().into(),
        meta.nlink(),
        meta.uid().into(),
        meta.gid().into(),
        meta.size(),
        meta.blocks(),
        meta.mtime().cast_unsigned(),
        meta.mtime_nsec().cast_unsigned(),
        meta.ctime().cast_unsigned(),
        meta.ctime_nsec().cast_unsigned(),
        space.f_bsize,
        space.f_blocks,
        space.f_bfree,
        space.f_bavail,
        space.f_files,
        space.f_ffree,
    ]
}

/// Attributes of the root and of the file system do not change when the host's store does, and are not the host's.
#[test]
fn root_and_statfs_do_not_depend_on_the_host() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    let before = root_attributes(view.path());
    assert_eq!(fs::metadata(view.path()).unwrap().mtime(), 1, "the time Nix gives every store path");
    let filler = fixture.store.add("filler", &[], |path| {
        fs::create_dir_all(path.join("directory")).unwrap();
        fs::write(path.join("file"), vec![7; 1 << 20]).unwrap();
    });
    assert_eq!(root_attributes(view.path()), before, "after the host's store grew");

    // A second view, mounted now, could only differ by what the host has become.
    let second = fixture.mount();
    assert_eq!(root_attributes(second.path()), before, "the same closure on a store that has grown");
    assert_ne!(
        rustix::fs::statvfs(view.path()).unwrap().f_blocks,
        rustix::fs::statvfs(fixture.store.physical().as_path()).unwrap().f_blocks,
        "the host's disk"
    );
    assert!(fixture.store.physical().join(filler.base).exists());
}

/// A file's link count would tell whether some store path outside the closure has the same contents.
#[test]
fn link_counts_do_not_tell_of_contents_outside() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    fixture.store.nix("nix-store", ["--optimise"], b"");
    let view = fixture.mount();
    let data = view.path().join(&fixture.data.base);
    let [shared, own] = ["same", "text"].map(|name| fs::symlink_metadata(data.join(name)).unwrap().nlink());
    let real = fs::symlink_metadata(fixture.store.physical().join(&fixture.data.base).join("same")).unwrap();
    assert!(real.nlink() > 2, "the store was not optimised");
    assert_eq!(shared, own, "a file whose contents are also outside, and one whose contents are not");
}
