//! What the kernel of the model asks of the server, and what the answers have to be.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;

use super::host::MEMBERS;
use super::kernel::{Kernel, Open, Pending, Stream, TOP, choose};
use super::steps::{ERRORS, Step};
use crate::view::FsError;
use crate::view::trie::{NodeId, ROOT};

impl Kernel {
    pub(super) fn lookup(&mut self, dir: u32, name: &str, later: bool) -> Result<(), TestCaseError> {
        let on_the_way = |p: &Pending| p.dentry == dir && p.name == name;
        if self.child(dir, name).is_some() || self.pending.iter().any(on_the_way) {
            return Ok(());
        }
        if self.absent.contains(&(dir, name.to_owned())) {
            prop_assert!(
                !self.is_there(dir, name) || self.repair.is_some(),
                "{:?} is cached as absent",
                name
            );
            return Ok(());
        }
        let parent = self.dentries[&dir].inode;
        let (answer, failed) = self.ask(|view| view.lookup(parent, name.as_bytes()));
        let place = self.path(dir);
        if failed && matches!(answer, Err(FsError::Backing(_))) {
            return Ok(());
        }
        let should_be = self.children(dir).iter().any(|child| child == name);
        let there = self.is_there(dir, name) && self.is_shown(dir) && (dir != TOP || should_be);
        if !there {
            prop_assert!(
                matches!(answer, Err(FsError::Absent | FsError::AbsentNow)),
                "{:?}: {:?}",
                name,
                answer
            );
            if answer == Err(FsError::Absent) {
                let lost =
                    place.as_ref().is_some_and(|dir| self.lost.contains(&self.physical(dir).join(name)));
                prop_assert!(!should_be || lost, "{:?} in {:?} is cached as absent", name, place);
                self.absent.insert((dir, name.to_owned()));
            }
            return Ok(());
        }
        prop_assert!(answer.is_ok(), "{:?} in {:?}: {:?}", name, place, answer);
        let node = answer.unwrap();
        if later {
            self.dentries.get_mut(&dir).unwrap().users += 1;
            self.pending.push(Pending { dentry: dir, name: name.to_owned(), node });
            return Ok(());
        }
        self.accept(dir, name, node)?;
        let child = self.child(dir, name).unwrap();
        let path = self.path(child).unwrap();
        self.check(node, &path)
    }

