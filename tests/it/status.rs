//! What a running view tells of itself over its control socket, against what Nix, the kernel and the test itself know.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix_store_fs::protocol::control::report::{MissedName, Report};
use nix_store_fs::protocol::control::status::{Stage, State, Status};
use nix_store_fs::protocol::control::{AskError, ask_report, ask_status};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::util::fixture::Fixture;
use crate::util::program::unique_name;
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::systems::Systems;
use crate::util::{DEADLINE, compile, hold, scratch};

fn control(service: &Service) -> PathBuf {
    service.state().join("control")
}

fn status(service: &Service) -> Status {
    ask_status(&control(service)).unwrap_or_else(|error| panic!("{error}\n{}", service.log()))
}

fn report(service: &Service) -> Report {
    ask_report(&control(service)).unwrap_or_else(|error| panic!("{error}\n{}", service.log()))
}

/// Asks until `is` holds of what comes.
fn until<T>(what: &str, mut ask: impl FnMut() -> T, is: impl Fn(&T) -> bool) -> T
where
    T: std::fmt::Debug,
{
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = ask();
        if is(&answer) {
            return answer;
        }
        assert!(Instant::now() < until, "not {what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn pid(process: Pid) -> u32 {
    process.as_raw_nonzero().get().unsigned_abs()
}

/// The answer of Nix for each path of a closure: its size.
fn sizes(store: &NixStore, paths: &[String]) -> Vec<u64> {
    let words = ["-q", "--size"].into_iter().chain(paths.iter().map(String::as_str));
    let said = store.nix("nix-store", words, b"");
    said.lines().map(|line| line.trim().parse().unwrap()).collect()
}

/// Everything in a status and in a report that somebody else knows as well.
#[test]
fn a_status_agrees_with_nix_and_the_kernel() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let before = now();
    // Nothing says that a mount point is text.
    let dir = scratch();
    let at = dir.path().join(OsStr::from_bytes(b"\xff\n\x1b[31m"));
    fs::create_dir(&at).unwrap();
    let name = unique_name();
    let program = fixture.program().args(["--name", &name, "--watch", "--root", &fixture.file.path]).arg(&at);
    let mut view = program.mount_at(&at);
    let socket = Path::new("/run/nix-store-fs/.state").join(&name).join("control");
    let status = ask_status(&socket).unwrap();
    assert_eq!((status.version, &status.name, status.state, status.reload), (1, &name, State::Serving, None));
    assert_eq!(status.mount_point, at);
    assert_eq!(status.store.address, Some(fixture.store.uri()));
    assert_eq!(status.store.directory, Some(fixture.store.physical()));
    assert_eq!(status.store.logical_directory.as_deref(), Some(Path::new("/nix/store")));
    assert_eq!(status.asked.system.as_deref(), Some(Path::new(&fixture.system.path)));
    assert_eq!(status.asked.roots, [Path::new(&fixture.file.path)]);
    assert_eq!(status.asked.roots_file, None);
    let roots: Vec<&str> = status.roots.iter().map(|root| root.as_str()).collect();
    let mut expected = [fixture.system.base.as_str(), &fixture.file.base];
    expected.sort_unstable();
    assert_eq!(roots, expected);
    let paths = fixture.store.closure(&[&fixture.system]);
    let sizes = sizes(&fixture.store, &paths);
    assert_eq!((status.paths, status.nar_size), (paths.len() as u64, sizes.iter().sum()));
    let settings = status.settings;
    assert_eq!((settings.report, settings.watch, settings.prune), (false, true, false));
    assert_eq!(status.program_version, env!("CARGO_PKG_VERSION"));
    let server = status.server.unwrap();
    assert_eq!((status.monitor.pid, server.pid), (pid(view.pid()), pid(view.server_now().unwrap())));
    for process in [status.monitor, server] {
        // The kernel's other count of the same, which root may ask for.
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)).unwrap();
        let bytes = |key| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
        };
        // Nobody else maps what it shares.
        let exact = bytes("Anonymous:") + bytes("Pss_Shmem:");
        // Each processor counts some pages by itself before it adds them to the sum (proc_pid_statm(5)).
        let inexact = (1 << 20) + (256 << 10) * std::thread::available_parallelism().unwrap().get() as u64;
        let memory = process.memory.unwrap();
        assert!(memory.abs_diff(exact) <= inexact, "{memory} {exact}");
    }
    for time in [status.served_since, status.content_changed] {
        assert!((before..=now()).contains(&time.unwrap().0), "{time:?}");
    }
    assert_eq!(
        (status.reloads.done, status.reloads.failed, status.servers.replaced, status.last_error),
        (0, 0, 0, None)
    );

    let report = ask_report(&socket).unwrap();
    assert_eq!((report.version, &report.name, &report.missed), (1, &name, &None));
    assert_eq!((&report.roots, &report.asked, &report.store), (&status.roots, &status.asked, &status.store));
    let mut members: Vec<(String, u64)> = paths.into_iter().zip(sizes).collect();
    members.sort();
    let told = report.members.iter().map(|member| (format!("/nix/store/{}", member.path), member.nar_size));
    assert!(told.eq(members), "{:?}", report.members);

    view.signal(Signal::TERM);
    assert!(view.end().success());
    assert!(matches!(ask_status(&socket), Err(AskError::NotServed(path)) if path == socket));
}

