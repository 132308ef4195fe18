//! What a Nix finds that runs where the store is a view with a layer of its own on top: a database in which valid is what the view
//! shows, with all that the machine's store knows of it, and what that Nix has built into its layer.
//!
//! Invariants: after [`Inside::bring_up_to`] each valid path has its files, all of them, in the view or in the layer, and so has all that it
//! refers to. A member of the closure is the view's: the layer has nothing by its name. The roots of the closure are roots of the garbage
//! collector in there.
//!
//! The layer is the upper directory of an overlay that is not mounted now. Hard points, where it was used with another view before:
//! 1. What was deleted in there has a *whiteout* in the layer: a character device 0:0, which hides what the view has by that name.
//! 2. A directory that was changed in there has a copy in the layer that holds only what was changed; the rest is the view's. Without that
//!    view it is no store object. overlayfs marks such a copy with the extended attribute `overlay.origin` (Linux
//!    `fs/overlayfs/copy_up.c`, `ovl_set_origin_fh`), also where the lower file system has no file handles.
//! 3. What was built in there may be in the view now, with other contents: an overlay would mix the two. What was built on top of
//!    it is no longer valid either.
//! 4. Directories in the layer are read-only, as Nix makes them, and whoever removes them may be an ordinary user.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::Closure;
use crate::store::{Database, DatabaseError};
use crate::values::{PathInfo, StorePath};

/// Where the roots of the closure are, below Nix's state directory.
const ROOTS: &str = "gcroots/view";
/// How overlayfs marks what it has copied from the lower layer: mounted with `userxattr`, and without.
const COPIED: [&str; 2] = ["user.overlay.origin", "trusted.overlay.origin"];

/// The directories that make up a place for Nix.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// What store paths begin with.
    pub store_dir: &'a Path,
    /// Where the files of the closure are, on this machine. Only derivations are read.
    pub files: &'a Path,
    /// Nix's state directory, by its real path. It is made if it does not exist.
    pub state: &'a Path,
    /// The upper directory of the overlay, which is not mounted; none: nothing was built yet.
    pub layer: Option<&'a Path>,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brought {
    /// How many members were registered, or registered again.
    pub registered: usize,
    /// What is no longer valid, sorted: neither the view nor the layer has it, or all that it refers to, with the same contents.
    pub dropped: Vec<StorePath>,
    /// How many entries were removed from the layer.
    pub removed: usize,
}

/// Why there is no place for Nix.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The layer, or the links to the roots.
    #[error("cannot {action} '{}', which Nix needs in the sandbox: check permissions and free space, or begin with an empty directory", .path.display())]
    File {
        /// What was to be done, as in "cannot read".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it cannot.
        #[source]
        source: io::Error,
    },
}

impl Inside<'_> {
    /// Makes the database, the layer and the roots those of `closure`. What was built in the layer stays valid if what it refers
    /// to is.
    ///
    /// # Errors
    /// [`InsideError`]. It may be repeated.
    pub fn bring_up_to(&self, closure: &Closure) -> Result<Brought, InsideError> {
        // Locks the directory; so it comes before anything is changed.
        let database = Database::open(self.store_dir, self.state)?;
        let layer = self.clean(closure)?;
        let valid = database.valid()?;
        let member = |path: &StorePath| closure.members.get(path);
        let dropped = database.keep(&valid, |info| match member(&info.path) {
            Some(shown) => is_same(shown, info),
            None => layer.built.contains(&info.path),
        })?;
        let kept: BTreeMap<&StorePath, &PathInfo> = valid
            .iter()
            .filter(|info| !dropped.contains(&info.path))
            .map(|info| (&info.path, info))
            .collect();
        let is_new = |info: &PathInfo| !kept.get(&info.path).is_some_and(|known| is_known(info, known));
        let members: Vec<&PathInfo> = closure.members().collect();
        database.register(&members, is_new, self.files)?;
        self.hold(closure.roots())?;
        Ok(Brought {
            registered: members.iter().filter(|info| is_new(info)).count(),
            dropped: dropped.into_iter().filter(|path| member(path).is_none()).cloned().collect(),
            removed: layer.removed,
        })
    }

    /// Removes from the layer what would hide a member, or mix with it, and what is half of an object.
    fn clean(&self, closure: &Closure) -> Result<Layer, InsideError> {
        let mut layer = Layer::default();
        let Some(dir) = self.layer else { return Ok(layer) };
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(layer),
            entries => entries.map_err(failed("read", dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(failed("read", dir))?;
            let Some(path) = entry.file_name().to_str().and_then(|name| StorePath::new(name).ok()) else {
                continue;
            };
            let at = entry.path();
            let status = entry.metadata().map_err(failed("examine", &at))?;
            let is_member = closure.members.contains_key(&path);
            if is_member || status.is_dir() && is_copy(&at).map_err(failed("examine", &at))? {
                remove(&at).map_err(failed("remove", &at))?;
                layer.removed += 1;
            } else if !(status.file_type().is_char_device() && status.rdev() == 0) {
                layer.built.insert(path);
            }
        }
        Ok(layer)
    }

    /// Has the garbage collector keep `roots`, and no roots of an earlier view.
    fn hold(&self, roots: &[StorePath]) -> Result<(), InsideError> {
        let dir = self.state.join(ROOTS);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &dir)(error));
            }
            _ => fs::create_dir_all(&dir).map_err(failed("make", &dir))?,
        }
        for root in roots {
            let link = dir.join(root.as_str());
            symlink(self.store_dir.join(root.as_str()), &link).map_err(failed("make", &link))?;
        }
        Ok(())
    }
}

