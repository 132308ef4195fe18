//! docs/recipes.md: each of its commands run as it stands there. The document is the source; what is filled in is `COMMAND`, a program of the
//! closure that tells what it sees, and `MACHINE`, the options of a virtual machine. Those of a systemd service are in [`crate::systemd`].

mod virtual_machine;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::told::documents::{Machine, blocks};
use crate::util::program::{Program, unique_name};
use crate::util::store::{Member, NixStore, as_user};
use crate::util::user::{NOBODY, User};
use crate::util::{DEADLINE, gate};

/// Sections of the document with commands, each with how many blocks a test of this file, or of [`crate::systemd`], runs.
const RECIPES: [(&str, usize); 6] = [
    ("bubblewrap", 4),
    ("unshare", 1),
    ("A systemd service without NixOS", 1),
    ("chroot and systemd-nspawn", 3),
    ("A virtual machine", 2),
    ("A writable store on top", 2),
];

/// Something to type, by root or by an ordinary user.
#[derive(Debug)]
struct Step {
    root: bool,
    text: String,
}

/// The blocks of a section, which has so many.
pub(crate) fn section<const N: usize>(title: &str) -> [String; N] {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.lines().next() == Some(title)).unwrap();
    let blocks: Vec<String> = section
        .split("\n```")
        .skip(1)
        .step_by(2)
        .map(|block| block.split_once('\n').unwrap().1.to_owned() + "\n")
        .collect();
    blocks.try_into().unwrap_or_else(|blocks| panic!("{title} has other blocks: {blocks:?}"))
}

/// What a block of commands asks to type. A line without a prompt continues the one before it.
fn steps(block: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        if let Some(text) = line.strip_prefix("# ") {
            steps.push(Step { root: true, text: text.to_owned() });
        } else if let Some(text) = line.strip_prefix("$ ") {
            steps.push(Step { root: false, text: text.to_owned() });
        } else {
            let last = steps.last_mut().unwrap_or_else(|| panic!("no prompt before: {line}"));
            last.text = format!("{}\n{line}", last.text);
        }
    }
    steps
}

/// In a store: a program that tells what it sees, and a path outside its closure.
#[derive(Debug)]
pub(crate) struct Probed {
    /// The root of the closure.
    pub(crate) probe: Member,
    outside: Member,
    /// As Nix knows it.
    closure: Vec<String>,
}

impl Probed {
    pub(crate) fn add_to(store: &NixStore) -> Self {
        let busybox = store.add("busybox", &[], |path| {
            fs::create_dir_all(path.join("bin")).unwrap();
            fs::copy(gate::find("busybox").unwrap(), path.join("bin/busybox")).unwrap();
        });
        let outside = store.add("outside", &[], |path| fs::write(path, "a secret\n").unwrap());
        let probe = store.add("probe", &[&busybox], |path| {
            // Every right that it has is tried: what follows the unmounting uses nothing but the shell itself.
            let script = format!(
                r#"#!{b} sh
                {b} ls -A /nix/store | {b} sed 's/^/store /'
                echo "outside $({b} cat {outside} 2>&1)"
                echo "write $({b} touch /nix/store/new 2>&1)"
                echo "owner $({b} stat -c %u /nix/store)"
                {b} ls -A /nix/var 2>/dev/null | {b} sed 's/^/var /'
                for process in /proc/[0-9]*; do {b} cat $process/root{outside} 2>/dev/null | {b} sed 's/^/around /'; done
                below='for path in /nix/store/*; do echo "below $path"; done'
                {b} unshare -Urm {b} sh -c "{b} umount -l /nix/store; $below" 2>/dev/null
                {b} umount -l /nix/store 2>/dev/null
                eval "$below"
                "#,
                b = format_args!("{}/bin/busybox", busybox.path),
                outside = outside.path,
            );
            fs::create_dir_all(path.join("bin")).unwrap();
            fs::write(path.join("bin/probe"), script).unwrap();
            fs::set_permissions(path.join("bin/probe"), fs::Permissions::from_mode(0o755)).unwrap();
        });
        assert!(store.physical().join(&outside.base).exists());
        let closure = store.closure(&[&probe]);
        Self { probe, outside, closure }
    }

    /// Names of the closure's members.
    pub(crate) fn bases(&self) -> Vec<&str> {
        self.closure.iter().map(|path| path.strip_prefix("/nix/store/").unwrap()).collect()
    }

    /// What stands for `COMMAND`.
    pub(crate) fn command(&self) -> String {
        format!("{}/bin/probe", self.probe.path)
    }

