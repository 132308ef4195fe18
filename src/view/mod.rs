//! What is served, without the kernel and without Nix: node ids ([`trie`]) and what a successor needs to know of them
//! ([`journal`]), the physical store ([`backing`]), the answers made of them ([`ServedView`]), how often they were asked for
//! ([`usage`]), and in which order ([`trace`]); and what is brought for who reads one file after another ([`walk`], [`ahead`]).

pub mod ahead;
pub mod backing;
pub mod journal;
pub mod trace;
pub mod trie;
pub mod usage;
pub mod walk;

mod answers;
#[cfg(test)]
mod kernel_tests;
mod links;
mod members;
mod passthrough;
mod root;

pub use answers::{Entry, FsError, Node, ServedView, Stale, Told, Totals};
pub use members::MemberWatch;
pub(crate) use passthrough::{Counted, Handle, Way};
pub use passthrough::{Registrar, Registrations};
