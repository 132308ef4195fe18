//! The end of a view frees everybody, whatever it is that they wait for: SIGTERM ends the program with the documented exit
//! code, and whoever waits for an answer gets an error and is gone.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use crate::util::fixture::Fixture;
use crate::util::hold;
use crate::util::namespace::Namespace;
use crate::util::program::{Finished, Program};
use crate::util::service::{Service, Victim};
use crate::util::thief::{self, Thief, Waiter};
use crate::util::{DEADLINE, locked, mounts, tree};

fn service(fixture: &Fixture) -> Service {
    Service::new(&fixture.store).with(["--system", &fixture.system.path])
}

/// A command that looks at a name that nobody has looked at.
fn look(at: &Path) -> Command {
    let mut command = Command::new("stat");
    command.arg(at);
    command
}

/// A process waits for a request of which its server knows nothing; the thief still has the device.
fn lose(service: &mut Service, fixture: &Fixture) -> (Thief, Waiter) {
    let thief = Thief::of(service.monitor());
    let (connection, name) = (thief::connection(service.path()), service.path().join(&fixture.file.base));
    let waiter = Waiter::lose(connection, &thief, service.server(), &mut look(&name));
    (thief, waiter)
}

fn gets_an_error(waiter: &mut Waiter) {
    assert!(!waiter.ended().success(), "answered, and by whom?");
}

/// Ends the view, which has to end so, and free everybody who waits.
fn end<'a>(service: &mut Service, code: i32, waiters: impl IntoIterator<Item = &'a mut Waiter>) {
    service.signal(Signal::TERM);
    assert_eq!(service.ended().code(), Some(code), "{}", service.log());
    for waiter in waiters {
        gets_an_error(waiter);
    }
    assert!(service.stored().is_empty(), "the descriptor is not given back");
    if code == 0 {
        assert!(!is_mounted(service), "still mounted");
    }
}

fn is_mounted(service: &Service) -> bool {
    mounts::all().iter().any(|mount| mount.source == format!("nix-store-fs:{}", service.name))
}

/// The view ends while somebody waits: with somebody else who holds the device, and without; then it starts again.
fn ends_well(begin: impl Fn(&mut Service, &Fixture) -> (Thief, Waiter)) {
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    for held in [false, true] {
        service.start_ready();
        let (thief, mut waiter) = begin(&mut service, &fixture);
        let thief = Some(thief).filter(|_| held);
        end(&mut service, 0, [&mut waiter]);
        drop(thief);
        starts_again(&mut service, &fixture);
    }
}

/// And the next start serves.
fn starts_again(service: &mut Service, fixture: &Fixture) {
    service.start_ready();
    assert_eq!(tree::list(service.path()).unwrap().len(), fixture.members().len());
    service.stop();
}

/// A request that got lost; with somebody else who holds the device, and without.
#[test]
fn a_lost_request_keeps_nobody() {
    need!(Root, Fuse, Nix);
    ends_well(lose);
}

/// The same, and the one who waits was killed: it cannot end before it gets an answer.
#[test]
fn a_killed_reader_can_end() {
    need!(Root, Fuse, Nix);
    ends_well(|service, fixture| {
        let (thief, mut waiter) = lose(service, fixture);
        waiter.kill();
        (thief, waiter)
    });
}

/// A page that somebody waits for is locked: others wait for the lock, and not for an answer.
#[test]
fn a_page_that_is_waited_for_keeps_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture).with(["--io", "cached"]);
    service.start_ready();
    let data = service.path().join(&fixture.data.base);
    let long = data.join("long");
    // From now on the kernel opens files without asking.
    fs::read(data.join("text")).unwrap();
    fs::metadata(&long).unwrap();
    let thief = Thief::of(service.monitor());
    let (server, connection) = (service.server(), thief::connection(service.path()));
    let cat = || {
        let mut command = Command::new("head");
        command.args(["-c", "1"]).arg(&long);
        command
    };
    let mut first = Waiter::lose(connection, &thief, server, &mut cat());
    let mut second = Waiter::start(connection, &mut cat());
    second.wait_uninterruptible();
    end(&mut service, 0, [&mut first, &mut second]);
    drop(thief);
    starts_again(&mut service, &fixture);
}

/// A server that is stopped, and somebody else who holds the device.
#[test]
fn a_stopped_server_keeps_nobody() {
    need!(Root, Fuse, Nix);
    ends_well(|service, fixture| {
        let thief = Thief::of(service.monitor());
        let connection = thief::connection(service.path());
        thief::stop(service.server());
        let waiter = Waiter::start(connection, &mut look(&service.path().join(&fixture.file.base)));
        thief.wait();
        (thief, waiter)
    });
}

/// A reload that invalidates a name, as in a view that an earlier version has served: the kernel waits for the directory, which somebody has locked who waits for an answer.
/// No signal ends that wait, so the server cannot be killed, and it holds the device.
struct Hanging {
    service: Service,
    waiter: Waiter,
    server: Pid,
    reload: Receiver<Finished>,
}

