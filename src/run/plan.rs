//! What a command is to see besides the view, as steps. No call is made here.

use std::path::{Path, PathBuf};

/// Whether what is bound can be written, as far as it can outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As outside.
    Same,
    /// It cannot be changed.
    ReadOnly,
}

/// Something that the command is to see in a place of its own. What comes later lies over what came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A file or directory of outside.
    Bind {
        /// Where it is outside.
        from: PathBuf,
        /// Where it is to be seen.
        at: PathBuf,
        /// Whether it can be written.
        access: Access,
    },
    /// An empty directory whose files are in memory.
    Tmpfs(PathBuf),
}

impl Wish {
    /// Where it is to be seen.
    #[must_use]
    pub fn at(&self) -> &Path {
        match self {
            Self::Bind { at, .. } | Self::Tmpfs(at) => at,
        }
    }
}

/// How a mount point that does not exist comes to be, for nothing is made on a file system that the command shares with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Making {
    /// It is there.
    Exists,
    /// It is made in a file system that is the command's own.
    Make,
    /// This directory, which is there, is replaced by one of the command's own that shows the same, and then it is made.
    Replace(PathBuf),
}

/// How the mount point `at` comes to be, where `exists` tells what is there, and what is mounted at the paths `owned` is the
/// command's own, and at `others` somebody else's.
#[must_use]
pub(super) fn making(
    at: &Path,
    exists: impl Fn(&Path) -> bool,
    owned: &[PathBuf],
    others: &[PathBuf],
) -> Making {
    if exists(at) {
        return Making::Exists;
    }
    let nearest = at.ancestors().skip(1).find(|above| exists(above)).unwrap_or(Path::new("/"));
    let depth = |path: &&PathBuf| path.components().count();
    let deepest =
        |all: &[PathBuf]| all.iter().filter(|path| nearest.starts_with(path)).map(|path| depth(&path)).max();
    if deepest(owned) > deepest(others) { Making::Make } else { Making::Replace(nearest.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_on_a_file_system_of_others() {
        let there = ["/", "/nix", "/usr", "/tmp", "/tmp/a"];
        let exists = |path: &Path| there.iter().any(|there| path == Path::new(there));
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        for (at, owned, others, expected) in [
            ("/nix", &[][..], &[][..], Making::Exists),
            ("/nix/store", &[], &[], Making::Replace("/nix".into())),
            ("/work/a", &[], &[], Making::Replace("/".into())),
            ("/nix/store", &["/nix"], &[], Making::Make),
            ("/nix/a/b", &["/"], &["/nix"], Making::Replace("/nix".into())),
            ("/tmp/a/b", &["/tmp"], &["/tmp/a"], Making::Replace("/tmp/a".into())),
            ("/tmp/b/c", &["/tmp"], &["/tmp/a"], Making::Make),
            ("/work", &["/"], &["/usr"], Making::Make),
        ] {
            assert_eq!(making(Path::new(at), exists, &paths(owned), &paths(others)), expected, "{at}");
        }
    }
}
