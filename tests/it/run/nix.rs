//! `--nix`: a real Nix at work over the view, with a layer in memory or in a directory.

use std::fs;
use std::path::Path;

use super::{BOTH, Runs, Who, nothing_is_left};
use crate::util::gate::Need;
use crate::util::program::Finished;
use crate::util::tree;

/// Nix as the machine has it: the libraries that the program was built with are another version's.
const NIX: &str = "unset LD_LIBRARY_PATH; export HOME=/nix/var/nix NIX_CONF_DIR=/nix/var/nix";
/// Settings that the user has: they are kept, but for what must be otherwise.
const CONFIG: &str = "substitute = false\nsandbox = false\nbuild-users-group = no-such-group\nstore = daemon";

/// Builds a small directory, with the machine's shell.
fn build(name: &str) -> String {
    format!(
        "nix-build --no-out-link -E 'derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"/bin/mkdir $out && echo built > $out/file\" ]; }}' 2>/dev/null"
    )
}

fn run(runs: &Runs, options: &[&str], script: &str) -> Finished {
    let options = [&["--nix", "--setenv", "NIX_CONFIG", CONFIG], options].concat();
    let done = runs.script(&options, &format!("{NIX}; {script}"));
    nothing_is_left(runs.fixture.store.root());
    done
}

/// Who can have a layer that takes this of an ordinary user.
fn with_layers(need: Need) -> Vec<Who> {
    BOTH.into_iter().filter(|who| *who == Who::Root || need.missing().is_none()).collect()
}

fn mount(words: &[&str]) {
    let mounted = std::process::Command::new("mount").args(words).status();
    assert!(mounted.unwrap().success(), "{words:?}");
}

/// A mount, until this is dropped.
struct MountedAt<'a>(&'a Path);

impl Drop for MountedAt<'_> {
    fn drop(&mut self) {
        let _unmounted = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// What a run must not change.
fn host(runs: &Runs) -> (Vec<std::path::PathBuf>, String) {
    let root = runs.fixture.store.root();
    let files = tree::list(&root.join("nix/store")).unwrap();
    (files, runs.fixture.store.nix("nix-store", ["--dump-db"], b""))
}

#[test]
fn nix_knows_the_closure_and_builds_over_it() {
    need!(Root, Fuse, Nix, UserNamespaces, NixDirectory);
    for who in with_layers(Need::UserOverlayInMemory) {
        let runs = Runs::by(who);
        let before = host(&runs);
        let system = &runs.fixture.system.path;
        let script = format!(
            "nix-store -qR {system}; echo; nix-store --verify --check-contents >/dev/null 2>&1 && echo verified; made=$({}) && cat $made/file && \
             nix-store -q --hash $made | cut -c 1-7; nix-store --delete {} >/dev/null 2>&1 || echo kept; ls {}",
            build("made"),
            runs.fixture.data.path,
            runs.fixture.store.root().join("nix/var").display()
        );
        let done = run(&runs, &[], &script);
        let (closure, rest) = done.stdout.split_once("\n\n").unwrap_or_else(|| panic!("{who:?} {done:?}"));
        let mut closure: Vec<&str> = closure.lines().map(|path| &path["/nix/store/".len()..]).collect();
        closure.sort_unstable();
        assert_eq!(closure, runs.fixture.members(), "{who:?}");
        assert_eq!(rest, "verified\nbuilt\nsha256:\nkept\n", "{who:?} {done:?}");
        assert_eq!(host(&runs), before, "{who:?}: the host's store was changed");
    }
}

#[test]
fn a_layer_in_a_directory_is_there_the_next_time() {
    need!(Root, Fuse, Nix, UserNamespaces, NixDirectory);
    for who in with_layers(Need::UserOverlay) {
        let runs = Runs::by(who);
        // On a mount of its own: whoever opens a store may be in another mount namespace.
        let (dir, disk) = (runs.own_dir(), runs.own_dir());
        mount(&["--bind", disk.path().to_str().unwrap(), dir.path().to_str().unwrap()]);
        let _mounted = MountedAt(dir.path());
        let layer = dir.path().join("a:b,c/layer");
        let overlay = ["--overlay", layer.to_str().unwrap()];
        let done = run(&runs, &overlay, &build("kept"));
        let made = done.stdout.trim().to_owned();
        assert!(made.starts_with("/nix/store/"), "{who:?} {done:?}");
        let script = format!("cat {made}/file; nix-store -q --deriver {made} | grep -c kept.drv");
        let done = run(&runs, &overlay, &script);
        assert_eq!(done.stdout, "built\n1\n", "{who:?} {done:?}");
        // In another one it is not there.
        let other = dir.path().join("other");
        let done = run(&runs, &["--overlay", other.to_str().unwrap()], &format!("ls -d {made}"));
        assert_ne!(done.status.code(), Some(0), "{who:?} {done:?}");
        assert!(!Path::new(&made).exists());
        // One at a time.
        let script = format!("exec 9<{0} && flock -n 9 && echo free; true", layer.display());
        let done = run(&runs, &overlay, &script);
        assert_eq!(done.stdout, "", "{who:?} {done:?}");
        let done = std::process::Command::new("flock").args(["-w", "10"]).arg(&layer).arg("true").status();
        assert!(done.unwrap().success(), "{who:?}: it is free afterwards");
    }
}

/// What the view has not can come from elsewhere, into the layer.
#[test]
fn what_is_missing_is_substituted_into_the_layer() {
    need!(Root, Fuse, Nix, UserNamespaces, NixDirectory);
    for who in with_layers(Need::UserOverlayInMemory) {
        let runs = Runs::by(who);
        let before = host(&runs);
        let cache = runs.own_dir();
        let to = format!("file://{}", cache.path().join("cache").display());
        let words =
            ["copy", "--extra-experimental-features", "nix-command", "--to", &to, &runs.fixture.outside.path];
        runs.fixture.store.nix("nix", words, b"");
        let script = format!(
            "nix-store -r {0} --option substitute true --option substituters '{to}?trusted=1' --option require-sigs false >/dev/null; \
             cat {0}/secret; nix-store -qR {0} | wc -l; nix --extra-experimental-features nix-command build --no-link {0} && echo there",
            runs.fixture.outside.path
        );
        let done = run(&runs, &[], &script);
        assert_eq!(done.stdout, "not for this container\n2\nthere\n", "{who:?} {done:?}");
        assert_eq!(host(&runs), before, "{who:?}: the host's store was changed");
    }
}

#[test]
fn a_layer_in_use_and_one_that_cannot_be_made_are_said() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(super::Who::Root);
    let dir = runs.own_dir();
    let layer = dir.path().join("layer");
    fs::create_dir(&layer).unwrap();
    let options = ["--nix", "--overlay", layer.to_str().unwrap()];
    let held = runs.with(&options, &["true"]).further_inside(["flock", layer.to_str().unwrap()]);
    let done = held.run();
    assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{done:?}");
    assert!(done.stderr.contains("in use by another"), "{done:?}");
    let done = runs.with(&["--nix", "--overlay", "/proc/no"], &["true"]).run();
    assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{done:?}");
    let done = runs.with(&["--overlay", "/tmp"], &["true"]).run();
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(done.stderr.contains("--nix"), "{done:?}");
}

