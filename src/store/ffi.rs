//! The bridge to `cpp/store.cc`: the only module that names C++ types, and the only `unsafe` of the store.
//!
//! Hard points:
//! 1. What Nix says arrives here on any thread, out of C++ frames that a panic must not unwind through.
//! 2. A failure arrives as one character for its kind and then Nix's text; [`Failure`] takes them apart.
// unreachable_pub: cxx makes every function of the bridge pub.
#![allow(unsafe_code, unreachable_pub)]

use crate::panics;

#[cxx::bridge(namespace = "nix_store_fs")]
pub(super) mod bridge {
    /// One decoded `key=value` of a store's address.
    struct Param {
        key: String,
        value: Vec<u8>,
    }

    /// What Nix knows of one path. An empty `deriver` or `ca` is one that there is not. References are places in the answer that this is
    /// in, or in the names that go with it: there are several times as many as paths, and each would be copied, and checked.
    struct Info {
        path: String,
        nar_hash: String,
        nar_size: u64,
        references: Vec<u32>,
        deriver: String,
        registration_time: i64,
        signatures: Vec<String>,
        ca: String,
        ultimate: bool,
    }

    /// What is served of one path: what is asked of Nix is the same, and a third of the time afterwards was spent on the rest.
    struct Size {
        path: String,
        nar_size: u64,
    }

    extern "Rust" {
        fn message_from_nix(level: u8, text: &[u8]);
    }

    unsafe extern "C++" {
        include!("nix-store-fs/cpp/store.hh");

        fn nix_version() -> String;
        fn initialise(verbosity: u8) -> Result<()>;
        fn default_state_dir() -> Result<Vec<u8>>;
        fn configured_store() -> Result<Vec<u8>>;
        fn allow_private_remount() -> Result<()>;

        type Handle;
        fn open_store(base: &str, params: &[Param]) -> Result<UniquePtr<Handle>>;
        fn logical_dir(self: &Handle) -> Result<Vec<u8>>;
        fn physical_dir(self: &Handle) -> Result<Vec<u8>>;
        fn connect(self: &Handle) -> Result<()>;
        fn is_valid(self: &Handle, path: &str) -> Result<bool>;
        fn closure(self: &Handle, roots: &[String]) -> Result<Vec<Info>>;
        fn sizes(self: &Handle, roots: &[String]) -> Result<Vec<Size>>;
        fn sizes_at_once(self: &Handle, roots: &[String]) -> Result<Vec<Size>>;
        fn add_temp_root(self: &Handle, path: &str) -> Result<()>;
        fn add_indirect_root(self: &Handle, path: &str, link: &[u8]) -> Result<()>;
        fn valid_paths(self: &Handle) -> Result<Vec<String>>;
        fn register_paths(self: &Handle, names: &[String], infos: &[Info]) -> Result<()>;
        fn fill(self: &Handle, database: &[u8], infos: &[Info]) -> Result<bool>;
        fn drop_absent(self: &Handle) -> Result<()>;
    }
}

// SAFETY: a Handle is a counted reference (atomic count) to a nix::Store and nothing else. Nix moves stores
// between threads itself (its thread pools and its daemon's clients do), and a store keeps no thread-local state:
// sqlite connections and sockets are in pools behind mutexes. So another thread may use and drop it.
unsafe impl Send for bridge::Handle {}

/// What kind of failure Nix reported, as far as we tell kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Other,
    Unsupported,
}

/// A C++ exception, as plain text on one line.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) text: String,
}

impl From<cxx::Exception> for Failure {
    fn from(exception: cxx::Exception) -> Self {
        let mut letters = exception.what().chars();
        // The letter of `Failure::Kind` in cpp/store.hh.
        let kind = match letters.next() {
            Some('u') => Kind::Unsupported,
            _ => Kind::Other,
        };
        Self { kind, text: one_line(letters.as_str()) }
    }
}

/// Nix breaks its texts into lines for a terminal; ours are one line each.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Nix's verbosity for what `tracing` lets through.
pub(super) fn verbosity() -> u8 {
    if tracing::enabled!(target: "nix", tracing::Level::TRACE) {
        6 // debug; 7 would tell of every byte
    } else if tracing::enabled!(target: "nix", tracing::Level::DEBUG) {
        3 // info
    } else {
        2 // notice
    }
}

fn message_from_nix(level: u8, text: &[u8]) {
    // A subscriber that panics costs the message, not the process.
    let _ = panics::contain(|| {
        let text = one_line(&String::from_utf8_lossy(text));
        match level {
            _ if text.is_empty() => {}
            0 => tracing::error!(target: "nix", "{text}"),
            1 => tracing::warn!(target: "nix", "{text}"),
            2 => tracing::info!(target: "nix", "{text}"),
            3 => tracing::debug!(target: "nix", "{text}"),
            _ => tracing::trace!(target: "nix", "{text}"),
        }
    });
}
