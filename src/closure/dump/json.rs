//! JSON, version 2: an object that `nix path-info --json --json-format 2` (Nix 2.33 and newer) could have printed, and with it the
//! roots and totals. docs/schema/closure.json is its schema.
//!
//! Invariants: the version is Nix's for its store object info, so a key of an entry means what it means there; what is
//! printed is ASCII without control characters but line breaks between values, whatever the database holds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::DumpError;
use crate::closure::Closure;
use crate::values::{ContentAddress, PathInfo, StorePath};

/// Grows when a key changes its meaning or goes; new keys may come without.
pub(in crate::closure) const VERSION: u32 = 2;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    version: u32,
    store_dir: &'a str,
    roots: &'a [StorePath],
    info: BTreeMap<&'a StorePath, Entry<'a>>,
    totals: Totals,
}

/// In the order of Nix, which is that of the alphabet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    ca: Option<Address>,
    deriver: Option<&'a StorePath>,
    nar_hash: &'a str,
    nar_size: u64,
    references: &'a [StorePath],
    /// Nothing for 0, as in Nix.
    registration_time: Option<i64>,
    signatures: &'a [String],
    store_dir: &'a str,
    ultimate: bool,
    version: u32,
}

#[derive(Serialize)]
struct Address {
    hash: String,
    method: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    paths: usize,
    nar_size: u64,
}

fn address(info: &PathInfo) -> Result<Option<Address>, DumpError> {
    let Some(text) = &info.ca else { return Ok(None) };
    let unknown = || DumpError::ContentAddress { path: info.path.clone(), ca: text.clone() };
    let ContentAddress { method, hash } = ContentAddress::parse(text).ok_or_else(unknown)?;
    Ok(Some(Address { hash: hash.sri(), method: method.name() }))
}

fn entry<'a>(info: &'a PathInfo, store_dir: &'a str) -> Result<Entry<'a>, DumpError> {
    Ok(Entry {
        ca: address(info)?,
        deriver: info.deriver.as_ref(),
        nar_hash: &info.nar_hash,
        nar_size: info.nar_size,
        references: &info.references,
        registration_time: Some(info.registration_time).filter(|time| *time != 0),
        signatures: &info.signatures,
        store_dir,
        ultimate: info.ultimate,
        version: VERSION,
    })
}

pub(super) fn render(closure: &Closure, store_dir: &Path) -> Result<Vec<u8>, DumpError> {
    let store_dir = store_dir.to_str().ok_or_else(|| DumpError::StoreDir(store_dir.to_owned()))?;
    let info = closure.members().map(|info| Ok((&info.path, entry(info, store_dir)?)));
    let dump = Dump {
        version: VERSION,
        store_dir,
        roots: closure.roots(),
        info: info.collect::<Result<_, DumpError>>()?,
        totals: Totals { paths: closure.len(), nar_size: closure.nar_size() },
    };
    let mut text = serde_json::to_string_pretty(&dump).map_err(DumpError::Json)?;
    text.push('\n');
    Ok(plain(text).into_bytes())
}

/// Escapes in JSON what a terminal could take for a command: only strings hold anything but printable ASCII and line breaks.
#[must_use]
pub fn plain(text: String) -> String {
    let is_plain = |c: char| matches!(c, ' '..='~' | '\n');
    if text.chars().all(is_plain) {
        return text;
    }
    text.chars().fold(String::with_capacity(text.len()), |mut plain, c| {
        if is_plain(c) {
            plain.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A string takes whatever is written.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        }
        plain
    })
}
