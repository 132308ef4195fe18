//! `--gc-root`: at every moment, what is served is held by links, and when the view has ended no link is left.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::bad_input::refused;
use crate::collector::{Collector, Garbage};
use crate::util::load::say;
use crate::util::mounts;
use crate::util::program::{Program, unique_name};
use crate::util::service::{Service, Victim};
use crate::util::store::{Daemon, NixStore};
use crate::util::thief;
use crate::util::tree;

/// Systems, a view of them, and the directory of its links.
struct Held {
    garbage: Arc<Garbage>,
    /// Keep the systems from the collector until the view is to be the only one that does.
    holders: Vec<PathBuf>,
    roots: TempDir,
    service: Service,
}

impl Held {
    fn new(systems: usize) -> Self {
        let garbage = Garbage::new(systems);
        let uri = garbage.store.uri();
        Self::on(garbage, &uri)
    }

    fn on(garbage: Garbage, uri: &str) -> Self {
        let holders = (0..garbage.systems.len())
            .map(|number| garbage.store.profile(&format!("holder-{number}"), &garbage.systems[number].0.path))
            .collect();
        let roots = crate::util::scratch();
        let service = Service::on(uri)
            .with([Path::new("--system"), &garbage.link])
            .with([Path::new("--gc-root"), roots.path()]);
        Self { garbage: Arc::new(garbage), holders, roots, service }
    }

    fn link(&self, number: usize) -> PathBuf {
        self.roots.path().join(format!("{}--{}", self.service.name, self.garbage.systems[number].0.base))
    }

    /// Nothing but the view and its links holds this system from now on.
    fn release(&self, number: usize) {
        fs::remove_file(&self.holders[number]).unwrap();
    }

    /// The profile leads nowhere from now on, until a system is selected.
    fn break_profile(&self) {
        let next = self.garbage.link.with_extension("next");
        symlink(NixStore::name("absent").path, &next).unwrap();
        fs::rename(&next, &self.garbage.link).unwrap();
    }

    fn assert_links(&self, numbers: &[usize]) {
        let mut expected: Vec<PathBuf> = numbers.iter().map(|&number| self.link(number)).collect();
        expected.sort();
        assert_eq!(self.links(), expected, "{}", self.service.log());
        for &number in numbers {
            let target = fs::read_link(self.link(number)).unwrap();
            assert_eq!(target, Path::new(&self.garbage.systems[number].0.path));
        }
    }

    fn links(&self) -> Vec<PathBuf> {
        let names = tree::list(self.roots.path()).unwrap();
        names.into_iter().map(|name| self.roots.path().join(name)).collect()
    }

    /// Links of what was withdrawn are removed after the answer to the reload, and before the answer to this one.
    fn reload_is_answered(&self) {
        self.service.reload_well();
    }

    fn reload_fails(&self) -> String {
        let finished = self.service.reload();
        assert_eq!(finished.status.code(), Some(8), "{finished:?}\n{}", self.service.log());
        finished.stderr
    }
}

#[test]
fn a_relative_directory_is_relative_to_the_working_directory() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(1);
    let at = crate::util::scratch();
    let system = &garbage.systems[0].0;
    let program = Program::on(&garbage.store).args(["--system", &system.path, "--gc-root", "some/roots"]);
    let mut view = program.inside(["env".as_ref(), "-C".as_ref(), at.path().as_os_str()]).mount();
    let links = tree::list(&at.path().join("some/roots")).unwrap_or_default();
    assert_eq!(links.len(), 1, "{links:?}: {}", view.stderr());
    assert!(links[0].to_str().unwrap().ends_with(&format!("--{}", system.base)), "{links:?}");
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    assert_eq!(tree::list(&at.path().join("some/roots")).unwrap(), [] as [PathBuf; 0]);
}

/// An ordinary user of the host.
const STRANGER: u32 = 4242;

