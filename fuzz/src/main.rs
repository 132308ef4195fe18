//! Hostile input, one target at a time: `NSF_FUZZ` names it. See scripts/fuzz.
//!
//! One program for all targets, so that it is linked once. A target asserts what it can beyond "nothing panics": it compares with a
//! model, sends what was understood back, or counts what is held.
#![no_main]

mod bytes;
mod journal;
mod ledger;
mod messages;
mod requests;
mod texts;
mod world;

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};

/// The targets by their names, which are those of the directories in `corpus` as well.
const TARGETS: [(&str, fn(&[u8])); 17] = [
    ("store_path", texts::store_path),
    ("view", texts::view),
    ("roots_file", texts::roots_file),
    ("saved", texts::saved),
    ("profile", texts::profile),
    ("root_links", texts::root_links),
    ("listen_fds", texts::listen_fds),
    ("state", messages::state),
    ("wire", messages::wire),
    ("registration", messages::registration),
    ("control", messages::control),
    ("answers", messages::answers),
    ("init", messages::init),
    ("mountinfo", texts::mountinfo),
    ("journal", journal::run),
    ("ledger", ledger::run),
    ("requests", requests::run),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("NSF_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("NSF_FUZZ names no target: {wanted:?}")).1
});

fuzz_target!(|data: &[u8]| -> Corpus {
    TARGET(data);
    Corpus::Keep
});
