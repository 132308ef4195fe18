//! Whoever is killed, at whatever moment, nothing is left.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{BOTH, Runs, Who, nothing_is_left, processes_with};
use crate::util::random::{Random, seed};
use crate::util::{DEADLINE, mounts, number, pipe_for_all};

/// How often, by each user.
const ROUNDS: u64 = 100;

fn kill(pid: u32) {
    send(pid, Signal::KILL);
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, signal);
    }
}

/// No process has `word` in its command line, or `source` in its mount table; nor has /run a directory of a run.
fn no_process_has(word: &str, source: &str) {
    let until = Instant::now() + DEADLINE;
    let has = |pid: &str, file: &str, text: &str| {
        let found = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&found).contains(text)
    };
    loop {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let all = all.filter_map(|entry| entry.file_name().into_string().ok());
        let is_left = |pid: &String| {
            pid.parse::<u32>().is_ok() && (has(pid, "cmdline", word) || has(pid, "mountinfo", source))
        };
        let left: Vec<String> = all.filter(is_left).collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "still there: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let views = std::fs::read_dir("/run/nix-store-fs").into_iter().flatten().flatten();
    assert!(!views.into_iter().any(|view| view.file_name().to_string_lossy().starts_with("run-")));
}

/// A process of a run is killed at a random moment: while it begins, and while the command works. `NSF_KILLS` says how often.
#[test]
fn nothing_is_left_of_a_run_of_which_something_was_killed() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let seed = seed("NSF_SEED");
    let mut random = Random::new(seed);
    for who in BOTH {
        let runs = Runs::by(who);
        let store = runs.fixture.store.root();
        // Stores of others have the same paths.
        let word = store.file_name().unwrap().to_string_lossy().into_owned();
        for round in 0..number("NSF_KILLS", ROUNDS) {
            let form: &[&str] = [&[][..], &["--report=/dev/null"], &["--unshare-pid"]][random.below(3)];
            let script = format!("while cat /nix/store/{}/text; do : {word}; done", runs.fixture.data.base);
            let words = runs.with(form, &["sh", "-c", &script]).words();
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if who == Who::Nobody {
                command.env("XDG_RUNTIME_DIR", "/nonexistent");
            }
            crate::util::store::nix_environment(&mut command);
            runs.environment(&mut command);
            // What is left of the command is killed by its group.
            let mut child = command.process_group(0).spawn().unwrap();
            let group = child.id();
            std::thread::sleep(Duration::from_millis(random.below(150) as u64));
            let mut those: Vec<u32> = processes_with(store).into_iter().map(|(pid, _)| pid).collect();
            those.push(group);
            let victims = 1 + random.below(2);
            for _ in 0..victims {
                kill(those[random.below(those.len())]);
            }
            std::thread::sleep(Duration::from_millis(random.below(30) as u64));
            // Whoever is left ends with the process that was typed, and by nothing else.
            kill(group);
            child.wait().unwrap();
            eprintln!("round {round} of seed {seed}: {who:?} {form:?}");
            nothing_is_left(store);
            no_process_has(&word, &format!("nix-store-fs:run-{group} "));
        }
    }
    assert!(!mounts::all().iter().any(|mount| mount.source.starts_with("nix-store-fs:state")));
}

/// A server that is killed is replaced, and the command does not notice; without its monitor, a server serves on.
#[test]
fn a_command_reads_on_when_its_server_or_its_monitor_is_killed() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let store = runs.fixture.store.root();
        let dir = runs.own_dir();
        let fifo = dir.path().join("go");
        pipe_for_all(&fifo);
        let script = format!(
            "for n in 1 2 3; do read line <{0}; cat /nix/store/*-data/text || exit 9; cat /nix/store/*-settings.conf || exit 8; \
             echo read >{0}; done",
            fifo.display()
        );
        let running = std::thread::scope(|scope| {
            let program = runs.with(&["--bind", "/tmp", "/tmp"], &["sh", "-c", &script]);
            let thread = scope.spawn(move || program.run());
            let turn = || {
                std::fs::write(&fifo, "go\n").unwrap();
                assert_eq!(std::fs::read_to_string(&fifo).unwrap(), "read\n");
            };
            turn();
            kill(process_of(store, "nix-store-fs-server"));
            turn();
            kill(process_of(store, "nix-store-fs"));
            turn();
            thread.join().unwrap()
        });
        assert_eq!(running.status.code(), Some(0), "{who:?} {running:?}");
        assert_eq!(running.stdout.matches("hello").count(), 3, "{who:?} {running:?}");
        nothing_is_left(store);
    }
}

/// The one process of the program that is called `name`.
fn process_of(store: &Path, name: &str) -> u32 {
    let found = processes_with(store).into_iter().find(|(_, comm)| comm == name);
    found.unwrap_or_else(|| panic!("no {name}: {:?}", processes_with(store))).0
}

/// A server that its user stops does not notice that the command has ended: it ends all the same, with its monitor. So it does if
/// the view is still used when the process ends that was typed.
#[test]
fn a_server_that_is_stopped_does_not_stay() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let store = runs.fixture.store.root();
        let dir = runs.own_dir();
        let [ready, left] = ["ready", "left"].map(|name| dir.path().join(name));
        pipe_for_all(&ready);
        pipe_for_all(&left);
        let stays = "{ read line <$2; } >/dev/null 2>&1 &";
        for (form, stays) in
            [(&[][..], ""), (&[], stays), (&["--report=/dev/null"], ""), (&["--unshare-pid"], "")]
        {
            // What is read later is not asked for: it is a command of the shell.
            let script = format!("{stays} echo ready >$1; read line <$1");
            std::thread::scope(|scope| {
                let options = [&["--bind", "/tmp", "/tmp"], form].concat();
                let program = runs.with(&options, &["sh", "-c", &script, "sh"]);
                let program = program.arg(&ready).arg(&left);
                let thread = scope.spawn(move || program.run());
                assert_eq!(std::fs::read_to_string(&ready).unwrap(), "ready\n");
                send(process_of(store, "nix-store-fs-server"), Signal::STOP);
                std::fs::write(&ready, "go\n").unwrap();
                let finished = thread.join().unwrap();
                assert_eq!(finished.status.code(), Some(0), "{who:?} {finished:?}");
                if !stays.is_empty() {
                    std::fs::write(&left, "go\n").unwrap();
                }
            });
            nothing_is_left(store);
        }
    }
}