/// A directory in which others could put another one in the place of that for the links is refused by its name: root makes
/// no link where they would like one.
#[test]
fn a_start_makes_no_links_where_a_stranger_would_have_them() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(1);
    let dir = crate::util::scratch();
    let at = |name: &str| dir.path().join(name);
    for name in ["theirs", "private", "public"] {
        fs::create_dir(at(name)).unwrap();
    }
    symlink("../private", at("theirs/roots")).unwrap();
    symlink("../private", at("public/roots")).unwrap();
    for name in ["theirs", "theirs/roots"] {
        std::os::unix::fs::lchown(at(name), Some(STRANGER), Some(STRANGER)).unwrap();
    }
    fs::set_permissions(at("public"), fs::Permissions::from_mode(0o1777)).unwrap();
    let program = |roots: &Path| {
        Program::on(&garbage.store).arg("--system").arg(&garbage.link).arg("--gc-root").arg(roots)
    };
    let refuses = |program: Program, entry: &str| {
        let finished = refused(program, 9);
        assert_eq!(
            tree::list(&at("private")).unwrap(),
            [] as [PathBuf; 0],
            "a stranger has chosen the place"
        );
        let expected = format!("'{}'", at(entry).display());
        assert!(finished.stderr.contains(&expected), "{finished:?}");
        assert!(finished.stderr.contains("choose another directory with --gc-root"), "{finished:?}");
    };
    refuses(program(&at("theirs/roots")), "theirs");
    refuses(program(&at("theirs/absent")), "theirs");
    assert!(!at("theirs/absent").exists());
    // Who moved it there cannot be told.
    refuses(program(&at("public/roots")), "public/roots");
    refuses(program(&at("private/roots")).arg("--untrusted").arg(at("private")), "private");

    let view = program(&at("public/own")).mount();
    assert_eq!(tree::list(&at("public/own")).unwrap().len(), 1);
    drop(view);
}

/// Who is given the directory above that of the links later makes nobody remove links elsewhere, or make them there.
#[test]
fn links_are_removed_where_they_were_made() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(2);
    let dir = crate::util::scratch();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("theirs")).unwrap();
    fs::create_dir(at("private")).unwrap();
    let mut service = Service::new(&garbage.store).with([
        Path::new("--system"),
        &garbage.link,
        Path::new("--gc-root"),
        &at("theirs/roots"),
    ]);
    service.start_ready();
    let made = tree::list(&at("theirs/roots")).unwrap();
    assert_eq!(made.len(), 1);
    symlink(&garbage.systems[0].0.path, at("private").join(&made[0])).unwrap();
    chown(at("theirs"), Some(STRANGER), Some(STRANGER)).unwrap();
    fs::rename(at("theirs/roots"), at("theirs/moved")).unwrap();
    symlink("../private", at("theirs/roots")).unwrap();

    garbage.select(1);
    let reload = service.reload();
    assert_eq!(tree::list(&at("private")).unwrap(), made, "a stranger has chosen the place");
    assert_eq!(reload.status.code(), Some(8), "{reload:?}");
    assert!(reload.stderr.contains(&format!("'{}'", at("theirs").display())), "{reload:?}");
    garbage.assert_served(&service, 0);
    service.stop();
    assert_eq!(tree::list(&at("private")).unwrap(), made, "a link of somebody else's was removed");
    assert_eq!(tree::list(&at("theirs/moved")).unwrap(), [] as [PathBuf; 0]);
}

/// The second of two roots cannot be held: the first is not held either, and nothing is mounted.
#[test]
fn a_start_that_cannot_hold_its_roots_leaves_nothing_behind() {
    need!(Root, Fuse, Nix);
    let mut held = Held::new(2);
    held.service.add(["--root", &held.garbage.systems[1].0.path]);
    for obstacle in [0, 1].map(|number| held.link(number)) {
        fs::write(&obstacle, "in the way").unwrap();
        held.service.start();
        let status = held.service.ended();
        assert_eq!(status.code(), Some(9), "{}", held.service.log());
        assert!(held.service.logged(obstacle.to_str().unwrap()) > 0, "{}", held.service.log());
        assert_eq!(held.links(), [obstacle.as_path()]);
        assert!(mounts::at(held.service.path()).is_none() && !held.service.state().exists());
        fs::remove_file(obstacle).unwrap();
    }
    held.service.start_ready();
    held.assert_links(&[0, 1]);
}

