//! What the program prints when all is well, and when it is called wrongly.

use crate::util::fixture::Fixture;
use crate::util::gate::kernel_release;
use crate::util::program::Program;
use crate::util::snapshot;

#[test]
fn help() {
    assert_run!("help", &Program::new().arg("--help").run());
    assert_run!("help-short", &Program::new().arg("-h").run());
    assert_run!("help-reload", &Program::new().args(["help", "reload"]).run());
}

/// The version, the store library linked with, and the FUSE features of the running kernel; the last two differ
/// from machine to machine.
#[test]
fn version() {
    let finished = Program::new().arg("--version").run();
    assert!(finished.stdout.starts_with(concat!("nix-store-fs ", env!("CARGO_PKG_VERSION"))), "{finished:?}");
    assert!(finished.stdout.contains("libnixstore 2."), "{finished:?}");
    assert!(finished.stdout.contains("\nLinux "), "{finished:?}");
    assert!(finished.stdout.contains("passthrough"), "{finished:?}");
    assert!(finished.stdout.contains("--idle-polling auto"), "{finished:?}");
    assert_eq!(finished.status.code(), Some(0));
    assert_eq!(finished.stderr, "");
    assert!(Program::new().arg("-V").run().status.success());
}

/// What a line of `--version` answers: the text behind its label, of which `label` is the beginning.
fn answer<'a>(version: &'a str, label: &str) -> &'a str {
    let lines = version.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    let found = lines.clone().find(|(found, _)| found.starts_with(label));
    found.unwrap_or_else(|| panic!("no line '{label}': {version}")).1
}

/// As root every feature is tried, and the kernel has what its release has.
#[test]
fn what_the_kernel_gives_is_what_its_release_has() {
    need!(Root, Fuse);
    let version = Program::new().arg("--version").run().stdout;
    assert!(version.contains(", tried just now\n"), "{version}");
    let release = kernel_release();
    for (label, since) in [
        ("the kernel reads files itself", (6, 9)),
        ("private users", (6, 12)),
        ("all names forgotten at once", (6, 16)),
        ("requests of a killed server given again", (6, 9)),
    ] {
        let expected = if release >= since {
            "yes".to_owned()
        } else {
            format!("no, needs Linux {}.{}", since.0, since.1)
        };
        assert_eq!(answer(&version, label), expected, "{version}");
    }
    assert_eq!(answer(&version, "a reload shows names"), "yes", "{version}");
}

/// There the kernel offers passthrough at the mount, and refuses each file.
#[test]
fn root_of_a_user_namespace_has_no_passthrough() {
    need!(Root, Fuse, Passthrough);
    let version = Program::new().arg("--version").inside(["unshare", "-Urm"]).run().stdout;
    assert!(version.contains(", tried just now\n"), "{version}");
    let passthrough = answer(&version, "the kernel reads files itself");
    assert_eq!(passthrough, "no, needs CAP_SYS_ADMIN in the initial user namespace", "{version}");
}

/// What could not be tried is told by the release, with the reason.
#[test]
fn version_says_why_the_kernel_was_not_tried() {
    need!(Root, Fuse);
    let scratch = crate::util::scratch();
    let refuse = crate::util::compile("refuse.c", scratch.path()).display().to_string();
    let version = Program::new().arg("--version").inside([refuse.as_str(), "1", "fsopen"]).run().stdout;
    let expected =
        ", not tried: cannot mount FUSE: Operation not permitted (os error 1); what it has by its release\n";
    assert!(version.contains(expected), "{version}");
}

/// Help and version need no store, no `/dev/fuse` and no home.
#[test]
fn help_and_version_need_nothing() {
    for argument in ["--help", "--version"] {
        let finished =
            Program::new().args(["--store", "local?root=/nonexistent", argument]).env("PATH", "").run();
        assert_eq!(finished.status.code(), Some(0), "{argument}: {}", snapshot::render(&finished));
    }
}

