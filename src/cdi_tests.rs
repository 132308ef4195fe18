use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;

const SOON: Duration = Duration::from_secs(60);

fn entry(view: &str, at: &str) -> Entry {
    Entry::new(view, Path::new(at), Path::new("/nix/store")).unwrap()
}

fn file_in(dir: &Path) -> SpecFile {
    SpecFile::at(dir.join(FILE))
}

fn write(file: &SpecFile, views: &[Entry]) -> Result<(), CdiError> {
    file.lock(SOON)?.replace(&Spec::of(views))
}

/// Names below `dir`.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_device_has_a_name_that_engines_take_and_no_other_view_has() {
    for (name, fits) in [
        ("web", true),
        ("0", true),
        ("a.b_c-d9", true),
        ("", false),
        ("-web", false),
        ("web-", false),
        ("web.", false),
        ("_", false),
        ("web@1", false),
        ("a=b", false),
        ("a+b", false),
        // Allowed, and what comes behind a view's name here.
        ("web:idmap", false),
        ("w\u{e9}b", false),
    ] {
        let made = Entry::new(name, Path::new("/mnt"), Path::new("/nix/store"));
        assert_eq!(made.err(), (!fits).then_some(NoDevice::Name), "{name}");
    }
    let odd = Path::new(OsStr::from_bytes(b"/mnt/\xff"));
    assert_eq!(Entry::new("web", odd, odd), Err(NoDevice::NotText(odd.to_owned())));
}

#[test]
fn a_view_is_two_devices_that_bind_it_read_only() {
    let spec: Value = serde_json::from_str(&Spec::of(&[entry("web", "/run/view")]).text()).unwrap();
    let mount = |options: &[&str]| {
        let options = [&["ro", "bind", "private", "nosuid", "nodev"], options].concat();
        let mounts = [json!({ "hostPath": "/run/view", "containerPath": "/nix/store", "options": options })];
        json!({ "mounts": mounts })
    };
    assert_eq!(
        spec,
        json!({
            "cdiVersion": "0.5.0",
            "kind": "nix-store-fs/view",
            "devices": [
                { "name": "web", "containerEdits": mount(&[]) },
                { "name": "web:idmap", "containerEdits": mount(&["idmap"]) },
            ],
        })
    );
    assert_eq!(entry("web", "/run/view").devices(), ["nix-store-fs/view=web", "nix-store-fs/view=web:idmap"]);
}

#[test]
fn a_file_is_written_for_everybody_and_removed_with_its_last_device() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    // Of one who was killed.
    fs::write(file.beside("new"), "half").unwrap();
    write(&file, &[entry("web", "/a"), entry("db", "/b")]).unwrap();
    assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o644);
    let spec = file.read().unwrap().unwrap();
    assert_eq!(spec.entry("db"), Some(entry("db", "/b")));
    assert_eq!(spec.entry("web:idmap"), None);
    assert_eq!(names(dir.path()), [FILE]);
    write(&file, &[]).unwrap();
    write(&file, &[]).unwrap();
    assert_eq!(names(dir.path()), [] as [&str; 0]);
}

#[test]
fn an_entry_goes_by_name_and_mount_point() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let all = [entry("web", "/a"), entry("web2", "/b")];
    file.withdraw("web", Path::new("/a"), SOON).unwrap();
    assert_eq!(names(dir.path()), [] as [&str; 0]);
    write(&file, &all).unwrap();
    let before = file.stamp();
    for (view, at) in [("web", "/b"), ("web2", "/a"), ("we", "/a"), ("web:idmap", "/a"), ("other", "/c")] {
        file.withdraw(view, Path::new(at), SOON).unwrap();
        assert_eq!(file.stamp(), before, "{view} at {at}");
    }
    file.withdraw("web", Path::new("/a"), SOON).unwrap();
    assert_eq!(file.read().unwrap(), Some(Spec::of(&all[1..])));
    assert_ne!(file.stamp(), before);
    file.withdraw("web2", Path::new("/b"), SOON).unwrap();
    assert_eq!(names(dir.path()), [] as [&str; 0]);
}

#[test]
fn what_a_later_version_has_written_of_other_views_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let later = json!({ "name": "later", "annotations": { "a": "b" }, "containerEdits": { "env": ["A=B"] } });
    let mut spec = Spec::of(&[entry("web", "/a")]);
    spec.devices.push(later.clone());
    spec.fields.insert("cdiVersion".into(), "0.6.0".into());
    spec.fields.insert("annotations".into(), json!({ "a": "b" }));
    let fields = spec.fields.clone();
    fs::write(file.path(), spec.text()).unwrap();
    file.withdraw("web", Path::new("/a"), SOON).unwrap();
    assert_eq!(file.read().unwrap(), Some(Spec { fields, devices: vec![later] }));
}

