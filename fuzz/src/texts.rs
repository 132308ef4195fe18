//! Plain functions of text: names of store paths, what is served, files of roots and of closures, links of roots, variables of the environment, the mount
//! table.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix_store_fs::closure::dump::{self, Format};
use nix_store_fs::closure::resolve;
use nix_store_fs::closure::roots::Targets;
use nix_store_fs::closure::saved::{Content, Saved};
use nix_store_fs::mounts;
use nix_store_fs::prefetch::plan::Plan;
use nix_store_fs::prefetch::profile::{self, Profile};
use nix_store_fs::protocol::task::Prefetch;
use nix_store_fs::startup;
use nix_store_fs::values::{StorePath, View};
use nix_store_fs::view::trace::Marks;

use crate::bytes::Bytes;

/// The grammar of the Nix manual ("Store Path"), written down once more.
fn is_store_path(text: &str) -> bool {
    let Some((hash, name)) = text.split_at_checked(32) else { return false };
    let Some(name) = name.strip_prefix('-') else { return false };
    let is_hash = |c: char| (c.is_ascii_digit() || c.is_ascii_lowercase()) && !"eotu".contains(c);
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c);
    let first = name.split('-').next();
    hash.chars().all(is_hash)
        && (1..=211).contains(&name.len())
        && name.chars().all(is_name)
        && !matches!(first, Some("." | ".."))
}

pub(crate) fn store_path(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = StorePath::new(&text);
    assert_eq!(path.is_ok(), is_store_path(&text), "{text:?}");
    let Ok(path) = path else { return };
    assert_eq!((path.as_str(), path.name()), (&*text, &text[33..]));
    let parts: Vec<_> = Path::new(path.as_str()).components().collect();
    assert!(matches!(parts[..], [Component::Normal(_)]), "{text:?} is no single name");
    let json = serde_json::to_vec(&path).unwrap();
    assert_eq!(serde_json::from_slice::<StorePath>(&json).unwrap(), path);
}

pub(crate) fn view(data: &[u8]) {
    let Ok(view) = serde_json::from_slice::<View>(data) else { return };
    assert!(view.names().all(|name| is_store_path(name.as_str())));
    let json = serde_json::to_vec(&view).unwrap();
    assert_eq!(serde_json::from_slice::<View>(&json).unwrap(), view);
    assert_eq!(view.union(&view), view);
    assert_eq!(view.difference(&view).count(), 0);
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let sizes = value["members"].as_object().unwrap().values().map(|size| u128::from(size.as_u64().unwrap()));
    assert_eq!(u128::from(view.nar_size()), sizes.sum::<u128>().min(u64::MAX.into()));
}

pub(crate) fn roots_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = resolve::parse(&text);
    assert!(lines.len() <= text.lines().count());
    let mut again = String::new();
    for line in &lines {
        let path = line.path.to_str().unwrap();
        assert!(!path.contains(['#', '\n']) && path.trim() == path, "{path:?}");
        assert!(line.awaited || !path.is_empty() && !path.starts_with('?'), "{path:?}");
        again.push_str(if line.awaited { "?" } else { "" });
        again.push_str(path);
        again.push('\n');
    }
    let without_numbers = |lines: Vec<resolve::Line>| -> Vec<_> {
        lines.into_iter().map(|line| (line.path, line.awaited)).collect()
    };
    assert!(lines.iter().all(|line| text.lines().nth(line.number - 1).is_some()));
    assert_eq!(without_numbers(resolve::parse(&again)), without_numbers(lines));
}

