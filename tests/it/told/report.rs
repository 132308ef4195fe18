//! `report`: what was missed, what was used and what was not, against what the test itself asks for, and removals that it computes
//! from what Nix tells of references and sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use nix_store_fs::values::Size;
use rustix::process::Signal;
use serde_json::Value;

use super::{assert_harmless, forms, run, tell};
use crate::util::fixture::Fixture;
use crate::util::generated::Generated;
use crate::util::program::Program;
use crate::util::random::{Random, seed};
use crate::util::service::{Service, Victim};
use crate::util::snapshot;
use crate::util::store::{Member, NixStore};
use crate::util::{DEADLINE, compile, scratch};

/// The report in JSON, which satisfies its schema.
fn json(view: &Service) -> Value {
    forms::json("report", &tell(["report", "--json", &view.name]))
}

/// Asks until `is` holds of the report.
fn until(view: &Service, is: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + DEADLINE;
    loop {
        let report = json(view);
        if is(&report) {
            return report;
        }
        assert!(Instant::now() < until, "{report}\n{}", view.log());
    }
}

fn paths(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect()
}

fn bases<'a>(members: impl IntoIterator<Item = &'a Member>) -> BTreeSet<String> {
    members.into_iter().map(|member| member.base.clone()).collect()
}

/// What Nix knows of a closure: references and size of each member.
struct Oracle(BTreeMap<String, (BTreeSet<String>, u64)>);

impl Oracle {
    fn of(store: &NixStore, root: &Member) -> Self {
        let base = |path: &str| path.trim().strip_prefix("/nix/store/").unwrap().to_owned();
        let known = |path: String| {
            let references = store.nix("nix-store", ["-q", "--references", &path], b"");
            let size = store.nix("nix-store", ["-q", "--size", &path], b"").trim().parse().unwrap();
            (base(&path), (references.lines().map(base).collect(), size))
        };
        Self(store.closure(&[root]).into_iter().map(known).collect())
    }

    fn size(&self, path: &str) -> u64 {
        self.0[path].1
    }

    /// What is left of the closure of `root` without `removed`, itself included.
    fn without(&self, root: &str, removed: &str) -> BTreeSet<String> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![root.to_owned()]);
        while let Some(path) = next.pop() {
            if path != removed && seen.insert(path.clone()) {
                next.extend(self.0[&path].0.iter().cloned());
            }
        }
        seen
    }

    /// What goes with a path, itself included.
    fn gone(&self, root: &str, removed: &str) -> BTreeSet<String> {
        let left = self.without(root, removed);
        self.0.keys().filter(|path| !left.contains(*path)).cloned().collect()
    }

    fn sum<'a>(&self, paths: impl IntoIterator<Item = &'a String>) -> u64 {
        paths.into_iter().map(|path| self.size(path)).sum()
    }
}

