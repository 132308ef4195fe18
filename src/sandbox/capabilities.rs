//! Capabilities: capabilities(7).

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

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

/// All in each set of this thread.
pub(super) fn drop_all() -> io::Result<()> {
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}
