//! What root of a container tries, from inside a container, with private users and without.
//!
//! Its view is bound as `/nix/store`. The deeds are those of `inside.c`; here is how each has to end. The system calls that nspawn
//! would stop are let through, so that it is the view and the kernel that answer.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::iter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::container;
use crate::util::fixture::Fixture;
use crate::util::gate::not_run;
use crate::util::service::Service;
use crate::util::store::Member;
use crate::util::{self, tree};

/// A deed and how it has to end; one of several, where that depends on the kernel.
type Deed = (&'static str, &'static [&'static str]);

const NOENT: &[&str] = &["ENOENT"];
const ROFS: &[&str] = &["EROFS"];
const PERM: &[&str] = &["EPERM"];
const STALE: &[&str] = &["ESTALE"];
const DONE: &[&str] = &["done"];

/// Ways to get at a store path outside the closure.
const WAYS: [&str; 7] = [
    "by its name",
    "by its name with a slash",
    "from a member up",
    "from the root up",
    "from a working directory",
    "by a relative link",
    "by an absolute link",
];

/// What is tried in each.
const LOOKS: [&str; 5] = ["stat", "open", "open as a place", "list", "read a file in it"];

const WRITES: [&str; 19] = [
    "write",
    "write and read",
    "append",
    "truncate at opening",
    "truncate",
    "create",
    "create in the root",
    "mkdir",
    "mkdir in the root",
    "make a device",
    "make a pipe",
    "make a link",
    "link",
    "rename",
    "chmod",
    "chown",
    "set times",
    "set an attribute",
    "unlink",
];

/// How each deed that has a word has to end.
fn outcomes(word: &str, private_users: bool) -> Vec<(String, &'static [&'static str])> {
    let by_right = if private_users { PERM } else { DONE };
    let deeds: &[Deed] = match word {
        "begin" => &[("begin a listing", DONE), ("look up what is still there", DONE)],
        "positions" => &[
            ("list at each position", DONE),
            ("list at each wider position", DONE),
            ("look up what was withdrawn", NOENT),
        ],
        "look" => {
            let all = WAYS.iter().flat_map(|way| LOOKS.map(|look| (format!("{look} {way}"), NOENT)));
            return all.collect();
        }
        "handles" => &[
            ("open guessed nodes", &["the view"]),
            ("open guessed nodes of other generations", STALE),
            ("open guessed inodes of a disk", STALE),
            ("open the host's handles", STALE),
        ],
        "writes" => {
            let writes = WRITES.iter().map(|deed| ((*deed).to_owned(), ROFS));
            return iter::once(("read".to_owned(), DONE)).chain(writes).collect();
        }
        // Linux 5.12 has the second call.
        "remount-mount" if private_users => {
            &[("remount the mount", PERM), ("change the mount's attributes", PERM)]
        }
        "remount-mount" => {
            &[("remount the mount", DONE), ("change the mount's attributes", &["done", "ENOSYS"])]
        }
        "remount-superblock" => &[("remount the file system", by_right)],
        "mount-over" => &[
            ("mount over a member", DONE),
            ("mount over the view", DONE),
            ("write there", DONE),
            ("unmount that", DONE),
            ("unmount that of the member", DONE),
            ("mount proc over a member", &["done", "EPERM"]),
        ],
        "fusectl" => &[("mount fusectl", by_right)],
        "unmount" if private_users => &[("unmount", &["EINVAL"]), ("look below", &["the view"])],
        "unmount" => &[("unmount", DONE), ("look below", &["nothing"])],
        _ => panic!("{word}"),
    };
    deeds.iter().map(|(deed, outcomes)| ((*deed).to_owned(), *outcomes)).collect()
}

/// A view of a closure, and what a container tries to reach beyond it.
struct Attacked {
    view: Service,
    fixture: Fixture,
    /// Of the closure: a link to what is outside, without a directory.
    pointer: Member,
    /// Of the closure, until a reload.
    withdrawn: Member,
    roots: PathBuf,
    helper: PathBuf,
    scratch: tempfile::TempDir,
}

impl Attacked {
    fn new() -> Self {
        let scratch = util::scratch();
        let helper = util::compile_with("hostile/inside.c", scratch.path(), &["-static"]);
        let fixture = Fixture::new();
        let pointer = fixture.store.add("pointer", &[], |path| symlink(&fixture.outside.base, path).unwrap());
        let withdrawn = fixture.store.add("withdrawn", &[], |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("text"), "for some time\n").unwrap();
        });
        let roots = scratch.path().join("roots");
        let view = Service::new(&fixture.store).with(["--prune", "--roots-file"]).with([&roots]);
        let mut attacked = Self { fixture, pointer, withdrawn, roots, view, helper, scratch };
        attacked.show(true);
        attacked.view.start_ready();
        attacked
    }

    /// What the view shows from its start, or the next reload, on.
    fn show(&self, withdrawn: bool) {
        let mut roots = vec![&self.fixture.system.path, &self.pointer.path];
        roots.extend(withdrawn.then_some(&self.withdrawn.path));
        fs::write(&self.roots, roots.iter().map(|root| format!("{root}\n")).collect::<String>()).unwrap();
    }

    /// Handles of the directory outside and of its file, which the host's file system gives; none where it has no handles.
    fn handles(&self) -> String {
        let outside = self.fixture.store.physical().join(&self.fixture.outside.base);
        let handles = [outside.clone(), outside.join("secret")].map(|path| {
            let output = Command::new(&self.helper).arg("handle").arg(&path).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        });
        handles.join(",")
    }

    /// The host has the store that it had, and sees it in the view.
    fn assert_unchanged(&self) {
        let physical = self.fixture.store.physical();
        assert_eq!(fs::read(physical.join(&self.fixture.data.base).join("text")).unwrap(), b"hello\n");
        for base in self.fixture.members() {
            tree::assert_same(&tree::walk(&physical, &base), &tree::walk(self.view.path(), &base));
        }
    }

    /// Does what the words name, as root of a container that has the last of `stores` as its store; returns a line for each deed.
    fn run(&self, stores: &[&Path], private_users: bool, handles: &str, words: &[&str]) -> Vec<String> {
        let root = util::scratch_in(self.scratch.path());
        container::root_directory(root.path());
        fs::copy(&self.helper, root.path().join("inside")).unwrap();
        let users: &[&str] = if private_users { &["--private-users=pick"] } else { &[] };
        let idmap = if private_users { ":idmap" } else { "" };
        let Fixture { data, system, outside, .. } = &self.fixture;
        let mut container = container::nspawn(root.path(), stores, idmap)
            .args(users)
            .arg("--system-call-filter=open_by_handle_at mount_setattr")
            .args(["/inside", "attack"])
            .args([data, &self.pointer, system, outside, &self.withdrawn].map(|member| &member.base))
            .arg(handles)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = container.stdin.take().unwrap();
        let mut said = Vec::new();
        for line in BufReader::new(container.stdout.take().unwrap()).lines().map(Result::unwrap) {
            match line.strip_prefix("wait for: ") {
                None => said.push(line),
                Some(what) => {
                    match what {
                        "withdraw" => {
                            self.show(false);
                            self.view.reload_well();
                        }
                        "compare" => self.assert_unchanged(),
                        _ => panic!("{line}"),
                    }
                    writeln!(stdin).unwrap();
                }
            }
        }
        let mut stderr = String::new();
        container.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = container.wait().unwrap();
        assert!(status.success(), "{status}: {stderr}\n{}", said.join("\n"));
        said
    }
}

