//! What an earlier command has left in a layer.
//!
//! That command could write there, and may have been hostile: a link in the place of a directory would have this one change what it leads
//! to. So nothing is used before all of it was looked at.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::inside::PlaceError;
use crate::run::{LOG_DIR, STATE_DIR, UPPER, WORK};

/// Directories of Nix's state in which links are, to store paths and profiles.
const LINKS: [&str; 2] = ["gcroots", "profiles"];
/// Names in these that Nix takes for directories.
const DIRECTORIES: [&str; 3] = ["auto", "per-user", "view"];

/// Refuses a layer in which something is a link, a pipe, a device or somebody else's where a run leaves directories and files.
///
/// # Errors
/// [`PlaceError::Odd`], [`PlaceError::Make`].
pub(super) fn examine(place: &Path) -> Result<(), PlaceError> {
    for name in [UPPER, WORK, LOG_DIR] {
        is_own_directory(&place.join(name))?;
    }
    let state = place.join(STATE_DIR);
    is_own_directory(&state)?;
    let mut directories: Vec<PathBuf> = vec![state.clone()];
    while let Some(dir) = directories.pop() {
        let failed = |source| PlaceError::Make { path: dir.clone(), source };
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let found =
                path.symlink_metadata().map_err(|source| PlaceError::Make { path: path.clone(), source })?;
            let odd = |what| PlaceError::Odd { path: path.clone(), what };
            let name = path.file_name().unwrap_or_default();
            let is_for_links = dir != state && LINKS.iter().any(|links| path.starts_with(state.join(links)));
            match found.file_type() {
                kind if kind.is_symlink() && is_for_links && !DIRECTORIES.iter().any(|dir| name == *dir) => {}
                kind if kind.is_symlink() => return Err(odd("is a link")),
                kind if kind.is_fifo() || kind.is_socket() => return Err(odd("is a pipe or a socket")),
                kind if kind.is_char_device() || kind.is_block_device() => return Err(odd("is a device")),
                _ if found.uid() != own() => return Err(odd("belongs to somebody else")),
                kind if kind.is_dir() => directories.push(path),
                _ => {}
            }
        }
    }
    Ok(())
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_own_directory(path: &Path) -> Result<(), PlaceError> {
    let found =
        path.symlink_metadata().map_err(|source| PlaceError::Make { path: path.to_owned(), source })?;
    let what = match found.file_type() {
        kind if kind.is_symlink() => "is a link",
        kind if !kind.is_dir() => "is not a directory",
        _ if found.uid() != own() => "belongs to somebody else",
        _ => return Ok(()),
    };
    Err(PlaceError::Odd { path: path.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_run_does_not_leave_is_refused() {
        type Change = fn(&Path);
        let link = |path: &Path| symlink("/nonexistent", path).unwrap();
        let instead: Change = |path| {
            fs::remove_dir_all(path).unwrap();
            symlink("/tmp", path).unwrap();
        };
        let socket: Change = |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        for (at, change, refused) in [
            ("upper/x", link as Change, false),
            ("state/gcroots/auto/x", link, false),
            ("state/profiles/x", link, false),
            ("state/gcroots/per-user", link, true),
            ("state/x", link, true),
            ("state/db/schema", socket, true),
            ("upper", instead, true),
            ("work", instead, true),
            ("log", instead, true),
            ("state", instead, true),
            ("state/gcroots", instead, true),
            ("state/gcroots/auto", instead, true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for name in ["upper", "work", "log", "state/db", "state/gcroots/auto", "state/profiles"] {
                fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            examine(dir.path()).unwrap();
            change(&dir.path().join(at));
            let said = examine(dir.path());
            assert_eq!(said.is_err(), refused, "{at}");
            if let Err(error) = said {
                assert!(
                    matches!(&error, PlaceError::Odd { path, .. } if *path == dir.path().join(at)),
                    "{at}: {error}"
                );
            }
        }
    }
}
