//! Fifty at once, and one within another.

use super::{BOTH, Runs, nothing_is_left};
use crate::util::number;

/// How many at once.
const MANY: u64 = 50;

#[test]
fn fifty_at_once_do_not_disturb_each_other() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let many = number("NSF_AT_ONCE", MANY);
    for who in BOTH {
        let runs = Runs::by(who);
        let members = runs.fixture.members().join("\n");
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..many)
                .map(|n| {
                    let script = format!("ls -1 /nix/store; cat /nix/store/*-data/text; exit {n}");
                    let program = runs.with(&[], &["sh", "-c", &script]);
                    scope.spawn(move || program.run())
                })
                .collect();
            for (n, done) in all.into_iter().enumerate() {
                let done = done.join().unwrap();
                assert_eq!(done.status.code(), i32::try_from(n).ok(), "{who:?} {done:?}");
                assert_eq!(done.stdout, format!("{members}\nhello\n"), "{who:?}");
            }
        });
        nothing_is_left(runs.fixture.store.root());
    }
}

/// What is in a view can be shown by another one, from a saved closure: Nix's own state is hidden.
#[test]
fn a_run_within_a_run_shows_less() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(super::Who::Nobody);
    let dir = runs.own_dir();
    let file = dir.path().join("data.json");
    let saved = super::Program::on(&runs.fixture.store).arg("--root").arg(&runs.fixture.data.path);
    std::fs::write(&file, saved.arg("--dump-closure=json").run().stdout).unwrap();
    let program = runs.program(&[]).words();
    let binary = program.iter().find(|word| word.to_string_lossy().ends_with("/nix-store-fs")).unwrap();
    let inner = format!("exec {} run --from {} -- ls -1 /nix/store", binary.display(), file.display());
    let done = runs.script(&[], &inner);
    assert_eq!(done.stdout.trim(), runs.fixture.data.base, "{done:?}");
    // With capabilities of its own, or root's where it keeps them.
    let inner = format!("exec {} run --from {} -- ls -1 /nix/store", binary.display(), file.display());
    let done = runs.script(&["--keep-caps"], &inner);
    assert_eq!(done.stdout.trim(), runs.fixture.data.base, "{done:?}");
    // Without it there is one line about what is missing.
    let inner = format!("exec {} run --root {} -- true", binary.display(), runs.fixture.data.path);
    let done = runs.script(&[], &inner);
    assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{done:?}");
    nothing_is_left(runs.fixture.store.root());
}
