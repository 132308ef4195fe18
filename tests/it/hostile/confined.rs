//! What a process can do that has given up its rights as a server or a monitor does, and then tries everything else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix_store_fs::sandbox::{Looker, Monitor, Sandbox, Server, StoreThread};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, makedev};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::net::AddressFamily;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};
use rustix::time::ClockId;

use crate::util::mounts::Own;
use crate::util::scratch;

/// Names the deed and the directory of the process that is to do it.
const DEED: &str = "NST_DEED";
const PLACE: &str = "NST_PLACE";
/// Exit code of a process whose deed was done.
const DONE: i32 = 42;

/// How a deed ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Error(i32),
    /// The kernel ended the process.
    Killed,
}

impl Outcome {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(DONE), _) => Self::Done,
            (Some(error), _) => Self::Error(error),
            (None, signal) => {
                assert_eq!(signal, Some(Signal::SYS.as_raw()), "{status}");
                Self::Killed
            }
        }
    }
}

fn directory(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn openat2(at: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
    rustix::fs::openat2(at, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::empty())
}

/// A deed of somebody, by its name.
fn attempt(deed: &str, place: &Path) -> io::Result<()> {
    match deed.split_once(": ") {
        Some(("monitor", deed)) => {
            Monitor.confine(Sandbox::Require).map_err(io::Error::other)?;
            of_a_monitor(deed, place)
        }
        Some(("store", deed)) => {
            let (written, links) = ([place.join("journal")], [place.join("links")]);
            let thread = StoreThread { written: &written, links: &links };
            thread.confine(Sandbox::Require).map_err(io::Error::other)?;
            of_the_store_thread(deed, place)
        }
        Some(("missed", deed)) => {
            let store = directory(&place.join("store"));
            Looker::Store.confine(Sandbox::Require).map_err(io::Error::other)?;
            of_a_looker(deed, place, &store)
        }
        Some(("asked", deed)) => {
            let store = directory(&place.join("store"));
            Looker::Processes.confine(Sandbox::Require).map_err(io::Error::other)?;
            of_a_looker(deed, place, &store)
        }
        _ => of_a_server(deed, place),
    }
}

/// A deed of a thread that only looks.
fn of_a_looker(deed: &str, place: &Path, store: &OwnedFd) -> io::Result<()> {
    match deed {
        "look for a name" => drop(rustix::fs::statat(store, "file", AtFlags::SYMLINK_NOFOLLOW)?),
        "read the name of a process" => drop(fs::read("/proc/1/comm")?),
        "write its own name" => fs::write("/proc/self/comm", "eve")?,
        "read the store" => drop(openat2(store, "file", OFlags::RDONLY)?),
        "write a secret" => fs::write(place.join("secret"), "y")?,
        "mount" => rustix::mount::mount("none", place, "tmpfs", rustix::mount::MountFlags::empty(), None)?,
        _ => panic!("{deed}"),
    }
    Ok(())
}

/// A deed of the thread that asks Nix: `journal` is in the place of Nix's state.
fn of_the_store_thread(deed: &str, place: &Path) -> io::Result<()> {
    match deed {
        "read" => drop(fs::read(place.join("secret"))?),
        "make a database" => {
            fs::create_dir(place.join("journal/db"))?;
            fs::write(place.join("journal/db/new"), "x")?;
            fs::rename(place.join("journal/db/new"), place.join("journal/db/sqlite"))?;
            fs::remove_dir_all(place.join("journal/db"))?;
        }
        "make and remove a link" => {
            std::os::unix::fs::symlink("/", place.join("links/.new"))?;
            fs::rename(place.join("links/.new"), place.join("links/root"))?;
            fs::remove_file(place.join("links/root"))?;
        }
        "connect to a socket" => drop(UnixStream::connect(place.join("socket"))?),
        "make a thread" => std::thread::spawn(|| ()).join().unwrap(),
        "make a file beside the links" => fs::write(place.join("links/file"), "x")?,
        "write to the store" => drop(File::options().write(true).open(place.join("store/file"))?),
        "write a secret" => fs::write(place.join("secret"), "y")?,
        "remove a secret" => fs::remove_file(place.join("secret"))?,
        "make a directory" => fs::create_dir(place.join("made"))?,
        "make a link elsewhere" => std::os::unix::fs::symlink("/", place.join("store/link"))?,
        "move a file out of the state" => fs::rename(place.join("journal/kept"), place.join("kept"))?,
        "write by a link" => {
            std::os::unix::fs::symlink(place.join("secret"), place.join("journal/link"))?;
            fs::write(place.join("journal/link"), "y")?;
        }
        "set the pattern of core files" => {
            drop(File::options().write(true).open("/proc/sys/kernel/core_pattern")?);
        }
        "execute a program" => drop(Command::new("/bin/true").status()?),
        "mount" => rustix::mount::mount("none", place, "tmpfs", rustix::mount::MountFlags::empty(), None)?,
        "leave its mount namespace" => nix::sched::unshare(CloneFlags::CLONE_NEWNS)?,
        _ => panic!("{deed}"),
    }
    Ok(())
}

/// A deed of a monitor's.
fn of_a_monitor(deed: &str, place: &Path) -> io::Result<()> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    match deed {
        "make a thread" => std::thread::spawn(|| ()).join().unwrap(),
        "execute a program" => assert!(Command::new("/bin/true").status()?.success()),
        "connect to a socket" => drop(UnixStream::connect(place.join("socket"))?),
        "mount" => {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
            let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", flags)?;
            rustix::mount::mount("none", place, "tmpfs", rustix::mount::MountFlags::empty(), None)?;
            rustix::mount::unmount(place, UnmountFlags::empty())?;
        }
        "make a namespace of users" => nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?,
        "make a namespace of networks" => nix::sched::unshare(CloneFlags::CLONE_NEWNET)?,
        "make a pipe" => rustix::fs::mknodat(CWD, place.join("pipe"), FileType::Fifo, Mode::RUSR, 0)?,
        "make a device" => {
            rustix::fs::mknodat(
                CWD,
                place.join("null"),
                FileType::CharacterDevice,
                Mode::RUSR,
                makedev(1, 3),
            )?;
        }
        "name the machine" => rustix::system::sethostname(b"eve")?,
        // It cannot be set at all.
        "set a clock" => rustix::time::clock_settime(ClockId::Monotonic, rustix::time::Timespec::default())?,
        "receive packets" => {
            drop(rustix::net::socket(AddressFamily::PACKET, rustix::net::SocketType::RAW, None)?);
        }
        "load a module" => rustix::system::finit_module(own?, c"", 0)?,
        "take a descriptor" => {
            let error = io::stderr().as_fd().as_raw_fd();
            drop(rustix::process::pidfd_getfd(own?, error, PidfdGetfdFlags::empty())?);
        }
        "clone a mount" => drop(rustix::mount::open_tree(CWD, place, OpenTreeFlags::OPEN_TREE_CLONE)?),
        "load a module with its capability" => {
            let all = rustix::thread::CapabilitySet::SYS_MODULE;
            let sets = rustix::thread::CapabilitySets { effective: all, permitted: all, inheritable: all };
            rustix::thread::set_capabilities(None, sets)?;
        }
        _ => panic!("{deed}"),
    }
    Ok(())
}

