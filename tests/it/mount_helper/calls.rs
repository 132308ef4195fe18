//! What is typed: options, exit codes, what is documented.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::host::Host;
use super::{options, stderr};
use crate::util::fixture::Fixture;
use crate::util::program::{Program, unique_name};
use crate::util::store::nix_environment;

/// Each wrong call is one line, mount's exit code, and no view.
#[test]
fn wrong_options_are_one_line_and_an_exit_code() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    fs::write(host.dir.path().join("file"), "").unwrap();
    fs::create_dir_all(host.dir.path().join("full/of")).unwrap();
    let good = options(&fixture, &name);
    let system = fixture.system.path.as_str();
    let dir = host.dir.path().display();
    let here = at.display();
    for (arguments, code, said) in [
        (format!("{system} {here} -o {good},watc"), 1, "unknown mount option 'watc'"),
        (format!("{system} {here} -o {good},errors=remount-ro"), 1, "unknown mount option 'errors'"),
        (format!("{system} {here} -o {good},watch=1"), 1, "'watch' takes no value"),
        (format!("{system} {here} -o {good},gc-root"), 1, "'gc-root' needs a value"),
        (format!("{system} {here} -o {good},io=fast"), 1, "invalid value 'fast' for '--io <IO>'"),
        (format!("{system} {here} -o {good},threads=0"), 1, "invalid value '0'"),
        (format!("{system} {here} -o {good},name=other"), 1, "'--name <NAME>' cannot be used multiple times"),
        (format!("{system} {here} -o {good},system=/a"), 1, "both say what the view shows"),
        (format!("{system} {here} -o {good},from=/a"), 1, "both say what the view shows"),
        (format!("none {here} -o {good}"), 1, "nothing to serve"),
        (format!("none {here} -o {good},from=/a,gc-root=/b"), 1, "cannot be used with"),
        (format!("{system} {here} -o {good},untrusted=a"), 1, "not absolute"),
        (format!("nix-store-fs:a/b {here} -o system={system},store=auto"), 1, "cannot be the name of a view"),
        (format!("{system} {dir}/absent -o {good}"), 32, "does not exist"),
        (format!("{system} {dir}/file -o {good}"), 32, "not a directory"),
        (format!("{system} {dir}/full -o {good}"), 32, "not empty"),
        (format!("/nix/store/nosuch {here} -o {good}"), 32, "nosuch"),
        (format!("{system} {here} -o name={name},store=unix:///nosuch"), 32, "nosuch"),
        (format!("{system} {here} -o remount"), 32, "no view that this user serves is mounted"),
    ] {
        let output = host.try_run(&format!("mount -t fuse.nix-store-fs {arguments}"));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        assert!(text.starts_with("mount.fuse.nix-store-fs: ") && text.contains(said), "{arguments}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments}: {text}");
        host.assert_nothing_left(&[&name]);
    }
    // By its own name, as mount does not call it so.
    for (arguments, code) in
        [("", 1), ("/a", 1), ("/a /b /c", 1), ("/a /b -x", 1), ("/a / -N 1", 1), ("--help", 0)]
    {
        let output = host.try_run(&format!("/sbin/mount.fuse.nix-store-fs {arguments}"));
        assert_eq!(output.status.code(), Some(code), "{arguments}: {output:?}");
        assert!(code == 0 || stderr(&output).lines().count() == 1, "{arguments}: {output:?}");
    }
    // Text that is not of this program stays in its line.
    let output =
        host.try_run(&format!("mount -t fuse.nix-store-fs {system} {here} -o \"$(printf 'a\\nb\\033[2J')\""));
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    assert!(!output.stderr.contains(&0x1b), "{output:?}");
}

/// `-f` mounts nothing, `-s` leaves out what is unknown.
#[test]
fn fake_and_sloppy_are_what_mount_means() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    let rest = format!(
        "-t fuse.nix-store-fs {} {} -o {}",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    );
    host.run(&format!("mount -fnv {rest}"));
    host.assert_nothing_left(&[&name]);
    assert_eq!(host.try_run(&format!("mount -f {rest},nosuch")).status.code(), Some(1));
    host.run(&format!("mount -s {rest},nosuch"));
    assert_eq!(host.mounts().len(), 1);
}

/// What a user of the machine may not do with a mount is so for a view, and what is true of every view stays.
#[test]
fn noexec_and_nosymfollow_are_applied() {
    need!(Root, Fuse, Nix);
    let (fixture, host, name) = (Fixture::new(), Host::new(), unique_name());
    let at = host.place("view");
    host.run(&format!(
        "mount -t fuse.nix-store-fs {} {} -o {},noexec,nosymfollow",
        fixture.system.path,
        at.display(),
        options(&fixture, &name)
    ));
    let found = host.run(&format!("findmnt --kernel -n -o VFS-OPTIONS {}", at.display()));
    let found: BTreeSet<&str> = found.trim().split(',').collect();
    assert_eq!(found, BTreeSet::from(["ro", "nosuid", "nodev", "noexec", "relatime", "nosymfollow"]));
    let program = at.join(&fixture.data.base).join("program");
    assert_eq!(host.try_run(&program.display().to_string()).status.code(), Some(126));
}

/// Every call and line of docs/mount.md is accepted, and its table has every option that the manual page has.
#[test]
fn what_is_documented_is_accepted() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mount.md");
    let document = fs::read_to_string(document).unwrap();
    let dir = crate::util::scratch();
    let helper = dir.path().join("mount.fuse.nix-store-fs");
    symlink(Program::PATH, &helper).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&helper);
        nix_environment(&mut command).args(arguments).output().unwrap()
    };
    let mut accepted = 0;
    for line in document.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (source, options) = match words.as_slice() {
            ["#", "mount", "-t", "fuse.nix-store-fs", source, _, "-o", options] => (*source, *options),
            [source, _, "fuse.nix-store-fs", options, "0", "0"] => (*source, *options),
            _ => match line.strip_prefix("Options=") {
                Some(options) => ("nix-store-fs:web", options),
                None => continue,
            },
        };
        let output = run(&[source, "/", "-f", "-o", options]);
        assert!(output.status.success(), "{line}: {output:?}");
        accepted += 1;
    }
    assert_eq!(accepted, 3);
    // Of the two places where options are listed, neither has one that the other has not.
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let help = help.split("Options of -o").nth(1).unwrap().split("A value with").next().unwrap();
    let table = document.split("\n## Options").nth(1).unwrap().split("| `rw`").next().unwrap();
    let candidates = help.lines().skip(1).chain(table.lines()).flat_map(|line| {
        line.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).filter(|word| word.len() > 1)
    });
    let is_option = |word: &&str| {
        // Known, whether it takes a value or not.
        let output = run(&["none", "/", "-f", "-o", word]);
        !stderr(&output).contains("unknown mount option")
    };
    let options: BTreeSet<&str> = candidates.filter(is_option).collect();
    assert!(options.len() >= 19, "{options:?}");
    let names = |text: &str, option: &str| {
        text.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).any(|word| word == option)
    };
    for option in options {
        assert!(names(help, option) && names(table, option), "{option} is missing in one of both");
    }
}
