//! The order of a walk: which file comes after a file.
//!
//! Responsibility: from a path to the files that follow it, in one of the two orders in which programs walk. Names of a directory
//! are in the order of a listing of the view.
//!
//! Invariants:
//! - Of directories at most [`LEVELS`] are remembered, with [`NAMES`] names in all. One that was left out is listed again when the walk
//!   comes back to it.
//! - A call lists at most [`STEPS`] directories.
//!
//! Pure: directories are listed by a [`Tree`].

use std::collections::VecDeque;

/// Directories on the way from the root that are remembered.
const LEVELS: usize = 16;
/// Names of the longest directory that is walked.
pub const LONGEST: usize = 1 << 16;
/// Names in those that are remembered.
const NAMES: usize = 2 * LONGEST;
/// Names that one call looks at: a tree may have any number of directories and no file.
const STEPS: usize = 1024;

/// In which order a program reads a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Each name in turn, and what is in a directory when its name comes: tar, grep -r, cp -r, Nix.
    #[default]
    InTurn,
    /// First all files, then the directories: rsync, most programs that list a directory and then descend.
    FilesFirst,
}

impl Order {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::InTurn => Self::FilesFirst,
            Self::FilesFirst => Self::InTurn,
        }
    }
}

/// What a name stands for, as far as a listing says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// The listing does not say.
    Unknown,
    /// Nothing that can be read or listed.
    Other,
}

/// A name in a directory.
pub type Listed = (Box<[u8]>, Kind);

/// Where directories are listed.
pub trait Tree {
    /// The names in the directory at `dir`, a path below the store directory (which is the empty path), in the order of a listing.
    /// None: it is no directory, or cannot be listed, or has more than [`LONGEST`] names.
    fn list(&mut self, dir: &[u8]) -> Option<Vec<Listed>>;
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The file at this path, as far as listings say.
    File(Box<[u8]>),
    /// Nothing was found yet.
    Later,
    /// The walk is at its end.
    End,
}

/// A place in a walk.
#[derive(Debug)]
pub struct Cursor {
    order: Order,
    /// Directories that the walk is in, the innermost last.
    levels: VecDeque<Level>,
    /// Where there is none: the walk has passed this path and all that is below it.
    passed: Box<[u8]>,
}

#[derive(Debug)]
struct Level {
    dir: Box<[u8]>,
    names: Vec<Listed>,
    next: usize,
}

impl Cursor {
    /// Behind the file at `path`.
    #[must_use]
    pub fn behind(path: &[u8], order: Order) -> Self {
        Self { order, levels: VecDeque::new(), passed: path.into() }
    }

    /// The next file.
    pub fn next(&mut self, tree: &mut impl Tree) -> Next {
        for _ in 0..STEPS {
            let Some(level) = self.levels.back_mut() else {
                if self.passed.is_empty() {
                    return Next::End;
                }
                self.enter_parent(tree);
                continue;
            };
            let Some((name, kind)) = level.names.get(level.next) else {
                self.passed = std::mem::take(&mut level.dir);
                self.levels.pop_back();
                continue;
            };
            level.next += 1;
            let kind = *kind;
            let path = join(&level.dir, name);
            match kind {
                Kind::File => return Next::File(path),
                Kind::Other => {}
                Kind::Directory | Kind::Unknown => match self.list(tree, &path) {
                    Some(names) => self.enter(Level { dir: path, names, next: 0 }),
                    None if kind == Kind::Unknown => return Next::File(path),
                    None => {}
                },
            }
        }
        Next::Later
    }

    /// Enters the directory that what was passed is in, behind it.
    fn enter_parent(&mut self, tree: &mut impl Tree) {
        let (dir, name) = split(&self.passed);
        let (dir, name): (Box<[u8]>, Box<[u8]>) = (dir.into(), name.into());
        let names = self.list(tree, &dir);
        let place = |names: &Vec<Listed>| names.iter().position(|(found, _)| *found == name);
        match names.and_then(|names| place(&names).map(|at| (names, at + 1))) {
            Some((names, next)) => self.enter(Level { dir, names, next }),
            // Gone meanwhile.
            None => self.passed = dir,
        }
    }

    fn enter(&mut self, level: Level) {
        let names = |levels: &VecDeque<Level>| levels.iter().map(|level| level.names.len()).sum::<usize>();
        while self.levels.len() >= LEVELS
            || !self.levels.is_empty() && names(&self.levels) + level.names.len() > NAMES
        {
            self.levels.pop_front();
        }
        self.levels.push_back(level);
    }

    fn list(&self, tree: &mut impl Tree, dir: &[u8]) -> Option<Vec<Listed>> {
        let mut names = tree.list(dir)?;
        if self.order == Order::FilesFirst {
            names.sort_by_key(|(_, kind)| *kind != Kind::File);
        }
        Some(names)
    }
}

/// Directory and name of a path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.split_at_checked(at)) {
        Some((dir, name)) => (dir, name.get(1..).unwrap_or_default()),
        None => (b"", path),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Box<[u8]> {
    if dir.is_empty() { name.into() } else { [dir, b"/", name].concat().into() }
}

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
