//! `--from`: a closure that was saved is served, printed and compared without its store; with the view of the same closure, the
//! dump of the store, and the physical store as witnesses.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::bad_input::refused;
use crate::util::fixture::Fixture;
use crate::util::program::{Finished, Program};
use crate::util::service::{Service, Victim};
use crate::util::store::{Daemon, NixStore};
use crate::util::systems::Systems;
use crate::util::{scratch, snapshot, tree};

/// An ordinary user of the host.
const STRANGER: u32 = 4242;
/// What the log says of a closure from a file.
const WARNING: &str = "nothing keeps the garbage collector away";
const FAILED: &str = "the reload failed";

/// What `--dump-closure` prints of `root`.
fn dump(store: &NixStore, root: &str, format: &str) -> String {
    well(Program::on(store).args(["--system", root]).arg(format!("--dump-closure={format}")).run())
}

fn well(finished: Finished) -> String {
    assert_eq!(finished.status.code(), Some(0), "{}", snapshot::render(&finished));
    finished.stdout
}

/// Puts `text` in the place of what was at `path`, in one step.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

/// An address that leads to the files of `store`, and to a daemon that is not there.
fn down(store: &NixStore) -> String {
    format!("unix://{}/no-socket?root={}", store.root().display(), store.root().display())
}

/// The program, with the daemon of the store down.
fn program(store: &NixStore, file: &Path) -> Program {
    Program::new().arg("--store").arg(down(store)).arg("--from").arg(file)
}

fn service(store: &NixStore, file: &Path) -> Service {
    Service::on(&down(store)).with([Path::new("--from"), file])
}

fn listed(view: &Path) -> BTreeSet<PathBuf> {
    tree::list(view).unwrap().into_iter().collect()
}

/// Systems, and a file with the closure of the first.
struct Saved {
    systems: Systems,
    dir: tempfile::TempDir,
}

impl Saved {
    fn new(count: usize) -> Self {
        let saved = Self { systems: Systems::new(count), dir: scratch() };
        saved.save(0, "json");
        saved
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("web.json")
    }

    fn save(&self, number: usize, format: &str) {
        replace(&self.file(), &dump(&self.systems.store, &self.systems.systems[number].0.path, format));
    }

    fn service(&self) -> Service {
        service(&self.systems.store, &self.file())
    }

    /// Where the view has what only this system has.
    fn own(&self, service: &Service, number: usize) -> PathBuf {
        service.path().join(&self.systems.systems[number].1.base)
    }

    fn names(&self, numbers: &[usize]) -> BTreeSet<PathBuf> {
        numbers.iter().flat_map(|number| self.systems.names(*number)).collect()
    }
}

/// What is served from a file of each format is what the store has of the closure, and what is printed is what was saved.
#[test]
fn what_is_seen_is_what_was_saved() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let text = dump(&fixture.store, &fixture.system.path, "text");
    let json = dump(&fixture.store, &fixture.system.path, "json");
    let expected: Vec<PathBuf> =
        text.lines().map(|line| Path::new(line).file_name().unwrap().into()).collect();
    assert_eq!(expected, fixture.members().iter().map(PathBuf::from).collect::<Vec<_>>());
    for (name, saved) in [("web.json", &json), ("web", &text)] {
        let file = dir.path().join(name);
        fs::write(&file, saved).unwrap();
        let view = program(&fixture.store, &file).mount();
        assert_eq!(tree::list(view.path()).unwrap(), expected, "{name}");
        for base in fixture.members() {
            let [real, seen] = [&fixture.store.physical(), view.path()].map(|dir| tree::walk(dir, &base));
            tree::assert_same(&real, &seen);
        }
        assert!(!view.path().join(&fixture.outside.base).exists());
        let size = rustix::fs::statfs(view.path()).unwrap();
        assert_eq!(size.f_files, 4);
        assert_eq!(size.f_blocks > 0, name == "web.json", "a list has no sizes");
        drop(view);
        for format in ["text", "store-paths"] {
            let run = program(&fixture.store, &file).arg(format!("--dump-closure={format}")).run();
            assert_eq!(run.stderr, "");
            assert_eq!(well(run), text, "{name} as {format}");
        }
    }
    let file = dir.path().join("web.json");
    for format in ["json", "registration", "dot"] {
        let printed = well(program(&fixture.store, &file).arg(format!("--dump-closure={format}")).run());
        assert_eq!(printed, dump(&fixture.store, &fixture.system.path, format), "{format}");
    }
    let by_store = Program::new().args(["why", "data", "--store", &fixture.store.uri(), "--system"]);
    let by_store = well(by_store.arg(&fixture.system.path).run());
    let by_file = Program::new().args(["why", "data", "--store", &down(&fixture.store), "--from"]).arg(&file);
    assert_eq!(well(by_file.run()), by_store);
    assert!(by_store.contains(&fixture.data.path), "{by_store}");
}

