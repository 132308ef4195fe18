//! What is learnt of a view's use, and asked for ahead of it. See docs/design.md, "What a view has learnt".
//!
//! Pure, without descriptor, process or clock: [`profile`] is what is known of a view's use, as a file; [`plan`] makes steps of it, in order;
//! [`learn`] makes the next profile of a trace. [`process`] is a process of its own that does one of two things: it *plays*, asking the view
//! for what will be asked of it, or it *learns*.
//!
//! Invariants of the process:
//! - Nobody waits for it: it may hang in the mount, and whoever is needed does not look into that.
//! - It has no rights but to read what the view shows, and to write the file that it was given.
//! - Trace and profile are a server's word, which may be a container's by then: whatever they hold, it asks for names below members
//!   within its limits, and for nothing else.

mod below;
mod blocks;
mod course;
pub mod learn;
mod limits;
mod outside;
mod pace;
mod pieces;
pub mod plan;
mod play;
mod process;
pub mod profile;
mod sampling;

pub use process::perform;
