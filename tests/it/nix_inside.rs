//! A real Nix at work where the store is a view: an overlay over it, a database of its own, an ordinary user without capabilities, in
//! user namespaces. What `nix-store-fs run --nix` has to do is done here by mount(8), unshare(1) and setpriv(1), in its order.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use nix_store_fs::closure::Closure;
use nix_store_fs::closure::inside::{Brought, Inside};
use nix_store_fs::store::Store;
use nix_store_fs::values::StorePath;

use crate::util::program::{Mounted, Program, unique_name};
use crate::util::store::{Member, NixStore, as_user};
use crate::util::user::{NOBODY, User};
use crate::util::{DEADLINE, gate, tree};

/// What Nix is told inside. No group of build users: there is one user. The network has what a test must not ask.
const SETTINGS: &str =
    "build-users-group =\nstore = local\nsubstitute = false\nexperimental-features = nix-command\n";

/// What the process of its own is asked for that registers a closure: see [`child`].
const JOB: &str = "NSF_INSIDE";

/// The machine's store, with a shell to build with, and two systems: one more path is in the first than in the second.
struct Machine {
    store: NixStore,
    user: User,
    shell: Member,
    first: Member,
    second: Member,
    only_first: Member,
}

impl Machine {
    fn new() -> Self {
        let store = NixStore::owned_by(NOBODY);
        let shell = store.add("shell", &[], |path| {
            fs::create_dir_all(path.join("bin")).unwrap();
            fs::copy(gate::find("busybox").unwrap(), path.join("bin/busybox")).unwrap();
            symlink("busybox", path.join("bin/sh")).unwrap();
        });
        let only_first = store.add("only-first", &[], |path| {
            fs::create_dir_all(path.join("below")).unwrap();
            fs::write(path.join("below/file"), "of the first\n").unwrap();
        });
        let system = |name: &str, references: &[&Member]| {
            store.add(name, references, |path| {
                let text: String = references.iter().map(|to| format!("{}\n", to.path)).collect();
                fs::write(path, text).unwrap();
            })
        };
        let first = system("first", &[&shell, &only_first]);
        let second = system("second", &[&shell]);
        let user = User::new();
        Self { store, user, shell, first, second, only_first }
    }

    /// The user's own directory, with the program in it.
    fn home(&self) -> PathBuf {
        self.user.runtime()
    }

    fn programs(&self) -> PathBuf {
        self.home().parent().unwrap().to_owned()
    }

    /// A configuration of the user's that would not work inside: what the environment says comes after it.
    fn configuration(&self) -> PathBuf {
        let file = self.programs().join("nix.conf");
        fs::write(&file, "store = unix:///nonexistent\nbuild-users-group = nobody\n").unwrap();
        file
    }

