//! A store's address, taken apart: what Nix would open, known before Nix opens (or creates) it.
//!
//! Invariants: parameters are decoded here, once, and given to Nix decoded; the directories that a local store
//! is made of are absolute and lexically normal. So what is checked here is what Nix then opens.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::error::StoreError;

/// Stores of Nix's that have no files of their own on this machine, or (`local-overlay`) that are experimental.
const UNSUPPORTED: [&str; 9] =
    ["dummy", "file", "http", "https", "local-overlay", "mounted-ssh-ng", "s3", "ssh", "ssh-ng"];

/// The parameters of a local store that are directories.
const DIRECTORIES: [&str; 5] = ["root", "state", "real", "store", "log"];

/// Which of Nix's stores an address means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Local if this process may write to the store's state, else by daemon.
    Auto,
    /// By the database.
    Local,
    /// By the daemon; the address without parameters.
    Daemon(String),
}

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoreUri {
    pub(super) kind: Kind,
    /// Decoded parameters; a key occurs once.
    pub(super) params: Vec<(String, Vec<u8>)>,
}

/// The address of the same local store that Nix is not to write to.
pub(super) fn read_only(uri: &str) -> String {
    let (base, query) = uri.split_once('?').unwrap_or((uri, ""));
    let base = if base.is_empty() || base == "auto" { "local" } else { base };
    let given = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("read-only="));
    let pairs: Vec<&str> = given.chain(["read-only=true"]).collect();
    format!("{base}?{}", pairs.join("&"))
}

impl StoreUri {
    /// Understands `auto`, `local`, `daemon`, `local://DIR`, `unix://SOCKET` and directories, with parameters.
    pub(super) fn parse(uri: &str) -> Result<Self, StoreError> {
        let bad = |why: &str| StoreError::BadUri { uri: uri.to_owned(), why: why.to_owned() };
        let (base, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut params: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| bad(&format!("'{pair}' has no equals sign")))?;
            let value = percent_decode(value).ok_or_else(|| {
                bad(&format!("the value of '{key}' has a % that two hexadecimal digits do not follow"))
            })?;
            if !params.iter().any(|(known, _)| known == key) {
                params.push((key.to_owned(), value));
            }
        }
        let mut default_root = |path: Vec<u8>| {
            if !path.is_empty() && !params.iter().any(|(key, _)| key == "root") {
                params.push(("root".to_owned(), path));
            }
        };
        let kind = match base.split_once("://") {
            Some(("unix", _)) => Kind::Daemon(base.to_owned()),
            Some(("local", path)) => {
                default_root(percent_decode(path).ok_or_else(|| bad("its directory has a stray %"))?);
                Kind::Local
            }
            Some((scheme, _)) if UNSUPPORTED.contains(&scheme) => {
                return Err(StoreError::Unsupported {
                    uri: uri.to_owned(),
                    why: format!(
                        "a store of the kind '{scheme}' has no directory of its own on this machine"
                    ),
                });
            }
            Some(_) => return Err(StoreError::UnknownUri { uri: uri.to_owned() }),
            None if base.is_empty() || base == super::AUTO => Kind::Auto,
            None if base == "local" => Kind::Local,
            None if base == "daemon" => Kind::Daemon(base.to_owned()),
            None if base.contains('/') => {
                let path = std::path::absolute(base).map_err(|e| bad(&e.to_string()))?;
                default_root(path.as_os_str().as_bytes().to_owned());
                Kind::Local
            }
            None => return Err(StoreError::UnknownUri { uri: uri.to_owned() }),
        };
        for (key, value) in &mut params {
            if DIRECTORIES.contains(&key.as_str()) && !value.is_empty() {
                let path = Path::new(OsStr::from_bytes(value));
                if !path.is_absolute() {
                    return Err(bad(&format!("{key}= wants an absolute path")));
                }
                *value = normal(path).into_os_string().into_encoded_bytes();
            }
        }
        Ok(Self { kind, params })
    }

    /// The value of a parameter that is a directory; an empty one counts as absent, as it does for Nix.
    fn directory(&self, key: &str) -> Option<PathBuf> {
        let (_, value) = self.params.iter().find(|(known, value)| known == key && !value.is_empty())?;
        Some(PathBuf::from(OsStr::from_bytes(value)))
    }

    /// Where the store's state is, with its database.
    pub(super) fn state_dir(&self, default: &Path) -> PathBuf {
        self.directory("state")
            .or_else(|| self.directory("root").map(|root| root.join("nix/var/nix")))
            .unwrap_or_else(|| default.to_owned())
    }

    /// What the store's paths begin with, if the address names it.
    pub(super) fn logical_dir(&self) -> Option<PathBuf> {
        self.directory("store")
    }

    /// Where the store's files are.
    pub(super) fn real_dir(&self, default: &Path) -> PathBuf {
        self.directory("real")
            .or_else(|| self.directory("root").map(|root| root.join("nix/store")))
            .or_else(|| self.directory("store"))
            .unwrap_or_else(|| default.to_owned())
    }
}