/// Neither a daemon nor a database is needed.
#[test]
fn a_view_starts_while_the_store_is_down() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let file = dir.path().join("web.json");
    fs::write(&file, dump(&fixture.store, &fixture.system.path, "json")).unwrap();
    let serves = |uri: &str| {
        let view = Program::new().args(["--store", uri, "--from"]).arg(&file).mount();
        assert_eq!(fs::read(view.path().join(&fixture.data.base).join("text")).unwrap(), b"hello\n");
        assert_eq!(view.said_soon(WARNING), 1, "{}", view.stderr());
    };
    let daemon = Daemon::start(&fixture.store);
    daemon.freeze();
    serves(daemon.uri());
    drop(daemon);
    serves(&down(&fixture.store));
    let root = fixture.store.root();
    serves(&format!("local?real={}/nix/store", root.display()));
    // Whoever opened it would find no database there, and whoever looked for one no state at all.
    let database = root.join("nix/var/nix/db/db.sqlite");
    fs::write(&database, "damaged").unwrap();
    serves(&fixture.store.uri());
    fs::rename(root.join("nix/var"), root.join("nix/gone")).unwrap();
    serves(&fixture.store.uri());
    assert!(!root.join("nix/var").exists(), "a store was opened");
    let by_roots = Program::on(&fixture.store).args(["--system", &fixture.system.path]);
    refused(by_roots, 5);
}

