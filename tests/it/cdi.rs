//! Containers of podman get a view as a device: `cdi` writes what podman reads, and a view that ends takes its entry along.
//!
//! Each test has a `/run` of its own, and so is alone with its views, and with its podman.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::util::DEADLINE;
use crate::util::fixture::Fixture;
use crate::util::gate;
use crate::util::mounts::Silent;
use crate::util::namespace::Namespace;
use crate::util::program::{Finished, Mounted, Program, unique_name};
use crate::util::store;
use crate::util::user::User;

/// The usual file.
const FILE: &str = "/run/cdi/nix-store-fs.json";
/// Who has containers without being root.
const USER: u32 = 12_345;

/// A machine on which views and containers run.
struct Machine {
    dir: TempDir,
    table: Namespace,
}

impl Machine {
    fn new() -> Self {
        let dir = crate::util::scratch();
        let own = |name: &str| dir.path().join(name);
        for name in [
            "home",
            "root/bin",
            "root/nix/store",
            "root/etc",
            "root/proc",
            "root/dev",
            "root/sys",
            "root/run",
        ] {
            fs::create_dir_all(own(name)).unwrap();
        }
        // What podman mounts files over; root of a user namespace may not make them.
        for name in ["etc/hostname", "etc/hosts", "etc/resolv.conf", "run/.containerenv"] {
            fs::write(own("root").join(name), "").unwrap();
        }
        fs::copy(gate::find("busybox").unwrap_or_else(|| "/bin/busybox".into()), own("root/bin/busybox"))
            .unwrap();
        for name in ["sh", "ls", "cat", "stat", "grep", "id", "touch", "mount", "umount"] {
            std::os::unix::fs::symlink("busybox", own("root/bin").join(name)).unwrap();
        }
        let add = |file: &str, lines: &str| {
            let all = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default() + lines;
            fs::write(own(file), all).unwrap();
        };
        add("passwd", &format!("nsf:x:{USER}:{USER}::{}:/bin/sh\n", own("home").display()));
        add("group", &format!("nsf:x:{USER}:\n"));
        // What `--userns auto` of root takes is a user's of this name.
        let ids = "nsf:200000:65536\ncontainers:300000:1000000\n";
        fs::write(own("subuid"), ids).unwrap();
        fs::write(own("subgid"), ids).unwrap();
        chown(own("home"), Some(USER), Some(USER)).unwrap();
        let binds = ["passwd", "group", "subuid", "subgid"]
            .map(|file| format!("touch /etc/{file}; mount --bind {} /etc/{file}", own(file).display()));
        let runtime = format!("mkdir -p /run/user/{USER}; chown {USER}:{USER} /run/user/{USER}");
        let device = "mknod -m 666 /run/fuse c 10 229; mount --bind /run/fuse /dev/fuse";
        let table = Namespace::machine(&format!("{}; {runtime}; {device}", binds.join("; ")));
        Self { dir, table }
    }

    /// Gives what containers have as their root to the ordinary user.
    fn give_root(&self) {
        for entry in walkdir(&self.own("root")) {
            std::os::unix::fs::lchown(entry, Some(USER), Some(USER)).unwrap();
        }
    }

