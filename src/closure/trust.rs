//! Who may decide what the roots mean: a pure rule over owners and modes, which depends on no bind mount.
//!
//! Responsibility: whether a root may be resolved through a link or a directory, and whether a file may name roots. Whoever
//! can change one of those chooses what the view shows, a container that has its profile bound writable for example.
//!
//! The rule: a link that is followed, a directory that is walked through and a file that is read belong to root, to the
//! effective user, or to the owner of the store directory, who can change every byte in it anyway. Nobody else may
//! write them. Of a directory that others may write, subdirectories alone are used, and only if it is sticky: there the
//! entry of a trusted owner can be renamed or deleted by its owner and the directory's alone (inode(7), "sticky bit"). What
//! somebody else makes there belongs to them, and is refused when it is found. The mode of a symbolic link means nothing
//! (symlink(7)).
//!
//! Hard points:
//! 1. An access control list shows in the group bits, which are its mask (acl(5), "Correspondence between ACL entries and
//!    file permission bits"). So group-writable counts, unless the group is the effective one and there is no list. The
//!    lists of NFSv4 show nowhere, and are not looked at.
//! 2. In a user namespace (user_namespaces(7)), whoever has no number there, the host's root among them, shows as the
//!    overflow user. There it counts as root; somebody else without a number cannot be told from it.
//! 3. In a container without private users, uid 0 is root of the host. What it can write is known to the caller alone,
//!    who [names](Trust::with_untrusted) it: it is recognised by name, and by device and inode number under another name.
//!    A bind mount of something below it elsewhere has neither, and is not recognised.
//! 4. Whoever can write a sticky directory can bring an entry of a trusted owner into it that was made elsewhere: a link or
//!    a file by rename(2) from a directory of their own, or by link(2) where `fs.protected_hardlinks` is 0. So they choose
//!    which one is found. A directory changes its parent only if it can be written itself (`vfs_rename` in Linux
//!    `fs/namei.c`: its `..` changes), and has no second name.
//! 5. Whoever mounted a FUSE file system makes up the owners and modes in it ([`mounter`](super::mounter)): it is judged as theirs
//!    as well. Nobody whose number is that of the overflow user counts as root there: it is a number of where it was mounted.
//! 6. Those who bypass modes (CAP_DAC_OVERRIDE) and the maps of idmapped mounts are not known here.

use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::mounter::Mounter;

const STICKY: u32 = 0o1000;
/// The bit that lets the group write.
pub(super) const GROUP_WRITE: u32 = 0o020;
const OTHER_WRITE: u32 = 0o002;
/// `DEFAULT_OVERFLOWUID` of `include/linux/highuid.h`.
const OVERFLOW_UID: u32 = 65534;

/// Owner and mode of a file (inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// User id of the owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Type and permissions, `st_mode`.
    pub mode: u32,
    /// Whether an access control list is behind the group bits. Only known where they let the group write.
    pub acl: bool,
    /// Who can make all of this up.
    pub mounter: Mounter,
}

impl Rights {
    /// Whether somebody may write whom the owner's bits do not mean, if the members of `group` count as the owner.
    fn others_write(&self, group: u32) -> bool {
        let by_group = self.mode & GROUP_WRITE != 0 && (self.group != group || self.acl);
        by_group || self.mode & OTHER_WRITE != 0
    }

    fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// Which file it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The device of its file system.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

/// How a file takes part in a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It was walked through, or followed, or is the end.
    Way,
    /// Its contents name roots.
    Roots,
}

/// Why somebody else could decide what the roots mean, as the first half of a sentence about what they could do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The owner is a stranger.
    #[error("uid {} owns it (mode {:04o})", .0.owner, .0.permissions())]
    Owner(Rights),
    /// The owner is what a stranger says.
    #[error("{} has mounted the FUSE file system that it is on, can make up owners and modes there,", .0)]
    Mounted(Mounter),
    /// Its mode lets strangers write.
    #[error(
        "others than its owner can write it (uid {}, gid {}, mode {:04o}{})",
        .0.owner, .0.group, .0.permissions(), if .0.acl { ", with an access control list" } else { "" }
    )]
    Writable(Rights),
    /// Strangers may have brought it to where it is.
    #[error(
        "others can write '{}', which it is in (mode {:04o}), can move there what somebody else has made,",
        .dir.display(), .rights.permissions()
    )]
    Movable {
        /// The directory that it is in.
        dir: PathBuf,
        /// Of that directory.
        rights: Rights,
    },
    /// The caller named it, or a directory above it.
    #[error("it is in '{}', which --untrusted names: others can write that", .0.display())]
    Named(PathBuf),
}

