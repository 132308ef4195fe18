//! Paths as people type them, on real links.

use std::os::unix::fs::symlink;

use super::*;

const SYSTEM_PATH: &str = "00000000000000000000000000000000-nixos-system-web";
const OTHER_PATH: &str = "11111111111111111111111111111111-other";

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
        follow(typed, dirs).result.map(|path| path.to_string())
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
    let depends_on = follow(typed, dirs).depends_on;
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
        let Followed { result, depends_on } = follow(&chroot.path(typed), dirs);
        result.unwrap_err();
        let end = depends_on.last().unwrap();
        assert_eq!((end.path(), end.seen()), (&*chroot.path(last), &Seen::Absent), "{typed}");
        for one in &depends_on {
            let parent = one.path().parent().unwrap();
            let known = |other: &Dependency| other.path() == parent;
            assert!(
                parent == Path::new("/") || depends_on.iter().any(known),
                "{typed}: {}",
                one.path().display()
            );
        }
    }
    assert_eq!(
        links(&chroot, &chroot.path("first")),
        ["first", "nix/var/nix/profiles/second"].map(|l| chroot.path(l))
    );
    assert_eq!(links(&chroot, &chroot.path("round")).len(), LINKS_MAX + 1);
}

/// Links to a file of roots are followed as the kernel does, whatever the store's chroot.
#[test]
fn a_file_depends_on_the_links_to_it_and_on_itself() {
    let chroot = Chroot::new();
    let dirs = StoreDirs { logical: Path::new("/nix/store"), real: &chroot.real };
    let file = chroot.path("file");
    chroot.link("to-file", "plain/../by-name");
    chroot.link("by-name", file.to_str().unwrap());
    chroot.link("in-store", &format!("/nix/store/{SYSTEM_PATH}/file"));
    let names = |typed: &str| {
        let depends_on = depends_on_file(&chroot.path(typed), dirs);
        let wanted =
            |one: &&Dependency| matches!(one.seen(), Seen::Link(_) | Seen::File { .. } | Seen::Absent);
        depends_on.iter().filter(wanted).map(|one| one.path().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("to-file"), ["to-file", "by-name", "file"].map(|name| chroot.path(name)));
    assert_eq!(names("in-store"), [chroot.path("in-store")]);
    assert_eq!(names("absent"), [chroot.path("absent")]);
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
    assert_eq!(follow(Path::new(&typed), dirs).result.unwrap().to_string(), SYSTEM_PATH);
    chroot.link("elsewhere", &typed);
    assert_eq!(follow(&chroot.path("elsewhere"), dirs).result.unwrap().to_string(), SYSTEM_PATH);
    let outside = follow(Path::new("/on/no/machine/store/../elsewhere"), dirs).result;
    assert!(matches!(outside, Err(ProfileError::Absent(_))), "{outside:?}");
    let itself = follow(Path::new("/on/no/machine/store/"), dirs).result;
    assert!(matches!(itself, Err(ProfileError::TheStore(_))), "{itself:?}");
}
