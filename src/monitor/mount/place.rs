//! Where a path leads, as umount(8) finds it.
//!
//! Everything but the last component is followed, and the last one is followed as far as it is a link. What is mounted
//! at the end is not asked, so that the place of a mount whose server is dead or hangs can be named.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

/// Links that are followed at most, as in path_resolution(7).
const LINKS_MAX: usize = 40;

/// The absolute path without links that `path` leads to. The last component may be absent, but not the end of a link.
///
/// # Errors
/// Those of readlink(2), `NotFound` for a directory on the way or the end of a link, `ELOOP`.
pub fn place(path: &Path) -> io::Result<PathBuf> {
    walk(path, |absent| {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("'{}' does not exist", absent.display())))
    })
}

/// The same; directories above the last component that are absent are made and added to `made`, outermost first.
///
/// # Errors
/// Those of readlink(2) and mkdir(2), `NotFound` for the end of a link, `ELOOP`.
pub(super) fn make_above(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<PathBuf> {
    walk(path, |absent| {
        match std::fs::create_dir(absent) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => {
                other?;
                made.push(absent.to_owned());
            }
        }
        Ok(())
    })
}

fn walk(path: &Path, mut absent: impl FnMut(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
    let mut left = components(&std::path::absolute(path)?);
    // The others of what is left come from links.
    let mut given = left.len();
    let mut found = PathBuf::from("/");
    let mut links = 0;
    while let Some(component) = left.pop_front() {
        let of_link = left.len() >= given;
        given = given.min(left.len());
        if component == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&component);
        match std::fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if target.is_absolute() {
                    found = PathBuf::from("/");
                }
                let mut ahead = components(&target);
                ahead.append(&mut left);
                left = ahead;
            }
            // It is no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => found = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !of_link => {
                if !left.is_empty() {
                    absent(&next)?;
                }
                found = next;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The names of a path and `..`; a slash or a dot at the end says nothing.
fn components(path: &Path) -> VecDeque<OsString> {
    let named = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    named.map(|part| part.as_os_str().to_owned()).collect()
}

/// Removes the directories that were made for a view, innermost first, as far as nobody uses them.
pub(super) fn remove_made(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        // Somebody may have mounted or put something there since: that stays.
        let _ = std::fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_place_is_found_as_umount_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(dir.join("file"), "").unwrap();
        for (link, target) in [
            ("to-a", "a"),
            ("a/up", ".."),
            ("to-b", "to-a/b"),
            ("absolute", "/a"),
            ("dangling", "nowhere"),
            ("loop", "loop"),
        ] {
            let target = target.strip_prefix('/').map_or_else(|| target.into(), |target| dir.join(target));
            symlink(target, dir.join(link)).unwrap();
        }
        for (path, expected) in [
            ("a", Some("a")),
            ("a/", Some("a")),
            ("a/.", Some("a")),
            ("./a//b/", Some("a/b")),
            ("a/b/..", Some("a")),
            ("a/../a/b", Some("a/b")),
            ("to-a", Some("a")),
            ("to-a/", Some("a")),
            ("to-a/b", Some("a/b")),
            ("to-b", Some("a/b")),
            ("to-b/..", Some("a")),
            ("a/up/to-b", Some("a/b")),
            ("absolute/b", Some("a/b")),
            ("a/absent", Some("a/absent")),
            ("to-a/absent/", Some("a/absent")),
            ("file", Some("file")),
            ("absent/b", None),
            ("absent/..", None),
            ("file/b", None),
            ("dangling", None),
            ("loop", None),
        ] {
            let found = place(&dir.join(path));
            assert_eq!(
                found.as_ref().ok(),
                expected.map(|path| dir.join(path)).as_ref(),
                "{path}: {found:?}"
            );
        }
        assert_eq!(place(Path::new("/")).unwrap(), Path::new("/"));
        assert_eq!(place(Path::new("/..")).unwrap(), Path::new("/"));
        assert_eq!(place(Path::new(".")).unwrap(), std::env::current_dir().unwrap().canonicalize().unwrap());
    }

    #[test]
    fn directories_made_go_again_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir(dir.join("a")).unwrap();
        let mut made = Vec::new();
        symlink("nowhere", dir.join("dangling")).unwrap();
        assert_eq!(make_above(&dir.join("a/b/c/../d/e"), &mut made).unwrap(), dir.join("a/b/d/e"));
        assert!(make_above(&dir.join("dangling/b"), &mut made).is_err());
        assert_eq!(made, ["a/b", "a/b/c", "a/b/d"].map(|path| dir.join(path)));
        std::fs::write(dir.join("a/b/kept"), "").unwrap();
        remove_made(&made);
        assert!(dir.join("a/b/kept").exists() && !dir.join("a/b/c").exists() && !dir.join("a/b/d").exists());
        std::fs::remove_file(dir.join("a/b/kept")).unwrap();
        remove_made(&made);
        assert!(dir.join("a").exists() && !dir.join("a/b").exists());
    }
}
