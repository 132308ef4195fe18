//! `mount.fuse.nix-store-fs`, called by the machine's own mount(8), in a mount namespace where it is installed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::util::DEADLINE;
use crate::util::fixture::Fixture;
use crate::util::namespace::Namespace;
use crate::util::program::{Program, unique_name};
use crate::util::random::{Random, seed};
use crate::util::store::{Daemon, NixStore, as_user, nix_environment};
use crate::util::user::{NOBODY, User};

/// What installs the helper: the machine's directory has it on top, in this mount namespace alone. Views of tests that run at the same
/// time are taken out of it.
const INSTALL: &str = r#"
set -eu
while read -r source target kind rest; do
    if [ "$kind" = fuse.nix-store-fs ]; then umount -l "$target" || true; fi
done < /proc/self/mounts
sbin=$(readlink -f /sbin)
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/utab"
mount -t overlay none -o "lowerdir=$sbin,upperdir=$1/upper,workdir=$1/work" "$sbin"
ln -s "$2" "$sbin/mount.fuse.nix-store-fs"
ln -s "$2" "$sbin/mount.nix-store-fs"
# What libmount writes.
mkdir -p /run/mount
mount --bind "$1/utab" /run/mount
"#;

/// A mount namespace in which mount(8) knows views.
struct Host {
    namespace: Namespace,
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = crate::util::scratch();
        let layers = dir.path().join("layers");
        fs::create_dir(&layers).unwrap();
        let host = Self { namespace: Namespace::new(), dir };
        host.run(&format!("set -- {} {}; {INSTALL}", layers.display(), Program::PATH));
        host
    }

    /// A directory to mount on, seen from everywhere.
    fn place(&self, name: &str) -> PathBuf {
        let at = self.dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        at
    }

    /// A path of the namespace, for this side.
    fn inside(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.namespace.pid(), path.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.namespace.command("timeout");
        nix_environment(&mut command).env("LC_ALL", "C").stdin(Stdio::null());
        command.args(["-k", "5", "100", program]);
        command
    }

    fn try_run(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).output().unwrap()
    }

    #[track_caller]
    fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fstab(&self, line: &str) -> String {
        let file = self.dir.path().join("fstab");
        fs::write(&file, format!("{line}\n")).unwrap();
        file.display().to_string()
    }

    /// Processes in the namespace, but for the one that keeps it, by their command lines.
    fn processes(&self) -> Vec<(Pid, String)> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let holder = self.namespace.pid().to_string();
        let own = namespace(&holder).unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let numbers = all.filter_map(|entry| entry.file_name().into_string().ok());
        let numbers = numbers.filter(|name| name.parse::<i32>().is_ok() && *name != holder);
        numbers
            .filter(|pid| namespace(pid) == Some(own.clone()))
            .map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                (Pid::from_raw(pid.parse().unwrap()).unwrap(), line)
            })
            .collect()
    }

    /// Waits until nothing of a view is left.
    #[track_caller]
    fn assert_nothing_left(&self, names: &[&str]) {
        let until = Instant::now() + DEADLINE;
        let state = |name: &&str| Path::new("/run/nix-store-fs/.state").join(name);
        loop {
            // A server that ends is not in the namespace any more, and not reaped yet.
            let (processes, mounts) = (self.processes(), self.mounts());
            let states: Vec<_> = names.iter().map(state).filter(|state| state.exists()).collect();
            if processes.is_empty() && mounts.is_empty() && states.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{processes:?} {mounts:?} {states:?} are left");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The mount table's lines of views.
    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mounts", self.namespace.pid())).unwrap();
        table.lines().filter(|line| line.contains(" fuse.nix-store-fs ")).map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _all = self.try_run("umount -l -a -t fuse.nix-store-fs");
        let until = Instant::now() + DEADLINE;
        while !self.processes().is_empty() && Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for (pid, line) in self.processes() {
            eprintln!("{line} had not ended");
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The options that every view of a fixture has, with a name of its own.
fn options(fixture: &Fixture, name: &str) -> String {
    format!("store={},name={name}", fixture.store.uri())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

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
    let mount = format!(
        "mount -t fuse.nix-store-fs {} {} -o {}",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    );
    host.run(&format!("({mount}) 2>&1 | cat"));
    assert_eq!(host.mounts().len(), 1);
}

/// Each wrong call is one line, mount's exit code, and no view.
#[test]
fn wrong_options_are_one_line_and_an_exit_code() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    fs::write(host.dir.path().join("file"), "").unwrap();
    fs::create_dir_all(host.dir.path().join("full/of")).unwrap();
    let good = options(&fixture, &name);
    let system = fixture.system.path.as_str();
    let dir = host.dir.path().display();
    let here = at.display();
    for (arguments, code, said) in [
        (format!("{system} {here} -o {good},watc"), 1, "unknown mount option 'watc'"),
        (format!("{system} {here} -o {good},errors=remount-ro"), 1, "unknown mount option 'errors'"),
        (format!("{system} {here} -o {good},watch=1"), 1, "'watch' takes no value"),
        (format!("{system} {here} -o {good},gc-root"), 1, "'gc-root' needs a value"),
        (format!("{system} {here} -o {good},io=fast"), 1, "invalid value 'fast' for '--io <IO>'"),
        (format!("{system} {here} -o {good},threads=0"), 1, "invalid value '0'"),
        (format!("{system} {here} -o {good},name=other"), 1, "'--name <NAME>' cannot be used multiple times"),
        (format!("{system} {here} -o {good},system=/a"), 1, "both say what the view shows"),
        (format!("{system} {here} -o {good},from=/a"), 1, "both say what the view shows"),
        (format!("none {here} -o {good}"), 1, "nothing to serve"),
        (format!("none {here} -o {good},from=/a,gc-root=/b"), 1, "cannot be used with"),
        (format!("{system} {here} -o {good},untrusted=a"), 1, "not absolute"),
        (format!("nix-store-fs:a/b {here} -o system={system},store=auto"), 1, "cannot be the name of a view"),
        (format!("{system} {dir}/absent -o {good}"), 32, "does not exist"),
        (format!("{system} {dir}/file -o {good}"), 32, "not a directory"),
        (format!("{system} {dir}/full -o {good}"), 32, "not empty"),
        (format!("/nix/store/nosuch {here} -o {good}"), 32, "nosuch"),
        (format!("{system} {here} -o name={name},store=unix:///nosuch"), 32, "nosuch"),
        (format!("{system} {here} -o remount"), 32, "no view that this user serves is mounted"),
    ] {
        let output = host.try_run(&format!("mount -t fuse.nix-store-fs {arguments}"));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        assert!(text.starts_with("mount.fuse.nix-store-fs: ") && text.contains(said), "{arguments}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments}: {text}");
        host.assert_nothing_left(&[&name]);
    }
    // By its own name, as mount does not call it so.
    for (arguments, code) in
        [("", 1), ("/a", 1), ("/a /b /c", 1), ("/a /b -x", 1), ("/a / -N 1", 1), ("--help", 0)]
    {
        let output = host.try_run(&format!("/sbin/mount.fuse.nix-store-fs {arguments}"));
        assert_eq!(output.status.code(), Some(code), "{arguments}: {output:?}");
        assert!(code == 0 || stderr(&output).lines().count() == 1, "{arguments}: {output:?}");
    }
    // Text that is not of this program stays in its line.
    let output =
        host.try_run(&format!("mount -t fuse.nix-store-fs {system} {here} -o \"$(printf 'a\\nb\\033[2J')\""));
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    assert!(!output.stderr.contains(&0x1b), "{output:?}");
}

/// `-f` mounts nothing, `-s` leaves out what is unknown.
#[test]
fn fake_and_sloppy_are_what_mount_means() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let rest = format!(
        "-t fuse.nix-store-fs {} {} -o {}",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    );
    host.run(&format!("mount -fnv {rest}"));
    host.assert_nothing_left(&[&name]);
    assert_eq!(host.try_run(&format!("mount -f {rest},nosuch")).status.code(), Some(1));
    host.run(&format!("mount -s {rest},nosuch"));
    assert_eq!(host.mounts().len(), 1);
}

/// A line of fstab, with a source that `mount -a` knows again, and a value with a comma and a space.
#[test]
fn a_line_of_fstab_is_mounted_once() {
    need!(Root, Fuse, Nix);
    let (host, name) = (Host::new(), unique_name());
    let odd = host.place("a, b");
    let fixture = Fixture::in_store(NixStore::below(&odd));
    let at = host.place("the view");
    let escape = |text: String| text.replace(' ', "\\040");
    let line = |more: &str| {
        let options = format!(
            "store=\"{}\",system={},x-systemd.automount{more}",
            fixture.store.uri(),
            fixture.system.path
        );
        let at = escape(at.display().to_string());
        format!("nix-store-fs:{name} {at} fuse.nix-store-fs {} 0 0", escape(options))
    };
    let fstab = host.fstab(&line(",noauto"));
    host.run(&format!("mount -T {fstab} -a"));
    assert_eq!(host.mounts(), Vec::<String>::new(), "noauto");
    host.run(&format!("mount -T {fstab} '{}'", at.display()));
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
    let fstab = host.fstab(&line(""));
    host.run(&format!("mount -T {fstab} -a"));
    assert_eq!(host.mounts().len(), 1);
    // Options for others than the kernel are kept by libmount, which knows the mount by its source.
    let found = host.run(&format!("findmnt --mtab -n -o OPTIONS '{}'", at.display()));
    assert!(found.contains("x-systemd.automount"), "{found}");
    host.run(&format!("mount -T {fstab} -o remount '{}'", at.display()));
    host.run(&format!("umount '{}'", at.display()));
    host.assert_nothing_left(&[&name]);
    // And it comes back.
    host.run(&format!("mount -T {fstab} -a && umount '{}'", at.display()));
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

/// The place of a view is taken, and so is its name.
#[test]
fn a_place_and_a_name_are_used_once() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let (at, other) = (host.place("view"), host.place("other"));
    let mount = |at: &Path, name: &str| {
        let options = options(&fixture, name);
        host.try_run(&format!(
            "mount -t fuse.nix-store-fs {} {} -o {options}",
            fixture.system.path,
            at.display()
        ))
    };
    assert!(mount(&at, &name).status.success());
    for (at, name, said) in
        [(&at, unique_name(), "already a mount point"), (&other, name.clone(), "already being served")]
    {
        let output = mount(at, &name);
        assert_eq!(output.status.code(), Some(32), "{output:?}");
        assert!(stderr(&output).contains(said), "{output:?}");
    }
    let second = unique_name();
    assert!(mount(&other, &second).status.success());
    host.run(&format!("umount {}", at.display()));
    assert_eq!(names(&host.inside(&other)), fixture.members().into_iter().collect());
    assert_eq!(host.mounts().len(), 1);
    host.run(&format!("umount {}", other.display()));
    host.assert_nothing_left(&[&name, &second]);
}

/// Ten at once.
#[test]
fn ten_are_mounted_at_once() {
    need!(Root, Fuse, Nix);
    let (fixture, host) = (Fixture::new(), Host::new());
    let all: Vec<String> = (0..10).map(|_| unique_name()).collect();
    let lines = all.iter().map(|name| {
        let at = host.place(name);
        format!(
            "nix-store-fs:{name} {} fuse.nix-store-fs store={},system={}",
            at.display(),
            fixture.store.uri(),
            fixture.system.path
        )
    });
    let fstab = host.fstab(&lines.collect::<Vec<_>>().join("\n"));
    host.run(&format!("mount -T {fstab} -a -F"));
    assert_eq!(host.mounts().len(), 10);
    let members: BTreeSet<String> = fixture.members().into_iter().collect();
    for name in &all {
        assert_eq!(names(&host.inside(&host.dir.path().join(name))), members);
    }
    host.run("umount -a -t fuse.nix-store-fs");
    host.assert_nothing_left(&all.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Lazily, and by force: a reader keeps what it has open in the first case, and gets an error in the second.
#[test]
fn lazy_and_forced_unmounts_end_it() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let mount = format!(
        "mount -t fuse.nix-store-fs {} {} -o {}",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    );
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

/// What a user of the machine may not do with a mount is so for a view, and what is true of every view stays.
#[test]
fn noexec_and_nosymfollow_are_applied() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    host.run(&format!(
        "mount -t fuse.nix-store-fs {} {} -o {},noexec,nosymfollow",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    ));
    let found = host.run(&format!("findmnt --kernel -n -o VFS-OPTIONS {}", at.display()));
    let found: BTreeSet<&str> = found.trim().split(',').collect();
    assert_eq!(found, BTreeSet::from(["ro", "nosuid", "nodev", "noexec", "relatime", "nosymfollow"]));
    let program = at.join(&fixture.data.base).join("program");
    assert_eq!(host.try_run(&program.display().to_string()).status.code(), Some(126));
}

/// A signal to the monitor unmounts; a killed monitor leaves a view that is read, and that umount ends.
#[test]
fn signals_are_those_of_every_view() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let mount = format!(
        "mount -t fuse.nix-store-fs {} {} -o {}",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    );
    let monitor = || {
        let is_monitor = |(_, line): &(Pid, String)| line.contains("mount.fuse.nix-store-fs");
        host.processes().into_iter().find(is_monitor).unwrap().0
    };
    host.run(&mount);
    kill_process(monitor(), Signal::TERM).unwrap();
    host.assert_nothing_left(&[&name]);

    host.run(&mount);
    kill_process(monitor(), Signal::KILL).unwrap();
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
    let output = host.try_run(&format!("mount -o remount {}", at.display()));
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    host.run(&format!("umount {}", at.display()));
    // Its state is cleared away by the next one.
    host.run(&format!("{mount} && umount {}", at.display()));
    host.assert_nothing_left(&[&name]);
}

/// A helper that is killed takes what it has begun along: while the store does not answer, and at any moment.
#[test]
fn a_killed_helper_leaves_nothing() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let helper = |store: &str| {
        let mut command = host.namespace.command("/sbin/mount.fuse.nix-store-fs");
        nix_environment(&mut command);
        let options = format!("store={store},name={name}");
        command.args([&fixture.system.path, &at.display().to_string(), "-o", &options]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let daemon = Daemon::start(&fixture.store);
    daemon.freeze();
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        let mut waiting = helper(daemon.uri());
        let until = Instant::now() + DEADLINE;
        // The helper, the monitor, and a server that is ready for the view.
        while host.processes().len() < 3 {
            assert!(Instant::now() < until, "{:?}", host.processes());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        kill_process(Pid::from_child(&waiting), signal).unwrap();
        waiting.wait().unwrap();
        host.assert_nothing_left(&[&name]);
    }

    let mut random = Random::new(seed("moments at which a helper is killed"));
    for _ in 0..crate::util::number("NSF_KILLS", 20) {
        let mut started = helper(&fixture.store.uri());
        // Not a wait for anything: the moment is what is tried.
        std::thread::sleep(std::time::Duration::from_micros(random.below(120_000) as u64));
        let _ended = kill_process(Pid::from_child(&started), Signal::KILL);
        if started.wait().unwrap().success() {
            assert_eq!(host.mounts().len(), 1);
            host.run(&format!("umount {}", at.display()));
        }
        host.assert_nothing_left(&[&name]);
    }
}

/// A store that is not there is a failure that `nofail` is for: the mount point stays as it was, and it can be mounted later.
#[test]
fn a_store_that_comes_later() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let socket = host.dir.path().join("socket");
    let line = format!(
        "nix-store-fs:{name} {} fuse.nix-store-fs store=unix://{}?root={},system={},nofail",
        at.display(),
        socket.display(),
        fixture.store.root().display(),
        fixture.system.path
    );
    let fstab = host.fstab(&line);
    let output = host.try_run(&format!("mount -T {fstab} -a"));
    assert!(!output.status.success(), "{output:?}");
    host.assert_nothing_left(&[&name]);
    let daemon = Daemon::start(&fixture.store);
    let real = daemon.uri().strip_prefix("unix://").unwrap().split('?').next().unwrap();
    symlink(real, &socket).unwrap();
    host.run(&format!("mount -T {fstab} -a"));
    assert_eq!(names(&host.inside(&at)), fixture.members().into_iter().collect());
}

/// With `user` in fstab(5) the view is that user's own; what `user` implies and only root can do is an error.
#[test]
fn a_user_whom_fstab_allows_mounts() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let (user, host, name) = (User::new(), Host::new(), unique_name());
    let at = host.place("view");
    chown(&at, Some(NOBODY), Some(NOBODY)).unwrap();
    let programs = user.runtime().parent().unwrap().to_owned();
    symlink("nix-store-fs", programs.join("mount.fuse.nix-store-fs")).unwrap();
    let programs = programs.display();
    // mount(8) is set-user-ID, so the loader takes the variable away.
    host.run(&format!(
        "rm /sbin/mount.fuse.nix-store-fs
        printf '#!/bin/sh\nLD_LIBRARY_PATH={programs} exec {programs}/mount.fuse.nix-store-fs \"$@\"\n' >/sbin/mount.fuse.nix-store-fs
        chmod 755 /sbin/mount.fuse.nix-store-fs
        mount -t tmpfs none {programs}/dev
        mknod {programs}/dev/fuse c 10 229 && chmod 666 {programs}/dev/fuse
        mount --bind {programs}/dev/fuse /dev/fuse
        mkdir {layers}/etc {layers}/etc-work
        mount -t overlay none -o lowerdir=/etc,upperdir={layers}/etc,workdir={layers}/etc-work /etc",
        layers = host.dir.path().join("layers").display()
    ));
    let options = format!("store={},system={},user", fixture.store.uri(), fixture.system.path);
    let as_user = |script: &str| {
        let runtime = user.runtime();
        let words = as_user(NOBODY).join(" ");
        let script = format!("exec setpriv {words} env XDG_RUNTIME_DIR={} {script}", runtime.display());
        host.try_run(&script)
    };
    let mount = |options: &str| {
        let fstab =
            host.fstab(&format!("nix-store-fs:{name} {} fuse.nix-store-fs {options} 0 0", at.display()));
        host.run(&format!("cp {fstab} /etc/fstab"));
        as_user(&format!("mount {}", at.display()))
    };
    let refused = mount(&options);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("add exec"), "{refused:?}");
    let mounted = mount(&format!("{options},exec"));
    assert!(mounted.status.success(), "{mounted:?}");
    let listed = as_user(&format!("ls -1 {}", at.display()));
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().collect::<Vec<_>>(), fixture.members());
    assert!(host.mounts()[0].contains(&format!("user_id={NOBODY}")), "{:?}", host.mounts());
    let unmounted = as_user(&format!("fusermount3 -u {}", at.display()));
    assert!(unmounted.status.success(), "{unmounted:?}");
    host.assert_nothing_left(&[]);
    assert_eq!(user.left_behind(), [] as [PathBuf; 0]);
}