    /// A directory of the user's for what is to be kept.
    fn kept(&self) -> PathBuf {
        let dir = self.home().join("kept");
        for part in [dir.clone(), dir.join("upper"), dir.join("work"), dir.join("log")] {
            fs::create_dir(&part).unwrap();
            chown(&part, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        dir
    }

    /// Brings the directory up to the closure of `root`, in a process of the user's without capabilities.
    fn bring(&self, kept: &Path, root: &Member) -> String {
        let program = self.programs().join("registering");
        if !program.exists() {
            let own = std::env::current_exe().unwrap();
            fs::hard_link(&own, &program).or_else(|_| fs::copy(&own, &program).map(drop)).unwrap();
        }
        let words = [self.store.uri(), root.base.clone(), kept.display().to_string()];
        let output = Command::new("setpriv")
            .args(as_user(NOBODY))
            .arg(&program)
            .args(["--exact", "--nocapture", "--test-threads=1", "nix_inside::child"])
            .env(JOB, words.join("\n"))
            .env("LD_LIBRARY_PATH", self.programs())
            .env("HOME", "/var/empty")
            .env("NIX_USER_CONF_FILES", "/dev/null")
            .output()
            .unwrap();
        let said = printed(output);
        let line = said.lines().find(|line| line.contains("Brought"));
        line.unwrap_or_else(|| panic!("nothing was brought: {said}")).to_owned()
    }
}

/// Not a test by itself: registers a closure where [`Machine::bring`] says.
#[test]
fn child() {
    let Ok(job) = std::env::var(JOB) else { return };
    let [uri, root, kept] = job.lines().collect::<Vec<_>>().try_into().unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let store = Store::open(uri).unwrap();
    let roots = vec![StorePath::new(root).unwrap()];
    let closure = Closure::new(roots.clone(), store.closure(&roots).unwrap()).unwrap();
    let kept = Path::new(kept);
    let place = Inside {
        store_dir: store.dir(),
        files: store.real_dir(),
        state: &kept.join("state"),
        layer: Some(&kept.join("upper")),
    };
    let brought: Brought = place.bring_up_to(&closure).unwrap();
    println!("\n{brought:?}");
}

/// A user namespace and a mount namespace of the user's in which the store's directory is an overlay over a view.
struct Sandbox {
    holder: Child,
    configuration: PathBuf,
    /// None: it has ended.
    view: Option<Mounted>,
}

impl Sandbox {
    /// With `upper`, `work`, `state` and `log` in `kept`.
    fn new(machine: &Machine, root: &Member, kept: &Path) -> Self {
        Self::over(machine, root, kept, "true")
    }

    /// The same, with all that `kept` has in memory of the sandbox's own.
    fn in_memory(machine: &Machine, root: &Member, kept: &Path) -> Self {
        let memory = machine.home().join("memory");
        fs::create_dir(&memory).unwrap();
        let (from, to) = (kept.display(), memory.display());
        let before = format!("mount -t tmpfs none {to} && cp -a --sparse=always {from}/. {to}");
        Self::over(machine, root, &memory, &before)
    }

    fn over(machine: &Machine, root: &Member, kept: &Path, before: &str) -> Self {
        let script = format!(
            "mount -t tmpfs none {0} && mknod {0}/fuse c 10 229 && chmod 666 {0}/fuse && mount --bind {0}/fuse /dev/fuse && exec setpriv \"$@\"",
            machine.programs().join("dev").display()
        );
        let holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script, "sh"])
            .args(as_user(NOBODY))
            .args(["unshare", "--user", "--map-root-user", "--mount", "sleep", "1000"])
            .spawn()
            .unwrap();
        let mut sandbox = Self { holder, configuration: machine.configuration(), view: None };
        let until = Instant::now() + DEADLINE;
        while fs::read_to_string(format!("/proc/{}/comm", sandbox.holder.id())).unwrap() != "sleep\n" {
            assert!(Instant::now() < until, "no process with namespaces");
            std::thread::sleep(Duration::from_millis(1));
        }
        let at = machine.home().join("view");
        fs::create_dir_all(&at).unwrap();
        // The program takes itself for root, whose files in /run are somebody else's.
        sandbox.set_up("mount -t tmpfs none /run");
        let program =
            Program::on(&machine.store).args(["--root", &root.path, "--name", &unique_name()]).arg(&at);
        let program = program
            .inside(sandbox.enter())
            .binary(machine.programs().join("nix-store-fs"))
            .env("LD_LIBRARY_PATH", machine.programs());
        sandbox.view = Some(program.mount_at(&at));
        let (view, kept) = (at.display(), kept.display());
        sandbox.set_up(&format!(
            "{before} && mount -t tmpfs none /nix && mkdir -p /nix/store /nix/var/nix /nix/var/log/nix && \
             mount -t overlay -o userxattr,lowerdir={view},upperdir={kept}/upper,workdir={kept}/work none /nix/store && \
             mount --bind {kept}/state /nix/var/nix && mount --bind {kept}/log /nix/var/log/nix"
        ));
        sandbox
    }

    fn enter(&self) -> Vec<String> {
        let mut words = vec!["setpriv".to_owned()];
        words.extend(as_user(NOBODY));
        let pid = self.holder.id().to_string();
        words.extend(["nsenter", "-t", &pid, "-U", "-m", "--preserve-credentials"].map(str::to_owned));
        words
    }

    /// Runs a script where mounts are made.
    fn set_up(&self, script: &str) {
        let words = self.enter();
        printed(Command::new(&words[0]).args(&words[1..]).args(["sh", "-c", script]).output().unwrap());
    }

