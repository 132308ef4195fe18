//! Every system call that would change anything gives EROFS, also when root remounts the view read-write.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};
use rustix::mount::MountFlags;

use crate::util::fixture::Fixture;
use crate::util::{mounts, tree};

/// Something that is there to be changed, of each kind.
struct Targets {
    directory: PathBuf,
    empty: PathBuf,
    file: PathBuf,
    link: PathBuf,
}

/// A changing system call, tried.
type Attempt = (&'static str, Box<dyn Fn(&Targets) -> Result<()>>);

fn attempts() -> Vec<Attempt> {
    fn attempt(name: &'static str, call: impl Fn(&Targets) -> Result<()> + 'static) -> Attempt {
        (name, Box::new(call))
    }
    fn open(path: &Path, flags: OFlags) -> Result<()> {
        rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(drop)
    }
    fn times() -> Timestamps {
        let five = Timespec { tv_sec: 5, tv_nsec: 5 };
        Timestamps { last_access: five, last_modification: five }
    }
    vec![
        attempt("open for writing, and write", |t| {
            let file = rustix::fs::open(&t.file, OFlags::WRONLY, Mode::empty())?;
            rustix::io::write(file, b"changed").map(drop)
        }),
        attempt("open for reading and writing, and write", |t| {
            let file = rustix::fs::open(&t.file, OFlags::RDWR, Mode::empty())?;
            rustix::io::pwrite(file, b"changed", 0).map(drop)
        }),
        attempt("open to append, and append", |t| {
            let file = rustix::fs::open(&t.file, OFlags::WRONLY | OFlags::APPEND, Mode::empty())?;
            rustix::io::write(file, b"changed").map(drop)
        }),
        attempt("open to truncate", |t| open(&t.file, OFlags::WRONLY | OFlags::TRUNC)),
        attempt("create", |t| open(&t.directory.join("new"), OFlags::WRONLY | OFlags::CREATE)),
        attempt("create a new file", |t| {
            open(&t.directory.join("new"), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
        }),
        attempt("create a file without a name", |t| {
            match open(&t.directory, OFlags::RDWR | OFlags::TMPFILE) {
                // Before Linux 6.2 no FUSE file system has them, read-only or not.
                Err(Errno::OPNOTSUPP) => Err(Errno::ROFS),
                answer => answer,
            }
        }),
        attempt("create a file without a name for good", |t| {
            match open(&t.directory, OFlags::WRONLY | OFlags::TMPFILE | OFlags::EXCL) {
                Err(Errno::OPNOTSUPP) => Err(Errno::ROFS),
                answer => answer,
            }
        }),
        attempt("mkdir", |t| rustix::fs::mkdir(t.directory.join("new"), Mode::RWXU)),
        attempt("rmdir", |t| rustix::fs::rmdir(&t.empty)),
        attempt("unlink a file", |t| rustix::fs::unlink(&t.file)),
        attempt("unlink a link", |t| rustix::fs::unlink(&t.link)),
        attempt("rename a file", |t| rustix::fs::rename(&t.file, t.directory.join("new"))),
        attempt("rename a directory", |t| rustix::fs::rename(&t.empty, t.directory.join("new"))),
        attempt("rename over", |t| rustix::fs::rename(&t.link, &t.file)),
        attempt("exchange", |t| {
            rustix::fs::renameat_with(CWD, &t.link, CWD, &t.file, rustix::fs::RenameFlags::EXCHANGE)
        }),
        attempt("link", |t| rustix::fs::link(&t.file, t.directory.join("new"))),
        attempt("symlink", |t| rustix::fs::symlink("target", t.directory.join("new"))),
        attempt("chmod a file", |t| rustix::fs::chmod(&t.file, Mode::RWXU)),
        attempt("chmod a directory", |t| rustix::fs::chmod(&t.directory, Mode::RWXU)),
        attempt("chown a file", |t| {
            rustix::fs::chown(&t.file, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)))
        }),
        attempt("chown a link", |t| {
            rustix::fs::chownat(CWD, &t.link, Some(Uid::from_raw(1)), None, AtFlags::SYMLINK_NOFOLLOW)
        }),
        attempt("utimes of a file", |t| rustix::fs::utimensat(CWD, &t.file, &times(), AtFlags::empty())),
        attempt("utimes of a link", |t| {
            rustix::fs::utimensat(CWD, &t.link, &times(), AtFlags::SYMLINK_NOFOLLOW)
        }),
        attempt("truncate", |t| {
            nix::unistd::truncate(&t.file, 1).map_err(|errno| Errno::from_raw_os_error(errno as i32))
        }),
        attempt("setxattr", |t| rustix::fs::setxattr(&t.file, "user.x", b"y", XattrFlags::empty())),
        attempt("setxattr of a directory", |t| {
            rustix::fs::setxattr(&t.directory, "user.x", b"y", XattrFlags::CREATE)
        }),
        attempt("setxattr, trusted", |t| {
            rustix::fs::setxattr(&t.file, "trusted.x", b"y", XattrFlags::empty())
        }),
        attempt("removexattr", |t| rustix::fs::removexattr(&t.file, "user.x")),
        attempt("mknod of a pipe", |t| {
            rustix::fs::mknodat(CWD, t.directory.join("new"), FileType::Fifo, Mode::RWXU, 0)
        }),
        attempt("mknod of a device", |t| {
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, t.directory.join("new"), FileType::CharacterDevice, Mode::RWXU, null)
        }),
        attempt("mknod of a file", |t| {
            rustix::fs::mknodat(CWD, t.directory.join("new"), FileType::RegularFile, Mode::RWXU, 0)
        }),
    ]
}

