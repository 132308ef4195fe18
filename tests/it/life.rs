//! Mounting, being ready, unmounting; what is left behind, and what the mount table says.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::util::fixture::Fixture;
use crate::util::program::unique_name;
use crate::util::{DEADLINE, gate, mounts, tree};

/// READY=1 is said when the view answers, not before: the first look, at once, finds the closure.
#[test]
fn ready_means_the_view_answers() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    assert_eq!(tree::list(view.path()).unwrap().len(), fixture.members().len());
}

#[test]
fn the_mount_table_says_what_it_is() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = crate::util::scratch();
    let name = unique_name();
    let view = fixture.program().args(["--name", &name]).arg(dir.path()).mount_at(dir.path());
    let mount = mounts::at(view.path()).expect("a mount");
    assert_eq!(mount.source, format!("nix-store-fs:{name}"));
    assert_eq!(mount.kind, "fuse.nix-store-fs");
    for option in ["ro", "nosuid", "nodev"] {
        assert!(mount.options.iter().any(|found| found == option), "{option}: {mount:?}");
    }
    for option in ["ro", "default_permissions", "allow_other"] {
        assert!(mount.super_options.iter().any(|found| found == option), "{option}: {mount:?}");
    }
}

/// ps(1) shows both processes by the name of the program.
#[test]
fn both_processes_have_the_name_of_the_program() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = fixture.mount();
    for process in [view.pid(), server_of(view.pid())] {
        let name = fs::read_to_string(format!("/proc/{}/comm", process.as_raw_nonzero())).unwrap();
        assert_eq!(name, "nix-store-fs\n");
    }
}

/// A signal unmounts, exits 0, and removes a mount point that the program had made.
#[test]
fn sigterm_and_sigint_unmount() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for signal in [Signal::TERM, Signal::INT] {
        for existed in [true, false] {
            let dir = crate::util::scratch();
            let at = dir.path().join("a/view");
            fs::create_dir(dir.path().join("a")).unwrap();
            if existed {
                fs::create_dir(&at).unwrap();
            }
            let mut view = fixture.program().args(["--name", &unique_name()]).arg(&at).mount_at(&at);
            assert!(mounts::at(&at).is_some());
            view.signal(signal);
            assert_eq!(view.end().code(), Some(0), "{signal:?}: {}", view.stderr());
            assert!(mounts::at(&at).is_none(), "{signal:?}: still mounted");
            assert_eq!(at.exists(), existed, "{signal:?}: a mount point is removed if the program made it");
            assert!(dir.path().join("a").exists());
        }
    }
}

/// A reader that is still inside does not keep the program from ending, and is named.
#[test]
fn sigterm_with_an_open_file() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = fixture.mount();
    let open = fs::File::open(view.path().join(&fixture.data.base).join("text")).unwrap();
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(mounts::at(view.path()).is_none());
    drop(open);
    let said = view.stderr();
    let line: Vec<&str> = said.lines().filter(|line| line.contains("still in use by")).collect();
    assert!(matches!(line[..], [line] if line.contains(&format!("({})", std::process::id()))), "{said}");
    assert!(line[0].ends_with("; their open files will fail"), "{said}");
}

/// Programs that wait for a server that hangs. To look at one that waits to close a file may be to wait as well: the
/// end comes all the same, and frees them.
#[test]
fn sigterm_with_a_server_that_hangs() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = fixture.mount();
    let data = view.path().join(&fixture.data.base);
    // The kernel knows both names, and does not forget them; and nobody has closed a file of this view yet.
    let names = ["text", "long"].map(|name| data.join(name));
    let _known = names.each_ref().map(|name| rustix::fs::open(name, OFlags::PATH, Mode::empty()).unwrap());
    let scratch = crate::util::scratch();
    let helper = crate::util::compile("closes.c", scratch.path());
    let mut closes =
        Command::new(helper).arg(&names[0]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(closes.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "open\n");
    let server = server_of(view.pid());
    kill_process(server, Signal::STOP).unwrap();
    closes.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut reads =
        Command::new("cat").arg(&names[1]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The first one was told first; to ask the kernel what it does would be to wait for it.
    let until = Instant::now() + DEADLINE;
    while !waits_for(reads.id(), &names[1]) {
        assert!(Instant::now() < until, "the reader does not wait for the server");
        std::thread::sleep(Duration::from_millis(1));
    }
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(mounts::at(view.path()).is_none());
    assert!(view.stderr().contains(&format!("cat ({})", reads.id())), "{}", view.stderr());
    assert!(closes.wait().unwrap().success());
    assert!(!reads.wait().unwrap().success(), "nobody was there to answer");
}

/// The server alone asks the kernel to keep processors awake, and only where it was told to, or a trial of its own shows that it
/// saves time. Where that may not be asked it is said, and the view served.
#[test]
fn processors_are_kept_awake_where_it_is_asked_for() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let device = Path::new("/dev/cpu_dma_latency");
    let has = |process: Pid| {
        let dir = format!("/proc/{}/fd", process.as_raw_nonzero());
        let links = fs::read_dir(dir).unwrap().map(|link| fs::read_link(link.unwrap().path()));
        links.filter(|target| target.as_ref().is_ok_and(|target| target == device)).count()
    };
    let may_ask = fs::File::options().write(true).open(device).is_ok();
    for (polling, asks) in [("auto", may_ask), ("always", may_ask), ("never", false)] {
        let mut view = fixture.program().args(["-vv", "--idle-polling", polling]).mount();
        let tried = "whether to keep processors awake";
        if polling == "auto" && asks {
            // By its monitor's first look, and in its sandbox.
            view.said_soon(tried);
        }
        // More than make a flow.
        let data = view.path().join(&fixture.data.base);
        assert!((0..100).all(|n| !data.join(format!("missing-{n}")).exists()));
        assert_eq!(has(server_of(view.pid())), usize::from(asks), "{polling}");
        assert_eq!(has(view.pid()), 0, "{polling}: it would outlive the server");
        assert_eq!(view.stderr().contains(tried), polling == "auto" && asks, "{}", view.stderr());
        view.signal(Signal::TERM);
        assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
        let warned = view.stderr().contains("WARN cannot keep idle CPUs polling");
        assert_eq!(warned, polling == "always" && !asks, "{}", view.stderr());
    }
}

