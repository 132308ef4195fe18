//! Manual pages and completions, from the definitions that the command line is parsed with.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// Where each shell looks for completions of others, below the prefix of a package.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions/nix-store-fs"),
    (Shell::Zsh, "share/zsh/site-functions/_nix-store-fs"),
    (Shell::Fish, "share/fish/vendor_completions.d/nix-store-fs.fish"),
];

/// Writes all of it below `dir`, which is made if absent.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write(dir: &Path) -> io::Result<()> {
    let mut command = nix_store_fs::cli::command();
    for (shell, file) in COMPLETIONS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), "nix-store-fs", &mut text);
        put(&dir.join(file), &text)?;
    }
    command.build();
    page(&command, command.get_name(), "1", dir)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        page(subcommand, &format!("nix-store-fs-{}", subcommand.get_name()), "1", dir)?;
    }
    let helper = nix_store_fs::cli::mount_helper_command();
    page(&helper, helper.get_name(), "8", dir)
}

fn page(command: &Command, name: &str, section: &str, dir: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    let command = command.clone().display_name(name.to_owned()).version(env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command)
        .title(name.to_uppercase())
        .section(section)
        .source(concat!("nix-store-fs ", env!("CARGO_PKG_VERSION")))
        .render(&mut text)?;
    put(&dir.join(format!("share/man/man{section}/{name}.{section}")), &text)
}

fn put(file: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, text)
}