/// Nix follows whatever link it finds in its state. Where that leads out of what it had when the store was opened, nothing is changed.
#[test]
fn nix_is_not_led_out_of_its_state() {
    need!(Root, Fuse, Nix, Landlock);
    let mut held = Held::new(2);
    held.service.start_ready();
    held.garbage.select(1);
    let outside = crate::util::scratch();
    let registered = held.garbage.store.root().join("nix/var/nix/gcroots/auto");
    let aside = registered.with_extension("aside");
    fs::rename(&registered, &aside).unwrap();
    symlink(outside.path(), &registered).unwrap();
    let why = held.reload_fails();
    assert!(why.contains("Permission denied"), "{why}");
    assert_eq!(tree::list(outside.path()).unwrap(), [] as [PathBuf; 0]);
    fs::remove_file(&registered).unwrap();
    fs::rename(&aside, &registered).unwrap();
    held.service.reload_well();
    held.garbage.assert_served(&held.service, 1);
    held.service.stop();
}

/// Links that an earlier process left are not those of a start that fails: whatever they hold, it stays.
#[test]
fn a_start_that_fails_leaves_the_links_of_others_alone() {
    need!(Root, Fuse, Nix);
    let held = Held::new(2);
    let name = unique_name();
    let left = format!("{name}--{}", held.garbage.systems[1].0.base);
    symlink(&held.garbage.systems[1].0.path, held.roots.path().join(&left)).unwrap();
    let occupied = crate::util::scratch();
    fs::write(occupied.path().join("something"), "").unwrap();
    let program = Program::on(&held.garbage.store)
        .arg("--system")
        .arg(&held.garbage.link)
        .arg("--gc-root")
        .arg(held.roots.path());
    let finished = program.args(["--name", &name]).arg(occupied.path()).run();
    assert_eq!(finished.status.code(), Some(6), "{finished:?}");
    assert_eq!(tree::list(held.roots.path()).unwrap(), [PathBuf::from(left)]);
    // The same by the way of all refusals, with nothing in the directory.
    let empty = crate::util::scratch();
    let program = Program::on(&held.garbage.store).arg("--system").arg(&held.garbage.link);
    refused(program.arg("--gc-root").arg(empty.path()).arg(occupied.path()), 6);
    assert_eq!(tree::list(empty.path()).unwrap(), [] as [PathBuf; 0]);
}

#[test]
fn a_reload_that_cannot_hold_its_roots_changes_nothing() {
    need!(Root, Fuse, Nix);
    for prune in [false, true] {
        let mut held = Held::new(2);
        if prune {
            held.service.add(["--prune"]);
        }
        held.service.start_ready();
        held.garbage.select(1);
        fs::write(held.link(1), "in the way").unwrap();
        let why = held.reload_fails();
        assert!(why.contains(held.link(1).to_str().unwrap()), "{why}");
        assert!(!held.service.path().join(&held.garbage.systems[1].0.base).exists());
        fs::remove_file(held.link(1)).unwrap();
        held.assert_links(&[0]);
        held.release(0);
        held.garbage.collect();
        held.garbage.assert_served(&held.service, 0);
        held.service.reload_well();
        held.garbage.assert_served(&held.service, 1);
    }
}

/// Links hold what is served; an earlier monitor made them, and its successor knows no better.
#[test]
fn a_take_over_whose_roots_do_not_resolve_keeps_the_links() {
    need!(Root, Fuse, Nix);
    let mut held = Held::new(2);
    held.service.add(["--prune"]);
    held.service.start_ready();
    held.release(0);
    held.break_profile();
    for _ in 0..2 {
        held.service.kill(Victim::Both);
        held.garbage.collect();
        held.service.start_ready();
        // An answer to this is an answer after everything before.
        held.reload_fails();
        held.assert_links(&[0]);
        held.garbage.assert_served(&held.service, 0);
    }
    held.garbage.select(1);
    held.service.reload_well();
    held.reload_is_answered();
    held.assert_links(&[1]);
    held.service.stop();
    held.assert_links(&[]);
}

/// Without links, a successor holds what it took over by temporary roots, also if its own roots do not resolve.
#[test]
fn a_take_over_whose_roots_do_not_resolve_holds_what_is_served() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(1);
    let holder = garbage.store.profile("holder", &garbage.systems[0].0.path);
    let mut service = Service::new(&garbage.store).with([Path::new("--system"), &garbage.link]);
    service.start_ready();
    service.kill(Victim::Both);
    fs::remove_file(&garbage.link).unwrap();
    service.start_ready();
    fs::remove_file(&holder).unwrap();
    garbage.collect();
    garbage.assert_served(&service, 0);
    service.stop();
    garbage.collect();
    assert!(!garbage.is_valid(0));
}

