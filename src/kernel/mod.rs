//! What the running kernel gives, found out by trying it.
//!
//! Versions tell little: distributions carry changes back and forth. So the kernel is asked on a mount of the program's own, which is
//! attached nowhere ([`trial`]). What cannot be found out is [`Finding::Unknown`]. It decides nothing: a view does what is right on
//! every kernel.

pub mod trial;

pub use trial::TrialError;

/// Whether the kernel does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Finding {
    /// It was seen to.
    Yes,
    /// It was seen not to.
    No,
    /// It does, but not for this process, which lacks CAP_SYS_ADMIN in the initial user namespace.
    Denied,
    /// It could not be tried.
    #[default]
    Unknown,
}

impl From<bool> for Finding {
    fn from(does: bool) -> Self {
        if does { Self::Yes } else { Self::No }
    }
}

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Findings {
    /// All names are asked for again when it is told to (Linux 6.16).
    pub forgets_all_names: Finding,
    /// What a dead server had taken is given again (Linux 6.9).
    pub resends: Finding,
    /// It reads the store's files by itself (Linux 6.9). This decides nothing: `--io passthrough` finds out for itself.
    pub passthrough: Finding,
    /// A mount of the view can be idmapped (Linux 6.12).
    pub idmap: Finding,
}