impl Reason {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Owner(_) => "give it to root (chown -h)",
            Self::Mounted(_) => "move it to a file system that root has mounted",
            Self::Writable(Rights { acl: true, .. }) => "take that right away (chmod go-w, setfacl -b)",
            Self::Writable(_) => "take that right away (chmod go-w)",
            Self::Movable { .. } => "move it to a directory that nobody else can write",
            Self::Named(_) => "move it elsewhere",
        }
    }
}

/// What must not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Untrusted {
    /// As the caller names it.
    named: PathBuf,
    /// Where it is: a link means what it leads to, as in a bind mount. `None`: nowhere.
    place: Option<PathBuf>,
    identity: Option<Identity>,
}

impl Untrusted {
    fn new(named: &Path) -> Self {
        let dangles = || named.is_symlink() && !named.exists();
        let place = named.canonicalize().ok().or_else(|| (!dangles()).then(|| named.to_owned()));
        let stat = rustix::fs::stat(named).ok();
        let identity = stat.map(|stat| Identity { device: stat.st_dev, inode: stat.st_ino });
        Self { named: named.to_owned(), place, identity }
    }

    fn contains(&self, path: &Path, identity: Identity) -> bool {
        self.identity == Some(identity) || self.place.as_ref().is_some_and(|place| path.starts_with(place))
    }
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    owners: Vec<u32>,
    /// The one of them that stands for whoever has no number here.
    unmapped: Option<u32>,
    group: u32,
    untrusted: Vec<Untrusted>,
    enforced: bool,
}

impl Trust {
    /// That of this process, for the store whose directory is `store`, if that is known.
    #[must_use]
    pub fn of_process(store: Option<&Path>) -> Self {
        let user = rustix::process::geteuid().as_raw();
        let store = store.and_then(|store| rustix::fs::stat(store).ok()).map(|stat| stat.st_uid);
        let unmapped = in_user_namespace().then(overflow_uid);
        let owners = [0, user].into_iter().chain(store).chain(unmapped);
        Self { unmapped, ..Self::new(owners, rustix::process::getegid().as_raw()) }
    }

    /// Trusts the users `owners`, and the members of `group`.
    #[must_use]
    pub fn new(owners: impl IntoIterator<Item = u32>, group: u32) -> Self {
        let owners = owners.into_iter().collect();
        Self { owners, unmapped: None, group, untrusted: Vec::new(), enforced: true }
    }