    /// What the program has printed is the closure as Nix knows it, for reading only, and nothing else of the store by any way.
    pub(crate) fn assert_private(&self, printed: &str) {
        let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        // A virtual machine's console ends its lines with a carriage return too.
        for (key, value) in printed.lines().filter_map(|line| line.trim_end().split_once(' ')) {
            seen.entry(key).or_default().push(value);
        }
        let take = |key: &str| seen.get(key).cloned().unwrap_or_default();
        assert_eq!(take("store"), self.bases(), "{printed}");
        assert!(take("outside").concat().ends_with("No such file or directory"), "{printed}");
        assert!(take("write").concat().ends_with("Read-only file system"), "{printed}");
        for way in ["var", "around"] {
            assert_eq!(take(way), [] as [&str; 0], "{printed}");
        }
        let below = take("below");
        assert!(!below.is_empty(), "the program has not come to its end: {printed}");
        let uncovered: Vec<_> = below
            .iter()
            .filter(|path| **path != "/nix/store/*" && !self.closure.iter().any(|known| known == **path))
            .collect();
        assert!(uncovered.is_empty(), "{uncovered:?} is below the view: {printed}");
    }
}

/// A machine with a store at `/nix`, where the document's commands are typed.
struct Place {
    machine: Machine,
    probed: Probed,
    store: NixStore,
    user: User,
    /// Programs that come before those of the machine: in it for everybody, in `user` for the user.
    programs: tempfile::TempDir,
    /// In the environment of all that is started, by which it is known.
    marker: String,
    /// The mount table before anything was typed.
    mounts: String,
}

impl Place {
    fn new(store: NixStore) -> Self {
        let probed = Probed::add_to(&store);
        let machine = Machine::new(&store);
        let user = User::new();
        symlink(&probed.probe.path, machine.dir.path().join("result")).unwrap();
        let programs = crate::util::scratch();
        fs::create_dir(programs.path().join("user")).unwrap();
        let place =
            Self { machine, probed, store, user, programs, marker: unique_name(), mounts: String::new() };
        let own = place.user.programs().display();
        let program = format!("#!/bin/sh\nLD_LIBRARY_PATH={own} exec {own}/nix-store-fs \"$@\"\n");
        place.install("user/nix-store-fs", &program);
        // As a login makes it, on a machine whose device is for everybody.
        place.prepare(&format!(
            "mkdir -p /run/dev {0} && chown {NOBODY}:{NOBODY} {0} && mknod /run/dev/fuse c 10 229 && \
             chmod 666 /run/dev/fuse && mount --bind /run/dev/fuse /dev/fuse && mount -t tmpfs -o mode=755 none /srv",
            place.runtime()
        ));
        place
    }

    /// With a view that root mounted, at the place that the document names.
    fn with_view(store: NixStore) -> Self {
        let mut place = Self::new(store);
        let link = place.machine.dir.path().join("result");
        place.prepare(&format!("nix-store-fs --root {} --name web >/run/log 2>&1 &", link.display()));
        place.machine.until("nix-store-fs status web; cat /run/log", |text| text.contains("serving at"));
        place.mounts = place.table();
        place
    }

