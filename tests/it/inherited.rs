//! What a process gets from the one that starts it: signals, limits, descriptors, a umask, a terminal, a service
//! manager that does not read. None of it makes a view behave otherwise.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::util::descriptors::access;
use crate::util::fixture::Fixture;
use crate::util::load;
use crate::util::program::{Mounted, Program, unique_name};
use crate::util::service::Service;
use crate::util::user::NOBODY;
use crate::util::{DEADLINE, compile, compile_with, mounts, scratch, store, tree};

/// The program through a shell that does `first` before.
fn after(first: &str, program: Program) -> Program {
    program.inside(["sh", "-c", &format!(r#"{first}; exec "$@""#), "sh"])
}

/// Waits until `is_so`.
fn wait(view: &Mounted, what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}; it said:\n{}", view.stderr());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// SIGTERM ends it well.
fn stop(mut view: Mounted) {
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(mounts::at(view.path()).is_none(), "still mounted");
}

/// With every signal ignored and blocked by whoever starts it, a dead server is replaced and SIGTERM ends the view.
#[test]
fn signals_that_were_ignored_or_blocked() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let helper = compile("inherited.c", dir.path());
    let view = fixture.program().inside([helper.as_path(), Path::new("signals")]).mount();
    let first = view.server_now().unwrap();
    // Not SIGKILL: this one it could ignore.
    kill_process(first, Signal::TERM).unwrap();
    assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    wait(&view, "the server was not replaced", || view.server_now().is_some_and(|now| now != first));
    stop(view);
}

/// Soft limits are for others: what may be used is used.
#[test]
fn soft_limits_are_raised() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = after("ulimit -S -f 1; ulimit -S -t 7; ulimit -S -n 30", fixture.program()).mount();
    for process in [view.pid(), view.server_now().unwrap()] {
        let text = fs::read_to_string(format!("/proc/{}/limits", process.as_raw_nonzero())).unwrap();
        for name in ["Max cpu time", "Max file size", "Max open files"] {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[0], words[1], "{name}: soft and hard limit");
        }
    }
    stop(view);
}

/// A limit of the size of files is to the journal what a full disk is: the view is served on by the same server.
#[test]
fn a_hard_limit_of_the_size_of_files() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let many = load::add_many(&fixture.store, 3000);
    // In blocks of 512 bytes: enough for Nix's database, not for the journal of so many names.
    let program = fixture.program().args(["--root", &many.path]);
    let view = after("ulimit -f 128", program).mount();
    let server = view.server_now();
    let seen = tree::walk(view.path(), &many.base);
    tree::assert_same(&tree::walk(&fixture.store.physical(), &many.base), &seen);
    assert_eq!(view.server_now(), server, "the server had to be replaced: {}", view.stderr());
    assert_eq!(view.said_soon("will not survive"), 1, "{}", view.stderr());
    stop(view);
}

/// A number in `LISTEN_FDS` that is not open never becomes something that the program opens for itself.
#[test]
fn a_stored_descriptor_that_is_not_open() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let first = "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=fuse:fuse; exec 3<&- 4<&-";
    let view = after(first, fixture.program()).mount();
    assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    for process in [view.pid(), view.server_now().unwrap()] {
        let environment = fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).unwrap();
        let has = environment.split(|&byte| byte == 0).any(|variable| variable.starts_with(b"LISTEN_"));
        // What the kernel shows of the monitor is what it was started with.
        assert!(process == view.pid() || !has, "the server gets the variables as well");
    }
    stop(view);
}

/// What is stored as the device and is another file is not the device: the view is mounted again.
#[test]
fn a_stored_descriptor_that_is_another_file() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let (dir, name) = (scratch(), unique_name());
    let program = || fixture.program().args(["--name", &name]).arg(dir.path());
    let mut killed = program().mount_at(dir.path());
    killed.signal(Signal::KILL);
    assert!(!killed.end().success());
    let first = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=fuse; exec 3</dev/zero";
    let view = after(first, program()).mount_at(dir.path());
    assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    assert_eq!(view.said_soon("not the FUSE device"), 1, "{}", view.stderr());
    stop(view);
}

/// What the program makes is open to those whom it is for, whatever the umask.
#[test]
fn a_umask_that_forbids_everything() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let at = dir.path().join("made/view");
    let program = fixture.program().args(["--name", &unique_name()]).arg(&at);
    let view = after("umask 0777", program).mount_at(&at);
    let made = fs::metadata(dir.path().join("made")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
    let text = at.join(&fixture.data.base).join("text");
    let read = Command::new("setpriv").args(store::as_user(NOBODY)).arg("cat").arg(text).output().unwrap();
    assert_eq!(read.stdout, b"hello\n", "{}", String::from_utf8_lossy(&read.stderr));
    stop(view);
}

/// A view started from a terminal, and the fifo that hangs the terminal up.
fn on_terminal(fixture: &Fixture, dir: &Path) -> Mounted {
    let (helper, fifo) = (compile("inherited.c", dir), dir.join("fifo"));
    rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    fixture.program().arg("-vv").inside([&helper, Path::new("terminal"), &fifo]).mount()
}

/// The number of a process's terminal, as proc_pid_stat(5) tells.
fn terminal_of(process: Pid) -> String {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap();
    let words = stat.rsplit_once(") ").unwrap().1;
    words.split(' ').nth(4).unwrap().to_owned()
}

