//! `status`: one view, all, none; each form; and views that do not answer.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix_store_fs::protocol::control::{Asked, Control, Document};
use rustix::process::{Pid, Signal, kill_process};

use super::{assert_harmless, forms, run, tell};
use crate::util::fixture::Fixture;
use crate::util::program::{Program, unique_name};
use crate::util::service::{Service, Victim};
use crate::util::store::NixStore;
use crate::util::user::{NOBODY, User};
use crate::util::{DEADLINE, scratch, wait_readable};

fn service(fixture: &Fixture) -> Service {
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    service
}

/// The line about a view in the list of all.
fn row<'a>(all: &'a str, name: &str) -> Vec<&'a str> {
    let line = all.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in:\n{all}")).split_whitespace().collect()
}

/// One view, in words and for programs, by its name and by its place.
#[test]
fn one_view_is_told_by_name_and_by_place() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = service(&fixture);
    fs::read(view.path().join(&fixture.file.base)).unwrap();
    let text = tell(["status", &view.name]);
    let at = view.path().display().to_string();
    assert_eq!(text.lines().next(), Some(format!("{}: serving at {at}", view.name).as_str()));
    let line = |title: &str| {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(title));
        line.unwrap_or_else(|| panic!("no {title} in:\n{text}")).trim()
    };
    assert_eq!(
        line("asked for"),
        format!("--system {} --store {}", fixture.system.path, fixture.store.uri())
    );
    assert_eq!(line("roots"), fixture.system.base);
    assert!(line("closure").starts_with("4 store paths, "), "{text}");
    assert_eq!(line("reloads"), "0 done, 0 failed");
    assert_eq!(line("servers"), "0 replaced");
    assert!(line("requests").contains("lookup "), "{text}");
    assert!(line("memory").contains(&format!("(process {})", view.monitor().as_raw_nonzero())), "{text}");
    assert_eq!(line("missed"), "not recorded (serve the view with --report)");

    // By its place, however it is spelt.
    let link = scratch();
    symlink(view.path(), link.path().join("link")).unwrap();
    for place in [view.path().to_owned(), view.path().join("."), link.path().join("link")] {
        let by_place = tell([OsStr::new("status"), place.as_os_str()]);
        assert_eq!(by_place.lines().next(), text.lines().next());
    }
    let json = forms::json("status", &tell(["status", "--json", &view.name]));
    let [told] = json["views"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&told["name"], &told["mountPoint"]), (&view.name.as_str().into(), &at.into()));
    assert_eq!((&json["version"], &told["paths"]), (&1.into(), &4.into()));
    assert_eq!(json["unanswered"], serde_json::json!([]));

    let row: Vec<String> = row(&tell(["status"]), &view.name).iter().map(|&cell| cell.to_owned()).collect();
    assert_eq!(&row[1..3], ["serving", "4"]);
    assert_eq!(row.last().unwrap(), &view.path().display().to_string());
    let all = forms::json("status", &tell(["status", "--json"]));
    assert!(all["views"].as_array().unwrap().iter().any(|told| told["name"] == view.name.as_str()), "{all}");
}

/// The text of metrics has the numbers that JSON has.
#[test]
fn metrics_are_the_numbers_of_the_view() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = service(&fixture);
    fs::read(view.path().join(&fixture.data.base).join("text")).unwrap();
    let json = forms::json("status", &tell(["status", "--json", &view.name]));
    let text = tell(["status", "--metrics", &view.name]);
    let told = &json["views"][0];
    let found = forms::metrics(&text);
    let number = |name: &str, label: Option<(&str, &str)>| {
        let is_meant = |labels: &std::collections::BTreeMap<String, String>| {
            labels["view"] == view.name && label.is_none_or(|(key, value)| labels[key] == value)
        };
        let samples = &found[&format!("nix_store_fs_{name}")];
        let mut samples = samples.iter().filter(|(labels, _)| is_meant(labels));
        let value = samples.next().unwrap_or_else(|| panic!("no {name} in\n{text}")).1;
        assert!(samples.next().is_none(), "{text}");
        value as u64
    };
    assert_eq!(
        (number("up", None), number("serving", None), number("info", Some(("io", "cached")))),
        (1, 1, 1)
    );
    for (name, expected) in [
        ("paths", &told["paths"]),
        ("nar_size_bytes", &told["narSize"]),
        ("served_since_seconds", &told["servedSince"]),
        ("reloads_done_total", &told["reloads"]["done"]),
        ("servers_replaced_total", &told["servers"]["replaced"]),
        ("read_bytes_total", &told["usage"]["bytesRead"]),
        ("names_known", &told["usage"]["namesKnown"]),
    ] {
        assert_eq!(Some(number(name, None)), expected.as_u64(), "{name}: {text}");
    }
    assert_eq!(number("read_bytes_total", None), 6);
    for (kind, count) in told["usage"]["requests"].as_object().unwrap() {
        assert!(number("requests_total", Some(("kind", kind))) >= count.as_u64().unwrap(), "{kind}: {text}");
    }
    assert!(!text.contains("nix_store_fs_missed_names{"), "nothing is recorded: {text}");
    // All views at once: each metric is still there once.
    let all = forms::metrics(&tell(["status", "--metrics"]));
    assert!(all["nix_store_fs_up"].iter().any(|(labels, up)| labels["view"] == view.name && *up == 1.0));
}

