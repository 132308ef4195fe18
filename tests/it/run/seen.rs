//! What the command sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{BOTH, Runs, Who, nothing_is_left};
use crate::util::program::Program;

#[test]
fn the_command_sees_the_closure_and_nothing_else() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let script = format!(
            "ls -1 /nix/store; cat {}/text >&2; ls -d {} 2>/dev/null; ls -A /nix/var 2>/dev/null; true",
            runs.fixture.data.path, runs.fixture.outside.path
        );
        let done = runs.script(&[], &script);
        assert_eq!(done.status.code(), Some(0), "{who:?} {done:?}");
        assert_eq!(done.stdout.lines().collect::<Vec<_>>(), runs.fixture.members(), "{who:?}");
        assert_eq!(done.stderr, "hello\n", "{who:?}");
        nothing_is_left(runs.fixture.store.root());
    }
}

/// Its physical place is another path than the store directory.
#[test]
fn the_store_is_hidden_in_its_physical_place_and_its_state_with_it() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let physical = runs.fixture.store.physical();
        let state = runs.fixture.store.root().join("nix/var");
        assert!(state.join("nix/db").is_dir());
        let script = format!("ls -1 {}; echo; ls -A {}", physical.display(), state.display());
        let done = runs.script(&[], &script);
        let expected = format!("{}\n\n", runs.fixture.members().join("\n"));
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), (expected.as_str(), ""), "{who:?}");
    }
}

/// Without a store on the machine, the store directory is made where nobody else sees it.
#[test]
fn a_machine_without_a_store_directory_keeps_none() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for (who, dir) in BOTH.into_iter().flat_map(|who| [(who, "/nix/store"), (who, "/nsf-none/store")]) {
        let runs = Runs::by(who);
        let at = std::path::Path::new(dir);
        if at.exists() {
            continue;
        }
        let done = runs.script(&[], &format!("cat {}/text; ls /etc/passwd", runs.fixture.data.path));
        assert_eq!(done.stdout, "hello\n/etc/passwd\n", "{who:?} {done:?}");
        assert!(!at.exists());
    }
}

#[test]
fn files_belong_to_the_user_and_cannot_be_changed() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let data = &runs.fixture.data.path;
        let script = format!(
            "id -u; stat -c %u {data}/text; touch {data}/x 2>&1; chmod 777 {data}/text 2>&1; mkdir /nix/store/x 2>&1"
        );
        let done = runs.script(&[], &script);
        let uid = if who == Who::Root { "0" } else { "65534" };
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(&lines[..2], &[uid, uid], "{who:?} {done:?}");
        assert!(lines[2..].iter().all(|line| line.ends_with("Read-only file system")), "{who:?} {lines:?}");
        assert_eq!(lines.len(), 5, "{who:?}");
    }
}

#[test]
fn what_is_asked_for_is_seen_in_its_order() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let dir = runs.own_dir();
        let own = dir.path().to_str().unwrap();
        fs::write(dir.path().join("file"), "text\n").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let options = [
            "--bind",
            own,
            "/nsf-work/a",
            "--tmpfs",
            "/nsf-work/b",
            "--ro-bind",
            own,
            "/nsf-work/b/c",
            "--ro-bind",
            &format!("{own}/file"),
            "/nsf-work/d",
            "--setenv",
            "A",
            "1 2",
            "--chdir",
            "/nsf-work/a",
        ];
        let script = "pwd; echo $A; cat file ../b/c/file ../d; touch new ../b/new; touch ../b/c/no 2>&1; { echo x >>../d; } 2>&1; \
                      touch /nsf-work/no /nsf-no 2>&1; ls /nsf-work; ls / | grep -c nsf";
        let done = runs.script(&options, script);
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(&lines[..5], &["/nsf-work/a", "1 2", "text", "text", "text"], "{who:?} {done:?}");
        // Nobody may not write there in any case.
        let is_refused =
            |line: &&&str| line.contains("Read-only file system") || line.ends_with("Permission denied");
        let refused: Vec<&&str> = lines.iter().filter(is_refused).collect();
        assert_eq!(refused.len(), 4, "{who:?} {done:?}");
        assert_eq!(&lines[lines.len() - 4..], &["a", "b", "d", "1"], "{who:?} {done:?}");
        assert!(dir.path().join("new").exists());
        assert!(!std::path::Path::new("/nsf-work").exists());
    }
}

#[test]
fn variables_are_those_that_were_given() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let options = ["--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "B", "2"];
        let done = runs.with(&options, &["env"]).run();
        assert_eq!(done.stdout, "PATH=/usr/bin:/bin\nB=2\n", "{who:?} {done:?}");
        let done = runs.with(&["--setenv", "LC_ALL", "x"], &["env"]).env("NSF_OWN", "1").run();
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert!(lines.contains(&"NSF_OWN=1") && lines.contains(&"LC_ALL=x"), "{who:?} {done:?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("LC_ALL=")).count(), 1);
    }
}