/// The terminal's job control is not the server's: it writes its log there and is never stopped for it.
#[test]
fn a_terminal_that_stops_background_processes() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let view = on_terminal(&fixture, dir.path());
    assert_ne!(terminal_of(view.pid()), "0", "the test shows nothing");
    assert_eq!(terminal_of(view.server_now().unwrap()), "0");
    assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    stop(view);
}

/// What is typed at the terminal is not for a server to read, which a container may have taken over.
#[test]
fn a_server_writes_to_the_terminal_and_cannot_read_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let view = on_terminal(&fixture, dir.path());
    let terminal = fs::read_link(format!("/proc/{}/fd/2", view.pid().as_raw_nonzero())).unwrap();
    assert!(terminal.starts_with("/dev/pts"), "the test shows nothing: {}", terminal.display());
    assert!(access(view.pid(), &terminal).contains(&OFlags::RDWR), "the test shows nothing");
    assert_eq!(access(view.server_now().unwrap(), &terminal), [OFlags::WRONLY]);
    stop(view);
}

/// A terminal that goes takes nothing with it but the log.
#[test]
fn a_terminal_that_hangs_up() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let view = on_terminal(&fixture, dir.path());
    let server = view.server_now().unwrap();
    drop(File::options().write(true).open(dir.path().join("fifo")).unwrap());
    wait(&view, "the terminal is still there", || terminal_of(view.pid()) == "0");
    let reload = Program::new().arg("reload").arg(view.path()).run();
    assert_eq!(reload.status.code(), Some(0), "{}", reload.stderr);
    assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
    assert_eq!(view.server_now(), Some(server), "the server had to be replaced");
    stop(view);
}

/// A start that fails, or is ended while the store is being opened, ends by itself, with its code, and leaves nothing.
#[test]
fn a_start_that_ends_early() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let (start, file) = (dir.path().join("start"), dir.path().join("file"));
    fs::create_dir(&start).unwrap();
    fs::write(&file, "no directory\n").unwrap();
    let there = format!("cd '{}'", start.display());
    let next = AtomicUsize::new(0);
    let run = || {
        while next.fetch_add(1, Ordering::Relaxed) < 20 {
            // The server is started by way of /proc.
            let script = format!(r#"umount -l /proc && {there} && exec "$@""#);
            let program = fixture.program().args(["--name", &unique_name()]).arg(dir.path().join("view"));
            let finished = program.inside(["unshare", "-m", "sh", "-c", &script, "sh"]).run();
            assert_eq!(finished.status.signal(), None, "{finished:?}");
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            assert!(finished.stderr.contains("/proc is not mounted"), "{finished:?}");
            let program = fixture.program().args(["--name", &unique_name()]).arg(&file);
            assert_eq!(after(&there, program).run().status.code(), Some(6));
            // It holds its name before the store is opened.
            let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
            service.start();
            service.wait_locked();
            service.signal(Signal::TERM);
            assert_eq!(service.ended().code(), Some(0), "{}", service.log());
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(run))));
    assert_eq!(tree::list(&start).unwrap(), Vec::<std::path::PathBuf>::new());
}

/// Exit handlers of libraries never run, as a thread may be at work in such a library.
#[test]
fn a_process_ends_without_exit_handlers() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let library = compile_with("exits.c", dir.path(), &["-shared", "-fPIC"]);
    let ran = dir.path().join("ran");
    let watched = |program: Program| {
        let [library, ran] =
            [("LD_PRELOAD", &library), ("EXITS", &ran)].map(|(key, at)| format!("{key}={}", at.display()));
        program.inside(["env", &library, &ran])
    };
    let true_ = Program::new().binary("/bin/true");
    assert!(watched(true_).run().status.success());
    assert!(ran.exists(), "the test shows nothing");
    fs::remove_file(&ran).unwrap();
    for (program, code) in [
        (Program::new().arg("--version"), 0),
        (Program::new().arg("--help"), 0),
        (Program::new().arg("--nonsense"), 2),
        (fixture.program().arg("--dump-closure"), 0),
        (Program::on(&fixture.store).args(["--system", "/nonexistent", "--dump-closure"]), 3),
        (Program::new().binary(Program::SERVER), 1),
    ] {
        let finished = watched(program).run();
        assert_eq!(finished.status.code(), Some(code), "{finished:?}");
        assert!(!ran.exists(), "{finished:?}");
    }
    // The monitor and its server.
    stop(watched(fixture.program()).mount());
    assert!(!ran.exists());
}

/// A service manager that does not read keeps nothing waiting.
#[test]
fn a_service_manager_that_does_not_read() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.program().mount_unread();
    let text = view.path().join(&fixture.data.base).join("text");
    wait(&view, "the view does not answer", || text.exists());
    stop(view);
}

/// One that reads later hears what it waits for.
#[test]
fn a_service_manager_that_reads_later() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = fixture.program().mount_unread();
    let text = view.path().join(&fixture.data.base).join("text");
    wait(&view, "the view does not answer", || text.exists());
    for _ in 0..3 {
        let reload = Program::new().arg("reload").arg(view.path()).run();
        assert_eq!(reload.status.code(), Some(0), "{}", reload.stderr);
    }
    view.wait_ready();
    stop(view);
}
