# One unit and one file of roots for each of `services.nix-store-fs.views`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nix-store-fs;
  unit = import ./unit.nix {
    inherit lib pkgs;
    inherit (cfg) package idlePolling prefetch sandbox untrusted;
  };
  rootsFile = name: "nix-store-fs/${name}.roots";
in
{
  config = lib.mkIf (cfg.views != { } || cfg.imperativeContainers.enable) {
    assertions = lib.mapAttrsToList (name: view: {
      assertion =
        view.io == "passthrough" -> lib.versionAtLeast config.boot.kernelPackages.kernel.version "6.9";
      message = ''
        services.nix-store-fs.views.${name}.io is "passthrough", which needs Linux 6.9; boot.kernelPackages has
        ${config.boot.kernelPackages.kernel.version}. Set io = "cached", or boot.kernelPackages = pkgs.linuxPackages_latest.'';
    }) cfg.views;

    # Interpolation keeps the string context: the configuration holds what its views serve.
    environment.etc = lib.mapAttrs' (
      name: view:
      lib.nameValuePair (rootsFile name) { text = lib.concatMapStrings (root: "${root}\n") view.roots; }
    ) cfg.views;

    systemd.services = lib.mapAttrs' (
      name: view:
      lib.nameValuePair "nix-store-fs@${name}" (
        unit {
          inherit name;
          inherit (view)
            mountPoint
            io
            watch
            prune
            report
            gcRoot
            ;
          description =
            "Store view ${name}" + lib.optionalString (view.user != null) " of ${view.user}";
          roots = [
            "--roots-file"
            "/etc/${rootsFile name}"
          ];
          onDemand = view.user != null;
        }
        // {
          wantedBy = lib.optional (view.user == null) "multi-user.target";
          reloadTriggers = [ config.environment.etc.${rootsFile name}.source ];
        }
      )
    ) cfg.views;

    systemd.slices.nixstorefs.description = "Servers of Nix store views";
  };
}