    fn own(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What enters it.
    fn enter(&self) -> [String; 5] {
        ["nsenter", "-t", &self.table.pid().to_string(), "-m", "-C"].map(str::to_owned)
    }

    /// The file at a path below its `/run`.
    fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.table.pid()))
    }

    fn program(&self, program: Program) -> Program {
        program.inside(self.enter())
    }

    fn cdi<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        self.program(Program::new().arg("cdi").args(arguments)).run()
    }

    /// Mounts a view of the fixture's system, and has it written; returns its name as well.
    fn view(&self, fixture: &Fixture) -> (Mounted, String) {
        let name = unique_name();
        let view = self.mount(fixture.program(), &name, &self.own(&name));
        let said = self.cdi([] as [&str; 0]);
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        assert!(
            said.stdout.contains(&format!("nix-store-fs/view={name}\nnix-store-fs/view={name}:idmap\n")),
            "{said:?}"
        );
        (view, name)
    }

    fn mount(&self, program: Program, name: &str, at: &Path) -> Mounted {
        let sandbox = if nix_store_fs::sandbox::confines_files() { "require" } else { "best" };
        self.program(program.args(["--sandbox", sandbox, "--name", name]).arg(at)).mount_at(at)
    }

    /// Podman as root, with nothing of the machine's.
    fn podman(&self) -> Command {
        self.podman_of(&["--root", self.own("storage").to_str().unwrap()], &[])
    }

    /// Podman as an ordinary user.
    fn rootless(&self) -> Command {
        let user = store::as_user(USER);
        let home = format!("HOME={}", self.own("home").display());
        let runtime = format!("XDG_RUNTIME_DIR=/run/user/{USER}");
        let user = ["setpriv"].into_iter().chain(user.iter().map(String::as_str));
        self.podman_of(&[], &user.chain(["env", &home, &runtime]).collect::<Vec<_>>())
    }

    fn podman_of(&self, options: &[&str], wrapper: &[&str]) -> Command {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(wrapper).args(["timeout", "-k", "5", "120", "podman"]).args(options);
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.args(["--runtime", "crun"]).env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
        command
    }

    /// The arguments that run a command in a container.
    fn run(&self, options: &[&str], command: &[&str]) -> Vec<String> {
        let root = self.own("root");
        let fixed = ["run", "--rm", "--network", "none", "--cgroups=disabled"];
        // Podman's own are above what a process may have that cannot raise its limits.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let root = if options.contains(&IMAGE) { vec![] } else { vec!["--rootfs", root.to_str().unwrap()] };
        let words = [&fixed[..], &limits, options.strip_suffix(&[IMAGE]).unwrap_or(options), &root].concat();
        let image = options.contains(&IMAGE).then_some(IMAGE);
        words.into_iter().chain(image).chain(command.iter().copied()).map(str::to_owned).collect()
    }

    /// What a command prints in a container of root's.
    fn prints(&self, options: &[&str], command: &[&str]) -> String {
        printed(self.podman().args(self.run(options, command)).output().unwrap())
    }

    /// What is in the file, if there is one.
    fn spec(&self) -> Option<Value> {
        fs::read(self.file(FILE)).ok().map(|text| serde_json::from_slice(&text).unwrap())
    }

    /// The names of the file's devices.
    fn devices(&self) -> Vec<String> {
        let spec = self.spec();
        let devices = spec.iter().flat_map(|spec| spec["devices"].as_array().unwrap());
        devices.map(|device| device["name"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.own("storage").exists() {
            let _removed = self.podman().args(["rm", "--all", "--force", "--time", "0"]).output();
        }
        // What keeps an ordinary user's namespaces.
        let pause = fs::read_to_string(self.file(&format!("/run/user/{USER}/libpod/tmp/pause.pid")));
        if let Some(pause) = pause.ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)) {
            let _gone = kill_process(pause, Signal::KILL);
        }
    }
}

/// What [`Machine::import`] makes: podman gives ids by itself (`--userns auto`) to images only.
const IMAGE: &str = "localhost/nsf:test";

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A shell in a container, which is asked line by line.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(command: &mut Command, arguments: Vec<String>) -> Self {
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// What a command prints, to standard error as well, and its exit code.
    fn ask(&mut self, command: &str) -> (String, i32) {
        writeln!(self.input, "{{ {command}; }} 2>&1; echo \"==$?\"").unwrap();
        let mut text = String::new();
        loop {
            let start = text.len();
            assert_ne!(self.output.read_line(&mut text).unwrap(), 0, "the container has ended: {text}");
            if let Some(code) = text[start..].strip_prefix("==") {
                let code = code.trim().parse().unwrap();
                text.truncate(start);
                return (text, code);
            }
        }
    }

    fn end(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }
}

