//! What was asked of a view soon after it started, kept for its next start.
//!
//! [`profile`] is what is known of a view's use, as a file; [`plan`] makes steps of it, in order; [`learn`] makes the next profile of a trace.
//! These three are pure: no descriptors, no processes, no clock. See docs/design.md, "What a view has learnt".

pub mod learn;
pub mod plan;
pub mod profile;