fn server_of(monitor: Pid) -> Pid {
    let number = monitor.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
    Pid::from_raw(children.split_whitespace().next_back().unwrap().parse().unwrap()).unwrap()
}

/// Whether it has `file` open and is in a sleep that it does not end by itself. The sleep alone says nothing: a program
/// that is read from disk at its start sleeps so as well.
fn waits_for(process: u32, file: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{process}/fd"))
        .is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file)));
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    open && status.lines().any(|line| line.starts_with("State:") && line.contains('D'))
}

#[test]
fn somebody_else_unmounts() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    for flags in [UnmountFlags::empty(), UnmountFlags::DETACH] {
        let mut view = fixture.mount();
        rustix::mount::unmount(view.path(), flags).unwrap();
        assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
        assert!(mounts::at(view.path()).is_none());
    }
}

/// Without a mount point it is `/run/nix-store-fs/NAME`, and nothing of that is there afterwards.
#[test]
fn the_default_mount_point() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let name = unique_name();
    let at = Path::new("/run/nix-store-fs").join(&name);
    let mut view = fixture.program().args(["--name", &name]).mount_at(&at);
    assert_eq!(tree::list(&at).unwrap().len(), fixture.members().len());
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(mounts::at(&at).is_none());
    assert!(!at.exists(), "the mount point is left behind");
}

/// The name comes from the last component of the path, or from the store path's name.
#[test]
fn the_default_name() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let profile = unique_name();
    fixture.store.profile(&format!("per-container/{profile}/system"), &fixture.system.path);
    let container = fixture.store.profiles().join("per-container").join(&profile);
    let named = unique_name();
    let system = fixture.store.add(&named, &[], |path| fs::write(path, "").unwrap());
    for (path, name) in [(container, profile), (PathBuf::from(&system.path), named)] {
        let dir = crate::util::scratch();
        let view = crate::util::program::Program::on(&fixture.store)
            .arg("--system")
            .arg(&path)
            .arg(dir.path())
            .mount_at(dir.path());
        assert_eq!(mounts::at(view.path()).unwrap().source, format!("nix-store-fs:{name}"));
    }
}

/// Two views of one store side by side, each with its own closure.
#[test]
fn two_views_at_once() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let first = fixture.mount();
    let second =
        crate::util::program::Program::on(&fixture.store).args(["--system", &fixture.file.path]).mount();
    assert_eq!(tree::list(first.path()).unwrap().len(), fixture.members().len());
    assert_eq!(tree::list(second.path()).unwrap(), [PathBuf::from(&fixture.file.base)]);
}

/// With any number of threads the same files are served.
#[test]
fn options_of_serving() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    for options in [&["--threads", "1"][..], &["--threads", "5"], &["--io", "cached"]] {
        let view = fixture.program().args(options).mount();
        tree::assert_same(&real, &tree::walk(view.path(), &fixture.data.base));
    }
}

/// The same files when the kernel reads them by itself.
#[test]
fn passthrough_serves_the_same() {
    need!(Root, Fuse, Nix, Passthrough);
    let fixture = Fixture::new();
    let view = fixture.program().args(["--io", "passthrough"]).mount();
    for _ in 0..2 {
        for base in fixture.members() {
            tree::assert_same(&tree::walk(&fixture.store.physical(), &base), &tree::walk(view.path(), &base));
        }
    }
}

/// A kernel that does not read files by itself says so where that was asked for, with what to do; nothing stays mounted.
#[test]
fn passthrough_is_refused_by_a_kernel_without_it() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let place = crate::util::scratch();
    let program = fixture.program().args(["--io", "passthrough"]);
    if gate::kernel_release() >= (6, 9) {
        // It has it.
        assert!(!program.mount().stderr().contains("passthrough"));
        return;
    }
    let finished = program.arg(place.path()).run();
    assert_eq!(finished.status.code(), Some(7), "{finished:?}");
    assert!(
        finished.stderr.contains("--io passthrough needs Linux 6.9 or newer; leave it out"),
        "{finished:?}"
    );
    assert!(mounts::at(place.path()).is_none(), "{finished:?}");
}