/// What every container of a view has to show, whoever runs it.
fn shows_the_closure(shell: &mut Shell, fixture: &Fixture) {
    let (listed, code) = shell.ask("ls -1 /nix/store");
    assert_eq!((listed.lines().map(str::to_owned).collect::<Vec<_>>(), code), (fixture.members(), 0));
    let (text, code) = shell.ask(&format!("cat {}/sw/text", fixture.system.path));
    assert_eq!((text.as_str(), code), ("hello\n", 0));
    let (said, code) = shell.ask(&format!("cat {}/secret", fixture.outside.path));
    assert!(code != 0 && said.contains("No such file"), "{said}");
    for change in [
        "touch /nix/store/new",
        "umount /nix/store",
        "umount -l /nix/store",
        "mount -o remount,rw,bind /nix/store",
        "mount -o remount,rw /nix/store",
    ] {
        let (said, code) = shell.ask(change);
        assert_ne!(code, 0, "{change}: {said}");
    }
    let (mounts, _) = shell.ask("grep ' /nix/store' /proc/self/mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" /nix/store ro,nosuid,nodev"), "{mounts}");
    // Private: no mount of the host arrives in it.
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
}

/// The device of a view in the spelling of `--device`.
fn device(name: &str) -> String {
    format!("--device=nix-store-fs/view={name}")
}

#[test]
fn a_container_sees_the_closure_and_nothing_else() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (view, name) = machine.view(&fixture);
    let mut shell = Shell::start(&mut machine.podman(), machine.run(&["-i", &device(&name)], &["sh"]));
    shows_the_closure(&mut shell, &fixture);
    shell.end();
    // Without CDI it is the same.
    let volume = format!("{}:/nix/store:ro,private", view.path().display());
    let mut shell = Shell::start(&mut machine.podman(), machine.run(&["-i", "-v", &volume], &["sh"]));
    shows_the_closure(&mut shell, &fixture);
    shell.end();
}

/// Root that may unmount finds the image's own directory below, and root that may remount still writes nothing.
#[test]
fn a_container_that_may_mount_finds_nothing_else() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (_view, name) = machine.view(&fixture);
    let options = ["-i", "--cap-add=SYS_ADMIN", &device(&name)];
    let mut shell = Shell::start(&mut machine.podman(), machine.run(&options, &["sh"]));
    assert_eq!(shell.ask("mount -o remount,rw,bind /nix/store").1, 0);
    let (said, code) = shell.ask(&format!("touch /nix/store/new {}/new", fixture.system.path));
    assert!(code != 0 && said.matches("Read-only file system").count() == 2, "{said}");
    assert_eq!(shell.ask("umount /nix/store").1, 0);
    assert_eq!(shell.ask("ls -A /nix/store"), (String::new(), 0));
    shell.end();
}

/// Of a view that root has mounted. Its files are root's, who is nobody in there, and that cannot be changed: to map ids takes a right
/// where the file system was mounted.
#[test]
fn an_ordinary_users_container_sees_the_closure() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (_view, name) = machine.view(&fixture);
    machine.give_root();
    for (users, id) in [("host", "0"), ("keep-id", "12345")] {
        let users = if users == "host" { vec![] } else { vec!["--userns", users] };
        let device = device(&name);
        let options = [&["-i", &device][..], &users].concat();
        let mut shell = Shell::start(&mut machine.rootless(), machine.run(&options, &["sh"]));
        assert_eq!(shell.ask("id -u").0.trim(), id);
        assert_eq!(shell.ask(&format!("stat -c %u:%g {}", fixture.system.path)).0, "65534:65534\n");
        shows_the_closure(&mut shell, &fixture);
        shell.end();
    }
    let mapped = machine.run(&[&device(&format!("{name}:idmap"))], &["ls", "/nix/store"]);
    let output = machine.rootless().args(mapped).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("mount_setattr"), "{output:?}");
}

