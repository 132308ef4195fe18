//! What is asked for ahead, on real files. On a file system that is memory there is nothing to bring: then only that is tested
//! which does not depend on it, and the test says so.

use std::fs::{self, File};
use std::path::Path;

use super::super::tests::backing;
use super::*;
use crate::sys::cached::cached_pages;
use crate::sys::cached::overlay::over_an_overlay;

/// Drops what is cached of `file`. Whether that can be.
fn cool(file: &Path) -> bool {
    let opened = File::open(file).unwrap();
    opened.sync_all().unwrap();
    rustix::fs::fadvise(&opened, 0, None, Advice::DontNeed).unwrap();
    let is_cold = cached(file, u64::MAX >> 1) == 0;
    if !is_cold {
        eprintln!("not tested: this file system does not forget what it has cached");
    }
    is_cold
}

/// Bytes of the first `length` that are cached, in whole pages.
fn cached(file: &Path, length: u64) -> u64 {
    cached_pages(File::open(file).unwrap(), 0, length).unwrap() * rustix::param::page_size() as u64
}

#[test]
fn what_was_asked_for_comes_and_what_was_read_goes() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("m/d");
    fs::create_dir_all(&below).unwrap();
    let mut ahead = backing(dir.path()).ahead();
    let page = rustix::param::page_size() as u64;
    let whole = |size: u64| size.next_multiple_of(page);
    for (name, size, asked) in
        [("small", 100, page), ("some", 300_000, whole(300_000)), ("large", 3 << 20, MOST)]
    {
        let file = below.join(name);
        fs::write(&file, vec![b'x'; size]).unwrap();
        let path = format!("m/d/{name}");
        if !cool(&file) {
            assert_eq!(ahead.bring(path.as_bytes()), Found::Warm);
            continue;
        }
        assert_eq!(ahead.bring(path.as_bytes()), Found::Cold(asked), "{name}");
        assert_eq!(cached(&file, u64::MAX >> 1), asked, "{name}");
        assert_eq!(ahead.bring(path.as_bytes()), Found::Warm, "{name}");
        // What the disk has not brought yet cannot be dropped.
        let reader = File::open(&file).unwrap();
        rustix::fs::fadvise(&reader, 0, None, Advice::Random).unwrap();
        std::os::unix::fs::FileExt::read_at(&reader, &mut vec![0; asked as usize], 0).unwrap();
        ahead.drop_pages(path.as_bytes(), asked);
        assert_eq!(cached(&file, u64::MAX >> 1), 0, "{name}");
    }
    // In the store directory itself.
    fs::write(dir.path().join("top"), b"x").unwrap();
    if cool(&dir.path().join("top")) {
        assert_eq!(ahead.bring(b"top"), Found::Cold(page));
    }
}

#[test]
fn nothing_but_a_plain_file_is_opened_and_no_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"x").unwrap();
    cool(&outside.path().join("secret"));
    fs::create_dir(dir.path().join("m")).unwrap();
    fs::write(dir.path().join("m/empty"), b"").unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("m/out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("m/link")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("m/pipe"), FileType::Fifo, mode, 0).unwrap();
    let mut ahead = backing(dir.path()).ahead();
    for path in [
        "m",
        "m/empty",
        "m/out/secret",
        "m/link",
        "m/pipe",
        "m/../../secret",
        "m/absent",
        "absent/x",
        "",
        "m/",
    ] {
        assert_eq!(ahead.bring(path.as_bytes()), Found::Nothing, "{path}");
    }
    assert_eq!(ahead.list(b"m/out"), None);
    assert_eq!(ahead.list(b"m/empty"), None);
    assert_eq!(ahead.list(b".."), None);
    let kinds = [("empty", Kind::File), ("link", Kind::Other), ("out", Kind::Other), ("pipe", Kind::Other)];
    let wanted: Vec<Listed> = kinds.map(|(name, kind)| (name.as_bytes().into(), kind)).into();
    assert_eq!(ahead.list(b"m"), Some(wanted));
}

/// There the pages are the lower file system's, and cachestat(2) sees none: what is dropped may be somebody else's.
#[test]
fn what_others_have_cached_stays_where_nobody_can_tell_whether_it_is_cached() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m/file");
    fs::create_dir(dir.path().join("m")).unwrap();
    fs::write(&file, vec![b'x'; 300_000]).unwrap();
    File::open(&file).unwrap().sync_all().unwrap();
    over_an_overlay(dir.path(), |merged| {
        let mut ahead = backing(merged).ahead();
        let found = ahead.bring(b"m/file");
        if let Found::Cold(bytes) = found {
            ahead.drop_pages(b"m/file", bytes);
        }
        assert_eq!(found, Found::Warm);
        assert!(cached(&file, 300_000) >= 300_000);
    });
}
