//! What a command keeps that is run over a view.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
};

use super::{Missing, Part, Role, Sandbox, capabilities, give_up};

/// A command that this process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// It gets no capability, and no program that it executes does.
    Powerless,
    /// It has those that this process has, also where its user is not 0.
    Keeps,
}

impl Command {
    /// Gives up what it is not to have. Called while there is one thread.
    ///
    /// # Errors
    /// [`Missing`]: it is never left out.
    pub fn confine(self) -> Result<(), Missing> {
        let steps: &[(Part, &dyn Fn() -> std::io::Result<()>)] = match self {
            Self::Powerless => &[
                (Part::Capabilities, &capabilities::never_again),
                (Part::NewPrivileges, &|| Ok(rustix::thread::set_no_new_privs(true)?)),
                (Part::Capabilities, &|| capabilities::keep(CapabilitySet::empty())),
            ],
            Self::Keeps => &[
                (Part::NewPrivileges, &|| Ok(rustix::thread::set_no_new_privs(true)?)),
                (Part::Capabilities, &inherit),
            ],
        };
        give_up(Role::Command, Sandbox::Require, steps)
    }
}

/// Lets a program that is executed have what this thread has (capabilities(7), "ambient").
fn inherit() -> std::io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable: permitted })?;
    for capability in permitted.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
