//! What the process has that a container's requests reach first.

use std::fs;

use rustix::process::Pid;

use crate::util::fixture::Fixture;
use crate::util::program::Program;
use crate::util::scratch;
use crate::util::service::Service;

/// What cannot be used against anybody is not there: Nix's library, what the service manager and the shell have set, what they
/// have left open.
#[test]
fn a_server_has_neither_nixs_library_nor_an_environment() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let server = service.server();
    let maps = of(server, "maps");
    assert!(maps.contains("nix-store-fs-server"), "{maps}");
    for library in ["libnix", "libcurl", "libsqlite", "libgit2"] {
        assert!(!maps.contains(library), "{maps}");
    }
    let monitor = of(service.monitor(), "maps");
    assert!(monitor.contains("libnixstore"), "the test shows nothing: {monitor}");
    // Beside what tests stop it by.
    let set = of(server, "environ");
    assert!(set.split_terminator('\0').all(|variable| variable.starts_with("NSF_")), "{set}");
    service.stop();
}

fn of(process: Pid, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", process.as_raw_nonzero())).unwrap()
}

/// Both programs belong together; the one that is missing is named.
#[test]
fn a_program_without_its_server_says_so() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let dir = scratch();
    let program = Program::install(dir.path());
    fs::remove_file(dir.path().join("nix-store-fs-server")).unwrap();
    let finished = fixture.program().binary(program).arg(dir.path().join("view")).run();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(
        finished.stderr.contains("nix-store-fs-server'; it belongs beside the program itself"),
        "{finished:?}"
    );
}