/// A start, reloads that succeed and fail, and what is under way meanwhile.
#[test]
fn a_status_follows_the_start_and_reloads() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let scratch = scratch();
    let mut service = systems.service();
    service.set("NSF_HOLD", scratch.path());
    let (held, there) = hold::arm(scratch.path(), "resolving");
    let from = service.heard();
    service.start();
    service.wait_for(&there);
    // The store is asked while the monitor makes its socket.
    let starting = until("asked", || ask_status(&control(&service)).ok(), Option::is_some).unwrap();
    assert_eq!((starting.state, starting.reload, starting.served_since), (State::Starting, None, None));
    assert_eq!((starting.server, starting.paths, starting.content_changed), (None, 0, None));
    assert_eq!(starting.mount_point, service.path());
    drop(held);
    service.wait_ready(from);
    let first = status(&service);
    assert_eq!((first.state, first.reload, first.reloads.done), (State::Serving, None, 0));

    // One that is held in the store, and then in the server.
    systems.select(1);
    fs::remove_file(&there).unwrap();
    let (in_store, in_store_there) = hold::arm(scratch.path(), "resolving");
    let (in_server, in_server_there) = hold::arm(scratch.path(), "switched");
    std::thread::scope(|scope| {
        let service = &service;
        let reload = scope.spawn(|| service.reload_well());
        service.wait_for(&in_store_there);
        let meanwhile = status(service);
        assert_eq!((meanwhile.state, meanwhile.reload), (State::Serving, Some(Stage::Resolving)));
        assert_eq!(meanwhile.paths, first.paths);
        drop(in_store);
        service.wait_for(&in_server_there);
        let meanwhile = status(service);
        assert_eq!((meanwhile.state, meanwhile.reload), (State::Serving, Some(Stage::Switching)));
        assert_eq!(meanwhile.reloads.done, 0);
        drop(in_server);
        reload.join().unwrap();
    });
    let second = status(&service);
    assert_eq!((second.reload, second.reloads.done, second.epoch), (None, 1, first.epoch + 1));
    // The system and what only it has: those of the first one stay.
    assert_eq!((second.paths, second.roots.len()), (first.paths + 2, 2));
    assert!(second.content_changed >= first.content_changed);

    // One that changes nothing, and one that fails.
    service.reload_well();
    let third = status(&service);
    assert_eq!((third.reloads.done, third.content_changed), (2, second.content_changed));
    systems.switch("/nix/store/nowhere");
    assert_eq!(service.reload().status.code(), Some(8));
    let fourth = status(&service);
    assert_eq!((fourth.reloads.done, fourth.reloads.failed, fourth.paths), (2, 1, second.paths));
    let error = fourth.last_error.unwrap();
    assert!(error.message.contains("nowhere") && error.at >= second.content_changed.unwrap(), "{error:?}");
    assert_eq!(fourth.served_since, first.served_since);
    service.stop();
}

