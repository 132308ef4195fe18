//! Paths as people type them, on real links.

use std::os::unix::fs::symlink;

use super::*;

const SYSTEM_PATH: &str = "00000000000000000000000000000000-nixos-system-web";
const OTHER_PATH: &str = "11111111111111111111111111111111-other";

fn trust() -> Trust {
    Trust::of_process(Some(Path::new("/nix/store")))
}

/// A chroot store in a directory of its own.
struct Chroot {
    dir: tempfile::TempDir,
    real: PathBuf,
}

impl Chroot {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let real = root.join("nix/store");
        for name in [SYSTEM_PATH, OTHER_PATH] {
            std::fs::create_dir_all(real.join(name).join("bin")).unwrap();
        }
        std::fs::create_dir_all(root.join("nix/var/nix/profiles/per-container/web")).unwrap();
        std::fs::create_dir_all(root.join("nix/var/nix/profiles/per-container/empty")).unwrap();
        std::fs::create_dir(root.join("plain")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        let chroot = Self { dir, real };
        chroot.link("nix/var/nix/profiles/per-container/web/system", "system-1-link");
        chroot.link(
            "nix/var/nix/profiles/per-container/web/system-1-link",
            &format!("/nix/store/{SYSTEM_PATH}"),
        );
        chroot.link("absolute", "/nix/var/nix/profiles/per-container/web/system");
        chroot.link("inside", &format!("/nix/store/{OTHER_PATH}/bin/../bin"));
        chroot.link("dangling", "/nowhere/at/all");
        chroot.link("round", "about");
        chroot.link("about", "round");
        chroot.link("up", "plain/../nix/var/nix/profiles/per-container/web");
        chroot
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(below)
    }

    fn link(&self, at: &str, target: &str) {
        symlink(target, self.path(at)).unwrap();
    }

    fn resolve(&self, typed: &Path) -> Result<String, ProfileError> {
        let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &self.real };
        follow(typed, dirs, &trust()).result.map(|path| path.to_string())
    }
}

#[test]
fn every_way_to_name_a_system_leads_to_it() {
    let chroot = Chroot::new();
    let profiles = "nix/var/nix/profiles/per-container/web";
    for typed in [
        chroot.path(profiles),
        chroot.path(&format!("{profiles}/system")),
        chroot.path(&format!("{profiles}/system-1-link/sw/bin")),
        chroot.path("absolute"),
        chroot.path("up"),
        chroot.real.join(SYSTEM_PATH),
        chroot.real.join(SYSTEM_PATH).join("bin"),
        PathBuf::from("/nix/store").join(SYSTEM_PATH),
        PathBuf::from("/usr/../nix/store").join(SYSTEM_PATH),
        PathBuf::from(SYSTEM_PATH),
    ] {
        assert_eq!(chroot.resolve(&typed).unwrap(), SYSTEM_PATH, "{}", typed.display());
    }
    assert_eq!(chroot.resolve(&chroot.path("inside")).unwrap(), OTHER_PATH);
}

/// The links among what `typed` depends on, whether it leads to a store path or not.
fn links(chroot: &Chroot, typed: &Path) -> Vec<PathBuf> {
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let depends_on = follow(typed, dirs, &trust()).depends_on;
    let is_link = |one: &&Dependency| matches!(one.seen(), Seen::Link(_));
    depends_on.iter().filter(is_link).map(|one| one.path().to_owned()).collect()
}

#[test]
fn the_links_followed_are_told_in_order() {
    let chroot = Chroot::new();
    let web = "nix/var/nix/profiles/per-container/web";
    let expected =
        ["absolute", &format!("{web}/system"), &format!("{web}/system-1-link")].map(|l| chroot.path(l));
    assert_eq!(links(&chroot, &chroot.path("absolute")), expected);
}

