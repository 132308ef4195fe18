//! Where the files of a store are, told by its address alone: for what needs the files and not the store.
//!
//! Invariant: no file is examined and Nix is not asked, so neither a daemon that is down nor a damaged database is noticed. What
//! Nix would open without an address (nix.conf, `NIX_REMOTE`) is not known here.

use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::uri::{Kind, StoreUri};

/// What an address says of where the store's files are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place(Option<StoreUri>);

impl Place {
    /// That of the store at `uri`; without one, each store is where its name says.
    ///
    /// # Errors
    /// [`StoreError`] for an address that Nix does not know, or of a store without files on this machine.
    pub fn of(uri: Option<&str>) -> Result<Self, StoreError> {
        uri.map(StoreUri::parse).transpose().map(Self)
    }

    /// The directory that the files are in of the store whose paths begin with `dir`.
    #[must_use]
    pub fn real_dir(&self, dir: &Path) -> PathBuf {
        self.0.as_ref().map_or_else(|| dir.to_owned(), |uri| uri.real_dir(dir))
    }

    /// The directory that the store's paths begin with, if the address names it.
    #[must_use]
    pub fn dir(&self) -> Option<PathBuf> {
        self.0.as_ref()?.logical_dir()
    }

    /// Where the state of a local store is that the address places elsewhere than usual, with its database.
    #[must_use]
    pub fn state_dir(&self) -> Option<PathBuf> {
        let usual = Path::new("");
        Some(self.0.as_ref()?.state_dir(usual)).filter(|dir| dir != usual)
    }

    /// The socket of the daemon, if the address names one.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        match &self.0.as_ref()?.kind {
            Kind::Daemon(uri) => {
                uri.strip_prefix("unix://").filter(|path| !path.is_empty()).map(PathBuf::from)
            }
            Kind::Auto | Kind::Local => None,
        }
    }

    /// Whether who hides all that this address names has hidden what `other` names.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let dir = other.usual_dir();
        let named = |own: Option<PathBuf>, other: Option<PathBuf>| other.is_none() || own == other;
        self.usual_dir() == dir
            && self.real_dir(&dir) == other.real_dir(&dir)
            && named(self.state_dir(), other.state_dir())
            && named(self.socket(), other.socket())
    }

    /// The directory that the store's paths begin with: Nix's usual one, if the address names none.
    #[must_use]
    pub fn usual_dir(&self) -> PathBuf {
        self.dir().unwrap_or_else(super::default_store_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_where_the_files_are() {
        for (uri, real) in [
            (None, "/nix/store"),
            (Some("auto"), "/nix/store"),
            (Some("daemon"), "/nix/store"),
            (Some("unix:///nonexistent"), "/nix/store"),
            (Some("unix:///nonexistent?root=/a"), "/a/nix/store"),
            (Some("daemon?real=/r"), "/r"),
            (Some("local?root=/a"), "/a/nix/store"),
            (Some("local?root=/a&real=/r"), "/r"),
            (Some("/a"), "/a/nix/store"),
        ] {
            let place = Place::of(uri).unwrap();
            assert_eq!(place.real_dir(Path::new("/nix/store")), Path::new(real), "{uri:?}");
            assert_eq!(place.dir(), None, "{uri:?}");
        }
        let other = Place::of(Some("local?store=/gnu/store")).unwrap();
        assert_eq!(other.dir(), Some("/gnu/store".into()));
        assert_eq!(other.usual_dir(), Path::new("/gnu/store"));
    }

    #[test]
    fn an_address_tells_where_the_state_is_and_the_daemon() {
        for (uri, state, socket) in [
            (None, None, None),
            (Some("auto"), None, None),
            (Some("local?root=/a"), Some("/a/nix/var/nix"), None),
            (Some("local?state=/s"), Some("/s"), None),
            (Some("unix:///run/nix.socket"), None, Some("/run/nix.socket")),
            (Some("daemon"), None, None),
        ] {
            let place = Place::of(uri).unwrap();
            assert_eq!(place.state_dir(), state.map(PathBuf::from), "{uri:?}");
            assert_eq!(place.socket(), socket.map(PathBuf::from), "{uri:?}");
        }
    }

    #[test]
    fn who_hides_a_store_hides_those_in_the_same_places() {
        for (own, other, expected) in [
            (None, Some("auto"), true),
            (None, Some("daemon"), true),
            (None, Some("unix:///s"), false),
            (Some("unix:///s"), Some("daemon"), true),
            (None, Some("local?root=/a"), false),
            (Some("/a"), Some("local?root=/a/"), true),
            (Some("/a"), Some("local"), false),
            (None, Some("local?state=/s"), false),
            (None, Some("local?real=/r"), false),
            (None, Some("local?store=/gnu/store"), false),
            (Some("local?store=/gnu/store"), Some("local?store=/gnu/store&trusted=1"), true),
        ] {
            let [own, other] = [own, other].map(|uri| Place::of(uri).unwrap());
            assert_eq!(own.covers(&other), expected, "{own:?} {other:?}");
        }
    }

    #[test]
    fn a_store_without_files_has_no_place() {
        for uri in ["https://cache.example.org", "ssh://host", "s3://bucket", "dummy://"] {
            assert!(matches!(Place::of(Some(uri)), Err(StoreError::Unsupported { .. })), "{uri}");
        }
        assert!(matches!(Place::of(Some("lokal")), Err(StoreError::UnknownUri { .. })));
    }
}