#[test]
fn what_is_not_ours_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let own = Spec::of(&[entry("web", "/a")]).text();
    let refused = |what: &str| {
        for views in [&[entry("web", "/a")][..], &[]] {
            let error = write(&file, views).unwrap_err();
            assert!(matches!(error, CdiError::NotOwn { .. }), "{what}: {error:?}");
        }
        file.withdraw("web", Path::new("/a"), SOON).unwrap();
        assert_eq!(names(dir.path()).iter().filter(|name| name.starts_with('.')).count(), 0, "{what}");
    };
    for text in [
        "",
        "{",
        "[]",
        "null",
        r#"{"cdiVersion":"0.5.0","kind":"vendor.com/view","devices":[]}"#,
        r#"{"kind":"nix-store-fs/view"}"#,
        &own.replace("/view", "/other"),
    ] {
        fs::write(file.path(), text).unwrap();
        refused(text);
        assert_eq!(fs::read_to_string(file.path()).unwrap(), text);
    }
    fs::remove_file(file.path()).unwrap();

    let target = dir.path().join("target");
    fs::write(&target, &own).unwrap();
    symlink(&target, file.path()).unwrap();
    refused("a link");
    assert_eq!(fs::read_to_string(&target).unwrap(), own);
    fs::remove_file(file.path()).unwrap();

    fs::create_dir(file.path()).unwrap();
    refused("a directory");
    fs::remove_dir(file.path()).unwrap();

    rustix::fs::mknodat(CWD, file.path(), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    refused("a pipe");
}

#[test]
fn a_link_in_the_place_of_the_lock_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let target = dir.path().join("target");
    symlink(&target, file.beside("lock")).unwrap();
    let error = write(&file, &[entry("web", "/a")]).unwrap_err();
    assert!(matches!(error, CdiError::File { doing: "lock", .. }), "{error:?}");
    assert!(!target.exists());
}

#[test]
fn nobody_waits_for_a_lock_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let held = file.lock(SOON).unwrap();
    held.replace(&Spec::of(&[entry("web", "/a")])).unwrap();
    let error = file.withdraw("web", Path::new("/a"), Duration::ZERO).unwrap_err();
    assert!(matches!(error, CdiError::Locked(_)), "{error:?}");
    drop(held);
    file.withdraw("web", Path::new("/a"), Duration::ZERO).unwrap();
    assert_eq!(names(dir.path()), [] as [&str; 0]);
}

/// Commands write all views there are, and views end, at the same time: no entry of a view that has ended is left.
#[test]
fn many_at_once_lose_nothing() {
    const VIEWS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let name = |view: usize| format!("v{view}");
    let running: Vec<std::sync::atomic::AtomicBool> = (0..VIEWS).map(|_| true.into()).collect();
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..VIEWS {
                    let locked = file.lock(SOON).unwrap();
                    let alive = (0..VIEWS).filter(|view| running[*view].load(order));
                    let entries: Vec<Entry> = alive.map(|view| entry(&name(view), "/a")).collect();
                    locked.replace(&Spec::of(&entries)).unwrap();
                }
            });
        }
        for view in 0..VIEWS {
            let (file, running, name) = (&file, &running, &name);
            scope.spawn(move || {
                running[view].store(false, order);
                file.withdraw(&name(view), Path::new("/a"), SOON).unwrap();
            });
        }
    });
    assert_eq!(names(dir.path()), [] as [&str; 0]);
}

#[test]
fn a_change_shows() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path());
    let absent = file.stamp();
    write(&file, &[entry("web", "/a")]).unwrap();
    let first = file.stamp();
    assert_ne!(absent, first);
    // Even if it is the same again.
    write(&file, &[entry("web", "/a")]).unwrap();
    assert!(file.lock(SOON).unwrap().is_changed(first));
    assert!(!file.lock(SOON).unwrap().is_changed(file.stamp()));
}

/// What YAML 1.2 takes as a character of a stream (`c-printable`), and no break of a line within a string.
fn is_yaml(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Any characters; those of `any::<String>()` are printable.
fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter)
}

proptest! {
    /// Whatever a mount point is called, the file is JSON, YAML, and says what was to be said.
    #[test]
    fn any_text_stays_itself(name in text(), store in text()) {
        let (at, store) = (format!("/{name}"), format!("/{store}"));
        let entry = Entry::new("web", Path::new(&at), Path::new(&store)).unwrap();
        let text = Spec::of(std::slice::from_ref(&entry)).text();
        prop_assert!(text.chars().all(is_yaml), "{text}");
        // YAML knows no pair of surrogates.
        let unescaped = text.replace("\\\\", "");
        prop_assert!(!["8", "9", "a", "b", "c", "d", "e", "f"].iter().any(|digit| unescaped.contains(&format!("\\ud{digit}"))), "{text}");
        let read = Spec::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(read.entry("web"), Some(entry));
    }
}
