//! Systems to change between: a store, and a profile that leads to one of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::load::{self, Load};
use super::service::Service;
use super::store::{Member, NixStore};

/// A store with systems that share something, and a profile that leads to one of them.
pub(crate) struct Systems {
    pub(crate) store: NixStore,
    /// In every system.
    pub(crate) shared: Vec<Member>,
    pub(crate) busybox: Member,
    /// A system, and what only it has.
    pub(crate) systems: Vec<(Member, Member)>,
    pub(crate) link: PathBuf,
}

impl Systems {
    pub(crate) fn new(count: usize) -> Self {
        let store = NixStore::new();
        let busybox = load::add_busybox(&store);
        let mut shared = vec![busybox.clone(), load::add_many(&store, 500)];
        for number in 0..20 {
            shared.push(store.add_in_place(&format!("shared-{number}"), &[], |path| {
                fs::create_dir(path).unwrap();
                fs::write(path.join("number"), number.to_string()).unwrap();
            }));
        }
        let systems: Vec<_> = (0..count)
            .map(|number| {
                let own = store.add(&format!("own-{number}"), &[], |path| {
                    fs::create_dir(path).unwrap();
                    fs::write(path.join("number"), format!("{number}\n").repeat(5000)).unwrap();
                });
                let references: Vec<&Member> = shared.iter().chain([&own]).collect();
                let system = store.add(&format!("system-{number}"), &references, |path| {
                    fs::write(path, format!("{number}\n")).unwrap();
                });
                (system, own)
            })
            .collect();
        let link = store.profile("web/system", &systems[0].0.path);
        Self { store, shared, busybox, systems, link }
    }

    /// Lets the profile lead elsewhere, in one step as Nix does.
    pub(crate) fn switch(&self, target: impl AsRef<Path>) {
        let next = self.link.with_extension("next");
        symlink(target, &next).unwrap();
        fs::rename(&next, &self.link).unwrap();
    }

    pub(crate) fn select(&self, number: usize) {
        self.switch(&self.systems[number].0.path);
    }

    pub(crate) fn service(&self) -> Service {
        Service::new(&self.store).with([Path::new("--system"), &self.link])
    }

    pub(crate) fn names(&self, number: usize) -> BTreeSet<PathBuf> {
        self.shared
            .iter()
            .chain([&self.systems[number].0, &self.systems[number].1])
            .map(|member| PathBuf::from(&member.base))
            .collect()
    }

    pub(crate) fn load(&self, service: &Service) -> Load {
        let shared = self.shared.iter().map(|member| member.base.as_str());
        Load::start(service.path(), &self.store, shared, Some(&self.busybox), 3)
    }
}
