//! Paths in JSON without loss: a string if the path is UTF-8, as nearly all are, and the list of its bytes otherwise.
//!
//! For `#[serde(with = "...")]`: this module for one path, [`optional`] for one that may be absent, [`many`] for a
//! collection.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize)]
#[serde(untagged)]
enum Written<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> From<&'a Path> for Written<'a> {
    fn from(path: &'a Path) -> Self {
        path.to_str().map_or_else(|| Self::Bytes(path.as_os_str().as_bytes()), Self::Text)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Read {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<Read> for PathBuf {
    fn from(read: Read) -> Self {
        match read {
            Read::Text(text) => text.into(),
            Read::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// Writes a path.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    Written::from(path).serialize(serializer)
}

/// Reads a path.
///
/// # Errors
/// Those of the deserializer.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Read::deserialize(deserializer).map(PathBuf::from)
}

/// A path that may be absent.
pub mod optional {
    use super::{Deserialize, Deserializer, PathBuf, Read, Serialize, Serializer, Written};

    /// Writes a path that may be absent.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Written::from).serialize(serializer)
    }

    /// Reads a path that may be absent.
    ///
    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Read>::deserialize(deserializer)?.map(PathBuf::from))
    }
}

/// A collection of paths.
pub mod many {
    use super::{Deserialize, Deserializer, PathBuf, Read, Serializer, Written};

    /// Writes a collection of paths.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<'a, S: Serializer, C>(paths: &'a C, serializer: S) -> Result<S::Ok, S::Error>
    where
        &'a C: IntoIterator<Item = &'a PathBuf>,
    {
        serializer.collect_seq(paths.into_iter().map(|path| Written::from(path.as_path())))
    }

    /// Reads a collection of paths.
    ///
    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>, C: FromIterator<PathBuf>>(
        deserializer: D,
    ) -> Result<C, D::Error> {
        Ok(Vec::<Read>::deserialize(deserializer)?.into_iter().map(PathBuf::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct All {
        #[serde(with = "super")]
        one: PathBuf,
        #[serde(with = "super::optional")]
        perhaps: Option<PathBuf>,
        #[serde(with = "super::many")]
        list: Vec<PathBuf>,
        #[serde(with = "super::many")]
        set: BTreeSet<PathBuf>,
    }

    #[test]
    fn every_path_comes_back_and_text_stays_text() {
        let plain = PathBuf::from("/a b/\u{fc}");
        let other = PathBuf::from(OsString::from_vec(b"/\xff\xfe".to_vec()));
        for path in [&plain, &other] {
            let all = All {
                one: path.clone(),
                perhaps: Some(path.clone()),
                list: vec![path.clone(), plain.clone()],
                set: [path.clone()].into(),
            };
            let json = serde_json::to_string(&all).unwrap();
            assert_eq!(serde_json::from_str::<All>(&json).unwrap(), all);
        }
        let none = All { one: plain.clone(), perhaps: None, list: Vec::new(), set: BTreeSet::new() };
        let json = serde_json::to_string(&none).unwrap();
        assert_eq!(json, "{\"one\":\"/a b/\u{fc}\",\"perhaps\":null,\"list\":[],\"set\":[]}");
        assert_eq!(serde_json::from_str::<All>(&json).unwrap(), none);
    }
}
