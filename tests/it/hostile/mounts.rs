//! What the host has mounted in its store.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use crate::util::fixture::Fixture;
use crate::util::mounts::Own;
use crate::util::store::{Member, NixStore};
use crate::util::{scratch, tree};

const SECRET: &[u8] = b"a secret of the host\n";

fn bind(from: &Path, at: &Path) -> Own {
    rustix::mount::mount_bind(from, at).unwrap();
    Own::adopt(at)
}

/// Secrets of the host that are mounted over a file or a directory of a member are not the member's: an error, until they
/// are unmounted.
#[test]
fn what_is_mounted_below_a_member_is_not_served() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let secrets = scratch();
    fs::write(secrets.path().join("leaf"), SECRET).unwrap();
    let physical = fixture.store.physical().join(&fixture.data.base);
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    for io in ["cached", "passthrough"] {
        let file = bind(&secrets.path().join("leaf"), &physical.join("text"));
        let dir = bind(secrets.path(), &physical.join("deep/er/still"));
        let view = fixture.program().args(["--io", io]).mount();
        let data = view.path().join(&fixture.data.base);
        for path in ["text", "deep/er/still", "deep/er/still/leaf"] {
            let error = fs::metadata(data.join(path)).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{path} with {io}");
        }
        assert_eq!(
            fs::read(data.join("same")).unwrap(),
            b"shared contents\n",
            "what is next to it is served"
        );
        drop((file, dir));

        // The server may have a copy of the mount table that does not follow.
        let view = fixture.program().args(["--io", io]).mount();
        tree::assert_same(&real, &tree::walk(view.path(), &fixture.data.base));
        let _file = bind(&secrets.path().join("leaf"), &physical.join("text"));
        let _dir = bind(secrets.path(), &physical.join("deep/er/still"));
        let data = view.path().join(&fixture.data.base);
        for path in ["text", "deep/er/still/leaf"] {
            let read = fs::read(data.join(path)).ok();
            assert_ne!(read.as_deref(), Some(SECRET), "{path} with {io}, mounted later");
        }
    }
}

/// What is mounted on one entry costs nobody the others: the directory lists all of its names, of that one no more than the name.
#[test]
fn a_listing_has_the_names_of_what_is_mounted_in_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let secrets = scratch();
    fs::write(secrets.path().join("leaf"), SECRET).unwrap();
    let physical = fixture.store.physical().join(&fixture.data.base);
    for io in ["cached", "passthrough"] {
        let file = bind(&secrets.path().join("leaf"), &physical.join("text"));
        let dir = bind(secrets.path(), &physical.join("deep/er/still"));
        let view = fixture.program().args(["--io", io]).mount();
        let data = view.path().join(&fixture.data.base);
        // Twice, since the kernel may cache the first one.
        for (below, covered) in [("", "text"), ("deep/er", "still"), ("", "text"), ("deep/er", "still")] {
            let expected = tree::list(&physical.join(below)).unwrap();
            assert_eq!(tree::list(&data.join(below)).unwrap(), expected, "{below} with {io}");
            for entry in fs::read_dir(data.join(below)).unwrap().map(Result::unwrap) {
                // `file_type` asks for what the listing does not tell.
                let answers = [entry.metadata().map(drop), entry.file_type().map(drop)];
                let refused =
                    answers.map(|answer| answer.err().and_then(|error| Errno::from_io_error(&error)));
                let expected = (entry.file_name() == covered).then_some(Errno::IO);
                assert_eq!(refused, [expected; 2], "{:?} with {io}", entry.path());
            }
        }
        drop((file, dir));
    }
}

/// A store may consist of several file systems: members that are mount points are served, what is mounted in them is not.
#[test]
fn members_that_are_mount_points_are_served() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let elsewhere = scratch();
    let [own, dir, file] = ["own", "dir", "file"].map(|name| elsewhere.path().join(name));
    let fill = |path: &Path| {
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/c"), "inside\n").unwrap();
        fs::write(path.join("top"), "top\n").unwrap();
    };
    fs::create_dir(&own).unwrap();
    let _tmpfs = Own::mount("tmpfs", &own, "mode=0755");
    fill(&own);
    fill(&dir);
    fs::write(&file, "a file\n").unwrap();
    let members: Vec<(Member, Own)> = [("tmpfs", &own), ("bound", &dir), ("file", &file)]
        .into_iter()
        .map(|(name, from)| {
            let make = |at: &Path| if from.is_dir() { fs::create_dir(at) } else { fs::write(at, "") };
            let member = store.add_in_place(name, &[], |at| make(at).unwrap());
            let mount = bind(from, &store.physical().join(&member.base));
            (member, mount)
        })
        .collect();
    let mut program = crate::util::program::Program::on(&store);
    for (member, _) in &members {
        program = program.args(["--root", &member.path]);
    }
    let view = program.mount();
    for (member, _) in &members {
        tree::assert_same(
            &tree::walk(&store.physical(), &member.base),
            &tree::walk(view.path(), &member.base),
        );
    }
    let _secret = bind(&file, &dir.join("top"));
    let _secret = bind(&file, &store.physical().join(&members[1].0.base).join("a/b/c"));
    assert_ne!(
        fs::read(view.path().join(&members[1].0.base).join("a/b/c")).ok().as_deref(),
        Some(&b"a file\n"[..])
    );
}
