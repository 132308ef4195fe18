# `systemd.services.<name>.privateStore`: a plain service that sees the closure of its own unit in /nix/store.
#
# Hard points
# 1. Which services ask for it is known only once `systemd.services` is evaluated, so nothing here may add to the names
#    in `systemd.services`, nor to those in `environment.etc`, which some services look at. The servers are therefore
#    given as finished texts in `systemd.units`, and their roots as one directory.
# 2. The root is the unit's own file in the store: whatever a unit's text names is in its closure. What the service adds
#    to its own text for the view is constant, so there is no circle.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  unit = import ./unit.nix {
    inherit lib pkgs;
    inherit (config.services.nix-store-fs)
      package
      idlePolling
      prefetch
      sandbox
      untrusted
      ;
  };

  # As a part of the names of units and files. Two services whose names differ only here would share a view, which
  # the assertion below refuses.
  viewOf = service: "service-${lib.replaceStrings [ "@" "\\" ":" ] [ "-" "-" "-" ] service}";
  mountPointOf = service: "/run/nix-store-fs/${viewOf service}";
  serverOf = service: "nix-store-fs@${viewOf service}.service";

  private = lib.filterAttrs (_: service: service.privateStore.enable) config.systemd.services;
  views = map viewOf (lib.attrNames private);

  rootsOf =
    name: service:
    pkgs.writeText "${viewOf name}.roots" (
      lib.concatMapStrings (root: "${root}\n") (
        [ config.systemd.units."${name}.service".unit ] ++ service.privateStore.extraPaths
      )
    );

  render =
    section: settings:
    let
      text = value: if builtins.isBool value then lib.boolToString value else toString value;
      lines = key: values: map (value: "${key}=${text value}\n") (lib.toList values);
    in
    "[${section}]\n" + lib.concatStrings (lib.concatLists (lib.mapAttrsToList lines settings));

  serverText =
    name: service:
    let
      server = unit {
        name = viewOf name;
        mountPoint = mountPointOf name;
        description = "Store view of ${name}.service";
        roots = [
          "--roots-file"
          "/etc/nix-store-fs/services/${viewOf name}.roots"
        ];
        inherit (service.privateStore) io report;
        onDemand = true;
      };
    in
    render "Unit" (
      server.unitConfig
      // {
        Description = server.description;
        X-Reload-Triggers = "${rootsOf name service}";
      }
    )
    + "\n"
    + render "Service" (
      server.serviceConfig
      // {
        X-ReloadIfChanged = server.reloadIfChanged;
        X-StopIfChanged = server.stopIfChanged;
      }
    );
in
{
  options.systemd.services = mkOption {
    type = types.attrsOf (
      types.submodule (
        { name, config, ... }:
        {
          options.privateStore = {
            enable = mkEnableOption ''
              showing this service the closure of its own unit in {file}`/nix/store`, and nothing else of the store.
              The database and the daemon's socket are inaccessible to it. A service that runs as root with
              `CAP_SYS_ADMIN` could undo this'';

            extraPaths = mkOption {
              type = types.listOf types.path;
              default = [ ];
              example = lib.literalExpression ''[ pkgs.hello "/run/opengl-driver" ]'';
              description = ''
                What the service sees besides, each with its closure: packages, store paths, or links that lead into
                the store.
              '';
            };

            io = mkOption {
              type = types.enum [
                "cached"
                "passthrough"
              ];
              default = "cached";
              description = "As {option}`services.nix-store-fs.views.<name>.io`.";
            };

            report = mkOption {
              type = types.bool;
              default = false;
              description = "As {option}`services.nix-store-fs.views.<name>.report`.";
            };
          };

          config = lib.mkIf config.privateStore.enable {
            requires = [ (serverOf name) ];
            after = [ (serverOf name) ];
            serviceConfig = {
              BindReadOnlyPaths = [ "${mountPointOf name}:/nix/store" ];
              InaccessiblePaths = [
                "-/nix/var/nix/db"
                "-/nix/var/nix/daemon-socket"
                # the views of others
                "-/run/nix-store-fs"
              ];
            };
          };
        }
      )
    );
  };

  config = {
    assertions = [
      {
        assertion = lib.unique views == views;
        message = ''
          systemd.services: two services with privateStore have names that differ only in `@`, `:`, `\` or `-`,
          and would share a view: ${lib.concatStringsSep ", " (lib.attrNames private)}. Rename one of them.'';
      }
    ]
    ++ lib.mapAttrsToList (name: service: {
      assertion =
        service.privateStore.io == "passthrough"
        -> lib.versionAtLeast config.boot.kernelPackages.kernel.version "6.9";
      message = ''
        systemd.services.${name}.privateStore.io is "passthrough", which needs Linux 6.9; boot.kernelPackages has
        ${config.boot.kernelPackages.kernel.version}. Set io = "cached", or boot.kernelPackages = pkgs.linuxPackages_latest.'';
    }) private;

    systemd.units = lib.mapAttrs' (
      name: service: lib.nameValuePair (serverOf name) { text = serverText name service; }
    ) private;

    environment.etc."nix-store-fs/services" = {
      enable = private != { };
      source = pkgs.linkFarm "nix-store-fs-services" (
        lib.mapAttrsToList (name: service: {
          name = "${viewOf name}.roots";
          path = rootsOf name service;
        }) private
      );
    };
  };
}
