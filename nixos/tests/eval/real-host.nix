# With a nixpkgs tree: systemd's real option types, and stubs for what else the stock container module defines.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (utils) systemdUtils;
  option = type: default: mkOption { inherit type default; };
  ignored = option types.anything null;
in
{
  options = {
    boot.kernelModules = ignored;
    environment.systemPackages = ignored;
    meta.buildDocsInSandbox = ignored;
    networking.dhcpcd.denyInterfaces = ignored;
    networking.extraHosts = ignored;
    networking.networkmanager.enable = option types.bool false;
    nix.package = option types.package pkgs.nix;
    services.udev.extraRules = ignored;
    system.stateVersion = option types.str "25.05";
    virtualisation.containers.enable = option types.bool false;
    warnings = option (types.listOf types.str) [ ];
    systemd = {
      package = option types.unspecified pkgs.systemd;
      packages = ignored;
      globalEnvironment = option (types.attrsOf types.str) { };
      enableStrictShellChecks = option types.bool false;
      services = option systemdUtils.types.services { };
      slices = option systemdUtils.types.slices { };
      targets = ignored;
      units = option systemdUtils.types.units { };
    };
  };

  config.systemd.units = lib.mapAttrs' (
    name: service:
    lib.nameValuePair "${name}.service" {
      inherit (systemdUtils.lib.serviceToUnit service) text;
    }
  ) config.systemd.services;
}
