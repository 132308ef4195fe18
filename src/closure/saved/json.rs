//! JSON, of both versions.
//!
//! Hard points:
//! 1. JSON with the same key twice is correct JSON, of which most readers take one: here it is an error ([`Pairs`]).
//! 2. Nix's own JSON names no roots. They are those that no other member refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::{Content, Problem, Saved, checked_dir, member};
use crate::closure::dump::json::VERSION;
use crate::closure::{Closure, NotAClosure};
use crate::values::{ContentAddress, Hash, InvalidStorePath, Method, PathInfo, StorePath};

/// The version that had full paths, and content addresses as one string.
pub(super) const VERSION_1: u32 = 1;

/// The part of JSON that tells what the rest means.
#[derive(serde::Deserialize)]
struct Head {
    version: Option<serde_json::Value>,
}

/// Both versions: they differ in the spelling of paths and content addresses, and in the name of one key.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    store_dir: String,
    roots: Option<Vec<String>>,
    /// `null` is what Nix prints of a path that it does not have.
    #[serde(alias = "paths")]
    info: Pairs<Option<Entry>>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    ca: Option<Address>,
    deriver: Option<String>,
    nar_hash: String,
    nar_size: u64,
    references: Vec<String>,
    registration_time: Option<i64>,
    #[serde(default)]
    signatures: Vec<String>,
    store_dir: Option<String>,
    #[serde(default)]
    ultimate: bool,
    version: Option<u32>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Address {
    Text(String),
    Fields { method: String, hash: String },
}

impl Address {
    fn render(self) -> Option<String> {
        match self {
            Self::Text(text) => ContentAddress::parse(&text).map(|_| text),
            Self::Fields { method, hash } => {
                let (method, hash) = (Method::parse(&method)?, Hash::parse_sri(&hash)?);
                Some(ContentAddress { method, hash }.to_string())
            }
        }
    }
}

/// The pairs of a JSON object, with those that have the same key.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Pairs<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<Saved, Problem> {
    let head: Head = serde_json::from_slice(bytes).map_err(Problem::Json)?;
    let found = head.version.ok_or(Problem::NoVersion)?;
    let known = |version: &u32| found.as_u64() == Some(u64::from(*version));
    let version =
        [VERSION_1, VERSION].into_iter().find(known).ok_or_else(|| Problem::Version(found.to_string()))?;
    let body: Body = serde_json::from_slice(bytes).map_err(Problem::Json)?;
    let store_dir = checked_dir(Path::new(&body.store_dir))?;
    let spelling = Spelling { version, store_dir: &store_dir };
    let mut members = BTreeMap::new();
    for (name, entry) in body.info.0 {
        let path = spelling.path(&name)?;
        let info = spelling.info(path.clone(), entry.ok_or_else(|| Problem::NotValid(path.clone()))?)?;
        if members.insert(path.clone(), info).is_some() {
            return Err(Problem::Twice(path));
        }
    }
    let roots = match body.roots {
        Some(roots) => spelling.paths(&roots)?,
        None => unreferenced(&members),
    };
    let content = Content::Closure(checked(roots, members)?);
    Ok(Saved { store_dir, content })
}

/// How a version writes what a closure holds.
struct Spelling<'a> {
    version: u32,
    store_dir: &'a Path,
}

impl Spelling<'_> {
    fn path(&self, text: &str) -> Result<StorePath, Problem> {
        match self.version {
            VERSION_1 => member(text.as_bytes(), self.store_dir),
            // What is outside is said to be outside, whatever the version.
            _ if text.starts_with('/') => member(text.as_bytes(), self.store_dir).and_then(|_| {
                let why = "this version has names without the store directory";
                Err(Problem::Name(InvalidStorePath { text: text.to_owned(), why }))
            }),
            _ => StorePath::new(text).map_err(Problem::Name),
        }
    }

    /// Paths in the order of their names, each once.
    fn paths(&self, texts: &[String]) -> Result<Vec<StorePath>, Problem> {
        let mut paths = texts.iter().map(|text| self.path(text)).collect::<Result<Vec<_>, _>>()?;
        paths.sort_unstable();
        match paths.iter().zip(paths.iter().skip(1)).find(|(one, next)| one == next) {
            Some((twice, _)) => Err(Problem::Twice(twice.clone())),
            None => Ok(paths),
        }
    }

    fn info(&self, path: StorePath, entry: Entry) -> Result<PathInfo, Problem> {
        let unusable = |what| Problem::Fact { what, path: path.clone() };
        if entry.store_dir.is_some_and(|dir| Path::new(&dir) != self.store_dir) {
            return Err(unusable("storeDir"));
        }
        if entry.version.is_some_and(|version| version != self.version) {
            return Err(unusable("version"));
        }
        let ca = match entry.ca.map(|address| (matches!(address, Address::Text(_)), address.render())) {
            None => None,
            Some((is_text, Some(text))) if is_text == (self.version == VERSION_1) => Some(text),
            Some(_) => return Err(unusable("ca")),
        };
        Ok(PathInfo {
            nar_hash: Hash::parse_sri(&entry.nar_hash).ok_or_else(|| unusable("narHash"))?.sri(),
            nar_size: entry.nar_size,
            references: self.paths(&entry.references)?,
            deriver: entry.deriver.map(|deriver| self.path(&deriver)).transpose()?,
            registration_time: entry.registration_time.unwrap_or(0),
            signatures: entry.signatures,
            ca,
            ultimate: entry.ultimate,
            path,
        })
    }
}

/// Those that no other member refers to.
pub(super) fn unreferenced(members: &BTreeMap<StorePath, PathInfo>) -> Vec<StorePath> {
    let others =
        |info: &PathInfo| info.references.iter().filter(|to| **to != info.path).cloned().collect::<Vec<_>>();
    let referenced: BTreeSet<StorePath> = members.values().flat_map(others).collect();
    members.keys().filter(|path| !referenced.contains(*path)).cloned().collect()
}

/// A closure, if that is what it is: nothing is missing, nothing is too much.
fn checked(roots: Vec<StorePath>, members: BTreeMap<StorePath, PathInfo>) -> Result<Closure, Problem> {
    if let Some(root) = roots.iter().find(|root| !members.contains_key(*root)) {
        return Err(Problem::Root(root.clone()));
    }
    let mut reached: BTreeSet<&StorePath> = roots.iter().collect();
    let mut open: Vec<&StorePath> = roots.iter().collect();
    while let Some(from) = open.pop() {
        for to in members.get(from).into_iter().flat_map(|info| &info.references) {
            if !members.contains_key(to) {
                return Err(Problem::Reference { from: from.clone(), to: to.clone() });
            }
            if reached.insert(to) {
                open.push(to);
            }
        }
    }
    if let Some(path) = members.keys().find(|path| !reached.contains(path)) {
        return Err(Problem::Unreached(path.clone()));
    }
    Closure::new(roots, members.into_values()).map_err(|NotAClosure(root)| Problem::Root(root))
}
