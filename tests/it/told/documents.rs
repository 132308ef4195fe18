//! docs/debugging.md, each of its commands run in its order; and the units and the script of docs/operation.md for metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use super::{assert_harmless, forms};
use crate::util::program::Program;
use crate::util::store::{Member, NixStore, nix_environment};
use crate::util::{DEADLINE, scratch};

/// A fenced block of a document, with what it is.
pub(crate) fn blocks(document: &str, kind: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document)).unwrap();
    let fence = format!("```{kind}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Where `/nix` is the test's own and `/run` is empty: what a document says can be done there word by word.
pub(crate) struct Machine {
    holder: Child,
    pub(crate) dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new(store: &NixStore) -> Self {
        // Views of other tests end when nobody has them mounted.
        let script = "for at in $(awk '/ fuse.nix-store-fs / { print $5 }' /proc/self/mountinfo); do umount -l \"$at\"; done 2>/dev/null
                      mount -t tmpfs none /run && mount --bind \"$1\" /nix && echo ready && read end";
        let mut holder = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(store.root().join("nix"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self { holder, dir: scratch() }
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let pid = self.holder.id().to_string();
        let programs = Path::new(Program::PATH).parent().unwrap().display();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "--wd=."]);
        command.args(["sh", "-c", line]).current_dir(self.dir.path());
        nix_environment(&mut command)
            .env("NIX_REMOTE", "local")
            .env("PATH", path)
            .env("HOME", self.dir.path());
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command
    }

    /// Runs a line of shell. One that ends in `&` is only started.
    fn run(&self, line: &str) -> Output {
        if line.ends_with('&') {
            let log = fs::File::create(self.dir.path().join("log")).unwrap();
            let status = self.command(line).stdout(Stdio::null()).stderr(log).status().unwrap();
            return Output { status, stdout: Vec::new(), stderr: Vec::new() };
        }
        self.command(line).output().unwrap()
    }

    /// Runs it until `is` holds of what it prints.
    pub(crate) fn until(&self, line: &str, is: impl Fn(&str) -> bool) {
        let until = Instant::now() + DEADLINE;
        loop {
            let output = self.run(line);
            if is(&String::from_utf8_lossy(&output.stdout)) {
                return;
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < until, "{line}: {output:?}\n{log}");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The view ends with its mount, and the program with its view.
        let _ended = self.run("umount -l /run/nix-store-fs/web");
        drop(self.holder.stdin.take());
        let _reaped = self.holder.wait();
    }
}

/// A system with a program that looks for `font`, and refers to `others`.
fn system(store: &NixStore, name: &str, font: &Member, others: &[&Member]) -> Member {
    store.add(name, others, |path| {
        fs::create_dir_all(path.join("bin")).unwrap();
        let chart = path.join("bin/chart");
        fs::write(&chart, format!("#!/bin/sh\nread -r line <{} && echo drawn\n", font.path)).unwrap();
        fs::set_permissions(&chart, fs::Permissions::from_mode(0o755)).unwrap();
        let all: Vec<&str> = others.iter().map(|other| other.path.as_str()).collect();
        fs::write(path.join("references"), all.join("\n")).unwrap();
    })
}

/// From a program that does not start to the fix, and on to a smaller closure.
#[test]
fn debugging_is_done_as_its_document_says() {
    need!(Root, Fuse, Nix, Jq, NixDirectory);
    let store = NixStore::new();
    let file = |path: &Path| fs::write(path, "contents\n".repeat(50_000)).unwrap();
    let font = store.add("dejavu-fonts-2.37", &[], file);
    let doc = store.add("git-2.47-doc", &[], file);
    let broken = system(&store, "nixos-system-web-1", &font, &[&doc]);
    let whole = system(&store, "nixos-system-web-2", &font, &[&doc, &font]);
    let slim = system(&store, "nixos-system-web-3", &font, &[&font]);
    let machine = Machine::new(&store);
    let profile = "/nix/var/nix/profiles/per-container/web/system";
    let set = |system: &Member| {
        let result = machine.dir.path().join("result");
        let _earlier = fs::remove_file(&result);
        std::os::unix::fs::symlink(&system.path, result).unwrap();
    };
    fs::create_dir_all(store.profiles().join("per-container/web")).unwrap();
    set(&broken);
    let first = machine.run(&format!("nix-env --profile {profile} --set ./result"));
    assert!(first.status.success(), "{first:?}");
    set(&whole);

    // What each command ends with, and what it has to say.
    type Step<'a> = (&'a str, i32, &'a [&'a str]);
    let not_there = format!("the host has '{}'", font.base);
    let steps: [Step<'_>; 18] = [
        ("nix-store-fs --report", 0, &[]),
        ("unshare", 2, &["cannot open"]),
        ("nix-store-fs report", 0, &["1 store path", &font.base, "asked for"]),
        ("nix-store-fs why", 12, &["is no", "the host has it"]),
        ("nix-store-fs why", 12, &["is no", &not_there]),
        ("nix-env", 0, &[]),
        ("nix-store-fs reload", 0, &[]),
        ("unshare", 0, &["drawn"]),
        ("nix-store-fs report", 0, &["it is there since a reload"]),
        ("nix-store-fs report --json", 0, &["[]\n"]),
        ("nix-store-fs report", 0, &["Never used", &doc.base]),
        ("nix-store-fs --system", 0, &[&doc.base]),
        ("nix-store-fs --system", 0, &[]),
        ("nix-store-fs why", 0, &[&doc.path]),
        ("nix-store-fs why --precise", 0, &["references, byte 11"]),
        ("nix-env", 0, &[]),
        ("nix-store-fs diff", 0, &["git"]),
        ("nix-store-fs reload", 0, &[]),
    ];
    let console = blocks("debugging.md", "console").concat();
    let commands: Vec<&str> =
        console.lines().map(|line| line.strip_prefix("# ").or(line.strip_prefix("$ ")).unwrap()).collect();
    assert_eq!(commands.len(), steps.len(), "{commands:?}");
    for (number, (command, (begins, code, says))) in commands.into_iter().zip(steps).enumerate() {
        assert!(command.starts_with(begins), "{command} is not {begins}");
        // The hash of the document is an example.
        let command = command.replace("zn5yhl2yj6hj4a0i5yimqwalvnr2hnbl", &font.base[..32]);
        let output = machine.run(&command);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{command}: {text}");
        for said in says {
            assert!(text.contains(said), "{command} does not say '{said}': {text}");
        }
        assert_harmless(&text);
        match number {
            0 => machine.until("nix-store-fs status web", |text| {
                text.contains("web: serving at /run/nix-store-fs/web")
            }),
            1 => machine.until("nix-store-fs report web", |text| text.contains(&font.base)),
            9 => set(&slim),
            _ => {}
        }
    }
    assert!(fs::read_to_string(machine.dir.path().join("closure.html")).unwrap().contains(&doc.base));
}

