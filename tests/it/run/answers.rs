//! How it ends: exit codes and signals, as env(1) has them, and what the command inherits.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;

use super::{BOTH, Runs, Who, nothing_is_left};

/// Forms in which this program becomes the command, and in which it waits for it.
const FORMS: [(&[&str], bool); 3] =
    [(&[], false), (&["--report=/dev/null"], true), (&["--unshare-pid"], true)];

#[test]
fn exit_codes_and_signals_are_those_of_the_command() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        for (form, waits) in FORMS {
            for code in [0, 1, 77, 125, 126, 127, 255] {
                let done = runs.script(form, &format!("exit {code}"));
                assert_eq!(done.status.code(), Some(code), "{who:?} {form:?} {done:?}");
            }
            for signal in [1, 2, 6, 9, 13, 15, 34] {
                let done = runs.script(form, &format!("kill -{signal} $$"));
                let seen = (done.status.signal(), done.status.code());
                let expected = if waits { (None, Some(128 + signal)) } else { (Some(signal), None) };
                assert_eq!(seen, expected, "{who:?} {form:?} {signal}: {done:?}");
            }
        }
        nothing_is_left(runs.fixture.store.root());
    }
}

#[test]
fn what_cannot_be_executed_is_told_as_env_does() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let dir = runs.own_dir();
        let put = |name: &str, text: &str, mode| {
            let file = dir.path().join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            file.to_str().unwrap().to_owned()
        };
        let plain = put("plain", "text", 0o644);
        let nowhere = put("nowhere", "#!/no/such/interpreter -x\n", 0o755);
        let outside = put("outside", &format!("#!{}/secret\n", runs.fixture.outside.path), 0o755);
        let no_line = put("no-line", "echo as a script $1", 0o755);
        let dangling = dir.path().join("dangling");
        symlink("nowhere-else", &dangling).unwrap();
        let own = dir.path().to_str().unwrap();
        let secret = format!("{}/secret", runs.fixture.outside.path);
        let needs = format!("-outside/secret' is not there; add --root {}", runs.fixture.outside.path);
        let dangling = dangling.to_str().unwrap();
        for (form, _) in FORMS {
            for (command, code, said) in [
                ("nsf-no-such-command", 127, "'nsf-no-such-command' is not found"),
                ("", 127, "'' is not found"),
                ("/no/such/file", 127, "'/no/such/file' is not found"),
                (dangling, 127, "dangling' is not found"),
                (&secret, 127, "is not found"),
                (&nowhere, 127, "'/no/such/interpreter' is not there"),
                (&outside, 127, &needs),
                (&plain, 126, "plain' cannot be executed: Permission denied"),
                (own, 126, "cannot be executed: Permission denied"),
                ("/etc/passwd/x", 127, "'/etc/passwd/x' is not found"),
            ] {
                let done = runs.with(form, &[command]).run();
                assert_eq!(done.status.code(), Some(code), "{who:?} {form:?} {command}: {done:?}");
                assert!(done.stderr.contains(said), "{command}: {done:?}");
                assert_eq!(done.stderr.lines().count(), 1, "{command}: {done:?}");
            }
        }
        // As execvp(3): the shell runs it.
        let done = runs.with(&[], &[&no_line, "one"]).run();
        assert_eq!(done.stdout, "as a script one\n", "{who:?} {done:?}");
        let env = std::process::Command::new("env").arg(&plain).output().unwrap();
        assert_eq!(env.status.code(), Some(126), "env(1) says the same");
    }
}

/// What was not given is said in one line, with the code of a failure of this program's own.
#[test]
fn wrong_words_are_its_own_failure() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Root);
    let system = runs.fixture.system.path.as_str();
    for (words, said) in [
        (&["--root", system][..], "COMMAND"),
        (&["--root", system, "--no-such-option", "--", "true"], "--no-such-option"),
        (&["--", "true"], "nothing to show: 'true' is no program of the store"),
        (&["--root", "/no/such/root", "--", "true"], "/no/such/root"),
        (
            &["--root", system, "--bind", "/no/such/source", "/mnt", "--", "true"],
            "'/no/such/source' cannot be bound",
        ),
        (
            &["--root", system, "--chdir", "/no/such/dir", "--", "true"],
            "'/no/such/dir' cannot be the current directory",
        ),
        (&["--root", system, "--learn", "x", "--from", "y", "--", "true"], "--from"),
    ] {
        let program = super::Program::new().arg("run").arg("--store").arg(runs.fixture.store.uri());
        let done = program.args(words).run();
        assert_eq!(done.status.code(), Some(125), "{words:?} {done:?}");
        assert!(done.stderr.contains(said), "{words:?} {done:?}");
    }
    let done = super::Program::new().args(["run", "--", "nsf-no-such-command"]).run();
    assert_eq!(done.status.code(), Some(127), "{done:?}");
    nothing_is_left(runs.fixture.store.root());
    let help = super::Program::new().args(["run", "--help"]).run();
    assert_eq!(help.status.code(), Some(0));
    for code in ["125", "126", "127", "128+N"] {
        assert!(help.stdout.contains(code), "{code} is not in the help");
    }
}