/// Asked for links that its predecessor was not asked for, a successor makes them of what it took over.
#[test]
fn a_take_over_holds_what_was_served_without_links() {
    need!(Root, Fuse, Nix);
    let garbage = Arc::new(Garbage::new(1));
    let holder = garbage.store.profile("holder", &garbage.systems[0].0.path);
    let roots = crate::util::scratch();
    let mut service = Service::new(&garbage.store).with([Path::new("--system"), &garbage.link]);
    service.start_ready();
    fs::remove_file(&garbage.link).unwrap();
    service.kill(Victim::Both);
    service.add([Path::new("--gc-root"), roots.path()]);
    service.start_ready();
    fs::remove_file(&holder).unwrap();
    service.kill(Victim::Both);
    garbage.collect();
    service.start_ready();
    garbage.assert_served(&service, 0);
    service.stop();
    assert_eq!(tree::list(roots.path()).unwrap(), [] as [PathBuf; 0]);
}

/// A successor with another directory makes its links there, and then removes those in the old directory.
#[test]
fn links_move_with_the_directory() {
    need!(Root, Fuse, Nix);
    let mut held = Held::new(2);
    held.service.start_ready();
    let new = crate::util::scratch();
    held.service.replace(held.roots.path(), new.path());
    let old = std::mem::replace(&mut held.roots, new);
    let left = || tree::list(old.path()).unwrap();
    held.release(0);
    held.break_profile();
    held.service.kill(Victim::Both);
    held.service.start_ready();
    held.reload_fails();
    // Held in both places until a resolution is served.
    held.assert_links(&[0]);
    assert_eq!(left().len(), 1);
    held.service.kill(Victim::Both);
    held.garbage.select(1);
    held.service.start_ready();
    held.service.reload_well();
    held.reload_is_answered();
    held.assert_links(&[0, 1]);
    assert_eq!(left(), [] as [PathBuf; 0]);
    held.garbage.collect();
    held.garbage.assert_served(&held.service, 0);
    held.service.stop();
    held.assert_links(&[]);
}

/// A view that died with its server, and whose device nobody kept, left links: they are removed once its successor
/// serves, wherever that one has its own, and also if a start failed in between.
#[test]
fn links_of_a_dead_view_are_removed_from_its_directory() {
    need!(Root, Fuse, Nix);
    // Without a mount, the descriptor store may still hold the device.
    for stored in [false, true] {
        let mut held = Held::new(2);
        held.service.start_ready();
        held.assert_links(&[0]);
        let connection = thief::connection(held.service.path());
        held.service.kill(Victim::Both);
        if stored {
            // A copy of the mount, in a namespace that somebody has just made, would keep it in use.
            mounts::abort(connection);
            rustix::mount::unmount(held.service.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        } else {
            held.service.lose_descriptors();
        }
        let new = crate::util::scratch();
        held.service.replace(held.roots.path(), new.path());
        let old = std::mem::replace(&mut held.roots, new);
        let left = || tree::list(old.path()).unwrap();
        held.break_profile();
        held.service.start();
        assert_eq!(held.service.ended().code(), Some(4), "{}", held.service.log());
        assert_eq!(left().len(), 1, "{}", held.service.log());
        held.garbage.select(1);
        held.service.start_ready();
        held.reload_is_answered();
        held.assert_links(&[1]);
        assert_eq!(left(), [] as [PathBuf; 0], "{}", held.service.log());
        held.service.stop();
        held.assert_links(&[]);
    }
}

/// The state of a view that nobody can take over is of use for its links only: a damaged one does not prevent a start.
#[test]
fn a_damaged_state_of_a_dead_view_does_not_prevent_a_start() {
    need!(Root, Fuse, Nix);
    let mut held = Held::new(1);
    held.service.start_ready();
    held.service.kill(Victim::Both);
    held.service.lose_descriptors();
    fs::write(held.service.state().join("state"), "{torn").unwrap();
    held.service.start_ready();
    assert_eq!(
        held.service.logged_soon("cannot read the state of the earlier view", 1),
        1,
        "{}",
        held.service.log()
    );
    held.assert_links(&[0]);
    held.service.stop();
    held.assert_links(&[]);
}

/// An end that comes while a reload is about to make a link: it is the same thread that removes all of them.
#[test]
fn an_end_during_a_reload_leaves_no_link() {
    need!(Root, Fuse, Nix);
    let mut held = Held::new(2);
    for round in 0..10 {
        held.service.start_ready();
        held.garbage.select((round + 1) % 2);
        let from = held.service.heard();
        held.service.signal(Signal::HUP);
        held.service.wait(from, "RELOADING");
        held.service.stop();
        held.assert_links(&[]);
    }
}

/// The store's thread waits for the daemon: the end does not wait for the thread, and removes the links without it.
#[test]
fn a_daemon_that_does_not_answer_cannot_delay_the_end() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(2);
    let daemon = Daemon::start(&garbage.store);
    let mut held = Held::on(garbage, daemon.uri());
    held.service.start_ready();
    held.assert_links(&[0]);
    daemon.freeze();
    held.garbage.select(1);
    let from = held.service.heard();
    held.service.signal(Signal::HUP);
    // The store is asked by then.
    held.service.wait(from, "RELOADING");
    held.service.stop();
    held.assert_links(&[]);
    assert_eq!(held.service.logged_soon("the Nix store does not answer", 1), 1, "{}", held.service.log());
    assert_eq!(held.service.logged(held.link(0).to_str().unwrap()), 0, "{}", held.service.log());
    daemon.thaw();
    held.service.start_ready();
    held.service.stop();
    held.assert_links(&[]);
}