impl Hanging {
    fn new(fixture: &Fixture, room: usize) -> Self {
        let link = fixture.store.profile("web/system", &fixture.system.path);
        let mut service = Service::new(&fixture.store).with([Path::new("--system"), &link]);
        service.set_room(room);
        service.set("NSF_WAITS", "yes");
        service.start_ready();
        // The kernel knows that it is absent.
        assert!(!service.path().join(&fixture.outside.base).exists());
        let (thief, waiter) = lose(&mut service, fixture);
        drop(thief);
        let server = service.server();
        let next = link.with_extension("next");
        symlink(&fixture.outside.path, &next).unwrap();
        fs::rename(&next, &link).unwrap();
        let (tell, reload) = channel();
        let name = service.name.clone();
        std::thread::spawn(move || tell.send(Program::new().args(["reload", &name]).run()));
        service.wait_for_invalidation(server, || false);
        Self { service, waiter, server, reload }
    }
}

#[test]
fn a_reload_that_hangs_keeps_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let Hanging { mut service, mut waiter, server, reload } = Hanging::new(&fixture, 2);
    end(&mut service, 0, [&mut waiter]);
    assert_eq!(reload.recv_timeout(DEADLINE).expect("an answer").status.code(), Some(8));
    assert!(!Path::new(&format!("/proc/{}", server.as_raw_nonzero())).exists(), "the server lives");
    service.start_ready();
    assert!(service.path().join(&fixture.outside.base).exists());
    service.stop();
}

/// The same of a view that was detached, where fusectl is missing: nothing aborts the connection.
#[test]
fn a_reload_that_hangs_keeps_nobody_without_fusectl_either() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let link = fixture.store.profile("web/system", &fixture.system.path);
    let mut service = Service::new(&fixture.store).with([Path::new("--system"), &link]);
    let scratch = crate::util::scratch();
    service.inside(without_fusectl(scratch.path()));
    service.set("NSF_HOLD", scratch.path());
    service.set("NSF_WAITS", "yes");
    service.start_ready();
    assert!(!service.path().join(&fixture.outside.base).exists());
    let (server, connection) = (service.server(), thief::connection(service.path()));
    let (held, there) = hold::arm(scratch.path(), "taken");
    let mut waiter = Waiter::start(connection, &mut look(&service.path().join(&fixture.file.base)));
    service.wait_for(&there);
    fs::remove_file(&link).unwrap();
    fixture.store.profile("web/system", &fixture.outside.path);
    service.signal(Signal::HUP);
    service.wait_for_invalidation(server, || false);
    rustix::mount::unmount(service.path(), UnmountFlags::DETACH).unwrap();
    end(&mut service, 0, [&mut waiter]);
    drop(held);
}

/// All processes are killed then, and no service manager has kept the device: the mount has no server any more, though its
/// connection lives. The next start ends that, and serves.
#[test]
fn a_start_ends_a_connection_that_nobody_serves() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let Hanging { mut service, mut waiter, .. } = Hanging::new(&fixture, 0);
    service.kill_unwaited(Victim::Both);
    service.start_ready();
    gets_an_error(&mut waiter);
    assert!(service.path().join(&fixture.outside.base).exists());
    service.stop();
    assert!(!is_mounted(&service), "still mounted");
}

/// A successor whose server waits for the end of an earlier one.
#[test]
fn a_start_that_waits_keeps_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    service.start_ready();
    let connection = thief::connection(service.path());
    let (thief, mut lost) = lose(&mut service, &fixture);
    service.kill(Victim::Both);
    let lock = locked(&service.state().join("server"));
    let mut waiter = Waiter::start(connection, &mut look(&service.path().join(&fixture.data.base)));
    thief.wait();
    service.start();
    service.wait_logged("taking over the view", 1);
    let _server = service.server();
    end(&mut service, 0, [&mut lost, &mut waiter]);
    drop((thief, lock));
    starts_again(&mut service, &fixture);
}

/// A view that somebody has detached or moved.
#[test]
fn a_view_that_is_not_where_it_was_mounted_keeps_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = crate::util::scratch();
    let above = dir.path().join("above");
    fs::create_dir_all(above.join("view")).unwrap();
    let mut service = service(&fixture);
    let usual = service.path().to_owned();
    service.replace(&usual, &above.join("view"));
    for how in ["detached", "moved"] {
        service.start_ready();
        let view = above.join("view");
        let thief = Thief::of(service.monitor());
        let (server, connection) = (service.server(), thief::connection(&view));
        let mut waiter = Waiter::lose(connection, &thief, server, &mut look(&view.join(&fixture.file.base)));
        match how {
            "detached" => rustix::mount::unmount(&view, UnmountFlags::DETACH).unwrap(),
            _ => fs::rename(&above, dir.path().join("moved")).unwrap(),
        }
        end(&mut service, 0, [&mut waiter]);
        drop(thief);
    }
}