/// No view, and no directory of views: that is no failure.
#[test]
fn no_view_is_told() {
    need!(Root);
    let alone = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /run && exec \"$@\"", "sh"];
    let run = |arguments: &[&str]| Program::new().inside(alone).arg("status").args(arguments).run();
    let said = run(&[]);
    assert_eq!(
        (said.status.code(), said.stdout.as_str(), said.stderr.as_str()),
        (Some(0), "no view is being served\n", "")
    );
    let json = forms::json("status", &run(&["--json"]).stdout);
    assert_eq!(json, serde_json::json!({ "version": 1, "views": [], "unanswered": [] }));
    assert!(forms::metrics(&run(&["--metrics"]).stdout).values().all(Vec::is_empty));
}

/// What is not served: one line that names it, and exit code 12.
#[test]
fn what_is_not_served_is_no_view() {
    need!(Root, Fuse, Nix);
    let name = unique_name();
    for command in ["status", "report"] {
        for asked in [name.as_str(), "/", "/nowhere", "./x", "..", "a b", "a\nb\u{1b}[2J"] {
            let finished = run([command, asked]);
            assert_eq!(finished.status.code(), Some(12), "{asked}: {finished:?}");
            assert_eq!(finished.stderr.lines().count(), 1, "{asked}: {finished:?}");
            assert_harmless(&finished.stderr);
            assert!(finished.stderr.contains("'nix-store-fs status' lists"), "{asked}: {finished:?}");
        }
        assert_run!(format!("{command}-unknown-name"), &run([command, &name]));
        assert_run!(format!("{command}-unknown-place"), &run([command, "/nowhere"]));
    }
}

/// Views of another user are theirs to ask, whatever they are called and wherever they are mounted.
#[test]
fn a_view_of_another_user_is_not_told() {
    need!(Root, Fuse, Nix, Fusermount);
    let fixture = Fixture::in_store(NixStore::owned_by(NOBODY));
    let user = User::new();
    let (view, name) = user.mount(fixture.program());
    let at = view.path();
    // In the mount namespace of the view.
    let pid = view.pid().as_raw_nonzero().to_string();
    let beside = ["nsenter", "-t", &pid, "-m"];
    for asked in [OsStr::new(&name), at.as_os_str()] {
        let of_root = Program::new().inside(beside).arg("status").arg(asked).run();
        assert_eq!(of_root.status.code(), Some(12), "{of_root:?}");
    }
    let own = user.plain(Program::new().arg("status").arg(&name)).run();
    assert!(own.stdout.starts_with(&format!("{name}: serving at {}\n", at.display())), "{own:?}");
    let runtime = user.runtime();
    let home = runtime.parent().unwrap().display();
    let environment = [format!("XDG_RUNTIME_DIR={}", runtime.display()), format!("LD_LIBRARY_PATH={home}")];
    let program = format!("{home}/nix-store-fs");
    let place = at.display().to_string();
    let by_place = User::beside(
        view.pid(),
        NOBODY,
        &["env", &environment[0], &environment[1], &program, "status", &place],
    );
    assert!(by_place.stdout.starts_with(format!("{name}: serving at ").as_bytes()), "{by_place:?}");

    let ours = service(&Fixture::new());
    for asked in [OsStr::new(&ours.name), ours.path().as_os_str()] {
        let of_user = user.plain(Program::new().arg("status").arg(asked)).run();
        assert_eq!(of_user.status.code(), Some(12), "{of_user:?}");
        assert_eq!(of_user.stdout, "");
    }
}

