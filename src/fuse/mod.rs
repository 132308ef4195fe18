//! What the kernel's FUSE and this program say to each other: one connection, as bytes.
//!
//! Layouts are those of `include/uapi/linux/fuse.h` ([`abi`]), numbers in native byte order. A request is read into a slot of
//! the [`ledger`], understood ([`request`]), and answered through the [`device`]. What is decided about it is not known here.
//!
//! [`attach`] begins one: it opens `/dev/fuse` and mounts.
//!
//! Invariant: whatever bytes come from the device or from an earlier server's ledger, nothing here panics, and what cannot be
//! understood has an answer as well.

pub mod abi;
pub mod attach;
pub mod device;
pub mod ledger;
pub mod request;

pub use device::Device;
pub use ledger::{Ledger, Slot};
pub use request::{Operation, Request};