/// On closures of any shape: used is what was touched, and what each unused member alone brings in is what its removal removes.
#[test]
fn what_is_unused_weighs_what_its_removal_removes() {
    need!(Root, Fuse, Nix);
    let random = &mut Random::new(seed("report"));
    for round in 0..3 {
        let store = NixStore::new();
        let names: Vec<String> = (0..16).map(|n| format!("r{n}-{round}")).collect();
        let made = Generated::new(&store, random, &names, 2);
        let root = &made.members[0];
        let oracle = Oracle::of(&store, root);
        let mut view = Service::new(&store).with(["--system", &root.path]);
        view.start_ready();
        // A listing of the root, with the kind of each, uses nothing.
        assert_eq!(fs::read_dir(view.path()).unwrap().count(), oracle.0.len());
        let none = json(&view);
        assert_eq!(none["usage"]["used"], serde_json::json!([]));

        let reached: Vec<&Member> = made.reached(0).into_iter().map(|n| &made.members[n]).collect();
        let touched: Vec<&Member> = reached.iter().copied().filter(|_| random.below(3) == 0).collect();
        for member in &touched {
            let mut entries = fs::read_dir(view.path().join(&member.base)).unwrap();
            assert!(entries.next().is_none_or(|entry| entry.is_ok()));
        }
        let report = json(&view);
        let usage = &report["usage"];
        assert_eq!(usage["complete"], true);
        let used = bases(touched);
        assert_eq!(paths(&usage["used"]), used);
        let mut needed = used.clone();
        needed.insert(root.base.clone());
        let expected: BTreeSet<String> =
            oracle.0.keys().filter(|path| !needed.contains(*path)).cloned().collect();
        assert_eq!(paths(&usage["unused"]), expected);
        assert_eq!(usage["enough"]["paths"], needed.len());
        assert_eq!(usage["enough"]["narSize"], oracle.sum(&needed));
        assert_eq!(
            report["served"],
            serde_json::json!({ "paths": oracle.0.len(), "narSize": oracle.sum(oracle.0.keys()) })
        );
        for unused in usage["unused"].as_array().unwrap() {
            let path = unused["path"].as_str().unwrap();
            let gone = oracle.gone(&root.base, path);
            assert_eq!(unused["narSize"], oracle.size(path), "{unused}");
            assert_eq!(unused["alone"], oracle.sum(&gone), "{unused}");
            assert_eq!(unused["bringsUsed"], gone.intersection(&used).count(), "{unused}");
            if let Some(within) = unused["within"].as_str() {
                assert!(oracle.gone(&root.base, within).contains(path), "{unused}");
                assert!(expected.contains(within), "{unused}");
            }
        }
        // For people no byte is there twice: those that can go, each with what goes with it, and those that lead to used ones.
        let text = tell(["report", "--all", &view.name]);
        let (_, below) = text.split_once("\nNever used:").unwrap_or(("", ""));
        let (going, staying): (Vec<&String>, Vec<&String>) =
            expected.iter().partition(|path| oracle.gone(&root.base, path).is_disjoint(&used));
        let tops: Vec<&&String> = going
            .iter()
            .filter(|path| {
                going.iter().all(|other| other == *path || !oracle.gone(&root.base, other).contains(**path))
            })
            .collect();
        // The sizes of the lines about a path.
        let listed = |path: &str| -> Vec<String> {
            let lines = below.lines().filter(|line| line.contains(path));
            lines.map(|line| line.split(path).next().unwrap().trim().to_owned()).collect()
        };
        for path in &going {
            let top = tops.iter().find(|top| **top == path);
            let expected = top.map(|top| Size(oracle.sum(&oracle.gone(&root.base, top))).to_string());
            assert_eq!(listed(path), Vec::from_iter(expected), "{path}\n{text}");
        }
        for path in &staying {
            assert_eq!(listed(path), [Size(oracle.size(path)).to_string()], "{path}\n{text}");
        }
        let together: u64 = tops.iter().map(|path| oracle.sum(&oracle.gone(&root.base, path))).sum();
        assert_eq!(together + oracle.sum(staying), oracle.sum(&expected));
        view.stop();
    }
}

/// The text as a person reads it, on a small closure.
#[test]
fn a_report_reads_well() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let fill = |bytes: usize| move |path: &Path| fs::write(path, "x".repeat(bytes)).unwrap();
    let inner = store.add("perl-5.40", &[], fill(3_000_000));
    let unused = store.add("git-2.47-doc", &[&inner], fill(1_000_000));
    let used = store.add("glibc-2.40", &[], fill(2_000_000));
    let bridge = store.add("bash-5.2", &[&used], fill(500_000));
    let system = store.add("nixos-system-web-24.11", &[&unused, &bridge], fill(10));
    let stray = store.add("mesa-25.0.7", &[], fill(10));
    let mut view = Service::new(&store).with(["--report", "--prefetch", "off", "--system", &system.path]);
    view.start_ready();
    fs::read(view.path().join(&used.base)).unwrap();
    fs::metadata(view.path().join(&stray.base)).unwrap_err();
    until(&view, |report| !report["missed"]["names"].as_array().unwrap().is_empty());
    let text = tell(["report", &view.name]);
    let mut settings = snapshot::settings();
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[TIME]");
    settings.add_filter(&format!(r"\({}\)", std::process::id()), "([PID])");
    settings.add_filter(
        &fs::read_to_string("/proc/self/comm").unwrap().trim_end().replace('.', r"\."),
        "[COMMAND]",
    );
    settings.bind(|| insta::assert_snapshot!("report", text));
    view.stop();
}