/// Does all of it, in an order in which what may change something follows what may not.
fn tries_everything(private_users: bool) {
    let mut attacked = Attacked::new();
    let handles = attacked.handles();
    let has_handles = !handles.contains('-');
    if !has_handles {
        not_run("a handle of a file outside: the file system of scratch files has none");
    }
    let words = [
        "begin",
        "positions",
        "look",
        "handles",
        "writes",
        "remount-mount",
        "writes",
        "remount-superblock",
        "writes",
        "look",
        "handles",
        "mount-over",
        "fusectl",
        "unmount",
    ];
    let said = attacked.run(&[attacked.view.path()], private_users, &handles, &words);
    let mut expected: Vec<_> = words.iter().flat_map(|word| outcomes(word, private_users)).collect();
    expected.retain(|(deed, _)| has_handles || !deed.contains("host's handle"));
    let mut wrong = Vec::new();
    for (line, (deed, outcomes)) in said.iter().zip(&expected) {
        if !outcomes.iter().any(|outcome| *line == format!("{deed}: {outcome}")) {
            wrong.push(format!("{line}, not {deed}: {}", outcomes.join(" or ")));
        }
    }
    assert!(wrong.is_empty() && said.len() == expected.len(), "{wrong:#?}\n{}", said.join("\n"));

    attacked.assert_unchanged();
    attacked.view.stop();
}

/// Without private users it takes away what says "read-only", mounts fusectl and unmounts its view, and has nothing of it.
#[test]
fn root_of_a_container_reaches_nothing_but_its_view() {
    need!(Root, Fuse, Nix, Nspawn);
    tries_everything(false);
}

/// With private users it cannot even do that.
#[test]
fn root_of_a_container_with_private_users_reaches_nothing_but_its_view() {
    need!(Root, Fuse, Nix, Nspawn, Idmap);
    tries_everything(true);
}

/// The same program finds the secret in each of these ways where the host's store is bound in the place of the view.
fn succeeds(private_users: bool) {
    let attacked = Attacked::new();
    let store = attacked.fixture.store.physical();
    let handles = attacked.handles();
    let words = ["begin", "positions", "look", "handles", "remount-mount", "writes"];
    let said = attacked.run(&[&store], private_users, &handles, &words);
    let mut expected: Vec<String> = WAYS.map(|way| format!("read a file in it {way}: THE SECRET")).into();
    expected.push("look up what was withdrawn: FOUND".to_owned());
    if !handles.contains('-') {
        expected.push("open the host's handles: THE SECRET".to_owned());
    }
    if private_users {
        expected.push("write: EROFS".to_owned());
    } else {
        expected.extend(["write: done", "create: done", "rename: done"].map(str::to_owned));
    }
    for line in expected {
        assert!(said.contains(&line), "{line}: {said:#?}");
    }
}

/// What is below the view is found where there is something: not with private users, whose root cannot unmount it.
#[test]
fn a_store_below_a_view_is_found() {
    need!(Root, Fuse, Nix, Nspawn);
    let attacked = Attacked::new();
    let stores = [&attacked.fixture.store.physical(), attacked.view.path()];
    let said = attacked.run(&stores, false, "-", &["look", "unmount"]);
    assert!(said.contains(&"read a file in it by its name: ENOENT".to_owned()), "{said:#?}");
    assert!(said.ends_with(&["unmount: done".to_owned(), "look below: THE SECRET".to_owned()]), "{said:#?}");
}

/// Without private users it can also write there.
#[test]
fn the_attacks_succeed_where_the_store_is_not_a_view() {
    need!(Root, Fuse, Nix, Nspawn);
    succeeds(false);
}

/// A bind that is read-only remains so.
#[test]
fn the_attacks_with_private_users_succeed_where_the_store_is_not_a_view() {
    need!(Root, Fuse, Nix, Nspawn, Idmap);
    succeeds(true);
}
