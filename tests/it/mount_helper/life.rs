//! From the mount to the end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::host::Host;
use super::{mount, names, options, stderr};
use crate::util::DEADLINE;
use crate::util::fixture::Fixture;
use crate::util::gate::Need;
use crate::util::hold;
use crate::util::program::unique_name;
use crate::util::random::{Random, seed};
use crate::util::store::{Daemon, nix_environment};

/// `mount` returns when the view answers, `findmnt` shows what is so, and `umount` ends all of it.
#[test]
fn mount_returns_when_the_view_answers_and_umount_ends_all_of_it() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let (shown, options) = (at.display(), options(&fixture, &name));
    for kind in ["fuse.nix-store-fs", "nix-store-fs"] {
        let mount = format!(
            "mount -t {kind} {} {shown} -o {options},io=cached,watch,noatime,nofail,x-systemd.automount",
            fixture.system.path
        );
        let output = host.try_run(&mount);
        assert!(output.status.success(), "{output:?}");
        assert_eq!((output.stdout.as_slice(), stderr(&output).as_str()), (&b""[..], ""));
        assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
        let found = host.run(&format!("findmnt --kernel -n -o SOURCE,FSTYPE,OPTIONS {shown}"));
        let found: Vec<&str> = found.split_whitespace().collect();
        let expected = "ro,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        assert_eq!(found, [format!("nix-store-fs:{name}").as_str(), "fuse.nix-store-fs", expected]);

        // Nothing of mount's: neither a pipe that somebody waits for nor its directory.
        for (pid, line) in host.processes() {
            let link = |what: &str| fs::read_link(format!("/proc/{}/{what}", pid.as_raw_nonzero())).unwrap();
            // A server has its monitor there.
            let [input, output] = ["fd/0", "fd/1"].map(link);
            assert!(input == Path::new("/dev/null") || line.contains("server"), "{line} reads {input:?}");
            assert_eq!(output, Path::new("/dev/null"), "{line}");
            assert_eq!(link("cwd"), Path::new("/"), "{line}");
        }
        host.run(&format!("umount {shown}"));
        host.assert_nothing_left(&[&name]);
        let table = fs::read_to_string(host.inside(Path::new("/run/mount/utab"))).unwrap_or_default();
        assert!(!table.contains(&*at.to_string_lossy()), "{table}");
    }
    assert_eq!(names(&at), BTreeSet::new());
}

/// Whoever waits for the end of a pipe does not wait for the view.
#[test]
fn a_pipe_of_the_caller_does_not_stay_open() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let mount = mount(&fixture, &at, &name);
    host.run(&format!("({mount}) 2>&1 | cat"));
    assert_eq!(host.mounts().len(), 1);
}

/// Who starts the helper may ignore SIGCHLD, which is inherited: no child could be waited for then.
#[test]
fn a_caller_may_ignore_the_end_of_its_children() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let (path, options) = (&fixture.system.path, options(&fixture, &name));
    let helper = "env --ignore-signal=CHLD /sbin/mount.fuse.nix-store-fs";
    host.run(&format!("{helper} {path} {} -o {options}", at.display()));
    assert_eq!(host.mounts().len(), 1);
    host.run(&format!("umount {}", at.display()));
    host.assert_nothing_left(&[&name]);
}

