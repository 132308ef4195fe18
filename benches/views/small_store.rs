//! The store that `--quick` measures: a handful of paths with references between them, made on the spot.
//!
//! Paths are added with `nix-store --add`, which knows no references; the registration of the top path is then
//! read back, completed, and loaded again. So no build is run, and no sandbox is needed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fault::{Doing, Fault, Outcome};

const PACKAGES: usize = 12;
const FILES: usize = 30;

/// Makes the store below `work`; returns its URI and the top path.
pub(crate) fn make(work: &Path) -> Outcome<(String, PathBuf)> {
    let uri = format!("local?root={}", work.join("root").display());
    let mut members = Vec::new();
    for number in 0..PACKAGES {
        let tree = work.join(format!("package-{number}"));
        package(&tree, number).doing(|| format!("writing {}", tree.display()))?;
        members.push(add(&uri, &tree)?);
    }
    let top = work.join("nixos-system-small");
    system(&top, &members).doing(|| format!("writing {}", top.display()))?;
    let system = add(&uri, &top)?;
    refer(&uri, &system, &members)?;
    Ok((uri, PathBuf::from(system)))
}

fn package(tree: &Path, number: usize) -> std::io::Result<()> {
    let share = tree.join("share/doc");
    fs::create_dir_all(&share)?;
    fs::create_dir_all(tree.join("lib"))?;
    fs::create_dir_all(tree.join("bin"))?;
    for file in 0..FILES {
        fs::write(share.join(format!("page-{file}")), format!("{number}.{file}\n").repeat(1 + file * 40))?;
    }
    let library = tree.join("lib").join(format!("libsmall{number}.so.1"));
    fs::write(&library, vec![u8::try_from(number).unwrap_or(0); 1_200_000])?;
    symlink(format!("libsmall{number}.so.1"), tree.join("lib").join(format!("libsmall{number}.so")))?;
    let program =
        tree.join("bin").join(if number == 0 { "true".to_owned() } else { format!("small-{number}") });
    fs::write(&program, "#!/bin/sh\nexit 0\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
}

fn system(top: &Path, members: &[String]) -> std::io::Result<()> {
    fs::create_dir_all(top.join("sw"))?;
    fs::write(top.join("system"), "x86_64-linux")?;
    fs::write(top.join("init"), "#!/bin/sh\n")?;
    fs::set_permissions(top.join("init"), fs::Permissions::from_mode(0o755))?;
    for (number, member) in members.iter().enumerate() {
        symlink(member, top.join("sw").join(number.to_string()))?;
    }
    Ok(())
}

fn nix_store(uri: &str) -> Command {
    let mut command = Command::new("nix-store");
    command
        .args(["--store", uri])
        .env("NIX_CONFIG", "build-users-group =\nsandbox = false\nsubstitute = false\n")
        .stderr(Stdio::inherit());
    command
}

fn said(uri: &str, args: &[&str]) -> Outcome<String> {
    let doing = || format!("running nix-store {}", args.join(" "));
    let output = nix_store(uri).args(args).output().doing(doing)?;
    if !output.status.success() {
        return Err(Fault::new(format!("{}: it ended with {}", doing(), output.status)));
    }
    String::from_utf8(output.stdout).doing(doing)
}

fn add(uri: &str, tree: &Path) -> Outcome<String> {
    Ok(said(uri, &["--add", &tree.to_string_lossy()])?.trim().to_owned())
}

/// Registers `system` again, now with references. A record is: path, hash, size, deriver, number of references.
fn refer(uri: &str, system: &str, members: &[String]) -> Outcome<()> {
    let record = said(uri, &["--dump-db", system])?;
    let mut lines: Vec<&str> = record.lines().take(4).collect();
    let count = members.len().to_string();
    lines.push(&count);
    lines.extend(members.iter().map(String::as_str));
    let text = lines.join("\n") + "\n";
    let doing = || "registering the references of the small store".to_owned();
    let mut child = nix_store(uri).arg("--load-db").stdin(Stdio::piped()).spawn().doing(doing)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).doing(doing)?;
    }
    match child.wait().doing(doing)? {
        status if status.success() => Ok(()),
        status => Err(Fault::new(format!("{}: nix-store ended with {status}", doing()))),
    }
}
