//! The program from outside: the real binary, a real Nix store of the test's own, real mounts.
//!
//! One binary, a module for each theme. Nothing here looks inside the program; what it promises is checked
//! against another witness: Nix's own commands, the physical store, or the kernel's tables. A test that needs
//! something of the machine says so in its first line (`need!`), and see [`util::gate`] for what happens when
//! the machine has not got it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking"
)]

#[macro_use]
mod util;

mod absence;
mod bad_input;
mod cdi;
mod chosen_roots;
mod collector;
mod command_line;
mod container;
mod corpus;
mod diff;
mod ending;
mod failing_disk;
mod few_descriptors;
mod file_systems;
mod formats;
mod from;
mod full_disk;
mod handles;
mod handover;
mod hard_links;
mod hidden;
mod hostile;
mod inherited;
mod interrupted;
mod kinds;
mod large;
mod ledger;
mod life;
mod list32;
mod locked;
mod logging;
mod manual;
mod measuring;
mod missed;
mod mount_helper;
mod nix_inside;
mod optimised;
mod oracle;
mod overlay;
mod page;
mod panics;
mod places;
mod prefetch;
mod private;
mod readers;
mod reading_ahead;
mod readonly;
mod recipes;
mod registered;
mod reload;
mod repair;
mod rooms;
mod roots;
mod run;
mod schemas;
mod setup;
mod sharing;
mod status;
mod stores;
mod stuck;
mod survival;
mod systemd;
mod told;
mod usage;
mod user;
mod watch;
mod why;
