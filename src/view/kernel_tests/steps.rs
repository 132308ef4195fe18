//! What happens: events of the kernel and of the host, generated.

use proptest::prelude::*;
use rustix::io::Errno;

/// One of several things: the number is taken modulo how many there are.
pub(super) type Pick = u16;

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A path walk comes to a name in a directory; its reply is taken in now or later.
    Lookup {
        dir: Pick,
        name: Pick,
        later: bool,
    },
    /// A reply that has waited is taken in, or the kernel has no memory for it and forgets it at once.
    Reply {
        which: Pick,
        fails: bool,
    },
    OpenDir {
        dir: Pick,
    },
    /// One READDIRPLUS; every entry whose bit is set in `fails` is forgotten at once.
    List {
        stream: Pick,
        room: u8,
        fails: u8,
    },
    Rewind {
        stream: Pick,
    },
    CloseDir {
        stream: Pick,
    },
    /// Opens or maps a file: its dentry stays.
    Open {
        file: Pick,
    },
    /// Opens a file by handle: its inode stays, its dentry need not.
    OpenByHandle {
        file: Pick,
    },
    Close {
        file: Pick,
    },
    /// The shrinker takes one dentry that nobody uses, or all of them.
    Shrink {
        dentry: Pick,
    },
    ShrinkAll {
        keep: Pick,
    },
    /// A FORGET is delivered: in any order, as servers have several threads.
    Forget {
        which: Pick,
    },
    ForgetAll {
        reverse: bool,
    },
    Invalidate {
        dentry: Pick,
    },
    Examine {
        held: Pick,
    },
    Switch {
        shown: u8,
    },
    /// The server dies; FORGETs that it had taken are lost.
    Kill {
        lost: u8,
    },
    Rewrite,
    /// The n-th call on the store fails in the next request, and those after it if `all`.
    Fault {
        number: u8,
        all: bool,
        errno: Pick,
    },
    /// A file of the first member is lost, and its directory looks as if nothing had happened.
    Damage {
        file: Pick,
    },
    /// The next step of a repair of the first member.
    Repair {
        renaming: bool,
    },
    /// The names of a group become names of a new file.
    Optimise {
        group: Pick,
    },
}

/// What the host may answer instead of doing what it was asked to.
pub(super) const ERRORS: [Errno; 8] = [
    Errno::IO,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::ACCESS,
    Errno::STALE,
    Errno::TIMEDOUT,
    Errno::NOSYS,
];

/// How often the host does something, beside a hundred events of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    pub(super) faults: u32,
    pub(super) changes: u32,
}

pub(super) fn steps(host: Host) -> impl Strategy<Value = Vec<Step>> {
    let pick = any::<Pick>;
    let fault =
        (0u8..12, any::<bool>(), pick()).prop_map(|(number, all, errno)| Step::Fault { number, all, errno });
    let step = prop_oneof![
        100 => kernel_steps(),
        host.faults => fault,
        host.changes => pick().prop_map(|file| Step::Damage { file }),
        5 * host.changes => any::<bool>().prop_map(|renaming| Step::Repair { renaming }),
        host.changes => pick().prop_map(|group| Step::Optimise { group }),
    ];
    proptest::collection::vec(step, 1..160)
}

pub(super) fn kernel_steps() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    prop_oneof![
        30 => (pick(), pick(), prop::bool::weighted(0.15)).prop_map(|(dir, name, later)| Step::Lookup { dir, name, later }),
        6 => (pick(), prop::bool::weighted(0.2)).prop_map(|(which, fails)| Step::Reply { which, fails }),
        4 => pick().prop_map(|dir| Step::OpenDir { dir }),
        8 => (pick(), 1u8..8, any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(stream, room, bits, some)| Step::List { stream, room, fails: if some { bits } else { 0 } }),
        2 => pick().prop_map(|stream| Step::Rewind { stream }),
        2 => pick().prop_map(|stream| Step::CloseDir { stream }),
        6 => pick().prop_map(|file| Step::Open { file }),
        2 => pick().prop_map(|file| Step::OpenByHandle { file }),
        4 => pick().prop_map(|file| Step::Close { file }),
        10 => pick().prop_map(|dentry| Step::Shrink { dentry }),
        4 => pick().prop_map(|keep| Step::ShrinkAll { keep }),
        12 => pick().prop_map(|which| Step::Forget { which }),
        4 => any::<bool>().prop_map(|reverse| Step::ForgetAll { reverse }),
        2 => pick().prop_map(|dentry| Step::Invalidate { dentry }),
        16 => pick().prop_map(|held| Step::Examine { held }),
        1 => (1u8..16).prop_map(|shown| Step::Switch { shown }),
        1 => (0u8..4).prop_map(|lost| Step::Kill { lost }),
        1 => Just(Step::Rewrite),
    ]
}