/// Who mounts a view has it alone, in their containers as well. No engine of Debian's looks where an ordinary user may write, so it is
/// a volume there.
#[test]
fn an_ordinary_users_own_view_is_for_their_containers() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman, Fusermount);
    let fixture = Fixture::new();
    let (machine, user) = (Machine::new(), User::of(USER));
    machine.give_root();
    let name = unique_name();
    let own = |program: Program| user.plain(program).further_inside(machine.enter());
    let at = user.runtime().join("nix-store-fs").join(&name);
    // Nix refuses to make a store for a user whom the machine does not know.
    let dump = fixture.program().arg("--dump-closure=json").run().stdout;
    let closure = machine.own("closure.json");
    fs::write(&closure, dump).unwrap();
    let program = Program::on(&fixture.store).arg("--from").arg(&closure);
    let mut view = own(program.args(["--name", &name])).mount_at(&at);
    let said = own(Program::new().arg("cdi")).run();
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert!(said.stdout.starts_with(&format!("nix-store-fs/view={name}\n")), "{said:?}");
    let file = user.runtime().join("cdi/nix-store-fs.json");
    let spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(spec["devices"][0]["containerEdits"]["mounts"][0]["hostPath"], at.to_str().unwrap());
    assert_eq!(machine.spec(), None, "an ordinary user has written root's file");

    let volume = format!("{}:/nix/store:ro,private", at.display());
    let mut shell = Shell::start(&mut machine.rootless(), machine.run(&["-i", "-v", &volume], &["sh"]));
    shows_the_closure(&mut shell, &fixture);
    assert_eq!(shell.ask(&format!("stat -c %u:%g {}", fixture.system.path)).0, "65534:65534\n");
    shell.end();

    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(!file.exists());
}

fn walkdir(path: &Path) -> Vec<PathBuf> {
    let below = if path.is_symlink() || !path.is_dir() { vec![] } else { path.read_dir().unwrap().collect() };
    let below = below.into_iter().flat_map(|entry| walkdir(&entry.unwrap().path()));
    [path.to_owned()].into_iter().chain(below).collect()
}

/// With users of its own, files are nobody's or, where they are mapped, root's as on the host.
#[test]
fn a_container_with_users_of_its_own_has_files_of_root() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman, Idmap);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (_view, name) = machine.view(&fixture);
    let tar = machine.own("image.tar");
    assert!(
        Command::new("tar")
            .arg("-C")
            .arg(machine.own("root"))
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
    printed(machine.podman().arg("import").arg(&tar).arg(IMAGE).output().unwrap());
    let mapped = format!("{name}:idmap");
    for users in [&["--uidmap=0:100000:65536"][..], &["--userns=auto", IMAGE]] {
        for (name, owner) in [(&name, "65534:65534\n"), (&mapped, "0:0\n")] {
            let device = device(name);
            let options = [&["-i", &device][..], users].concat();
            let mut shell = Shell::start(&mut machine.podman(), machine.run(&options, &["sh"]));
            let (uids, _) = shell.ask("cat /proc/self/uid_map");
            assert_ne!(uids.split_whitespace().nth(1), Some("0"), "{users:?} has the host's users: {uids}");
            assert_eq!(
                shell.ask(&format!("stat -c %u:%g {}", fixture.system.path)).0,
                owner,
                "{users:?} {name}"
            );
            shows_the_closure(&mut shell, &fixture);
            shell.end();
        }
    }
    // There is nothing to map then, and podman says so.
    let without = machine.podman().args(machine.run(&[&device(&mapped)], &["ls"])).output().unwrap();
    assert!(!without.status.success(), "{without:?}");
}