#[test]
fn wrong_usage() {
    for (name, arguments) in [
        ("usage-nothing", &[][..]),
        ("usage-unknown-option", &["--sytem", "x"]),
        ("usage-no-root", &["/mnt"]),
        ("usage-dump-format", &["--system", "x", "--dump-closure=xml"]),
        ("usage-threads", &["--system", "x", "--threads", "none"]),
        ("usage-no-threads", &["--system", "x", "--threads", "0"]),
        ("usage-two-mount-points", &["--system", "x", "/a", "/b"]),
        ("usage-name", &["--system", "x", "--name", "../up"]),
        ("usage-report-and-quiet", &["--system", "x", "--report", "--quiet"]),
        ("usage-reload-and-store", &["reload", "web", "--store", "auto"]),
        ("usage-old-reload-and-watch", &["--reload", "web", "--watch"]),
        ("usage-unknown-command", &["relaod", "web"]),
        ("usage-option-before-command", &["-v", "reload"]),
        ("usage-dump-and-gc-root", &["--system", "x", "--dump-closure", "--gc-root", "/roots"]),
        ("usage-idle-polling", &["--system", "x", "--idle-polling", "often"]),
        ("usage-untrusted", &["--system", "x", "--untrusted", "y"]),
        ("usage-log-format", &["--system", "x", "--log-format", "yaml"]),
    ] {
        let finished = Program::new().args(arguments).run();
        assert_eq!(finished.status.code(), Some(2), "{name}: {}", snapshot::render(&finished));
        assert_eq!(finished.stdout, "", "{name}");
        assert_run!(name, &finished);
    }
}

/// Only the first word is a command: where an option came before, it is a mount point as ever.
#[test]
fn a_word_after_an_option_is_a_mount_point() {
    let finished = Program::new().args(["--store", "local?root=/nonexistent", "--root", "x", "reload"]).run();
    assert_eq!(finished.status.code(), Some(5), "{}", snapshot::render(&finished));
}

/// Units that somebody wrote have it.
#[test]
fn reload_is_still_understood_as_an_option() {
    let finished = Program::new().args(["--reload", "nosuch"]).run();
    assert_eq!(finished.status.code(), Some(8), "{}", snapshot::render(&finished));
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert!(
        matches!(lines[..], [warning, error] if warning.contains("is 'reload NAME' now") && error.contains("no view called 'nosuch'")),
        "{lines:?}"
    );
}

/// Every command that a document shows is one: what is typed after the prompt is understood.
#[test]
fn commands_of_the_documents_are_understood() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let mut count = 0;
    for document in documents.chain([root.join("README.md"), root.join("CONTRIBUTING.md")]) {
        let text = std::fs::read_to_string(&document).unwrap();
        // Every second part is a block of code.
        for line in text.split("\n```").skip(1).step_by(2).flat_map(str::lines) {
            let Some(typed) = ["# ", "$ "].iter().find_map(|prompt| line.strip_prefix(prompt)) else {
                continue;
            };
            let typed = typed.split(" #").next().unwrap().split(['>', '|', '&']).next().unwrap().trim();
            if !typed.starts_with("nix-store-fs ") {
                continue;
            }
            let parsed = nix_store_fs::cli::command().try_get_matches_from(typed.split_whitespace());
            assert!(parsed.is_ok(), "{}: {typed}: {}", document.display(), parsed.unwrap_err());
            count += 1;
        }
    }
    assert!(count > 15, "only {count} commands were found");
}

#[test]
fn dump_text() {
    need!(Nix);
    let fixture = Fixture::new();
    assert_run!("dump-text", &fixture.program().arg("--dump-closure").run());
}

#[test]
fn dump_json() {
    need!(Nix);
    let fixture = Fixture::new();
    assert_run!("dump-json", &fixture.program().arg("--dump-closure=json").run());
}

#[test]
fn dump_tree() {
    need!(Nix);
    let fixture = Fixture::new();
    assert_run!("dump-tree", &fixture.program().arg("--dump-closure=tree").run());
}

/// A reader that stops reading early is no error.
#[test]
fn dump_into_a_closed_pipe() {
    need!(Nix);
    let fixture = Fixture::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (status, stderr) = fixture.program().arg("--dump-closure=json").run_into(writer);
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
}