/// `mount -o remount` reloads, and says what it cannot change.
#[test]
fn a_remount_reloads() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let shown = at.display();
    let profile = fixture.store.profile("web", &fixture.data.path);
    let store = fixture.store.uri();
    let options = format!("store={store},system={}", profile.display());
    let mount = |options: &str| {
        host.try_run(&format!("mount -t fuse.nix-store-fs nix-store-fs:{name} {shown} -o {options}"))
    };
    let first = mount(&options);
    assert!(first.status.success(), "{first:?}");
    let inside = host.inside(&at);
    assert!(inside.join(&fixture.data.base).exists() && !inside.join(&fixture.outside.base).exists());
    let connection = rustix::fs::stat(&inside).unwrap().st_dev;

    fs::remove_file(&profile).unwrap();
    symlink(&fixture.outside.path, &profile).unwrap();
    host.run(&format!("mount -o remount {shown}"));
    assert!(inside.join(&fixture.outside.base).exists());
    assert_eq!(rustix::fs::stat(&inside).unwrap().st_dev, connection, "the same mount");

    let again = mount(&format!("{options},remount,rw,noatime"));
    assert!(again.status.success(), "{again:?}");
    for (other, said) in [
        (format!("{options},remount,watch"), "without watch"),
        (format!("{options},remount,prune"), "without prune"),
        (format!("{options},remount,report"), "without report"),
        (format!("store=auto,system={},remount", profile.display()), "store is 'auto'"),
        (format!("store={store},system=/other,remount"), "system is '/other'"),
        (format!("{options},root=/other,remount"), "other roots"),
        (format!("{options},roots-file=/other,remount"), "roots-file is '/other'"),
    ] {
        let output = mount(&other);
        assert_eq!(output.status.code(), Some(32), "{other}: {output:?}");
        let text = stderr(&output);
        assert!(text.contains("changes none of its options") && text.contains(said), "{other}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    // A reload that fails is one.
    fs::remove_file(&profile).unwrap();
    let output = host.try_run(&format!("mount -o remount {shown}"));
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert!(inside.join(&fixture.outside.base).exists());
}

/// Lazily, and by force: a reader keeps what it has open in the first case, and gets an error in the second.
#[test]
fn lazy_and_forced_unmounts_end_it() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let mount = mount(&fixture, &at, &name);
    let text = at.join(&fixture.data.base).join("text");
    let script = format!("{mount} && exec 9<{} && umount -l {} && cat <&9", text.display(), at.display());
    assert_eq!(host.run(&script), "hello\n");
    host.assert_nothing_left(&[&name]);
    host.run(&format!("{mount} && umount -f {}", at.display()));
    host.assert_nothing_left(&[&name]);
    let busy = host.try_run(&format!("{mount} && cd {} && umount {}", at.display(), at.display()));
    assert_eq!(busy.status.code(), Some(32), "{busy:?}");
    assert_eq!(host.mounts().len(), 1);
}

/// A killed server is replaced. A signal to the monitor unmounts; a killed monitor leaves a view that is read, and that umount ends;
/// what is left when both are killed is cleared away by the next mount.
#[test]
fn signals_are_those_of_every_view() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let mount = mount(&fixture, &at, &name);
    let monitor = || {
        let is_monitor = |(_, line): &(Pid, String)| line.contains("mount.fuse.nix-store-fs");
        host.processes().into_iter().find(is_monitor).unwrap().0
    };
    host.run(&mount);
    let server = host.processes().into_iter().find(|(_, line)| line.contains("server")).unwrap().0;
    kill_process(server, Signal::KILL).unwrap();
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
    kill_process(monitor(), Signal::TERM).unwrap();
    host.assert_nothing_left(&[&name]);

    host.run(&mount);
    kill_process(monitor(), Signal::KILL).unwrap();
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
    let output = host.try_run(&format!("mount -o remount {}", at.display()));
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    host.run(&format!("umount {}", at.display()));
    // Its state is cleared away by the next one, and so is a mount that nobody serves.
    host.run(&mount);
    for (pid, _) in host.processes() {
        kill_process(pid, Signal::KILL).unwrap();
    }
    let until = Instant::now() + DEADLINE;
    while !host.processes().is_empty() {
        assert!(Instant::now() < until, "{:?}", host.processes());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let dead = host.try_run(&format!("ls {}", at.display()));
    assert!(stderr(&dead).contains("not connected"), "{dead:?}");
    host.run(&mount);
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
    host.run(&format!("umount {}", at.display()));
    host.assert_nothing_left(&[&name]);
}

/// Helpers on a fixture's view that a test kills.
struct Killed {
    fixture: Fixture,
    host: Host,
    name: String,
    at: PathBuf,
    /// Where it is held back ([`hold`]), and leaves word of how far it has come.
    points: TempDir,
}