/// A successor that is told to end before the store has answered it ends the view that it was to take over.
#[test]
fn an_end_during_a_take_over_ends_the_view() {
    need!(Root, Fuse, Nix);
    let garbage = Garbage::new(1);
    let daemon = Daemon::start(&garbage.store);
    let mut held = Held::on(garbage, daemon.uri());
    held.service.start_ready();
    held.service.kill(Victim::Both);
    daemon.freeze();
    held.service.start();
    // Blocked signals are taken as data, and the state directory is locked after they are blocked.
    held.service.wait_locked();
    held.service.stop();
    assert!(held.service.stored().is_empty() && !held.service.state().exists());
    daemon.thaw();
}

/// A collector that never rests, and everything that can happen to a view.
#[test]
fn nothing_served_is_collected_whatever_happens() {
    need!(Root, Fuse, Nix);
    for prune in [false, true] {
        let mut held = Held::new(3);
        if prune {
            held.service.add(["--prune"]);
        }
        let collector = Collector::start({
            let garbage = held.garbage.clone();
            move || garbage.collect()
        });
        let all = |held: &Held, newest: usize| {
            collector.wait();
            let from = if prune { newest } else { 0 };
            (from..=newest).for_each(|number| held.garbage.assert_served(&held.service, number));
        };
        held.service.start_ready();
        held.release(0);
        for next in [1, 2] {
            let served = next - 1;
            all(&held, served);
            held.break_profile();
            held.reload_fails();
            all(&held, served);
            for victim in [Victim::Both, Victim::Monitor] {
                held.service.kill(victim);
                collector.wait();
                held.service.start_ready();
                all(&held, served);
            }
            held.garbage.select(next);
            fs::write(held.link(next), "in the way").unwrap();
            held.reload_fails();
            all(&held, served);
            held.service.kill(Victim::Both);
            held.service.start_ready();
            all(&held, served);
            fs::remove_file(held.link(next)).unwrap();
            held.service.reload_well();
            held.release(next);
            all(&held, next);
            held.service.signal(Signal::USR2);
            assert_eq!(held.service.ended().code(), Some(75), "{}", held.service.log());
            collector.wait();
            held.service.start_ready();
            all(&held, next);
        }
        held.service.stop();
        held.assert_links(&[]);
        // A start that fails holds nothing either.
        fs::write(held.link(2), "in the way").unwrap();
        held.service.start();
        assert_eq!(held.service.ended().code(), Some(9), "{}", held.service.log());
        fs::remove_file(held.link(2)).unwrap();
        held.assert_links(&[]);
        held.break_profile();
        collector.wait();
        say(&format!("roots: {} rounds of the collector, prune {prune}", collector.finish()));
        assert_eq!([0, 1, 2].map(|number| held.garbage.is_valid(number)), [false; 3]);
    }
}
