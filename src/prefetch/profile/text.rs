//! A profile as text: JSON, version 1, one use a line.
//!
//! ```json
//! {"version":1,"runs":3,"members":[
//! {"path":"<hash>-<name>","idle":0,"uses":[
//! {"path":"bin/tool","ms":12,"seen":3,"kind":"file","pages":[[0,4],[9,1]]}
//! ]}
//! ]}
//! ```
//!
//! `path` of a use lies below the member, and is empty for the member itself; as in the program's other JSON it is a list of bytes where it is
//! no UTF-8. `ms`: milliseconds after the first record. `seen`: in how many runs. `kind`: `absent`, `name`, `listed` (a directory), `link` or `file`. `pages`, of a
//! file alone: first page and number of pages of each range that was read.
//!
//! Whatever breaks the form or a bound is one error, and then nothing of the text is used. An error never repeats what the text says.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ranges::{RANGES, Ranges};
use super::{Asked, BYTES, Member, Profile, USES, Use, is_below};
use crate::values::{StorePath, lossless};
use crate::view::trace::records::Pages;

/// The version that is read and written.
pub const VERSION: u64 = 1;
/// Pages that a trace can tell of: 40 bits.
const PAGE_END: u64 = 1 << 40;
/// Bytes of text around the uses of a member, at most: its name, the count of idle runs, and the form.
const FRAME: usize = 512;

/// Why a text is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// It has not the form of one.
    #[error("not a profile: unexpected content in line {line}, column {column}")]
    Form {
        /// Where, from 1 on.
        line: usize,
        /// Where in the line.
        column: usize,
    },
    /// Another version of this program wrote it.
    #[error("the profile has version {0}; this program reads version {VERSION}")]
    Version(u64),
    /// It has the form of one, and breaks a bound.
    #[error("the profile is out of bounds: {0}")]
    Bounds(&'static str),
}

impl From<serde_json::Error> for ProfileError {
    // Its message may repeat the text.
    fn from(error: serde_json::Error) -> Self {
        Self::Form { line: error.line(), column: error.column() }
    }
}

#[derive(Deserialize)]
struct VersionText {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileText {
    #[serde(rename = "version")]
    _version: u64,
    runs: u32,
    #[serde(default)]
    relearn: bool,
    members: Vec<MemberText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberText {
    path: String,
    idle: u8,
    uses: Vec<UseText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UseText {
    #[serde(with = "lossless")]
    path: PathBuf,
    ms: u32,
    seen: u8,
    kind: KindText,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pages: Vec<(u64, u32)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindText {
    Absent,
    Name,
    Listed,
    Link,
    File,
}

impl Profile {
    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// [`ProfileError`]: it is something else.
    pub fn read(text: &[u8]) -> Result<Self, ProfileError> {
        if text.len() > BYTES {
            return Err(ProfileError::Bounds("it is longer than 16 MiB"));
        }
        let VersionText { version } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(ProfileError::Version(version));
        }
        let text: ProfileText = serde_json::from_slice(text)?;
        if text.members.iter().map(|member| member.uses.len()).sum::<usize>() > USES {
            return Err(ProfileError::Bounds("it has more than 100,000 uses"));
        }
        let mut profile = Self { runs: text.runs, relearn: text.relearn, ..Self::default() };
        for member in text.members {
            let path = StorePath::new(&member.path)
                .map_err(|_| ProfileError::Bounds("a member has a name that no store path has"))?;
            let mut uses = std::collections::BTreeMap::new();
            for of in member.uses {
                let (below, of) = of.understood()?;
                if uses.insert(below, of).is_some() {
                    return Err(ProfileError::Bounds("a path is in it twice"));
                }
            }
            if uses.is_empty() {
                return Err(ProfileError::Bounds("a member has no uses"));
            }
            if profile.members.insert(path, Member { idle: member.idle, uses }).is_some() {
                return Err(ProfileError::Bounds("a member is in it twice"));
            }
        }
        let before = profile.len();
        profile.bound();
        if profile.len() == before {
            Ok(profile)
        } else {
            Err(ProfileError::Bounds("its paths are too long"))
        }
    }

    /// As text of at most [`BYTES`] bytes. What does not fit is left out, latest first.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut members: std::collections::BTreeMap<&StorePath, Vec<Vec<u8>>> =
            std::collections::BTreeMap::new();
        let mut bytes = FRAME;
        for (member, below, of) in self.in_order() {
            // Cannot fail: there is no map in it, and no writer that could.
            let Ok(line) = serde_json::to_vec(&UseText::new(below, of)) else { continue };
            bytes += line.len() + 2 + if members.contains_key(member) { 0 } else { FRAME };
            if bytes > BYTES {
                break;
            }
            members.entry(member).or_default().push(line);
        }
        let relearn = if self.relearn { "\"relearn\":true," } else { "" };
        let mut text =
            format!("{{\"version\":{VERSION},\"runs\":{},{relearn}\"members\":[", self.runs).into_bytes();
        let members: Vec<Vec<u8>> = members
            .into_iter()
            .map(|(path, lines)| {
                let idle = self.members.get(path).map_or(0, |member| member.idle);
                let head = format!("\n{{\"path\":\"{path}\",\"idle\":{idle},\"uses\":[\n");
                [head.into_bytes(), lines.join(&b",\n"[..]), b"\n]}".to_vec()].concat()
            })
            .collect();
        text.extend(members.join(&b","[..]));
        text.extend(b"\n]}\n");
        text
    }
}

impl UseText {
    fn new(below: &[u8], of: &Use) -> Self {
        let (kind, ranges) = match &of.asked {
            Asked::Absent => (KindText::Absent, None),
            Asked::Name => (KindText::Name, None),
            Asked::Listed => (KindText::Listed, None),
            Asked::Link => (KindText::Link, None),
            Asked::File(ranges) => (KindText::File, Some(ranges)),
        };
        let pages =
            ranges.into_iter().flat_map(Ranges::iter).map(|pages| (pages.first, pages.count)).collect();
        Self { path: OsStr::from_bytes(below).into(), ms: of.after, seen: of.seen, kind, pages }
    }

    fn understood(self) -> Result<(Vec<u8>, Use), ProfileError> {
        let below = self.path.into_os_string().into_vec();
        if !is_below(&below) {
            return Err(ProfileError::Bounds("a path leads out of its member, or is too long"));
        }
        if self.pages.len() > RANGES || self.pages.iter().any(|(first, _)| *first >= PAGE_END) {
            return Err(ProfileError::Bounds("a file has too many ranges, or one that no file has"));
        }
        let pages: Vec<Pages> =
            self.pages.iter().map(|(first, count)| Pages { first: *first, count: *count }).collect();
        let ranges: Ranges = pages.iter().copied().collect();
        if !ranges.iter().eq(pages) {
            return Err(ProfileError::Bounds("the ranges of a file are not sorted, or touch"));
        }
        let asked = match self.kind {
            KindText::File => Asked::File(ranges),
            _ if !ranges.is_empty() => {
                return Err(ProfileError::Bounds("something that is no file has pages"));
            }
            KindText::Absent => Asked::Absent,
            KindText::Name => Asked::Name,
            KindText::Listed => Asked::Listed,
            KindText::Link => Asked::Link,
        };
        Ok((below, Use { after: self.ms, seen: self.seen, asked }))
    }
}
