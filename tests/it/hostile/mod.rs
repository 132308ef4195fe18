//! What a hostile container, or somebody else without rights, tries against a view.

mod process;
mod withdrawn;