#[test]
fn networks_and_processes_can_be_its_own() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let script = "ls /proc | grep -c '^[0-9]'; echo $$; cat /sys/class/net/lo/flags 2>/dev/null; \
                      tail -n +3 /proc/net/dev | cut -d: -f1; cat /nix/store/*-data/text";
        let done = runs.script(&["--unshare-pid", "--unshare-net"], script);
        assert_eq!(done.status.code(), Some(0), "{who:?} {done:?}");
        let lines: Vec<&str> = done.stdout.lines().collect();
        // This program, the shell, and the two of the pipe.
        assert!(lines[0].parse::<u32>().unwrap() <= 4, "{who:?} {done:?}");
        assert_eq!(lines[1], "2", "{who:?} {done:?}");
        assert!(
            lines.iter().any(|line| line.trim() == "lo") && lines.last() == Some(&"hello"),
            "{who:?} {done:?}"
        );
        assert_eq!(lines.iter().filter(|line| line.contains("eth")).count(), 0, "{who:?}");
    }
}

/// Without roots, it is the closure of the command.
#[test]
fn a_command_of_the_store_brings_its_own_closure() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Root);
    let busybox = crate::util::load::add_busybox(&runs.fixture.store);
    // The store is where its names say, as on a machine with Nix.
    let script = format!(
        "mkdir -p /nix && mount --rbind {}/nix /nix && exec \"$@\"",
        runs.fixture.store.root().display()
    );
    let file = format!("{}/bin/busybox", busybox.path);
    let done = Program::new()
        .args(["run", "--chdir", "/", "--", &file, "ls", "/nix/store"])
        .inside(["unshare", "-m", "sh", "-c", &script, "sh"])
        .env("NIX_REMOTE", "local")
        .run();
    assert_eq!((done.status.code(), done.stdout.trim()), (Some(0), busybox.base.as_str()), "{done:?}");
}

/// Relative sources are those of the caller, also where the root directory has to be another one.
#[test]
fn relative_sources_are_the_callers() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let dir = runs.own_dir();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/own"), "").unwrap();
        let enter = format!("cd {} && exec \"$@\"", dir.path().display());
        let options = ["--bind", "etc", "/nsf-new/x", "--chdir", "etc"];
        let done =
            runs.with(&options, &["sh", "-c", "ls /nsf-new/x; ls"]).through(["sh", "-c", &enter, "sh"]).run();
        assert_eq!(done.stdout, "own\nown\n", "{who:?} {done:?}");
        for at in ["/", "/tmp/..", "/proc", "/proc/self/fd"] {
            let done = runs.with(&["--tmpfs", at], &["true"]).run();
            assert_eq!((done.status.code(), done.stderr.lines().count()), (Some(125), 1), "{who:?} {done:?}");
            assert!(done.stderr.contains("nothing can be mounted on"), "{who:?} {done:?}");
        }
    }
}

/// Whoever serves the view is in another directory than the caller.
#[test]
fn a_root_may_be_relative() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let dir = runs.own_dir();
        std::os::unix::fs::symlink(&runs.fixture.data.path, dir.path().join("result")).unwrap();
        fs::write(dir.path().join("roots"), "./result\n").unwrap();
        let enter = format!("cd {} && exec \"$@\"", dir.path().display());
        for root in [["--root", "./result"], ["--system", "result"], ["--roots-file", "roots"]] {
            for options in [&[][..], &["--nix"]] {
                let words = [&root[..], options, &["--", "ls", "-1", "/nix/store"]].concat();
                let done = runs.program(&words).through(["sh", "-c", &enter, "sh"]).run();
                assert_eq!(done.stdout.trim(), runs.fixture.data.base, "{who:?} {words:?} {done:?}");
            }
        }
    }
}

/// The same where the store is in another root directory, by the name that the command has there.
#[test]
fn a_command_is_found_in_a_store_that_is_elsewhere() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let busybox = crate::util::load::add_busybox(&runs.fixture.store);
        let physical = runs.fixture.store.physical().join(&busybox.base).join("bin/busybox");
        for file in [format!("{}/bin/busybox", busybox.path), physical.to_str().unwrap().to_owned()] {
            let done = runs.program(&["--", &file, "ls", "/nix/store"]).run();
            assert_eq!(done.stdout.trim(), busybox.base, "{who:?} {file} {done:?}");
        }
    }
}

#[test]
fn roots_come_from_a_file_as_well() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let dir = runs.own_dir();
    let file = dir.path().join("roots");
    fs::write(&file, format!("# what is needed\n{}\n", runs.fixture.data.path)).unwrap();
    let done = runs.program(&["--roots-file", file.to_str().unwrap(), "--", "ls", "-1", "/nix/store"]).run();
    assert_eq!(done.stdout.trim(), runs.fixture.data.base, "{done:?}");
}