/// A closure from a file: what is understood is a closure, in one directory, and the same when it is printed and read again.
pub(crate) fn saved(data: &[u8]) {
    let saved = match Saved::parse(data) {
        Ok(saved) => saved,
        Err(problem) => {
            let text = problem.to_string();
            assert!(text.len() < 4096 && !text.contains(char::is_control), "{text:?}");
            return;
        }
    };
    let dir = saved.store_dir();
    assert!(dir.is_absolute() && dir.components().collect::<std::path::PathBuf>() == dir, "{dir:?}");
    assert!(dir.components().skip(1).all(|part| matches!(part, Component::Normal(_))), "{dir:?}");
    let members: BTreeSet<_> = saved.members().into_iter().collect();
    assert!(members.iter().all(|path| is_store_path(path.as_str())));
    assert!(saved.roots().iter().all(|root| members.contains(root)));
    assert_eq!(saved.view().len(), members.len());
    let again = match saved.content() {
        Content::Names(_) => {
            let line =
                |path: &&StorePath| [dir.as_os_str().as_bytes(), b"/", path.as_str().as_bytes()].concat();
            members.iter().map(line).collect::<Vec<_>>().join(&b'\n')
        }
        Content::Closure(closure) => {
            let references = |path: &StorePath| {
                let info = closure.members().find(|info| info.path == *path).unwrap();
                info.references.clone()
            };
            let mut reached = BTreeSet::new();
            let mut todo: Vec<StorePath> = closure.roots().to_vec();
            while let Some(path) = todo.pop() {
                if reached.insert(path.clone()) {
                    todo.extend(references(&path));
                }
            }
            assert!(reached.iter().eq(members.iter().copied()), "no closure: {reached:?}");
            // Not every hash that is read has a form in each format.
            for format in [Format::Text, Format::StorePaths, Format::Registration, Format::Dot] {
                let _ = dump::render(closure, dir, format);
            }
            dump::render(closure, dir, Format::Json).unwrap()
        }
    };
    assert_eq!(Saved::parse(&again).unwrap(), saved);
}

/// Links that must exist: whatever happens in whatever order, nothing that is served or about to be is removed.
pub(crate) fn root_links(data: &[u8]) {
    let mut bytes = Bytes(data);
    let root = |n: u8| StorePath::new(&format!("{:032}-r", n % 8)).unwrap();
    let roots = |bits: u8| -> BTreeSet<_> { (0..8).filter(|n| bits >> n & 1 == 1).map(root).collect() };
    let mut served = roots(bytes.byte());
    let mut targets = Targets::new(served.clone());
    let mut coming: BTreeMap<u64, BTreeSet<StorePath>> = BTreeMap::new();
    let mut links = BTreeSet::new();
    targets.found(links.clone());
    while !bytes.is_empty() {
        let (operation, argument) = (bytes.byte(), bytes.byte());
        let number = u64::from(argument >> 4);
        match operation % 8 {
            0 => {
                coming.insert(number, roots(argument));
                targets.announce(number, roots(argument));
            }
            1 => {
                coming.remove(&number);
                targets.withdraw(number);
            }
            2 => {
                let only = argument & 1 == 1;
                if let Some(roots) = coming.remove(&number) {
                    let later = coming.split_off(&number);
                    let earlier = std::mem::replace(&mut coming, later);
                    if only {
                        served.clear();
                    } else {
                        served.extend(earlier.into_values().flatten());
                    }
                    served.extend(roots);
                }
                targets.settle(number, only);
            }
            3 => {
                for root in targets.missing() {
                    links.insert(root.clone());
                    targets.made(root);
                }
                assert!(targets.missing().is_empty());
            }
            4 => {
                for root in targets.outdated() {
                    assert!(links.remove(&root), "{root} is removed and was no link");
                    targets.removed(&root);
                }
                assert!(targets.outdated().is_empty());
            }
            5 => {
                links = roots(argument);
                targets.found(links.clone());
            }
            6 => {
                coming.clear();
                targets.withdraw_all();
            }
            _ => {
                links.insert(root(argument));
                targets.seen(root(argument));
            }
        }
        let held: BTreeSet<_> = served.iter().chain(coming.values().flatten()).cloned().collect();
        let outdated: BTreeSet<_> = targets.outdated().into_iter().collect();
        assert!(outdated.is_disjoint(&held), "{outdated:?} would be removed, and {held:?} is held");
        assert!(outdated.is_subset(&links));
        assert!(targets.missing().is_subset(&held));
    }
    targets.release();
    assert!(targets.missing().is_empty());
    assert_eq!(targets.outdated().into_iter().collect::<BTreeSet<_>>(), links);
}

