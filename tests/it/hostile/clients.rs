//! Clients of the control socket that are slow, silent, or too many.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::util::fixture::Fixture;
use crate::util::service::Service;

/// A reload succeeds while one client sends a byte now and then, one does not read its answer, one sends without end, and a
/// thousand have connected and say nothing.
#[test]
fn no_client_of_the_control_socket_keeps_another_one_waiting() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut service = Service::new(&fixture.store).with(["--system", &fixture.system.path]);
    service.start_ready();
    let socket = service.state().join("control");
    let connect = || UnixStream::connect(&socket).unwrap();
    let mut unread = connect();
    unread.write_all(b"reload\n").unwrap();
    let (stop, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        let connect = &connect;
        scope.spawn(move || {
            let (mut slow, mut flood) = (connect(), connect());
            flood.set_nonblocking(true).unwrap();
            let _asked = flood.write_all(b"reload\n");
            for byte in b"reload\n".iter().cycle() {
                if slow.write_all(&[*byte]).is_err() {
                    slow = connect();
                }
                let _sent = (0..64).take_while(|_| flood.write(&[b'x'; 4096]).is_ok()).count();
                if stopped.recv_timeout(Duration::from_millis(20)) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        });
        // Dropped first, however the test ends.
        let _stop = stop;
        let mut silent: Vec<UnixStream> = (0..500).map(|_| connect()).collect();
        service.reload_well();
        silent.extend((0..500).map(|_| connect()));
        service.reload_well();
    });
    let mut answer = String::new();
    unread.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"ok\""), "{answer}");
    service.stop();
}