fn assert_nothing_changes(fixture: &Fixture, view: &Path, when: &str) {
    let data = view.join(&fixture.data.base);
    let below = Targets {
        directory: data.clone(),
        empty: data.join("empty-directory"),
        file: data.join("text"),
        link: data.join("links/dangling"),
    };
    let members = Targets {
        directory: view.to_owned(),
        empty: view.join(&fixture.system.base),
        file: view.join(&fixture.file.base),
        link: view.join(&fixture.link.base),
    };
    let wrong: Vec<String> = [("below a member", below), ("in the root", members)]
        .iter()
        .flat_map(|(place, targets)| {
            attempts().into_iter().filter_map(move |(name, call)| match call(targets) {
                Err(Errno::ROFS) => None,
                other => Some(format!("{name} {place}: {other:?}")),
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
    for base in fixture.members() {
        tree::assert_same(&tree::walk(&fixture.store.physical(), &base), &tree::walk(view, &base));
    }
}

#[test]
fn changing_calls_give_erofs() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    assert_nothing_changes(&fixture, view.path(), "as mounted");
}

fn remount_read_write(at: &Path) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(at, flags, "").expect("remount");
    let mount = mounts::at(at).expect("a mount");
    assert!(mount.options.contains(&"rw".into()), "the mount is still read-only: {mount:?}");
    assert!(mount.super_options.contains(&"rw".into()), "the file system is still read-only: {mount:?}");
}

/// Root in a container can do this; it must win nothing by it.
#[test]
fn changing_calls_give_erofs_after_a_remount() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    // The kernel has learnt from a first read that files need no opening.
    fs::read(view.path().join(&fixture.data.base).join("text")).unwrap();
    remount_read_write(view.path());
    assert_nothing_changes(&fixture, view.path(), "remounted read-write");
}

/// The kernel's accounting opens its file for writing, and writes to it on behalf of every process that ends.
#[test]
fn accounting_into_a_view_writes_nothing() {
    need!(Root, Fuse, Nix, Passthrough);
    let dir = crate::util::scratch();
    let acct = crate::util::compile("acct.c", dir.path());
    let account = |file: &Path| {
        let output = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child"])
            .arg(&acct)
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().parse::<i32>().unwrap()
    };
    let refused = Errno::ROFS.raw_os_error();
    // Once the kernel opens files without asking, it can open this one; what it writes is refused.
    for (io, remounted) in [("cached", 0), ("passthrough", refused)] {
        let fixture = Fixture::new();
        let view = fixture.program().args(["--io", io]).mount();
        let data = view.path().join(&fixture.data.base);
        let text = data.join("text");
        assert_eq!(account(&text), refused, "as mounted, with {io}");
        fs::read(&text).unwrap();
        remount_read_write(view.path());
        assert_eq!(account(&text), remounted, "remounted read-write, with {io}");
        for base in fixture.members() {
            tree::assert_same(&tree::walk(&fixture.store.physical(), &base), &tree::walk(view.path(), &base));
        }
        assert_eq!(fs::read(&text).unwrap(), b"hello\n");
    }
}

/// The same when the very first request of the mount's life is a change.
#[test]
fn changing_calls_give_erofs_from_the_first_request_on() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for (name, call) in attempts() {
        let view = fixture.mount();
        remount_read_write(view.path());
        let data = view.path().join(&fixture.data.base);
        let targets = Targets {
            directory: data.clone(),
            empty: data.join("empty-directory"),
            file: data.join("text"),
            link: data.join("links/dangling"),
        };
        assert_eq!(call(&targets), Err(Errno::ROFS), "{name}");
        tree::assert_same(
            &tree::walk(&fixture.store.physical(), &fixture.data.base),
            &tree::walk(view.path(), &fixture.data.base),
        );
    }
}

/// The same when the kernel reads files by itself: it would open them for writing with the server's rights.
#[test]
fn changing_calls_give_erofs_with_passthrough() {
    need!(Root, Fuse, Nix, Passthrough);
    let fixture = Fixture::new();
    let view = fixture.program().args(["--io", "passthrough"]).mount();
    let text = fs::File::open(view.path().join(&fixture.data.base).join("text")).unwrap();
    remount_read_write(view.path());
    assert_nothing_changes(&fixture, view.path(), "remounted read-write, one file open for reading");
    drop(text);
    assert_nothing_changes(&fixture, view.path(), "remounted read-write");
}