    /// Puts a program before those of the machine.
    fn install(&self, name: &str, text: &str) {
        let path = self.programs.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn runtime(&self) -> String {
        format!("/run/user/{NOBODY}")
    }

    fn prepare(&self, line: &str) {
        let output = self.machine.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }

    fn table(&self) -> String {
        let table = self.machine.command("cat /proc/self/mountinfo").output().unwrap();
        String::from_utf8_lossy(&table.stdout).into_owned()
    }

    fn fill(&self, text: &str) -> String {
        text.replace("COMMAND", &self.probed.command())
    }

    /// The command that types a step.
    fn command(&self, step: &Step) -> Command {
        let text = self.fill(&step.text);
        let shared = format!("{}:{}", self.programs.path().display(), machine_path());
        let mut command = if step.root {
            let mut command = self.machine.command(&text);
            command.env("PATH", shared);
            command
        } else {
            let mut command = self.machine.command(&format!(
                // Entered again: the directory that comes along is one of another mount namespace.
                "cd {} && exec setpriv {} sh -c \"$NSF_STEP\"",
                self.machine.dir.path().display(),
                as_user(NOBODY).join(" ")
            ));
            command.env("PATH", format!("{}/user:{shared}", self.programs.path().display()));
            command.env("NSF_STEP", text).env("XDG_RUNTIME_DIR", self.runtime());
            command
        };
        // Nix's commands may be of another release than the program's library.
        command.env_remove("LD_LIBRARY_PATH").env("NSF_RECIPE", &self.marker).env("LC_ALL", "C");
        command
    }

    fn run(&self, step: &Step) -> Output {
        let mut command = self.command(step);
        if step.text.ends_with('&') {
            let log = fs::File::create(self.machine.dir.path().join("log")).unwrap();
            let status = command.stdout(Stdio::null()).stderr(log).status().unwrap();
            return Output { status, stdout: Vec::new(), stderr: Vec::new() };
        }
        command.output().unwrap()
    }

    /// The same, for a step that has to succeed; returns what it prints.
    fn do_step(&self, step: &Step) -> String {
        let output = self.run(step);
        let (printed, said) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{step:?}: {}\n{printed}\n{said}", output.status);
        printed.into_owned()
    }

    /// Types the single command of a block, which starts the program that tells what it sees.
    fn assert_private(&self, block: &str) {
        let [step] = &steps(block)[..] else { panic!("not one command: {block}") };
        self.probed.assert_private(&self.do_step(step));
        self.assert_clean();
    }

    /// Processes that the steps have started and that are still there.
    fn running(&self) -> Vec<PathBuf> {
        let mark = format!("NSF_RECIPE={}", self.marker);
        let marked = |process: &PathBuf| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(marked).collect()
    }

    /// Nothing is mounted that was not before, and nothing runs.
    fn assert_clean(&self) {
        let until = Instant::now() + DEADLINE;
        while !self.running().is_empty() || self.table() != self.mounts {
            let left = || (self.running(), self.table(), &self.mounts);
            assert!(Instant::now() < until, "left behind: {:?}", left());
        }
    }
}

/// Where programs are: the one that is tested, and the machine's.
fn machine_path() -> String {
    let program = Path::new(Program::PATH).parent().unwrap().display();
    format!("{program}:{}", std::env::var("PATH").unwrap())
}

/// No block of the document is without a test, as far as a test can know.
#[test]
fn each_recipe_is_run() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes.md")).unwrap();
    let found: Vec<(&str, usize)> = text
        .split("\n## ")
        .map(|section| (section.lines().next().unwrap(), section.matches("\n```").count() / 2))
        .filter(|(_, blocks)| *blocks > 0)
        .collect();
    assert_eq!(found, RECIPES);
    assert!(!blocks("recipes.md", "console").is_empty());
}

#[test]
fn bubblewrap_over_a_view_of_roots() {
    need!(Root, Fuse, Nix, Busybox, Bubblewrap, NixDirectory);
    let place = Place::with_view(NixStore::new());
    let [alone, host, root, _own] = section("bubblewrap");
    for block in [alone, host, root] {
        place.assert_private(&block);
    }
}

/// The view of a user is for the sandbox of that user, and for no other's.
#[test]
fn bubblewrap_over_a_view_of_the_users_own() {
    need!(Root, Fuse, Nix, Busybox, Bubblewrap, Fusermount, NixDirectory);
    let mut place = Place::new(NixStore::owned_by(NOBODY));
    place.mounts = place.table();
    let [_, _, _, own] = section("bubblewrap");
    let steps = steps(&own);
    let [mount, run, unmount] = &steps[..] else { panic!("{own}") };
    place.do_step(mount);
    let status = Step { root: false, text: "nix-store-fs status own; cat log".to_owned() };
    let until = Instant::now() + DEADLINE;
    while !String::from_utf8_lossy(&place.run(&status).stdout).contains("serving at") {
        assert!(Instant::now() < until, "{:?}", place.run(&status));
    }
    place.probed.assert_private(&place.do_step(run));
    let others = run.text.replace("$XDG_RUNTIME_DIR", &place.runtime());
    let refused = place.run(&Step { root: true, text: others });
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("Can't get type of source") && said.contains("Permission denied"), "{said}");
    place.do_step(unmount);
    place.assert_clean();
}

#[test]
fn unshare_over_a_view() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory);
    let place = Place::with_view(NixStore::new());
    let [block] = section("unshare");
    place.assert_private(&block);
    // What the document says of it without setpriv: else it would warn of nothing.
    let words = "exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all ";
    assert!(block.contains(words));
    let [step] = &steps(&block.replace(words, "exec "))[..] else { panic!("{block}") };
    let printed = place.do_step(step);
    assert!(printed.contains(&format!("below {}", place.probed.outside.path)), "{printed}");
    place.assert_clean();
}

