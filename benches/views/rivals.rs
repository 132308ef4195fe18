//! The other ways to show a closure as a directory: one bind of the whole store, a farm of binds, an overlay.
//!
//! All mounts happen in the measuring program's own mount namespace and vanish with it.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::corpus::Corpus;
use crate::fault::{Doing, Fault, Outcome};

/// The time that Nix gives to everything in a store.
const STORE_TIME: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Unmounts what lies at `at`, and all below it.
pub(crate) fn unmount(at: &Path) -> Outcome<()> {
    rustix::mount::unmount(at, UnmountFlags::DETACH).doing(|| format!("unmounting {}", at.display()))
}

/// Mount points at `at` and below it, the latest first. Names with unusual characters, which the table escapes,
/// do not occur below a directory of ours.
pub(crate) fn mounts_below(at: &Path) -> Outcome<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").doing(|| "reading the mount table".into())?;
    let points = table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(at)).collect())
}

/// Unmounts everything at `at` and below it, and fails when something is left.
pub(crate) fn unmount_below(at: &Path) -> Outcome<()> {
    for point in mounts_below(at)? {
        // What lay below an earlier one went with it.
        unmount(&point).ok();
    }
    if mounts_below(at)?.is_empty() {
        Ok(())
    } else {
        Err(Fault::new(format!("something is still mounted below {}", at.display())))
    }
}

/// The whole store, read-only: what containers get today, and the limit of what any view can reach.
pub(crate) fn bind(corpus: &Corpus, at: &Path) -> Outcome<()> {
    let doing = || format!("binding {} to {}", corpus.physical.display(), at.display());
    rustix::mount::mount_bind(&corpus.physical, at).doing(doing)?;
    rustix::mount::mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, c"").doing(doing)
}

/// One read-only bind per store path, on a tmpfs. The clones are taken from a read-only bind of the store, so
/// that each is born read-only and costs two calls.
pub(crate) fn farm(corpus: &Corpus, at: &Path, work: &Path) -> Outcome<()> {
    let source = work.join("farm-source");
    fs::create_dir_all(&source).doing(|| format!("creating {}", source.display()))?;
    bind(corpus, &source)?;
    let result = plant(corpus, &source, at);
    unmount(&source)?;
    result
}

fn plant(corpus: &Corpus, source: &Path, at: &Path) -> Outcome<()> {
    let doing = || format!("making a farm of binds at {}", at.display());
    rustix::mount::mount(c"farm", at, c"tmpfs", MountFlags::empty(), c"mode=0755").doing(doing)?;
    for member in &corpus.members {
        let name = Path::new(OsStr::from_bytes(member.to_bytes()));
        let (from, to) = (source.join(name), at.join(name));
        let doing = || format!("binding {}", to.display());
        let kind = fs::symlink_metadata(&from).doing(doing)?.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&from).doing(doing)?, &to).doing(doing)?;
            continue;
        } else if kind.is_dir() {
            fs::create_dir(&to).doing(doing)?;
        } else {
            fs::write(&to, "").doing(doing)?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, &from, flags).doing(doing)?;
        rustix::mount::move_mount(&tree, c"", CWD, &to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing(doing)?;
    }
    Ok(())
}

/// The metadata tree of an overlay as composefs makes it: every directory and link as it is, every file empty
/// but for its size, with the place of its bytes in the store as an attribute.
pub(crate) fn metadata_tree(corpus: &Corpus, tree: &Path) -> Outcome<()> {
    fs::create_dir_all(tree).doing(|| format!("creating {}", tree.display()))?;
    for entry in &corpus.entries {
        let name = Path::new(OsStr::from_bytes(entry.to_bytes()));
        describe(&corpus.physical.join(name), &tree.join(name), name)
            .doing(|| format!("describing {} for the overlay", name.display()))?;
    }
    Ok(())
}

fn describe(from: &Path, to: &Path, name: &Path) -> Result<(), std::io::Error> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if metadata.is_dir() {
        fs::create_dir(to)?;
        // Children are still to come; whoever makes them is root, whom the mode does not stop.
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    } else {
        let file = fs::File::create(to)?;
        file.set_len(metadata.len())?;
        file.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        let mut target = b"/".to_vec();
        target.extend_from_slice(name.as_os_str().as_bytes());
        rustix::fs::fsetxattr(&file, c"trusted.overlay.metacopy", b"", XattrFlags::CREATE)?;
        rustix::fs::fsetxattr(&file, c"trusted.overlay.redirect", &target, XattrFlags::CREATE)?;
    }
    let times = Timestamps { last_access: STORE_TIME, last_modification: STORE_TIME };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// A read-only overlay of the metadata tree over the store as a layer that only gives data.
pub(crate) fn overlay(corpus: &Corpus, tree: &Path, at: &Path) -> Outcome<()> {
    let doing = || format!("mounting an overlay at {} (needs Linux 6.5)", at.display());
    let mut layers = escaped(tree);
    layers.extend_from_slice(b"::");
    layers.extend_from_slice(&escaped(&corpus.physical));
    let layers = CString::new(layers).doing(doing)?;
    let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing(doing)?;
    for (key, value) in [
        (c"source", c"overlay"),
        (c"metacopy", c"on"),
        (c"redirect_dir", c"on"),
        (c"lowerdir", layers.as_c_str()),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value).doing(doing)?;
    }
    rustix::mount::fsconfig_create(&context).doing(doing)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(doing)?;
    rustix::mount::move_mount(&mount, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)
}

/// A colon separates layers, so one in a path needs a backslash.
fn escaped(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}
