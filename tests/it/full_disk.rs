//! State directories on a disk that is full: the view is served, what a crash would cost is said, and nothing wrong is served.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use crate::util::collecting::Collecting;
use crate::util::fixture::Fixture;
use crate::util::load::{self, say};
use crate::util::mounts;
use crate::util::service::{Service, Victim};
use crate::util::systems::Systems;
use crate::util::tree::What;
use crate::util::{DEADLINE, tree};

/// A disk of this size for the state of a view, in a directory as the program makes it.
fn small_disk(service: &Service, size: &str) -> mounts::Own {
    let state = service.state();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).unwrap();
    mounts::Own::mount("tmpfs", &state, &format!("size={size},mode=700"))
}

/// Fills a [`small_disk`] of up to 128 KiB; the file that does.
fn fill(service: &Service) -> PathBuf {
    let filler = service.state().join("filler");
    let _full = fs::write(&filler, vec![1; 128 << 10]);
    filler
}

/// A state directory on a disk that is full: the view is served, and says that a crash would not be survived.
#[test]
fn the_journal_is_on_a_full_disk() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let many = load::add_many(&fixture.store, 4000);
    let mut service =
        Service::new(&fixture.store).with(["--system", &fixture.system.path, "--root", &many.path]);
    let _small = small_disk(&service, "64k");
    service.start_ready();
    let real = tree::walk(&fixture.store.physical(), &many.base);
    tree::assert_same(&real, &tree::walk(service.path(), &many.base));
    assert_eq!(service.logged_soon("will not survive a crash of its server", 1), 1, "{}", service.log());
    // Once said it is not said again, and what was opened can still be read.
    load::drop_kernel_caches();
    tree::assert_same(&real, &tree::walk(service.path(), &many.base));
    assert_eq!(service.logged_soon("will not survive a crash of its server", 1), 1, "{}", service.log());
    // The next server does not know all that this one has answered, and has the kernel ask again.
    service.kill(Victim::Server);
    service.wait_logged("a new server has taken over", 1);
    tree::assert_same(&real, &tree::walk(service.path(), &many.base));
    service.stop();
}

/// On kernels that can forget all names at once, no name leads to a node that was lost, from the first answer of the next server on:
/// whoever opened a file by one would get `ESTALE` from every read. By their names the kernel forgets none here, as if a
/// reader held that up.
#[test]
fn no_name_leads_to_a_node_that_the_journal_lost() {
    need!(Root, Fuse, Nix, Epoch);
    let fixture = Fixture::new();
    let many = load::add_many(&fixture.store, 4000);
    let mut service =
        Service::new(&fixture.store).with(["--system", &fixture.system.path, "--root", &many.path]);
    let _small = small_disk(&service, "64k");
    service.set("NSF_FORGETS", "no");
    service.start_ready();
    let real = tree::walk(&fixture.store.physical(), &many.base);
    tree::assert_same(&real, &tree::walk(service.path(), &many.base));
    assert_eq!(service.logged_soon("will not survive a crash of its server", 1), 1, "{}", service.log());
    load::evict_pages();
    service.kill(Victim::Server);
    // Whatever was opened before this answer is lost, as was said. Afterwards: by names that the kernel has, without a listing,
    // which would bring others.
    rustix::fs::statfs(service.path()).unwrap();
    for (path, entry) in &real {
        if let What::File { bytes, .. } = &entry.what {
            let seen = fs::read(service.path().join(path));
            assert_eq!(&seen.unwrap_or_else(|error| panic!("{}: {error}", path.display())), bytes);
        }
    }
    service.stop();
}

/// How files are read that are open is lost as well: the kernel refuses to open a file in two ways at a time.
#[test]
fn what_is_open_can_be_opened_again_when_the_journal_lost_how() {
    need!(Root, Fuse, Nix, Passthrough, Epoch);
    let fixture = Fixture::new();
    let many = load::add_many(&fixture.store, 500);
    let roots = ["--system", &fixture.system.path, "--root", &many.path];
    let mut service = Service::new(&fixture.store).with(roots).with(["--io", "passthrough"]);
    let _small = small_disk(&service, "128k");
    service.start_ready();
    // Files below a directory, and one that is a member itself. They are in the journal, and how they are read is not.
    let mut files = files(&fixture.store.physical(), &many.base);
    files.extend(self::files(&fixture.store.physical(), &fixture.file.base));
    for (path, _) in &files {
        fs::metadata(service.path().join(path)).unwrap();
    }
    fill(&service);
    let open: Vec<_> =
        files.iter().map(|(path, _)| fs::File::open(service.path().join(path)).unwrap()).collect();
    assert_eq!(service.logged_soon("will not survive a crash of its server", 1), 1, "{}", service.log());
    let inside = fs::File::open(service.path().join(&many.base)).unwrap();
    for _ in 0..2 {
        service.kill(Victim::Server);
        rustix::fs::statfs(service.path()).unwrap();
        for ((path, bytes), open) in files.iter().zip(&open) {
            let seen = fs::read(service.path().join(path));
            assert_eq!(seen.unwrap_or_else(|error| panic!("{}: {error}", path.display())), *bytes);
            let mut seen = vec![0; bytes.len()];
            open.read_exact_at(&mut seen, 0).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(seen, *bytes);
        }
        let inside = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
        for (path, bytes) in
            files.iter().filter_map(|(path, b)| Some((path.strip_prefix(&many.base).ok()?, b)))
        {
            assert_eq!(fs::read(inside.join(path)).unwrap(), *bytes);
        }
    }
    service.stop();
}