    pub(super) fn list(&mut self, at: usize, room: usize, fails: u8) -> Result<(), TestCaseError> {
        let Stream { dentry, offset, .. } = self.streams[at];
        if !self.is_shown(dentry) || self.streams[at].done {
            return Ok(());
        }
        if offset == 0 {
            self.streams[at].expected = self.with_dots(dentry);
            self.streams[at].possible = self.with_dots(dentry);
        }
        let inode = self.dentries[&dentry].inode;
        let mut told = Vec::new();
        let (answer, failed) = self.ask(|view| {
            view.list(inode, offset, |entry| {
                if told.len() == room {
                    return false;
                }
                told.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.node, entry.next));
                true
            })
        });
        match answer {
            Ok(believed) => {
                prop_assert!(
                    believed || self.damaged || failed || !self.streams[at].believed,
                    "the listing of {:?} is not cached",
                    self.path(dentry)
                );
                self.streams[at].believed &= believed;
            }
            Err(FsError::Backing(_)) if failed => {
                prop_assert!(told.is_empty(), "an error takes back what was told");
                return Ok(());
            }
            Err(error) => {
                let there = self.path(dentry).is_none_or(|path| self.physical(&path).is_dir());
                prop_assert!(!there, "a listing of {:?}: {:?}", self.path(dentry), error);
                return Ok(());
            }
        }
        self.streams[at].done = told.is_empty();
        for (number, (name, node, next)) in told.into_iter().enumerate() {
            self.streams[at].offset = next;
            self.streams[at].seen.push(name.clone());
            if name == "." || name == ".." {
                continue;
            }
            if fails >> (number % 8) & 1 == 1 {
                self.forgets.push((node.id, 1));
            } else {
                self.accept(dentry, &name, node)?;
                if let Some(path) = self.child(dentry, &name).and_then(|child| self.path(child)) {
                    self.check(node, &path)?;
                }
            }
        }
        if self.streams[at].done {
            let stream = &self.streams[at];
            if !stream.believed {
                return Ok(());
            }
            let seen: BTreeSet<String> = stream.seen.iter().cloned().collect();
            prop_assert_eq!(seen.len(), stream.seen.len(), "listed twice: {:?}", &stream.seen);
            let missing =
                stream.expected.iter().find(|name| !seen.contains(*name) && self.is_there(dentry, name));
            prop_assert!(
                missing.is_none() || self.repair.is_some(),
                "{:?} is missing in {:?}",
                missing,
                seen
            );
            prop_assert!(seen.is_subset(&stream.possible), "{:?} is more than {:?}", seen, stream.possible);
        }
        Ok(())
    }

    pub(super) fn examine(&mut self, inode: NodeId, path: &(usize, PathBuf)) -> Result<(), TestCaseError> {
        let physical = self.physical(path);
        let there = physical.symlink_metadata().is_ok();
        let (node, failed) = self.ask(|view| view.getattr(inode));
        match node {
            // Lost by this name, and known by another one of the same file.
            Ok(_) if !there => {
                prop_assert!(self.damaged, "attributes of {:?}, which is gone", path);
                return Ok(());
            }
            Ok(node) => self.check(node, path)?,
            Err(FsError::Backing(_)) if failed => return Ok(()),
            // The file may be known by another of its names, which is lost.
            Err(FsError::Absent | FsError::AbsentNow) if !there || self.damaged => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(format!("attributes of {path:?}: {error:?}"))),
        }
        if physical.is_symlink() {
            let target = std::fs::read_link(physical).unwrap().into_os_string().into_encoded_bytes();
            prop_assert_eq!(self.view.readlink(inode).map(|link| link.target), Ok(target));
        } else if physical.is_file() {
            let mut buffer = vec![0; 4096];
            let read = self.view.read(inode, 0, &mut buffer);
            prop_assert!(read.is_ok(), "reading {:?}: {:?}", path, read);
            prop_assert_eq!(
                &buffer[..read.unwrap().len],
                &std::fs::read(physical).unwrap()[..],
                "{:?}",
                path
            );
        }
        Ok(())
    }

    pub(super) fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Lookup { dir, name, later } => {
                let dirs = self.directories();
                let dir = dirs[choose(dir, dirs.len()).unwrap()];
                let mut names = self.children(dir);
                names.sort();
                names.push("absent".to_owned());
                let name = names[choose(name, names.len()).unwrap()].clone();
                self.lookup(dir, &name, later)?;
            }
            Step::Reply { which, fails } => {
                let Some(which) = choose(which, self.pending.len()) else { return Ok(()) };
                let Pending { dentry, name, node } = self.pending.remove(which);
                if fails {
                    self.forgets.push((node.id, 1));
                } else {
                    self.accept(dentry, &name, node)?;
                }
                self.dentries.get_mut(&dentry).unwrap().users -= 1;
            }
            Step::OpenDir { dir } => {
                let dirs = self.directories();
                let dentry = dirs[choose(dir, dirs.len()).unwrap()];
                self.dentries.get_mut(&dentry).unwrap().users += 1;
                self.streams.push(Stream::new(dentry));
            }
            Step::List { stream, room, fails } => {
                let Some(at) = choose(stream, self.streams.len()) else { return Ok(()) };
                self.list(at, room.into(), fails)?;
            }
            Step::Rewind { stream } => {
                let Some(at) = choose(stream, self.streams.len()) else { return Ok(()) };
                self.streams[at] = Stream::new(self.streams[at].dentry);
            }
            Step::CloseDir { stream } => {
                let Some(at) = choose(stream, self.streams.len()) else { return Ok(()) };
                let dentry = self.streams.remove(at).dentry;
                self.dentries.get_mut(&dentry).unwrap().users -= 1;
            }
            Step::Open { file } => {
                let files = self.files();
                let Some(file) = choose(file, files.len()) else { return Ok(()) };
                self.dentries.get_mut(&files[file]).unwrap().users += 1;
                self.open.push(Open::File { dentry: files[file] });
            }
            Step::OpenByHandle { file } => {
                let files = self.files();
                let Some(file) = choose(file, files.len()) else { return Ok(()) };
                let (inode, path) = (self.dentries[&files[file]].inode, self.path(files[file]).unwrap());
                self.inodes.get_mut(&inode).unwrap().users += 1;
                self.open.push(Open::Handle { inode, path });
            }
            Step::Close { file } => {
                let Some(file) = choose(file, self.open.len()) else { return Ok(()) };
                match self.open.remove(file) {
                    Open::File { dentry } => self.dentries.get_mut(&dentry).unwrap().users -= 1,
                    Open::Handle { inode, .. } => self.leave(inode),
                }
            }
            Step::Shrink { dentry } => {
                let unused = self.unused();
                let Some(at) = choose(dentry, unused.len()) else { return Ok(()) };
                self.shrink(unused[at]);
            }
            Step::ShrinkAll { keep } => {
                let kept =
                    choose(keep, self.dentries.len()).and_then(|at| self.dentries.keys().nth(at).copied());
                while let Some(gone) = self.unused().into_iter().find(|id| Some(*id) != kept) {
                    self.shrink(gone);
                }
            }
            Step::Forget { which } => {
                if let Some(at) = choose(which, self.forgets.len()) {
                    self.deliver(at);
                }
            }
            Step::ForgetAll { reverse } => {
                while !self.forgets.is_empty() {
                    self.deliver(if reverse { self.forgets.len() - 1 } else { 0 });
                }
            }
            Step::Invalidate { dentry } => {
                let all: Vec<u32> = self.dentries.keys().copied().filter(|id| *id != TOP).collect();
                if let Some(at) = choose(dentry, all.len()) {
                    self.invalidate(all[at]);
                }
            }
            Step::Examine { held } => {
                let dentries: Vec<u32> = self.dentries.keys().copied().filter(|id| *id != TOP).collect();
                let Some(at) = choose(held, dentries.len() + self.open.len()) else { return Ok(()) };
                let (inode, path) = match dentries.get(at) {
                    Some(dentry) => (self.dentries[dentry].inode, self.path(*dentry).unwrap()),
                    None => match &self.open[at - dentries.len()] {
                        Open::File { dentry } => (self.dentries[dentry].inode, self.path(*dentry).unwrap()),
                        Open::Handle { inode, path } => (*inode, path.clone()),
                    },
                };
                self.examine(inode, &path)?;
            }
            Step::Switch { shown } => {
                self.switch((0..MEMBERS.len()).filter(|n| shown >> n & 1 == 1).collect());
            }
            Step::Kill { lost } => self.kill(lost.into()),
            Step::Rewrite => self.view.rewrite_journal(),
            Step::Fault { number, all, errno } => {
                let number = usize::from(number);
                let end = if all { usize::MAX } else { number + 1 };
                self.fault = Some((number..end, ERRORS[choose(errno, ERRORS.len()).unwrap()]));
            }
            Step::Damage { file } => self.damage(file),
            Step::Repair { renaming } => self.go_on_repairing(renaming),
            Step::Optimise { group } => self.optimise(group),
        }
        self.invalidate_stale();
        Ok(())
    }

    /// Everything that the kernel holds is what it was, and once it holds nothing, neither does the server.
    pub(super) fn finish(mut self) -> Result<(), TestCaseError> {
        self.fault = None;
        for dentry in self.dentries.keys().copied().filter(|id| *id != TOP).collect::<Vec<_>>() {
            self.examine(self.dentries[&dentry].inode, &self.path(dentry).unwrap())?;
        }
        for step in
            [Step::Reply { which: 0, fails: true }, Step::CloseDir { stream: 0 }, Step::Close { file: 0 }]
        {
            for _ in 0..self.pending.len().max(self.streams.len()).max(self.open.len()) {
                self.run(&step)?;
            }
        }
        while let Some(gone) = self.unused().first().copied() {
            self.shrink(gone);
        }
        prop_assert_eq!(self.dentries.len(), 1);
        self.run(&Step::ForgetAll { reverse: false })?;
        if !self.killed {
            let members = self.ever.keys().filter(|id| self.view.trie().parent(**id) == Some(ROOT)).count();
            prop_assert!(
                self.view.trie().len() >= members && self.view.trie().len() <= MEMBERS.len(),
                "nodes are left"
            );
        }
        Ok(())
    }
}
