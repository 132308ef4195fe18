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
        let lines = || {
            let text = fs::read_to_string(&roots).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned);
            let mut lines: Vec<String> = lines.collect();
            lines.sort_unstable();
            (lines, text)
        };
        let sorted = |paths: &[&String]| {
            let mut paths: Vec<String> = paths.iter().map(|path| (*path).clone()).collect();
            paths.sort_unstable();
            paths
        };
        // Something was missed, so nobody knows what the rest is for.
        let (learnt_first, text) = lines();
        assert_eq!(learnt_first, sorted(&[&outside.path, &file.path, &link.path]), "{who:?} {text}");
        let again = ["--roots-file", learnt, "--learn", learnt, "--", "sh", "-c", &script];
        let done = runs.program(&again).run();
        assert_eq!(done.status.code(), Some(0), "{who:?} {done:?}");
        let (learnt_last, text) = lines();
        assert_eq!(learnt_last, sorted(&[&outside.path, &file.path]), "{who:?} {text}");
        assert!(text.contains(&format!("# {}", link.path)), "{who:?} {text}");
        let done = runs.program(&["--roots-file", learnt, "--", "sh", "-c", &script]).run();
        assert_eq!(done.status.code(), Some(0), "{who:?} {done:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    }
}

/// Where the file is a link, what it leads to is written; a device stays one.
#[test]
fn what_is_learnt_is_written_where_the_file_leads() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(super::Who::Root);
    let dir = crate::util::scratch();
    let (link, real, pipe) = (dir.path().join("link"), dir.path().join("real"), dir.path().join("pipe"));
    std::os::unix::fs::symlink("real", &link).unwrap();
    fs::write(&real, "before").unwrap();
    runs.script(&["--learn", link.to_str().unwrap()], "cat /nix/store/*-data/text");
    assert!(link.is_symlink() && fs::read_to_string(&real).unwrap().contains("/nix/store/"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let read = pipe.clone();
    let reader = std::thread::spawn(move || fs::read_to_string(read).unwrap());
    runs.script(&["--learn", pipe.to_str().unwrap()], "cat /nix/store/*-data/text");
    assert!(reader.join().unwrap().contains("/nix/store/"));
    assert!(!pipe.is_file());
}

/// What cannot be written is said before the command begins, and no view is mounted for it.
#[test]
fn a_file_that_cannot_be_written_is_said_before_the_command_begins() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        for file in ["/no/such/dir/file", "/usr"] {
            for option in [format!("--report={file}"), format!("--learn={file}")] {
                let done = runs.script(&[&option], "echo ran");
                assert_eq!((done.status.code(), done.stdout.as_str()), (Some(125), ""), "{option} {done:?}");
                assert!(done.stderr.contains(&format!("cannot write '{file}'")), "{option} {done:?}");
                assert_eq!(done.stderr.lines().count(), 1, "{option} {done:?}");
            }
        }
    }
}

/// Why there was no view is all that is said.
#[test]
fn without_a_view_there_is_no_report() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(super::Who::Root);
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    let done = runs.program(&["--report", "--root", absent, "--", "true"]).run();
    assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{done:?}");
}

#[test]
fn a_report_waits_for_no_process_that_the_command_has_left() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(super::Who::Root);
    // A background process of the command's does not keep the report from being told.
    let done = runs.script(&["--report"], "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!");
    assert!(done.stderr.contains("Missed since"), "{done:?}");
    let sleeper = done.stdout.trim().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
    nothing_is_left(runs.fixture.store.root());
}
