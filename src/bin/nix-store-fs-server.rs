//! The server that `nix-store-fs` starts for a view; not for people.

fn main() {
    nix_store_fs::server::main()
}
