//! Closures that a test knows without the program: asked of `nix-store`, or made by the test, with what follows from them by brute force.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;

use serde_json::Value;

use super::random::Random;
use super::store::NixStore;

/// Members of a generated closure.
pub(crate) const PATHS: usize = 5_000;

/// What a closure is, by whoever made it: names, sizes, and references without those of a path to itself. The first one is the root.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) names: Vec<String>,
    pub(crate) sizes: Vec<u64>,
    pub(crate) references: Vec<BTreeSet<usize>>,
}

impl Made {
    /// A closure as the store knows it, member by member.
    pub(crate) fn asked(store: &NixStore, root: &str) -> Self {
        let mut made = Self::default();
        let lines = |query: &str, path: &str| -> Vec<String> {
            store.nix("nix-store", ["-q", query, path], b"").lines().map(str::to_owned).collect()
        };
        let mut paths = lines("--requisites", root);
        paths.sort_by_key(|path| path != root);
        for path in &paths {
            let place = |other: &String| paths.iter().position(|known| known == other).unwrap();
            let references = lines("--references", path);
            made.references.push(references.iter().filter(|other| *other != path).map(place).collect());
            made.sizes.push(lines("--size", path)[0].parse().unwrap());
            made.names.push(path.strip_prefix("/nix/store/").unwrap().to_owned());
        }
        made
    }

    /// A closure in the shape of a system: clusters of paths that only need each other, most of them small, above libraries that many need.
    pub(crate) fn generated(random: &mut Random) -> Self {
        const KINDS: [&str; 32] = [
            "python3.12-requests",
            "perl5.38-URI",
            "gcc",
            "openssl",
            "systemd",
            "linux-firmware",
            "qtbase",
            "ffmpeg",
            "zlib",
            "curl",
            "unit-nginx.service",
            "etc-hosts",
            "man-db",
            "gtk+3",
            "llvm",
            "icu4c",
            "coreutils",
            "util-linux",
            "mesa",
            "libxml2",
            "sqlite",
            "nodejs",
            "git",
            "boost",
            "X-Restart-Triggers-dbus",
            "system-path",
            "fontconfig",
            "noto-fonts",
            "postgresql",
            "ruby",
            "vim",
            "gnupg",
        ];
        const CLUSTER: usize = 45;
        const LIBRARIES: usize = PATHS - 400;
        let mut made = Self::default();
        for number in 0..PATHS {
            let kind = KINDS[random.below(KINDS.len())];
            let name = match number {
                0 => "nixos-system-web-26.05".to_owned(),
                _ if number == PATHS - 1 => "glibc-2.42".to_owned(),
                _ => format!("{kind}-{}.{}", number / 100, number % 100),
            };
            made.names.push(NixStore::name(&name).base);
            // In a thousand: units and scripts, small packages, large ones, and a few that are most of the system.
            let magnitude = match random.below(1000) {
                0..600 => 8 + random.below(5),
                600..850 => 13 + random.below(5),
                850..970 => 18 + random.below(4),
                970..997 => 22 + random.below(4),
                _ => 26 + random.below(3),
            };
            made.sizes.push((1 << magnitude) + random.next() % (1 << magnitude));
            made.references.push(BTreeSet::new());
        }
        for number in 1..PATHS {
            let head = number - number % CLUSTER;
            let end = LIBRARIES.min(head + CLUSTER);
            let referrer = match number {
                LIBRARIES.. => random.below(number),
                _ if number == head => 0,
                _ => head + random.below(number - head),
            };
            made.references[referrer].insert(number);
            for _ in 0..random.below(4) {
                let to = if number < LIBRARIES {
                    number + random.below(end - number)
                } else {
                    number + random.below(PATHS - number)
                };
                made.references[number].insert(to);
            }
            for _ in 0..random.below(6) {
                let library = LIBRARIES + random.below(PATHS - LIBRARIES);
                made.references[number].extend((library > number).then_some(library));
            }
            if random.below(3) == 0 {
                made.references[number].insert(PATHS - 1);
            }
            if random.below(12) == 0 {
                made.references[number].insert(number + random.below(PATHS - number));
            }
            made.references[number].remove(&number);
        }
        made
    }

    /// Registers it in a store, of which only the root is on the disk.
    pub(crate) fn register(&self, store: &NixStore) {
        let mut registration = String::new();
        for ((name, size), references) in self.names.iter().zip(&self.sizes).zip(&self.references) {
            let own = usize::from(size % 3 == 0);
            registration += &format!(
                "/nix/store/{name}\nsha256:{}\n{size}\n\n{}\n",
                "0".repeat(64),
                references.len() + own
            );
            for other in
                references.iter().map(|other| &self.names[*other]).chain([name].into_iter().take(own))
            {
                registration += &format!("/nix/store/{other}\n");
            }
        }
        store.nix("nix-store", ["--load-db"], registration.as_bytes());
        fs::create_dir(store.physical().join(&self.names[0])).unwrap();
    }

    pub(crate) fn referrers(&self, of: usize) -> BTreeSet<usize> {
        (0..self.names.len()).filter(|from| self.references[*from].contains(&of)).collect()
    }

    /// Distances from the root of all that it reaches without one of the members.
    pub(crate) fn distances(&self, without: Option<usize>) -> BTreeMap<usize, usize> {
        let mut found = BTreeMap::new();
        let mut next = VecDeque::from([(0, 0)]);
        while let Some((member, distance)) = next.pop_front() {
            if Some(member) != without && !found.contains_key(&member) {
                found.insert(member, distance);
                next.extend(self.references[member].iter().map(|to| (*to, distance + 1)));
            }
        }
        found
    }

    /// Bytes and members that are not reached without `member`.
    pub(crate) fn alone(&self, member: usize) -> (u64, usize) {
        let left = self.distances(Some(member));
        let gone: Vec<u64> = (0..self.names.len())
            .filter(|other| !left.contains_key(other))
            .map(|other| self.sizes[other])
            .collect();
        (gone.iter().sum(), gone.len())
    }

    pub(crate) fn place(&self, name: &Value) -> usize {
        let name = name.as_str().unwrap_or_else(|| panic!("{name} is no name"));
        self.names.iter().position(|known| known == name).unwrap_or_else(|| panic!("{name} is no member"))
    }
}
