//! Registers files with the kernel for servers, which have no right to (CAP_SYS_ADMIN).
//!
//! A server may be a container's by now. What it can have registered is what it can read anyway, and the kernel opens a registered
//! file again with the rights of the thread here, for whoever opens the view's file. So:
//!
//! Invariants:
//! - A file is registered that is open for reading and nothing else, is a plain file, and was opened on the mount that the store is on.
//!   That it is below the store's directory is up to the rules of the server (Landlock, which every kernel has that registers files).
//!   What is looked at first does not wake its file system: `F_GETFL`, then statx(2) with `AT_STATX_DONT_SYNC`.
//! - A view has [`LIVE_MAX`] registrations at most, whatever its servers were: each holds an open file in the kernel.
//! - A server that does not read its answers is not listened to for longer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::fuse::Device;
use crate::protocol::registration::{self, Answer, Question};

/// Registrations of one view at most. Further files are read through the server.
const LIVE_MAX: usize = 1 << 16;

/// Registrations of one view.
#[derive(Debug, Default)]
pub(super) struct Registrar {
    live: Arc<AtomicUsize>,
}

/// Where a server's files are registered.
#[derive(Debug)]
struct Connection {
    device: Device,
    /// The mount that the store is on.
    mount: u64,
    live: Arc<AtomicUsize>,
}

impl Registrar {
    /// Registers for one server, until it ends, files of `store` with the kernel at the other end of `device`. Returns the server's
    /// socket.
    ///
    /// # Errors
    /// When there is no further descriptor or thread.
    pub(super) fn serve(&self, device: &OwnedFd, store: impl AsFd) -> io::Result<OwnedFd> {
        let (socket, theirs) = registration::pair()?;
        let (mount, _) = place(store)?;
        let connection =
            Connection { device: Device::from(device.try_clone()?), mount, live: self.live.clone() };
        thread::Builder::new().name("registrar".to_owned()).spawn(move || connection.run(&socket))?;
        Ok(theirs)
    }
}

impl Connection {
    fn run(&self, socket: &OwnedFd) {
        loop {
            let said = match registration::receive(socket) {
                Ok(None) => return,
                Ok(Some(Question::Register { number, file })) => {
                    let result = self.register(&file);
                    // Nobody would ever end what nobody hears of.
                    registration::answer(socket, Answer { number, result })
                        .inspect_err(|_| result.into_iter().for_each(|registration| self.end(registration)))
                }
                Ok(Some(Question::End(all))) => {
                    all.into_iter().for_each(|number| self.end(number));
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = said {
                tracing::warn!(%error, "no more files are registered for this server");
                return;
            }
        }
    }

    fn register(&self, file: &OwnedFd) -> Result<u32, Errno> {
        check(file, self.mount)?;
        let more = |live: usize| live.checked_add(1).filter(|live| *live <= LIVE_MAX);
        self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| Errno::NFILE)?;
        self.device.register(file).map_err(|error| {
            self.ended();
            Errno::from_io_error(&error).unwrap_or(Errno::IO)
        })
    }

    fn end(&self, number: u32) {
        match self.device.end_registration(number) {
            Ok(()) => self.ended(),
            // A server may say so without end, of numbers that were never given.
            Err(error) => tracing::trace!(%error, number, "cannot end the registration of a file"),
        }
    }

    fn ended(&self) {
        // An earlier monitor's registrations are not counted.
        let less = |live: usize| live.checked_sub(1);
        let _ = self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// Whether `file` may be registered.
fn check(file: &OwnedFd, mount: u64) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if flags & (OFlags::ACCMODE | OFlags::PATH) != OFlags::RDONLY {
        return Err(Errno::ACCESS);
    }
    match place(file)? {
        (found, _) if found != mount => Err(Errno::XDEV),
        (_, FileType::RegularFile) => Ok(()),
        _ => Err(Errno::ACCESS),
    }
}

/// The mount that a file was opened on, and what it is. Neither is asked of its file system.
fn place(file: impl AsFd) -> Result<(u64, FileType), Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(file, c"", flags, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok((found.stx_mnt_id, FileType::from_raw_mode(found.stx_mode.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hostile server gives everything that it can get at: its own socket, its journal, the device, directories, other mounts.
    #[test]
    fn only_plain_files_of_the_store_open_for_reading_are_registered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let open = |path: &std::path::Path, flags: OFlags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty()).unwrap()
        };
        let (mount, _) = place(open(dir.path(), OFlags::PATH)).unwrap();
        assert_eq!(check(&open(&path, OFlags::RDONLY), mount), Ok(()));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for (what, file) in [
            ("for writing", open(&path, OFlags::WRONLY)),
            ("for both", open(&path, OFlags::RDWR)),
            ("a way to it alone", open(&path, OFlags::PATH)),
            ("a directory", open(dir.path(), OFlags::RDONLY)),
            ("another mount's", open("/proc/self/status".as_ref(), OFlags::RDONLY)),
            ("a device", open("/dev/null".as_ref(), OFlags::RDONLY)),
            ("a socket", socket.into()),
            ("memory", rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap()),
        ] {
            assert!(check(&file, mount).is_err(), "{what}");
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, 0o644.into(), 0).unwrap();
        assert_eq!(check(&open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK), mount), Err(Errno::ACCESS));
    }

    #[test]
    fn a_view_has_so_many_registrations_whoever_made_them() {
        let device = || Device::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let live: Arc<AtomicUsize> = Arc::new(LIVE_MAX.into());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let file = std::fs::File::open(dir.path().join("file")).unwrap().into();
        let (mount, _) = place(&file).unwrap();
        let connection = Connection { device: device(), mount, live: live.clone() };
        assert_eq!(connection.register(&file), Err(Errno::NFILE));
        connection.ended();
        assert_eq!(connection.register(&file), Err(Errno::NOTTY), "the device is none");
        assert_eq!(live.load(Ordering::Relaxed), LIVE_MAX - 1, "what failed does not count");
        live.store(0, Ordering::Relaxed);
        connection.ended();
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }
}
