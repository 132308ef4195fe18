# Evaluates the module in a host's configuration: over the stand-ins, or with `nixpkgs` given over the real files.
{
  nixpkgs ? null,
  # of the stand-in's bind lines: "24.11" or "25.05"
  form ? "25.05",
  systemd ? null,
  containerInit ? null,
}:
let
  pkgs = import ./stand-ins/pkgs.nix { inherit systemd containerInit; };
  real = {
    lib = import (nixpkgs + "/lib");
    modules = [
      (nixpkgs + "/nixos/modules/virtualisation/nixos-containers.nix")
      ./real-host.nix
    ];
    specialArgs =
      { config }:
      {
        utils = import (nixpkgs + "/nixos/lib/utils.nix") {
          inherit config pkgs;
          inherit (real) lib;
        };
      };
  };
  standIn = {
    lib = import ./stand-ins/lib.nix;
    modules = [
      ./stand-ins/systemd.nix
      (import ./stand-ins/containers.nix form)
    ];
    specialArgs = _: { };
  };
  used = if nixpkgs == null then standIn else real;
  inherit (used) lib;
in
rec {
  inherit lib pkgs;

  # the configuration that results from these modules
  evaluate = modules: evaluateStock ([ ../../module.nix ] ++ modules);

  # the same without the project's own module
  evaluateStock = modules: (evaluateAll modules).config;

  # and with the declarations of the options
  evaluateAll =
    modules:
    let
      evaluated = lib.evalModules {
        modules = used.modules ++ [
          ./stand-ins/host.nix
          { boot.kernelPackages = lib.mkDefault (pkgs.linux "6.18.1"); }
        ] ++ modules;
        specialArgs = {
          inherit pkgs;
        } // used.specialArgs { inherit (evaluated) config; };
      };
    in
    evaluated;
}