#[test]
fn a_view_that_ends_takes_its_entry_along() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (mut first, name) = machine.view(&fixture);
    let (mut second, other) = machine.view(&fixture);
    let mut views = [&name, &other];
    views.sort();
    let devices = views.map(|view| [view.clone(), format!("{view}:idmap")]);
    assert_eq!(machine.devices(), devices.concat());
    let mut shell = Shell::start(&mut machine.podman(), machine.run(&["-i", &device(&name)], &["sh"]));
    let text = format!("cat {}/sw/text", fixture.system.path);
    assert_eq!(shell.ask(&text), ("hello\n".to_owned(), 0));

    first.signal(Signal::TERM);
    assert_eq!(first.end().code(), Some(0), "{}", first.stderr());
    assert_eq!(machine.devices(), [other.clone(), format!("{other}:idmap")]);
    // What nobody has read before: the kernel has the rest.
    let (said, code) = shell.ask(&format!("ls {}/deep/er", fixture.data.path));
    assert!(code != 0 && said.contains("not connected"), "{said}");
    shell.end();
    let refused = machine.podman().args(machine.run(&[&device(&name)], &["ls"])).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("unresolvable CDI device"), "{refused:?}");

    // Somebody unmounts it while a container has it: it ends with the container.
    let (mut third, name) = machine.view(&fixture);
    let mut shell = Shell::start(&mut machine.podman(), machine.run(&["-i", &device(&name)], &["sh"]));
    assert_eq!(shell.ask(&text), ("hello\n".to_owned(), 0));
    machine.table.inside(&["umount", third.path().to_str().unwrap()]);
    assert_eq!(shell.ask(&format!("ls {}/deep/er", fixture.data.path)).1, 0);
    let said = machine.cdi([] as [&str; 0]);
    assert!(said.status.success() && said.stderr.contains("not mounted"), "{said:?}");
    assert_eq!(machine.devices(), [other.clone(), format!("{other}:idmap")]);
    shell.end();
    assert_eq!(third.end().code(), Some(0), "{}", third.stderr());

    // Somebody unmounts it.
    machine.table.inside(&["umount", second.path().to_str().unwrap()]);
    assert_eq!(second.end().code(), Some(0), "{}", second.stderr());
    assert_eq!(machine.spec(), None);
    assert_eq!(fs::read_dir(machine.file("/run/cdi")).unwrap().count(), 0);
}

/// Nobody is left who could remove its entry: podman reports an error until the next command does, and a view that starts at the
/// same place is no other's.
#[test]
fn an_entry_that_nobody_removed_is_dropped_by_the_next_command() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (mut view, name) = machine.view(&fixture);
    let server = view.server_now().unwrap();
    view.signal(Signal::KILL);
    view.end();
    let _gone = kill_process(server, Signal::KILL);
    while Path::new(&format!("/proc/{}", server.as_raw_nonzero())).exists() {
        std::thread::yield_now();
    }
    assert_eq!(machine.devices().len(), 2);
    let dead = machine.podman().args(machine.run(&[&device(&name)], &["ls", "/nix/store"])).output().unwrap();
    assert!(!dead.status.success() && dead.stdout.is_empty(), "{dead:?}");
    let said = machine.cdi([] as [&str; 0]);
    assert_eq!((said.status.code(), said.stdout.as_str()), (Some(0), ""), "{said:?}");
    assert!(said.stderr.contains(&name), "{said:?}");
    assert_eq!(machine.spec(), None);
}

/// Engines read JSON as YAML. Whatever a mount point is called, podman mounts it; what is no text is left out.
#[test]
fn a_mount_point_may_be_called_anything() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let odd =
        OsStr::from_bytes("a b\n\"'\\{%s}: #\t\u{1b}[31m\u{7f}\u{85}\u{2028}\u{feff}\u{1f600}".as_bytes());
    let [odd, hostile] = [odd, OsStr::from_bytes(b"\xff\xfe\n")].map(|name| machine.dir.path().join(name));
    let names = [unique_name(), unique_name()];
    let _views = [(&names[0], &odd), (&names[1], &hostile)].map(|(name, at)| {
        fs::create_dir(at).unwrap();
        machine.mount(fixture.program(), name, at)
    });
    let said = machine.cdi([] as [&str; 0]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert_eq!(machine.devices(), [names[0].clone(), format!("{}:idmap", names[0])]);
    assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    assert!(said.stderr.contains(&names[1]) && said.stderr.contains("not UTF-8"), "{said:?}");
    let listed = machine.prints(&[&device(&names[0])], &["ls", "-1", "/nix/store"]);
    assert_eq!(listed.lines().map(str::to_owned).collect::<Vec<_>>(), fixture.members());
}

