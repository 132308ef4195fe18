//! The host of the model: a small store, and how it is damaged, repaired and optimised.

use std::path::{Path, PathBuf};

use super::kernel::{Kernel, choose};
use super::steps::Pick;
use crate::view::backing::tests::settle;

pub(super) const MEMBERS: [&str; 4] = [
    "00000000000000000000000000000000-a",
    "00000000000000000000000000000000-b",
    "00000000000000000000000000000000-file",
    "00000000000000000000000000000000-link",
];

/// Names of one file each, by member: what `nix-store --optimise` makes of identical files.
pub(super) const GROUPS: [&[(usize, &str)]; 2] = [
    &[(0, "A/f"), (0, "B/f"), (0, "A2/f"), (0, "A/sub/f"), (1, "x/f"), (1, "y/f")],
    &[(0, "A/g"), (0, "B/deep/er/g"), (0, "g")],
];

pub(super) fn make_tree(store: &Path) {
    let at = |member: usize, name: &str| store.join(MEMBERS[member]).join(name);
    let write = |path: &Path, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (number, names) in GROUPS.iter().enumerate() {
        let (member, first) = names[0];
        let first = at(member, first);
        write(&first, &format!("contents of group {number}, {}", "x".repeat(100 * number)));
        for (member, name) in &names[1..] {
            let path = at(*member, name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::hard_link(&first, path).unwrap();
        }
    }
    for name in ["A/own", "B/own", "B/deep/own", "wide/1", "wide/2", "wide/3", "wide/4", "wide/5"] {
        write(&at(0, name), name);
    }
    write(&at(1, "z"), "z");
    std::os::unix::fs::symlink("f", at(0, "A/link")).unwrap();
    std::os::unix::fs::symlink("../A/g", at(0, "B/link")).unwrap();
    std::fs::write(store.join(MEMBERS[2]), "a file").unwrap();
    std::os::unix::fs::symlink(MEMBERS[0], store.join(MEMBERS[3])).unwrap();
    settle(store);
}

impl Kernel {
    pub(super) fn first_names(&self) -> Vec<PathBuf> {
        fn walk(top: &Path, at: &Path, all: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(top.join(at)).unwrap() {
                let entry = entry.unwrap();
                let path = at.join(entry.file_name());
                match entry.file_type().unwrap().is_dir() {
                    true => walk(top, &path, all),
                    false => all.push(path),
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.intact.join(MEMBERS[0]), Path::new(""), &mut all);
        all.sort();
        all
    }

    /// Something in the first member is not as it should be, or was not a moment ago.
    fn change(&mut self) {
        (self.damaged, self.exact) = (true, false);
        // A position is the number of names before it: it means another name when names come or go.
        self.streams.iter_mut().for_each(|stream| stream.believed = false);
    }

    /// Removes a file and lets its directory look as if nothing had happened.
    pub(super) fn damage(&mut self, file: Pick) {
        let files = self.first_names();
        let victim = self.store.join(MEMBERS[0]).join(&files[choose(file, files.len()).unwrap()]);
        if self.repair.is_none() && std::fs::remove_file(&victim).is_ok() {
            settle(victim.parent().unwrap());
            self.change();
            self.lost.insert(victim);
        }
    }

    /// One step of a repair: in place as `LocalStore::addToStore`, or by renaming as `replaceValidPath`.
    pub(super) fn go_on_repairing(&mut self, renaming: bool) {
        let (done, renaming) = self.repair.unwrap_or((0, renaming));
        let (top, old) = (self.store.join(MEMBERS[0]), self.store.join(".old"));
        let remove_half = |top: &Path, files: &[PathBuf]| {
            files.iter().step_by(2).for_each(|file| drop(std::fs::remove_file(top.join(file))));
        };
        self.change();
        if done == 0 {
            wait_for_another_birth(&top);
        }
        let copy = |half: bool| {
            for file in self.first_names().iter().skip(usize::from(half) * 3) {
                let (from, to) = (self.intact.join(MEMBERS[0]).join(file), top.join(file));
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                if from.is_symlink() {
                    let _ = std::os::unix::fs::symlink(std::fs::read_link(from).unwrap(), to);
                } else {
                    let text = std::fs::read(from).unwrap();
                    std::fs::write(to, &text[..if half { text.len() / 2 } else { text.len() }]).unwrap();
                }
            }
        };
        match (done, renaming) {
            (0, false) => remove_half(&top, &self.first_names()),
            (1, false) => std::fs::remove_dir_all(&top).unwrap(),
            (2, false) => copy(true),
            (3, false) => copy(false),
            (0, true) => {
                std::fs::rename(&top, &old).unwrap();
                copy(false);
                settle(&top);
            }
            (1, true) => remove_half(&old, &self.first_names()),
            (_, true) => std::fs::remove_dir_all(&old).unwrap(),
            (_, false) => settle(&top),
        }
        let end = done >= if renaming { 2 } else { 4 };
        self.repair = (!end).then_some((done + 1, renaming));
        match (done, renaming) {
            // The events of the store directory.
            (1, false) => self.view.check_member(MEMBERS[0].as_bytes(), false),
            (2, false) | (0, true) => self.view.check_member(MEMBERS[0].as_bytes(), true),
            _ => {}
        }
        if end {
            self.damaged = false;
            self.lost.clear();
        }
    }

    /// The optimiser replaces names by links to one file, and sets the directory's time again.
    pub(super) fn optimise(&mut self, group: Pick) {
        let names = GROUPS[choose(group, GROUPS.len()).unwrap()];
        let there =
            names.iter().filter(|(member, name)| self.store.join(MEMBERS[*member]).join(name).exists());
        let there: Vec<_> = there.collect();
        let Some((member, first)) = there.first().filter(|_| self.repair.is_none()) else { return };
        let link = self.store.join(".tmp-link");
        std::fs::write(&link, std::fs::read(self.store.join(MEMBERS[*member]).join(first)).unwrap()).unwrap();
        settle(&link);
        for (member, name) in there {
            let (target, next) = (self.store.join(MEMBERS[*member]).join(name), self.store.join(".tmp-next"));
            std::fs::hard_link(&link, &next).unwrap();
            std::fs::rename(next, &target).unwrap();
            let one = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: one, last_modification: one };
            let dir = target.parent().unwrap();
            rustix::fs::utimensat(rustix::fs::CWD, dir, &times, rustix::fs::AtFlags::empty()).unwrap();
        }
        std::fs::remove_file(link).unwrap();
        self.exact = false;
    }
}

/// Waits until what is made has another time of birth than `earlier`: file systems count it in ticks of the clock, of some
/// milliseconds. A store path is not repaired so soon after it was made, but here it is.
fn wait_for_another_birth(earlier: &Path) {
    let born = |path: &Path| path.symlink_metadata().unwrap().created().ok();
    let probe = || tempfile::NamedTempFile::new_in(earlier.parent().unwrap()).unwrap();
    let earlier = born(earlier);
    while earlier.is_some() && born(probe().path()) == earlier {}
}