/// Every directory on the way is examined, and a path that leads nowhere depends on the end that is absent.
#[test]
fn a_failure_says_what_it_depended_on() {
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let profiles = "nix/var/nix/profiles";
    chroot.link("first", &format!("/{profiles}/second"));
    chroot.link(&format!("{profiles}/second"), "per-container/web/absent/too");
    for (typed, last) in [
        ("absent/system", "absent"),
        ("first", &*format!("{profiles}/per-container/web/absent")),
        ("file/below", "file/below"),
        (&*format!("{profiles}/per-container/empty"), &*format!("{profiles}/per-container/empty/system")),
    ] {
        let Followed { result, depends_on } = follow(&chroot.path(typed), dirs, &trust());
        result.unwrap_err();
        let end = depends_on.last().unwrap();
        assert_eq!((end.path(), end.seen()), (&*chroot.path(last), &Seen::Absent), "{typed}");
        for one in &depends_on {
            let above = one.path().ancestors().skip(1);
            let known = |dir: &Path| depends_on.iter().any(|other| other.path() == dir);
            assert!(above.into_iter().all(known), "{typed}: {}", one.path().display());
        }
    }
    assert_eq!(
        links(&chroot, &chroot.path("first")),
        ["first", "nix/var/nix/profiles/second"].map(|l| chroot.path(l))
    );
    assert_eq!(links(&chroot, &chroot.path("round")).len(), LINKS_MAX + 1);
}

/// Links to a file of roots are followed as the kernel does, whatever the store's chroot, also in the store: there they are
/// no dependency.
#[test]
fn a_file_depends_on_the_links_to_it_and_on_itself() {
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let file = chroot.path("file");
    std::fs::write(&file, "outside").unwrap();
    let stored = chroot.real.join(SYSTEM_PATH).join("stored");
    std::fs::write(&stored, "stored").unwrap();
    chroot.link("to-file", "plain/../by-name");
    chroot.link("by-name", file.to_str().unwrap());
    chroot.link("in-store", stored.to_str().unwrap());
    chroot.link("through-store", chroot.real.join(SYSTEM_PATH).join("out").to_str().unwrap());
    symlink(&file, chroot.real.join(SYSTEM_PATH).join("out")).unwrap();
    let read = |typed: &str| {
        let ReadFile { result, depends_on } = read_file(&chroot.path(typed), dirs, &trust(), 100);
        let wanted =
            |one: &&Dependency| matches!(one.seen(), Seen::Link(_) | Seen::File { .. } | Seen::Absent);
        let names: Vec<PathBuf> = depends_on.iter().filter(wanted).map(|one| one.path().to_owned()).collect();
        (result.unwrap().map(text).map_err(|error| error.kind()), names)
    };
    let paths = |names: &[&str]| names.iter().map(|name| chroot.path(name)).collect::<Vec<_>>();
    let outside = || Ok("outside".to_owned());
    assert_eq!(read("to-file"), (outside(), paths(&["to-file", "by-name", "file"])));
    assert_eq!(read("in-store"), (Ok("stored".to_owned()), paths(&["in-store"])));
    assert_eq!(read("through-store"), (outside(), paths(&["through-store", "file"])));
    assert_eq!(read("absent"), (Err(io::ErrorKind::NotFound), paths(&["absent"])));
    assert_eq!(read("plain").0, Err(io::ErrorKind::IsADirectory));
    assert!(read("round").0.is_err());
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Neither a file nor a pipe is read beyond the limit.
#[test]
fn what_is_too_long_is_not_read() {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let read = |file: &Path, limit| {
        let read = read_file(file, dirs, &trust(), limit).result.unwrap();
        read.map(text).map_err(|error| error.kind())
    };
    let (file, huge) = (chroot.path("file"), chroot.path("huge"));
    std::fs::write(&file, "four").unwrap();
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(read(&file, 4), Ok("four".to_owned()));
    assert_eq!(read(&file, 3), Err(io::ErrorKind::FileTooLarge));
    assert_eq!(read(&huge, 1 << 39), Err(io::ErrorKind::FileTooLarge));
    for (limit, expected) in [(4, Ok("four".to_owned())), (3, Err(io::ErrorKind::FileTooLarge))] {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"four").unwrap();
        drop(writer);
        let at = format!("/dev/fd/{}", reader.as_raw_fd());
        assert_eq!(read(Path::new(&at), limit), expected);
    }
}

