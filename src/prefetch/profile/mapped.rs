//! What a profile says of today's members: an update changes every hash, and some versions.
//!
//! A member that is gone stands for a new one: for the one with the same name, else for the one with the same package and output in another
//! version. Only where there is one such on both sides, and only for one of which nothing is known itself: a wrong guess would ask for what nobody uses.
//!
//! Paths below it often name the version, `lib/python3.12` or `share/foo-1.2`. They follow. A guess that is wrong costs one question.

use std::collections::{BTreeMap, BTreeSet};

use memchr::memmem;

use super::{IDLE, Member, Profile, is_below};
use crate::values::StorePath;
use crate::values::package::Package;

impl Profile {
    /// What is known of `members`, those of today. A member that is no more among them and stands for none is kept, one run longer idle, and dropped
    /// when it has been so for [`IDLE`] runs.
    #[must_use]
    pub fn mapped<'a>(&self, members: impl IntoIterator<Item = &'a StorePath>) -> Self {
        let today: BTreeSet<&StorePath> = members.into_iter().collect();
        let mut next = Self { runs: self.runs, relearn: self.relearn, members: BTreeMap::new() };
        let mut gone: BTreeMap<&StorePath, &Member> = BTreeMap::new();
        for (path, member) in &self.members {
            if today.contains(path) {
                next.members.insert(path.clone(), member.clone());
            } else {
                gone.insert(path, member);
            }
        }
        let mut free: BTreeSet<&StorePath> =
            today.into_iter().filter(|path| !self.members.contains_key(path)).collect();
        for key in [Key::of_name, Key::of_package] {
            for (old, new) in pairs(&gone, &free, key) {
                free.remove(new);
                if let Some(member) = gone.remove(old) {
                    next.members.insert(new.clone(), member.renamed(&renames(old.name(), new.name())));
                }
            }
        }
        for (path, member) in gone {
            let idle = member.idle.saturating_add(1);
            if idle < IDLE {
                next.members.insert(path.clone(), Member { idle, ..member.clone() });
            }
        }
        next.bound();
        next
    }
}

/// By what an old and a new member are compared.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    name: &'a str,
    rest: &'a str,
    output: &'a str,
}

impl<'a> Key<'a> {
    fn of_name(path: &'a StorePath) -> Option<Self> {
        Some(Self { name: path.name(), rest: "", output: "" })
    }

    fn of_package(path: &'a StorePath) -> Option<Self> {
        let package = Package::parse(path.name());
        let (name, _, rest) = interpreter(package.name);
        (!package.version.is_empty()).then_some(Self { name, rest, output: package.output })
    }
}

/// Takes to pieces what a package of an interpreter is called, `python3.12-requests` or `perl5.40.0-JSON`: the interpreter, its version, the rest. Of other names the
/// last two are empty.
fn interpreter(package: &str) -> (&str, &str, &str) {
    let (first, rest) = package.split_once('-').unwrap_or((package, ""));
    let name = first.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let version = first.get(name.len()..).unwrap_or_default();
    let is_one = version.contains('.') && !name.is_empty() && !rest.is_empty();
    if is_one { (name, version, rest) } else { (package, "", "") }
}

/// Old and new members with the same key, where it is the key of one on each side.
fn pairs<'a>(
    gone: &BTreeMap<&'a StorePath, &Member>,
    free: &BTreeSet<&'a StorePath>,
    key: impl Fn(&'a StorePath) -> Option<Key<'a>>,
) -> Vec<(&'a StorePath, &'a StorePath)> {
    let mut both: BTreeMap<Key<'a>, (Vec<&'a StorePath>, Vec<&'a StorePath>)> = BTreeMap::new();
    // What has been idle for longer is older: it stands back.
    let mut old: BTreeMap<Key<'a>, u8> = BTreeMap::new();
    for (path, member) in gone {
        let Some(latest) = key(path) else { continue };
        old.entry(latest).and_modify(|idle| *idle = member.idle.min(*idle)).or_insert(member.idle);
    }
    for (path, member) in gone {
        if let Some(key) = key(path).filter(|key| old.get(key) == Some(&member.idle)) {
            both.entry(key).or_default().0.push(path);
        }
    }
    for path in free {
        if let Some((_, new)) = key(path).and_then(|key| both.get_mut(&key)) {
            new.push(path);
        }
    }
    let one = |(old, new): (Vec<_>, Vec<_>)| match (old.as_slice(), new.as_slice()) {
        ([old], [new]) => Some((*old, *new)),
        _ => None,
    };
    both.into_values().filter_map(one).collect()
}

/// What in a path below a member called `old` is called otherwise in `new`; longer texts first.
fn renames<'a>(old: &'a str, new: &'a str) -> Vec<(&'a str, &'a str)> {
    let (old, new) = (Package::parse(old), Package::parse(new));
    let ((_, old_interpreter, _), (_, new_interpreter, _)) = (interpreter(old.name), interpreter(new.name));
    let versions = [(old.version, new.version), (old_interpreter, new_interpreter)];
    versions
        .into_iter()
        .flat_map(|(old, new)| [Some((old, new)), two_numbers(old).zip(two_numbers(new))])
        .flatten()
        // A single number is in many names that tell no version.
        .filter(|(old, new)| old != new && two_numbers(old).is_some() && !new.is_empty())
        .collect()
}

/// `3.12` of `3.12.7`.
fn two_numbers(version: &str) -> Option<&str> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let first = digits(version);
    let rest = version.get(first..)?.strip_prefix('.')?;
    let second = digits(rest);
    (first > 0 && second > 0).then(|| version.get(..first + 1 + second))?
}

impl Member {
    fn renamed(&self, renames: &[(&str, &str)]) -> Self {
        let uses = self.uses.iter().map(|(path, of)| {
            let components: Vec<Vec<u8>> =
                path.split(|byte| *byte == b'/').map(|name| renamed(name, renames)).collect();
            (components.join(&b'/'), of.clone())
        });
        Self { idle: self.idle, uses: uses.filter(|(path, _)| is_below(path)).collect() }
    }
}

/// `name` with the first of the old versions in it, all of them, replaced by the new one.
fn renamed(name: &[u8], renames: &[(&str, &str)]) -> Vec<u8> {
    for (old, new) in renames {
        let mut made = Vec::new();
        let mut rest = 0;
        for at in memmem::find_iter(name, old) {
            let before = name.get(..at).unwrap_or_default();
            let after = name.get(at + old.len()..).unwrap_or_default();
            if is_within_version(before, after) {
                continue;
            }
            made.extend(name.get(rest..at).unwrap_or_default());
            made.extend(new.as_bytes());
            rest = at + old.len();
        }
        if rest > 0 {
            made.extend(name.get(rest..).unwrap_or_default());
            return made;
        }
    }
    name.to_vec()
}

/// Whether what lies between the two is a part of a longer number, or stands behind a part of the same version.
fn is_within_version(before: &[u8], after: &[u8]) -> bool {
    let is_number = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let behind_one = before.strip_suffix(b".").is_some_and(|before| is_number(before.last()));
    is_number(before.last()) || behind_one || is_number(after.first())
}

#[cfg(test)]
#[path = "../mapped_tests.rs"]
mod tests;