/// Servers that are killed, that crash, and a monitor that is.
#[test]
fn a_status_counts_servers_and_outlives_them() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let scratch = scratch();
    let crashes = scratch.path().join("crashes");
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.set("NSF_CRASH", format!("taken:{}", crashes.display()));
    service.start_ready();
    service.reload_well();
    let first = status(&service);
    service.kill(Victim::Server);
    let killed = |status: &Status| status.state == State::Serving && status.servers.replaced == 1;
    let second = until("replaced", || status(&service), killed);
    assert_eq!((second.servers.crashed, second.reloads.done), (0, 1));
    assert_ne!(second.server.unwrap().pid, first.server.unwrap().pid);
    assert!(second.last_error.unwrap().message.contains("signal: 9"));

    // None of them can live, and the reader waits.
    fs::write(&crashes, "").unwrap();
    let inside = service.path().join(&fixture.system.base).join("nothing");
    let reader = std::thread::spawn(move || fs::metadata(inside).is_err());
    let replacing = until("replacing", || status(&service), |status| status.state == State::Replacing);
    assert!(replacing.servers.crashed >= 1 && replacing.servers.crashed < replacing.servers.replaced);
    let error = replacing.last_error.unwrap();
    assert!(error.message.contains("signal: 6"), "{error:?}");
    fs::remove_file(&crashes).unwrap();
    let third = until("serving", || status(&service), |status| status.state == State::Serving);
    assert!(reader.join().unwrap());
    assert_eq!((third.served_since, third.reloads.done), (first.served_since, 1));

    // It ends with the monitor: the next one begins with nothing, and with a content that it did not change.
    service.kill(Victim::Both);
    assert!(matches!(ask_status(&control(&service)), Err(AskError::NotServed(_))));
    service.start_ready();
    let fourth = until("serving", || status(&service), |status| status.state == State::Serving);
    assert_eq!((fourth.servers.replaced, fourth.reloads.done, fourth.last_error), (0, 0, None));
    assert_eq!((fourth.content_changed, fourth.paths), (None, first.paths));
    assert!(fourth.served_since >= first.served_since);
    service.stop();
}

/// Valid store paths that are in no closure.
fn strays<const N: usize>(store: &NixStore) -> [Member; N] {
    std::array::from_fn(|number| {
        store.add(&format!("stray-{number}"), &[], |path| fs::write(path, "stray\n").unwrap())
    })
}

fn missed<'a>(report: &'a Report, member: &Member) -> Option<&'a MissedName> {
    report.missed.as_ref().unwrap().names.iter().find(|name| name.path.as_str() == member.base)
}

/// What a shell may call itself, in the escapes of printf(1), and what is told of that.
const HOSTILE: [(&str, &str); 4] = [
    (r"a\n INFO b", "a\n INFO b"),
    (r"\033[2J\007", "\u{1b}[2J\u{7}"),
    (r"\377\376x", "\u{fffd}\u{fffd}x"),
    (r"\342\200\256rtl", "\u{202e}rtl"),
];

