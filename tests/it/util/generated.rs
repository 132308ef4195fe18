//! Closures of any shape: members that refer to random others, each reference in a file or a link.

use std::fs;
use std::os::unix::fs::symlink;

use super::random::Random;
use super::store::{Member, NixStore};

/// Members of a store, each with the numbers of those that it refers to. The first one is a root of all that it reaches.
#[derive(Debug)]
pub(crate) struct Generated {
    pub(crate) members: Vec<Member>,
    pub(crate) references: Vec<Vec<usize>>,
}

impl Generated {
    /// As many members as there are `names`, in `store`, each but the last one referring to one to `most` later ones.
    pub(crate) fn new(store: &NixStore, random: &mut Random, names: &[String], most: usize) -> Self {
        let count = names.len();
        let references: Vec<Vec<usize>> = (0..count)
            .map(|from| {
                // Never back: Nix refuses circles.
                let later = count - from - 1;
                let many = if later == 0 { 0 } else { 1 + random.below(most) };
                let mut to: Vec<usize> = (0..many).map(|_| from + 1 + random.below(later)).collect();
                to.sort_unstable();
                to.dedup();
                to
            })
            .collect();
        let members: Vec<Member> = names.iter().map(|name| NixStore::name(name)).collect();
        for (name, to) in names.iter().zip(&references) {
            store.put_in_place(name, |path| {
                fs::create_dir(path).unwrap();
                for to in to {
                    let target = &members[*to];
                    match random.below(3) {
                        0 => symlink(&target.path, path.join(format!("link-{to}"))).unwrap(),
                        1 => fs::write(path.join(format!("file-{to}")), &target.path).unwrap(),
                        _ => {
                            let far = "x".repeat(random.below(300_000));
                            fs::write(path.join(format!("far-{to}")), format!("{far}{}\n", target.base))
                                .unwrap();
                        }
                    }
                }
            });
        }
        let registered: Vec<Vec<&Member>> =
            references.iter().map(|to| to.iter().map(|to| &members[*to]).collect()).collect();
        let registered: Vec<(&Member, &[&Member])> =
            members.iter().zip(registered.iter().map(Vec::as_slice)).collect();
        store.register(&registered);
        Self { members, references }
    }

    /// The numbers of what `from` reaches, itself included.
    pub(crate) fn reached(&self, from: usize) -> std::collections::BTreeSet<usize> {
        let (mut seen, mut next) = (std::collections::BTreeSet::new(), vec![from]);
        while let Some(node) = next.pop() {
            if seen.insert(node) {
                next.extend(&self.references[node]);
            }
        }
        seen
    }
}
