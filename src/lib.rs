//! A read-only `/nix/store` that holds exactly the closure of one system, served through FUSE.
//!
//! The modules form one house; each uses only those above it in this list:
//!
//! 1. [`store`]: the only place that knows Nix's C++ store library.

pub mod store;
