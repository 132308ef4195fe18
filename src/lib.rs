//! A read-only `/nix/store` that holds exactly the closure of one system, served through FUSE.
//!
//! The modules form one house; each uses only those above it in this list:
//!
//! 1. [`store`]: the only place that knows Nix's C++ store library. [`sys`]: raw calls. [`error`]: how errors read.
//! 2. [`profile`]: from a path that a person types to a store path.
//! 3. [`closure`]: roots, members and sizes as plain values; [`roots`]: links that hold roots beyond this process;
//!    [`resolve`]: from roots to a closure that is held.
//! 4. [`trie`]: node ids for what is reachable; [`journal`]: what a successor needs to know of them.
//! 5. [`backing`]: the physical store below one directory descriptor.
//! 6. [`idle`]: what keeps processors awake; [`fs`]: the answers to the kernel's requests; [`handshake`]: what is
//!    agreed on with it first.
//! 7. [`wire`]: what monitor and server say to each other; [`serve`]: the server.
//! 8. [`mount`]: the mount point and the mount table; [`monitor`]: what keeps a view alive.
//! 9. [`dump`]: a closure for others to read; [`cli`]: arguments in, exit code out.

pub mod backing;
pub mod cli;
pub mod closure;
pub mod dump;
pub mod error;
pub mod fs;
pub mod handshake;
pub mod idle;
pub mod journal;
pub mod monitor;
pub mod mount;
pub mod profile;
pub mod resolve;
pub mod roots;
pub mod serve;
pub mod store;
pub mod sys;
pub mod trie;
pub mod wire;
