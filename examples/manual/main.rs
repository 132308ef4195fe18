//! Writes the manual pages and the completions for shells into the directory that is given, below it as a package has them:
//! `cargo run --example manual -- DIR`.

mod pages;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("give the directory to write to");
        return ExitCode::from(2);
    };
    match pages::write(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write manual pages and completions to '{}': {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}