/// What a process is started with is the same within as with env(1), but for open directories.
#[test]
fn the_command_inherits_what_env_gives() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let script = "grep -E '^(SigIgn|SigBlk|SigPnd)' /proc/self/status; umask; ulimit -Sn; ulimit -Hn; ulimit -Sf; ulimit -c; \
                  cat /proc/self/oom_score_adj; nice; ls /proc/$$/fd; cat <&7; echo $LISTEN_FDS; echo $NOTIFY_SOCKET";
    // Ignored and blocked signals, and limits below what this program takes for itself.
    let before = "trap '' PIPE USR1 TTOU; umask 077; ulimit -Sn 200; ulimit -Hn 1000; ulimit -Sf 100000; ulimit -c 0; \
                  exec 7<<END 8</\nseven\nEND\nLISTEN_FDS=1 NOTIFY_SOCKET=/no \
                  exec env --ignore-signal=CHLD \"$@\"";
    for who in BOTH {
        let runs = Runs::by(who);
        let shell = ["sh", "-c", before, "sh"];
        for (form, waits) in FORMS {
            let inner = runs.with(form, &["sh", "-c", script]);
            let within = inner.through(shell).run();
            let plain = runs.as_user(super::Program::new().args(["sh", "-c", script]));
            let without = plain.binary("/usr/bin/env").through(shell).run();
            let expected = without.stdout.lines().filter(|line| *line != "8").collect::<Vec<_>>();
            let seen = within.stdout.lines().collect::<Vec<_>>();
            assert_eq!(seen, expected, "{who:?} {form:?} waits {waits}: {}", within.stderr);
        }
    }
}

/// Whoever reads what the command says reads to its end, whatever the command has left behind.
#[test]
fn nothing_holds_the_pipes_of_the_command() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        for (form, _) in FORMS {
            if *form == ["--unshare-pid"] {
                // What is left is killed.
                continue;
            }
            let script = "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!";
            let words = runs.with(form, &["sh", "-c", script]).words();
            let mut command = std::process::Command::new(&words[0]);
            crate::util::store::nix_environment(command.args(&words[1..]));
            runs.environment(&mut command);
            let output = command.stdin(std::process::Stdio::null()).output().unwrap();
            let sleeper = String::from_utf8(output.stdout).unwrap().trim().parse().ok();
            let sleeper = sleeper.and_then(rustix::process::Pid::from_raw).expect("a process is left");
            rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).expect("it lives");
        }
        nothing_is_left(runs.fixture.store.root());
    }
}

/// What has a set-user-ID bit is executed without it, and that is said.
#[test]
fn a_set_user_id_command_stays_the_user() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let dir = crate::util::scratch();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = dir.path().join("id");
    fs::copy(crate::util::gate::find("id").unwrap(), &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
    let done = runs.with(&[], &[file.to_str().unwrap(), "-u"]).run();
    assert_eq!(done.stdout, "65534\n", "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    assert!(done.stderr.contains("would change its user; in there it does not"), "{done:?}");
}

/// A process that is first in its process namespace takes orphans, and so does a subreaper: a command that waits for all its
/// children ends all the same.
#[test]
fn a_command_that_waits_for_all_its_children_ends() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Root);
    let dir = crate::util::scratch();
    let waits = crate::util::compile("run/waits.c", dir.path());
    let done = runs
        .with(&[], &[waits.to_str().unwrap()])
        .inside(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .run();
    assert_eq!(done.stdout, "no child is left\n", "{done:?}");
    let reaper = crate::util::compile("run/subreaper.c", dir.path());
    let done = runs.with(&[], &[waits.to_str().unwrap()]).inside([reaper.to_str().unwrap()]).run();
    assert_eq!(done.stdout, "no child is left\n", "{done:?}");
}