/// A report has who asked, whatever that calls itself; it outlives servers, and follows reloads.
#[test]
fn a_report_tells_what_was_missed_and_who_asked() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let strays: [Member; 6] = strays(&store);
    let [plain, brought, hostile @ ..] = &strays;
    let nowhere = NixStore::name("nowhere");
    let system =
        |name: &str, strays: &[&Member]| store.add(name, strays, |path| fs::write(path, name).unwrap());
    let link = store.profile("web/system", &system("one", &[]).path);
    let next = system("two", &[brought]);
    let mut service = Service::new(&store).with([Path::new("--report"), Path::new("--system"), &link]);
    service.start_ready();
    let before = now();
    let path = |service: &Service, member: &Member| service.path().join(&member.base);
    for member in [&nowhere, plain, brought] {
        assert!(fs::metadata(path(&service, member)).is_err());
    }
    let first = until("recorded", || report(&service), |report| missed(report, brought).is_some());
    let names = &first.missed.as_ref().unwrap().names;
    assert_eq!(names.len(), 2, "{names:?}");
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    for name in names {
        assert_eq!((name.count, name.served, &name.first_asker), (1, false, &name.last_asker));
        assert_eq!(name.first_asker.pid, Some(std::process::id()));
        assert_eq!(name.first_asker.command.as_deref(), Some(comm.trim_end()));
        assert!((before..=now()).contains(&name.first.0) && name.last == name.first);
    }

    for (member, (comm, expected)) in hostile.iter().zip(HOSTILE) {
        let script = r#"printf "$1" >/proc/self/comm; test -e "$2"; read line"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh", comm]).arg(path(&service, member)).stdin(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let told = until("recorded", || report(&service), |report| missed(report, member).is_some());
        drop(shell.stdin.take());
        let _ended = shell.wait().unwrap();
        let asker = &missed(&told, member).unwrap().first_asker;
        assert_eq!((asker.pid, asker.command.as_deref()), (Some(shell.id()), Some(expected)));
        service.kill(Victim::Server);
        // Who wants to make a name is answered by the server, whatever the kernel has cached.
        assert!(fs::create_dir(path(&service, member)).is_err());
        let again = |report: &Report| missed(report, member).unwrap().count > 1;
        let told = until("counted", || report(&service), again);
        let name = missed(&told, member).unwrap();
        assert_eq!(name.first_asker.pid, Some(shell.id()), "{name:?}");
        assert_eq!(name.last_asker.pid, Some(std::process::id()), "{name:?}");
    }
    assert_eq!(status(&service).servers.replaced, HOSTILE.len() as u64);

    fs::remove_file(&link).unwrap();
    symlink(&next.path, &link).unwrap();
    service.reload_well();
    assert!(fs::metadata(path(&service, brought)).is_ok());
    let last = report(&service);
    assert_eq!([plain, brought].map(|member| missed(&last, member).unwrap().served), [false, true]);
    assert_eq!(last.missed.as_ref().unwrap().names.len(), 2 + HOSTILE.len());
    assert!(last.members.iter().any(|member| member.path.as_str() == brought.base));
    service.stop();
}

/// Names of the record (`NAMES_MAX` in `src/monitor/missed/record.rs`).
const NAMES: usize = 4096;
/// Memory that a full record takes, at most.
const RECORD: u64 = 16 << 20;

