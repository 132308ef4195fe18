//! A read-only `/nix/store` that holds exactly the closure of one system, served through FUSE.
//!
//! The modules form one house; each uses only those above it in this list:
//!
//! 1. [`store`]: the only place that knows Nix's C++ store library.
//! 2. [`closure`]: roots, members and sizes as plain values.
//! 3. [`trie`]: node ids for what is reachable; [`journal`]: what a successor needs to know of them.
//! 4. [`backing`]: the physical store below one directory descriptor.
//! 5. [`fs`]: the answers to the kernel's requests.

pub mod backing;
pub mod closure;
pub mod fs;
pub mod handshake;
pub mod journal;
pub mod profile;
pub mod store;
pub mod trie;