impl Killed {
    fn new() -> Self {
        let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
        let at = host.place("view");
        Self { fixture, host, name, at, points: crate::util::scratch() }
    }

    fn start(&self, store: &str) -> Child {
        let mut command = self.host.namespace.command("/sbin/mount.fuse.nix-store-fs");
        nix_environment(&mut command).env("NSF_HOLD", self.points.path());
        let options = format!("store={store},name={}", self.name);
        command.args([&self.fixture.system.path, &self.at.display().to_string(), "-o", &options]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn until(&self, what: impl Fn() -> bool) {
        let until = Instant::now() + DEADLINE;
        while !what() {
            assert!(Instant::now() < until, "{:?}", self.host.processes());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        self.host.assert_nothing_left(&[&self.name]);
    }

    #[track_caller]
    fn unmount(&self) {
        assert_eq!(self.host.mounts().len(), 1);
        self.host.run(&format!("umount {}", self.at.display()));
        self.assert_nothing_left();
    }
}

/// A helper that is killed takes what it has begun along: while the store does not answer, and at any moment.
#[test]
fn a_killed_helper_leaves_nothing() {
    need!(Root, Fuse, Nix);
    let killed = Killed::new();
    let daemon = Daemon::start(&killed.fixture.store);
    daemon.freeze();
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        let mut waiting = killed.start(daemon.uri());
        // The helper, the monitor, and a server that is ready for the view.
        killed.until(|| killed.host.processes().len() >= 3);
        kill_process(Pid::from_child(&waiting), signal).unwrap();
        waiting.wait().unwrap();
        killed.assert_nothing_left();
    }

    let is_known = Need::ProcessEnd.missing().is_none();
    // Renamed by a helper that comes there.
    let (last, come) = (killed.points.path().join("keeping"), killed.points.path().join("keeping.held"));
    let mut random = Random::new(seed("moments at which a helper is killed"));
    for _ in 0..crate::util::number("NSF_KILLS", 20) {
        let _former = fs::remove_file(&come);
        fs::write(&last, "").unwrap();
        let mut started = killed.start(&killed.fixture.store.uri());
        // Not a wait for anything: the moment is what is tried.
        std::thread::sleep(std::time::Duration::from_micros(random.below(120_000) as u64));
        let _ended = kill_process(Pid::from_child(&started), Signal::KILL);
        let has_succeeded = started.wait().unwrap().success();
        if has_succeeded {
            killed.unmount();
        } else if come.exists() && !is_known {
            // Between its last call and its end: no monitor can know of this kernel whether it was killed.
            killed.host.try_run(&format!("umount {}", killed.at.display()));
        }
        killed.assert_nothing_left();
    }
}

/// Also one that has told the monitor that it has heard of the view, which was its last call; one that ends by itself then leaves it.
#[test]
fn a_helper_that_is_killed_after_its_last_call_leaves_nothing() {
    need!(Root, Fuse, Nix, ProcessEnd);
    let killed = Killed::new();
    for signal in [Signal::KILL, Signal::TERM] {
        let (held, is_held) = hold::arm(killed.points.path(), "kept");
        let mut started = killed.start(&killed.fixture.store.uri());
        killed.until(|| is_held.exists());
        assert_eq!(killed.host.mounts().len(), 1);
        kill_process(Pid::from_child(&started), signal).unwrap();
        assert!(!started.wait().unwrap().success());
        killed.assert_nothing_left();
        drop(held);
        fs::remove_file(is_held).unwrap();
    }
    let (held, is_held) = hold::arm(killed.points.path(), "kept");
    let mut started = killed.start(&killed.fixture.store.uri());
    killed.until(|| is_held.exists());
    drop(held);
    assert!(started.wait().unwrap().success());
    // Its monitor has heard so by now: it answers one after the other.
    killed.host.run(&format!("mount -o remount {}", killed.at.display()));
    killed.unmount();
}