    /// A command where the user has their own number, no capability, and never gets one.
    fn command(&self, words: &[&str], settings: &str) -> Output {
        let number = NOBODY.to_string();
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]);
        command.args(["unshare", "--user", "--mount", "--map-user", &number, "--map-group", &number]);
        command.args(["setpriv", "--no-new-privs", "--"]).args(words);
        command
            .env("NIX_REMOTE", "local")
            .env("NIX_STATE_DIR", "/nix/var/nix")
            .env("NIX_LOG_DIR", "/nix/var/log/nix")
            .env("NIX_CONFIG", format!("{SETTINGS}{settings}"))
            .env("NIX_CONF_DIR", "/var/empty")
            .env("NIX_USER_CONF_FILES", &self.configuration)
            .env("HOME", "/nix/var/nix")
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap()
    }

    fn run(&self, words: &[&str]) -> String {
        printed(self.command(words, "sandbox = false\n"))
    }

    /// Builds a derivation of this name with the machine's shell, which writes `text`; returns its path.
    fn build(&self, machine: &Machine, name: &str, text: &str, settings: &str) -> String {
        let expression = derivation(machine, name, text);
        let output = self.command(&["nix-build", "--no-out-link", "--expr", &expression], settings);
        printed(output).trim().to_owned()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The overlay keeps the view mounted, and the view's own process is in the namespace.
        let words = self.enter();
        let _unmounted =
            Command::new(&words[0]).args(&words[1..]).args(["umount", "--lazy", "/nix/store"]).output();
        drop(self.view.take());
        let _gone = self.holder.kill();
        let _reaped = self.holder.wait();
    }
}

fn derivation(machine: &Machine, name: &str, text: &str) -> String {
    format!(
        r#"let shell = builtins.storePath "{}"; in derivation {{
            name = "{name}"; system = builtins.currentSystem; builder = "${{shell}}/bin/sh";
            args = [ "-c" "${{shell}}/bin/busybox mkdir $out && echo '{text}' > $out/file" ]; }}"#,
        machine.shell.path
    )
}

fn printed(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// What is in the machine's store and database.
fn seen(machine: &Machine) -> (Vec<PathBuf>, String) {
    let listed = tree::list(&machine.store.physical()).unwrap();
    (listed, machine.store.nix("nix-store", ["--dump-db"], b""))
}

#[test]
fn nix_works_in_the_view() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory, UserOverlay);
    let machine = Machine::new();
    let kept = machine.kept();
    let before = seen(&machine);
    assert!(machine.bring(&kept, &machine.first).contains("registered: 3"));
    let sandbox = Sandbox::new(&machine, &machine.first, &kept);

    // Nix inside knows what Nix outside knows, and finds each file as it is registered.
    let told = |ask: &str| sandbox.run(&["nix-store", "-q", ask, &machine.first.path]);
    for ask in ["--requisites", "--references", "--hash", "--size", "--deriver"] {
        let outside = machine.store.nix("nix-store", ["-q", ask, &machine.first.path], b"");
        assert_eq!(told(ask), outside, "{ask}");
    }
    sandbox.run(&["nix-store", "--verify", "--check-contents"]);
    let there = sandbox.run(&["nix", "build", "--no-link", "--json", &machine.first.path]);
    assert!(there.contains(&machine.first.path), "{there}");

    let shell = [&machine.shell.path, "--command", "busybox", "echo", "from the shell"];
    assert_eq!(sandbox.run(&[&["nix", "shell"], &shell[..]].concat()), "from the shell\n");

    // It builds, without a sandbox of its own and in one, and what it has built is there.
    for (name, settings) in
        [("plain", "sandbox = false\n"), ("boxed", "sandbox = true\nsandbox-fallback = false\n")]
    {
        let built = sandbox.build(&machine, name, "built inside", settings);
        assert_eq!(sandbox.run(&["cat", &format!("{built}/file")]), "built inside\n");
        sandbox.run(&["nix-store", "--verify-path", &built]);
        assert!(!machine.store.physical().join(built.strip_prefix("/nix/store/").unwrap()).exists());
    }
    let log = sandbox.run(&[
        "nix-store",
        "--delete",
        "--ignore-liveness",
        &machine.only_first.path,
        &machine.first.path,
    ]);
    assert!(log.contains("2 store paths deleted"), "{log}");
    // What was not asked for as a root, and nothing refers to.
    sandbox.run(&["nix-store", "--gc"]);
    sandbox.run(&["nix-store", "--verify", "--check-contents"]);
    assert_eq!(sandbox.run(&["ls", "/nix/store"]), "");

    drop(sandbox);
    assert_eq!(seen(&machine), before);
}

