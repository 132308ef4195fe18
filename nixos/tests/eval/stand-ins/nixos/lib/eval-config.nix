# Stand-in for the evaluation of a container's own system.
_: { config.system.build.toplevel = "/nix/store/00000000000000000000000000000000-nixos-system"; }
