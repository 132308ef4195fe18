//! `--watch`: a view follows whatever its roots depend on, without being asked to.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags};
use rustix::process::Signal;
use rustix::thread::set_thread_uid;

use crate::util::fixture::Fixture;
use crate::util::program::unique_name;
use crate::util::service::Service;
use crate::util::store::NixStore;
use crate::util::systems::Systems;
use crate::util::user::User;

const FAILED: &str = "the reload failed";

/// A profile with a service that watches it, and the directory of the profile.
fn watched(count: usize) -> (Systems, Service) {
    let systems = Systems::new(count);
    let mut service = systems.service().with(["--watch"]);
    service.start_ready();
    (systems, service)
}

/// A profile whose directory is removed and made again is followed, also if its link comes long after the directory.
#[test]
fn a_profile_whose_directory_is_made_again_is_followed() {
    need!(Root, Fuse, Nix, Busybox);
    let (systems, mut service) = watched(3);
    let dir = systems.link.parent().unwrap();
    for number in 1..=2 {
        let own = service.path().join(&systems.systems[number].1.base);
        assert!(!own.exists());
        let failures = service.logged(FAILED);
        fs::remove_dir_all(dir).unwrap();
        service.wait_logged(FAILED, failures + 1);
        // The directory alone is a change, after which the link is still absent: so the link comes later.
        fs::create_dir(dir).unwrap();
        service.wait_logged(FAILED, failures + 2);
        symlink(&systems.systems[number].0.path, &systems.link).unwrap();
        service.wait_for(&own);
    }
    service.stop();
}

/// A directory above the profile that is replaced by a rename is a change, and what came instead is followed.
#[test]
fn a_profile_below_a_replaced_directory_is_followed() {
    need!(Root, Fuse, Nix, Busybox);
    let (systems, mut service) = watched(4);
    let own = |number: usize| service.path().join(&systems.systems[number].1.base);
    let (above, new) = (systems.store.profiles(), systems.store.root().join("new"));
    let replacement = |number: usize| {
        fs::create_dir_all(new.join("web")).unwrap();
        symlink(&systems.systems[number].0.path, new.join("web/system")).unwrap();
    };
    // Both at once, so that the profile leads somewhere at every moment.
    replacement(1);
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, &above, rustix::fs::CWD, &new, exchange).unwrap();
    service.wait_for(&own(1));
    systems.select(2);
    service.wait_for(&own(2));
    // One after the other.
    fs::remove_dir_all(&new).unwrap();
    replacement(3);
    fs::rename(&above, systems.store.root().join("old")).unwrap();
    fs::rename(&new, &above).unwrap();
    service.wait_for(&own(3));
    service.stop();
}

/// What a reload that failed depended on is watched: here the end of a chain of links that no earlier reload followed.
#[test]
fn the_end_of_a_new_chain_of_links_is_waited_for() {
    need!(Root, Fuse, Nix, Busybox);
    let (systems, mut service) = watched(3);
    // In the store's root: other absolute links in it mean paths below that root.
    let [first, end] = ["first", "later/end"].map(|name| systems.store.root().join(name));
    symlink("later/end", &first).unwrap();
    systems.switch(&first);
    service.wait_logged(FAILED, 1);
    fs::create_dir(end.parent().unwrap()).unwrap();
    symlink(&systems.systems[1].0.path, &end).unwrap();
    service.wait_for(&service.path().join(&systems.systems[1].1.base));
    // And so is what the last reload that succeeded depended on.
    fs::remove_file(&end).unwrap();
    symlink(&systems.systems[2].0.path, &end).unwrap();
    service.wait_for(&service.path().join(&systems.systems[2].1.base));
    service.stop();
}

/// A roots file that is reached through a link is watched where it lies, not only where the link is.
#[test]
fn a_roots_file_behind_a_link_is_read_again() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let dir = crate::util::scratch();
    let (link, file) = (dir.path().join("roots"), dir.path().join("etc/roots"));
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(&file, "# nothing more\n").unwrap();
    symlink("etc/roots", &link).unwrap();
    let mut service = systems.service().with([Path::new("--roots-file"), &link]).with(["--watch"]);
    service.start_ready();
    let own = service.path().join(&systems.systems[1].1.base);
    assert!(!own.exists());
    fs::write(&file, format!("{}\n", systems.systems[1].0.path)).unwrap();
    service.wait_for(&own);
    service.stop();
}

/// More events than the kernel keeps for a program that does not read them: what is lost may have been the change.
#[test]
fn a_change_after_more_events_than_are_kept_is_followed() {
    need!(Root, Fuse, Nix, Busybox);
    let (systems, mut service) = watched(2);
    let own = service.path().join(&systems.systems[1].1.base);
    assert!(!own.exists());
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    service.signal(Signal::STOP);
    let other = systems.link.with_file_name("other");
    for _ in 0..=most / 2 {
        symlink("anywhere", &other).unwrap();
        fs::remove_file(&other).unwrap();
    }
    systems.select(1);
    service.signal(Signal::CONT);
    service.wait_for(&own);
    service.stop();
}

/// A user who may not watch anything more: the view is served, and the log says that it follows nothing.
#[test]
fn a_view_that_cannot_watch_is_served() {
    need!(Root, Fuse, Nix, Fusermount);
    // A user of this test alone, as the limit is that of all processes of a user. Nix wants it to have a name: daemon.
    const USER: u32 = 1;
    let instances: Vec<OwnedFd> = std::thread::spawn(|| {
        set_thread_uid(rustix::fs::Uid::from_raw(USER)).unwrap();
        std::iter::from_fn(|| inotify::init(CreateFlags::CLOEXEC).ok()).collect()
    })
    .join()
    .unwrap();
    let fixture = Fixture::in_store(NixStore::owned_by(USER));
    let user = User::of(USER);
    let name = unique_name();
    let at = user.runtime().join("nix-store-fs").join(&name);
    let program = fixture.program().args(["--watch", "--name", &name]);
    let mut view = user.with_device(program, "0666", "/usr/bin:/bin").mount_at(&at);
    let text = at.join(&fixture.data.base).join("text").display().to_string();
    let read = User::beside(view.pid(), USER, &["cat", &text]);
    assert_eq!(read.stdout, b"hello\n", "{read:?}");
    view.signal(Signal::TERM);
    assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
    let warning = "cannot watch the roots; the limit fs.inotify.max_user_instances may be reached";
    assert!(view.stderr().contains(warning), "{}", view.stderr());
    drop(instances);
}
