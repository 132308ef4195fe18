//! `nix-store-fs`: see the library for everything.

use std::process::ExitCode;

fn main() -> ExitCode {
    nix_store_fs::cli::main()
}