/// A deed of a server's.
fn of_a_server(deed: &str, place: &Path) -> io::Result<()> {
    let (store, journal) = (directory(&place.join("store")), directory(&place.join("journal")));
    let open = File::open(place.join("store/file"))?;
    let parent = rustix::process::getppid();
    let files = ["nodes", "nodes.2"].map(|file| openat2(&journal, file, OFlags::PATH));
    let files: Vec<_> = files.into_iter().collect::<Result<_, _>>()?;
    let server = Server { store: store.as_fd(), journal: &files };
    server.confine(Sandbox::Require).map_err(io::Error::other)?;
    match deed {
        "read the store" => drop(openat2(&store, "file", OFlags::RDONLY)?),
        "list the store" => drop(openat2(&store, ".", OFlags::RDONLY | OFlags::DIRECTORY)?),
        "write a journal" => {
            for file in ["nodes", "nodes.2"] {
                File::from(openat2(&journal, file, OFlags::WRONLY | OFlags::TRUNC)?).write_all(b"x")?;
                drop(openat2(&journal, file, OFlags::RDWR | OFlags::APPEND)?);
            }
        }
        "make a file beside the journal" => drop(openat2(&journal, "made", OFlags::WRONLY | OFlags::CREATE)?),
        "make a file without a name" => drop(openat2(&journal, ".", OFlags::RDWR | OFlags::TMPFILE)?),
        "make a directory beside the journal" => {
            rustix::fs::mkdirat(&journal, "made", Mode::from_raw_mode(0o700))?;
        }
        "remove the journal" => {
            rustix::fs::unlinkat(&journal, "nodes", AtFlags::empty())?;
        }
        "exchange the files of the journal" => {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&journal, "nodes", &journal, "nodes.2", exchange)?;
        }
        "fill the file system" => fill(&journal),
        "make a thread" => std::thread::spawn(|| ()).join().unwrap(),
        "write to the store" => drop(openat2(&store, "file", OFlags::WRONLY)?),
        "make a file in the store" => drop(openat2(&store, "made", OFlags::WRONLY | OFlags::CREATE)?),
        "leave the store by .." => drop(openat2(&store, "../secret", OFlags::RDONLY)?),
        "leave the journal by .." => drop(openat2(&journal, "../secret", OFlags::RDONLY)?),
        "open a secret" => drop(File::open(place.join("secret"))?),
        "open /proc" => drop(File::open("/proc/self/status")?),
        "set the pattern of core files" => {
            drop(File::options().write(true).open("/proc/sys/kernel/core_pattern")?);
        }
        "move a file out of the journal" => rustix::fs::renameat(&journal, "kept", &store, "kept")?,
        "execute a program" => drop(Command::new("/bin/true").status()?),
        "make a socket" => drop(UdpSocket::bind("127.0.0.1:0")?),
        "connect to a socket" => drop(UnixStream::connect(place.join("socket"))?),
        "change a mode" => rustix::fs::fchmod(&open, Mode::from_raw_mode(0o777))?,
        "end its parent" => rustix::process::kill_process(parent.unwrap(), Signal::CONT)?,
        "look whether a process exists" => rustix::process::test_kill_process(Pid::INIT)?,
        "leave its mount namespace" => {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        }
        "get its capabilities back" => {
            let all = rustix::thread::CapabilitySet::SYS_ADMIN;
            let sets = rustix::thread::CapabilitySets { effective: all, permitted: all, inheritable: all };
            rustix::thread::set_capabilities(None, sets)?;
        }
        "mount" => rustix::mount::mount("none", place, "tmpfs", rustix::mount::MountFlags::empty(), None)?,
        _ => panic!("{deed}"),
    }
    Ok(())
}