/// A monitor that is stopped: it is named, and every other view is told all the same.
#[test]
fn a_stopped_monitor_keeps_no_other_view_back() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let (stopped, other) = (service(&fixture), service(&fixture));
    stopped.signal(Signal::STOP);
    let all = run(["status"]);
    assert_eq!(all.status.code(), Some(0), "{all:?}");
    assert_eq!(row(&all.stdout, &other.name)[1], "serving");
    assert_eq!(row(&all.stdout, &stopped.name)[1..3], ["no", "answer"]);
    assert!(all.stderr.contains(&format!("view '{}'", stopped.name)), "{all:?}");
    // Whoever scrapes waits for 10 s, as a rule.
    assert!(all.stderr.contains("has not answered for 3 s"), "{all:?}");
    let up = &forms::metrics(&tell(["status", "--metrics"]))["nix_store_fs_up"];
    for (name, expected) in [(&stopped.name, 0.0), (&other.name, 1.0)] {
        let found: Vec<f64> =
            up.iter().filter(|(labels, _)| labels["view"] == *name).map(|(_, up)| *up).collect();
        assert_eq!(found, [expected], "{name}");
    }
    let json = forms::json("status", &tell(["status", "--json"]));
    let unanswered =
        json["unanswered"].as_array().unwrap().iter().find(|told| told["name"] == stopped.name.as_str());
    assert!(unanswered.unwrap()["why"].as_str().unwrap().contains("has not answered"), "{json}");
    for command in ["status", "report"] {
        let one = run([command, &stopped.name]);
        assert_eq!((one.status.code(), one.stdout.as_str()), (Some(13), ""), "{one:?}");
        assert!(one.stderr.contains("it may be stopped") && one.stderr.contains(&stopped.name), "{one:?}");
    }
    stopped.signal(Signal::CONT);
    assert!(tell(["status", &stopped.name]).starts_with(&format!("{}: serving", stopped.name)));
}

/// A server that is stopped keeps nobody from being told.
#[test]
fn a_stopped_server_keeps_nothing_back() {
    need!(Root, Fuse, Nix);
    let mut view = service(&Fixture::new());
    let server = view.server();
    kill_process(server, Signal::STOP).unwrap();
    assert!(tell(["status", &view.name]).contains(&format!("(process {})", server.as_raw_nonzero())));
    assert!(tell(["report", &view.name]).contains("Used since"));
    kill_process(server, Signal::CONT).unwrap();
}

/// What is left of a view whose processes were killed, and a server without a monitor.
#[test]
fn what_is_left_of_a_view_is_told_as_that() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut left = service(&fixture);
    left.kill(Victim::Both);
    let mut orphaned = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    orphaned.start_alone();
    let until = Instant::now() + DEADLINE;
    while run(["status", &orphaned.name]).status.code() != Some(0) {
        assert!(Instant::now() < until, "{}", orphaned.log());
    }
    while !tell(["status", &orphaned.name]).contains(": serving") {
        assert!(Instant::now() < until, "{}", orphaned.log());
    }
    let server = orphaned.server();
    orphaned.kill_monitor_only();
    for command in ["status", "report"] {
        assert_run!(format!("{command}-left"), &run([command, &left.name]));
        let one = run([command, &orphaned.name]);
        assert_eq!(one.status.code(), Some(13), "{one:?}");
        let expected = format!("by the server (pid {}) of a monitor that has died", server.as_raw_nonzero());
        assert!(one.stderr.contains(&expected), "{one:?}");
        assert_eq!(one.stderr.lines().count(), 1, "{one:?}");
    }
    let all = tell(["status"]);
    assert_eq!(row(&all, &left.name)[1..3], ["has", "ended"]);
    assert_eq!(row(&all, &orphaned.name)[1..3], ["no", "monitor"]);
    let up = &forms::metrics(&tell(["status", "--metrics"]))["nix_store_fs_up"];
    for name in [&left.name, &orphaned.name] {
        assert!(up.iter().any(|(labels, up)| labels["view"] == *name && *up == 0.0), "{up:?}");
    }
    rustix::mount::unmount(orphaned.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let process = rustix::process::pidfd_open(server, rustix::process::PidfdFlags::empty());
    if let Ok(process) = process {
        assert_eq!(wait_readable([&process], until), [true], "the server lives without its mount");
    }
}

/// A view that is not served yet.
#[test]
fn a_view_that_starts_is_told() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let scratch = scratch();
    let mut view = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    view.set("NSF_HOLD", scratch.path());
    let (held, there) = crate::util::hold::arm(scratch.path(), "resolving");
    let from = view.heard();
    view.start();
    view.wait_for(&there);
    let text = tell(["status", &view.name]);
    assert!(text.starts_with(&format!("{}: starting at ", view.name)), "{text}");
    assert_eq!(row(&tell(["status"]), &view.name)[1], "starting");
    forms::json("status", &tell(["status", "--json", &view.name]));
    forms::metrics(&tell(["status", "--metrics", &view.name]));
    assert_eq!(tell(["report", &view.name]), format!("{}: nothing is served yet\n", view.name));
    let json = forms::json("report", &tell(["report", "--json", &view.name]));
    assert_eq!(json["usage"], serde_json::Value::Null);
    drop(held);
    view.wait_ready(from);
    view.stop();
}

