//! Under a real systemd: as the manager of a container that lives in the view, and as the manager of the service
//! that serves one.
//!
//! Both run in `systemd-nspawn`, on the small Debian that `scripts/setup --test` makes. The nspawn flags of the
//! containers and the text of the units are what the NixOS module evaluates to, not copies of it.

/// First line of a test that boots a systemd; with what else it needs.
macro_rules! need_systemd {
    ($($more:ident),*) => {
        need!(Root, Fuse, Nix, Nspawn, Jq, Cgroup2, Guest $(, $more)*)
    };
}

mod cgroup;
mod guest;
mod host;
mod load;
mod machine;
mod nixos;

mod chosen_roots;
mod container;
mod hardening;
mod imperative;
mod mounts;
mod recipe;
mod service;
mod starts;
mod survival;