/// Writes into whatever can be opened or made in `journal`, until nothing more can be written.
fn fill(journal: &OwnedFd) {
    // It says the same as EFBIG, and a server ignores it.
    SigSet::from(nix::sys::signal::Signal::SIGXFSZ).thread_block().unwrap();
    let mebibyte = vec![1; 1 << 20];
    let names =
        ["nodes", "nodes.2"].map(str::to_owned).into_iter().chain((0..100).map(|n| format!("more-{n}")));
    for name in names {
        let named = openat2(journal, &name, OFlags::WRONLY | OFlags::CREATE);
        let Ok(file) = named.or_else(|_| openat2(journal, ".", OFlags::WRONLY | OFlags::TMPFILE)) else {
            continue;
        };
        let mut file = File::from(file);
        while file.write(&mebibyte).is_ok() {}
        // It is closed by the end of the process.
        std::mem::forget(file);
    }
}

/// Does `deed` in a process of its own, which has given up its rights.
fn commit(deed: &str, place: &Path) -> Outcome {
    let arguments = ["--exact", "hostile::confined::the_process", "--ignored", "--test-threads=1"];
    let output = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .envs([(DEED, deed.as_ref()), (PLACE, place.as_os_str())])
        .output()
        .unwrap();
    Outcome::of(output.status)
}

/// What a server writes lies in a tmpfs that others need as well: of the host's services, and of other views.
#[test]
fn a_server_cannot_fill_the_file_system_of_its_state() {
    need!(Root, Landlock);
    let dir = scratch();
    let place = dir.path();
    let state = Own::mount("tmpfs", place, "size=64m,mode=700");
    for made in ["store", "journal"] {
        fs::create_dir(place.join(made)).unwrap();
    }
    for file in ["store/file", "journal/nodes", "journal/nodes.2"] {
        fs::write(place.join(file), "").unwrap();
    }
    assert_eq!(commit("fill the file system", place), Outcome::Done);
    let found = rustix::fs::statfs(place).unwrap();
    assert!(found.f_bavail > found.f_blocks * 2 / 5, "{} of {} are left", found.f_bavail, found.f_blocks);
    let files = fs::read_dir(place.join("journal")).unwrap();
    assert_eq!(files.count(), 2, "they can all be removed by name");
    drop(state);
}

/// Not a test: does what a test wants, and ends with what came of it.
#[test]
#[ignore = "a test starts it"]
fn the_process() {
    let (deed, place) = (std::env::var(DEED).unwrap(), PathBuf::from(std::env::var(PLACE).unwrap()));
    let code = match attempt(&deed, &place) {
        Ok(()) => DONE,
        Err(error) => error.raw_os_error().unwrap_or(1),
    };
    std::process::exit(code);
}