/// What a reload brings and withdraws, and what a hand-over keeps.
#[test]
fn a_report_follows_reloads_and_monitors() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let file = |path: &Path| fs::write(path, "x\n").unwrap();
    let [old, new, both] = ["old", "new", "both"].map(|name| store.add(name, &[], file));
    let first = store.add("first", &[&old, &both], file);
    let second = store.add("second", &[&new, &both], file);
    let link = store.profile("web/system", &first.path);
    let mut view = Service::new(&store).with([
        Path::new("--prune"),
        Path::new("--report"),
        Path::new("--system"),
        &link,
    ]);
    view.start_ready();
    for member in [&old, &both] {
        fs::read(view.path().join(&member.base)).unwrap();
    }
    fs::metadata(view.path().join(&new.base)).unwrap_err();
    let before = until(&view, |report| !paths(&report["missed"]["names"]).is_empty());
    assert_eq!(paths(&before["missed"]["names"]), bases([&new]));
    assert_eq!(paths(&before["usage"]["used"]), bases([&old, &both]));

    fs::remove_file(&link).unwrap();
    symlink(&second.path, &link).unwrap();
    view.reload_well();
    let after = json(&view);
    assert_eq!(
        (&after["missed"]["names"][0]["served"], &after["roots"]),
        (&true.into(), &serde_json::json!([second.base]))
    );
    // What was used of it is withdrawn.
    assert_eq!(paths(&after["usage"]["used"]), bases([&both]));
    assert!(
        paths(&after["usage"]["unused"]).contains(&new.base)
            || paths(&after["usage"]["used"]).contains(&new.base)
    );
    assert!(tell(["report", &view.name]).contains("it is there since a reload"));

    view.signal(Signal::USR2);
    assert_eq!(view.ended().code(), Some(75));
    view.start_ready();
    let later = json(&view);
    assert_eq!(later["usage"]["used"], after["usage"]["used"]);
    assert_eq!(
        (&later["usage"]["since"], &later["usage"]["complete"]),
        (&after["usage"]["since"], &true.into())
    );
    assert_eq!(later["missed"]["names"], serde_json::json!([]), "the record is the monitor's");
    // What was counted is lost with the descriptor.
    view.kill(Victim::Both);
    view.lose_descriptor("usage");
    view.start_ready();
    let lost = json(&view);
    assert_eq!(lost["usage"]["complete"], false);
    let text = tell(["report", &view.name]);
    assert!(text.contains("Not used since then, perhaps before") && !text.contains("Never used"), "{text}");
    view.stop();
}

/// Without `--report` nothing is said of what was missed, which is not the same as nothing missed.
#[test]
fn without_a_record_nothing_is_known_to_be_missed() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    view.start_ready();
    fs::metadata(view.path().join(&fixture.outside.base)).unwrap_err();
    assert_eq!(json(&view)["missed"], Value::Null);
    let text = tell(["report", &view.name]);
    assert!(text.contains("Missed: not recorded; serve the view with --report\n"), "{text}");
    view.stop();
}

/// The store cannot be asked, or has lost a path of the view: what is known without it is told, with a warning.
#[test]
fn a_report_needs_no_store() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    view.start_ready();
    let whole = json(&view);
    assert!(
        whole["usage"]["unused"].as_array().unwrap().iter().all(|unused| unused["alone"].is_u64()),
        "{whole}"
    );
    let expect = |why: &str| {
        let finished = run(["report", "--json", &view.name]);
        assert_eq!(finished.status.code(), Some(0), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(finished.stderr.contains("WARN") && finished.stderr.contains(why), "{finished:?}");
        let report = forms::json("report", &finished.stdout);
        for unused in report["usage"]["unused"].as_array().unwrap() {
            assert!(unused["narSize"].is_u64(), "{unused}");
            assert_eq!(
                [&unused["alone"], &unused["bringsUsed"], &unused["within"]],
                [&Value::Null; 3],
                "{unused}"
            );
        }
        let text = run(["report", &view.name]);
        assert_eq!(text.status.code(), Some(0), "{text:?}");
        assert!(text.stdout.contains(&fixture.file.base) && !text.stdout.contains("unknown"), "{text:?}");
    };
    // A root is collected, as what held it is lost: a daemon that was restarted does that.
    fs::remove_dir_all(fixture.store.root().join("nix/var/nix/temproots")).unwrap();
    let delete = ["--delete", "--ignore-liveness", &fixture.system.path];
    fixture.store.nix("nix-store", delete, b"");
    expect(&fixture.system.base);
    // The database is gone.
    fs::rename(fixture.store.root().join("nix/var"), fixture.store.root().join("nix/gone")).unwrap();
    fs::write(fixture.store.root().join("nix/var"), "").unwrap();
    expect("store");
    view.signal(Signal::TERM);
    let _status = view.ended();
}