/// `status --watch`, and what it has printed.
struct Watching(Child);

impl Watching {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(Program::PATH);
        command.arg("status").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// How it ends.
    fn end(mut self) -> std::process::ExitStatus {
        let process =
            rustix::process::pidfd_open(Pid::from_child(&self.0), rustix::process::PidfdFlags::empty());
        let ended = wait_readable([&process.unwrap()], Instant::now() + DEADLINE) == [true];
        if !ended {
            let _killed = self.0.kill();
        }
        let status = self.0.wait().unwrap();
        assert!(ended, "it does not end");
        status
    }
}

/// It prints again, and ends when it is told to, or when nobody reads it any more.
#[test]
fn watching_repeats_until_it_is_ended() {
    use std::os::unix::process::ExitStatusExt;
    need!(Root, Fuse, Nix);
    let view = service(&Fixture::new());
    for signal in [Signal::INT, Signal::TERM] {
        let mut watching = Watching::start(&["--watch=1", "--json", &view.name]);
        let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let json = forms::json("status", &lines.next().unwrap().unwrap());
            assert_eq!(json["views"][0]["name"], view.name.as_str());
        }
        kill_process(Pid::from_child(&watching.0), signal).unwrap();
        assert_eq!(watching.end().signal(), Some(signal.as_raw()));
    }
    for form in [&["--watch=1", "--json"][..], &["--watch=1"]] {
        let mut watching = Watching::start(form);
        let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(!first.contains('\u{1b}'), "a screen is cleared on terminals only: {first:?}");
        drop(lines);
        assert_eq!(watching.end().code(), Some(0));
    }
    // A view that ends.
    let mut watching = Watching::start(&["--watch=1", &view.name]);
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("serving"));
    drop(view);
    let last = lines.map_while(Result::ok).last();
    assert!(last.is_some());
    assert_eq!(watching.end().code(), Some(12));
}

/// Names that would command a terminal, wherever they come from: no form prints them as they are.
#[test]
fn hostile_names_do_no_harm() {
    need!(Root, Fuse, Nix);
    let hostile = OsStr::from_bytes(b"a\nb\x1b[2J\x7f\xc2\x9b31m\xe2\x80\xae\xff");
    let dir = scratch();
    let below = dir.path().join(OsStr::from_bytes(b"s\x1b[2J\xc2\x9b\xe2\x80\xae t"));
    fs::create_dir(&below).unwrap();
    let store = NixStore::below(&below);
    let fixture = Fixture::in_store(store);
    let stray = &fixture.outside;
    let link = fixture.store.profile("web/system", &fixture.system.path);
    let hostile_link = link.with_file_name(hostile);
    symlink(&link, &hostile_link).unwrap();
    let mut view = Service::new(&fixture.store).with(["--report", "--root"]);
    view.add([&hostile_link]);
    let at = view.path().with_file_name(hostile);
    fs::create_dir(&at).unwrap();
    let asked = view.path().to_owned();
    view.replace(&asked, &at);
    view.start_ready();
    // Somebody with a name of their own choice asks, and stays until that is known: who has ended has none. And a reload fails.
    let script = r#"printf 'a\n\033[2J\302\233' >/proc/self/comm; ! test -e "$1" && read line"#;
    let mut asks = Command::new("sh");
    asks.args(["-c", script, "sh"]).arg(at.join(&stray.base));
    let mut asks = asks.stdin(Stdio::piped()).spawn().unwrap();
    fs::remove_file(&link).unwrap();
    assert_eq!(view.reload().status.code(), Some(8));
    let until = Instant::now() + DEADLINE;
    while !tell(["report", &view.name]).contains(&stray.base) {
        assert!(Instant::now() < until, "{}", view.log());
    }
    asks.stdin.take().unwrap().write_all(b"known\n").unwrap();
    assert!(asks.wait().unwrap().success());
    let asked: [&[&str]; 11] = [
        &["status"],
        &["status", "--color=always"],
        &["status", "--json"],
        &["status", "--metrics"],
        &["status", &view.name],
        &["status", "--color=always", &view.name],
        &["status", "--json", &view.name],
        &["status", "--metrics", &view.name],
        &["report", &view.name],
        &["report", "--color=always", &view.name],
        &["report", "--json", &view.name],
    ];
    for arguments in asked {
        let finished = run(arguments);
        assert_eq!(finished.status.code(), Some(0), "{finished:?}");
        assert_harmless(&finished.stdout);
        assert_harmless(&finished.stderr);
        let coloured = arguments.contains(&"--color=always");
        assert_eq!(finished.stdout.contains('\u{1b}'), coloured, "{arguments:?}: {}", finished.stdout);
        assert!(finished.stdout.contains(&view.name), "{arguments:?}");
        if arguments.contains(&"--json") {
            assert!(finished.stdout.is_ascii(), "{}", finished.stdout);
        }
    }
    let no_color =
        Program::new().env("NO_COLOR", "1").env("CLICOLOR_FORCE", "").args(["status", &view.name]).run();
    assert!(!no_color.stdout.contains('\u{1b}'));
    let text = tell(["status", &view.name]);
    assert!(text.contains(r"a\nb\u{1b}[2J\u{7f}\u{9b}31m\u{202e}\xff"), "{text}");
    assert!(
        text.lines().any(|line| line.trim_start().starts_with("last error") && line.contains(r"\u{1b}")),
        "{text}"
    );
    assert!(tell(["report", &view.name]).contains(r"'a\n\u{1b}[2J\u{9b}'"));
    // Nothing is lost for programs.
    let json = forms::json("status", &tell(["status", "--json", &view.name]));
    let told: Vec<u8> = serde_json::from_value(json["views"][0]["mountPoint"].clone()).unwrap();
    assert_eq!(told, at.as_os_str().as_bytes());
    view.signal(Signal::TERM);
    assert!(view.ended().success());
}

