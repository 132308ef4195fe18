//! Closures that tests make.

use super::Closure;
use crate::values::{PathInfo, StorePath};

/// The path of this number.
pub(super) fn path(n: usize) -> StorePath {
    named(n, &format!("p{n}"))
}

/// The path of this number and name.
pub(super) fn named(n: usize, name: &str) -> StorePath {
    StorePath::new(&format!("{n:032}-{name}")).unwrap()
}

/// A path of which nothing is known but its size and what it refers to.
pub(super) fn info(path: StorePath, nar_size: u64, references: Vec<StorePath>) -> PathInfo {
    PathInfo {
        path,
        nar_hash: String::new(),
        nar_size,
        references,
        deriver: None,
        registration_time: 0,
        signatures: Vec::new(),
        ca: None,
        ultimate: false,
    }
}

/// A closure of members with sizes and references, by number.
pub(super) fn closure(members: &[(u64, Vec<usize>)], roots: &[usize]) -> Closure {
    let paths = |numbers: &[usize]| numbers.iter().copied().map(path).collect();
    let infos =
        members.iter().enumerate().map(|(n, (size, references))| info(path(n), *size, paths(references)));
    Closure::new(paths(roots), infos).unwrap()
}