/// The environment or nix.conf name the store, which has its files elsewhere than its paths say.
#[test]
fn a_store_that_no_option_names_is_written() {
    need!(Root, Fuse, Nix, Busybox, Cgroup2, Podman);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let name = unique_name();
    let conf = crate::util::scratch();
    let settings = format!("build-users-group =\nstore = {}\n", fixture.store.uri());
    std::fs::write(conf.path().join("nix.conf"), settings).unwrap();
    let program = Program::new().arg("--root").arg(&fixture.system.path).env("NIX_CONF_DIR", conf.path());
    let _view = machine.mount(program, &name, &machine.own(&name));
    let said = machine.cdi([] as [&str; 0]);
    assert_eq!((said.status.code(), &*said.stderr), (Some(0), ""), "{said:?}");
    let listed = machine.prints(&[&device(&name)], &["ls", "-1", "/nix/store"]);
    assert_eq!(listed.lines().map(str::to_owned).collect::<Vec<_>>(), fixture.members());
}

#[test]
fn a_view_whose_name_no_device_may_have_is_left_out() {
    need!(Root, Fuse, Nix, Cgroup2);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let names = ["web@1", "web:idmap", "web"];
    let _views =
        names.map(|name| machine.mount(fixture.program(), name, &machine.own(&format!("at-{name}"))));
    let said = machine.cdi([] as [&str; 0]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert_eq!(said.stdout, "nix-store-fs/view=web\nnix-store-fs/view=web:idmap\n");
    assert_eq!(said.stderr.lines().count(), 2, "{said:?}");
    assert_eq!(machine.devices(), ["web", "web:idmap"]);
}

#[test]
fn the_file_goes_where_it_was_asked_for() {
    need!(Root, Fuse, Nix, Cgroup2);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let none = machine.cdi(["--output", "-"]);
    assert_eq!((none.status.code(), none.stdout.as_str()), (Some(12), ""), "{none:?}");
    let none = machine.cdi([] as [&str; 0]);
    assert_eq!((none.status.code(), none.stdout.as_str()), (Some(0), ""), "{none:?}");
    assert_eq!(machine.spec(), None);

    let (view, name) = machine.view(&fixture);
    let usual = fs::read_to_string(machine.file(FILE)).unwrap();
    let printed = machine.cdi(["--output", "-"]);
    assert_eq!((printed.status.code(), &printed.stdout), (Some(0), &usual), "{printed:?}");
    let mount = &machine.spec().unwrap()["devices"][0]["containerEdits"]["mounts"][0];
    assert_eq!(Path::new(mount["hostPath"].as_str().unwrap()), view.path());
    assert_eq!(mount["containerPath"], "/nix/store");

    let elsewhere = machine.own("elsewhere.json");
    let said = machine.cdi([OsStr::new("--output"), elsewhere.as_os_str()]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), usual);
    let said = machine.cdi([OsStr::new("--remove"), OsStr::new("--output"), elsewhere.as_os_str()]);
    assert_eq!((said.status.code(), said.stdout.as_str()), (Some(0), ""), "{said:?}");
    assert!(!elsewhere.exists());
    assert_eq!(machine.cdi(["--remove", "--output", "-"]).status.code(), Some(2));

    let removed = machine.cdi(["--remove"]);
    assert_eq!(removed.status.code(), Some(0), "{removed:?}");
    assert_eq!(machine.spec(), None);
    assert_eq!(machine.cdi(["--remove"]).status.code(), Some(0));

    // Of others.
    let foreign =
        r#"{"cdiVersion":"0.5.0","kind":"vendor.com/gpu","devices":[{"name":"0","containerEdits":{}}]}"#;
    fs::write(machine.file(FILE), foreign).unwrap();
    for arguments in [&[][..], &["--remove"]] {
        let refused = machine.cdi(arguments);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
        assert!(refused.stderr.contains("left as it is"), "{refused:?}");
    }
    let mut view = view;
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(!view.stderr().contains("container engines"), "{name}: {}", view.stderr());
    assert_eq!(fs::read_to_string(machine.file(FILE)).unwrap(), foreign);
}