/// Moves a state directory that no Nix uses now to `to`, an empty directory that may be on another file system: from where Nix's library can
/// make it, a directory with a real path of its own, to memory that only the sandbox sees. Times and owners are not kept.
///
/// # Errors
/// [`InsideError::File`]. What is left of either directory is then of no use.
pub fn move_state(from: &Path, to: &Path) -> Result<(), InsideError> {
    let mut directories = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = directories.pop() {
        for entry in fs::read_dir(&from).map_err(failed("read", &from))? {
            let entry = entry.map_err(failed("read", &from))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let status = entry.metadata().map_err(failed("examine", &source))?;
            if status.is_dir() {
                fs::create_dir(&target).map_err(failed("make", &target))?;
                directories.push((source, target));
            } else if status.is_symlink() {
                let link = fs::read_link(&source).map_err(failed("read", &source))?;
                symlink(link, &target).map_err(failed("make", &target))?;
            } else if entry.file_name() == Database::RESERVED {
                let made = fs::File::create_new(&target).and_then(|file| file.set_len(status.len()));
                made.map_err(failed("make", &target))?;
            } else {
                fs::copy(&source, &target).map_err(failed("copy", &source))?;
            }
        }
    }
    fs::remove_dir_all(from).map_err(failed("remove", from))
}

/// What the layer holds.
#[derive(Debug, Default)]
struct Layer {
    /// Whole objects, valid or not.
    built: BTreeSet<StorePath>,
    removed: usize,
}

/// Whether both are the same object.
fn is_same(one: &PathInfo, other: &PathInfo) -> bool {
    (&one.nar_hash, one.nar_size, &one.references) == (&other.nar_hash, other.nar_size, &other.references)
}

/// Whether the database has all of `info` that can be corrected, of the same object. When and by what it was made stays as it was
/// registered first.
fn is_known(info: &PathInfo, known: &PathInfo) -> bool {
    let signatures = |info: &PathInfo| info.signatures.iter().cloned().collect::<BTreeSet<_>>();
    (&info.ca, info.ultimate) == (&known.ca, known.ultimate) && signatures(info) == signatures(known)
}

/// Whether overlayfs has copied this directory from the lower layer.
fn is_copy(dir: &Path) -> io::Result<bool> {
    for name in COPIED {
        match rustix::fs::lgetxattr(dir, name, &mut [0_u8; 0]) {
            Ok(_) => return Ok(true),
            // The second: file systems without extended attributes, on which no such overlay can be mounted either.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Removes a file or a tree, in which directories may be read-only.
fn remove(top: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(top)?.is_dir() {
        return fs::remove_file(top);
    }
    let mut directories = vec![top.to_owned()];
    while let Some(dir) = directories.pop() {
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            // Of the entry itself: a link is followed neither here nor below.
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(top)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InsideError {
    let path = path.to_owned();
    move |source| InsideError::File { action, path, source }
}

#[cfg(test)]
#[path = "inside_tests.rs"]
mod tests;
