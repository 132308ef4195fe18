//! Many readers at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::util::fixture::Fixture;
use crate::util::tree::{self, Entry, What};

/// One step of a thread: any entry, looked at in any way, and compared with what it is in the store.
fn step(view: &Path, expected: &[(&PathBuf, &Entry)], choice: u64) {
    let (path, entry) = expected[usize::try_from(choice >> 8).unwrap() % expected.len()];
    let full = view.join(path);
    match choice % 4 {
        0 => assert_eq!(&tree::entry(&full).unwrap(), entry, "{}", path.display()),
        1 => assert_eq!(full.join("missing").symlink_metadata().unwrap_err().raw_os_error(), missing(entry)),
        2 => assert_eq!(std::os::unix::fs::MetadataExt::mode(&full.symlink_metadata().unwrap()), entry.mode),
        _ => {
            if let What::File { bytes, .. } = &entry.what {
                let from = usize::try_from(choice >> 20).unwrap() % (bytes.len() + 1);
                let mut part = vec![0; 10_000];
                let file = std::fs::File::open(&full).unwrap();
                let count = std::os::unix::fs::FileExt::read_at(&file, &mut part, from as u64).unwrap();
                assert_eq!(part[..count], bytes[from..(from + count)], "{} at {from}", path.display());
                assert!(count > 0 || from == bytes.len(), "{} ends at {from}", path.display());
            }
        }
    }
}

/// What looking below an entry that has nothing of the name gives.
fn missing(entry: &Entry) -> Option<i32> {
    let errno = match &entry.what {
        What::File { .. } => rustix::io::Errno::NOTDIR,
        What::Link { target, .. } if target.as_os_str().len() > 255 => rustix::io::Errno::NAMETOOLONG,
        What::Directory(_) | What::Link { .. } => rustix::io::Errno::NOENT,
    };
    Some(errno.raw_os_error())
}

/// Eight threads read this and that for some seconds: no error, no difference.
#[test]
fn eight_threads_of_mixed_reading() {
    need!(Root, Fuse, Nix);
    let fixture = Fixture::new();
    let mut expected: BTreeMap<PathBuf, Entry> = BTreeMap::new();
    for base in fixture.members() {
        expected.extend(tree::walk(&fixture.store.physical(), &base));
    }
    // Links that lead to a file answer differently from those that dangle, which `missing` leaves out.
    expected.retain(|_, entry| {
        !matches!(&entry.what, What::Link { target, .. }
        if target.ends_with("text") || target.ends_with("passwd") || target.starts_with(".."))
    });
    let expected: Vec<(&PathBuf, &Entry)> = expected.iter().collect();
    let view = fixture.mount();
    let until = Instant::now() + Duration::from_secs(3);
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 1..=8_u64 {
            let (expected, view, steps) = (&expected, view.path(), &steps);
            scope.spawn(move || {
                let mut state = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                while Instant::now() < until {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    step(view, expected, state >> 1);
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(steps.load(Ordering::Relaxed) > 8, "the threads did nothing");
}