/// A layer is refused where an overlay could not mark what it does: otherwise a build would fail at its end.
#[test]
fn a_layer_without_attributes_is_refused() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let dir = runs.own_dir();
    let at = dir.path().to_str().unwrap();
    mount(&["-t", "ramfs", "-o", "mode=0777", "none", at]);
    let mounted = MountedAt(dir.path());
    let on_ramfs = runs.with(&["--nix", "--overlay", &format!("{at}/layer")], &["true"]).run();
    drop(mounted);
    let in_memory = runs.with(&["--nix"], &["true"]).run();
    let is_there = with_layers(Need::UserOverlayInMemory).contains(&Who::Nobody);
    for done in [on_ramfs].into_iter().chain((!is_there).then_some(in_memory)) {
        assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{done:?}");
        assert!(done.stderr.contains("give --overlay with a directory on a disk"), "{done:?}");
    }
    nothing_is_left(runs.fixture.store.root());
}

/// A command may leave in its layer what it likes: the next run changes nothing but the layer.
#[test]
fn what_a_hostile_command_leaves_in_its_layer_is_refused() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in with_layers(Need::UserOverlay) {
        let runs = Runs::by(who);
        let victim = runs.own_dir();
        let inside = victim.path().join(&runs.fixture.data.base);
        fs::create_dir(&inside).unwrap();
        let to = victim.path().display();
        for (what, left) in [
            ("upper", format!("rm -rf L/upper; ln -s {to} L/upper")),
            ("work", format!("rm -rf L/work; ln -s {to} L/work")),
            ("log", format!("rm -rf L/log; ln -s {to} L/log")),
            ("state", format!("mv L/state L/old; ln -s {to} L/state")),
            ("state/gcroots", format!("rm -rf L/state/gcroots; ln -s {to} L/state/gcroots")),
            ("state/db/schema", "rm L/state/db/schema; mkfifo L/state/db/schema".to_owned()),
        ] {
            let dir = runs.own_dir();
            let layer = dir.path().join("layer");
            let layer = layer.to_str().unwrap();
            let options = ["--nix", "--overlay", layer];
            let done = runs.script(&options, &left.replace("L/", &format!("{layer}/")));
            assert_eq!(done.status.code(), Some(0), "{who:?} {what} {done:?}");
            let before = tree::list(victim.path()).unwrap();
            let done = runs.script(&options, "echo ran");
            assert_eq!(
                (done.status.code(), done.stdout.as_str()),
                (Some(125), ""),
                "{who:?} {what} {done:?}"
            );
            assert!(done.stderr.contains(&format!("layer/{what}' is a ")), "{who:?} {what} {done:?}");
            assert_eq!(done.stderr.lines().count(), 1, "{who:?} {what} {done:?}");
            assert_eq!(tree::list(victim.path()).unwrap(), before, "{who:?} {what}");
        }
        nothing_is_left(runs.fixture.store.root());
    }
}

/// What `--nix` needs is made whatever the caller's directory for temporary files is, and however large its files may be.
#[test]
fn the_place_for_nix_depends_on_nothing_of_the_callers() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in with_layers(Need::UserOverlayInMemory) {
        let runs = Runs::by(who);
        for temporary in ["/no/such/directory", "relative", "/etc/passwd"] {
            let program = runs.with(&["--nix"], &["echo", "ran"]).env("TMPDIR", temporary);
            let done = program.run();
            assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("ran\n", ""), "{who:?} {temporary}");
        }
        let program = runs.with(&["--nix"], &["echo", "ran"]);
        let done = program.through(["sh", "-c", "ulimit -f 8; exec \"$@\"", "sh"]).run();
        assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{who:?} {done:?}");
    }
}