/// The files at and below a path, relative to `base`, and their contents.
fn files(base: &Path, below: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let all = tree::walk(base, below).into_iter();
    all.filter_map(|(path, entry)| match entry.what {
        What::File { bytes, .. } => Some((path, bytes)),
        What::Directory(_) | What::Link { .. } => None,
    })
    .collect()
}

/// The same when nothing at all can be written.
#[test]
fn the_state_is_on_a_full_disk() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    let _small = small_disk(&service, "16k");
    let filler = fill(&service);
    service.start_ready();
    assert_eq!(service.logged_soon("would not survive a crash of its monitor", 1), 1, "{}", service.log());
    assert_eq!(service.logged_soon("would not survive a crash of its server", 1), 1, "{}", service.log());
    let real = tree::walk(&fixture.store.physical(), &fixture.data.base);
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));

    // What was said comes true, and does not stand in the way of the next one.
    service.kill(Victim::Both);
    fs::remove_file(filler).unwrap();
    service.start_ready();
    tree::assert_same(&real, &tree::walk(service.path(), &fixture.data.base));
    service.stop();
}

/// A running view whose state directory has little room.
fn on_a_small_disk(systems: &Systems) -> (Service, mounts::Own) {
    let mut service = systems.service();
    let small = small_disk(&service, "64k");
    service.start_ready();
    (service, small)
}

/// A state that could not be replaced, as the disk is full, is of another mount: nobody takes that for this one's.
#[test]
fn the_state_of_an_earlier_mount_is_not_believed() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let (mut service, _small) = on_a_small_disk(&systems);
    service.kill(Victim::Both);
    service.lose_descriptors();
    // A journal is begun in the place of the earlier one, and nothing else.
    let filler = fill(&service);
    systems.select(1);
    for _ in 0..2 {
        service.start_ready();
        let seen: BTreeSet<PathBuf> = tree::list(service.path()).unwrap().into_iter().collect();
        assert_eq!(seen, systems.names(1), "{}", service.log());
        service.kill(Victim::Both);
    }
    fs::remove_file(filler).unwrap();
    service.start_ready();
    service.stop();
}

/// A reload that would not survive a crash of the monitor fails, though what it was asked for is shown.
#[test]
fn a_reload_that_would_not_survive_says_so() {
    need!(Root, Fuse, Nix, Busybox);
    let systems = Systems::new(2);
    let (mut service, _small) = on_a_small_disk(&systems);
    let filler = fill(&service);
    systems.select(1);
    let finished = service.reload();
    assert_eq!(finished.status.code(), Some(8), "{finished:?}");
    assert!(finished.stderr.contains("would not survive a crash of its monitor"), "{finished:?}");
    let own = service.path().join(&systems.systems[1].1.base);
    assert!(own.exists(), "{}", service.log());
    // Nothing has changed but the room; and nobody has to change anything else.
    fs::remove_file(filler).unwrap();
    service.reload_well();
    service.kill(Victim::Both);
    load::drop_kernel_caches();
    let locked = Collecting::begin(&systems.store);
    let from = service.heard();
    service.start();
    // The successor is asked, which knows it by the state alone: the Nix store does not answer.
    assert!(own.join("number").exists(), "{}", service.log());
    drop(locked);
    service.wait_ready(from);
    service.stop();
}

/// A server that cannot resume from a broken journal must not leave its readers waiting for ever.
#[test]
fn a_server_that_dies_without_a_journal() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    let _small = small_disk(&service, "16k");
    fill(&service);
    service.start_ready();
    service.kill(Victim::Server);
    let at = service.path().join(&fixture.data.base).join("text");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(fs::read(at).map_err(|error| error.to_string())));
    let answer = told.recv_timeout(DEADLINE / 2);
    assert!(answer.is_ok(), "a reader waits for ever; the program said:\n{}", service.log());
    say(&format!("after the death of a server without a journal: {answer:?}"));
}