/// A command has asked the views, and the file's lock is another's meanwhile. What has happened until it gets the lock is seen: a view
/// that has ended without a chance to say so, and one that somebody else has written.
#[test]
fn what_happens_while_a_command_waits_is_seen() {
    need!(Root, Fuse, Nix, Cgroup2);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (_stays, name) = machine.view(&fixture);
    for changed in [false, true] {
        let (mut ends, _) = machine.view(&fixture);
        let lock = fs::File::create(machine.file("/run/cdi/.nix-store-fs.json.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut command = Command::new("nsenter");
        command.args(&machine.enter()[1..]).args([Program::PATH, "cdi"]);
        let mut command =
            store::nix_environment(&mut command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_lock(&command);
        ends.signal(Signal::TERM);
        assert_eq!(ends.end().code(), Some(0), "{}", ends.stderr());
        let mut new = None;
        if changed {
            let (at, name) = (machine.own("new"), unique_name());
            fs::create_dir(&at).unwrap();
            new = Some((machine.mount(fixture.program(), &name, &at), name));
            let same = fs::read(machine.file(FILE)).unwrap();
            fs::write(machine.file(FILE), same).unwrap();
        }
        drop(lock);
        assert!(command.wait().unwrap().success());
        let new = new.as_ref().map(|(_, name)| name);
        let mut expected: Vec<String> = [Some(&name), new]
            .into_iter()
            .flatten()
            .flat_map(|name| [name.clone(), format!("{name}:idmap")])
            .collect();
        expected.sort();
        let mut devices = machine.devices();
        devices.sort();
        assert_eq!(devices, expected);
    }
}

/// Waits until a command has the lock's file open.
fn wait_for_lock(command: &Child) {
    let open = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", command.id())).into_iter().flatten().flatten();
        descriptors
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|file| file.ends_with(".nix-store-fs.json.lock"))
    };
    let until = Instant::now() + DEADLINE;
    while !open() {
        assert!(Instant::now() < until, "the command does not get to the lock");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where the directory is on a file system that does not answer, nobody knows what is in it.
#[test]
fn a_view_ends_where_the_file_cannot_be_looked_for() {
    need!(Root, Fuse, Nix, Cgroup2);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let name = unique_name();
    let at = machine.own(&name);
    fs::create_dir(&at).unwrap();
    let mut view = machine.mount(fixture.program(), &name, &at);
    // What is mounted here does not arrive there: the monitor gets to it by this process's root directory.
    let dir = crate::util::scratch();
    let silent = Silent::mount(dir.path());
    let own = format!("/proc/{}/root{}", std::process::id(), dir.path().display());
    std::os::unix::fs::symlink(own, machine.file("/run/cdi")).unwrap();
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(view.stderr().contains("run 'nix-store-fs cdi'"), "{}", view.stderr());
    drop(silent);
}

/// Whoever keeps the lock, or has put something into the place of the file, keeps no view from its end.
#[test]
fn a_view_ends_whatever_is_in_the_place_of_the_file() {
    need!(Root, Fuse, Nix, Cgroup2);
    let (fixture, machine) = (Fixture::new(), Machine::new());
    let (mut view, _) = machine.view(&fixture);
    let lock = fs::File::create(machine.file("/run/cdi/.nix-store-fs.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert!(view.stderr().contains("run 'nix-store-fs cdi'"), "{}", view.stderr());
    drop(lock);
    let said = machine.cdi([] as [&str; 0]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert_eq!(fs::read_dir(machine.file("/run/cdi")).unwrap().count(), 0);

    let (mut view, _) = machine.view(&fixture);
    fs::remove_file(machine.file(FILE)).unwrap();
    machine.table.inside(&["mkfifo", FILE]);
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
}