/// A view of a list of store paths, of which only names are known.
#[test]
fn a_report_of_a_list_has_names() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let list = scratch();
    let file = list.path().join("store-paths");
    fs::write(&file, fixture.store.closure(&[&fixture.system]).join("\n")).unwrap();
    let mut view = Service::new(&fixture.store).with([Path::new("--from"), &file]);
    view.start_ready();
    fs::read(view.path().join(&fixture.file.base)).unwrap();
    let finished = run(["report", "--json", &view.name]);
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    assert!(finished.stderr.contains("what each path alone brings in is left out"), "{finished:?}");
    let report = forms::json("report", &finished.stdout);
    assert_eq!(paths(&report["usage"]["used"]), bases([&fixture.file]));
    assert_eq!(paths(&report["usage"]["unused"]).len(), 3);
    let text = run(["report", &view.name]).stdout;
    assert!(text.contains(": 4 store paths") && text.contains("Never used: 3 store paths"), "{text}");
    view.stop();
}

/// Wherever it is run: a name in the current directory is not taken for a root.
#[test]
fn a_report_can_be_run_in_the_view() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut view = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    view.start_ready();
    let place = view.path().display().to_string();
    let inside = ["sh", "-c", "cd \"$0\" && exec \"$@\"", &place];
    let finished = Program::new().inside(inside).args(["report", "."]).run();
    assert_eq!((finished.status.code(), finished.stderr.as_str()), (Some(0), ""));
    let json =
        forms::json("report", &Program::new().inside(inside).args(["report", "--json", "."]).run().stdout);
    assert!(
        json["usage"]["unused"].as_array().unwrap().iter().all(|unused| unused["alone"].is_u64()),
        "{json}"
    );
    view.stop();
}

/// Lists have an end, unless all of it is wanted.
#[test]
fn ten_thousand_missed_names_are_told_in_a_few_lines() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let name = |number: usize| format!("{number:032}-{}", "n".repeat(100));
    for number in 0..10_000 {
        fs::write(fixture.store.physical().join(name(number)), "").unwrap();
    }
    let mut view = Service::new(&fixture.store).with(["--report", "--system", &fixture.system.path]);
    // At idle priority the thread that asks the disk may not run for as long as other tests do.
    let scratch = scratch();
    let refuse = compile("refuse.c", scratch.path());
    let errno = rustix::io::Errno::PERM.raw_os_error().to_string();
    view.inside([refuse.as_os_str(), errno.as_ref(), "sched_setscheduler".as_ref()]);
    view.start_ready();
    for number in 0..10_000 {
        fs::metadata(view.path().join(name(number))).unwrap_err();
    }
    // The record is still being written, so each answer is measured by itself.
    let until = Instant::now() + DEADLINE;
    let (kept, text) = loop {
        let text = tell(["report", &view.name]);
        let head = text.lines().find_map(|line| line.strip_prefix("Missed since ")).unwrap();
        let kept = head.split_once("Z: ").and_then(|(_, rest)| rest.split_once(" store path"));
        let kept: usize = kept.map_or(0, |(kept, _)| kept.parse().unwrap());
        if kept > 1000 {
            break (kept, text);
        }
        assert!(Instant::now() < until, "{text}\n{}", view.log());
    };
    assert!(kept <= 4096, "{kept}");
    assert!(text.lines().count() < 60, "{text}");
    assert!(text.contains(&format!("… and {} more (--all)", kept - 15)), "{text}");
    let all = tell(["report", "--all", &view.name]);
    let listed = all.lines().filter(|line| line.contains("-nnnn")).count();
    assert!((1000..=4096).contains(&listed), "{listed}");
    assert_harmless(&all);
    view.stop();
}
