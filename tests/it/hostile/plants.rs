//! Devices, pipes and sockets in the place of files that were looked up.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};

use super::{directory, read};
use crate::util::program::Program;
use crate::util::service::Service;
use crate::util::store::NixStore;

fn plant(kind: FileType, at: &Path) {
    match kind {
        FileType::Socket => drop(UnixListener::bind(at).unwrap()),
        FileType::Directory => fs::create_dir(at).unwrap(),
        // /dev/zero and the first RAM disk: whoever reads one gets bytes of it, or waits.
        kind => {
            let number = rustix::fs::makedev(1, if kind == FileType::CharacterDevice { 5 } else { 0 });
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(CWD, at, kind, mode, number).unwrap();
        }
    }
}

/// Whoever reads what was looked up as a file gets its bytes, as far as they are cached, or an error; nobody waits, no byte
/// comes from what is there now, and the server that answers is the same.
#[test]
fn what_is_put_in_the_place_of_a_file_is_never_read() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    for io in ["cached", "passthrough"] {
        for kind in [
            FileType::Fifo,
            FileType::Socket,
            FileType::CharacterDevice,
            FileType::BlockDevice,
            FileType::Directory,
        ] {
            let member = store.add_in_place(&format!("{io}-{kind:?}"), &[], |at| {
                fs::create_dir(at).unwrap();
                for name in ["read", "looked-up", "never"] {
                    fs::write(at.join(name), "inside").unwrap();
                }
            });
            let mut service = Service::new(&store).with(["--root", &member.path, "--io", io]);
            service.start_ready();
            let server = service.server();
            let top = directory(&service.path().join(&member.base));
            assert_eq!(read(&top, "read").unwrap(), b"inside");
            assert!(service.path().join(&member.base).join("looked-up").metadata().is_ok());
            for name in ["read", "looked-up", "never"] {
                let at = store.physical().join(&member.base).join(name);
                fs::remove_file(&at).unwrap();
                plant(kind, &at);
            }
            for name in ["read", "looked-up", "never"] {
                match read(&top, name) {
                    Ok(bytes) => assert_eq!(bytes, b"inside", "{name}, {kind:?}, {io}"),
                    Err(error) => {
                        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{name}, {kind:?}")
                    }
                }
            }
            assert_eq!(service.server(), server, "{kind:?}: the server had to be replaced");
            service.stop();
        }
    }
}

/// Those that are there from the beginning are not there, by name and in a listing.
#[test]
fn what_a_nar_cannot_hold_is_not_there() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let member = store.add_in_place("planted", &[], |at| {
        fs::create_dir(at).unwrap();
        fs::write(at.join("file"), "inside").unwrap();
        for kind in [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice] {
            plant(kind, &at.join(format!("{kind:?}")));
        }
    });
    let view = Program::on(&store).args(["--root", &member.path]).mount();
    let top = view.path().join(&member.base);
    for _ in 0..2 {
        assert_eq!(crate::util::tree::list(&top).unwrap(), [Path::new("file")]);
        for name in ["Fifo", "Socket", "CharacterDevice", "BlockDevice"] {
            let error = top.join(name).symlink_metadata().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{name}");
        }
    }
}
