//! `--report`: the host's log says which of its store paths were asked for in vain, and the view says nothing.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::util::DEADLINE;
use crate::util::fixture::Fixture;
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};

/// Every line of the report has it.
const REPORT: &str = "asked for that the host has and the view has not";

/// A shell that has run `script` with these arguments, and lives on until it is dropped.
struct Asker(Child);

impl Asker {
    fn new(wrapper: &[&str], script: &str, arguments: &[&Path]) -> Self {
        let mut words = wrapper.iter().copied().chain(["sh", "-c"]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .arg(format!("{script}; read line"))
            .arg("sh")
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        let _ended = self.0.stdin.take().unwrap().write_all(b"\n");
        let _reaped = self.0.wait();
    }
}

/// Waits until the log has a line of the report about `path`; what is told of later questions comes behind it.
fn reported(log: impl Fn() -> String, path: &Member) -> String {
    let until = Instant::now() + DEADLINE;
    loop {
        let said = log();
        if let Some(line) = said.lines().find(|line| line.contains(REPORT) && line.contains(&path.base)) {
            return line.to_owned();
        }
        assert!(Instant::now() < until, "nothing is said of {}; it said:\n{said}", path.base);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn report(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(REPORT)).collect()
}

fn errno<T>(answer: std::io::Result<T>) -> Option<Errno> {
    answer.err().as_ref().and_then(Errno::from_io_error)
}

/// Valid store paths that are in no closure.
fn strays<const N: usize>(store: &NixStore) -> [Member; N] {
    std::array::from_fn(|number| {
        store.add(&format!("stray-{number}"), &[], |path| fs::write(path, "stray\n").unwrap())
    })
}

/// One line for a path that the host has, with who asked first; none for a name that nobody has.
#[test]
fn a_missed_path_is_told_once_with_who_asked() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let [again, below, last] = strays(&fixture.store);
    let nowhere = NixStore::name("nowhere");
    let silent = fixture.mount();
    let view = fixture.program().arg("--report").mount();
    let paths = [&again, &nowhere].map(|member| view.path().join(&member.base));
    let elsewhere = [&again, &nowhere].map(|member| silent.path().join(&member.base));
    assert_eq!(elsewhere.map(|path| errno(fs::metadata(path))), [Some(Errno::NOENT); 2]);

    let asker = Asker::new(&[], r#"test -e "$1"; test -e "$2""#, &[&paths[0], &paths[1]]);
    let line = reported(|| view.stderr(), &again);
    let expected = format!(" path=\"{}\" pid={} command=\"sh\" count=1", again.base, asker.pid());
    assert!(line.ends_with(&expected), "{line}\n{expected}");

    for path in &paths {
        assert_eq!(errno(fs::metadata(path)), Some(Errno::NOENT), "{}", path.display());
        // Who wants to create a name is answered by the server, whatever the kernel remembers.
        assert_eq!(errno(fs::create_dir(path)), Some(Errno::ROFS), "{}", path.display());
        assert_eq!(errno(fs::metadata(path.join("in/it"))), Some(Errno::NOENT), "{}", path.display());
    }

    // A store path's own entry may have any name.
    let inside = view.path().join(&fixture.data.base).join(&below.base);
    assert_eq!(errno(fs::metadata(inside)), Some(Errno::NOENT));

    // Any thread of a process stands for the process.
    assert_eq!(errno(fs::metadata(view.path().join(&last.base))), Some(Errno::NOENT));
    let line = reported(|| view.stderr(), &last);
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    let expected = format!(" pid={} command={:?} count=1", std::process::id(), comm.trim_end());
    assert!(line.ends_with(&expected), "{line}\n{expected}");
    let said = view.stderr();
    assert_eq!(report(&said).len(), 2, "{said}");
    assert!(!said.contains(&nowhere.base), "{said}");
    assert_eq!(report(&silent.stderr()), [""; 0], "nobody asked for it");
}

/// A process is told as the host knows it, also from a container that counts its own; and in a log for machines.
#[test]
fn a_container_is_told_in_the_terms_of_the_host() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let [path] = strays(&fixture.store);
    let view = fixture.program().args(["--report", "--log-format", "json"]).mount();
    // Whatever a process calls itself, it cannot write lines of its own into the log.
    let script = r#"printf 'a"\n INFO b' >/proc/self/comm; test -e "$1""#;
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
    let _asker = Asker::new(&unshare, script, &[&view.path().join(&path.base)]);
    let line = reported(|| view.stderr(), &path);
    let event: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    let fields = &event["fields"];
    assert_eq!(fields["path"], path.base.as_str(), "{line}");
    assert_eq!(fields["command"], "a\"\n INFO b", "{line}");
    assert_eq!(fields["count"], 1, "{line}");
    let status = fs::read_to_string(format!("/proc/{}/status", fields["pid"])).expect("it lives");
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert_eq!(inside.split_whitespace().next_back(), Some("1"), "{status}");
}

/// What a reload brings is missed no more; what it withdraws is.
#[test]
fn a_report_follows_reloads() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let [first, second, last] = strays(&store);
    let system =
        |name: &str, stray: &Member| store.add(name, &[stray], |path| fs::write(path, name).unwrap());
    let link = store.profile("web/system", &system("one", &first).path);
    let next = system("two", &second);
    let mut service = Service::new(&store).with([Path::new("--prune"), Path::new("--report")]);
    service.add([Path::new("--system"), &link]);
    service.start_ready();
    let ask = |service: &Service, member: &Member| errno(fs::metadata(service.path().join(&member.base)));
    assert_eq!(ask(&service, &second), Some(Errno::NOENT));
    reported(|| service.log(), &second);

    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&next.path, &link).unwrap();
    service.reload_well();
    assert_eq!(ask(&service, &second), None, "it is there");
    assert_eq!(ask(&service, &first), Some(Errno::NOENT), "it is withdrawn");
    reported(|| service.log(), &first);
    assert_eq!(ask(&service, &last), Some(Errno::NOENT));
    reported(|| service.log(), &last);
    assert_eq!(service.logged(REPORT), 3, "{}", service.log());
    service.stop();
}

/// Servers come and go, the report continues.
#[test]
fn a_report_goes_on_with_the_next_server() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let [before, between, after] = strays(&fixture.store);
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path, "--report"]);
    service.start_ready();
    for (member, victim) in [(&before, Victim::Server), (&between, Victim::Both), (&after, Victim::Server)] {
        assert_eq!(errno(fs::metadata(service.path().join(&member.base))), Some(Errno::NOENT));
        reported(|| service.log(), member);
        service.kill(victim);
        if victim == Victim::Both {
            service.start_ready();
        }
    }
    assert_eq!(service.logged(REPORT), 3, "{}", service.log());
    service.stop();
}