pub(crate) fn listen_fds(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let [pid, fds, names] = [(); 3].map(|()| parts.next());
    let passed = startup::passed(7, pid.as_deref(), fds.as_deref(), names.as_deref());
    assert!(passed.len() <= 256);
    if passed.is_empty() {
        return;
    }
    assert_eq!(pid.unwrap().trim_start_matches('+').trim_start_matches('0'), "7");
    let named: Vec<_> = names.iter().flat_map(|names| names.split(':')).collect();
    for (at, (number, name)) in passed.into_iter().enumerate() {
        assert_eq!(number, 3 + at as i32);
        assert_eq!(name, named.get(at).copied().unwrap_or_default());
    }
}

/// A field as the kernel writes it (`mangle_path` of Linux `fs/seq_file.c`): some bytes as three octal digits.
fn mangled(field: &[u8]) -> Vec<u8> {
    let escaped = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![*byte],
    };
    field.iter().flat_map(escaped).collect()
}

/// The mount table: any bytes, and lines as the kernel writes them, with fields that anybody chose. Those come back as they were.
pub(crate) fn mountinfo(data: &[u8]) {
    let is_fuse = |kind: &[u8]| matches!(kind.split(|byte| *byte == b'.').next(), Some(b"fuse" | b"fuseblk"));
    let any = mounts::parse_all(data);
    assert!(any.len() <= data.split(|byte| *byte == b'\n').count());
    assert!(any.iter().all(|mount| mount.user.is_none() || is_fuse(mount.kind.as_bytes())), "{any:?}");

    let mut bytes = Bytes(data);
    let (mut table, mut expected) = (Vec::new(), Vec::new());
    while !bytes.is_empty() && expected.len() < 20 {
        let (id, minor, user) = (u64::from(bytes.word()), bytes.half(), bytes.word());
        let mut text = || bytes.short().iter().filter(|byte| **byte != 0).copied().collect::<Vec<u8>>();
        let (at, source, subtype) = ([b"/", &text()[..]].concat(), text(), text());
        let kind = match *bytes.pick(&["fuse", "fuseblk", "tmpfs", "fusectl", "fuse."]) {
            "fuse." => [b"fuse.", &subtype[..]].concat(),
            kind => kind.as_bytes().to_vec(),
        };
        let optional = *bytes.pick(&["", "shared:7 ", "master:1 propagate_from:2 ", "unbindable "]);
        table.extend_from_slice(format!("{id} 1 0:{minor} / ").as_bytes());
        table.extend_from_slice(&mangled(&at));
        table.extend_from_slice(format!(" rw,nosuid {optional}- ").as_bytes());
        table.extend_from_slice(&[mangled(&kind), b" ".to_vec(), mangled(&source)].concat());
        table.extend_from_slice(format!(" ro,user_id={user},group_id=0,allow_other\n").as_bytes());
        expected.push((id, at, kind, source, format!("0:{minor}"), user));
    }
    let found = mounts::parse_all(&table);
    assert_eq!(found.len(), expected.len(), "{}", table.escape_ascii());
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    for (found, (id, at, kind, source, device, user)) in found.iter().zip(expected) {
        assert_eq!((found.id, found.at.as_os_str().as_bytes()), (id, &at[..]));
        assert_eq!((&found.kind, &found.source, &found.device), (&text(&kind), &text(&source), &device));
        assert_eq!(found.user, is_fuse(&kind).then_some(user));
    }
}

/// A profile of use is within its bounds, and the same when it is written and read again; a plan of it stays within the members.
pub fn profile(data: &[u8]) {
    let read = match Profile::read(data) {
        Ok(read) => read,
        Err(error) => return assert!(!error.to_string().contains(char::is_control), "{error}"),
    };
    assert!(read.len() <= profile::USES);
    assert!(read.uses().all(|(_, below, _)| profile::is_below(below)));
    assert_eq!(Profile::read(&read.write()).as_ref(), Ok(&read));
    let members: BTreeSet<StorePath> = read.uses().map(|(member, _, _)| member.clone()).collect();
    assert_eq!(read.mapped(&members), read);
    let plan = Plan::new(&read, &members, Marks::new(0, 0), Prefetch::All);
    for step in plan.names.iter().chain(&plan.bytes) {
        let member =
            step.path().split(|byte| *byte == b'/').next().and_then(|name| std::str::from_utf8(name).ok());
        assert!(
            member.is_some_and(|name| StorePath::new(name).is_ok_and(|name| members.contains(&name))),
            "{step:?}"
        );
    }
}
