//! docs/schema/status.json against what `status --json` prints of running views, and what hardly any view or closure has against its
//! schema. What is printed of closures is held against theirs where it is held against Nix.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use nix_store_fs::closure::diff::Kind;
use nix_store_fs::protocol::control::status::{
    Asked, Incident, Missed, Prefetch, Process, Reloads, Seconds, Servers, Settings, Stage, State, Status,
    Store, Usage,
};
use nix_store_fs::protocol::handshake::Io;
use nix_store_fs::protocol::task::{self, Done, Known, Learnt, Played, Stopped};
use nix_store_fs::values::StorePath;
use serde_json::Value;

use crate::util::fixture::Fixture;
use crate::util::program::{Program, unique_name};
use crate::util::schema::Schema;
use crate::util::scratch;
use crate::util::snapshot;

/// As little as a monitor can know.
fn least() -> Status {
    Status {
        version: 1,
        name: String::new(),
        state: State::Starting,
        reload: None,
        mount_point: "/".into(),
        store: Store { address: None, directory: None, logical_directory: None },
        asked: Asked { system: None, roots: Vec::new(), roots_file: None, from: None },
        roots: Vec::new(),
        paths: 0,
        nar_size: 0,
        settings: Settings { io: Io::Cached, report: false, watch: false, prune: false },
        monitor: Process { pid: 1, memory: None },
        server: None,
        program_version: String::new(),
        served_since: None,
        content_changed: None,
        epoch: 0,
        reloads: Reloads::default(),
        servers: Servers::default(),
        last_error: None,
        missed: None,
        usage: None,
        prefetch: None,
    }
}

/// All that one can know, of a hostile place.
fn most() -> Status {
    let path = || OsString::from_vec(b"/a\n\xff\x1b[2J".to_vec()).into();
    let usage = Usage {
        since: Some(Seconds(u64::MAX)),
        whole: true,
        requests: [("lookup".to_owned(), u64::MAX)].into(),
        bytes_read: u64::MAX,
        names_known: u64::MAX,
        panics: u64::MAX,
    };
    let prefetch = Prefetch {
        mode: task::Prefetch::All,
        playing: true,
        remembers: true,
        played: Some(Played {
            known: Known::Unusable("\u{1b}\n".into()),
            done: Done { names: 1, bytes: 2 },
            names: u64::MAX,
            files: u64::MAX,
            bytes: u64::MAX,
            milliseconds: u64::MAX,
            processor: u64::MAX,
            stopped: Stopped::Memory,
        }),
        learnt: Some(Learnt { runs: u32::MAX, uses: u64::MAX, marked: u32::MAX, used: u32::MAX }),
        failed: Some("\u{1b}\n".into()),
    };
    Status {
        name: "a b".into(),
        mount_point: path(),
        store: Store {
            address: Some("\u{1b}\"\n".into()),
            directory: Some(path()),
            logical_directory: Some(path()),
        },
        asked: Asked {
            system: Some(path()),
            roots: vec![path(), "/".into()],
            roots_file: Some(path()),
            from: Some(path()),
        },
        roots: vec![StorePath::new("0123456789abcdfghijklmnpqrsvwxyz-a+b-c.d_e?f=g").unwrap()],
        nar_size: u64::MAX,
        server: Some(Process { pid: u32::MAX, memory: Some(u64::MAX) }),
        served_since: Some(Seconds(0)),
        content_changed: Some(Seconds(1)),
        last_error: Some(Incident { at: Seconds(2), message: "\u{202e}\n".into() }),
        missed: Some(Missed { names: 1, questions: 2, not_examined: 3 }),
        usage: Some(usage),
        prefetch: Some(prefetch),
        ..least()
    }
}

/// Every status that there can be satisfies docs/schema/status.json.
#[test]
fn every_status_satisfies_the_schema() {
    let schema = Schema::part("status", "status");
    for status in [least(), most()] {
        schema.check(&serde_json::to_value(&status).unwrap());
    }
    for state in [State::Starting, State::Serving, State::Replacing, State::Ending] {
        for reload in [None, Some(Stage::Resolving), Some(Stage::Switching)] {
            for io in [Io::Cached, Io::Passthrough] {
                let settings = Settings { io, ..least().settings };
                let status = Status { state, reload, settings, ..most() };
                schema.check(&serde_json::to_value(&status).unwrap());
            }
        }
    }
}

/// Closures that are generated have no package of each kind.
#[test]
fn every_kind_of_change_is_in_the_schema() {
    let schema = Schema::part("diff", "package");
    let side = serde_json::json!({ "versions": [""], "paths": [], "narSize": u64::MAX });
    for kind in [Kind::Changed, Kind::Added, Kind::Removed, Kind::Rebuilt] {
        schema.check(&serde_json::json!({
            "name": "x", "change": kind, "old": side, "new": side, "cause": null
        }));
    }
}

/// What `status --json` prints satisfies docs/schema/status.json: of all views, of one, and of one that does not answer.
#[test]
fn printed_statuses_satisfy_the_schema() {
    need!(Root, Fuse, Nix);
    let schema = Schema::new("status");
    let fixture = Fixture::new();
    let (dir, name) = (scratch(), unique_name());
    let program = fixture.program().args(["--name", &name, "--report"]).arg(dir.path());
    let view = program.mount_at(dir.path());
    std::fs::read_dir(view.path()).unwrap().for_each(|entry| drop(entry.unwrap().metadata()));
    let ask = |arguments: &[&str]| -> Value {
        let finished = Program::new().arg("status").args(arguments).run();
        assert_eq!(finished.status.code(), Some(0), "{}", snapshot::render(&finished));
        let value = serde_json::from_str(&finished.stdout).unwrap();
        schema.check(&value);
        value
    };
    let one = ask(&[&name, "--json"]);
    assert_eq!(one["views"].as_array().unwrap().len(), 1);
    assert_eq!(one["views"][0]["name"], Value::from(name.as_str()));
    // Those of other tests are among them.
    let all = ask(&["--json"]);
    assert!(all["views"].as_array().unwrap().iter().any(|view| view["name"] == name.as_str()), "{all:#}");
    let mut silent = one;
    silent["views"] = Value::Array(Vec::new());
    silent["unanswered"] = serde_json::json!([{ "name": name, "why": "it does not answer" }]);
    schema.check(&silent);
}
