//! `--report` and `--learn`: against what the test knows to have asked for.

use std::fs;

use super::{BOTH, Runs, nothing_is_left};

#[test]
fn what_was_missed_is_told_with_what_to_add() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let (data, outside) = (&runs.fixture.data, &runs.fixture.outside);
        let script = format!("cat {}/text; cat {}/secret; exit 3", data.path, outside.path);
        let command = ["--report", "--root", &data.path, "--", "sh", "-c", &script];
        let done = runs.program(&command).run();
        assert_eq!(done.status.code(), Some(3), "{who:?} {done:?}");
        let line = format!("To have what was missed: --root {}", outside.path);
        assert!(done.stderr.lines().any(|told| told == line), "{who:?} {done:?}");
        assert!(done.stderr.contains("asked for once") && done.stderr.contains(&outside.base), "{done:?}");
        // The line is enough.
        let again = ["--report", "--root", &data.path, "--root", &outside.path, "--", "sh", "-c", &script];
        let done = runs.program(&again).run();
        assert_eq!(done.stdout, "hello\nnot for this container\n", "{who:?} {done:?}");
        assert!(
            done.stderr.contains("Missed since") && !done.stderr.contains("To have what was missed"),
            "{done:?}"
        );
        nothing_is_left(runs.fixture.store.root());
    }
}

#[test]
fn roots_that_were_learnt_are_enough_and_few() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let (file, outside, link) = (&runs.fixture.file, &runs.fixture.outside, &runs.fixture.link);
        let dir = runs.own_dir();
        let roots = dir.path().join("roots");
        let learnt = roots.to_str().unwrap();
        // `outside` refers to the data, which the script reads as well; `link` is given and not used.
        let script = format!(
            "cat {} {}/secret {}/text >/dev/null 2>&1",
            file.path, outside.path, runs.fixture.data.path
        );
        let command =
            ["--learn", learnt, "--root", &file.path, "--root", &link.path, "--", "sh", "-c", &script];
        let done = runs.program(&command).run();
        assert_eq!(done.status.code(), Some(1), "{who:?} {done:?}");
        let text = fs::read_to_string(&roots).unwrap();
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        let mut expected = [outside.path.as_str(), file.path.as_str()];
        expected.sort_unstable();
        assert_eq!(lines, expected, "{who:?} {text}");
        assert!(text.contains(&format!("# {}", link.path)), "{who:?} {text}");
        let done = runs.program(&["--roots-file", learnt, "--", "sh", "-c", &script]).run();
        assert_eq!(done.status.code(), Some(0), "{who:?} {done:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    }
}

/// A file that cannot be written changes nothing of how the command ended.
#[test]
fn the_command_ends_as_it_did_whatever_can_be_told() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(super::Who::Root);
    for option in ["--report=/no/such/dir/file", "--learn=/no/such/dir/file"] {
        let done = runs.script(&[option], "exit 4");
        assert_eq!(done.status.code(), Some(4), "{done:?}");
        assert!(done.stderr.contains("cannot write '/no/such/dir/file'"), "{done:?}");
    }
    // A background process of the command's does not keep the report from being told.
    let done = runs.script(&["--report"], "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!");
    assert!(done.stderr.contains("Missed since"), "{done:?}");
    let sleeper = done.stdout.trim().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
    nothing_is_left(runs.fixture.store.root());
}