/// Ten thousand names: the last 4,096 are kept, and whatever came, the counts are the questions.
#[test]
fn ten_thousand_missed_names_are_bounded_and_counted() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let flush = &fixture.outside;
    let name = |number: usize| format!("{number:032}-{}", "n".repeat(200));
    for number in 0..10_000 {
        fs::write(fixture.store.physical().join(name(number)), "").unwrap();
    }
    let mut service = Service::new(&fixture.store).with(["--report", "--system", &fixture.system.path]);
    // At idle priority the thread that asks the disk may not run for as long as other tests do.
    let scratch = scratch();
    let refuse = compile("refuse.c", scratch.path());
    let errno = Errno::PERM.raw_os_error().to_string();
    service.inside([refuse.as_os_str(), errno.as_ref(), "sched_setscheduler".as_ref()]);
    service.start_ready();
    let memory = |service: &Service| status(service).monitor.memory.unwrap();
    let before = memory(&service);
    let mut asked = 0;
    let settled = |service: &Service, asked: &mut u64| {
        let mut attempt = 0;
        let rest = || {
            // What a server has dropped last it tells with the next question, which it may drop as well.
            if attempt % 100 == 0 {
                assert!(fs::create_dir(service.path().join(&flush.base)).is_err());
                *asked += 1;
            }
            attempt += 1;
            let missed = status(service).missed.unwrap();
            asked.checked_sub(missed.questions + missed.not_examined).expect("more than was asked")
        };
        until("counted", rest, |rest| *rest == 0);
    };
    for number in 0..10_000 {
        assert!(fs::metadata(service.path().join(name(number))).is_err());
        asked += 1;
        // A socket holds more than these.
        if number % 100 == 99 {
            settled(&service, &mut asked);
        }
    }
    let counted = |asked| {
        let missed = report(&service).missed.unwrap();
        let told = missed.names.iter().map(|name| name.count).sum::<u64>();
        assert_eq!(told + missed.left_out.questions + missed.left_out.not_examined, asked);
        assert_eq!(missed.names.len(), NAMES);
        missed
    };
    let all = counted(asked);
    assert_eq!(all.left_out.not_examined, 0, "it was asked slowly enough");
    assert_eq!(all.left_out.names, 10_001 - NAMES as u64);
    let told: Vec<&str> = all.names.iter().map(|name| name.path.as_str()).collect();
    let mut expected: Vec<String> = (10_001 - NAMES..10_000).map(name).collect();
    expected.push(flush.base.clone());
    expected.sort();
    assert_eq!(told, expected);
    let after = memory(&service);
    assert!(after < before + RECORD, "{before} {after}");
    assert!(service.logged("asked for that the host has and the view has not") <= 256, "as ever");

    // And as fast as it can be: the server answers whatever the kernel has cached, as somebody wants to make the names.
    for number in 0..10_000 {
        let _refused = fs::create_dir(service.path().join(name(number))).unwrap_err();
        asked += 1;
    }
    settled(&service, &mut asked);
    counted(asked);
    let last = memory(&service);
    assert!(last < before + RECORD, "{before} {last}");
    service.stop();
}

/// Clients that are never satisfied: the monitor holds few descriptors, and answers everybody else.
#[test]
fn ten_thousand_questions_keep_nobody_waiting() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path, "--report"]);
    service.start_ready();
    let connect = || UnixStream::connect(control(&service)).unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", pid(service.monitor()))).unwrap().count();
    let before = descriptors();
    let memory = status(&service).monitor.memory.unwrap();
    let mut unread = VecDeque::new();
    let (mut most, mut last_report) = (0, None);
    for number in 0..10_000 {
        let mut client = connect();
        let said: &[u8] = match number % 5 {
            0 => b"status 1\n",
            1 | 2 => b"report 1\n",
            3 => b"garbage",
            _ => b"repor",
        };
        // The monitor may have dropped it already, as others came.
        let _sent = client.write_all(said);
        // Four in five never read; some vanish.
        if number % 7 != 0 {
            unread.push_back(client);
        }
        if unread.len() > 700 {
            unread.pop_front();
        }
        if number % 500 == 0 {
            most = most.max(descriptors());
            assert_eq!(status(&service).state, State::Serving);
            last_report = Some(report(&service));
            service.reload_well();
        }
    }
    unread.clear();
    for _ in 0..700 {
        let mut client = connect();
        client.write_all(b"report 1\n").unwrap();
        unread.push_back(client);
        // One turn each: whoever asks in the same turn gets the same answer.
        if unread.len() % 5 == 0 {
            assert_eq!(status(&service).state, State::Serving);
        }
    }
    most = most.max(descriptors());
    // 256 that have asked nothing yet, 320 that may not have read their answer, and 64 answers.
    assert!(most <= before + 256 + 320 + 64, "{before} {most}");
    assert_eq!(last_report.unwrap().members.len(), fixture.members().len());
    let status = status(&service);
    assert_eq!(status.reloads.done, 20);
    assert!(status.monitor.memory.unwrap() < memory + (16 << 20), "{memory} {status:?}");

    // Of another version, and byte by byte.
    let mut newer = connect();
    for byte in b"status 2\n" {
        newer.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    newer.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("{\"error\":") && answer.contains("'status' in version 1 and not in 2"),
        "{answer}"
    );
    drop(unread);
    until("given up", descriptors, |now| *now <= before + 1);
    service.stop();
}