#[test]
fn a_confined_process_does_its_work_and_nothing_else() {
    need!(Root, Landlock);
    let denied = || Outcome::Error(Errno::ACCESS.raw_os_error());
    try_all(&[
        ("read the store", Outcome::Done),
        ("list the store", Outcome::Done),
        ("write a journal", Outcome::Done),
        ("make a thread", Outcome::Done),
        ("write to the store", denied()),
        ("make a file in the store", denied()),
        ("leave the store by ..", denied()),
        ("leave the journal by ..", denied()),
        ("open a secret", denied()),
        ("open /proc", denied()),
        ("set the pattern of core files", denied()),
        ("make a file beside the journal", denied()),
        ("make a file without a name", denied()),
        ("execute a program", Outcome::Killed),
        ("make a socket", Outcome::Killed),
        ("connect to a socket", Outcome::Killed),
        // Calls that the table does not know. They do not exist, and in builds for tests end the process.
        ("move a file out of the journal", Outcome::Killed),
        ("make a directory beside the journal", Outcome::Killed),
        ("remove the journal", Outcome::Killed),
        ("exchange the files of the journal", Outcome::Killed),
        ("change a mode", Outcome::Killed),
        ("end its parent", Outcome::Killed),
        ("look whether a process exists", Outcome::Killed),
        ("leave its mount namespace", Outcome::Killed),
        ("get its capabilities back", Outcome::Killed),
        ("mount", Outcome::Killed),
    ]);
}

/// A monitor mounts, executes its servers and asks Nix: what neither takes it cannot do.
#[test]
fn a_confined_monitor_does_its_work_and_not_everything_else() {
    need!(Root);
    let refused = || Outcome::Error(Errno::PERM.raw_os_error());
    try_all(&[
        ("monitor: make a thread", Outcome::Done),
        ("monitor: execute a program", Outcome::Done),
        ("monitor: connect to a socket", Outcome::Done),
        ("monitor: mount", Outcome::Done),
        ("monitor: make a pipe", Outcome::Done),
        ("monitor: make a namespace of users", refused()),
        ("monitor: make a namespace of networks", refused()),
        ("monitor: make a device", refused()),
        ("monitor: name the machine", refused()),
        ("monitor: set a clock", refused()),
        ("monitor: load a module with its capability", refused()),
        ("monitor: receive packets", Outcome::Error(Errno::AFNOSUPPORT.raw_os_error())),
        ("monitor: load a module", Outcome::Killed),
        ("monitor: take a descriptor", Outcome::Killed),
        ("monitor: clone a mount", Outcome::Killed),
    ]);
}

/// What Nix is led to do by a store, a setting or a message reaches its own state, and the links that it is there to make.
#[test]
fn the_confined_thread_of_nix_changes_its_state_and_links_alone() {
    need!(Root, Landlock);
    let denied = || Outcome::Error(Errno::ACCESS.raw_os_error());
    let refused = || Outcome::Error(Errno::PERM.raw_os_error());
    try_all(&[
        ("store: read", Outcome::Done),
        ("store: make a database", Outcome::Done),
        ("store: make and remove a link", Outcome::Done),
        ("store: connect to a socket", Outcome::Done),
        ("store: make a thread", Outcome::Done),
        ("store: make a file beside the links", denied()),
        ("store: write to the store", denied()),
        ("store: write a secret", denied()),
        ("store: remove a secret", denied()),
        ("store: make a directory", denied()),
        ("store: make a link elsewhere", denied()),
        ("store: move a file out of the state", denied()),
        ("store: write by a link", denied()),
        ("store: set the pattern of core files", denied()),
        ("store: execute a program", denied()),
        ("store: mount", refused()),
        ("store: leave its mount namespace", refused()),
    ]);
}

/// The threads that find out who asked for what can only look.
#[test]
fn the_confined_threads_that_look_only_look() {
    need!(Root, Landlock);
    let denied = || Outcome::Error(Errno::ACCESS.raw_os_error());
    let refused = || Outcome::Error(Errno::PERM.raw_os_error());
    try_all(&[
        ("missed: look for a name", Outcome::Done),
        ("missed: read the name of a process", denied()),
        ("missed: read the store", denied()),
        ("missed: write a secret", denied()),
        ("missed: mount", refused()),
        ("asked: read the name of a process", Outcome::Done),
        ("asked: write its own name", denied()),
        ("asked: read the store", denied()),
        ("asked: write a secret", denied()),
        ("asked: mount", refused()),
    ]);
}

/// Lets a process of its own try each deed, in a place where there is something to lose.
fn try_all(table: &[(&str, Outcome)]) {
    let dir = scratch();
    let place = dir.path();
    for made in ["store", "journal", "links"] {
        fs::create_dir(place.join(made)).unwrap();
    }
    for file in ["store/file", "journal/kept", "journal/nodes", "journal/nodes.2", "secret"] {
        fs::write(place.join(file), "x").unwrap();
    }
    let _listener = std::os::unix::net::UnixListener::bind(place.join("socket")).unwrap();
    for (deed, expected) in table {
        assert_eq!(&commit(deed, place), expected, "{deed}");
    }
    assert_eq!(fs::read(place.join("secret")).unwrap(), b"x");
}
