//! A low limit of open files makes a view slower, and nothing else.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::util::program::Program;
use crate::util::store::{Member, NixStore};

/// Directories, with a file in each.
const FILES: usize = 400;
const READERS: usize = 4;

fn wide(store: &NixStore) -> Member {
    store.add("wide", &[], |path| {
        for number in 0..FILES {
            let dir = path.join(format!("d{number}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("f"), number.to_string()).unwrap();
        }
    })
}

/// Reads all files of a view whose processes may have `limit` open files; what went wrong.
fn read_all(store: &NixStore, system: &Member, limit: u32, io: &str) -> Vec<String> {
    let shell = format!("ulimit -Sn {limit}; ulimit -Hn {limit}; exec \"$@\"");
    let program = Program::on(store).args(["--system", &system.path, "--io", io]);
    let view = program.inside(["sh", "-c", &shell, "sh"]).mount();
    let next = AtomicUsize::new(0);
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let reader = || {
            let mut wrong = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= FILES {
                    return wrong;
                }
                let name = format!("d{number}/f");
                match fs::read(view.path().join(&system.base).join(&name)) {
                    Ok(bytes) if bytes == number.to_string().as_bytes() => {}
                    Ok(bytes) => wrong.push(format!("{name}: {} bytes, not those of the file", bytes.len())),
                    Err(error) => wrong.push(format!("{name}: {error}")),
                }
            }
        };
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        wrong.extend(readers.into_iter().flat_map(|reader| reader.join().unwrap()));
    });
    wrong
}

fn every_file_is_read(limits: &[u32], io: &str) {
    let store = NixStore::new();
    let system = wide(&store);
    let mut failed = Vec::new();
    for limit in limits {
        let wrong = read_all(&store, &system, *limit, io);
        if let Some(first) = wrong.first() {
            failed.push(format!("limit {limit}: {} of {FILES} files, first {first}", wrong.len()));
        }
    }
    assert!(failed.is_empty(), "with a low limit of open files some cannot be read:\n{}", failed.join("\n"));
}

/// Limits from what a small service is given to what a shell has.
const LIMITS: [u32; 5] = [32, 64, 128, 400, 512];

/// Whatever the limit of open files is, every file of a view can be read.
#[test]
fn every_file_is_read_with_few_descriptors_with_io_cached() {
    need!(Root, Fuse, Nix);
    every_file_is_read(&LIMITS, "cached");
}

/// The same when the kernel reads the files itself.
#[test]
fn every_file_is_read_with_few_descriptors_with_io_passthrough() {
    need!(Root, Fuse, Nix, Passthrough);
    every_file_is_read(&LIMITS, "passthrough");
}

/// A view comes up, and says so, with hardly more open files than its monitor has at rest (21), hands to a server, and has not sent to
/// the service manager yet.
#[test]
fn every_file_is_read_with_hardly_any_descriptors() {
    need!(Root, Fuse, Nix);
    every_file_is_read(&[28], "cached");
}

/// The table of descriptors of a server has room for those of a usual view before there is a second thread: each time that the table of
/// several threads grows, whoever opens something waits until no processor uses the old one.
#[test]
fn a_server_has_room_for_descriptors_from_the_beginning() {
    let store = NixStore::new();
    let system = wide(&store);
    let view = Program::on(&store).args(["--system", &system.path]).mount();
    let server = view.server_now().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", server.as_raw_nonzero())).unwrap();
    let size: u32 =
        status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().parse().unwrap();
    assert!(size >= 1024, "room for {size} descriptors");
}