    /// Nothing in one of these directories decides. One that does not exist is known by its name.
    #[must_use]
    pub fn with_untrusted<'a>(mut self, dirs: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        self.untrusted.extend(dirs.into_iter().map(|dir| Untrusted::new(dir)));
        self
    }

    /// The same, of one who serves nothing: what is refused otherwise is a warning.
    #[must_use]
    pub fn warning_only(self) -> Self {
        Self { enforced: false, ..self }
    }

    /// Whether [`Self::judge`] refuses, or only warns.
    #[must_use]
    pub fn is_enforced(&self) -> bool {
        self.enforced
    }

    /// Whether owners and modes are true on what `mounter` has mounted.
    fn believes(&self, mounter: Mounter) -> bool {
        match mounter {
            Mounter::Privileged => true,
            Mounter::User(user) => self.owners.contains(&user) && self.unmapped != Some(user),
            Mounter::Unknown => false,
        }
    }

    /// Judges what is at `path`, in a directory with the rights `dir`; without, nobody chooses what is in it.
    ///
    /// # Errors
    /// Why it must not decide what the roots mean.
    pub fn judge(
        &self,
        path: &Path,
        identity: Identity,
        rights: Rights,
        dir: Option<Rights>,
        part: Part,
    ) -> Result<(), Reason> {
        if let Some(one) = self.untrusted.iter().find(|one| one.contains(path, identity)) {
            return Err(Reason::Named(one.named.clone()));
        }
        let kind = FileType::from_raw_mode(rights.mode);
        // The end of a way that is neither leads nowhere, whoever owns it.
        if part == Part::Way && !matches!(kind, FileType::Symlink | FileType::Directory) {
            return Ok(());
        }
        if !self.believes(rights.mounter) {
            return Err(Reason::Mounted(rights.mounter));
        }
        if !self.owners.contains(&rights.owner) {
            return Err(Reason::Owner(rights));
        }
        let others_write = kind != FileType::Symlink && rights.others_write(self.group);
        if others_write && !(kind == FileType::Directory && rights.mode & STICKY != 0) {
            return Err(Reason::Writable(rights));
        }
        // Hard point 4.
        let stays = kind == FileType::Directory && !others_write;
        if let Some(above) = dir.filter(|above| !stays && above.others_write(self.group)) {
            let dir = path.parent().unwrap_or(path).to_owned();
            return Err(Reason::Movable { dir, rights: above });
        }
        Ok(())
    }
}

/// Whether some users have no number here: the initial user namespace maps each to itself (user_namespaces(7)).
fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_all(&map))
}

