//! The Nix store, asked through Nix's own C++ library.

mod path;

pub use path::{InvalidStorePath, PathInfo, StorePath};