/// An address of a store that has no files here is an error, and so is one of a store with another name.
#[test]
fn an_address_without_files_is_refused() {
    need!(Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let file = dir.path().join("web.json");
    fs::write(&file, dump(&fixture.store, &fixture.system.path, "json")).unwrap();
    let start = |uri: &str| Program::new().args(["--store", uri, "--from"]).arg(&file);
    let run = refused(start("https://cache.example.org"), 5);
    assert!(run.stderr.contains("'https://cache.example.org'"), "{}", run.stderr);
    let run = refused(start("local?store=/gnu/store"), 3);
    assert!(run.stderr.contains("'/gnu/store'") && run.stderr.contains("'/nix/store'"), "{}", run.stderr);
    // Without one, it is the directory that the file names, which has none of these.
    let run = refused(Program::new().arg("--from").arg(&file), 4);
    assert!(run.stderr.contains("/nix/store lacks 4 of the 4 store paths"), "{}", run.stderr);
}

/// A member that is not on the disk is named, at a start and at a reload, which leaves the view as it was.
#[test]
fn every_member_has_to_exist() {
    need!(Root, Fuse, Nix, Busybox);
    let saved = Saved::new(2);
    let (system, own) = &saved.systems.systems[1];
    let [place, away] = [own.base.as_str(), "away"].map(|name| saved.systems.store.physical().join(name));
    saved.save(1, "json");
    fs::rename(&place, &away).unwrap();
    let run = refused(program(&saved.systems.store, &saved.file()), 4);
    assert_run!("from-absent-member", &run);
    let run = program(&saved.systems.store, &saved.file()).arg("--dump-closure").run();
    assert!(run.stderr.contains("would be refused") && run.stderr.contains(&own.base), "{}", run.stderr);
    assert_eq!(well(run), dump(&saved.systems.store, &system.path, "text"));

    saved.save(0, "json");
    let mut service = saved.service().with(["--prune"]);
    service.start_ready();
    for format in ["json", "store-paths"] {
        saved.save(1, format);
        let run = service.reload();
        assert_eq!(run.status.code(), Some(8), "{}", snapshot::render(&run));
        assert!(run.stderr.contains(&own.base), "{}", run.stderr);
        assert_eq!(listed(service.path()), saved.names(&[0]), "{format}");
    }
    fs::rename(&away, &place).unwrap();
    service.reload_well();
    assert_eq!(listed(service.path()), saved.names(&[1]));
    assert_eq!(service.logged_soon(WARNING, 1), 1, "{}", service.log());
    service.stop();
}

/// A file that has no closure is refused by its name, with what to do.
#[test]
fn a_file_without_a_closure_is_refused() {
    need!(Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let file = dir.path().join("web.json");
    let json = dump(&fixture.store, &fixture.system.path, "json");
    let escape = "/nix/store/../../\u{1b}[31m\n";
    for (text, says) in [
        ("", "neither JSON nor a list"),
        ("hello\n", "neither JSON nor a list"),
        ("{}", "has no version"),
        (&json[..json.len() / 2], "not that of a closure"),
        (&json.replacen("\"version\": 2", "\"version\": 7", 1), "version '7'"),
        (&json.replacen(&fixture.data.base, &NixStore::name("other").base, 1), "edited?"),
        ("/nix/store/a\n", "is not the name of a store path"),
        ("/nix/store\n", "is not the name of a store path"),
        ("/nix/../store/a\n", "not an absolute path"),
        ("/nix/store/a\n/etc/passwd\n", ""),
        (escape, ""),
    ] {
        fs::write(&file, text).unwrap();
        let run = refused(program(&fixture.store, &file), 3);
        assert!(run.stderr.contains("web.json") && run.stderr.contains(says), "{text:?}: {}", run.stderr);
    }
    for absent in ["absent", "absent/below", "."] {
        let run = refused(program(&fixture.store, &dir.path().join(absent)), 3);
        assert!(run.stderr.contains("check its name"), "{absent}: {}", run.stderr);
    }
    fs::write(&file, "hello\n").unwrap();
    assert_run!("from-no-closure", &refused(program(&fixture.store, &file), 3));
}

/// Whoever could write the file would choose the view: one that somebody else could have written is refused, as a roots file is.
#[test]
fn nobody_else_chooses_the_file() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let text = dump(&fixture.store, &fixture.system.path, "text");
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (name, access) in [("public", 0o1777), ("theirs", 0o755), ("ours", 0o755)] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("web"), &text).unwrap();
        mode(&at(name), access);
    }
    chown(at("theirs"), Some(STRANGER), Some(STRANGER)).unwrap();
    fs::write(at("owned"), &text).unwrap();
    chown(at("owned"), Some(STRANGER), Some(STRANGER)).unwrap();
    fs::write(at("written"), &text).unwrap();
    mode(&at("written"), 0o666);
    symlink(at("ours/web"), at("theirs/link")).unwrap();
    symlink(at("ours/web"), at("link")).unwrap();
    lchown(at("link"), Some(STRANGER), Some(STRANGER)).unwrap();
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    chown(at("pipe"), Some(STRANGER), Some(STRANGER)).unwrap();
    // A list cannot make its own writer somebody who is trusted.
    fs::create_dir(at("store")).unwrap();
    let member = &NixStore::name("theirs").base;
    fs::write(at("store").join(member), "").unwrap();
    fs::write(at("names-its-own"), format!("{}/{member}\n", at("store").display())).unwrap();
    for path in ["store", "names-its-own"] {
        chown(at(path), Some(STRANGER), Some(STRANGER)).unwrap();
    }
    for file in
        ["public/web", "theirs/web", "theirs/link", "owned", "written", "link", "pipe", "names-its-own"]
    {
        let run = refused(program(&fixture.store, &at(file)), 3);
        assert!(run.stderr.contains("could choose what is served"), "{file}: {}", run.stderr);
    }
    let run = refused(Program::new().arg("--from").arg(at("names-its-own")), 3);
    assert!(run.stderr.contains("uid 4242"), "{}", run.stderr);
    let ours = at("ours/web");
    let run = refused(program(&fixture.store, &ours).arg("--untrusted").arg(at("ours")), 3);
    assert!(run.stderr.contains("--untrusted"), "{}", run.stderr);
    let run = refused(program(&fixture.store, Path::new("/dev/zero")), 3);
    assert!(run.stderr.contains("/dev/zero"), "{}", run.stderr);
    // Whoever only prints gets a warning.
    let run = program(&fixture.store, &at("owned")).arg("--dump-closure").run();
    assert!(run.stderr.contains("would be refused"), "{}", run.stderr);
    assert_eq!(well(run), text);

    let mut service = service(&fixture.store, &ours);
    service.start_ready();
    chown(&ours, Some(STRANGER), Some(STRANGER)).unwrap();
    let run = service.reload();
    assert_eq!(run.status.code(), Some(8), "{}", snapshot::render(&run));
    assert!(run.stderr.contains("uid 4242"), "{}", run.stderr);
    assert_eq!(tree::list(service.path()).unwrap().len(), 4);
    service.stop();
}

