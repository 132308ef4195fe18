//! Manual pages and completions, as a package installs them, read by what reads them.

use std::path::Path;
use std::process::Command;

use crate::util::program::Program;
use crate::util::scratch;

#[path = "../../examples/manual/pages.rs"]
mod pages;

fn run(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{command:?} ended with {}: {out}{err}", output.status);
    (out, err)
}

/// The commands that `help` lists.
fn commands() -> Vec<String> {
    let help = Program::new().arg("--help").run().stdout;
    let list = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap().to_owned();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

/// One page for the program, one for each command and one for the mount helper, which groff(1) finds nothing wrong with.
#[test]
fn there_is_a_page_for_each_command() {
    need!(Shells);
    let dir = scratch();
    pages::write(dir.path()).unwrap();
    let man = dir.path().join("share/man/man1");
    let mut expected: Vec<String> = commands().iter().map(|name| format!("nix-store-fs-{name}.1")).collect();
    assert!(expected.len() > 2, "{expected:?}");
    expected.push("nix-store-fs.1".to_owned());
    expected.sort();
    let mut pages: Vec<_> = std::fs::read_dir(&man)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    assert_eq!(pages, expected);
    let helper = dir.path().join("share/man/man8/mount.fuse.nix-store-fs.8");
    for page in pages.into_iter().map(|page| man.join(page)).chain([helper]) {
        let (text, warnings) =
            run(Command::new("groff").args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(&page));
        let page = page.display();
        assert_eq!(warnings, "", "{page}");
        assert!(text.contains("SYNOPSIS") && text.contains("OPTIONS"), "{page}: {text}");
    }
}

/// What each shell offers for the beginning of a command, and of an option.
#[test]
fn shells_complete_commands_and_options() {
    need!(Shells);
    let dir = scratch();
    pages::write(dir.path()).unwrap();
    let at = |file: &str| dir.path().join("share").join(file).display().to_string();
    let bash = |words: &[&str]| {
        let script = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={}; $(complete -p nix-store-fs | sed \"s!.*-F !!; s! .*!!\") nix-store-fs \"${{COMP_WORDS[COMP_CWORD]}}\" x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            at("bash-completion/completions/nix-store-fs"),
            words.join(" "),
            words.len() - 1
        );
        run(Command::new("bash").args(["--norc", "-c", &script])).0
    };
    let fish = |line: &str| {
        let script =
            format!("source {}; complete -C '{line}'", at("fish/vendor_completions.d/nix-store-fs.fish"));
        run(Command::new("fish").args(["--no-config", "-c", &script]).env("HOME", dir.path())).0
    };
    for name in commands() {
        assert_eq!(
            bash(&["nix-store-fs", &name[..2]]).lines().filter(|line| *line == name).count(),
            1,
            "{name}"
        );
        let offered = fish(&format!("nix-store-fs {}", &name[..2]));
        assert!(offered.lines().any(|line| line.split('\t').next() == Some(&name)), "{name}: {offered}");
    }
    assert_eq!(bash(&["nix-store-fs", "why", "--pre"]).trim(), "--precise");
    assert!(fish("nix-store-fs why --pre").starts_with("--precise\t"));
    // zsh completes on a terminal only: there it has to be a program without mistakes.
    run(Command::new("zsh").args(["-f", "-n", &at("zsh/site-functions/_nix-store-fs")]));
    assert!(Path::new(&at("zsh/site-functions/_nix-store-fs")).exists());
}
