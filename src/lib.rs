//! A read-only `/nix/store` that holds exactly the closure of one system, served through FUSE.
//!
//! A folder is a process, or a thing that two of them know. Each uses only those above it in this list:
//!
//! 1. [`values`]: names of store paths and what is served, as plain values. [`sys`]: raw calls. [`error`]: how errors read.
//!    [`startup`]: what a process is started with. [`log`]: lines for standard error. [`panics`]: what a panic ends.
//!    [`mounts`]: the mount table. [`background`]: a process that stays when the one that was typed ends. [`sandbox`]: what a process may still do. [`cdi`]: the file that tells container engines of views.
//! 2. [`store`]: the only place that knows Nix's C++ store library.
//! 3. [`closure`]: from a path that a person types to a closure that is held, and its printed forms.
//! 4. [`fuse`]: what the kernel and this program say to each other, as bytes, and the ledger of what was taken.
//! 5. [`view`]: what is served: node ids, the journal, the physical store, and the answers.
//! 6. [`protocol`]: what is agreed on with the kernel, and what monitor, server and those who ask a monitor say to each other.
//! 7. [`prefetch`]: what is learnt of a view's use, and asked for ahead of it.
//! 8. [`kernel`]: what the running kernel gives, found out by trying it.
//! 9. [`server`]: one FUSE session.
//! 10. [`monitor`]: the mount, and what keeps a view alive.
//! 11. [`run`]: a command over a view, in a namespace of its own.
//! 12. [`cli`]: arguments in, exit code out.

pub mod background;
pub mod cdi;
pub mod cli;
pub mod closure;
pub mod error;
pub mod fuse;
pub mod kernel;
pub mod log;
pub mod monitor;
pub mod mounts;
pub mod panics;
pub mod prefetch;
pub mod protocol;
pub mod run;
pub mod sandbox;
pub mod server;
pub mod startup;
pub mod store;
pub mod sys;
pub mod values;
pub mod view;