/// No more is read than a closure can have.
#[test]
fn a_file_without_end_is_refused() {
    need!(Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let file = dir.path().join("huge.json");
    File::create(&file).unwrap().set_len(300 << 20).unwrap();
    let run = refused(program(&fixture.store, &file), 3);
    assert!(run.stderr.contains("longer than"), "{}", run.stderr);
    let run = program(&fixture.store, Path::new("/dev/zero")).arg("--dump-closure").run();
    assert_eq!(run.status.code(), Some(3), "{}", snapshot::render(&run));
    assert!(run.stderr.contains("longer than"), "{}", run.stderr);
}

/// A pipe that nobody writes to keeps nobody waiting but the reload that reads it.
#[test]
fn a_pipe_is_waited_for_by_the_reload_alone() {
    need!(Root, Fuse, Nix, Busybox);
    let saved = Saved::new(2);
    let pipe = saved.dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut service = service(&saved.systems.store, &pipe);
    let from = service.heard();
    service.start();
    // It returns when the program has opened the other end.
    let write = |number: usize| {
        let text = dump(&saved.systems.store, &saved.systems.systems[number].0.path, "json");
        File::options().write(true).open(&pipe).unwrap().write_all(text.as_bytes()).unwrap();
    };
    write(0);
    service.wait_ready(from);
    assert_eq!(listed(service.path()), saved.names(&[0]));

    service.signal(Signal::HUP);
    write(1);
    service.wait_for(&saved.own(&service, 1));

    service.signal(Signal::HUP);
    let writer = File::options().write(true).open(&pipe).unwrap();
    let number = saved.own(&service, 1).join("number");
    assert_eq!(fs::read(number).unwrap(), b"1\n".repeat(5000));
    service.stop();
    assert_eq!(service.logged("does not answer; ending without waiting for it"), 1, "{}", service.log());
    drop(writer);
}

/// A reload reads the file again; with `--prune` what it has no longer is withdrawn.
#[test]
fn a_reload_reads_the_file_again() {
    need!(Root, Fuse, Nix, Busybox);
    for prune in [false, true] {
        let saved = Saved::new(3);
        let mut service = if prune { saved.service().with(["--prune"]) } else { saved.service() };
        service.start_ready();
        assert_eq!(listed(service.path()), saved.names(&[0]));
        for (number, format, seen) in [(1, "json", &[0, 1][..]), (2, "store-paths", &[0, 1, 2])] {
            saved.save(number, format);
            service.reload_well();
            let expected = if prune { saved.names(&[number]) } else { saved.names(seen) };
            assert_eq!(listed(service.path()), expected, "{number}, prune: {prune}");
        }
        replace(&saved.file(), "{");
        let run = service.reload();
        assert_eq!(run.status.code(), Some(8), "{}", snapshot::render(&run));
        assert!(run.stderr.contains("web.json"), "{}", run.stderr);
        assert!(saved.own(&service, 2).exists());
        service.stop();
    }
}

/// `--watch` notices a file that is replaced, written in place, removed, and reached by a link; and members that come later.
#[test]
fn a_watched_file_is_followed() {
    need!(Root, Fuse, Nix, Busybox);
    let saved = Saved::new(5);
    let link = saved.dir.path().join("link");
    symlink("web.json", &link).unwrap();
    let mut service = service(&saved.systems.store, &link).with(["--watch"]);
    service.start_ready();
    saved.save(1, "json");
    service.wait_for(&saved.own(&service, 1));
    let text = |number: usize| dump(&saved.systems.store, &saved.systems.systems[number].0.path, "json");
    fs::write(saved.file(), text(2)).unwrap();
    service.wait_for(&saved.own(&service, 2));

    let failures = service.logged(FAILED);
    fs::remove_file(saved.file()).unwrap();
    service.wait_logged(FAILED, failures + 1);
    assert_eq!(listed(service.path()), saved.names(&[0, 1, 2]));
    let next = saved.dir.path().join("next");
    fs::write(&next, text(3)).unwrap();
    let new_link = saved.dir.path().join("new-link");
    symlink("next", &new_link).unwrap();
    fs::rename(&new_link, &link).unwrap();
    service.wait_for(&saved.own(&service, 3));

    // It is not the file that changes then.
    let own = saved.systems.store.physical().join(&saved.systems.systems[4].1.base);
    let away = saved.systems.store.physical().join("away");
    fs::rename(&own, &away).unwrap();
    let failures = service.logged(FAILED);
    replace(&next, &text(4));
    service.wait_logged(FAILED, failures + 1);
    fs::rename(&away, &own).unwrap();
    service.wait_for(&saved.own(&service, 4));
    assert_eq!(service.logged_soon(WARNING, 1), 1, "{}", service.log());
    service.stop();
}

/// A successor takes the view over, of a monitor that was killed and of one that hands over, with the store down and whatever has
/// become of the file.
#[test]
fn a_successor_takes_the_view_over() {
    need!(Root, Fuse, Nix, Busybox);
    let saved = Saved::new(2);
    let mut service = saved.service();
    service.start_ready();
    let number = saved.own(&service, 0).join("number");
    let held = File::open(&number).unwrap();
    service.kill(Victim::Server);
    assert_eq!(fs::read(&number).unwrap(), b"0\n".repeat(5000));
    service.kill_monitor_only();
    saved.save(1, "store-paths");
    service.start_ready();
    service.wait_for(&saved.own(&service, 1));
    assert_eq!(listed(service.path()), saved.names(&[0, 1]));
    service.signal(Signal::USR2);
    assert_eq!(service.ended().code(), Some(75), "{}", service.log());
    fs::remove_file(saved.file()).unwrap();
    service.start_ready();
    service.wait_logged("keeping the closure of the earlier monitor until a reload succeeds", 1);
    assert_eq!(listed(service.path()), saved.names(&[0, 1]));
    assert_eq!(std::io::read_to_string(held).unwrap(), "0\n".repeat(5000));
    service.stop();
}

/// A view that was served from roots, with links that hold them, can be served from a file from then on: no link is left.
#[test]
fn links_of_an_earlier_start_are_removed() {
    need!(Root, Fuse, Nix, Busybox);
    let saved = Saved::new(2);
    let links = saved.dir.path().join("links");
    let mut service = Service::new(&saved.systems.store)
        .with([Path::new("--system"), &saved.systems.link])
        .with([Path::new("--gc-root"), &links]);
    service.start_ready();
    assert_eq!(tree::list(&links).unwrap().len(), 1);
    service.kill_monitor_only();
    service.replace(Path::new("--system"), Path::new("--from"));
    service.replace(&saved.systems.link, &saved.file());
    service.replace(Path::new("--gc-root"), Path::new("--untrusted"));
    service.replace(&links, &saved.dir.path().join("elsewhere"));
    saved.save(1, "json");
    service.start_ready();
    service.wait_for(&saved.own(&service, 1));
    service.stop();
    assert_eq!(tree::list(&links).unwrap_or_default(), <[PathBuf; 0]>::default());
}

/// A list has no roots, references and sizes: what needs them names what to use.
#[test]
fn a_list_is_refused_where_more_has_to_be_known() {
    need!(Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let (list, json) = (dir.path().join("list"), dir.path().join("json"));
    fs::write(&list, dump(&fixture.store, &fixture.system.path, "store-paths")).unwrap();
    fs::write(&json, dump(&fixture.store, &fixture.system.path, "json")).unwrap();
    let store = ["--store", &down(&fixture.store)].map(str::to_owned);
    let formats = ["json", "registration", "dot"].map(|format| {
        let run = program(&fixture.store, &list).arg(format!("--dump-closure={format}")).run();
        (format!("--dump-closure={format} "), run)
    });
    let why = Program::new().args(["why", "data"]).args(&store).arg("--from").arg(&list).run();
    let diff = Program::new().arg("diff").args(&store).args([&json, &list]).run();
    for (what, run) in formats.into_iter().chain([("'why' ".to_owned(), why), ("'diff' ".to_owned(), diff)]) {
        assert_eq!(run.status.code(), Some(3), "{}", snapshot::render(&run));
        assert!(run.stdout.is_empty() && run.stderr.lines().count() == 1, "{}", snapshot::render(&run));
        assert!(
            run.stderr.contains(&what) && run.stderr.contains("save the closure with --dump-closure=json"),
            "{}",
            run.stderr
        );
    }
    let why = Program::new().args(["why", "data"]).args(&store).arg("--from").arg(&list).run();
    assert_run!("from-list-why", &why);
}

/// Either closure of `diff` may be a file, also one whose store paths are gone; the store is opened for what is none.
#[test]
fn files_are_compared_as_their_systems_are() {
    need!(Root, Nix);
    let dir = scratch();
    let store = NixStore::new();
    let part = |name: &str| store.add(name, &[], |path| fs::write(path, name).unwrap());
    let [old_part, new_part] = ["curl-8.1", "curl-8.2"].map(part);
    let system = |name: &str, part| store.add(name, &[part], |path| fs::write(path, name).unwrap());
    let (old, new) = (system("system-1", &old_part), system("system-2", &new_part));
    let saved = [&old, &new].map(|system| {
        let file = dir.path().join(&system.base);
        fs::write(&file, dump(&store, &system.path, "json")).unwrap();
        file.to_str().unwrap().to_owned()
    });
    let diff = |store: &str, old: &str, new: &str| {
        well(Program::new().args(["diff", "--json", "--store", store, old, new]).run())
    };
    let expected = diff(&store.uri(), &old.path, &new.path);
    assert!(expected.contains("8.2"), "{expected}");
    assert_eq!(diff(&store.uri(), &saved[0], &new.path), expected);
    assert_eq!(diff(&store.uri(), &old.path, &saved[1]), expected);
    store.nix("nix-store", ["--delete", &old.path, &old_part.path], b"");
    assert_eq!(diff(&down(&store), &saved[0], &saved[1]), expected);
    let [first, second] = saved.each_ref().map(|file| format!("<(cat {file})"));
    let piped = format!("{} diff --json {first} {second}", Program::PATH);
    assert_eq!(store.nix("bash", ["-c", &piped], b""), expected);
}

/// One of the two kinds is needed, and they exclude each other; so does what holds roots.
#[test]
fn options_that_do_not_go_with_a_file_are_refused() {
    for other in ["--system", "--root", "--roots-file", "--gc-root"] {
        for mode in [&["--name", "web"][..], &["--dump-closure"]] {
            let run = Program::new().args(["--from", "/a.json", other, "/b"]).args(mode).run();
            assert_eq!(run.status.code(), Some(2), "{}", snapshot::render(&run));
            assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
        }
    }
    let run = Program::new().args(["--from", "/a.json", "--reload", "web"]).run();
    assert_eq!(run.status.code(), Some(2), "{}", snapshot::render(&run));
}