/// Somebody has taken a monitor over: what it answers is text, and it is called what its directory is called.
#[test]
fn a_hostile_monitor_does_no_harm() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let view = service(&fixture);
    let mut told = forms::json("status", &tell(["status", "--json", &view.name]))["views"][0].clone();
    let name = unique_name();
    let state = PathBuf::from("/run/nix-store-fs/.state").join(&name);
    fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let control = Control::listen(&state.join("control")).unwrap();
    let evil = "\u{1b}[2J\nweb\"\\\u{9b}\u{202e}";
    // Called as another view is: no sample may be there twice.
    told["name"] = view.name.as_str().into();
    told["programVersion"] = evil.into();
    told["usage"]["requests"] = serde_json::json!({ evil: 1, "lookup": u64::MAX });
    told["usage"]["bytesRead"] = u64::MAX.into();
    told["servedSince"] = u64::MAX.into();
    told["lastError"] = serde_json::json!({ "at": u64::MAX, "message": evil });
    let document = Document::new(&serde_json::to_vec(&told).unwrap()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(&control, &document, &done));
        let asked: [&[&str]; 6] = [
            &["status"],
            &["status", "--json"],
            &["status", "--metrics"],
            &["status", &name],
            &["status", "--json", &name],
            &["status", "--metrics", &name],
        ];
        let said = asked.map(run);
        done.store(true, Ordering::Relaxed);
        answering.join().unwrap();
        for (asked, finished) in asked.iter().zip(&said) {
            assert_eq!(finished.status.code(), Some(0), "{asked:?}: {finished:?}");
            assert_harmless(&finished.stdout);
            assert!(finished.stdout.contains(&name), "{asked:?}: {finished:?}");
        }
        let metrics = forms::metrics(&said[2].stdout);
        for name in [&name, &view.name] {
            let is_its = |(labels, _): &&forms::Sample| labels["view"] == **name;
            assert_eq!(metrics["nix_store_fs_paths"].iter().filter(is_its).count(), 1);
        }
    });
    fs::remove_dir_all(&state).unwrap();
}

/// Gives whoever asks this answer.
fn answer(control: &Control, document: &Document, done: &AtomicBool) {
    let mut kept = Vec::new();
    while !done.load(Ordering::Relaxed) {
        if wait_readable([&control.socket()], Instant::now() + Duration::from_millis(50)) == [false] {
            continue;
        }
        let mut connection = control.accept().unwrap().unwrap();
        let asked = loop {
            match connection.read() {
                Asked::Nothing(more) => connection = more,
                asked => break asked,
            }
            assert_eq!(wait_readable([&connection.socket()], Instant::now() + DEADLINE), [true]);
        };
        if let Asked::Question(client, question) = asked {
            client.give(question, document).unwrap();
            kept.push(client);
        }
    }
}
