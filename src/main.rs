//! `nix-store-fs`: see the library for everything.

fn main() {
    nix_store_fs::cli::main()
}
