//! JSON, version 1: the keys of `nix path-info --json` for each path, and roots and totals beside them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::closure::Closure;
use crate::values::{PathInfo, StorePath};

/// Grows when a key changes its meaning or goes; new keys may come without.
const VERSION: u32 = 1;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    version: u32,
    store_dir: String,
    roots: Vec<String>,
    paths: BTreeMap<String, Facts<'a>>,
    totals: Totals,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts<'a> {
    nar_hash: &'a str,
    nar_size: u64,
    references: Vec<String>,
    deriver: Option<String>,
    registration_time: i64,
    signatures: &'a [String],
    ca: Option<&'a str>,
    ultimate: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    paths: usize,
    nar_size: u64,
}

fn facts<'a>(info: &'a PathInfo, full: impl Fn(&StorePath) -> String) -> Facts<'a> {
    Facts {
        nar_hash: &info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().map(&full).collect(),
        deriver: info.deriver.as_ref().map(&full),
        registration_time: info.registration_time,
        signatures: &info.signatures,
        ca: info.ca.as_deref(),
        ultimate: info.ultimate,
    }
}

pub(super) fn write(closure: &Closure, store_dir: &Path, out: &mut dyn io::Write) -> io::Result<()> {
    let full = |path: &StorePath| store_dir.join(path.as_str()).display().to_string();
    let dump = Dump {
        version: VERSION,
        store_dir: store_dir.display().to_string(),
        roots: closure.roots().iter().map(full).collect(),
        paths: closure.members().map(|info| (full(&info.path), facts(info, full))).collect(),
        totals: Totals { paths: closure.len(), nar_size: closure.nar_size() },
    };
    serde_json::to_writer_pretty(&mut *out, &dump)?;
    writeln!(out)
}
