//! What is served is what Nix has: the closure, its hashes in the database, and the files themselves.

use crate::util::fixture::Fixture;
use crate::util::program::Program;
use crate::util::tree;

/// For every member, the NAR hash computed through the mount is the one in Nix's database.
#[test]
fn nar_hashes_through_the_mount_equal_the_database() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    for base in fixture.members() {
        let recorded = fixture.store.nix("nix-store", ["-q", "--hash", &format!("/nix/store/{base}")], b"");
        let seen = view.path().join(&base);
        let computed =
            fixture.store.nix("nix-hash", ["--type", "sha256", "--base32", seen.to_str().unwrap()], b"");
        assert_eq!(recorded.trim(), format!("sha256:{}", computed.trim()), "{base}");
    }
}

/// The text dump is the output of `nix-store -qR`, sorted.
#[test]
fn dump_equals_nix_store_query_requisites() {
    need!(Nix);
    let fixture = Fixture::new();
    let dump = fixture.program().arg("--dump-closure").run();
    assert!(dump.status.success(), "{}", dump.stderr);
    let expected = fixture.store.closure(&[&fixture.system]);
    assert_eq!(dump.stdout.lines().collect::<Vec<_>>(), expected);
    assert_eq!(expected.len(), 4, "the fixture's closure");
}

/// `--root` adds the closure of one more path, and may be given again.
#[test]
fn further_roots_add_their_closures() {
    need!(Nix);
    let fixture = Fixture::new();
    let alone = fixture.store.add("alone", &[], |path| std::fs::write(path, "alone").unwrap());
    let dump = fixture
        .program()
        .args(["--root", &fixture.outside.path, "--root", &alone.path, "--dump-closure=text"])
        .run();
    assert!(dump.status.success(), "{}", dump.stderr);
    let expected = fixture.store.closure(&[&fixture.system, &fixture.outside, &alone]);
    assert_eq!(dump.stdout.lines().collect::<Vec<_>>(), expected);
    assert_eq!(expected.len(), 6, "the three closures together");
}

/// Every spelling of `--system` means the same closure.
#[test]
fn every_spelling_of_the_system() {
    need!(Nix);
    let fixture = Fixture::new();
    let store = &fixture.store;
    let profile = store.profile("per-container/web/system-1-link", &fixture.system.path);
    let current = store.profile("per-container/web/system", "system-1-link");
    let elsewhere = tempfile::tempdir().unwrap();
    let result = elsewhere.path().join("result");
    std::os::unix::fs::symlink(&fixture.system.path, &result).unwrap();
    let expected = store.closure(&[&fixture.system]);
    for (what, spelling) in [
        ("a store path", fixture.system.path.as_str()),
        ("a path inside a store path", &format!("{}/init", fixture.system.path)),
        ("a base name", &fixture.system.base),
        ("a store path where it really lies", store.physical().join(&fixture.system.base).to_str().unwrap()),
        ("a generation of a profile", profile.to_str().unwrap()),
        ("a profile", current.to_str().unwrap()),
        ("a directory of profiles", current.parent().unwrap().to_str().unwrap()),
        ("a link from elsewhere", result.to_str().unwrap()),
    ] {
        let dump = Program::on(store).args(["--system", spelling, "--dump-closure"]).run();
        assert!(dump.status.success(), "{what}: {}", dump.stderr);
        assert_eq!(dump.stdout.lines().collect::<Vec<_>>(), expected, "{what}");
    }
}

/// The mounted tree is the real one: names, kinds, modes, owners, sizes, targets, times and bytes.
#[test]
fn whole_tree_equals_the_real_one() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    let members = fixture.members();
    assert_eq!(
        tree::list(view.path()).unwrap(),
        members.iter().map(std::path::PathBuf::from).collect::<Vec<_>>(),
        "the root lists the members and nothing else"
    );
    for base in &members {
        tree::assert_same(&tree::walk(&fixture.store.physical(), base), &tree::walk(view.path(), base));
    }
}

/// The same when Nix has replaced equal files by hard links, and then again from the kernel's caches.
#[test]
fn whole_tree_of_an_optimised_store() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    fixture.store.nix("nix-store", ["--optimise"], b"");
    let linked = std::fs::metadata(fixture.store.physical().join(&fixture.data.base).join("same")).unwrap();
    assert!(std::os::unix::fs::MetadataExt::nlink(&linked) >= 4, "the store was not optimised");
    let view = fixture.mount();
    for _ in 0..2 {
        for base in fixture.members() {
            tree::assert_same(&tree::walk(&fixture.store.physical(), &base), &tree::walk(view.path(), &base));
        }
    }
}