/// A view that a container alone still has, also where a successor has taken it over.
#[test]
fn a_view_that_only_a_container_has_keeps_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    for taken_over in [false, true] {
        service.start_ready();
        let container = Namespace::new();
        let connection = thief::connection(service.path());
        rustix::mount::unmount(service.path(), UnmountFlags::empty()).unwrap();
        if taken_over {
            service.kill(Victim::Both);
            service.start_ready();
        }
        let thief = Thief::of(service.monitor());
        let server = service.server();
        let name: PathBuf = service.path().join(&fixture.file.base);
        let mut waiter = Waiter::lose(connection, &thief, server, container.command("stat").arg(&name));
        end(&mut service, 0, [&mut waiter]);
        drop((thief, container));
        starts_again(&mut service, &fixture);
    }
}

/// Where mounts are private, unmounting does not arrive in the mount namespace that a later monitor has for Nix's library.
#[test]
fn a_view_ends_while_one_that_began_later_is_served_where_mounts_are_private() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let table = Namespace::new();
    let pid = table.pid().to_string();
    let start = || {
        let program = Program::on(&fixture.store).inside(["nsenter", "-t", &pid, "-m"]);
        program.args(["--system", &fixture.system.path]).mount()
    };
    let mut first = start();
    let later = start();
    table.inside(&["umount", first.path().to_str().unwrap()]);
    assert_eq!(first.end().code(), Some(0), "{}", first.stderr());
    assert_eq!(
        table.inside(&["ls", later.path().to_str().unwrap()]).lines().count(),
        fixture.members().len()
    );
}

/// A view that something else covers, and a directory in it that is open.
struct Covered {
    open: fs::File,
    connection: u32,
    thief: Option<Thief>,
    _cover: mounts::Own,
}

impl Covered {
    fn new(view: &Path, monitor: Pid) -> Self {
        Self {
            open: fs::File::open(view).unwrap(),
            connection: thief::connection(view),
            thief: Some(Thief::of(monitor)),
            _cover: mounts::Own::mount("tmpfs", view, ""),
        }
    }

    /// Looks at a name in there that nobody has looked at.
    fn look(&self, fixture: &Fixture) -> Command {
        let mut command = look(Path::new(&fixture.file.base));
        command.current_dir(format!("/proc/{}/fd/{}", std::process::id(), self.open.as_raw_fd()));
        command
    }

    fn lose(&self, server: Pid, fixture: &Fixture) -> Waiter {
        Waiter::lose(self.connection, self.thief.as_ref().unwrap(), server, &mut self.look(fixture))
    }
}

/// It stays in the mount table, as it cannot be unmounted. It ends all the same: who waits gets an error, and so does who
/// has it open and asks later.
#[test]
fn a_covered_view_keeps_nobody() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    for waits in [true, false] {
        service.start_ready();
        let covered = Covered::new(service.path(), service.monitor());
        let mut waiter = waits.then(|| covered.lose(service.server(), &fixture));
        end(&mut service, 6, waiter.as_mut());
        assert!(service.log().contains("is mounted over it"), "{}", service.log());
        gets_an_error(&mut Waiter::start(covered.connection, &mut covered.look(&fixture)));
        drop(covered);
        starts_again(&mut service, &fixture);
    }
}

/// The same without fusectl and without a service manager: the connection ends with the last descriptor of the device.
#[test]
fn a_covered_view_keeps_nobody_without_fusectl_either() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = service(&fixture);
    let scratch = crate::util::scratch();
    service.inside(without_fusectl(scratch.path()));
    service.start_alone();
    service.wait_logged("the view answers", 1);
    let mut covered = Covered::new(service.path(), service.monitor());
    let mut waiter = covered.lose(service.server(), &fixture);
    covered.thief = None;
    end(&mut service, 6, [&mut waiter]);
    gets_an_error(&mut Waiter::start(covered.connection, &mut covered.look(&fixture)));
}

/// A command that runs another where fusectl can neither be mounted nor found.
fn without_fusectl(scratch: &Path) -> [String; 3] {
    let refuse = crate::util::compile("refuse.c", scratch).display().to_string();
    [refuse, rustix::io::Errno::PERM.raw_os_error().to_string(), "fsopen".to_owned()]
}

/// There the view is unmounted by force, where the kernel allows that.
#[test]
fn where_there_is_no_fusectl_nobody_is_kept_either() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let scratch = crate::util::scratch();
    for elsewhere in [false, true] {
        let mut view = fixture.program().inside(without_fusectl(scratch.path())).mount();
        let thief = Thief::of(view.pid());
        let (connection, server) = (thief::connection(view.path()), view.server_now().unwrap());
        let name = view.path().join(&fixture.file.base);
        // Then the view can be unmounted at its place, where nobody uses it.
        let container = elsewhere.then(Namespace::new);
        let mut command = container.as_ref().map_or_else(|| Command::new("stat"), |own| own.command("stat"));
        let mut waiter = Waiter::lose(connection, &thief, server, command.arg(&name));
        view.signal(Signal::TERM);
        assert_eq!(view.end().code(), Some(0), "{}", view.stderr());
        gets_an_error(&mut waiter);
        assert!(mounts::at(view.path()).is_none());
    }
}