/// The command of a unit, run by a shell with the program in its path.
fn shell(line: &str) -> Command {
    let programs = Path::new(Program::PATH).parent().unwrap().display();
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
    command
}

/// What the timer runs writes a file that the collector reads.
#[test]
fn a_timer_writes_metrics_for_the_collector() {
    need!(Root);
    let units = blocks("operation.md", "ini").concat();
    let line = units.lines().find(|line| line.contains("status --metrics >")).unwrap();
    let line = line.strip_prefix("ExecStart=/bin/sh -c '").unwrap().strip_suffix('\'').unwrap();
    let dir = scratch();
    let line = line.replace("/var/lib/prometheus/node-exporter", &dir.path().display().to_string());
    assert!(shell(&line).status().unwrap().success());
    let files: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files, [dir.path().join("nix-store-fs.prom")]);
    assert!(forms::metrics(&fs::read_to_string(&files[0]).unwrap()).contains_key("nix_store_fs_up"));
}

/// What the socket unit starts, with a connection as standard input and output as systemd gives it (systemd.socket(5), Accept=).
#[test]
fn a_socket_unit_answers_a_scrape() {
    need!(Root);
    let scripts = blocks("operation.md", "sh");
    let script = scripts.iter().find(|script| script.contains("HTTP/1.0")).unwrap();
    let dir = scratch();
    let file = dir.path().join("scrape");
    fs::write(&file, script).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scrape = |request: &str, programs: bool| {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server: OwnedFd = listener.accept().unwrap().0.into();
        let mut command = shell(&format!("exec sh {}", file.display()));
        if !programs {
            command.env("PATH", "/usr/bin:/bin");
        }
        let mut child = command.stdin(server.try_clone().unwrap()).stdout(server).spawn().unwrap();
        // The command has copies of the descriptors, which would keep the connection open.
        drop(command);
        client.write_all(request.as_bytes()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(child.wait().unwrap().success());
        answer
    };
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nX-Odd: \\n %s $(id)\r\n\r\n";
    let answer = scrape(request, true);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    assert_eq!(lines.next(), Some("HTTP/1.0 200 OK"));
    assert_eq!(lines.next(), Some("Content-Type: text/plain; version=0.0.4"));
    assert!(lines.next().is_none(), "{head}");
    assert!(forms::metrics(body).contains_key("nix_store_fs_up"));
    assert_eq!(scrape(request, false), "HTTP/1.0 503 Service Unavailable\r\n\r\n");
}
