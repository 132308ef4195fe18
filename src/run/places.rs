//! Where a directory can be seen: the mount table knows every place where its file system is mounted.
//!
//! A store that lies on `/home/nix` and is bound to `/nix` has two. Who hides it in one place only has hidden nothing.

use std::path::{Path, PathBuf};

use crate::mounts::Mount;

/// All places where the directory can be seen that `dir`, a path without links, leads to; `dir` first.
#[must_use]
pub(super) fn places(table: &[Mount], dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let Some(own) = topmost(table, dir) else { return all };
    let Some(inside) = inside(own, dir) else { return all };
    for mount in table.iter().filter(|mount| mount.device == own.device) {
        let Ok(below) = inside.strip_prefix(&mount.root) else { continue };
        let place = if below.as_os_str().is_empty() { mount.at.clone() } else { mount.at.join(below) };
        // Something else may be mounted over it.
        let is_seen = topmost(table, &place).is_some_and(|top| top.id == mount.id);
        if is_seen && !all.contains(&place) {
            all.push(place);
        }
    }
    all
}

/// Where something in the directory that `dir`, a path without links, leads to is mounted by itself, besides below `dir`: the place, and what
/// it is, as a path in `dir`.
#[must_use]
pub(super) fn parts(table: &[Mount], dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Some(own) = topmost(table, dir) else { return Vec::new() };
    let Some(inside) = inside(own, dir) else { return Vec::new() };
    let part = |mount: &Mount| {
        let below = mount.root.strip_prefix(&inside).ok()?;
        let is_part = !below.as_os_str().is_empty() && !mount.at.starts_with(dir);
        let is_seen = || topmost(table, &mount.at).is_some_and(|top| top.id == mount.id);
        (is_part && is_seen()).then(|| (mount.at.clone(), below.to_owned()))
    };
    table.iter().filter(|mount| mount.device == own.device).filter_map(part).collect()
}

/// Where else the directory `dir`, a path without links, can be seen, if it is on an overlay: in its layers.
#[must_use]
pub(super) fn layers(table: &[Mount], dir: &Path) -> Vec<PathBuf> {
    let Some(own) = topmost(table, dir) else { return Vec::new() };
    let Some(inside) = inside(own, dir) else { return Vec::new() };
    let below = inside.strip_prefix("/").unwrap_or(&inside);
    let join = |layer: &PathBuf| if below.as_os_str().is_empty() { layer.clone() } else { layer.join(below) };
    own.layers.iter().map(join).collect()
}

/// The mount that is seen at `path`: the last one of those that are mounted deepest.
fn topmost<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let deepest = |mount: &&Mount| mount.at.components().count();
    table.iter().filter(|mount| path.starts_with(&mount.at)).max_by_key(deepest)
}

/// `path` as a path within the file system of `mount`.
fn inside(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(&mount.at).ok()?;
    Some(if below.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::parse_all;

    fn all(table: &str, dir: &str) -> Vec<String> {
        let places = places(&parse_all(table.as_bytes()), Path::new(dir));
        places.iter().map(|place| place.to_str().unwrap().to_owned()).collect()
    }

    const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/a rw\n";

    #[test]
    fn a_directory_is_seen_wherever_its_file_system_is() {
        let bound = "2 1 8:1 /home/nix /nix rw - ext4 /dev/a rw\n";
        let whole = "3 1 8:1 / /mnt/all rw - ext4 /dev/a rw\n";
        let other = "4 1 8:2 / /mnt/b rw - ext4 /dev/b rw\n";
        let part = "5 1 8:1 /home/nix/store/x /opt/x rw - ext4 /dev/a rw\n";
        for (table, dir, expected) in [
            (ROOT.to_owned(), "/nix/store", vec!["/nix/store"]),
            ([ROOT, bound].concat(), "/nix/store", vec!["/nix/store", "/home/nix/store"]),
            (
                [ROOT, bound, whole].concat(),
                "/nix/store",
                vec!["/nix/store", "/home/nix/store", "/mnt/all/home/nix/store"],
            ),
            ([ROOT, other].concat(), "/nix/store", vec!["/nix/store"]),
            ([ROOT, bound, part].concat(), "/nix/store", vec!["/nix/store", "/home/nix/store"]),
            // The store itself is mounted over, as NixOS does, read-only.
            (
                [ROOT, "2 1 8:1 /nix/store /nix/store ro - ext4 /dev/a rw\n"].concat(),
                "/nix/store",
                vec!["/nix/store"],
            ),
            // What lies below the place that the bind came from is covered.
            (
                [ROOT, bound, "6 1 0:9 / /home/nix/store ro - tmpfs x rw\n"].concat(),
                "/nix/store",
                vec!["/nix/store"],
            ),
        ] {
            assert_eq!(all(&table, dir), expected, "{table}");
        }
        assert_eq!(all("", "/nix/store"), ["/nix/store"]);
    }

    #[test]
    fn parts_of_a_directory_are_seen_where_they_are_bound() {
        let bound = "2 1 8:1 /home/nix /nix rw - ext4 /dev/a rw\n";
        let part = "3 1 8:1 /home/nix/store/x/bin /opt/x rw - ext4 /dev/a rw\n";
        for (more, expected) in [
            ("", &[("/opt/x", "x/bin")][..]),
            ("4 1 8:1 /home/nix/store/y /nix/store/y rw - ext4 /dev/a rw\n", &[("/opt/x", "x/bin")]),
            ("4 1 8:1 /home/nix/stores/y /opt/y rw - ext4 /dev/a rw\n", &[("/opt/x", "x/bin")]),
            ("4 1 8:1 /home/nix/store/f /f rw - ext4 /dev/a rw\n", &[("/opt/x", "x/bin"), ("/f", "f")]),
            ("4 1 8:2 /home/nix/store/y /opt/y rw - ext4 /dev/b rw\n", &[("/opt/x", "x/bin")]),
            ("4 1 0:9 / /opt rw - tmpfs x rw\n5 3 0:8 / /opt/x rw - tmpfs x rw\n", &[]),
        ] {
            let table = [ROOT, bound, part, more].concat();
            let found = parts(&parse_all(table.as_bytes()), Path::new("/nix/store"));
            let expected: Vec<_> = expected.iter().map(|(at, part)| (at.into(), part.into())).collect();
            assert_eq!(found, expected, "{table}");
        }
    }

    #[test]
    fn layers_of_an_overlay_show_the_same() {
        let overlay = "2 1 0:40 / /nix/store rw - overlay overlay ro,lowerdir=/nix/.ro-store:/b\\134:c,upperdir=/nix/.rw-store/store,workdir=/nix/.rw-store/work\n";
        let whole = "1 0 0:41 / / rw - overlay overlay rw,lowerdir=/layers/1,upperdir=/layers/2,workdir=/w\n";
        for (table, expected) in [
            ([ROOT, overlay].concat(), &["/nix/.ro-store", "/b:c", "/nix/.rw-store/store"][..]),
            (whole.to_owned(), &["/layers/1/nix/store", "/layers/2/nix/store"]),
            (ROOT.to_owned(), &[]),
        ] {
            let found = layers(&parse_all(table.as_bytes()), Path::new("/nix/store"));
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{table}");
        }
    }
}