#[test]
fn a_chroot_and_containers_over_a_view() {
    need!(Root, Fuse, Nix, Busybox, Nspawn, NixDirectory);
    let place = Place::with_view(NixStore::new());
    let [chroot, container, private_users] = section("chroot and systemd-nspawn");
    let [make, run] = &steps(&chroot)[..] else { panic!("{chroot}") };
    place.do_step(make);
    place.prepare("cd /srv/box && mkdir etc usr bin proc && echo ID=test >etc/os-release");
    place.probed.assert_private(&place.do_step(run));
    place.assert_clean();
    place.install("systemd-nspawn", NSPAWN);
    place.assert_private(&container);
    if gate::have(module_path!(), &[gate::Need::Idmap]) {
        place.assert_private(&private_users);
        let [step] = &steps(&private_users)[..] else { panic!("{private_users}") };
        let owner = |text: &str| place.do_step(&Step { root: true, text: text.to_owned() });
        assert!(owner(&step.text).contains("owner 0\n"));
        assert!(owner(&step.text.replace(":idmap", "")).contains("owner 65534\n"));
        place.assert_clean();
    }
}

/// What `systemd-nspawn` needs on a machine without systemd, or with another control group tree. Its supervisor has a mount namespace
/// of its own, so what it mounts is not the machine's.
const NSPAWN: &str = r#"#!/bin/sh
exec unshare -m -C sh -c '
    if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
        umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
    fi
    exec /usr/bin/systemd-nspawn --quiet --register=no --keep-unit --pipe "$@"' sh "$@"
"#;

/// An expression that is built with what the closure has.
fn write_expression(place: &Place) {
    let busybox = NixStore::name("busybox").path;
    let expression = format!(
        r#"derivation {{
            name = "app";
            system = builtins.currentSystem;
            builder = "${{builtins.storePath "{busybox}"}}/bin/busybox";
            args = [ "sh" "-c" "echo built >$out" ];
        }}"#
    );
    fs::write(place.machine.dir.path().join("app.nix"), expression).unwrap();
}

/// What Nix has built in the store at `root`, as a path in there: after it, the closure is whole and the view is as it was.
fn assert_built(place: &Place, printed: &str, upper: &str) {
    let built = printed.lines().last().unwrap_or_else(|| panic!("nothing built: {printed}"));
    let base = Path::new(built).file_name().unwrap().to_str().unwrap();
    let text = place.do_step(&Step { root: true, text: format!("cat {upper}/{base}") });
    assert_eq!(text, "built\n");
    let view = place.do_step(&Step { root: true, text: "ls -A /run/nix-store-fs/web".to_owned() });
    assert_eq!(view.lines().collect::<Vec<_>>(), place.probed.bases());
}

/// Nix builds into an overlay on the view; before, it knows the closure and nothing else, and finds each file as registered.
#[test]
fn nix_builds_into_a_store_on_top() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory);
    let place = Place::with_view(NixStore::new());
    write_expression(&place);
    let [by_root, _] = section("A writable store on top");
    let steps = steps(&by_root);
    let [make, mount, load, build, unmount] = &steps[..] else { panic!("{by_root}") };
    for step in [make, mount, load] {
        place.do_step(step);
    }
    let query = |arguments: &str| {
        place.do_step(&Step { root: true, text: format!("nix-store --store /srv/box {arguments}") })
    };
    let mut known: Vec<String> =
        query("--dump-db | grep ^/nix/store | sort -u").lines().map(str::to_owned).collect();
    known.sort();
    assert_eq!(known, place.probed.closure);
    query("--verify --check-contents");
    let printed = place.do_step(build);
    assert_built(&place, &printed, "/srv/box/upper");
    let outside = place.run(&Step { root: true, text: format!("cat /srv/box{}", place.probed.outside.path) });
    assert!(String::from_utf8_lossy(&outside.stderr).contains("No such file"), "{outside:?}");
    place.do_step(unmount);
    place.assert_clean();
}

/// The same by an ordinary user, in a user namespace.
#[test]
fn a_user_builds_into_a_store_on_top() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory);
    let place = Place::with_view(NixStore::owned_by(NOBODY));
    write_expression(&place);
    std::os::unix::fs::chown(place.machine.dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let [_, by_user] = section("A writable store on top");
    let steps = steps(&by_user);
    let [make, dump, build] = &steps[..] else { panic!("{by_user}") };
    place.do_step(make);
    place.do_step(dump);
    let printed = place.do_step(build);
    assert_built(&place, &printed, "box/upper");
    place.assert_clean();
}
