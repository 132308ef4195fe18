//! What a process can do that has given up its rights as a server does, and then tries everything else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix_store_fs::sandbox::{Sandbox, Server};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

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

/// A deed, by its name.
fn attempt(deed: &str, place: &Path) -> io::Result<()> {
    let (store, journal) = (directory(&place.join("store")), directory(&place.join("journal")));
    let open = File::open(place.join("store/file"))?;
    let parent = rustix::process::getppid();
    let server = Server { store: store.as_fd(), journal: Some(journal.as_fd()) };
    server.confine(Sandbox::Require).map_err(io::Error::other)?;
    match deed {
        "read the store" => drop(openat2(&store, "file", OFlags::RDONLY)?),
        "list the store" => drop(openat2(&store, ".", OFlags::RDONLY | OFlags::DIRECTORY)?),
        "make a journal" => {
            let mut file = File::from(openat2(&journal, "new", OFlags::WRONLY | OFlags::CREATE)?);
            file.write_all(b"x")?;
            rustix::fs::renameat(&journal, "new", &journal, "nodes")?;
            rustix::fs::unlinkat(&journal, "nodes", rustix::fs::AtFlags::empty())?;
        }
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
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
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
    let dir = scratch();
    let place = dir.path();
    for made in ["store", "journal"] {
        fs::create_dir(place.join(made)).unwrap();
    }
    for file in ["store/file", "journal/kept", "secret"] {
        fs::write(place.join(file), "x").unwrap();
    }
    let _listener = std::os::unix::net::UnixListener::bind(place.join("socket")).unwrap();
    let denied = || Outcome::Error(Errno::ACCESS.raw_os_error());
    let table = [
        ("read the store", Outcome::Done),
        ("list the store", Outcome::Done),
        ("make a journal", Outcome::Done),
        ("make a thread", Outcome::Done),
        ("write to the store", denied()),
        ("make a file in the store", denied()),
        ("leave the store by ..", denied()),
        ("leave the journal by ..", denied()),
        ("open a secret", denied()),
        ("open /proc", denied()),
        ("set the pattern of core files", denied()),
        ("move a file out of the journal", denied()),
        ("execute a program", Outcome::Killed),
        ("make a socket", Outcome::Killed),
        ("connect to a socket", Outcome::Killed),
        // Calls that the table does not know. They do not exist, and in builds for tests end the process.
        ("change a mode", Outcome::Killed),
        ("end its parent", Outcome::Killed),
        ("look whether a process exists", Outcome::Killed),
        ("leave its mount namespace", Outcome::Killed),
        ("get its capabilities back", Outcome::Killed),
        ("mount", Outcome::Killed),
    ];
    for (deed, expected) in table {
        let arguments = ["--exact", "hostile::confined::the_process", "--ignored", "--test-threads=1"];
        let output = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .envs([(DEED, deed.as_ref()), (PLACE, place.as_os_str())])
            .output()
            .unwrap();
        assert_eq!(Outcome::of(output.status), expected, "{deed}: {output:?}");
    }
    assert_eq!(fs::read(place.join("secret")).unwrap(), b"x");
}
