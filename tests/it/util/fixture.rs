//! The closure that most tests look at, with every kind of entry a store can hold.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use super::program::{Mounted, Program};
use super::store::{Member, NixStore};

/// A store with a small closure in it, and with valid paths that are not part of it.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) store: NixStore,
    /// The root of the closure.
    pub(crate) system: Member,
    /// A directory with entries of every kind.
    pub(crate) data: Member,
    /// A store path that is a plain file.
    pub(crate) file: Member,
    /// A store path that is a symbolic link.
    pub(crate) link: Member,
    /// Valid, refers into the closure, not part of it. It has a file `secret`, and one, `same`, with the
    /// contents of one in the closure.
    pub(crate) outside: Member,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::in_store(NixStore::new())
    }

    pub(crate) fn in_store(store: NixStore) -> Self {
        let data = store.add("data", &[], |path| every_kind(path, longest_link(store.root())));
        let file =
            store.add("settings.conf", &[], |path| fs::write(path, "a store path that is a file\n").unwrap());
        let link = store.add("latest", &[&data], |path| symlink(&data.path, path).unwrap());
        let outside = store.add("outside", &[&data], |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("secret"), "not for this container\n").unwrap();
            fs::write(path.join("same"), "shared contents\n").unwrap();
        });
        let system = store.add("demo-system", &[&data, &file, &link], |path| {
            fs::create_dir(path).unwrap();
            symlink(&data.path, path.join("sw")).unwrap();
            symlink(format!("../{}", file.base), path.join("settings")).unwrap();
            symlink(&link.path, path.join("latest")).unwrap();
            symlink(&outside.path, path.join("to-outside")).unwrap();
            fs::write(path.join("init"), "#!/bin/sh\n").unwrap();
            fs::set_permissions(path.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        });
        Self { store, system, data, file, link, outside }
    }

    /// The members of the closure, as Nix tells them.
    pub(crate) fn members(&self) -> Vec<String> {
        let bases = self.store.closure(&[&self.system]);
        bases.into_iter().map(|path| path.strip_prefix("/nix/store/").unwrap().to_owned()).collect()
    }

    /// The program with this store and this system.
    pub(crate) fn program(&self) -> Program {
        Program::on(&self.store).arg("--system").arg(&self.system.path)
    }

    pub(crate) fn mount(&self) -> Mounted {
        self.program().mount()
    }
}

/// Bytes that the target of a link may have on the file system of `dir`, or nearly so many.
fn longest_link(dir: &Path) -> usize {
    // `XFS_SUPER_MAGIC` of `linux/magic.h`, and `XFS_SYMLINK_MAXLEN` of its `fs/xfs/libxfs/xfs_format.h`.
    let is_xfs = rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type == 0x5846_5342);
    if is_xfs { 1000 } else { 4000 }
}

/// A directory with what a store path may hold; its longest link has a target of `link` bytes.
fn every_kind(path: &Path, link: usize) {
    fs::create_dir(path).unwrap();
    fs::write(path.join("text"), "hello\n").unwrap();
    fs::write(path.join("same"), "shared contents\n").unwrap();
    fs::write(path.join("same-again"), "shared contents\n").unwrap();
    fs::write(path.join("empty"), "").unwrap();
    fs::write(path.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(path.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(path.join("empty-directory")).unwrap();
    fs::create_dir_all(path.join("deep/er/still")).unwrap();
    fs::write(path.join("deep/er/still/leaf"), "leaf\n").unwrap();

    // Longer than one read request, and no two pages alike.
    let long: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(path.join("long"), long).unwrap();
    let sparse = File::create(path.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"middle", 1 << 20).unwrap();

    let names = path.join("names");
    fs::create_dir(&names).unwrap();
    for name in [
        &b"\xff\xfe not UTF-8"[..],
        "ünï \u{1f600}".as_bytes(),
        b"a space",
        b"new\nline",
        b"-dash",
        b"back\\slash",
        &[b'x'; 255],
        &[0xe9; 255],
    ] {
        fs::write(names.join(OsStr::from_bytes(name)), name).unwrap();
    }

    let links = path.join("links");
    fs::create_dir(&links).unwrap();
    symlink("../text", links.join("inside")).unwrap();
    symlink("/etc/passwd", links.join("out-of-the-store")).unwrap();
    symlink("/nowhere/at/all", links.join("dangling")).unwrap();
    symlink(".", links.join("itself")).unwrap();
    symlink("x".repeat(link), links.join("long")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\xfe"), links.join("not-utf8")).unwrap();
}