/// Every call and line of docs/mount.md is accepted, and its table has every option that the manual page has.
#[test]
fn what_is_documented_is_accepted() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mount.md");
    let document = fs::read_to_string(document).unwrap();
    let dir = crate::util::scratch();
    let helper = dir.path().join("mount.fuse.nix-store-fs");
    symlink(Program::PATH, &helper).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&helper);
        nix_environment(&mut command).args(arguments).output().unwrap()
    };
    let mut accepted = 0;
    for line in document.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (source, options) = match words.as_slice() {
            ["#", "mount", "-t", "fuse.nix-store-fs", source, _, "-o", options] => (*source, *options),
            [source, _, "fuse.nix-store-fs", options, "0", "0"] => (*source, *options),
            _ => match line.strip_prefix("Options=") {
                Some(options) => ("nix-store-fs:web", options),
                None => continue,
            },
        };
        let output = run(&[source, "/", "-f", "-o", options]);
        assert!(output.status.success(), "{line}: {output:?}");
        accepted += 1;
    }
    assert_eq!(accepted, 3);
    // Of the two places where options are listed, neither has one that the other has not.
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let help = help.split("Options of -o").nth(1).unwrap().split("A value with").next().unwrap();
    let table = document.split("\n## Options").nth(1).unwrap().split("| `rw`").next().unwrap();
    let candidates = help.lines().skip(1).chain(table.lines()).flat_map(|line| {
        line.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).filter(|word| word.len() > 1)
    });
    let is_option = |word: &&str| {
        // Known, whether it takes a value or not.
        let output = run(&["none", "/", "-f", "-o", word]);
        !stderr(&output).contains("unknown mount option")
    };
    let options: BTreeSet<&str> = candidates.filter(is_option).collect();
    assert!(options.len() >= 19, "{options:?}");
    let names = |text: &str, option: &str| {
        text.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).any(|word| word == option)
    };
    for option in options {
        assert!(names(help, option) && names(table, option), "{option} is missing in one of both");
    }
}
