//! Store path names and what Nix's database says of a path: plain values, no C++ and no I/O.
//!
//! Invariant: a [`StorePath`] that exists satisfies Nix's grammar for base names, so it holds no slash, no NUL,
//! is neither `.` nor `..`, and can neither be `.links` nor a lock or temporary file of the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Length of the hash part: 20 bytes in Nix's base 32 (Nix manual, "Store Path").
const HASH_LEN: usize = 32;
/// Longest name after the hash and its dash (Nix manual, "Store Path": 211 bytes).
const NAME_LEN_MAX: usize = 211;

/// The base name of a store object: `<32 characters of hash>-<name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct StorePath(Box<str>);

/// Why a text is not the base name of a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a store path name: {why}")]
pub struct InvalidStorePath {
    /// The text that was refused.
    pub text: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

impl StorePath {
    /// Checks `text` against Nix's grammar for store path names.
    ///
    /// # Errors
    /// [`InvalidStorePath`] names the rule that is broken.
    pub fn new(text: &str) -> Result<Self, InvalidStorePath> {
        let refuse = |why| Err(InvalidStorePath { text: text.to_owned(), why });
        let Some((hash, rest)) = text.as_bytes().split_at_checked(HASH_LEN) else {
            return refuse("it is shorter than the 32 characters of a hash");
        };
        if !hash.iter().all(|b| Self::is_of_hash(*b)) {
            return refuse("its first 32 characters are not a hash in Nix's base 32");
        }
        let [b'-', name @ ..] = rest else {
            return refuse("no dash follows its hash");
        };
        match name {
            [] => refuse("its name is empty"),
            _ if name.len() > NAME_LEN_MAX => refuse("its name is longer than 211 bytes"),
            [b'.'] | [b'.', b'-', ..] | [b'.', b'.'] | [b'.', b'.', b'-', ..] => {
                refuse("its name is '.' or '..', or begins with one of them and a dash")
            }
            _ if !name.iter().all(|b| Self::is_of_name(*b)) => {
                refuse("its name holds a character other than letters, digits and +-._?=")
            }
            _ => Ok(Self(text.into())),
        }
    }

    /// Whether hash parts may hold this character: Nix's base 32 alphabet leaves out `e`, `o`, `t` and `u`.
    #[must_use]
    pub fn is_of_hash(byte: u8) -> bool {
        // Not a search in a list: a closure has a hundred thousand names to check.
        matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
    }

    fn is_of_name(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
    }

    /// The whole base name, hash included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash, 32 characters in Nix's base 32: what a reference to the path is known by.
    #[must_use]
    pub fn hash_part(&self) -> &str {
        self.0.get(..HASH_LEN).unwrap_or_default()
    }

    /// The part after the hash: what a person calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.get(HASH_LEN + 1..).unwrap_or_default()
    }
}

impl FromStr for StorePath {
    type Err = InvalidStorePath;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorePath({})", self.0)
    }
}

impl<'de> Deserialize<'de> for StorePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// What Nix's database knows of one valid store path: the facts of `nix path-info --json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path itself.
    pub path: StorePath,
    /// Hash of the path's NAR serialisation in SRI form, `sha256-<base 64>`, as `nix path-info --json` gives it.
    pub nar_hash: String,
    /// Size of the NAR serialisation in bytes; 0 where Nix does not know it.
    pub nar_size: u64,
    /// The paths that this one refers to, sorted; may hold the path itself.
    pub references: Vec<StorePath>,
    /// The derivation that built it.
    pub deriver: Option<StorePath>,
    /// When the path became valid on this store, in seconds since 1970.
    pub registration_time: i64,
    /// `name:base64` signatures of the path's fingerprint.
    pub signatures: Vec<String>,
    /// Content address, for paths that have one.
    pub ca: Option<String>,
    /// Whether the path was built here, and so is trusted without a signature.
    pub ultimate: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    #[test]
    fn accepts_what_nix_accepts() {
        for name in ["a", "hello-2.12.1", "a+b-c.d_e?f=g", ".hidden", "...", "..a", &"x".repeat(211)] {
            let text = format!("{HASH}-{name}");
            let path = StorePath::new(&text).unwrap();
            assert_eq!((path.as_str(), path.name()), (text.as_str(), name));
        }
    }

    #[test]
    fn refuses_what_nix_refuses() {
        let long = "x".repeat(212);
        for name in ["", ".", "..", ".-a", "..-a", "a/b", "a b", "a,b", "ä", "a\0b", &long] {
            assert!(StorePath::new(&format!("{HASH}-{name}")).is_err(), "{name:?}");
        }
        for text in
            ["", ".", "..", ".links", HASH, "0123456789abcdefghijklmnpqrsvwxy-a", &format!("{HASH}_a")]
        {
            assert!(StorePath::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn each_byte_is_judged_as_nix_judges_it() {
        for byte in 0..=u8::MAX {
            let is_of_hash = HASH.as_bytes().contains(&byte);
            assert_eq!(StorePath::is_of_hash(byte), is_of_hash, "{byte}");
            let is_of_name = byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
            assert_eq!(StorePath::is_of_name(byte), is_of_name, "{byte}");
        }
    }

    #[test]
    fn a_multibyte_character_across_the_hash_boundary_is_refused() {
        assert!(StorePath::new("0123456789abcdfghijklmnpqrsvwxyä-name").is_err());
    }
}