/// The collector inside keeps the roots of the view, and deletes what was built.
#[test]
fn collecting_inside_keeps_the_view() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory, UserOverlay);
    let machine = Machine::new();
    let kept = machine.kept();
    machine.bring(&kept, &machine.first);
    let sandbox = Sandbox::new(&machine, &machine.first, &kept);
    let built = sandbox.build(&machine, "built", "built", "sandbox = false\n");
    sandbox.run(&["nix-store", "--gc"]);
    let members = machine.store.closure(&[&machine.first]);
    let left = sandbox.run(&["ls", "/nix/store"]);
    let mut left: Vec<String> = left.lines().map(|base| format!("/nix/store/{base}")).collect();
    left.sort();
    assert_eq!(left, members);
    assert!(!members.contains(&built));
}

/// A second run over what a first one left, with another view.
#[test]
fn what_was_built_is_there_in_the_next_run() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory, UserOverlay);
    let machine = Machine::new();
    let kept = machine.kept();
    machine.bring(&kept, &machine.first);
    let sandbox = Sandbox::new(&machine, &machine.first, &kept);
    let built = sandbox.build(&machine, "built", "built", "sandbox = false\n");
    let expression =
        format!(r#"builtins.toFile "upon" "${{builtins.storePath "{}"}}""#, machine.only_first.path);
    let upon = sandbox.run(&["nix-instantiate", "--eval", "--read-write-mode", "--expr", &expression]);
    let upon = upon.trim().trim_matches('"').to_owned();
    sandbox.run(&["nix-store", "--verify-path", &built, &upon]);
    // A change below a member copies its directories, and nothing else of it.
    sandbox.run(&["chmod", "u+w", &machine.only_first.path]);
    sandbox.run(&["touch", &format!("{}/new", machine.only_first.path)]);
    // Deleted by name, with what refers to it.
    sandbox.run(&["nix-store", "--delete", "--ignore-liveness", &machine.first.path]);
    drop(sandbox);
    let layer = |member: &Member| fs::symlink_metadata(kept.join("upper").join(&member.base));
    let hidden = layer(&machine.first).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0, "{hidden:?}");
    assert!(layer(&machine.only_first).unwrap().is_dir());

    // The same view: what was deleted is back, and so is all of what was changed.
    let brought = machine.bring(&kept, &machine.first);
    assert!(brought.contains("registered: 1,") && brought.contains("removed: 2"), "{brought}");
    let sandbox = Sandbox::new(&machine, &machine.first, &kept);
    sandbox.run(&["nix-store", "--verify", "--check-contents"]);
    sandbox.run(&["nix-store", "--verify-path", &built, &upon, &machine.first.path]);
    sandbox.run(&["chmod", "u+w", &machine.only_first.path]);
    drop(sandbox);

    // Another view, without what `upon` refers to, and of which the layer has half.
    let brought = machine.bring(&kept, &machine.second);
    for gone in [&machine.first.base, &machine.only_first.base, &upon["/nix/store/".len()..].to_owned()] {
        assert!(brought.contains(gone), "{gone}: {brought}");
    }
    assert!(layer(&machine.only_first).is_err(), "half of an object is left");
    let sandbox = Sandbox::new(&machine, &machine.second, &kept);
    sandbox.run(&["nix-store", "--verify", "--check-contents"]);
    sandbox.run(&["nix-store", "--verify-path", &built, &machine.second.path]);
    for gone in [&machine.first.path, &upon] {
        assert!(!sandbox.command(&["nix-store", "-q", "--references", gone], "").status.success(), "{gone}");
    }
    // It may be made again over what is left of it.
    let again = derivation(&machine, "again", "again");
    let again = sandbox.run(&["nix-build", "--no-out-link", "--expr", &again]);
    sandbox.run(&["nix-store", "--verify-path", again.trim()]);
}

/// Layer and state in memory: nothing of them has a name outside, and nothing is left.
#[test]
fn the_layer_may_be_in_memory() {
    need!(Root, Fuse, Nix, Busybox, NixDirectory, UserOverlayInMemory);
    let machine = Machine::new();
    let kept = machine.kept();
    machine.bring(&kept, &machine.second);
    let sandbox = Sandbox::in_memory(&machine, &machine.second, &kept);
    let built = sandbox.build(&machine, "built", "built", "sandbox = true\nsandbox-fallback = false\n");
    sandbox.run(&["nix-store", "--verify-path", &built]);
    // Deleted and made again: an opaque directory in the place of what hides it.
    sandbox.run(&["nix-store", "--delete", &built]);
    assert_eq!(sandbox.build(&machine, "built", "built", "sandbox = false\n"), built);
    drop(sandbox);
    assert_eq!(tree::list(&kept.join("upper")).unwrap(), [] as [PathBuf; 0]);
}
