//! Plain values that every room shares: names of store paths, facts about them, hashes, and what is served.
//!
//! Nothing here touches a disk, a process or Nix.

mod hash;
pub mod lossless;
pub mod package;
mod path;
mod size;
mod view;

pub use hash::{Algorithm, ContentAddress, Hash, Method};
pub use path::{InvalidStorePath, PathInfo, StorePath};
pub use size::Size;
pub use view::View;

/// Sizes come from a database: their sum may be wrong, but never wraps.
pub(crate) fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}
