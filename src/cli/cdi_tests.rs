use serde_json::json;

use super::*;
use crate::protocol::control::AskError;

fn status(name: &str, at: &str, dir: Option<&str>) -> Status {
    let status = json!({
        "version": 1, "name": name, "state": "serving", "reload": null, "mountPoint": at,
        "store": { "address": null, "directory": "/files", "logicalDirectory": dir },
        "asked": { "system": null, "roots": [], "rootsFile": null },
        "roots": [], "paths": 1, "narSize": 1,
        "settings": { "io": "cached", "report": false, "watch": false, "prune": false },
        "monitor": { "pid": 1, "memory": null }, "server": null, "programVersion": "1",
        "servedSince": null, "contentChanged": null, "epoch": 0,
        "reloads": { "done": 0, "failed": 0 }, "servers": { "replaced": 0, "crashed": 0 },
        "lastError": null, "missed": null, "usage": null,
    });
    serde_json::from_value(status).unwrap()
}

/// A mount table: what is mounted, where, later ones on top.
fn table(mounts: &[(&str, &str)]) -> Vec<Mount> {
    let user = rustix::process::geteuid().as_raw();
    let line = |(view, at): &(&str, &str)| {
        format!("36 35 0:9 / {at} ro - fuse.nix-store-fs nix-store-fs:{view} ro,user_id={user},group_id=0\n")
    };
    mounts::parse_all(mounts.iter().map(line).collect::<String>().as_bytes())
}

fn silent(view: &str, why: NoAnswer) -> Unanswered {
    Unanswered { view: view.to_owned(), why }
}

fn names(found: &Found) -> Vec<&str> {
    found.entries.iter().map(Entry::view).collect()
}

#[test]
fn a_view_is_written_where_it_is_on_top() {
    let nix = Some("/nix/store");
    let mut ending = status("ending", "/e", nix);
    ending.state = State::Ending;
    let views = vec![status("a", "/a", nix), status("b", "/b", nix), status("c", "/c", nix), ending];
    let answers = Answers { views, unanswered: Vec::new() };
    let table = table(&[("a", "/a"), ("b", "/b"), ("other", "/b"), ("a", "/c"), ("ending", "/e")]);
    let found = find(&answers, None, &table);
    assert_eq!(names(&found), ["a"]);
    let left_out: Vec<_> = found.left_out.iter().map(|(view, _)| view.as_str()).collect();
    assert_eq!(left_out, ["b", "c"]);
    assert!(found.left_out.iter().all(|(_, why)| matches!(why, LeftOut::Elsewhere(_))));
}

/// A view whose monitor is busy, or is gone while its server serves, is one; what was killed is none.
#[test]
fn who_does_not_answer_keeps_an_entry_as_long_as_somebody_serves() {
    let entry = |view: &str, at: &str| Entry::new(view, Path::new(at), Path::new("/nix/store")).unwrap();
    let earlier = Spec::of(&[
        entry("busy", "/busy"),
        entry("orphan", "/orphan"),
        entry("dead", "/dead"),
        entry("moved", "/m"),
    ]);
    let busy = || NoAnswer::Ask(AskError::Silent { path: "/control".into(), after: Duration::from_secs(3) });
    let unanswered = vec![
        silent("busy", busy()),
        silent("dead", NoAnswer::Ended("/state".into())),
        silent("moved", busy()),
        silent("new", busy()),
        silent("orphan", NoAnswer::Unmonitored("a server serves it".into())),
    ];
    let answers = Answers { views: Vec::new(), unanswered };
    let table = table(&[
        ("busy", "/busy"),
        ("orphan", "/orphan"),
        ("dead", "/dead"),
        ("moved", "/elsewhere"),
        ("new", "/n"),
    ]);
    assert_eq!(names(&find(&answers, Some(&earlier), &table)), ["busy", "orphan"]);
    assert_eq!(names(&find(&answers, None, &table)), [] as [&str; 0]);
}

/// A container expects store paths where they name each other, wherever the host has the files.
#[test]
fn the_store_is_where_its_paths_say() {
    let table = table(&[("a", "/a")]);
    let found = entry(&status("a", "/a", Some("/gnu/store")), &table).unwrap();
    let spec: serde_json::Value = serde_json::from_str(&Spec::of(&[found]).text()).unwrap();
    let mount = &spec["devices"][0]["containerEdits"]["mounts"][0];
    assert_eq!((&mount["hostPath"], &mount["containerPath"]), (&json!("/a"), &json!("/gnu/store")));
    assert!(matches!(entry(&status("a", "/a", None), &table), Err(LeftOut::NotKnown)));
}