/// Nix resolves `.` and `..` in these parameters by their letters, without looking at links.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(uri: &str) -> (String, String) {
        let uri = StoreUri::parse(uri).unwrap();
        let show = |path: PathBuf| path.to_str().unwrap().to_owned();
        (show(uri.state_dir(Path::new("/S"))), show(uri.real_dir(Path::new("/R"))))
    }

    #[test]
    fn an_address_is_made_read_only() {
        for (uri, expected) in [
            ("", "local?read-only=true"),
            ("auto", "local?read-only=true"),
            ("local", "local?read-only=true"),
            ("local?root=/a", "local?root=/a&read-only=true"),
            ("local?read-only=false&root=/a", "local?root=/a&read-only=true"),
            ("/a", "/a?read-only=true"),
        ] {
            assert_eq!(read_only(uri), expected, "{uri}");
        }
    }

    #[test]
    fn the_directories_of_a_local_store_are_those_that_nix_opens() {
        for (uri, state, real) in [
            ("local", "/S", "/R"),
            ("auto", "/S", "/R"),
            ("", "/S", "/R"),
            ("local?", "/S", "/R"),
            ("local?root=", "/S", "/R"),
            ("local?root=/a", "/a/nix/var/nix", "/a/nix/store"),
            ("/a/b", "/a/b/nix/var/nix", "/a/b/nix/store"),
            ("/a?root=/b", "/b/nix/var/nix", "/b/nix/store"),
            ("local:///a%20b", "/a b/nix/var/nix", "/a b/nix/store"),
            ("local?root=%2fa%26b", "/a&b/nix/var/nix", "/a&b/nix/store"),
            ("local?root=/x/../a/./b/", "/a/b/nix/var/nix", "/a/b/nix/store"),
            ("local?root=/a&root=/b", "/a/nix/var/nix", "/a/nix/store"),
            ("local?root=/a&state=/s&real=/r", "/s", "/r"),
            ("local?store=/gnu/store", "/S", "/gnu/store"),
            ("local?root=/a+b", "/a+b/nix/var/nix", "/a+b/nix/store"),
        ] {
            assert_eq!(dirs(uri), (state.to_owned(), real.to_owned()), "{uri}");
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        for (uri, kind) in [
            ("auto?root=/a", Kind::Auto),
            ("local", Kind::Local),
            ("./here", Kind::Local),
            ("daemon?max-connections=2", Kind::Daemon("daemon".to_owned())),
            ("unix:///run/socket?root=/a", Kind::Daemon("unix:///run/socket".to_owned())),
        ] {
            assert_eq!(StoreUri::parse(uri).unwrap().kind, kind, "{uri}");
        }
    }

    #[test]
    fn what_cannot_be_opened_is_refused_by_name() {
        for uri in ["lokal", "lokal?root=/a", "nix://a", "://"] {
            assert!(matches!(StoreUri::parse(uri), Err(StoreError::UnknownUri { .. })), "{uri}");
        }
        for uri in ["https://a", "file:///a", "ssh://a", "ssh-ng://a", "dummy://", "local-overlay://"] {
            assert!(matches!(StoreUri::parse(uri), Err(StoreError::Unsupported { .. })), "{uri}");
        }
        for uri in ["local?root", "local?root=a", "local?root=%2", "local?root=%zz", "local?root=%+1"] {
            assert!(matches!(StoreUri::parse(uri), Err(StoreError::BadUri { .. })), "{uri}");
        }
    }
}