/// A pipe without a writer, or with one that does not write, is waited for as long as was said.
#[test]
fn a_pipe_that_nobody_writes_to_is_an_error() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &at, Mode::RUSR | Mode::WUSR).unwrap();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = std::fs::File::from(rustix::fs::open(&at, flags, Mode::empty()).unwrap());
    let read = |patience| read_at_most(&pipe, 10, patience).map_err(|error| error.kind());
    assert_eq!(read(Duration::ZERO), Err(io::ErrorKind::TimedOut));
    let mut writer = std::fs::File::options().write(true).open(&at).unwrap();
    assert_eq!(read(Duration::from_millis(1)), Err(io::ErrorKind::TimedOut));
    writer.write_all(b"four").unwrap();
    drop(writer);
    assert_eq!(read(PATIENCE), Ok(b"four".to_vec()));
}

/// What has no name can be reached by a link of proc(5) alone.
#[test]
fn roots_are_read_from_a_pipe() {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"piped").unwrap();
    drop(writer);
    let at = format!("/dev/fd/{}", reader.as_raw_fd());
    assert_eq!(read_file(Path::new(&at), dirs, &trust(), 100).result.unwrap().unwrap(), b"piped");
}

/// Each place where a stranger could decide is judged, and a file before it is read.
#[test]
fn nobody_else_decides() {
    use std::os::unix::fs::PermissionsExt;
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let profiles = "nix/var/nix/profiles/per-container";
    let untrusted = |dir: &str| trust().with_untrusted(&[chroot.path(dir)]);
    let entry = |result: Result<String, ProfileError>| match result {
        Err(ProfileError::Untrusted { entry, .. }) => entry,
        other => panic!("{other:?}"),
    };
    let followed = |typed: &str, trust: &Trust| {
        follow(&chroot.path(typed), dirs, trust).result.map(|path| path.to_string())
    };
    let web = untrusted(&format!("{profiles}/web"));
    for typed in ["absolute", "up", &format!("{profiles}/web"), &format!("{profiles}/web/system-1-link/bin")]
    {
        assert_eq!(entry(followed(typed, &web)), chroot.path(&format!("{profiles}/web")), "{typed}");
    }
    assert!(followed("inside", &web).is_ok());
    assert!(followed(&format!("{profiles}/web"), &web.clone().warning_only()).is_ok());

    let mode = |name: &str, mode| {
        std::fs::set_permissions(chroot.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let read = |name: &str| {
        let result = read_file(&chroot.path(name), dirs, &trust(), 100).result;
        result.map(|read| text(read.unwrap()))
    };
    mode(profiles, 0o757);
    assert_eq!(entry(followed("absolute", &trust())), chroot.path(profiles));
    assert!(followed(&format!("/nix/store/{SYSTEM_PATH}"), &trust()).is_ok());
    mode(profiles, 0o1757);
    assert!(followed("absolute", &trust()).is_ok());
    mode("file", 0o646);
    assert_eq!(entry(read("file")), chroot.path("file"));
    mode("file", 0o644);
    mode("plain", 0o777);
    chroot.link("round-about", "plain/../file");
    assert_eq!(entry(read("round-about")), chroot.path("plain"));
    assert!(read("file").is_ok());
}

/// What others may move to where it is does not decide. In the directory of a store it does: builders may write that.
#[test]
fn nobody_else_moves_what_decides() {
    use std::os::unix::fs::PermissionsExt;
    let chroot = Chroot::new();
    let logical = chroot.path("logical");
    let dirs = StoreDirs { logical: &logical, real: &chroot.real };
    for dir in ["logical", "public", "public/dir"] {
        std::fs::create_dir(chroot.path(dir)).unwrap();
    }
    chroot.link("public/link", "../nix/var/nix/profiles/per-container/web/system");
    chroot.link("public/dir/link", "../link");
    chroot.link("public/dir/direct", "../../nix/var/nix/profiles/per-container/web/system");
    chroot.link("to-stored", chroot.real.join("roots").to_str().unwrap());
    for dir in ["logical", "public", "nix/store"] {
        std::fs::write(chroot.path(dir).join("roots"), "some").unwrap();
        std::fs::set_permissions(chroot.path(dir), std::fs::Permissions::from_mode(0o1777)).unwrap();
    }
    let moved = |result: Result<_, ProfileError>| match result {
        Err(ProfileError::Untrusted { entry, why: Reason::Movable { dir, .. } }) => Some((entry, dir)),
        Ok(()) => None,
        Err(error) => panic!("{error}"),
    };
    let usual = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let followed = |typed: &str| moved(follow(&chroot.path(typed), usual, &trust()).result.map(|_| ()));
    let read = |typed: &str| moved(read_file(&chroot.path(typed), dirs, &trust(), 100).result.map(|_| ()));
    let public = |name: &str| Some((chroot.path("public").join(name), chroot.path("public")));
    assert_eq!(followed("public/link"), public("link"));
    assert_eq!(followed("public/dir/link"), public("link"));
    assert_eq!(followed("public/dir/direct"), None);
    assert_eq!(read("public/roots"), public("roots"));
    for stored in ["logical/roots", "nix/store/roots", "to-stored"] {
        assert_eq!(read(stored), None, "{stored}");
    }
}

#[test]
fn each_failure_has_its_own_name() {
    let chroot = Chroot::new();
    let fails = |below: &str| chroot.resolve(&chroot.path(below)).unwrap_err();
    assert!(matches!(fails("absent"), ProfileError::Absent(_)));
    assert!(matches!(fails("absent/system"), ProfileError::Absent(_)));
    assert!(matches!(fails("dangling"), ProfileError::Dangling { .. }));
    assert!(matches!(fails("plain"), ProfileError::NotInStore { .. }));
    assert!(matches!(fails("file"), ProfileError::NotInStore { .. }));
    assert!(matches!(fails("nix/store"), ProfileError::TheStore(_)));
    assert!(matches!(fails("nix/store/.links"), ProfileError::BadName { .. }));
    assert!(matches!(fails("nix/var/nix/profiles/per-container/empty"), ProfileError::NoSystem(_)));
    assert!(matches!(fails("round"), ProfileError::TooManyLinks(_)));
}

#[test]
fn a_root_that_is_waited_for_may_be_absent_and_nothing_else() {
    let chroot = Chroot::new();
    let absent = |below: &str| chroot.resolve(&chroot.path(below)).unwrap_err().is_absence();
    assert!(absent("absent") && absent("dangling") && absent("nix/var/nix/profiles/per-container/empty"));
    assert!(!absent("round") && !absent("file"));
}

#[test]
fn a_view_is_called_as_a_person_calls_it() {
    for (typed, name) in [
        ("/nix/var/nix/profiles/per-container/web", "web"),
        ("/nix/var/nix/profiles/per-container/web/", "web"),
        (SYSTEM_PATH, "nixos-system-web"),
        ("result", "result"),
    ] {
        assert_eq!(view_name(Path::new(typed)).as_deref(), Some(name), "{typed}");
    }
    assert_eq!(view_name(Path::new("/")), None);
}

#[test]
fn a_store_path_needs_no_directory_of_its_name_on_the_machine() {
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/on/no/machine/store"), real: &chroot.real };
    let typed = format!("/on/no/machine/store/{SYSTEM_PATH}/bin");
    assert_eq!(follow(Path::new(&typed), dirs, &trust()).result.unwrap().to_string(), SYSTEM_PATH);
    chroot.link("elsewhere", &typed);
    assert_eq!(follow(&chroot.path("elsewhere"), dirs, &trust()).result.unwrap().to_string(), SYSTEM_PATH);
    let outside = follow(Path::new("/on/no/machine/store/../elsewhere"), dirs, &trust()).result;
    assert!(matches!(outside, Err(ProfileError::Absent(_))), "{outside:?}");
    let itself = follow(Path::new("/on/no/machine/store/"), dirs, &trust()).result;
    assert!(matches!(itself, Err(ProfileError::TheStore(_))), "{itself:?}");
}