fn maps_all(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn overflow_uid() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
    text.trim().parse().unwrap_or(OVERFLOW_UID)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK: u32 = 0o120_000;
    const DIR: u32 = 0o040_000;
    const FILE: u32 = 0o100_000;

    const IDENTITY: Identity = Identity { device: 1, inode: 2 };

    fn rights(owner: u32, group: u32, mode: u32) -> Rights {
        Rights { owner, group, mode, acl: false, mounter: Mounter::Privileged }
    }

    /// User 0 and 1000 with group 100.
    fn judge(rights: Rights, part: Part) -> Result<(), Reason> {
        judge_in(None, rights, part)
    }

    fn judge_in(dir: Option<Rights>, rights: Rights, part: Part) -> Result<(), Reason> {
        Trust::new([0, 1000], 100).judge(Path::new("/a/b"), IDENTITY, rights, dir, part)
    }

    #[test]
    fn what_a_stranger_can_change_does_not_decide() {
        let accepted = [
            (0, 0, DIR | 0o755),
            (0, 0, DIR | 0o1777),
            (0, 30000, DIR | 0o1775),
            (1000, 100, DIR | 0o775),
            (1000, 100, DIR | 0o700),
            (0, 0, LINK | 0o777),
            (1000, 7, LINK | 0o777),
            (0, 0, FILE | 0o644),
            (1000, 100, FILE | 0o664),
        ];
        for (owner, group, mode) in accepted {
            let rights = rights(owner, group, mode);
            assert_eq!(judge(rights, Part::Roots), Ok(()), "{rights:?}");
        }
        for (owner, group, mode) in [
            (7, 0, DIR | 0o755),
            (7, 0, DIR | 0o1777),
            (7, 0, LINK | 0o777),
            (7, 0, FILE | 0o444),
            (65534, 65534, LINK | 0o777),
        ] {
            let rights = rights(owner, group, mode);
            assert_eq!(judge(rights, Part::Roots), Err(Reason::Owner(rights)), "{rights:?}");
        }
        for (owner, group, mode) in [
            (0, 0, DIR | 0o777),
            (0, 0, DIR | 0o775),
            (0, 7, DIR | 0o770),
            (0, 0, DIR | 0o757),
            (0, 0, FILE | 0o646),
            (0, 0, FILE | 0o664),
            (0, 0, FILE | 0o1646),
        ] {
            let rights = rights(owner, group, mode);
            assert_eq!(judge(rights, Part::Roots), Err(Reason::Writable(rights)), "{rights:?}");
        }
        // The mask of a list may mean somebody else than the group.
        let listed = Rights { acl: true, ..rights(1000, 100, DIR | 0o775) };
        assert_eq!(judge(listed, Part::Way), Err(Reason::Writable(listed)));
        // A file that is no link leads nowhere, and is an error of its own.
        assert_eq!(judge(rights(7, 7, FILE | 0o666), Part::Way), Ok(()));
    }

    /// Whoever mounted what it is on must be trusted as well as its owner.
    #[test]
    fn what_a_stranger_makes_up_does_not_decide() {
        use Mounter::{Privileged, Unknown, User};
        let in_namespace = Trust { unmapped: Some(65534), ..Trust::new([0, 1000, 65534], 100) };
        for kind in [DIR | 0o755, LINK | 0o777, FILE | 0o644] {
            let by = |trust: &Trust, owner, mounter| {
                let rights = Rights { mounter, ..rights(owner, 0, kind) };
                trust.judge(Path::new("/a/b"), IDENTITY, rights, None, Part::Roots)
            };
            let trust = Trust::new([0, 1000], 100);
            for mounter in [Privileged, User(0), User(1000)] {
                assert_eq!(by(&trust, 0, mounter), Ok(()), "{mounter:?}");
                assert!(matches!(by(&trust, 7, mounter), Err(Reason::Owner(_))), "{mounter:?}");
                assert_eq!(by(&in_namespace, 65534, mounter), Ok(()), "{mounter:?}");
            }
            for mounter in [User(7), User(65534), Unknown] {
                assert_eq!(by(&trust, 0, mounter), Err(Reason::Mounted(mounter)));
                assert_eq!(by(&in_namespace, 0, mounter), Err(Reason::Mounted(mounter)));
            }
        }
    }

    /// Whoever can write a sticky directory can move there what is none of theirs, but for a directory.
    #[test]
    fn what_a_stranger_can_move_does_not_decide() {
        let dir = |owner, group, mode| rights(owner, group, DIR | mode);
        let everybodys = [dir(0, 0, 0o1777), dir(0, 0, 0o1757), dir(0, 7, 0o1775), dir(1000, 0, 0o1777)];
        let own = [dir(0, 0, 0o755), dir(0, 0, 0o1755), dir(0, 100, 0o1775), dir(1000, 100, 0o775)];
        let movable = [
            rights(0, 0, LINK | 0o777),
            rights(1000, 7, LINK | 0o777),
            rights(0, 0, FILE | 0o644),
            rights(1000, 100, FILE | 0o664),
            dir(0, 0, 0o1777),
            dir(0, 30000, 0o1775),
        ];
        let stay = [dir(0, 0, 0o755), dir(0, 0, 0o1755), dir(1000, 100, 0o775), dir(1000, 100, 0o1775)];
        for above in everybodys {
            for one in movable {
                let refused = Reason::Movable { dir: "/a".into(), rights: above };
                assert_eq!(judge_in(Some(above), one, Part::Roots), Err(refused), "{one:?} in {above:?}");
            }
            for one in stay {
                assert_eq!(judge_in(Some(above), one, Part::Roots), Ok(()), "{one:?} in {above:?}");
            }
        }
        for above in own {
            for one in movable.into_iter().chain(stay) {
                assert_eq!(judge_in(Some(above), one, Part::Roots), Ok(()), "{one:?} in {above:?}");
            }
        }
    }

    #[test]
    fn what_is_named_is_refused_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let stat = rustix::fs::stat(&real).unwrap();
        let same = Identity { device: stat.st_dev, inode: stat.st_ino };
        let (absent, dangling) = (dir.path().join("absent"), dir.path().join("dangling"));
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        let trust = Trust::new([0], 0).with_untrusted(&[link.clone(), absent.clone(), dangling.clone()]);
        let by =
            |path: &Path, identity| trust.judge(path, identity, rights(0, 0, DIR | 0o755), None, Part::Way);
        let named = |dir: &Path| Err(Reason::Named(dir.to_owned()));
        assert_eq!(by(Path::new("/elsewhere"), same), named(&link));
        assert_eq!(by(&real.canonicalize().unwrap().join("below"), IDENTITY), named(&link));
        // The link itself is not in what it leads to, and one that dangles names nothing.
        assert_eq!(by(&link, IDENTITY), Ok(()));
        assert_eq!(by(&dangling, IDENTITY), Ok(()));
        assert_eq!(by(&absent.join("below"), IDENTITY), named(&absent));
        assert_eq!(by(&dir.path().join("absent-minded"), IDENTITY), Ok(()));
        assert_eq!(by(dir.path(), IDENTITY), Ok(()));
    }

    #[test]
    fn the_initial_namespace_maps_everybody() {
        assert!(maps_all("         0          0 4294967295\n"));
        for map in ["0 1000 1\n", "0 100000 65536\n", "0 0 1000\n1000 1000 1\n", ""] {
            assert!(!maps_all(map), "{map:?}");
        }
    }

    fn may_write(rights: Rights, stranger: u32, groups: &[u32]) -> bool {
        let shift = if groups.contains(&rights.group) { 3 } else { 0 };
        stranger == rights.owner || rights.mode >> shift & 0o2 != 0
    }

    /// Whether `stranger`, a member of `groups`, can make an entry of somebody trusted in a directory another one, or
    /// change a file, or put another in the place of what is there: the rules of path_resolution(7) and inode(7).
    fn can_change(rights: Rights, stranger: u32, groups: &[u32]) -> bool {
        let makes_up = match rights.mounter {
            Mounter::Privileged => false,
            Mounter::User(user) => user == stranger,
            Mounter::Unknown => true,
        };
        if stranger == rights.owner || makes_up {
            return true;
        }
        let may_write = may_write(rights, stranger, groups);
        match rights.mode & 0o170_000 {
            LINK => false,
            DIR => may_write && rights.mode & 0o1000 == 0,
            _ => may_write,
        }
    }

    /// Whether `stranger` can move something like this from a directory of their own into one with the rights `dir`.
    fn can_bring(rights: Rights, dir: Rights, stranger: u32, groups: &[u32]) -> bool {
        let leaves = rights.mode & 0o170_000 != DIR || may_write(rights, stranger, groups);
        leaves && may_write(dir, stranger, groups)
    }

    /// Owner, group and permissions.
    fn any_rights() -> impl Strategy<Value = (u32, u32, u32)> {
        (0u32..5, 0u32..4, 0u32..0o10000)
    }

    fn any_mounter() -> impl Strategy<Value = Mounter> {
        let user = (0u32..5).prop_map(Mounter::User);
        prop_oneof![2 => Just(Mounter::Privileged), 2 => user, 1 => Just(Mounter::Unknown)]
    }

    proptest! {
        /// What some stranger can change or choose is refused, and nothing else. Where one writes the directory and only another
        /// one what is in it, that is refused as well: they may be the same person.
        #[test]
        fn a_stranger_decides_nothing(
            (owner, group, permissions) in any_rights(),
            kind in prop::sample::select(vec![LINK, DIR, FILE]),
            above in proptest::option::of(any_rights()),
            mounter in any_mounter(),
        ) {
            let one = Rights { mounter, ..rights(owner, group, kind | permissions) };
            // Who owns or mounted the directory above is judged by itself.
            let above = above.map(|(owner, group, permissions)| rights(owner % 2, group, DIR | permissions));
            // Users 0 and 1 are trusted, and the members of group 1 with them.
            let trust = Trust::new([0, 1], 1);
            let strangers = || (2..6u32).flat_map(|stranger| [(stranger, [0, 2, 3].as_slice()), (stranger, &[])]);
            let changed = strangers().any(|(stranger, groups)| can_change(one, stranger, groups));
            let brought = |above| strangers().any(|(stranger, groups)| can_bring(one, above, stranger, groups));
            let together = |above| {
                let any = |rights| strangers().any(|(stranger, groups)| may_write(rights, stranger, groups));
                any(above) && (kind != DIR || any(one))
            };
            let judged = trust.judge(Path::new("/a/b"), IDENTITY, one, above, Part::Roots);
            if changed || above.is_some_and(brought) {
                prop_assert!(judged.is_err(), "{:?} in {:?}", one, above);
            } else if !above.is_some_and(together) {
                prop_assert!(judged.is_ok(), "{:?} in {:?}", one, above);
            }
        }
    }
}
