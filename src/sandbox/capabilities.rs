//! Capabilities: capabilities(7).

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

/// A capability that a monitor keeps, if it was started with it.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Its bit.
    pub bit: CapabilitySet,
    /// Its name in capabilities(7).
    pub name: &'static str,
    /// What it is for.
    pub why: &'static str,
}

/// What a monitor keeps. The unit of `nixos/unit.nix` gives it the same, but for CAP_SYS_PTRACE.
pub const KEPT: [Kept; 6] = [
    Kept {
        bit: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        why: "mount, unmount, end a connection, register files for passthrough, open the store in a mount namespace of its own",
    },
    Kept {
        bit: CapabilitySet::DAC_OVERRIDE,
        name: "CAP_DAC_OVERRIDE",
        why: "open the store's database, make mount points and links, whatever the modes of their directories",
    },
    Kept {
        bit: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        why: "follow the roots, whatever the modes of their directories",
    },
    Kept {
        bit: CapabilitySet::CHOWN,
        name: "CAP_CHOWN",
        why: "what the store library does when it opens a local store, and SQLite when it makes a file",
    },
    Kept {
        bit: CapabilitySet::FOWNER,
        name: "CAP_FOWNER",
        why: "the modes that the store library sets, and links in sticky directories",
    },
    Kept {
        bit: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        why: "name who uses a view at its end, also processes with more rights",
    },
];

/// No program that is executed gets any again, whoever owns it. Whoever may not say so (CAP_SETPCAP) has no_new_privs,
/// which says the same.
pub(super) fn never_again() -> io::Result<()> {
    let Ok(CapabilitySets { effective, .. }) = capabilities(None) else { return Ok(()) };
    if !effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    // Those that this kernel has: from the first that it does not know there is none.
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED,
    )?;
    Ok(())
}

/// All in each set of this thread, but for `wanted` as far as it has them.
pub(super) fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let kept = capabilities(None)?.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    // Ambient ones go with those that can be inherited.
    Ok(set_capabilities(None, sets)?)
}

/// What a monitor needs.
pub(super) fn of_a_monitor() -> CapabilitySet {
    KEPT.iter().fold(CapabilitySet::empty(), |all, kept| all | kept.bit)
}

/// What the thread needs that asks Nix, once its store is open.
pub(super) fn of_a_store_thread() -> CapabilitySet {
    of_a_monitor() - (CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE)
}

/// What a thread needs that looks into the store, whatever the modes.
pub(super) fn to_look_into_the_store() -> CapabilitySet {
    CapabilitySet::DAC_READ_SEARCH
}

/// What a thread needs that looks at processes: `/proc` may be mounted with hidepid= (proc(5)).
pub(super) fn to_look_at_processes() -> CapabilitySet {
    CapabilitySet::SYS_PTRACE
}
